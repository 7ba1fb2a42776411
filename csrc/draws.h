/* What the CUDA kernels for draws share: where draws lie, as single pixels or in vectors.
 *
 * Pointers are device addresses, streams cudaStream_t; every call only enqueues and returns a
 * cudaError_t (0: fine). What changes from frame to frame (the key of the draws, mean and standard
 * deviation) is read from device memory, so that a CUDA graph can be replayed. Draws and merged
 * results equal csrc/subsample.c bit for bit, given the same statistics: build with -fmad=false.
 *
 * What a thread does stands in host and device functions, so that it can be tested without a GPU.
 */
#ifndef N2SR_DRAWS_H
#define N2SR_DRAWS_H

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "export.h"
#include "frames.h"

/* Where draws and outputs lie. Draw m of group m / group_size is written in orientation m mod 4,
 * and, where `transposes`, those of every second group transposed after that. */
typedef struct {
    uint32_t first_sample;
    int n_samples, group_size, transposes;
} n2sr_draws;

N2SR_BOTH bool is_transposed(n2sr_draws draws, uint32_t sample)
{
    return draws.transposes && sample / (uint32_t)draws.group_size % 2 == 1;
}

/* The place of pixel (y, x) of draw m, all of them (height, width) before they are transposed. */
N2SR_BOTH size_t place_of(n2sr_draws draws, int m, ptrdiff_t y, ptrdiff_t x, ptrdiff_t height,
                          ptrdiff_t width)
{
    const uint32_t sample = draws.first_sample + (uint32_t)m;
    const ptrdiff_t row = n2sr_flips_y(sample) ? height - 1 - y : y;
    const ptrdiff_t column = n2sr_flips_x(sample) ? width - 1 - x : x;
    const size_t within = is_transposed(draws, sample) ? (size_t)column * height + row
                                                       : (size_t)row * width + column;
    return (size_t)m * height * width + within;
}

/* Where pixels (y, x .. x + WIDTH) of draw m lie, of draws of which the first is in orientation 0
 * and none transposed; in reverse where n2sr_flips_x(m). */
N2SR_BOTH size_t place_of_vector(int m, ptrdiff_t y, ptrdiff_t x, ptrdiff_t height, ptrdiff_t width)
{
    const n2sr_draws draws = {0, 0, 1, 0};
    return place_of(draws, m, y, n2sr_flips_x((uint32_t)m) ? x + WIDTH - 1 : x, height, width);
}

/* Whether place_of_vector tells places of whole vectors. */
template <typename Number>
static bool lies_in_vectors(n2sr_draws draws, const void *values, ptrdiff_t left, ptrdiff_t width)
{
    bool turns = false;
    for (int m = 0; m < draws.n_samples; ++m)
        turns = turns || is_transposed(draws, draws.first_sample + (uint32_t)m);
    return draws.first_sample % 4 == 0 && !turns && left % WIDTH == 0 && width % WIDTH == 0 &&
           is_aligned<vector<Number, WIDTH>>(values);
}

static const dim3 VECTORS_BLOCK(32, 4);

static dim3 tiled_vectors(ptrdiff_t height, ptrdiff_t width)
{
    return tiled(height, (width + WIDTH - 1) / WIDTH, VECTORS_BLOCK);
}

#endif
