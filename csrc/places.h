/* Which pixel is kept of each cell of a chunk: what csrc/cell.h tells of one cell, and for cells of
 * 2 x 2 in code that vectorises.
 */
#ifndef N2SR_PLACES_H
#define N2SR_PLACES_H

#include "cell.h"
#include "chunks.h"
#include "philox_x86.h"

/* places[k][j] <- element k of the permutation of cell (y, x + j), for n places and width cells. */
static void places_any(n2sr_pattern pattern, n2sr_key key, uint32_t group, ptrdiff_t y,
                       ptrdiff_t x, int width, int32_t places[][CHUNK])
{
    const int n = pattern.stride_y * pattern.stride_x;
    uint64_t permutation = 0;
    for (ptrdiff_t j = 0; j < width; ++j) {
        if (j == 0 || pattern.shared != N2SR_SHARED_ROW)
            permutation = n2sr_permutation(pattern.shared, key, group, y, x + j, n);
        for (int k = 0; k < n; ++k)
            places[k][j] = n2sr_place(permutation, (uint32_t)k);
    }
}

/* Random blocks that are made at once. */
#define BLOCKS 8

/* words[4 * j ..] <- random block first + j of a row of cells; room for BLOCKS - 1 more. */
static void random_blocks(n2sr_key key, uint32_t group, uint32_t row, uint32_t first, int n,
                          uint32_t *words)
{
    int step = 1;
#ifdef N2SR_HAVE_PHILOX_X86
    const uint32_t key0 = (uint32_t)key.seed, key1 = (uint32_t)(key.seed >> 32);
    void (*of_8)(const uint32_t *, uint32_t, uint32_t, uint32_t *) =
        __builtin_cpu_supports("avx512f") ? n2sr_philox_8_avx512
        : __builtin_cpu_supports("avx2")  ? n2sr_philox_8_avx2
                                          : NULL;
    step = of_8 ? BLOCKS : 1;
#endif
    for (int j = 0; j < n; j += step) {
#ifdef N2SR_HAVE_PHILOX_X86
        if (of_8) {
            const uint32_t counter[4] = {row << 16 | (first + (uint32_t)j), group,
                                         (uint32_t)key.frame_index,
                                         (uint32_t)(key.frame_index >> 32)};
            of_8(counter, key0, key1, words + 4 * j);
            continue;
        }
#endif
        n2sr_random_block(key, group, row, first + (uint32_t)j, words + 4 * j);
    }
}

/* places_any for 2 x 2 cells with a choice each, which need one word, in straight-line code. */
N2SR_CLONES
static void permutations_2x2(const uint32_t *restrict words, int width,
                             int32_t (*restrict places)[CHUNK])
{
    for (ptrdiff_t j = 0; j < width; ++j) {
        uint32_t bits = words[j];
        const uint32_t a = 2 * n2sr_take(&bits, 4);
        const uint32_t b = 2 + 2 * n2sr_take(&bits, 3);
        const uint32_t c = 4 + 2 * n2sr_take(&bits, 2);
        /* Places as two-bit fields, element 0 lowest; each swap is an exclusive or. */
        uint32_t fields = 0xE4u;
        const uint32_t first = (fields ^ (fields >> a)) & 3u;
        fields ^= first ^ first << a;
        const uint32_t second = ((fields >> 2) ^ (fields >> b)) & 3u;
        fields ^= second << 2 ^ second << b;
        const uint32_t third = ((fields >> 4) ^ (fields >> c)) & 3u;
        fields ^= third << 4 ^ third << c;
        places[0][j] = (int32_t)(fields & 3u);
        places[1][j] = (int32_t)(fields >> 2 & 3u);
        places[2][j] = (int32_t)(fields >> 4 & 3u);
        places[3][j] = (int32_t)(fields >> 6 & 3u);
    }
}

/* The same, in the way that is fastest for these cells. */
static void places_of(n2sr_pattern pattern, n2sr_key key, uint32_t group, ptrdiff_t y, ptrdiff_t x,
                      int width, int32_t places[][CHUNK])
{
    if (pattern.stride_y == 2 && pattern.stride_x == 2) {
        const int before = (int)(x % N2SR_SHARING); /* cells of the first block */
        const int blocks = (before + width + N2SR_SHARING - 1) / N2SR_SHARING;
        uint32_t words[CHUNK + N2SR_SHARING * (1 + BLOCKS)];
        random_blocks(key, group, (uint32_t)y, (uint32_t)(x / N2SR_SHARING), blocks, words);
        permutations_2x2(words + before, width, places);
    } else {
        places_any(pattern, key, group, y, x, width, places);
    }
}

#endif
