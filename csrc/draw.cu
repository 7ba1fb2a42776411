/* Draws on an NVIDIA GPU: standardised pixels of a frame, sub-sampled. See draws.h. */
#include "draws.h"
#include "halves.h"

template <typename Pixel> struct draw_job {
    const Pixel *pixels;
    ptrdiff_t height, width, pitch; /* elements that rows lie apart */
    n2sr_pattern pattern;
    n2sr_window window;
    n2sr_draws draws;
};

N2SR_BOTH void store(float *to, float value) { *to = value; }
N2SR_BOTH void store(__half *to, float value) { *to = __float2half_rn(value); }

/* All draws of cell (row, column) of the window. */
template <typename Pixel, typename Number, int STRIDE_Y, int STRIDE_X>
N2SR_BOTH void draw_cell(const draw_job<Pixel> &job, n2sr_key key, const n2sr_statistics &statistics,
                         ptrdiff_t row, ptrdiff_t column, Number *subsampled)
{
    const int stride_y = STRIDE_Y ? STRIDE_Y : job.pattern.stride_y;
    const int stride_x = STRIDE_X ? STRIDE_X : job.pattern.stride_x;
    const uint32_t n = (uint32_t)(stride_y * stride_x);
    const ptrdiff_t cell_y = job.window.top + row, cell_x = job.window.left + column;
    const float offset = (float)statistics.mean, factor = (float)statistics.inverse_std;
    uint64_t places = 0;
    for (int m = 0; m < job.draws.n_samples; ++m) {
        const uint32_t sample = job.draws.first_sample + (uint32_t)m;
        if (m == 0 || sample % n == 0)
            places = n2sr_permutation(job.pattern.shared, key, sample / n, cell_y, cell_x, (int)n);
        const int place = n2sr_place(places, sample % n);
        const ptrdiff_t y = n2sr_mirror(cell_y * stride_y + place / stride_x, job.height);
        const ptrdiff_t x = n2sr_mirror(cell_x * stride_x + place % stride_x, job.width);
        const float pixel = (float)job.pixels[y * job.pitch + x];
        const size_t at =
            place_of(job.draws, m, row, column, job.window.height, job.window.width);
        store(subsampled + at, (pixel - offset) * factor);
    }
}

template <typename Pixel, typename Number, int STRIDE_Y, int STRIDE_X>
static __global__ void draw_all(draw_job<Pixel> job, const n2sr_key *key,
                                const n2sr_statistics *statistics, Number *subsampled)
{
    const ptrdiff_t column = (ptrdiff_t)blockIdx.x * blockDim.x + threadIdx.x;
    const ptrdiff_t row = (ptrdiff_t)blockIdx.y * blockDim.y + threadIdx.y;
    if (row < job.window.height && column < job.window.width)
        draw_cell<Pixel, Number, STRIDE_Y, STRIDE_X>(job, *key, *statistics, row, column,
                                                     subsampled);
}

/* Cells of 2 x 2, WIDTH neighbours in a row at once. */

/* pixels <- rows 0 and 1 of the cells, IN_VECTORS if they lie so in the frame. */
template <bool IN_VECTORS, typename Pixel>
N2SR_BOTH void load_cells(const draw_job<Pixel> &job, ptrdiff_t y, ptrdiff_t x,
                          Pixel (&pixels)[2][2 * WIDTH])
{
    typedef vector<Pixel, 2 * WIDTH> row_vector;
    for (int i = 0; i < 2; ++i)
        if (IN_VECTORS) {
            const row_vector row = *(const row_vector *)(job.pixels + (y + i) * job.pitch + x);
            for (int j = 0; j < 2 * WIDTH; ++j)
                pixels[i][j] = row.element[j];
        } else {
            const Pixel *row = job.pixels + n2sr_mirror(y + i, job.height) * job.pitch;
            for (int j = 0; j < 2 * WIDTH; ++j)
                pixels[i][j] = row[n2sr_mirror(x + j, job.width)];
        }
}

/* Whether load_cells may load vectors. */
template <typename Pixel>
N2SR_BOTH bool has_vectors(const draw_job<Pixel> &job, ptrdiff_t y, ptrdiff_t x)
{
    typedef vector<Pixel, 2 * WIDTH> row_vector;
    const Pixel *from = job.pixels + y * job.pitch + x;
    return y + 2 <= job.height && x + 2 * WIDTH <= job.width && is_aligned<row_vector>(from) &&
           is_aligned<row_vector>(from + job.pitch);
}

/* The orders of the pixels of a cell of 2 x 2 by what n2sr_permutation chooses: of a word its
 * choices, of 4, 3 and 2, are the digits of floor(24 * word / 2^32). An order is eight half bytes:
 * which two bytes draws 0 to 3 take of the cell's pixels, of two bytes each. */
enum { N_ORDERS = 24 };
struct orders {
    uint32_t order[N_ORDERS];
};

constexpr orders all_orders()
{
    orders all = {};
    for (int choices = 0; choices < N_ORDERS; ++choices) {
        const int choice[3] = {choices / 6, choices / 2 % 3, choices % 2};
        uint32_t places[4] = {0, 1, 2, 3};
        for (int k = 0; k < 3; ++k) {
            const uint32_t kept = places[k];
            places[k] = places[k + choice[k]];
            places[k + choice[k]] = kept;
        }
        for (int k = 0; k < 4; ++k)
            all.order[choices] |= (2 * places[k] | (2 * places[k] + 1) << 4) << 8 * k;
    }
    return all;
}

/* Bytes 0 to 3 are a's, 4 to 7 b's; byte i of the result is the one half byte i of `which` tells. */
N2SR_BOTH uint32_t bytes_of(uint32_t a, uint32_t b, uint32_t which)
{
#ifdef __CUDA_ARCH__ /* __byte_perm would mask `which` first */
    uint32_t taken;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(taken) : "r"(a), "r"(b), "r"(which));
    return taken;
#else
    const uint64_t both = (uint64_t)b << 32 | a;
    uint32_t bytes = 0;
    for (int i = 0; i < 4; ++i)
        bytes |= (uint32_t)(both >> 8 * (which >> 4 * i & 7) & 255) << 8 * i;
    return bytes;
#endif
}

/* to[k] <- draw k of WIDTH cells, given their pixels and the order of each. */
N2SR_BOTH void store_draws(const float (&cells)[WIDTH][4], const uint32_t (&order)[WIDTH],
                           __half *const (&to)[4])
{
    uint32_t drawn[WIDTH][2]; /* draws 0 and 1, 2 and 3 */
    for (int j = 0; j < WIDTH; ++j) {
        const uint32_t above = packed(cells[j][0], cells[j][1]);
        const uint32_t below = packed(cells[j][2], cells[j][3]);
        drawn[j][0] = bytes_of(above, below, order[j]);
        drawn[j][1] = bytes_of(above, below, order[j] >> 16);
    }
    for (int k = 0; k < 4; ++k) {
        const bool reversed = n2sr_flips_x((uint32_t)k);
        vector<uint32_t, WIDTH / 2> stored;
        for (int i = 0; i < WIDTH / 2; ++i) {
            const int first = reversed ? WIDTH - 1 - 2 * i : 2 * i;
            const int second = reversed ? first - 1 : first + 1;
            stored.element[i] =
                bytes_of(drawn[first][k / 2], drawn[second][k / 2], k % 2 ? 0x7632 : 0x5410);
        }
        *(vector<uint32_t, WIDTH / 2> *)to[k] = stored;
    }
}

N2SR_BOTH void store_draws(const float (&cells)[WIDTH][4], const uint32_t (&order)[WIDTH],
                           float *const (&to)[4])
{
    for (int k = 0; k < 4; ++k) {
        vector<float, WIDTH> stored;
        for (int j = 0; j < WIDTH; ++j) {
            const uint32_t place = order[j] >> (8 * k + 1) & 3;
            const float left = place & 2 ? cells[j][2] : cells[j][0];
            const float right = place & 2 ? cells[j][3] : cells[j][1];
            stored.element[n2sr_flips_x((uint32_t)k) ? WIDTH - 1 - j : j] = place & 1 ? right : left;
        }
        *(vector<float, WIDTH> *)to[k] = stored;
    }
}

/* All draws of cells (row, column .. column + WIDTH) of the window. */
template <bool IN_VECTORS, typename Pixel, typename Number>
N2SR_BOTH void draw_cells(const draw_job<Pixel> &job, n2sr_key key,
                          const n2sr_statistics &statistics, const orders &all, ptrdiff_t row,
                          ptrdiff_t column, Number *subsampled)
{
    const ptrdiff_t cell_y = job.window.top + row, cell_x = job.window.left + column;
    const ptrdiff_t height = job.window.height, width = job.window.width;
    const float offset = (float)statistics.mean, factor = (float)statistics.inverse_std;
    const uint32_t group = job.draws.first_sample / 4;
    Pixel pixels[2][2 * WIDTH];
    load_cells<IN_VECTORS>(job, 2 * cell_y, 2 * cell_x, pixels);
    uint32_t words[WIDTH]; /* made while the pixels are on their way */
    n2sr_random_block(key, group, (uint32_t)cell_y, (uint32_t)cell_x / WIDTH, words);
    float cells[WIDTH][4];
    for (int j = 0; j < WIDTH; ++j)
        for (int place = 0; place < 4; ++place)
            cells[j][place] = ((float)pixels[place / 2][2 * j + place % 2] - offset) * factor;
    for (int first = 0; first < job.draws.n_samples; first += 4) {
        if (first > 0)
            n2sr_random_block(key, group + (uint32_t)first / 4, (uint32_t)cell_y,
                              (uint32_t)cell_x / WIDTH, words);
        uint32_t order[WIDTH];
        for (int j = 0; j < WIDTH; ++j)
            order[j] = all.order[n2sr_wide_product(N_ORDERS, words[j]) >> 32];
        Number *group_at = subsampled + (size_t)first * height * width;
        Number *to[4];
        for (int k = 0; k < 4; ++k)
            to[k] = group_at + place_of_vector(k, row, column, height, width);
        store_draws(cells, order, to);
    }
}

template <typename Pixel, typename Number>
N2SR_BOTH void draw_vector(const draw_job<Pixel> &job, n2sr_key key,
                           const n2sr_statistics &statistics, const orders &all, ptrdiff_t row,
                           ptrdiff_t column, Number *subsampled)
{
    if (has_vectors(job, 2 * (job.window.top + row), 2 * (job.window.left + column)))
        draw_cells<true>(job, key, statistics, all, row, column, subsampled);
    else
        draw_cells<false>(job, key, statistics, all, row, column, subsampled);
}

/* Whether draw_vector does it. */
template <typename Number>
static bool draws_vectors(n2sr_pattern pattern, n2sr_window window, n2sr_draws draws,
                          const void *subsampled)
{
    return pattern.stride_y == 2 && pattern.stride_x == 2 && pattern.shared == N2SR_SHARED_NONE &&
           draws.n_samples % 4 == 0 && window.left % WIDTH == 0 &&
           lies_in_vectors<Number>(draws, subsampled, 0, window.width);
}

static __constant__ orders ORDERS = all_orders();

template <typename Pixel, typename Number>
static __global__ void draw_all_vectors(draw_job<Pixel> job, const n2sr_key *key,
                                        const n2sr_statistics *statistics, Number *subsampled)
{
    __shared__ orders all; /* threads look at different ones: of constant memory one after another */
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    if (thread < N_ORDERS)
        all.order[thread] = ORDERS.order[thread];
    __syncthreads();
    const ptrdiff_t column = ((ptrdiff_t)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH;
    const ptrdiff_t row = (ptrdiff_t)blockIdx.y * blockDim.y + threadIdx.y;
    if (row < job.window.height && column < job.window.width)
        draw_vector(job, *key, *statistics, all, row, column, subsampled);
}

/* ---- launchers ------------------------------------------------------------------------- */

template <typename Pixel, typename Number>
static int draw_as(const void *pixels, ptrdiff_t height, ptrdiff_t width, ptrdiff_t pitch,
                   n2sr_pattern pattern, n2sr_window window, n2sr_draws draws, const n2sr_key *key,
                   const n2sr_statistics *statistics, void *subsampled, cudaStream_t stream)
{
    const draw_job<Pixel> job = {(const Pixel *)pixels, height, width, pitch,
                                 pattern, window, draws};
    const dim3 grid = tiled(window.height, window.width, BLOCK);
    if (draws_vectors<Number>(pattern, window, draws, subsampled))
        draw_all_vectors<<<tiled_vectors(window.height, window.width), VECTORS_BLOCK, 0, stream>>>(
            job, key, statistics, (Number *)subsampled);
    else if (pattern.stride_y == 2 && pattern.stride_x == 2)
        draw_all<Pixel, Number, 2, 2>
            <<<grid, BLOCK, 0, stream>>>(job, key, statistics, (Number *)subsampled);
    else
        draw_all<Pixel, Number, 0, 0>
            <<<grid, BLOCK, 0, stream>>>(job, key, statistics, (Number *)subsampled);
    return cudaGetLastError();
}

template <typename Pixel>
static int draw_from(const void *pixels, ptrdiff_t height, ptrdiff_t width, ptrdiff_t pitch,
                     n2sr_pattern pattern, n2sr_window window, n2sr_draws draws,
                     const n2sr_key *key, const n2sr_statistics *statistics, void *subsampled,
                     int half, cudaStream_t stream)
{
    return half ? draw_as<Pixel, __half>(pixels, height, width, pitch, pattern, window, draws, key,
                                         statistics, subsampled, stream)
                : draw_as<Pixel, float>(pixels, height, width, pitch, pattern, window, draws, key,
                                        statistics, subsampled, stream);
}

/* subsampled (n_samples, height, width) of the window <- draws of a frame (height, width), whose
 * rows lie `pitch` elements apart; float32 or, where `half`, float16. */
N2SR_API int n2sr_cuda_draw(const void *pixels, int dtype, ptrdiff_t height, ptrdiff_t width,
                            ptrdiff_t pitch, n2sr_pattern pattern, n2sr_window window, n2sr_draws draws,
                            const n2sr_key *key, const n2sr_statistics *statistics,
                            void *subsampled, int half, cudaStream_t stream)
{
#define N2SR_DRAW(pixel_t)                                                                        \
    draw_from<pixel_t>(pixels, height, width, pitch, pattern, window, draws, key, statistics,      \
                       subsampled, half, stream)
    switch (dtype) {
    case N2SR_UINT8: return N2SR_DRAW(uint8_t);
    case N2SR_UINT16: return N2SR_DRAW(uint16_t);
    case N2SR_INT16: return N2SR_DRAW(int16_t);
    case N2SR_FLOAT32: return N2SR_DRAW(float);
    default: return cudaErrorInvalidValue;
    }
#undef N2SR_DRAW
}

/* Whether a draw takes the kernel for aligned rows; for tests and benchmarks. */
N2SR_API int n2sr_cuda_draws_vectors(n2sr_pattern pattern, n2sr_window window, n2sr_draws draws,
                                     const void *subsampled, int half)
{
    return half ? draws_vectors<__half>(pattern, window, draws, subsampled)
                : draws_vectors<float>(pattern, window, draws, subsampled);
}
