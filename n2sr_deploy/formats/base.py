"""What a file format gives n2sr, and what formats share."""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from n2sr_deploy.errors import (
    FileFormatError,
    FrameError,
    MissingExtraError,
    N2SRError,
    NotChosenError,
)
from n2sr_deploy.frame import Frame, FrameInfo
from n2sr_deploy.words import about

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from n2sr_deploy.pattern import Shape
    from n2sr_deploy.sampling import AnyArray

    Closing = Callable[[], object]
    ByFrame = Mapping[str, Sequence[float | str | None]]

MAX_PIXELS = 2**30
"""Of one frame, 32768 x 32768; a larger one is a lying header."""

# What libraries raise where a part of a file cannot be read that may as well be missing.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

# What else goes by a microscope's extension, by its first bytes.
_OTHERS = {b"\xff\xd8\xff": "a JPEG image", b"\x89PNG": "a PNG image"}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis along which the frames of a file follow one another: time, tilt, depth."""

    name: str
    size: int
    """How many frames lie along it."""
    scale: float = 1.0
    """From one frame to the next, in `unit`."""
    offset: float = 0.0
    """Of the first frame, in `unit`."""
    unit: str | None = None


def n_places(axes: tuple[Axis, ...]) -> int:
    """How many frames lie along the axes; one along none."""
    return math.prod(axis.size for axis in axes)


class FrameFile:
    """An opened file of one frame or many, read one at a time.

    A context manager; `len` tells the frames.

    Parameters
    ----------
    path
        The file.
    shape, dtype
        (H, W) of a frame, and the type its pixels have in the file.
    pixels
        Reads the pixels (H, W) of frame `index`.
    axes
        Along which the frames lie, the slowest first; none for a single image.
    info
        What is known of all frames.
    info_of
        What is known of frame `index` only, in place of `info`.
    by_frame
        What of the acquisition differs from frame to frame: a value a frame, None where it has
        none.
    signal, signals
        Which of the file's signals this is, and all that are images.
    closing
        What closes it.

    Raises
    ------
    FileFormatError
        When the shape makes no sense.
    """

    def __init__(
        self,
        path: Path,
        *,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        pixels: Callable[[int], AnyArray],
        axes: tuple[Axis, ...] = (),
        info: FrameInfo | None = None,
        info_of: Callable[[int], FrameInfo] | None = None,
        by_frame: ByFrame | None = None,
        signal: str | None = None,
        signals: tuple[str, ...] = (),
        closing: Closing | None = None,
    ) -> None:
        height, width = (int(n) for n in shape)
        if height * width > MAX_PIXELS:
            raise FileFormatError(
                f"{path} says its frames are {height} x {width} pixels, but n2sr takes at most "
                f"{MAX_PIXELS} pixels; if that is true, save a part of it"
            )
        self.path = path
        self.shape: Shape = height, width
        self.dtype = np.dtype(dtype)
        self.axes = axes
        self.info = info or FrameInfo()
        self.signal = signal
        self.signals = signals
        self._pixels = pixels
        self._info_of = info_of
        self._by_frame = by_frame or {}
        self._closing = ExitStack()
        if closing is not None:
            self._closing.callback(closing)

    def __len__(self) -> int:
        return n_places(self.axes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return (self.read(index) for index in range(len(self)))

    def close(self) -> None:
        """Close the file."""
        self._closing.close()

    def read(self, index: int | None = None) -> Frame:
        """Read one frame, without the others.

        Parameters
        ----------
        index
            From 0, along the last of `axes` fastest; None: the only one.

        Raises
        ------
        FileFormatError
            When there is no such frame, several and none was chosen, or it is damaged.
        FrameError
            When it is not one real-valued, finite image.
        """
        index = choose(self.path, len(self), index)
        with naming(self.path, index, len(self)):
            try:
                pixels = self._pixels(index)
                info = self._info(index)
                return Frame(pixels=pixels, index=index, n_frames=len(self), **vars(info))
            except Exception as error:  # libraries raise whatever on damaged files
                raise damaged(self.path, error) from error

    def acquisitions(self) -> Iterator[Mapping[str, float | str]]:
        """Each frame's acquisition, without its pixels."""
        try:
            for index in range(len(self)):
                yield self._info(index).acquisition
        except Exception as error:  # libraries raise whatever on damaged files
            raise damaged(self.path, error) from error

    def _info(self, index: int) -> FrameInfo:
        info = self.info if self._info_of is None else self._info_of(index)
        if not self._by_frame:
            return info
        own = {name: values[index] for name, values in self._by_frame.items()}
        told = {name: value for name, value in own.items() if value is not None}
        shared = {name: value for name, value in info.acquisition.items() if name not in own}
        return replace(info, acquisition=shared | told)


@dataclass(frozen=True, kw_only=True)
class Output:
    """Frames on their way into a file."""

    info: FrameInfo
    """What is known of all of them."""
    axes: tuple[Axis, ...]
    """Along which they lie; none for a single image."""
    shape: Shape
    dtype: np.dtype[Any]
    pixels: Iterator[AnyArray]
    """(H, W) each, of `dtype`; to be taken once."""
    by_frame: ByFrame = field(default_factory=dict)
    """What of the acquisition differs from frame to frame: a value a frame, None where it has
    none."""
    tells: bool = True
    """Whether to warn of what the format cannot keep."""

    @property
    def n_frames(self) -> int:
        """How many they are."""
        return n_places(self.axes)

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Of all in one array: the axes' sizes, H, W."""
        return *(axis.size for axis in self.axes), *self.shape


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format."""

    name: str
    """As in a sentence: ``TIFF``."""
    extensions: tuple[str, ...]
    """Lower case, with the dot; the first is the usual one."""
    recognises: Callable[[Path, bytes], bool]
    """Tells from a file's first 512 bytes whether it is of this format."""
    open: Callable[[Path, str | None], FrameFile]
    """Opens a file that exists, at the signal of a name (None: the only one)."""
    write: Callable[[Path, Output], None] | None = None
    """Writes frames to a path that may be overwritten; None: n2sr cannot."""
    ambiguous: tuple[str, ...] = ()
    """Those of the extensions that files of many other programs have as well."""
    types: tuple[str, ...] = field(default=())
    """Of pixels that it can hold; others become float32. None named: all."""


def required(module: str, purpose: str, package: str, extra: str) -> Any:
    """Import an optional library, or tell how to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(purpose, package, extra) from error


@contextmanager
def naming(path: Path | str, index: int, n_frames: int) -> Iterator[None]:
    """Tell which file, and which of its frames, a FrameError of the block is about."""
    which = f"{path}, frame {index} of {n_frames}" if n_frames > 1 else str(path)
    try:
        yield
    except FrameError as error:
        raise type(error)(about(which, str(error))) from error


def damaged(path: Path, error: Exception) -> N2SRError:
    """What a library's error about a file becomes; n2sr's own are raised as they are."""
    if isinstance(error, N2SRError):
        raise error  # returned, it would be raised from itself
    if isinstance(error, MemoryError):
        return FileFormatError(f"{path} needs more memory than there is, or its header lies")
    if "imagecodecs" in str(error):
        return FileFormatError(
            f"{path} is compressed in a way that needs another package; "
            "pip install imagecodecs, or save it uncompressed"
        )
    return FileFormatError(
        f"{path} is truncated, damaged or not what it seems; copy it again, or save it again where "
        f"it was made. Reading it ended with: {error or type(error).__name__}"
    )


def misnamed(path: Path, name: str) -> FileFormatError:
    """When only a file's extension is that of the format of this name."""
    with path.open("rb") as file:
        head = file.read(4)
    is_other = next((other for magic, other in _OTHERS.items() if head.startswith(magic)), None)
    if is_other is not None:
        return FileFormatError(
            f"{path} is {is_other}, whatever its name says, not {name}; take the file that the "
            "microscope wrote"
        )
    return FileFormatError(
        f"{path} is named as {name} is, but holds something else, or is damaged at its beginning; "
        "name it by what it is, or save it again where it was made"
    )


def choose(path: Path, n_frames: int, index: int | None, *, or_else: str = "") -> int:
    """Check `index` against the number of frames; None means the only one.

    `or_else`: what can be done instead of choosing one, to be told.

    Raises
    ------
    NotChosenError
        When there are several frames and none was chosen.
    FileFormatError
        When there is no such frame.
    """
    if n_frames <= 0:
        raise FileFormatError(f"{path} holds no frame")
    if index is None and n_frames > 1:
        raise NotChosenError(
            f"{path} holds {n_frames} frames, but n2sr takes one",
            f"Choose it with index=0 to index={n_frames - 1}{or_else}",
        )
    if index is not None and not 0 <= index < n_frames:
        raise FileFormatError(f"{path} has no frame {index}; it holds {n_frames}, counted from 0")
    return index or 0


def choose_signal(path: Path, signals: Sequence[str], signal: str | None) -> str:
    """The signal of that name, or of that number: ``1`` is ``image 1``; None means the only one.

    Raises
    ------
    NotChosenError
        When there are several and none was chosen.
    FileFormatError
        When there is none of that name.
    """
    listed = ", ".join(map(repr, signals))
    if not signals:
        raise FileFormatError(f"{path} holds no image")
    if signal is None:
        if len(signals) > 1:
            raise NotChosenError(
                f"{path} holds {len(signals)} signals, but n2sr takes one",
                f"Choose it with --signal: {listed}",
            )
        return signals[0]
    if signal not in signals:
        numbered = [name for name in signals if name.endswith(f" {signal}")]
        if signal.isdecimal() and len(numbered) == 1:
            return numbered[0]
        raise FileFormatError(f"{path} has no signal {signal!r}; it holds {listed}")
    return signal


def distinct(names: Sequence[str]) -> list[str]:
    """The names, the second of a kind as ``name (2)``."""
    found: list[str] = []
    for name in names:
        number, unused = 1, name
        while unused in found:
            number += 1
            unused = f"{name} ({number})"
        found.append(unused)
    return found


def only_signal(path: Path, signal: str | None) -> None:
    """Refuse a signal's name for a file that holds only one, without a name."""
    if signal is not None:
        raise FileFormatError(
            f"{path} has no signals to choose from, so leave out --signal {signal}"
        )


def whole_image(path: Path, shape: Sequence[int]) -> None:
    """Raise FrameError unless an array of this shape is an image or a stack of images."""
    if len(shape) < 2:
        raise FrameError(
            f"{path} holds an array of shape {tuple(shape)}, but n2sr takes an image (H, W) or a "
            "stack of images"
        )
    if 0 in shape:
        raise FrameError(f"{path} is empty: it holds an array of shape {tuple(shape)}")
