/* The small U-Net's convolutions on an NVIDIA GPU's matrix units: float16 in, float32 sums.
 *
 * Feature maps are (images, height, width, channels) float16, channels a multiple of 8. A block of
 * threads computes a tile of the output from the tile of the input around it, which it holds in
 * shared memory; what stands between two convolutions (bias, activation, pooling, doubling, the
 * first layer, a 1 x 1 convolution, the pixel shuffle) is done on the way in or out, so that each
 * feature map is written and read once.
 */
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include "export.h"

#define WIDEST 64 /* channels of a feature map */
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

/* Rows of 16 pixels are what the matrix units take. A block has WX x WY warps, a warp MT rows. */
template <int NT, int MT_, int WX, int WY, bool STAGES_, int BLOCKS_> struct shape {
    static const int N_TILES = NT, MT = MT_, WARPS_X = WX;
    static const int WIDTH = 16 * WX, HEIGHT = MT * WY, THREADS = 32 * WX * WY;
    static const int SEEN_X = WIDTH + 2, SEEN_Y = HEIGHT + 2;
    static const bool STAGES = STAGES_; /* whether weights are brought to shared memory first */
    static const int BLOCKS = BLOCKS_;  /* that a multiprocessor should hold */
};

/* A pixel in shared memory: its channels, filled up to whole steps of 16, and 8 more, so that the
 * eight rows that are read at a time lie in different banks. */
static __host__ __device__ __forceinline__ int steps_of(int channels) { return (channels + 15) / 16; }
static __host__ __device__ __forceinline__ int pitch_of(int channels)
{
    return 16 * steps_of(channels) + 8;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

/* n / d, for n * d below 2 ** 31. */
static __device__ __forceinline__ int divided(int n, int d)
{
    return (int)__umulhi(2 * (uint32_t)n, 0x80000000u / (uint32_t)d + 1);
}

static __device__ __forceinline__ void load_matrices(uint32_t (&a)[4], const __half *row)
{
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address));
}

/* d += a (16 pixels x 16 channels) * b (16 x 8). */
static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint2 b)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

static __device__ __forceinline__ uint32_t packed(float low, float high)
{
    const __half2 pair = __floats2half2_rn(low, high);
    return *(const uint32_t *)&pair;
}

static __device__ __forceinline__ uint32_t activated(uint32_t values, __half2 slope)
{
    const __half2 pair = *(const __half2 *)&values;
    const __half2 result = __hmax2(pair, __hmul2(pair, slope));
    return *(const uint32_t *)&result;
}

static __device__ __forceinline__ uint32_t paired(__half low, __half high)
{
    const __half2 pair = __halves2half2(low, high);
    return *(const uint32_t *)&pair;
}

static __device__ __forceinline__ uint32_t larger(uint32_t a, uint32_t b)
{
    const __half2 pair = __hmax2(*(const __half2 *)&a, *(const __half2 *)&b);
    return *(const uint32_t *)&pair;
}

static __device__ __forceinline__ uint4 sum_of(uint4 a, uint4 b)
{
    uint4 sum;
    const __half2 *x = (const __half2 *)&a, *y = (const __half2 *)&b;
    __half2 *z = (__half2 *)&sum;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        z[i] = __hadd2(x[i], y[i]);
    return sum;
}

/* ---- the input tile -------------------------------------------------------------------- */

/* Copy 16 bytes to shared memory without waiting, or write zeros. */
static __device__ __forceinline__ void copy_piece(__half *to, const __half *from, bool is_inside)
{
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
    const int bytes = is_inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(bytes));
}

static __device__ __forceinline__ void wait_for_pieces(void)
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* From a feature map, and the coarser one that is added to it. Zero beyond the image. */
template <typename S, bool ADDS>
static __device__ __forceinline__ void load_tile(const n2sr_convolution &job, int left, int top,
                                                 __half *tile)
{
    const int pieces = job.n_inputs / 8, row_pieces = S::SEEN_X * pieces;
    const int pitch = pitch_of(job.n_inputs), line = job.w * job.n_inputs;
    const int half_w = job.w / 2;
    const ptrdiff_t begin = ((ptrdiff_t)blockIdx.z * job.h + top - 1) * line +
                            (ptrdiff_t)(left - 1) * job.n_inputs;
    const __half *coarse = NULL;
    if (ADDS)
        coarse = job.coarse + (size_t)blockIdx.z * (job.h / 2) * half_w * job.n_inputs;
#pragma unroll 5
    for (int i = threadIdx.x; i < row_pieces * S::SEEN_Y; i += S::THREADS) {
        const int row = divided(i, row_pieces), place = i - row * row_pieces;
        const int column = divided(place, pieces), piece = place - column * pieces;
        const int y = top + row - 1, x = left + column - 1;
        const bool is_inside = (unsigned)y < (unsigned)job.h && (unsigned)x < (unsigned)job.w;
        const __half *from = is_inside ? job.input + (begin + row * line + 8 * place) : job.input;
        __half *to = tile + (row * S::SEEN_X + column) * pitch + 8 * piece;
        if (!ADDS) {
            copy_piece(to, from, is_inside);
        } else {
            const ptrdiff_t at =
                is_inside ? ((ptrdiff_t)(y / 2) * half_w + x / 2) * job.n_inputs + 8 * piece : 0;
            const uint4 values =
                sum_of(__ldg((const uint4 *)from), __ldg((const uint4 *)(coarse + at)));
            *(uint4 *)to = is_inside ? values : make_uint4(0, 0, 0, 0);
        }
    }
    if (job.n_inputs % 16) /* a step that is half full: what was there before may be no number */
        for (int i = threadIdx.x; i < S::SEEN_X * S::SEEN_Y; i += S::THREADS)
            *(uint4 *)(tile + i * pitch + job.n_inputs) = make_uint4(0, 0, 0, 0);
}

/* The first layer's output, of the one channel there is; `seen` has room for its input. The nine
 * taps of 16 pixels are the rows that the matrix units take. Both lie in rows of SEEN_X + 2, so that
 * a pixel's taps are found without a division; the last two of each row are nobody's. */
template <typename S>
static __device__ __forceinline__ void compute_tile(const n2sr_convolution &job, int left, int top,
                                                    __half *tile, __half *seen)
{
    const int width = S::SEEN_X + 2, pitch = pitch_of(job.n_inputs), n_pixels = width * S::SEEN_Y;
    const int lane = threadIdx.x % 32, tap = lane % 4 * 2;
    const size_t image = (size_t)blockIdx.z * job.h * job.w;
    for (int i = threadIdx.x; i < width * (S::SEEN_Y + 2) + 2; i += S::THREADS) {
        const int row = divided(i, width), y = top + row - 2, x = left + i - row * width - 2;
        const bool is_inside = (unsigned)y < (unsigned)job.h && (unsigned)x < (unsigned)job.w;
        seen[i] = is_inside ? job.input[image + (size_t)y * job.w + x] : __float2half_rn(0.0f);
    }
    __syncthreads();
    const bool is_whole = left > 0 && top > 0 && left + S::WIDTH < job.w && top + S::HEIGHT < job.h;
    const __half2 slope = __float2half2_rn(job.slope);
    const int offsets[2] = {tap / 3 * width + tap % 3, (tap + 1) / 3 * width + (tap + 1) % 3};
    for (int group = threadIdx.x / 32; 16 * group < n_pixels; group += S::THREADS / 32) {
        uint32_t a[4];
        int pixels[2];
        bool is_inside[2] = {true, true};
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const int pixel = min(16 * group + lane / 4 + 8 * k, n_pixels - 1);
            const __half *corner = seen + pixel;
            pixels[k] = pixel;
            a[k] = paired(corner[offsets[0]], corner[offsets[1]]);
            a[2 + k] = tap ? 0 : paired(corner[2 * width + 2], __float2half_rn(0.0f));
            if (!is_whole) {
                const int row = divided(pixel, width), column = pixel - row * width;
                is_inside[k] = (unsigned)(top + row - 1) < (unsigned)job.h &&
                               (unsigned)(left + column - 1) < (unsigned)job.w;
            }
        }
        for (int part = 0; part < job.n_inputs / 8; ++part) {
            const int channel = 8 * part + tap;
            const float2 bias = __ldg((const float2 *)(job.first_bias + channel));
            float sums[4] = {bias.x, bias.y, bias.x, bias.y};
            multiply(sums, a, __ldg(job.first + 32 * part + lane));
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const uint32_t values = activated(packed(sums[2 * k], sums[2 * k + 1]), slope);
                *(uint32_t *)(tile + pixels[k] * pitch + channel) = is_inside[k] ? values : 0;
            }
        }
        if (job.n_inputs % 16)
#pragma unroll
            for (int k = 0; k < 2; ++k)
                *(uint32_t *)(tile + pixels[k] * pitch + job.n_inputs + tap) = 0;
    }
}

/* ---- the output tile ------------------------------------------------------------------- */

/* A thread holds, of pixel lane / 4 of a row and of the one 8 further on, the channels from
 * lane % 4 * 2 * NT on, in pairs: `values[pixel][pair]`. */
template <int NT>
static __device__ __forceinline__ void store_pairs(__half *to, const uint32_t (&values)[NT])
{
    if (NT % 4 == 0) {
#pragma unroll
        for (int t = 0; t < NT; t += 4)
            ((uint4 *)to)[t / 4] =
                make_uint4(values[t], values[(t + 1) % NT], values[(t + 2) % NT], values[(t + 3) % NT]);
    } else if (NT % 2 == 0) {
#pragma unroll
        for (int t = 0; t < NT; t += 2)
            ((uint2 *)to)[t / 2] = make_uint2(values[t], values[(t + 1) % NT]);
    } else {
#pragma unroll
        for (int t = 0; t < NT; ++t)
            ((uint32_t *)to)[t] = values[t];
    }
}

/* The 1 x 1 convolution of a row of 16 pixels, which are laid as it takes them. */
template <int NT>
static __device__ __forceinline__ void narrow_row(const n2sr_convolution &job, int lane, size_t row,
                                                  int x, const uint32_t (&values)[2][NT])
{
    const int steps = (NT + 1) / 2, column = 2 * (lane % 4);
    for (int tile = 0; tile < job.n_narrow / 8; ++tile) {
        float sums[4] = {0, 0, 0, 0};
#pragma unroll
        for (int step = 0; step < steps; ++step) {
            const bool is_whole = 2 * step + 1 < NT;
            const int high = is_whole ? 2 * step + 1 : 0;
            const uint32_t a[4] = {values[0][2 * step], values[1][2 * step],
                                   is_whole ? values[0][high] : 0, is_whole ? values[1][high] : 0};
            multiply(sums, a, __ldg(job.narrow + (tile * steps + step) * 32 + lane));
        }
        const float2 bias = __ldg((const float2 *)(job.narrow_bias + 8 * tile + column));
#pragma unroll
        for (int k = 0; k < 2; ++k)
            if (x + 8 * k < job.w)
                *(uint32_t *)(job.output + (row + x + 8 * k) * job.n_narrow + 8 * tile + column) =
                    packed(sums[2 * k] + bias.x, sums[2 * k + 1] + bias.y);
    }
}

/* One pixel's outputs to their places in the frame. */
template <int NT>
static __device__ __forceinline__ void shuffle_pixel(const n2sr_convolution &job, int lane, int y,
                                                     int x, const float (&values)[2 * NT])
{
    const size_t width = (size_t)job.w * job.stride_x;
    __half *corner = job.pixels + ((size_t)blockIdx.z * job.h + y) * job.stride_y * width +
                     (size_t)x * job.stride_x;
#pragma unroll
    for (int c = 0; c < 2 * NT; c += 2) {
        const int channel = lane % 4 * 2 * NT + c;
        if (job.stride_x == 2 && !job.adds) { /* two that lie side by side */
            if (channel < 2 * job.stride_y)
                *(uint32_t *)(corner + channel / 2 * width) =
                    packed(values[c] * job.share, values[c + 1] * job.share);
            continue;
        }
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            if (channel + k >= job.stride_y * job.stride_x)
                continue;
            const int down = (channel + k) / job.stride_x;
            __half *to = corner + down * width + channel + k - down * job.stride_x;
            const float before = job.adds ? __half2float(*to) : 0.0f;
            *to = __float2half_rn(fmaf(values[c + k], job.share, before));
        }
    }
}

/* Ask for the weights to be brought to shared memory. */
template <typename S>
static __device__ __forceinline__ void stage_weights(const n2sr_convolution &job, int steps,
                                                     uint2 *staged)
{
    for (int i = threadIdx.x; i < steps * TAPS * S::N_TILES * 16; i += S::THREADS)
        copy_piece((__half *)(staged + 2 * i), (const __half *)(job.weights + 2 * i), true);
}

/* ---- the convolution ------------------------------------------------------------------- */

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
