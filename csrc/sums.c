#include "subsample.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#define ROW_BLOCK 4096 /* pixels whose 32-bit partial sums cannot overflow */

/* Of a block of pixels; loops that a compiler makes vectors of. */
#define SUM_BLOCK(name, pixel_t)                                                                  \
    static void name(const pixel_t *pixels, ptrdiff_t n, int64_t *sum, uint64_t *squares)         \
    {                                                                                             \
        int32_t values = 0;                                                                       \
        uint64_t products = 0;                                                                    \
        for (ptrdiff_t i = 0; i < n; ++i) {                                                       \
            const int32_t value = pixels[i];                                                      \
            values += value;                                                                      \
            products += (uint32_t)value * (uint32_t)value;                                        \
        }                                                                                         \
        *sum += values;                                                                           \
        *squares += products;                                                                     \
    }
SUM_BLOCK(sum_uint8, uint8_t)
SUM_BLOCK(sum_uint16, uint16_t)
SUM_BLOCK(sum_int16, int16_t)

void n2sr_sums(n2sr_frame frame, int64_t *sum, uint64_t *squares, int n_threads)
{
    int64_t values = 0;
    uint64_t products = 0;
    ptrdiff_t y; /* not in the loop: MSVC's OpenMP takes no declarations there */
#ifdef _OPENMP
    const int team = n_threads > 0 ? n_threads : omp_get_max_threads();
#pragma omp parallel for num_threads(team) schedule(static) reduction(+ : values, products)
#else
    (void)n_threads;
#endif
    for (y = 0; y < frame.height; ++y) {
        const char *row = (const char *)frame.pixels + y * frame.row_bytes;
        for (ptrdiff_t x = 0; x < frame.width; x += ROW_BLOCK) {
            const ptrdiff_t n = frame.width - x < ROW_BLOCK ? frame.width - x : ROW_BLOCK;
            if (frame.dtype == N2SR_UINT8)
                sum_uint8((const uint8_t *)row + x, n, &values, &products);
            else if (frame.dtype == N2SR_UINT16)
                sum_uint16((const uint16_t *)row + x, n, &values, &products);
            else
                sum_int16((const int16_t *)row + x, n, &values, &products);
        }
    }
    *sum = values;
    *squares = products;
}
