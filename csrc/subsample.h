/* CPU kernels of the random sub-sampler: kept positions, draw, merge.
 *
 * n2sr_deploy/reference.py defines every result; these functions equal it bit for
 * bit, for any shape, thread count and pixel type (build with -ffp-contract=off).
 * They allocate nothing, keep no state and report nothing: the caller
 * (n2sr_deploy/sampling.py, through csrc/_subsample.pyx) has checked everything.
 *
 * Coordinates: a cell is stride_y x stride_x pixels; windows count in cells. Pixels
 * beyond the frame's last row or column are its mirror image (the edge not repeated),
 * so a window may reach past the frame by less than the frame's own size.
 */
#ifndef N2SR_SUBSAMPLE_H
#define N2SR_SUBSAMPLE_H

#include <stddef.h>
#include <stdint.h>

#define N2SR_MAX_STRIDE 4
#define N2SR_MAX_CELL (N2SR_MAX_STRIDE * N2SR_MAX_STRIDE)

typedef enum {
    N2SR_UINT8, N2SR_UINT16, N2SR_INT16, N2SR_UINT32, N2SR_INT32, N2SR_FLOAT32, N2SR_FLOAT64
} n2sr_dtype;

/* Which axis shares one choice of the kept pixel. */
typedef enum { N2SR_SHARED_NONE, N2SR_SHARED_ROW, N2SR_SHARED_COLUMN } n2sr_shared;

typedef struct {
    int stride_y, stride_x; /* 1 to N2SR_MAX_STRIDE, at least one of them above 1 */
    n2sr_shared shared;
} n2sr_pattern;

/* What the draw's random numbers depend on, and nothing else. */
typedef struct {
    uint64_t seed, frame_index;
} n2sr_key;

typedef struct {
    ptrdiff_t top, left, height, width; /* in cells */
} n2sr_window;

typedef struct {
    const void *pixels;
    n2sr_dtype dtype;
    ptrdiff_t height, width, row_bytes; /* columns are contiguous */
    double mean, inverse_scale;         /* standardised pixel = (pixel - mean) * inverse_scale */
} n2sr_frame;

/* kept[height][width] <- the place within its cell, y * stride_x + x, that `sample` keeps. */
void n2sr_kept(n2sr_pattern pattern, n2sr_key key, uint32_t sample, n2sr_window window,
               uint8_t *kept, int n_threads);

/* subsampled[n_samples][height][width] <- draws first_sample, first_sample + 1, ...,
 * standardised, draw m turned into orientation m mod 4. */
void n2sr_draw(n2sr_frame frame, n2sr_pattern pattern, n2sr_key key, uint32_t first_sample,
               int n_samples, n2sr_window window, float *subsampled, int n_threads);

/* outputs[n_samples][height][width], output m in orientation (first_sample + m) mod 4, are
 * turned back; their rows [0, crop_height) and columns [0, crop_width) from (crop_top,
 * crop_left) on give mean and sample standard deviation, times `scale`, mean shifted by `offset`.
 * std may be NULL. */
void n2sr_merge(const float *outputs, int n_samples, uint32_t first_sample, ptrdiff_t height,
                ptrdiff_t width, ptrdiff_t crop_top, ptrdiff_t crop_left, ptrdiff_t crop_height,
                ptrdiff_t crop_width, double offset, double scale, float *mean,
                ptrdiff_t mean_row, float *std, ptrdiff_t std_row, int n_threads);

/* The sum of all pixels and of their squares, exactly; uint8, uint16 and int16, of fewer than 2**31
 * pixels. */
void n2sr_sums(n2sr_frame frame, int64_t *sum, uint64_t *squares, int n_threads);

/* The number of threads OpenMP would use; 0 when built without OpenMP. */
int n2sr_openmp_threads(void);

#endif
