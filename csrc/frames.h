/* What the CUDA kernels for frames share: numbers of a frame, vectors of pixels. */
#ifndef N2SR_FRAMES_H
#define N2SR_FRAMES_H

#include <cuda_runtime.h>

#include "cell.h"

#define N2SR_MEMBER __host__ __device__ __forceinline__
#define N2SR_BOTH static N2SR_MEMBER

/* Of a frame: its pixels are (pixel - mean) / std to the network. */
typedef struct {
    double mean, std, inverse_std;
} n2sr_statistics;

/* Neighbours that one access of at most 16 bytes, or a few, moves. */
template <typename T, int N> struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) vector {
    T element[N];
};

template <typename Vector> N2SR_BOTH bool is_aligned(const void *address)
{
    return (uintptr_t)address % alignof(Vector) == 0;
}

static const dim3 BLOCK(32, 8);

/* Blocks that cover (height, width). */
static inline dim3 tiled(ptrdiff_t height, ptrdiff_t width, dim3 block)
{
    return dim3((unsigned)((width + block.x - 1) / block.x),
                (unsigned)((height + block.y - 1) / block.y));
}

/* Cells or pixels of a row that a thread does in the kernels for aligned rows. */
enum { WIDTH = N2SR_SHARING };

#endif
