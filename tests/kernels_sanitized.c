/* Runs every kernel over awkward shapes in exactly sized allocations, for the sanitizers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "subsample.h"

static const ptrdiff_t BYTES[] = {1, 2, 2, 4, 4, 4, 8};

static void *allocated(size_t bytes)
{
    void *memory = malloc(bytes);
    if (!memory)
        exit(2);
    memset(memory, 1, bytes);
    return memory;
}

static int run(n2sr_pattern pattern, n2sr_dtype dtype, ptrdiff_t height, ptrdiff_t width)
{
    const ptrdiff_t rows = (height + pattern.stride_y - 1) / pattern.stride_y;
    const ptrdiff_t columns = (width + pattern.stride_x - 1) / pattern.stride_x;
    /* All of it; one cell; and as far past the frame as it can be mirrored. */
    const n2sr_window windows[] = {
        {0, 0, rows, columns},
        {rows / 2, columns / 2, 1, 1},
        {1, 1, (2 * height - 1) / pattern.stride_y - 1, (2 * width - 1) / pattern.stride_x - 1},
    };
    const n2sr_key key = {~0ull, 1ull << 40};
    void *pixels = allocated((size_t)(height * width * BYTES[dtype]));
    const n2sr_frame frame = {pixels, dtype, height, width, width * BYTES[dtype], 1.0, 2.0};
    int runs = 0;
    int64_t sum;
    uint64_t squares;
    if (dtype <= N2SR_INT16)
        n2sr_sums(frame, &sum, &squares, 2);
    for (int w = 0; w < 3; ++w)
        for (int n_samples = 1; n_samples <= 6; n_samples += 5) {
            const size_t cells = (size_t)(windows[w].height * windows[w].width);
            float *drawn = allocated(cells * (size_t)n_samples * sizeof(float));
            uint8_t *kept = allocated(cells);
            float *mean = allocated(cells * sizeof(float)), *std = allocated(cells * sizeof(float));
            n2sr_draw(frame, pattern, key, 2, n_samples, windows[w], drawn, 2);
            n2sr_kept(pattern, key, 7, windows[w], kept, 2);
            n2sr_merge(drawn, n_samples, 2, windows[w].height, windows[w].width, 0, 0,
                       windows[w].height, windows[w].width, 1.0, 2.0, mean, windows[w].width,
                       w ? std : NULL, windows[w].width, 2);
            /* A part, into rows that run backwards. */
            if (windows[w].height > 2 && windows[w].width > 2) {
                const ptrdiff_t h = windows[w].height - 2, wide = windows[w].width - 1;
                float *part = allocated((size_t)(h * wide) * sizeof(float));
                n2sr_merge(drawn, n_samples, 0, windows[w].height, windows[w].width, 1, 1, h, wide,
                           0.0, 1.0, part + (h - 1) * wide, -wide, part + (h - 1) * wide, -wide, 2);
                free(part);
            }
            free(drawn), free(kept), free(mean), free(std);
            ++runs;
        }
    free(pixels);
    return runs;
}

int main(void)
{
    const n2sr_pattern patterns[] = {
        {2, 2, N2SR_SHARED_NONE}, {2, 1, N2SR_SHARED_ROW}, {1, 2, N2SR_SHARED_COLUMN},
        {3, 3, N2SR_SHARED_NONE}, {4, 4, N2SR_SHARED_NONE}, {1, 4, N2SR_SHARED_NONE},
        {4, 3, N2SR_SHARED_NONE},
    };
    const ptrdiff_t sizes[][2] = {{4, 4}, {5, 7}, {9, 511}, {8, 512}, {7, 513}, {5, 1030}, {6, 4101}};
    int runs = 0;
    for (size_t p = 0; p < sizeof patterns / sizeof *patterns; ++p)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; ++s)
            for (int dtype = N2SR_UINT8; dtype <= N2SR_FLOAT64; ++dtype)
                runs += run(patterns[p], (n2sr_dtype)dtype, sizes[s][0], sizes[s][1]);
    /* Large enough for streaming stores. */
    runs += run(patterns[0], N2SR_UINT16, 2051, 2053);
    printf("clean: %d runs\n", runs);
    return 0;
}
