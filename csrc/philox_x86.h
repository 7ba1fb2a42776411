/* Philox4x32-10 for eight consecutive counters on x86-64.
 *
 * Compilers do not find the 32 x 32 -> 64 bit multiplication in a vectorised loop; these
 * intrinsics name it. Each 32-bit word rides in the low half of a 64-bit lane; what piles
 * up in the high halves is ignored by the next multiplication. philox.h is the definition.
 */
#ifndef N2SR_PHILOX_X86_H
#define N2SR_PHILOX_X86_H

#if defined(__x86_64__) && defined(__GNUC__)
#define N2SR_HAVE_PHILOX_X86 1

#include <immintrin.h>

#include "philox.h"

#define N2SR_PHILOX_ROUNDS(REG, MUL, XOR, SHIFT, SET)                  \
    for (int round = 0; round < 10; ++round) {                         \
        const REG product0 = MUL(counter0, SET(N2SR_PHILOX_M0));       \
        const REG product1 = MUL(counter2, SET(N2SR_PHILOX_M1));       \
        counter0 = XOR(XOR(SHIFT(product1, 32), counter1), SET(key0)); \
        counter2 = XOR(XOR(SHIFT(product0, 32), counter3), SET(key1)); \
        counter1 = product1;                                           \
        counter3 = product0;                                           \
        key0 += N2SR_PHILOX_W0;                                        \
        key1 += N2SR_PHILOX_W1;                                        \
    }

/* words[4 * i ..] <- of counter (counter[0] + i, counter[1], counter[2], counter[3]), i < 8. */
__attribute__((target("avx512f"))) static inline void
n2sr_philox_8_avx512(const uint32_t counter[4], uint32_t key0, uint32_t key1, uint32_t *words)
{
    __m512i counter0 = _mm512_add_epi64(_mm512_set1_epi64(counter[0]),
                                        _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    __m512i counter1 = _mm512_set1_epi64(counter[1]), counter2 = _mm512_set1_epi64(counter[2]);
    __m512i counter3 = _mm512_set1_epi64(counter[3]);
    N2SR_PHILOX_ROUNDS(__m512i, _mm512_mul_epu32, _mm512_xor_si512, _mm512_srli_epi64,
                       _mm512_set1_epi64)
    const __m512i low = /* words 0 and 1 of each block, high: 2 and 3 */
        _mm512_mask_blend_epi32(0xAAAA, counter0, _mm512_slli_epi64(counter1, 32));
    const __m512i high = _mm512_mask_blend_epi32(0xAAAA, counter2, _mm512_slli_epi64(counter3, 32));
    _mm512_storeu_si512(
        words, _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), high));
    _mm512_storeu_si512(
        words + 16,
        _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), high));
}

__attribute__((target("avx2"))) static inline void
n2sr_philox_8_avx2(const uint32_t counter[4], uint32_t key0, uint32_t key1, uint32_t *words)
{
    const uint32_t first_key0 = key0, first_key1 = key1;
    for (int half = 0; half < 8; half += 4) {
        __m256i counter0 = _mm256_add_epi64(_mm256_set1_epi64x(counter[0] + (uint32_t)half),
                                            _mm256_setr_epi64x(0, 1, 2, 3));
        __m256i counter1 = _mm256_set1_epi64x(counter[1]), counter2 = _mm256_set1_epi64x(counter[2]);
        __m256i counter3 = _mm256_set1_epi64x(counter[3]);
        key0 = first_key0;
        key1 = first_key1;
        N2SR_PHILOX_ROUNDS(__m256i, _mm256_mul_epu32, _mm256_xor_si256, _mm256_srli_epi64,
                           _mm256_set1_epi64x)
        const __m256i low = /* words 0 and 1 of each block, high: 2 and 3 */
            _mm256_blend_epi32(counter0, _mm256_slli_epi64(counter1, 32), 0xAA);
        const __m256i high = _mm256_blend_epi32(counter2, _mm256_slli_epi64(counter3, 32), 0xAA);
        const __m256i even = _mm256_unpacklo_epi64(low, high); /* blocks 0 and 2 */
        const __m256i odd = _mm256_unpackhi_epi64(low, high);
        __m256i *to = (__m256i *)(words + 4 * half);
        _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
        _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
    }
}

#endif
#endif
