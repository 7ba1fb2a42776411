/* The small U-Net's convolutions on an NVIDIA GPU's matrix units: float16 in, float32 sums.
 *
 * Feature maps are (images, height, width, channels) float16, channels a multiple of 8. A block of
 * threads computes a tile of the output from the tile of the input around it, which it holds in
 * shared memory; what stands between two convolutions (bias, activation, pooling, doubling, the
 * first layer, a 1 x 1 convolution, the pixel shuffle) is done on the way in or out, so that each
 * feature map is written and read once.
 */
#include "convolution.h"
#include "export.h"
#include "tiles.h"

#define WIDEST 64 /* channels of a feature map */

/* Rows of 16 pixels are what the matrix units take. A block has WX x WY warps, a warp MT rows. */
template <int NT, int MT_, int WX, int WY, bool STAGES_, int BLOCKS_> struct shape {
    static const int N_TILES = NT, MT = MT_, WARPS_X = WX;
    static const int WIDTH = 16 * WX, HEIGHT = MT * WY, THREADS = 32 * WX * WY;
    static const int SEEN_X = WIDTH + 2, SEEN_Y = HEIGHT + 2;
    static const bool STAGES = STAGES_; /* whether weights are brought to shared memory first */
    static const int BLOCKS = BLOCKS_;  /* that a multiprocessor should hold */
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

static __device__ __forceinline__ void load_matrices(uint32_t (&a)[4], const __half *row)
{
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address));
}

static __device__ __forceinline__ uint32_t larger(uint32_t a, uint32_t b)
{
    const __half2 pair = __hmax2(*(const __half2 *)&a, *(const __half2 *)&b);
    return *(const uint32_t *)&pair;
}

template <typename S>
static __global__ void __launch_bounds__(S::THREADS, S::BLOCKS) convolve(const n2sr_convolution job)
{
    extern __shared__ __align__(16) __half shared[];
    const int NT = S::N_TILES, MT = S::MT;
    const int left = blockIdx.x * S::WIDTH, top = blockIdx.y * S::HEIGHT;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int pitch = pitch_of(job.n_inputs), steps = steps_of(job.n_inputs);
    const int width = job.first ? S::SEEN_X + 2 : S::SEEN_X;
    uint2 *staged = (uint2 *)shared;
    __half *tile = shared + (S::STAGES ? 4 * 32 * steps * TAPS * NT : 0);
    if (S::STAGES)
        stage_weights<S>(job, steps, staged);
    if (job.first)
        compute_tile<S>(job, left, top, tile, tile + width * S::SEEN_Y * pitch);
    else if (job.coarse)
        load_tile<S, true>(job, left, top, tile);
    else
        load_tile<S, false>(job, left, top, tile);
    wait_for_pieces();
    __syncthreads();

    const int first_x = warp % S::WARPS_X * 16, first_y = warp / S::WARPS_X * MT;
    const int channel = lane % 4 * 2 * NT;
    const __half *rows = tile + (first_y * width + first_x + lane % 16) * pitch + lane / 16 * 8;
    const uint2 *weights = (S::STAGES ? staged : job.weights) + lane;
    float sums[MT][NT][4];
#pragma unroll
    for (int t = 0; t < NT; ++t) {
        const float2 bias = __ldg((const float2 *)(job.bias + channel + 2 * t));
#pragma unroll
        for (int i = 0; i < MT; ++i) {
            sums[i][t][0] = sums[i][t][2] = bias.x;
            sums[i][t][1] = sums[i][t][3] = bias.y;
        }
    }
    for (int step = 0; step < steps; ++step)
#pragma unroll
        for (int tap_x = 0; tap_x < 3; ++tap_x) {
            uint2 b[3][NT];
#pragma unroll
            for (int tap_y = 0; tap_y < 3; ++tap_y)
#pragma unroll
                for (int t = 0; t < NT; ++t) {
                    const uint2 *at = weights + ((step * 3 + tap_x) * 3 + tap_y) * NT * 32 + t * 32;
                    b[tap_y][t] = S::STAGES ? *at : __ldg(at);
                }
#pragma unroll
            for (int row = 0; row < MT + 2; ++row) { /* read once for the outputs it is part of */
                uint32_t a[4];
                load_matrices(a, rows + (row * width + tap_x) * pitch + 16 * step);
#pragma unroll
                for (int tap_y = 0; tap_y < 3; ++tap_y)
                    if (row - tap_y >= 0 && row - tap_y < MT)
#pragma unroll
                        for (int t = 0; t < NT; ++t)
                            multiply(sums[(row - tap_y + MT) % MT][t], a, b[tap_y][t]);
            }
        }

    const int x = left + first_x + lane / 4;
    const __half2 slope = __float2half2_rn(job.slope);
    uint32_t above[2][NT];
#pragma unroll
    for (int i = 0; i < MT; ++i) {
        const int y = top + first_y + i;
        const size_t row = ((size_t)blockIdx.z * job.h + y) * job.w;
        if (job.pixels) {
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                float values[2 * NT];
#pragma unroll
                for (int c = 0; c < 2 * NT; ++c)
                    values[c] = sums[i][c / 2][2 * k + c % 2];
                if (y < job.h && x + 8 * k < job.w)
                    shuffle_pixel<NT>(job, lane, y, x + 8 * k, values);
            }
            continue;
        }
        uint32_t pairs[2][NT];
#pragma unroll
        for (int k = 0; k < 2; ++k)
#pragma unroll
            for (int t = 0; t < NT; ++t)
                pairs[k][t] =
                    activated(packed(sums[i][t][2 * k], sums[i][t][2 * k + 1]), slope);
        if (job.narrow) {
            if (y < job.h) /* the same for all threads of a warp */
                narrow_row<NT>(job, lane, row, x, pairs);
        } else {
#pragma unroll
            for (int k = 0; k < 2; ++k)
                if (y < job.h && x + 8 * k < job.w)
                    store_pairs<NT>(job.output + (row + x + 8 * k) * job.n_outputs + channel,
                                    pairs[k]);
        }
        if (job.pooled) {
#pragma unroll
            for (int k = 0; k < 2; ++k) {
#pragma unroll
                for (int t = 0; t < NT; ++t) {
                    if (i % 2 == 0) {
                        above[k][t] = pairs[k][t];
                    } else {
                        const uint32_t both = larger(above[k][t], pairs[k][t]);
                        above[k][t] = larger(both, __shfl_xor_sync(0xffffffffu, both, 4));
                    }
                }
                if (i % 2 == 1 && lane / 4 % 2 == 0 && y < job.h && x + 8 * k < job.w) {
                    const size_t place =
                        ((size_t)blockIdx.z * (job.h / 2) + y / 2) * (job.w / 2) + (x + 8 * k) / 2;
                    store_pairs<NT>(job.pooled + place * job.n_outputs + channel, above[k]);
                }
            }
        }
    }
}

#else /* matrix units that take 16 x 16 x 8 came with compute capability 8.0 */

template <typename S> static __global__ void convolve(const n2sr_convolution) {}

#endif

/* ---- launchers ------------------------------------------------------------------------- */

/* What a launch depends on of the GPU. */
typedef struct {
    int n_multiprocessors, shared_bytes; /* the latter at most, a block */
} n2sr_limits;

template <typename S> static int shared_bytes_of(const n2sr_convolution &job)
{
    const int steps = steps_of(job.n_inputs), width = S::SEEN_X + (job.first ? 2 : 0);
    int numbers = width * S::SEEN_Y * pitch_of(job.n_inputs);
    if (job.first)
        numbers += width * (S::SEEN_Y + 2) + 2;
    if (S::STAGES)
        numbers += steps * TAPS * S::N_TILES * 32 * 4;
    return numbers * (int)sizeof(__half);
}

template <typename S>
static int launch(const n2sr_convolution &job, const n2sr_limits &limits, cudaStream_t stream)
{
    /* Always the same: another thread may launch the same kernel for maps of another width. */
    const int error = cudaFuncSetAttribute(
        convolve<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_bytes);
    if (error)
        return error;
    const dim3 grid((job.w + S::WIDTH - 1) / S::WIDTH, (job.h + S::HEIGHT - 1) / S::HEIGHT, job.n);
    convolve<S><<<grid, S::THREADS, shared_bytes_of<S>(job), stream>>>(job);
    return cudaGetLastError();
}

/* Large tiles repeat less of their neighbours' work. Small ones keep all of a GPU busy; what they
 * would wait for are the weights, so these are brought to them at once, where they fit. */
template <int NT, int MT, int BLOCKS>
static int launch_for(const n2sr_convolution &job, const n2sr_limits &limits, cudaStream_t stream)
{
    typedef shape<NT, MT, 2, 4, false, BLOCKS> large;
    typedef shape<NT, 2, 1, 4, true, 2> small;
    const size_t blocks = (size_t)job.n * ((job.w + large::WIDTH - 1) / large::WIDTH) *
                          ((job.h + large::HEIGHT - 1) / large::HEIGHT);
    const bool is_small = blocks < 2 * (size_t)limits.n_multiprocessors;
    return is_small && shared_bytes_of<small>(job) <= limits.shared_bytes
               ? launch<small>(job, limits, stream)
               : launch<large>(job, limits, stream);
}

/* Enqueue one convolution. */
N2SR_API int n2sr_cuda_convolve(const n2sr_convolution *job, cudaStream_t stream)
{
    int device = 0;
    n2sr_limits limits = {0, 0};
    int error = cudaGetDevice(&device);
    if (!error)
        error = cudaDeviceGetAttribute(&limits.n_multiprocessors, cudaDevAttrMultiProcessorCount,
                                       device);
    if (!error)
        error = cudaDeviceGetAttribute(&limits.shared_bytes,
                                       cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error)
        return error;
    const int channels = job->pixels ? job->stride_y * job->stride_x : job->n_outputs;
    if (job->n_inputs > WIDEST || channels > WIDEST)
        return cudaErrorInvalidValue;
    switch ((channels + 7) / 8) {
    case 1: return launch_for<1, 4, 3>(*job, limits, stream);
    case 2: return launch_for<2, 4, 3>(*job, limits, stream);
    case 3: return launch_for<3, 4, 2>(*job, limits, stream);
    case 4: return launch_for<4, 4, 2>(*job, limits, stream);
    case 5: return launch_for<5, 2, 2>(*job, limits, stream);
    case 6: return launch_for<6, 2, 2>(*job, limits, stream);
    case 7: return launch_for<7, 2, 2>(*job, limits, stream);
    case 8: return launch_for<8, 2, 2>(*job, limits, stream);
    default: return cudaErrorInvalidValue;
    }
}
