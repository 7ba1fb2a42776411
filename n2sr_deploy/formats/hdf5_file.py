"""An HDF5 file opened with distrust: its links, compression and sizes are looked at first."""

from __future__ import annotations

import contextlib
import math
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from n2sr_deploy.errors import FileFormatError, FrameError, installing
from n2sr_deploy.formats.base import (
    DAMAGE,
    MAX_PIXELS,
    required,
    whole_image,
)
from n2sr_deploy.formats.hdf5_nodes import (
    CACHE,
    attributes,
    is_dataset,
    is_group,
    is_numeric,
    n_bytes,
    small,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


MAGIC = b"\x89HDF\r\n\x1a\n"
_MOST_PACKED = 5000  # to one; deflate reaches 1032
_MOST_LINKS, _MOST_OBJECTS, _DEEPEST = 16, 5000, 32
_MOST_OPENED = 64  # files of a virtual dataset, to be looked into
_MOST_GAPS = 4  # pixels of an image to each that is stored; detectors of many chips have gaps
_MOST_LOOKED_AT = 500  # to tell the format
_HEAP = b"GCOL\x01\0\0\0"
_LOOKED_INTO = 2**19  # bytes; heaps of texts lie at the beginning as a rule
_TOO_FAR = "links to a file outside its folder, which n2sr does not follow"


def kind(path: Path, head: bytes) -> str | None:
    """Which format of an HDF5 file: ``emd``, ``hspy`` or ``hdf5``; None when it is no HDF5.

    The structure tells; the extension where it cannot be looked at.
    """
    if not head.startswith(MAGIC):
        return None
    try:
        with Hdf5File(path) as opened:
            return _kind(opened)
    except (*DAMAGE, FileFormatError, ImportError):
        return {".emd": "emd", ".hspy": "hspy"}.get(path.suffix.lower(), "hdf5")


def _kind(opened: Hdf5File) -> str:
    root = attributes(opened.root)
    if root.get("file_format") == "HyperSpy":
        return "hspy"
    if "version_major" in root or opened.at("Data/Image") is not None:
        return "emd"
    for _, node in opened.walk(deepest=4, most=_MOST_LOOKED_AT):
        if is_group(node) and "emd_group_type" in node.attrs:
            return "emd"
        if is_group(node) and {"data", "axis-0"} <= set(node):
            return "hspy"  # of a version that did not say so
    return "hdf5"


@contextlib.contextmanager
def created(path: Path, purpose: str) -> Iterator[Any]:
    """Give a new HDF5 file; a full disk is an OSError also where h5py tells it otherwise."""
    file = required("h5py", purpose, "h5py", "formats").File(path, "w")
    try:
        yield file
    except BaseException:
        with contextlib.suppress(RuntimeError, OSError):
            file.close()
        raise
    try:
        file.close()
    except RuntimeError as error:
        raise OSError(str(error)) from error


class Hdf5File:
    """An HDF5 file opened to be read: its nodes by paths and one after another.

    Links are followed by hand, so that none leads out of the file's folder, and none in circles.

    Raises
    ------
    FileFormatError, OSError
        When it is truncated, damaged or no HDF5 file.
    MissingExtraError
        When h5py is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.resolve()  # what it names lies beside the file, not beside a link to it
        self._h5py = required("h5py", "reading HDF5 files", "h5py", "formats")
        with contextlib.suppress(ImportError):
            import_module("hdf5plugin")  # registers bitshuffle, blosc, zstd and others
        self._stack = ExitStack()
        try:
            _check_heaps(path)
            self.root = self._opened(self._file)
        except DAMAGE:
            self.close()
            raise

    def __enter__(self) -> Hdf5File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it, and the files it linked to."""
        self._stack.close()

    def at(self, path: str) -> Any:
        """The group or dataset there, or None."""
        return self._at(self.root, path, 0)

    def members(self, group: Any) -> Iterator[tuple[str, Any]]:
        """Of a group, all that can be opened."""
        for name in sorted(group):
            try:
                node = self._member(group, name, 0)
            except (*DAMAGE, FileFormatError):
                continue
            if is_group(node) or is_dataset(node):
                yield name, node

    def walk(
        self, *, deepest: int = _DEEPEST, most: int | None = None
    ) -> Iterator[tuple[str, Any]]:
        """Each group and dataset once, the least deep first, with its path."""
        seen = {_identity(self.root)}
        level = [("", self.root)]
        for _ in range(deepest):
            below: list[tuple[str, Any]] = []
            for path, group in level:
                for name, node in self.members(group):
                    identity = _identity(node)
                    if identity in seen:
                        continue
                    seen.add(identity)
                    if len(seen) > (most or _MOST_OBJECTS):
                        return
                    yield f"{path}/{name}", node
                    if is_group(node):
                        below.append((f"{path}/{name}", node))
            level = below

    def values(self, group: Any, deepest: int = _DEEPEST) -> dict[str, Any]:
        """Attributes and small datasets of a group and those in it, as JSON can keep them."""
        return self._values(group, {_identity(group)}, deepest)

    def _values(self, group: Any, seen: set[Any], deepest: int) -> dict[str, Any]:
        found = attributes(group)
        for name, node in self.members(group):
            identity = _identity(node)
            if identity in seen or len(seen) > _MOST_OBJECTS:
                continue
            seen.add(identity)
            if is_dataset(node):
                value = small(node)
                if value is not None:
                    found[name] = value
            elif deepest:
                inner = self._values(node, seen, deepest - 1)
                if inner:
                    found[name] = inner
        return found

    def _opened(self, path: Path) -> Any:
        file = self._stack.enter_context(self._h5py.File(path, "r", rdcc_nbytes=CACHE))
        return file["/"]

    def _at(self, start: Any, path: str, n_links: int) -> Any:
        node = start.file["/"] if path.startswith("/") else start
        for name in filter(None, path.split("/")):
            if not is_group(node) or node.get(name, getlink=True) is None:
                return None
            node = self._member(node, name, n_links)
        return node

    def _member(self, group: Any, name: str, n_links: int) -> Any:
        if name == ".":
            return group
        link = group.get(name, getlink=True)
        if isinstance(link, self._h5py.HardLink):
            return group[name]
        if n_links == _MOST_LINKS:
            raise FileFormatError(f"{self.path} has links that lead in circles, at {name!r}")
        if isinstance(link, self._h5py.SoftLink):
            return self._at(group, link.path, n_links + 1)
        other = self._linked(Path(group.file.filename), link.filename)
        try:
            root = self._opened(other)
        except OSError as error:
            raise FileFormatError(
                f"{self.path} links to {other}, which cannot be opened: {error}"
            ) from error
        return self._at(root, link.path, n_links + 1)

    def _linked(self, source: Path, name: str) -> Path:
        """A file that another names; it must lie in the folder of the opened file."""
        other = (source.parent / name).resolve()
        if not other.is_relative_to(self._file.parent):
            raise FileFormatError(f"{self.path} {_TOO_FAR}: {name}")
        if not other.is_file():
            raise FileFormatError(
                f"{self.path} keeps its pixels in {name}, which is not beside it; put it there"
            )
        return other

    def check(self, dataset: Any, name: str, shape: Sequence[int]) -> None:
        """Raise unless the dataset holds frames of this shape, and their pixels are there.

        Raises
        ------
        FileFormatError
            When they are in files that are missing, compressed by what is not installed, or
            fewer than the shape says.
        FrameError
            When it is no image.
        """
        if not is_numeric(dataset):
            raise FrameError(f"{self.path} holds no numbers at {name}, but {dataset.dtype}")
        whole_image(self.path, dataset.shape)
        if dataset.is_virtual:
            self._check_virtual(dataset, name, 0)
            return
        if dataset.external:
            raise FileFormatError(
                f"{self.path} keeps the pixels of {name} in raw files, which n2sr does not read; "
                "save it as one HDF5 file"
            )
        self._check_filters(dataset, name)
        if int(shape[0]) * int(shape[1]) <= MAX_PIXELS:  # else told by FrameFile
            self._check_size(dataset, name, shape)

    def _check_filters(self, dataset: Any, name: str) -> None:
        plist = dataset.id.get_create_plist()
        for i in range(plist.get_nfilters()):
            code, _, _, described = plist.get_filter(i)
            if not self._h5py.h5z.filter_avail(code):
                raise FileFormatError(
                    f"{self.path} is compressed at {name} by filter {code} "
                    f"({described.decode('ascii', 'replace').strip() or 'unnamed'}), which needs "
                    f"another package; {installing('formats')}, or save it uncompressed"
                )

    def _check_virtual(self, dataset: Any, name: str, n_links: int) -> None:
        """All that a virtual dataset is made of lies here."""
        if n_links == _MOST_LINKS:
            raise FileFormatError(f"{self.path} has links that lead in circles, at {name}")
        n_pixels = 0
        for i, source in enumerate(dataset.virtual_sources()):
            root = dataset.file["/"]
            if source.file_name != ".":
                file_name = source.file_name.replace("%b", "0")
                other = self._linked(Path(dataset.file.filename), file_name)
                if i >= _MOST_OPENED:
                    continue
                root = self._opened(other)
            part = self._at(root, source.dset_name.replace("%b", "0"), 0)
            if not is_numeric(part):
                raise FileFormatError(
                    f"{self.path} keeps the pixels of {name} in {source.file_name} at "
                    f"{source.dset_name}, which is not there"
                )
            n_pixels += math.prod(part.shape)
            if part.is_virtual:
                self._check_virtual(part, name, n_links + 1)
            else:
                self._check_filters(part, name)
                self._check_size(part, name, part.shape[-2:])
        if n_pixels * _MOST_GAPS < math.prod(dataset.shape[-2:]):
            raise too_little(self.path, dataset, name, n_pixels * dataset.dtype.itemsize)

    def _check_size(self, dataset: Any, name: str, shape: Sequence[int]) -> None:
        stored = dataset.id.get_storage_size()
        if dataset.chunks is not None:
            n_chunks = dataset.id.get_num_chunks()
            is_whole = could_hold(shape, dataset, stored, n_chunks)
        else:
            is_whole = stored >= n_bytes(dataset.shape, dataset.dtype)
        if not is_whole or stored > Path(dataset.file.filename).stat().st_size:
            raise too_little(self.path, dataset, name, stored)


def _check_heaps(path: Path) -> None:
    """Refuse heaps of texts whose free space has no size: libhdf5 2.0 walks them for ever."""
    with path.open("rb") as file:
        head = file.read(_LOOKED_INTO)
    at = head.find(_HEAP)
    while at >= 0:
        size = int.from_bytes(head[at + 8 : at + 16], "little")
        place, end = at + 16, min(at + size, len(head))
        while place + 16 <= end:
            n = int.from_bytes(head[place + 8 : place + 16], "little")
            if head[place : place + 2] != b"\0\0":  # not free: a header, and whole words
                n = 16 + (n + 7) // 8 * 8
            if n == 0:
                raise FileFormatError(f"{path} is damaged: its texts cannot be found")
            place += n
        at = head.find(_HEAP, at + 1)


def could_hold(shape: Sequence[int], dataset: Any, stored: int, n_chunks: int) -> bool:
    """Whether so many stored bytes, in so many chunks, can be a frame of this shape.

    Told before anything is unpacked: a small file may say that it holds gigabytes.
    """
    chunk = n_bytes(dataset.chunks, dataset.dtype)
    frame = n_bytes(shape, dataset.dtype)
    return frame <= n_chunks * chunk and max(frame, chunk) <= stored * _MOST_PACKED


def too_little(path: Path, dataset: Any, name: str, stored: int) -> FileFormatError:
    """When fewer bytes are stored than a dataset says."""
    return FileFormatError(
        f"{path} is truncated or damaged: {name} has shape {tuple(dataset.shape)} "
        f"({dataset.dtype}), but {stored} bytes are stored for it"
    )


def _identity(node: Any) -> Any:
    """Equal for two paths to one object."""
    info = import_module("h5py").h5o.get_info(node.id)
    return info.fileno, info.addr
