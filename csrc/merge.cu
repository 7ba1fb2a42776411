/* Draws' outputs merged on an NVIDIA GPU: mean and standard deviation of each pixel. See draws.h. */
#include "draws.h"

/* A part of the frame: (height, width) from (top, left) of the outputs, which are
 * (of_height, of_width) each; to mean and std, whose rows are `pitch` elements apart. */
typedef struct {
    ptrdiff_t top, left, height, width, of_height, of_width, pitch;
    n2sr_draws draws;
} n2sr_part;

N2SR_BOTH float float_of(float value) { return value; }
N2SR_BOTH float float_of(__half value) { return __half2float(value); }

/* values <- pixels (y, x .. x + N) of output m; N is 1, or WIDTH where outputs lie in vectors. */
template <typename Number, int N>
N2SR_BOTH void load_outputs(const n2sr_part &part, const Number *outputs, int m, ptrdiff_t y,
                            ptrdiff_t x, float (&values)[N])
{
    if (N == 1) {
        values[0] = float_of(outputs[place_of(part.draws, m, part.top + y, part.left + x,
                                              part.of_height, part.of_width)]);
        return;
    }
    const Number *from = outputs + place_of_vector(m, part.top + y, part.left + x, part.of_height,
                                                   part.of_width);
    const vector<Number, N> loaded = *(const vector<Number, N> *)from;
    for (int j = 0; j < N; ++j)
        values[j] = float_of(loaded.element[n2sr_flips_x((uint32_t)m) ? N - 1 - j : j]);
}

template <int N> N2SR_BOTH void store_results(float *to, const float (&values)[N])
{
    if (N > 1 && is_aligned<vector<float, N>>(to)) {
        vector<float, N> stored;
        for (int j = 0; j < N; ++j)
            stored.element[j] = values[j];
        *(vector<float, N> *)to = stored;
    } else
        for (int j = 0; j < N; ++j)
            to[j] = values[j];
}

/* Pixels (y, x .. x + N) of the part. N_SAMPLES: how many, if known when compiled. */
template <int N_SAMPLES, int N, typename Number>
N2SR_BOTH void merge_pixels(const n2sr_part &part, const Number *outputs,
                            const n2sr_statistics &statistics, ptrdiff_t y, ptrdiff_t x,
                            float *mean, float *std)
{
    const int n = N_SAMPLES ? N_SAMPLES : part.draws.n_samples;
    float values[N_SAMPLES ? N_SAMPLES : 1][N]; /* where there are too many, loaded twice */
    float average[N] = {}, deviation[N] = {};
    for (int m = 0; m < n; ++m) {
        float(&value)[N] = values[N_SAMPLES ? m : 0];
        load_outputs(part, outputs, m, y, x, value);
        for (int j = 0; j < N; ++j)
            average[j] += value[j];
    }
    for (int j = 0; j < N; ++j)
        average[j] *= (float)(1.0 / n);
    for (int m = 0; m < n; ++m) {
        float(&value)[N] = values[N_SAMPLES ? m : 0];
        if (!N_SAMPLES)
            load_outputs(part, outputs, m, y, x, value);
        for (int j = 0; j < N; ++j)
            deviation[j] += (value[j] - average[j]) * (value[j] - average[j]);
    }
    for (int j = 0; j < N; ++j) {
        const float variance = deviation[j] * (float)(1.0 / (n > 1 ? n - 1 : 1));
        deviation[j] = (float)((double)sqrtf(variance) * statistics.std);
        average[j] = (float)((double)average[j] * statistics.std + statistics.mean);
    }
    store_results(mean + y * part.pitch + x, average);
    store_results(std + y * part.pitch + x, deviation);
}

/* Pixels (y, x .. x + N), as far as the part goes. */
template <int N_SAMPLES, int N, typename Number>
N2SR_BOTH void merge_within(const n2sr_part &part, const Number *outputs,
                            const n2sr_statistics &statistics, ptrdiff_t y, ptrdiff_t x,
                            float *mean, float *std)
{
    if (x + N <= part.width)
        merge_pixels<N_SAMPLES, N>(part, outputs, statistics, y, x, mean, std);
    else
        for (; x < part.width; ++x)
            merge_pixels<N_SAMPLES, 1>(part, outputs, statistics, y, x, mean, std);
}

/* Whether merge_within may take N = WIDTH. */
template <typename Number> static bool merges_vectors(const n2sr_part &part, const void *outputs)
{
    return lies_in_vectors<Number>(part.draws, outputs, part.left, part.of_width);
}

template <typename Number, int N_SAMPLES, int N>
static __global__ void merge_all(n2sr_part part, const Number *outputs,
                                 const n2sr_statistics *statistics, float *mean, float *std)
{
    const ptrdiff_t x = ((ptrdiff_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    const ptrdiff_t y = (ptrdiff_t)blockIdx.y * blockDim.y + threadIdx.y;
    if (y < part.height && x < part.width)
        merge_within<N_SAMPLES, N>(part, outputs, *statistics, y, x, mean, std);
}

template <typename Number, int N_SAMPLES>
static int merge_as(const void *outputs, n2sr_part part, const n2sr_statistics *statistics,
                    float *mean, float *std, cudaStream_t stream)
{
    if (merges_vectors<Number>(part, outputs))
        merge_all<Number, N_SAMPLES, WIDTH>
            <<<tiled_vectors(part.height, part.width), VECTORS_BLOCK, 0, stream>>>(
                part, (const Number *)outputs, statistics, mean, std);
    else
        merge_all<Number, N_SAMPLES, 1>
            <<<tiled(part.height, part.width, BLOCK), BLOCK, 0, stream>>>(
                part, (const Number *)outputs, statistics, mean, std);
    return cudaGetLastError();
}

template <typename Number>
static int merge_from(const void *outputs, n2sr_part part, const n2sr_statistics *statistics,
                      float *mean, float *std, cudaStream_t stream)
{
    return part.draws.n_samples == 4
               ? merge_as<Number, 4>(outputs, part, statistics, mean, std, stream)
               : merge_as<Number, 0>(outputs, part, statistics, mean, std, stream);
}

/* Whether a merge takes the kernel for aligned rows; for tests and benchmarks. */
N2SR_API int n2sr_cuda_merges_vectors(const void *outputs, int half, n2sr_part part)
{
    return half ? merges_vectors<__half>(part, outputs) : merges_vectors<float>(part, outputs);
}

/* mean, std <- of outputs (n_samples, of_height, of_width), float32 or, where `half`, float16. */
N2SR_API int n2sr_cuda_merge(const void *outputs, int half, n2sr_part part,
                             const n2sr_statistics *statistics, float *mean, float *std,
                             cudaStream_t stream)
{
    return half ? merge_from<__half>(outputs, part, statistics, mean, std, stream)
                : merge_from<float>(outputs, part, statistics, mean, std, stream);
}
