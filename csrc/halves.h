/* Two numbers of half precision in a word. */
#ifndef N2SR_HALVES_H
#define N2SR_HALVES_H

#include <cuda_fp16.h>
#include <stdint.h>
#include <string.h>

static __host__ __device__ __forceinline__ uint32_t packed(float low, float high)
{
    const __half2 halves = __floats2half2_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &halves, sizeof bits);
    return bits;
}

#endif
