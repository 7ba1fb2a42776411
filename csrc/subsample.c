#include "subsample.h"

#include <math.h>

#include "chunks.h"
#include "places.h"

int n2sr_openmp_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 0;
#endif
}

/* ---- which pixel of each cell is kept ------------------------------------------------- */

void n2sr_kept(n2sr_pattern pattern, n2sr_key key, uint32_t sample, n2sr_window window,
               uint8_t *kept, int n_threads)
{
    const uint32_t n = (uint32_t)(pattern.stride_y * pattern.stride_x);
    const int team = threads(n_threads);
    ptrdiff_t row;
    (void)team;
#pragma omp parallel for num_threads(team) schedule(static)
    for (row = 0; row < window.height; ++row) {
        int32_t places[N2SR_MAX_CELL][CHUNK];
        for (ptrdiff_t x = 0; x < window.width; x += CHUNK) {
            const int width = (int)min_size(CHUNK, window.width - x);
            places_of(pattern, key, sample / n, window.top + row, window.left + x, width, places);
            for (ptrdiff_t j = 0; j < width; ++j)
                kept[row * window.width + x + j] = (uint8_t)places[sample % n][j];
        }
    }
}

/* ---- draw ----------------------------------------------------------------------------- */

/* float32 arithmetic where float32 holds every pixel value exactly, float64 elsewhere. */
#define STANDARDISE(name, pixel_t, work_t)                                                     \
    N2SR_CLONES                                                                                \
    static void standardise_##name(const void *restrict pixels, ptrdiff_t width, double mean, \
                                   double inverse_scale, float *restrict out)                 \
    {                                                                                          \
        const pixel_t *restrict from = (const pixel_t *)pixels;                                \
        const work_t offset = (work_t)mean, factor = (work_t)inverse_scale;                    \
        for (ptrdiff_t j = 0; j < width; ++j)                                                  \
            out[j] = (float)(((work_t)from[j] - offset) * factor);                             \
    }

STANDARDISE(uint8, uint8_t, float)
STANDARDISE(uint16, uint16_t, float)
STANDARDISE(int16, int16_t, float)
STANDARDISE(uint32, uint32_t, double)
STANDARDISE(int32, int32_t, double)
STANDARDISE(float32, float, float)
STANDARDISE(float64, double, double)

typedef void (*standardise_fn)(const void *, ptrdiff_t, double, double, float *);
static const struct {
    standardise_fn standardise;
    ptrdiff_t bytes;
} PIXEL[] = {
    [N2SR_UINT8] = {standardise_uint8, 1},     [N2SR_UINT16] = {standardise_uint16, 2},
    [N2SR_INT16] = {standardise_int16, 2},     [N2SR_UINT32] = {standardise_uint32, 4},
    [N2SR_INT32] = {standardise_int32, 4},     [N2SR_FLOAT32] = {standardise_float32, 4},
    [N2SR_FLOAT64] = {standardise_float64, 8},
};

/* out[j] <- standardised pixel (y, x + j); y and x may lie beyond the frame. */
static void load(const n2sr_frame *frame, ptrdiff_t y, ptrdiff_t x, ptrdiff_t width, float *out)
{
    const char *row =
        (const char *)frame->pixels + n2sr_mirror(y, frame->height) * frame->row_bytes;
    const ptrdiff_t bytes = PIXEL[frame->dtype].bytes;
    const standardise_fn standardise = PIXEL[frame->dtype].standardise;
    const ptrdiff_t inside = x < frame->width ? min_size(width, frame->width - x) : 0;
    if (inside > 0)
        standardise(row + x * bytes, inside, frame->mean, frame->inverse_scale, out);
    for (ptrdiff_t j = inside; j < width; ++j)
        standardise(row + n2sr_mirror(x + j, frame->width) * bytes, 1, frame->mean,
                    frame->inverse_scale, out + j);
}

/* Pixels of a row, cell by cell, to one plane for each place in the cell. */
N2SR_CLONES
static void split_pairs(const float *restrict row, ptrdiff_t width, float *restrict even,
                        float *restrict odd)
{
    for (ptrdiff_t j = 0; j < width; ++j) {
        even[j] = row[2 * j];
        odd[j] = row[2 * j + 1];
    }
}

static void split(const float *row, int stride_x, int width, float planes[][CHUNK])
{
    if (stride_x == 2)
        split_pairs(row, width, planes[0], planes[1]);
    else
        for (int i = 0; i < stride_x; ++i)
            for (ptrdiff_t j = 0; j < width; ++j)
                planes[i][j] = row[stride_x * j + i];
}

/* out[j] <- planes[place[j]][j], by blends instead of look-ups, so that it vectorises. */
N2SR_CLONES
static void choose(const float *restrict first, const float *restrict other, int other_place,
                   const int32_t *restrict place, int width, float *restrict out)
{
    for (ptrdiff_t j = 0; j < width; ++j)
        out[j] = place[j] == other_place ? other[j] : first[j];
}

N2SR_CLONES
static void choose_of_4(const float *restrict p0, const float *restrict p1,
                        const float *restrict p2, const float *restrict p3,
                        const int32_t *restrict place, int width, float *restrict out)
{
    for (ptrdiff_t j = 0; j < width; ++j) {
        const float low = place[j] == 1 ? p1[j] : p0[j];
        const float high = place[j] == 3 ? p3[j] : p2[j];
        out[j] = place[j] >= 2 ? high : low;
    }
}

static void pick(float planes[][CHUNK], int n, const int32_t *place, int width, float *out)
{
    if (n == 4) {
        choose_of_4(planes[0], planes[1], planes[2], planes[3], place, width, out);
        return;
    }
    float swap[CHUNK];
    const float *chosen = planes[0];
    for (int k = 1; k < n; ++k) { /* to and fro between the two, ending in out */
        float *next = (n - k) % 2 ? out : swap;
        choose(chosen, planes[k], k, place, width, next);
        chosen = next;
    }
}

N2SR_CLONES
static void reverse(const float *restrict from, ptrdiff_t width, float *restrict to)
{
    for (ptrdiff_t j = 0; j < width; ++j)
        to[j] = from[width - 1 - j];
}

/* All draws of cells (row, x .. x + width) of the window. */
static void draw_chunk(const n2sr_frame *frame, n2sr_pattern pattern, n2sr_key key,
                       uint32_t first_sample, int n_samples, n2sr_window window, ptrdiff_t row,
                       ptrdiff_t x, int width, float *subsampled, int streaming)
{
    const int n = pattern.stride_y * pattern.stride_x;
    const ptrdiff_t cell_y = window.top + row, cell_x = window.left + x;
    float pixels[N2SR_MAX_STRIDE * CHUNK], planes[N2SR_MAX_CELL][CHUNK];
    float picked[CHUNK], reversed[CHUNK];
    int32_t places[N2SR_MAX_CELL][CHUNK];
    for (int k = 0; k < pattern.stride_y; ++k) {
        load(frame, cell_y * pattern.stride_y + k, cell_x * pattern.stride_x,
             (ptrdiff_t)width * pattern.stride_x, pixels);
        split(pixels, pattern.stride_x, width, planes + k * pattern.stride_x);
    }
    for (int m = 0; m < n_samples; ++m) {
        const uint32_t sample = first_sample + (uint32_t)m;
        if (m == 0 || sample % (uint32_t)n == 0)
            places_of(pattern, key, sample / (uint32_t)n, cell_y, cell_x, width, places);
        pick(planes, n, places[sample % (uint32_t)n], width, picked);
        const ptrdiff_t out_row = n2sr_flips_y(sample) ? window.height - 1 - row : row;
        const ptrdiff_t out_x = n2sr_flips_x(sample) ? window.width - x - width : x;
        if (n2sr_flips_x(sample))
            reverse(picked, width, reversed);
        put(n2sr_flips_x(sample) ? reversed : picked, width,
            subsampled + ((ptrdiff_t)m * window.height + out_row) * window.width + out_x, streaming);
    }
}

void n2sr_draw(n2sr_frame frame, n2sr_pattern pattern, n2sr_key key, uint32_t first_sample,
               int n_samples, n2sr_window window, float *subsampled, int n_threads)
{
    const int team = threads(n_threads);
    const ptrdiff_t cells = window.height * window.width;
    const int streaming = cells * n_samples * (ptrdiff_t)sizeof(float) > STREAMING_BYTES;
    ptrdiff_t row;
    (void)team;
#pragma omp parallel num_threads(team)
    {
#pragma omp for schedule(static)
        for (row = 0; row < window.height; ++row)
            for (ptrdiff_t x = 0; x < window.width; x += CHUNK)
                draw_chunk(&frame, pattern, key, first_sample, n_samples, window, row, x,
                           (int)min_size(CHUNK, window.width - x), subsampled, streaming);
        streaming_fence();
    }
}

/* ---- merge ---------------------------------------------------------------------------- */

N2SR_CLONES
static void add(const float *restrict from, int width, int reversed, float *restrict sum)
{
    if (reversed)
        for (ptrdiff_t j = 0; j < width; ++j)
            sum[j] += from[width - 1 - j];
    else
        for (ptrdiff_t j = 0; j < width; ++j)
            sum[j] += from[j];
}

N2SR_CLONES
static void add_squares(const float *restrict from, int width, int reversed,
                        const float *restrict mean, float *restrict sum)
{
    for (ptrdiff_t j = 0; j < width; ++j) {
        const float deviation = (reversed ? from[width - 1 - j] : from[j]) - mean[j];
        sum[j] += deviation * deviation;
    }
}

N2SR_CLONES
static void multiply(float *restrict values, int width, float factor)
{
    for (ptrdiff_t j = 0; j < width; ++j)
        values[j] *= factor;
}

N2SR_CLONES
static void to_counts(float *restrict values, int width, double offset, double scale)
{
    for (ptrdiff_t j = 0; j < width; ++j)
        values[j] = (float)((double)values[j] * scale + offset);
}

N2SR_CLONES
static void root_to_counts(float *restrict variance, int width, double scale)
{
    for (ptrdiff_t j = 0; j < width; ++j)
        variance[j] = (float)((double)sqrtf(variance[j]) * scale);
}

static void merge_chunk(const float *outputs, int n_samples, uint32_t first_sample,
                        ptrdiff_t height, ptrdiff_t width, ptrdiff_t y, ptrdiff_t x, int count,
                        double offset, double scale, float *mean, float *std, int streaming)
{
    float average[CHUNK], variance[CHUNK];
    for (ptrdiff_t j = 0; j < count; ++j)
        average[j] = variance[j] = 0.0f;
    for (int pass = 0; pass < (std ? 2 : 1); ++pass) {
        for (int m = 0; m < n_samples; ++m) {
            const uint32_t sample = first_sample + (uint32_t)m;
            const ptrdiff_t row = n2sr_flips_y(sample) ? height - 1 - y : y;
            const int reversed = n2sr_flips_x(sample);
            const ptrdiff_t column = reversed ? width - x - count : x;
            const float *from = outputs + ((ptrdiff_t)m * height + row) * width + column;
            if (pass == 0)
                add(from, count, reversed, average);
            else
                add_squares(from, count, reversed, average, variance);
        }
        if (pass == 0)
            multiply(average, count, (float)(1.0 / n_samples));
        else
            multiply(variance, count, (float)(1.0 / (n_samples > 1 ? n_samples - 1 : 1)));
    }
    to_counts(average, count, offset, scale);
    put(average, count, mean, streaming);
    if (std) {
        root_to_counts(variance, count, scale);
        put(variance, count, std, streaming);
    }
}

void n2sr_merge(const float *outputs, int n_samples, uint32_t first_sample, ptrdiff_t height,
                ptrdiff_t width, ptrdiff_t crop_top, ptrdiff_t crop_left, ptrdiff_t crop_height,
                ptrdiff_t crop_width, double offset, double scale, float *mean,
                ptrdiff_t mean_row, float *std, ptrdiff_t std_row, int n_threads)
{
    const int team = threads(n_threads);
    const int streaming = crop_height * crop_width * (ptrdiff_t)sizeof(float) > STREAMING_BYTES;
    ptrdiff_t row;
    (void)team;
#pragma omp parallel num_threads(team)
    {
#pragma omp for schedule(static)
        for (row = 0; row < crop_height; ++row)
            for (ptrdiff_t x = 0; x < crop_width; x += CHUNK)
                merge_chunk(outputs, n_samples, first_sample, height, width, crop_top + row,
                            crop_left + x, (int)min_size(CHUNK, crop_width - x), offset,
                            scale, mean + row * mean_row + x, std ? std + row * std_row + x : NULL,
                            streaming);
        streaming_fence();
    }
}
