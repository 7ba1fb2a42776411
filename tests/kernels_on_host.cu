/* What each thread of the CUDA kernels does, done by loops on the CPU: for machines without a GPU. */
#include "subsample.cu"

template <typename Pixel, typename Number, int STRIDE>
static void draw_on_host(const void *pixels, ptrdiff_t height, ptrdiff_t width, n2sr_pattern pattern,
                         n2sr_window window, n2sr_draws draws, const n2sr_key *key,
                         const n2sr_statistics *statistics, void *subsampled)
{
    const draw_job<Pixel> job = {(const Pixel *)pixels, height, width, pattern, window, draws};
    for (ptrdiff_t row = 0; row < window.height; ++row)
        for (ptrdiff_t column = 0; column < window.width; ++column)
            draw_cell<Pixel, Number, STRIDE, STRIDE>(job, *key, *statistics, row, column,
                                                     (Number *)subsampled);
}

N2SR_API int host_draw(const void *pixels, int dtype, ptrdiff_t height, ptrdiff_t width,
                       n2sr_pattern pattern, n2sr_window window, n2sr_draws draws,
                       const n2sr_key *key, const n2sr_statistics *statistics, void *subsampled,
                       int half)
{
    const bool is_2x2 = pattern.stride_y == 2 && pattern.stride_x == 2;
#define HOST_DRAW(pixel_t, number_t)                                                              \
    (is_2x2 ? draw_on_host<pixel_t, number_t, 2> : draw_on_host<pixel_t, number_t, 0>)(            \
        pixels, height, width, pattern, window, draws, key, statistics, subsampled)
#define HOST_DRAW_FROM(pixel_t)                                                                    \
    if (half)                                                                                      \
        HOST_DRAW(pixel_t, __half);                                                                \
    else                                                                                           \
        HOST_DRAW(pixel_t, float);                                                                 \
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
    for (ptrdiff_t y = 0; y < part.height; ++y)
        for (ptrdiff_t x = 0; x < part.width; ++x)
            merge_pixel<Number, N_SAMPLES>(part, (const Number *)outputs, *statistics, y, x, mean,
                                           std);
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
