"""The random sub-sampler, defined in NumPy.

This file is the definition: the compiled kernels (csrc/subsample.c) give the same bits, and
stand in for these functions wherever they are built. Nothing is checked here; callers use
`n2sr_deploy.sampling`, which does.

A frame is cut into cells of stride_y x stride_x pixels. For every cell, Philox4x32-10 at

    key     = seed                                                (64 bits)
    counter = (row << 16 | column // sharing, group, frame index) (32, 32 and 64 bits)

gives four random words. A cell of n pixels takes n - 1 choices, and every four of them a word; so
`sharing` neighbours in a row find theirs in one block: 4 of up to 5 pixels, 2 of up to 9, else 1.
The words give a permutation of the
cell's pixels. Draw m belongs to group m // n, n pixels a cell, and keeps element m % n of the
permutation: each group of n draws keeps every pixel exactly once. The cell's coordinates are those
in the whole frame, so a window or tile of the frame draws what the whole frame draws. A pattern
that shares its choice along rows sets the column to zero, along columns the row.

Draw m is turned into orientation m % 4: as it is, half a turn, mirrored left-right, mirrored
up-down. Each undoes itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from n2sr_deploy.pattern import SamplingPattern, Window
    from n2sr_deploy.sampling import AnyArray, FloatArray, UInt8Array

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

# Along which axes of (..., H, W) the draws of a group are mirrored, in turn; and as indices.
MIRRORED: tuple[tuple[int, ...], ...] = ((), (-2, -1), (-1,), (-2,))
ORIENTATIONS = tuple(
    tuple(slice(None, None, -1 if axis in mirrored else None) for axis in (-2, -1))
    for mirrored in MIRRORED
)


def philox4x32_10(counter: AnyArray, key: int) -> AnyArray:
    """Four random 32-bit words per counter.

    Parameters
    ----------
    counter
        (4, ...) integers below 2**32.
    key
        64 bits.

    Returns
    -------
    (4, ...) uint64 holding 32-bit words.

    References
    ----------
    Salmon et al., SC 2011, doi 10.1145/2063384.2063405.
    """
    c0, c1, c2, c3 = np.asarray(counter, np.uint64)
    for i in range(10):
        key0, key1 = (
            (key >> shift) + i * weyl & 0xFFFFFFFF
            for shift, weyl in zip((0, 32), _WEYL, strict=True)
        )
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = product1 >> _HALF ^ c1 ^ np.uint64(key0)
        c2 = product0 >> _HALF ^ c3 ^ np.uint64(key1)
        c1, c3 = product1 & _LOW, product0 & _LOW
    return np.stack([c0, c1, c2, c3])


def permutations(
    pattern: SamplingPattern, window: Window, group: int, seed: int, frame_index: int
) -> AnyArray:
    """(n, height, width): for each cell of the window, its pixels in random order.

    A pixel is its place y * stride_x + x within the cell. Fisher-Yates; each choice among k
    multiplies 32 random bits by k, takes the high part and leaves the low part to the next
    choice: no modulo, and every word serves four choices.
    """
    n = pattern.group_size
    n_words = (n + 2) // 4  # for n - 1 choices
    sharing = 4 // n_words
    rows = np.arange(window.top, window.top + window.height)
    columns = np.arange(window.left, window.left + window.width)
    y, x = np.meshgrid(
        rows * (pattern.shared != "column"), columns * (pattern.shared != "row"), indexing="ij"
    )
    counter = np.empty((4, *y.shape), np.uint64)
    counter[0] = y << 16 | x // sharing
    counter[1] = group
    counter[2] = frame_index & 0xFFFFFFFF
    counter[3] = frame_index >> 32
    own = x % sharing * n_words + np.arange(n_words)[:, None, None]
    words = np.take_along_axis(philox4x32_10(counter, seed), own, axis=0)
    places = np.broadcast_to(np.arange(n)[:, None, None], (n, *y.shape)).copy()
    for k in range(n - 1):
        product = words[k // 4] * np.uint64(n - k)
        words[k // 4] = product & _LOW
        other = k + (product >> _HALF).astype(np.intp)[None]
        chosen = np.take_along_axis(places, other, axis=0)
        np.put_along_axis(places, other, places[k : k + 1], axis=0)
        places[k] = chosen[0]
    return places


def kept(
    pattern: SamplingPattern,
    window: Window,
    sample: int,
    seed: int,
    frame_index: int,
    n_threads: int = 0,
) -> UInt8Array:
    """(height, width) of the window in cells: the place in each cell that draw `sample` keeps."""
    group, element = divmod(sample, pattern.group_size)
    places = permutations(pattern, window, group, seed, frame_index)
    result: UInt8Array = places[element].astype(np.uint8)
    return result


def standardise(pixels: AnyArray, mean: float, scale: float) -> FloatArray:
    """(pixels - mean) / scale as float32.

    The arithmetic is float32 where float32 holds every value of the pixels' type, else float64.
    """
    work = np.result_type(pixels.dtype, np.float32).type
    result: FloatArray = ((pixels.astype(work) - work(mean)) * work(1.0 / scale)).astype(np.float32)
    return result


def draw(
    frame: AnyArray,
    pattern: SamplingPattern,
    window: Window,
    first_sample: int,
    mean: float,
    scale: float,
    seed: int,
    frame_index: int,
    out: FloatArray,
    n_threads: int = 0,
) -> None:
    """Fill out (M, height, width) with standardised draws, each in its orientation."""
    cell_y = np.arange(window.top, window.top + window.height)[:, None]
    cell_x = np.arange(window.left, window.left + window.width)[None, :]
    for m in range(len(out)):
        sample = first_sample + m
        place = kept(pattern, window, sample, seed, frame_index).astype(np.intp)
        y = _mirror(cell_y * pattern.stride_y + place // pattern.stride_x, frame.shape[0])
        x = _mirror(cell_x * pattern.stride_x + place % pattern.stride_x, frame.shape[1])
        out[m][ORIENTATIONS[sample % 4]] = standardise(frame[y, x], mean, scale)


def _mirror(index: AnyArray, size: int) -> AnyArray:
    """Indices beyond the end mirrored back, the edge not repeated."""
    return np.where(index < size, index, 2 * (size - 1) - index)


def merge(
    outputs: FloatArray,
    first_sample: int,
    top: int,
    left: int,
    offset: float,
    scale: float,
    mean: FloatArray,
    std: FloatArray | None,
    n_threads: int = 0,
) -> None:
    """Fill mean and std (h, w) from outputs (M, H, W), turned back and cropped at (top, left).

    Sums run over the draws in order, in float32, and are multiplied by 1 / M
    for the mean and 1 / (M - 1) for the variance; std is zero for M = 1.
    Both become counts in float64: mean * scale + offset, std * scale.
    """
    crop = slice(top, top + mean.shape[0]), slice(left, left + mean.shape[1])
    turned = [
        output[ORIENTATIONS[(first_sample + m) % 4]][crop] for m, output in enumerate(outputs)
    ]
    average = np.zeros(mean.shape, np.float32)
    for values in turned:
        average += values
    average *= np.float32(1.0 / len(turned))
    mean[...] = average.astype(np.float64) * scale + offset
    if std is None:
        return
    variance = np.zeros(mean.shape, np.float32)
    for values in turned:
        deviation = values - average
        variance += deviation * deviation
    variance *= np.float32(1.0 / max(len(turned) - 1, 1))
    std[...] = np.sqrt(variance).astype(np.float64) * scale


def sums(frame: AnyArray, n_threads: int = 0) -> tuple[int, int]:
    """The sum of all pixels and of their squares, exactly, of uint8, uint16 or int16 (H, W)."""
    total = squares = 0
    for row in frame:
        wide = row.astype(np.int64)
        total += int(wide.sum())
        squares += int(np.square(wide).sum())
    return total, squares
