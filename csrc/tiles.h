/* The tile of feature maps that a block of threads of csrc/convolve.cu takes in and gives out. */
#ifndef N2SR_TILES_H
#define N2SR_TILES_H

#include "convolution.h"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

/* ---- the input tile -------------------------------------------------------------------- */

/* n / d, for n * d below 2 ** 31. */
static __device__ __forceinline__ int divided(int n, int d)
{
    return (int)__umulhi(2 * (uint32_t)n, 0x80000000u / (uint32_t)d + 1);
}

static __device__ __forceinline__ uint32_t paired(__half low, __half high)
{
    const __half2 pair = __halves2half2(low, high);
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

#endif
#endif
