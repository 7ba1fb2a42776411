/* How csrc/subsample.c works: in chunks of a row, on threads, with the machine's widest vectors, and
 * past the caches where results are large.
 */
#ifndef N2SR_CHUNKS_H
#define N2SR_CHUNKS_H

#include <stddef.h>
#include <stdint.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define N2SR_HAVE_STREAMING 1
#endif

/* One binary for every x86-64: the loader picks the widest version the machine has. */
#if defined(N2SR_NO_CLONES) || defined(__clang__) || !defined(__GNUC__) || \
    !defined(__x86_64__) || !defined(__GLIBC__)
#define N2SR_CLONES
#elif __GNUC__ >= 12
#define N2SR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define N2SR_CLONES __attribute__((target_clones("avx2", "default")))
#endif

/* Cells handled at once: their pixels and kept places stay in the first-level cache. */
#define CHUNK 256

static int threads(int n_threads)
{
#ifdef _OPENMP
    return n_threads > 0 ? n_threads : omp_get_max_threads();
#else
    (void)n_threads;
    return 1;
#endif
}

/* Results larger than this go past the caches: the next reader would not find them there, and
 * a line that is written whole need not be read first. Smaller ones stay for the network. */
#define STREAMING_BYTES ((ptrdiff_t)16 << 20)

/* to[j] <- from[j]; when streaming, past the caches, to be followed by a streaming_fence(). */
static void put(const float *from, ptrdiff_t n, float *to, int streaming)
{
    ptrdiff_t j = 0;
#ifdef N2SR_HAVE_STREAMING
    if (streaming) {
        for (; j < n && ((uintptr_t)(to + j) & 15); ++j)
            to[j] = from[j];
        for (; j + 4 <= n; j += 4)
            _mm_stream_ps(to + j, _mm_loadu_ps(from + j));
    }
#else
    (void)streaming;
#endif
    for (; j < n; ++j)
        to[j] = from[j];
}

static void streaming_fence(void)
{
#ifdef N2SR_HAVE_STREAMING
    _mm_sfence();
#endif
}

static ptrdiff_t min_size(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

#endif
