/* Mean and standard deviation of a frame on an NVIDIA GPU, and giving a result the frame's mean.
 *
 * Calls only enqueue, as in csrc/draws.h. Sums run in an order that depends on nothing but n.
 */
#include <cuda_runtime.h>

#include "export.h"
#include "frames.h"

#define THREADS 256
#define BLOCKS 1024 /* at most; each leaves two partial sums */

/* Sums over a block, left in element 0, in an order that depends on nothing. */
static __device__ void sum_block(double (&sums)[2][THREADS])
{
    for (int step = THREADS / 2; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step)
            for (int k = 0; k < 2; ++k)
                sums[k][threadIdx.x] += sums[k][threadIdx.x + step];
    }
    __syncthreads();
}

/* Sums of pixel - offset and of its squares; those of whole numbers without rounding. */
template <typename Pixel> struct moments {
    int64_t sum = 0;
    uint64_t squares = 0;

    N2SR_MEMBER void add(Pixel pixel, Pixel offset)
    {
        const int value = (int)pixel - (int)offset;
        sum += value;
        squares += (uint32_t)value * (uint32_t)value; /* of 16 bits: below 2^32 */
    }
};

template <> struct moments<float> {
    double sum = 0, squares = 0;

    N2SR_MEMBER void add(float pixel, float offset)
    {
        const double value = (double)pixel - (double)offset;
        sum += value;
        squares += value * value;
    }
};

/* Of thread `thread` of `threads`, which take vectors by turns, then the pixels left over. */
template <typename Pixel>
N2SR_BOTH moments<Pixel> moments_of(const Pixel *pixels, size_t n, size_t thread, size_t threads)
{
    constexpr int N = 32 / sizeof(Pixel);
    typedef vector<Pixel, N> pixel_vector;
    moments<Pixel> found;
    const Pixel offset = pixels[0];
    const size_t vectors = is_aligned<pixel_vector>(pixels) ? n / N : 0;
    for (size_t i = thread; i < vectors; i += threads) {
        const pixel_vector loaded = ((const pixel_vector *)pixels)[i];
        for (int j = 0; j < N; ++j)
            found.add(loaded.element[j], offset);
    }
    for (size_t i = vectors * N + thread; i < n; i += threads)
        found.add(pixels[i], offset);
    return found;
}

/* Of n pixels, from the sums of pixel - offset and of its squares. */
N2SR_BOTH n2sr_statistics statistics_of_sums(double sum, double squares, double offset, size_t n)
{
    const double mean = sum / n, variance = squares / n - mean * mean;
    const double std = variance > 0 ? sqrt(variance) : variance * 0; /* NaN stays NaN */
    return {offset + mean, std, 1.0 / std};
}

/* partial[2 * block] <- sum and sum of squares of pixel - first pixel. */
template <typename Pixel>
static __global__ void partial_sums(const Pixel *pixels, size_t n, double *partial)
{
    __shared__ double sums[2][THREADS];
    const auto found = moments_of(pixels, n, (size_t)blockIdx.x * THREADS + threadIdx.x,
                                  (size_t)gridDim.x * THREADS);
    sums[0][threadIdx.x] = (double)found.sum;
    sums[1][threadIdx.x] = (double)found.squares;
    sum_block(sums);
    if (threadIdx.x < 2)
        partial[2 * blockIdx.x + threadIdx.x] = sums[threadIdx.x][0];
}

template <typename Pixel>
static __global__ void total_sums(const Pixel *pixels, size_t n, const double *partial, int blocks,
                                  n2sr_statistics *statistics)
{
    __shared__ double sums[2][THREADS];
    for (int k = 0; k < 2; ++k) {
        double sum = 0;
        for (int i = threadIdx.x; i < blocks; i += THREADS)
            sum += partial[2 * i + k];
        sums[k][threadIdx.x] = sum;
    }
    sum_block(sums);
    if (threadIdx.x == 0)
        *statistics = statistics_of_sums(sums[0][0], sums[1][0], (double)pixels[0], n);
}

/* mean[i] += the frame's mean - the mean of all mean[i], whose sums partial_sums left. */
static __global__ void shift_mean(float *mean, size_t n, const n2sr_statistics *frame,
                                  const n2sr_statistics *result)
{
    typedef vector<float, WIDTH> results;
    const float offset = (float)(frame->mean - result->mean);
    const size_t thread = (size_t)blockIdx.x * THREADS + threadIdx.x;
    const size_t threads = (size_t)gridDim.x * THREADS;
    const size_t vectors = is_aligned<results>(mean) ? n / WIDTH : 0;
    for (size_t i = thread; i < vectors; i += threads) {
        results moved = ((const results *)mean)[i];
        for (int j = 0; j < WIDTH; ++j)
            moved.element[j] += offset;
        ((results *)mean)[i] = moved;
    }
    for (size_t i = vectors * WIDTH + thread; i < n; i += threads)
        mean[i] += offset;
}

/* ---- launchers ------------------------------------------------------------------------- */

static int blocks_of(size_t n)
{
    const size_t blocks = (n + THREADS - 1) / THREADS;
    return (int)(blocks < BLOCKS ? blocks : BLOCKS);
}

template <typename Pixel>
static int statistics_of(const void *pixels, size_t n, double *scratch, n2sr_statistics *result,
                         cudaStream_t stream)
{
    const int blocks = blocks_of(n);
    partial_sums<Pixel><<<blocks, THREADS, 0, stream>>>((const Pixel *)pixels, n, scratch);
    total_sums<Pixel><<<1, THREADS, 0, stream>>>((const Pixel *)pixels, n, scratch, blocks, result);
    return cudaGetLastError();
}

/* Bytes that n2sr_cuda_statistics needs to work in. */
N2SR_API size_t n2sr_cuda_scratch_bytes(void) { return 2 * BLOCKS * sizeof(double); }

/* *result <- of n pixels of one of the types uint8, uint16, int16, float32. */
N2SR_API int n2sr_cuda_statistics(const void *pixels, int dtype, size_t n, double *scratch,
                                  n2sr_statistics *result, cudaStream_t stream)
{
    switch (dtype) {
    case N2SR_UINT8: return statistics_of<uint8_t>(pixels, n, scratch, result, stream);
    case N2SR_UINT16: return statistics_of<uint16_t>(pixels, n, scratch, result, stream);
    case N2SR_INT16: return statistics_of<int16_t>(pixels, n, scratch, result, stream);
    case N2SR_FLOAT32: return statistics_of<float>(pixels, n, scratch, result, stream);
    default: return cudaErrorInvalidValue;
    }
}

/* Give n results the frame's mean; *result <- their statistics before. */
N2SR_API int n2sr_cuda_shift_mean(float *mean, size_t n, double *scratch,
                                  const n2sr_statistics *frame, n2sr_statistics *result,
                                  cudaStream_t stream)
{
    const int error = statistics_of<float>(mean, n, scratch, result, stream);
    if (error)
        return error;
    shift_mean<<<blocks_of(n), THREADS, 0, stream>>>(mean, n, frame, result);
    return cudaGetLastError();
}
