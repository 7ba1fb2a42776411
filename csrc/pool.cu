/* One result of two on an NVIDIA GPU: mean and spread of some draws, and of others. */
#include "export.h"
#include "frames.h"

/* Two results (height, width) whose rows lie `pitch` elements apart, and what they count. */
typedef struct {
    float *mean, *std;
    const float *mean_of_others, *std_of_others;
    ptrdiff_t height, width, pitch;
    double own, theirs, between, share;
} n2sr_pooled;

/* One pixel; as n2sr_deploy.cycle_spinning.pool, bit for bit. */
N2SR_BOTH void pool_pixel(const n2sr_pooled &pooled, ptrdiff_t y, ptrdiff_t x)
{
    const ptrdiff_t i = y * pooled.pitch + x;
    const double apart = (double)pooled.mean_of_others[i] - (double)pooled.mean[i];
    const double std = pooled.std[i], std_of_others = pooled.std_of_others[i];
    double squares = pooled.own * (std * std);
    squares += pooled.theirs * (std_of_others * std_of_others);
    squares += pooled.between * (apart * apart);
    pooled.std[i] = (float)sqrt(squares);
    pooled.mean[i] += (float)(pooled.share * apart);
}

static __global__ void pool_all(n2sr_pooled pooled)
{
    const ptrdiff_t x = (ptrdiff_t)blockIdx.x * blockDim.x + threadIdx.x;
    const ptrdiff_t y = (ptrdiff_t)blockIdx.y * blockDim.y + threadIdx.y;
    if (y < pooled.height && x < pooled.width)
        pool_pixel(pooled, y, x);
}

/* mean, std (height, width) <- of all draws. */
N2SR_API int n2sr_cuda_pool(n2sr_pooled pooled, cudaStream_t stream)
{
    pool_all<<<tiled(pooled.height, pooled.width, BLOCK), BLOCK, 0, stream>>>(pooled);
    return cudaGetLastError();
}
