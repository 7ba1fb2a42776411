/* A convolution's job, and arithmetic of halves: what csrc/convolve.cu and its tiles share. */
#ifndef N2SR_CONVOLUTION_H
#define N2SR_CONVOLUTION_H

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include "halves.h"

#define TAPS 9

/* One launch. Addresses are device memory, NULL where there is nothing of that kind.
 * Weights are packed as n2sr_deploy/backends/packing.py says. */
typedef struct {
    const __half *input;   /* (n, h, w, n_inputs); with `first`: (n, h, w) of one channel */
    const __half *coarse;  /* (n, h / 2, w / 2, n_inputs), doubled and added to the input */
    const uint2 *first;    /* the first layer's 3 x 3, its nine taps as one step of 16 */
    const float *first_bias; /* (n_inputs,) */
    const uint2 *weights;  /* 3 x 3 */
    const float *bias;     /* (n_outputs,) */
    const uint2 *narrow;   /* 1 x 1 after the activation: its outputs are what is written */
    const float *narrow_bias;
    __half *output;        /* (n, h, w, n_outputs), or (n, h, w, n_narrow) */
    __half *pooled;        /* (n, h / 2, w / 2, n_outputs): the largest of 2 x 2 */
    __half *pixels;        /* (n, h * stride_y, w * stride_x) instead: shuffled, no activation */
    int n, h, w, n_inputs, n_outputs, n_narrow;
    int stride_y, stride_x;
    int adds;              /* to the pixels that are there already */
    float slope;           /* of the activation below zero */
    float share;           /* what `pixels` are multiplied by */
} n2sr_convolution;

/* A pixel in shared memory: its channels, filled up to whole steps of 16, and 8 more, so that the
 * eight rows that are read at a time lie in different banks. */
static __host__ __device__ __forceinline__ int steps_of(int channels) { return (channels + 15) / 16; }
static __host__ __device__ __forceinline__ int pitch_of(int channels)
{
    return 16 * steps_of(channels) + 8;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

/* d += a (16 pixels x 16 channels) * b (16 x 8). */
static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint2 b)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

static __device__ __forceinline__ uint32_t activated(uint32_t values, __half2 slope)
{
    const __half2 pair = *(const __half2 *)&values;
    const __half2 result = __hmax2(pair, __hmul2(pair, slope));
    return *(const uint32_t *)&result;
}

#endif
#endif
