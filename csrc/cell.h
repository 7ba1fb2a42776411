/* What the C and the CUDA kernels share: which pixel of a cell a draw keeps, and where things lie.
 *
 * n2sr_deploy/reference.py defines it; both equal it bit for bit.
 */
#ifndef N2SR_CELL_H
#define N2SR_CELL_H

#include "philox.h"
#include "subsample.h"

/* Mirror an index beyond the end back into [0, size). */
N2SR_INLINE ptrdiff_t n2sr_mirror(ptrdiff_t index, ptrdiff_t size)
{
    return index < size ? index : 2 * (size - 1) - index;
}

/* Orientations 0 to 3: as it is, half turn, mirrored left-right, mirrored up-down. */
N2SR_INLINE int n2sr_flips_y(uint32_t sample) { return sample % 4 == 1 || sample % 4 == 3; }
N2SR_INLINE int n2sr_flips_x(uint32_t sample) { return sample % 4 == 1 || sample % 4 == 2; }

/* An integer in [0, n) from the high part of bits * n; the low part serves the next choice. */
N2SR_INLINE uint32_t n2sr_take(uint32_t *bits, uint32_t n)
{
    const uint64_t product = n2sr_wide_product(*bits, n);
    *bits = (uint32_t)product;
    return (uint32_t)(product >> 32);
}

/* Cells of 2 x 2 that share a random block, a word each: neighbours in a row. */
#define N2SR_SHARING 4

/* word <- the random block of a number in a row of cells, for a group of draws. */
N2SR_INLINE void n2sr_random_block(n2sr_key key, uint32_t group, uint32_t row, uint32_t block,
                                   uint32_t word[4])
{
    word[0] = row << 16 | block;
    word[1] = group;
    word[2] = (uint32_t)key.frame_index;
    word[3] = (uint32_t)(key.frame_index >> 32);
    n2sr_philox4x32_10(word, (uint32_t)key.seed, (uint32_t)(key.seed >> 32));
}

/* Fisher-Yates over the n places of cell (y, x); word k of the cell's serves choices 4k to 4k + 3.
 * Element k of the permutation stands in bits 4k to 4k + 3. */
N2SR_INLINE uint64_t n2sr_permutation(n2sr_shared shared, n2sr_key key, uint32_t group, ptrdiff_t y,
                                      ptrdiff_t x, int n)
{
    const uint32_t row = shared == N2SR_SHARED_COLUMN ? 0 : (uint32_t)y;
    const uint32_t column = shared == N2SR_SHARED_ROW ? 0 : (uint32_t)x;
    const uint32_t n_words = (uint32_t)(n + 2) / 4, sharing = 4 / n_words;
    uint32_t word[4];
    uint64_t places = 0xFEDCBA9876543210u;
    n2sr_random_block(key, group, row, column / sharing, word);
    for (uint32_t skipped = column % sharing * n_words; skipped > 0; --skipped) {
        word[0] = word[1];
        word[1] = word[2];
        word[2] = word[3];
    }
    for (int k = 0; k < n - 1; ++k) {
        const int other = k + (int)n2sr_take(&word[k / 4], (uint32_t)(n - k));
        const uint64_t change = ((places >> 4 * k) ^ (places >> 4 * other)) & 15u;
        places ^= change << 4 * k;
        places ^= change << 4 * other;
    }
    return places;
}

N2SR_INLINE int n2sr_place(uint64_t places, uint32_t element)
{
    return (int)(places >> 4 * element & 15u);
}

#endif
