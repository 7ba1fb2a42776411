/* Philox4x32-10: a counter-based random number generator.
 *
 * Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011, doi 10.1145/2063384.2063405. A pure function of (counter, key):
 * nothing is stored, so any thread can compute any number, in any order.
 * One definition for C and CUDA.
 */
#ifndef N2SR_PHILOX_H
#define N2SR_PHILOX_H

#include <stdint.h>

#if defined(__CUDACC__)
#define N2SR_INLINE static __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define N2SR_INLINE static inline __attribute__((always_inline))
#else
#define N2SR_INLINE static __forceinline
#endif

#define N2SR_PHILOX_M0 0xD2511F53u
#define N2SR_PHILOX_M1 0xCD9E8D57u
#define N2SR_PHILOX_W0 0x9E3779B9u
#define N2SR_PHILOX_W1 0xBB67AE85u

N2SR_INLINE uint64_t n2sr_wide_product(uint32_t a, uint32_t b)
{
#ifdef __CUDA_ARCH__ /* one instruction, where nvcc would make it one of 64-bit numbers */
    uint64_t product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
    return product;
#else
    return (uint64_t)a * b;
#endif
}

/* counter: four words, replaced by the four random words; key: low and high word. */
N2SR_INLINE void n2sr_philox4x32_10(uint32_t counter[4], uint32_t key0, uint32_t key1)
{
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = n2sr_wide_product(N2SR_PHILOX_M0, counter[0]);
        const uint64_t product1 = n2sr_wide_product(N2SR_PHILOX_M1, counter[2]);
        const uint32_t word0 = (uint32_t)(product1 >> 32) ^ counter[1] ^ key0;
        const uint32_t word2 = (uint32_t)(product0 >> 32) ^ counter[3] ^ key1;
        counter[1] = (uint32_t)product1;
        counter[3] = (uint32_t)product0;
        counter[0] = word0;
        counter[2] = word2;
        key0 += N2SR_PHILOX_W0;
        key1 += N2SR_PHILOX_W1;
    }
}

#endif
