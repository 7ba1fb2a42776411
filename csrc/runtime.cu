/* The few calls of the CUDA runtime that a pipeline of frames needs.
 *
 * They return a cudaError_t (0: fine); what takes a stream only enqueues.
 */
#include <cuda_runtime.h>
#include <stddef.h>

#include "export.h"

/* Name, compute capability as major * 10 + minor, and bytes of memory. */
N2SR_API int n2sr_cuda_describe(int device, char *name, int size, int *capability, size_t *bytes)
{
    cudaDeviceProp found;
    const int error = cudaGetDeviceProperties(&found, device);
    if (error)
        return error;
    int i = 0;
    for (; i < size - 1 && found.name[i]; ++i)
        name[i] = found.name[i];
    name[i] = 0;
    *capability = found.major * 10 + found.minor;
    *bytes = found.totalGlobalMem;
    return cudaSuccess;
}

N2SR_API const char *n2sr_cuda_error(int error) { return cudaGetErrorString((cudaError_t)error); }

/* Forget the last error that leaves the context usable. */
N2SR_API void n2sr_cuda_forget_error(void) { (void)cudaGetLastError(); }

N2SR_API int n2sr_cuda_malloc(void **memory, size_t bytes) { return cudaMalloc(memory, bytes); }

N2SR_API int n2sr_cuda_free(void *memory) { return cudaFree(memory); }

N2SR_API int n2sr_cuda_host_malloc(void **memory, size_t bytes)
{
    return cudaHostAlloc(memory, bytes, cudaHostAllocDefault);
}

N2SR_API int n2sr_cuda_host_free(void *memory) { return cudaFreeHost(memory); }

N2SR_API int n2sr_cuda_copy(void *to, const void *from, size_t bytes, cudaStream_t stream)
{
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
}

N2SR_API int n2sr_cuda_stream(cudaStream_t *stream)
{
    return cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking);
}

N2SR_API int n2sr_cuda_end_stream(cudaStream_t stream) { return cudaStreamDestroy(stream); }

N2SR_API int n2sr_cuda_wait(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

N2SR_API int n2sr_cuda_begin_capture(cudaStream_t stream)
{
    return cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
}

/* Where the capture was spoilt, *graph is NULL and the error tells why. */
N2SR_API int n2sr_cuda_end_capture(cudaStream_t stream, cudaGraphExec_t *graph)
{
    cudaGraph_t captured = NULL;
    *graph = NULL;
    int error = cudaStreamEndCapture(stream, &captured);
    if (!error)
        error = cudaGraphInstantiate(graph, captured, 0);
    if (captured)
        cudaGraphDestroy(captured);
    return error;
}

N2SR_API int n2sr_cuda_replay(cudaGraphExec_t graph, cudaStream_t stream)
{
    return cudaGraphLaunch(graph, stream);
}

N2SR_API int n2sr_cuda_end_graph(cudaGraphExec_t graph) { return cudaGraphExecDestroy(graph); }
