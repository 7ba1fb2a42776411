# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The compiled kernels, with the interface of n2sr_deploy/reference.py.

Arguments were checked by n2sr_deploy/sampling.py; here they are only unpacked, and the
loops run without the GIL.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

import numpy as np

cdef extern from "subsample.h" nogil:
    ctypedef enum n2sr_dtype:
        N2SR_UINT8, N2SR_UINT16, N2SR_INT16, N2SR_UINT32, N2SR_INT32, N2SR_FLOAT32, N2SR_FLOAT64
    ctypedef enum n2sr_shared:
        N2SR_SHARED_NONE, N2SR_SHARED_ROW, N2SR_SHARED_COLUMN
    ctypedef struct n2sr_pattern:
        int stride_y
        int stride_x
        n2sr_shared shared
    ctypedef struct n2sr_key:
        uint64_t seed
        uint64_t frame_index
    ctypedef struct n2sr_window:
        ptrdiff_t top
        ptrdiff_t left
        ptrdiff_t height
        ptrdiff_t width
    ctypedef struct n2sr_frame:
        const void *pixels
        n2sr_dtype dtype
        ptrdiff_t height
        ptrdiff_t width
        ptrdiff_t row_bytes
        double mean
        double inverse_scale
    void n2sr_kept(n2sr_pattern, n2sr_key, uint32_t, n2sr_window, uint8_t *, int)
    void n2sr_draw(n2sr_frame, n2sr_pattern, n2sr_key, uint32_t, int, n2sr_window, float *, int)
    void n2sr_merge(const float *, int, uint32_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                    ptrdiff_t, ptrdiff_t, double, double, float *, ptrdiff_t, float *, ptrdiff_t,
                    int)
    void n2sr_sums(n2sr_frame, int64_t *, uint64_t *, int)
    int n2sr_openmp_threads()

ctypedef fused counted:
    uint8_t
    uint16_t
    int16_t

ctypedef fused pixel:
    uint8_t
    uint16_t
    int16_t
    uint32_t
    int32_t
    float
    double


def openmp_threads():
    """Threads OpenMP would use; 0 when the kernels were built without OpenMP."""
    return n2sr_openmp_threads()


cdef n2sr_pattern c_pattern(pattern):
    cdef n2sr_pattern result
    result.stride_y, result.stride_x = pattern.stride
    if pattern.shared == "row":
        result.shared = N2SR_SHARED_ROW
    elif pattern.shared == "column":
        result.shared = N2SR_SHARED_COLUMN
    else:
        result.shared = N2SR_SHARED_NONE
    return result


def kept(pattern, window, uint32_t sample, uint64_t seed, uint64_t frame_index, int n_threads):
    cdef n2sr_pattern cells = c_pattern(pattern)
    cdef n2sr_key key = n2sr_key(seed, frame_index)
    cdef n2sr_window where = n2sr_window(window.top, window.left, window.height, window.width)
    cdef uint8_t[:, ::1] places = np.empty((where.height, where.width), np.uint8)
    with nogil:
        n2sr_kept(cells, key, sample, where, &places[0, 0], n_threads)
    return np.asarray(places)


def draw(const pixel[:, :] frame, pattern, window, uint32_t first_sample, double mean,
         double scale, uint64_t seed, uint64_t frame_index, float[:, :, ::1] out, int n_threads):
    cdef n2sr_frame source
    cdef n2sr_pattern cells = c_pattern(pattern)
    cdef n2sr_key key = n2sr_key(seed, frame_index)
    cdef n2sr_window where = n2sr_window(window.top, window.left, window.height, window.width)
    cdef int n_samples = out.shape[0]
    source.pixels = &frame[0, 0]
    source.height, source.width, source.row_bytes = frame.shape[0], frame.shape[1], frame.strides[0]
    source.mean, source.inverse_scale = mean, 1.0 / scale
    if pixel is uint8_t:
        source.dtype = N2SR_UINT8
    elif pixel is uint16_t:
        source.dtype = N2SR_UINT16
    elif pixel is int16_t:
        source.dtype = N2SR_INT16
    elif pixel is uint32_t:
        source.dtype = N2SR_UINT32
    elif pixel is int32_t:
        source.dtype = N2SR_INT32
    elif pixel is float:
        source.dtype = N2SR_FLOAT32
    else:
        source.dtype = N2SR_FLOAT64
    with nogil:
        n2sr_draw(source, cells, key, first_sample, n_samples, where, &out[0, 0, 0], n_threads)


def merge(const float[:, :, ::1] outputs, uint32_t first_sample, ptrdiff_t top, ptrdiff_t left,
          double offset, double scale, float[:, :] mean, float[:, :] std, int n_threads):
    cdef ptrdiff_t std_row = std.strides[0] // sizeof(float) if std is not None else 0
    cdef float *std_data = &std[0, 0] if std is not None else NULL
    with nogil:
        n2sr_merge(&outputs[0, 0, 0], outputs.shape[0], first_sample, outputs.shape[1],
                   outputs.shape[2], top, left, mean.shape[0], mean.shape[1], offset, scale,
                   &mean[0, 0], mean.strides[0] // sizeof(float), std_data, std_row, n_threads)


def sums(const counted[:, :] frame, int n_threads):
    cdef n2sr_frame source
    cdef int64_t total = 0
    cdef uint64_t squares = 0
    source.pixels = &frame[0, 0]
    source.height, source.width, source.row_bytes = frame.shape[0], frame.shape[1], frame.strides[0]
    if counted is uint8_t:
        source.dtype = N2SR_UINT8
    elif counted is uint16_t:
        source.dtype = N2SR_UINT16
    else:
        source.dtype = N2SR_INT16
    with nogil:
        n2sr_sums(source, &total, &squares, n_threads)
    return total, squares
