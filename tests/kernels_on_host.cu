/* What each thread of the CUDA kernels does, done by loops on the CPU: for machines without a GPU. */
#include "draw.cu"
#include "merge.cu"
#include "pool.cu"
#include "statistics.cu"

template <typename Pixel, typename Number>
static void draw_on_host(const void *pixels, ptrdiff_t height, ptrdiff_t width, ptrdiff_t pitch,
                         n2sr_pattern pattern, n2sr_window window, n2sr_draws draws, const n2sr_key *key,
                         const n2sr_statistics *statistics, void *subsampled)
{
    const draw_job<Pixel> job = {(const Pixel *)pixels, height, width, pitch,
                                 pattern, window, draws};
    const bool in_vectors = draws_vectors<Number>(pattern, window, draws, subsampled);
    const bool is_2x2 = pattern.stride_y == 2 && pattern.stride_x == 2;
    Number *out = (Number *)subsampled;
    for (ptrdiff_t row = 0; row < window.height; ++row)
        for (ptrdiff_t column = 0; column < window.width; column += in_vectors ? WIDTH : 1)
            if (in_vectors)
                draw_vector(job, *key, *statistics, all_orders(), row, column, out);
            else if (is_2x2)
                draw_cell<Pixel, Number, 2, 2>(job, *key, *statistics, row, column, out);
            else
                draw_cell<Pixel, Number, 0, 0>(job, *key, *statistics, row, column, out);
}

N2SR_API int host_draw(const void *pixels, int dtype, ptrdiff_t height, ptrdiff_t width,
                       ptrdiff_t pitch, n2sr_pattern pattern, n2sr_window window, n2sr_draws draws,
                       const n2sr_key *key, const n2sr_statistics *statistics, void *subsampled,
                       int half)
{
#define HOST_DRAW_FROM(pixel_t)                                                                    \
    (half ? draw_on_host<pixel_t, __half> : draw_on_host<pixel_t, float>)(                         \
        pixels, height, width, pitch, pattern, window, draws, key, statistics, subsampled);        \
    return 0
    switch (dtype) {
    case N2SR_UINT8: HOST_DRAW_FROM(uint8_t);
    case N2SR_UINT16: HOST_DRAW_FROM(uint16_t);
    case N2SR_INT16: HOST_DRAW_FROM(int16_t);
    case N2SR_FLOAT32: HOST_DRAW_FROM(float);
    default: return 1;
    }
}

template <typename Number, int N_SAMPLES>
static void merge_on_host(n2sr_part part, const void *outputs, const n2sr_statistics *statistics,
                          float *mean, float *std)
{
    const Number *from = (const Number *)outputs;
    const bool in_vectors = merges_vectors<Number>(part, outputs);
    for (ptrdiff_t y = 0; y < part.height; ++y)
        for (ptrdiff_t x = 0; x < part.width; x += in_vectors ? WIDTH : 1)
            if (in_vectors)
                merge_within<N_SAMPLES, WIDTH>(part, from, *statistics, y, x, mean, std);
            else
                merge_within<N_SAMPLES, 1>(part, from, *statistics, y, x, mean, std);
}

N2SR_API int host_merge(const void *outputs, int half, n2sr_part part,
                        const n2sr_statistics *statistics, float *mean, float *std)
{
    const bool is_4 = part.draws.n_samples == 4;
    if (half)
        (is_4 ? merge_on_host<__half, 4> : merge_on_host<__half, 0>)(part, outputs, statistics,
                                                                     mean, std);
    else
        (is_4 ? merge_on_host<float, 4> : merge_on_host<float, 0>)(part, outputs, statistics, mean,
                                                                   std);
    return 0;
}

template <typename Pixel>
static int statistics_on_host(const void *pixels, size_t n, n2sr_statistics *result)
{
    const Pixel *from = (const Pixel *)pixels;
    const size_t threads = (size_t)blocks_of(n) * THREADS;
    double sum = 0, squares = 0;
    for (size_t thread = 0; thread < threads; ++thread) {
        const moments<Pixel> found = moments_of(from, n, thread, threads);
        sum += (double)found.sum;
        squares += (double)found.squares;
    }
    *result = statistics_of_sums(sum, squares, (double)from[0], n);
    return 0;
}

N2SR_API int host_statistics(const void *pixels, int dtype, size_t n, n2sr_statistics *result)
{
    switch (dtype) {
    case N2SR_UINT8: return statistics_on_host<uint8_t>(pixels, n, result);
    case N2SR_UINT16: return statistics_on_host<uint16_t>(pixels, n, result);
    case N2SR_INT16: return statistics_on_host<int16_t>(pixels, n, result);
    case N2SR_FLOAT32: return statistics_on_host<float>(pixels, n, result);
    default: return 1;
    }
}

N2SR_API int host_pool(n2sr_pooled pooled)
{
    for (ptrdiff_t y = 0; y < pooled.height; ++y)
        for (ptrdiff_t x = 0; x < pooled.width; ++x)
            pool_pixel(pooled, y, x);
    return 0;
}
