/* The sub-sampler on an NVIDIA GPU: standardise, draw, merge; and the few calls of the CUDA runtime
 * that a pipeline of frames needs. One shared library without dependencies but the driver.
 *
 * Pointers are device addresses, streams cudaStream_t; every call only enqueues and returns a
 * cudaError_t (0: fine). What changes from frame to frame (the key of the draws, mean and standard
 * deviation) is read from device memory, so that a CUDA graph can be replayed. Draws and merged
 * results equal csrc/subsample.c bit for bit, given the same statistics: build with -fmad=false.
 *
 * What a thread does stands in host and device functions, so that it can be tested without a GPU.
 */
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cell.h"

#ifdef _WIN32
#define N2SR_API extern "C" __declspec(dllexport)
#else
#define N2SR_API extern "C" __attribute__((visibility("default")))
#endif
#define N2SR_BOTH static __host__ __device__ __forceinline__

/* Of a frame: its pixels are (pixel - mean) / std to the network. */
typedef struct {
    double mean, std, inverse_std;
} n2sr_statistics;

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

N2SR_BOTH void store(float *to, float value) { *to = value; }
N2SR_BOTH void store(__half *to, float value) { *to = __float2half_rn(value); }
N2SR_BOTH float float_of(float value) { return value; }
N2SR_BOTH float float_of(__half value) { return __half2float(value); }

/* ---- mean and standard deviation of the frame ------------------------------------------ */

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

/* partial[2 * block] <- sum and sum of squares of pixel - first pixel. */
template <typename Pixel>
static __global__ void partial_sums(const Pixel *pixels, size_t n, double *partial)
{
    __shared__ double sums[2][THREADS];
    const double shift = (double)pixels[0];
    double sum = 0, squares = 0;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (size_t)gridDim.x * THREADS) {
        const double value = (double)pixels[i] - shift;
        sum += value;
        squares += value * value;
    }
    sums[0][threadIdx.x] = sum;
    sums[1][threadIdx.x] = squares;
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
    if (threadIdx.x == 0) {
        const double mean = sums[0][0] / n, variance = sums[1][0] / n - mean * mean;
        statistics->mean = (double)pixels[0] + mean;
        statistics->std = variance > 0 ? sqrt(variance) : variance * 0; /* NaN stays NaN */
        statistics->inverse_std = 1.0 / statistics->std;
    }
}

/* ---- draw ------------------------------------------------------------------------------ */

template <typename Pixel> struct draw_job {
    const Pixel *pixels;
    ptrdiff_t height, width;
    n2sr_pattern pattern;
    n2sr_window window;
    n2sr_draws draws;
};

/* All draws of cell (row, column) of the window. */
template <typename Pixel, typename Number, int STRIDE_Y, int STRIDE_X>
N2SR_BOTH void draw_cell(const draw_job<Pixel> &job, n2sr_key key, const n2sr_statistics &statistics,
                         ptrdiff_t row, ptrdiff_t column, Number *subsampled)
{
    const int stride_y = STRIDE_Y ? STRIDE_Y : job.pattern.stride_y;
    const int stride_x = STRIDE_X ? STRIDE_X : job.pattern.stride_x;
    const uint32_t n = (uint32_t)(stride_y * stride_x);
    const ptrdiff_t cell_y = job.window.top + row, cell_x = job.window.left + column;
    const float shift = (float)statistics.mean, factor = (float)statistics.inverse_std;
    uint64_t places = 0;
    for (int m = 0; m < job.draws.n_samples; ++m) {
        const uint32_t sample = job.draws.first_sample + (uint32_t)m;
        if (m == 0 || sample % n == 0)
            places = n2sr_permutation(job.pattern.shared, key, sample / n, cell_y, cell_x, (int)n);
        const int place = n2sr_place(places, sample % n);
        const ptrdiff_t y = n2sr_mirror(cell_y * stride_y + place / stride_x, job.height);
        const ptrdiff_t x = n2sr_mirror(cell_x * stride_x + place % stride_x, job.width);
        const float pixel = (float)job.pixels[y * job.width + x];
        const size_t at =
            place_of(job.draws, m, row, column, job.window.height, job.window.width);
        store(subsampled + at, (pixel - shift) * factor);
    }
}

template <typename Pixel, typename Number, int STRIDE_Y, int STRIDE_X>
static __global__ void draw_all(draw_job<Pixel> job, const n2sr_key *key,
                                const n2sr_statistics *statistics, Number *subsampled)
{
    const ptrdiff_t column = (ptrdiff_t)blockIdx.x * blockDim.x + threadIdx.x;
    const ptrdiff_t row = (ptrdiff_t)blockIdx.y * blockDim.y + threadIdx.y;
    if (row < job.window.height && column < job.window.width)
        draw_cell<Pixel, Number, STRIDE_Y, STRIDE_X>(job, *key, *statistics, row, column,
                                                     subsampled);
}

/* ---- merge ----------------------------------------------------------------------------- */

/* A part of the frame: (height, width) from (top, left) of the outputs, which are
 * (of_height, of_width) each; to mean and std, whose rows are `row` elements apart. */
typedef struct {
    ptrdiff_t top, left, height, width, of_height, of_width, row;
    n2sr_draws draws;
} n2sr_part;

/* Pixel (y, x) of the part. N_SAMPLES: how many, if known when compiled. */
template <typename Number, int N_SAMPLES>
N2SR_BOTH void merge_pixel(const n2sr_part &part, const Number *outputs,
                            const n2sr_statistics &statistics, ptrdiff_t y, ptrdiff_t x,
                            float *mean, float *std)
{
    const int n = N_SAMPLES ? N_SAMPLES : part.draws.n_samples;
    float values[N_SAMPLES ? N_SAMPLES : 1];
    float average = 0, variance = 0;
    for (int m = 0; m < n; ++m) {
        const float value = float_of(outputs[place_of(part.draws, m, part.top + y, part.left + x,
                                                      part.of_height, part.of_width)]);
        if (N_SAMPLES)
            values[N_SAMPLES ? m : 0] = value;
        average += value;
    }
    average *= (float)(1.0 / n);
    for (int m = 0; m < n; ++m) {
        const float value =
            N_SAMPLES ? values[N_SAMPLES ? m : 0]
                      : float_of(outputs[place_of(part.draws, m, part.top + y, part.left + x,
                                                  part.of_height, part.of_width)]);
        const float deviation = value - average;
        variance += deviation * deviation;
    }
    variance *= (float)(1.0 / (n > 1 ? n - 1 : 1));
    mean[y * part.row + x] = (float)((double)average * statistics.std + statistics.mean);
    std[y * part.row + x] = (float)((double)sqrtf(variance) * statistics.std);
}

template <typename Number, int N_SAMPLES>
static __global__ void merge_all(n2sr_part part, const Number *outputs,
                                 const n2sr_statistics *statistics, float *mean, float *std)
{
    const ptrdiff_t x = (ptrdiff_t)blockIdx.x * blockDim.x + threadIdx.x;
    const ptrdiff_t y = (ptrdiff_t)blockIdx.y * blockDim.y + threadIdx.y;
    if (y < part.height && x < part.width)
        merge_pixel<Number, N_SAMPLES>(part, outputs, *statistics, y, x, mean, std);
}

/* mean[i] += the frame's mean - the mean of all mean[i], whose sums partial_sums left. */
static __global__ void shift_mean(float *mean, size_t n, const n2sr_statistics *frame,
                                  const n2sr_statistics *result)
{
    const float shift = (float)(frame->mean - result->mean);
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (size_t)gridDim.x * THREADS)
        mean[i] += shift;
}

/* ---- launchers ------------------------------------------------------------------------- */

static int blocks_of(size_t n)
{
    const size_t blocks = (n + THREADS - 1) / THREADS;
    return (int)(blocks < BLOCKS ? blocks : BLOCKS);
}

static dim3 tiled(ptrdiff_t height, ptrdiff_t width, dim3 block)
{
    return dim3((unsigned)((width + block.x - 1) / block.x),
                (unsigned)((height + block.y - 1) / block.y));
}

static const dim3 BLOCK(32, 8);

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

template <typename Pixel, typename Number>
static int draw_as(const void *pixels, ptrdiff_t height, ptrdiff_t width, n2sr_pattern pattern,
                   n2sr_window window, n2sr_draws draws, const n2sr_key *key,
                   const n2sr_statistics *statistics, void *subsampled, cudaStream_t stream)
{
    const draw_job<Pixel> job = {(const Pixel *)pixels, height, width, pattern, window, draws};
    const dim3 grid = tiled(window.height, window.width, BLOCK);
    if (pattern.stride_y == 2 && pattern.stride_x == 2)
        draw_all<Pixel, Number, 2, 2>
            <<<grid, BLOCK, 0, stream>>>(job, key, statistics, (Number *)subsampled);
    else
        draw_all<Pixel, Number, 0, 0>
            <<<grid, BLOCK, 0, stream>>>(job, key, statistics, (Number *)subsampled);
    return cudaGetLastError();
}

template <typename Pixel>
static int draw_from(const void *pixels, ptrdiff_t height, ptrdiff_t width, n2sr_pattern pattern,
                     n2sr_window window, n2sr_draws draws, const n2sr_key *key,
                     const n2sr_statistics *statistics, void *subsampled, int half,
                     cudaStream_t stream)
{
    return half ? draw_as<Pixel, __half>(pixels, height, width, pattern, window, draws, key,
                                         statistics, subsampled, stream)
                : draw_as<Pixel, float>(pixels, height, width, pattern, window, draws, key,
                                        statistics, subsampled, stream);
}

/* subsampled (n_samples, height, width) of the window <- draws of a frame (height, width), float32
 * or, where `half`, float16. */
N2SR_API int n2sr_cuda_draw(const void *pixels, int dtype, ptrdiff_t height, ptrdiff_t width,
                            n2sr_pattern pattern, n2sr_window window, n2sr_draws draws,
                            const n2sr_key *key, const n2sr_statistics *statistics,
                            void *subsampled, int half, cudaStream_t stream)
{
#define N2SR_DRAW(pixel_t)                                                                        \
    draw_from<pixel_t>(pixels, height, width, pattern, window, draws, key, statistics, subsampled, \
                       half, stream)
    switch (dtype) {
    case N2SR_UINT8: return N2SR_DRAW(uint8_t);
    case N2SR_UINT16: return N2SR_DRAW(uint16_t);
    case N2SR_INT16: return N2SR_DRAW(int16_t);
    case N2SR_FLOAT32: return N2SR_DRAW(float);
    default: return cudaErrorInvalidValue;
    }
#undef N2SR_DRAW
}

template <typename Number>
static int merge_as(const void *outputs, n2sr_part part, const n2sr_statistics *statistics,
                    float *mean, float *std, cudaStream_t stream)
{
    const dim3 grid = tiled(part.height, part.width, BLOCK);
    if (part.draws.n_samples == 4)
        merge_all<Number, 4>
            <<<grid, BLOCK, 0, stream>>>(part, (const Number *)outputs, statistics, mean, std);
    else
        merge_all<Number, 0>
            <<<grid, BLOCK, 0, stream>>>(part, (const Number *)outputs, statistics, mean, std);
    return cudaGetLastError();
}

/* mean, std <- of outputs (n_samples, of_height, of_width), float32 or, where `half`, float16. */
N2SR_API int n2sr_cuda_merge(const void *outputs, int half, n2sr_part part,
                             const n2sr_statistics *statistics, float *mean, float *std,
                             cudaStream_t stream)
{
    return half ? merge_as<__half>(outputs, part, statistics, mean, std, stream)
                : merge_as<float>(outputs, part, statistics, mean, std, stream);
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

/* ---- the runtime ----------------------------------------------------------------------- */

/* Name, compute capability as major * 10 + minor, and bytes of memory. */
N2SR_API int n2sr_cuda_describe(int device, char *name, int size, int *capability, size_t *bytes)
{
    cudaDeviceProp found;
    const int error = cudaGetDeviceProperties(&found, device);
    if (error)
        return error;
    int i = 0;
    for (; i < size - 1 && found.name[i]; ++i)
        name[i] = found.name[i];
    name[i] = 0;
    *capability = found.major * 10 + found.minor;
    *bytes = found.totalGlobalMem;
    return cudaSuccess;
}

N2SR_API const char *n2sr_cuda_error(int error) { return cudaGetErrorString((cudaError_t)error); }

/* Forget the last error that leaves the context usable. */
N2SR_API void n2sr_cuda_forget_error(void) { (void)cudaGetLastError(); }

N2SR_API int n2sr_cuda_malloc(void **memory, size_t bytes) { return cudaMalloc(memory, bytes); }

N2SR_API int n2sr_cuda_free(void *memory) { return cudaFree(memory); }

N2SR_API int n2sr_cuda_host_malloc(void **memory, size_t bytes)
{
    return cudaHostAlloc(memory, bytes, cudaHostAllocDefault);
}

N2SR_API int n2sr_cuda_host_free(void *memory) { return cudaFreeHost(memory); }

N2SR_API int n2sr_cuda_copy(void *to, const void *from, size_t bytes, cudaStream_t stream)
{
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
}

N2SR_API int n2sr_cuda_stream(cudaStream_t *stream)
{
    return cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking);
}

N2SR_API int n2sr_cuda_end_stream(cudaStream_t stream) { return cudaStreamDestroy(stream); }

N2SR_API int n2sr_cuda_wait(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

N2SR_API int n2sr_cuda_begin_capture(cudaStream_t stream)
{
    return cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
}

/* Where the capture was spoilt, *graph is NULL and the error tells why. */
N2SR_API int n2sr_cuda_end_capture(cudaStream_t stream, cudaGraphExec_t *graph)
{
    cudaGraph_t captured = NULL;
    *graph = NULL;
    int error = cudaStreamEndCapture(stream, &captured);
    if (!error)
        error = cudaGraphInstantiate(graph, captured, 0);
    if (captured)
        cudaGraphDestroy(captured);
    return error;
}

N2SR_API int n2sr_cuda_replay(cudaGraphExec_t graph, cudaStream_t stream)
{
    return cudaGraphLaunch(graph, stream);
}

N2SR_API int n2sr_cuda_end_graph(cudaGraphExec_t graph) { return cudaGraphExecDestroy(graph); }
