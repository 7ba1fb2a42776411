"""Writing results: whole or not at all, and never over what is there."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import uuid
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from n2sr_deploy.errors import InputFileError, N2SRError, OutputError, OutputExistsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_log = logging.getLogger("n2sr")

_MARK, _NODE, _PID = 12, 6, 8  # hexadecimal digits in the name of a temporary file
_ASIDE = "-old"  # after the name of a temporary folder: the store that it replaces
_MARGIN = 2**24  # bytes, for what a format keeps beside the pixels, and a library until it closes
_STORES = (".zgroup", "zarr.json")  # what zarr puts into its folders


def cache_folder() -> Path:
    """Of this user: what n2sr can make again. N2SR_CACHE_DIR moves it."""
    return Path(os.environ.get("N2SR_CACHE_DIR") or platformdirs.user_cache_path("n2sr"))


def is_folder_store(path: Path) -> bool:
    """Whether this is a folder that zarr keeps arrays in, which counts as one file."""
    return path.is_dir() and any((path / name).is_file() for name in _STORES)


def size_and_mtime(path: Path) -> tuple[int, int]:
    """Bytes, and when it was last changed (ns); of a folder that zarr keeps, of all in it.

    Raises
    ------
    OSError
        When it is not there.
    """
    stats = [path.stat(), *(inner.stat() for inner in path.rglob("*") if inner.is_file())]
    sizes = [stat.st_size for stat in (stats[1:] if path.is_dir() else stats)]
    return sum(sizes), max(stat.st_mtime_ns for stat in stats)


def path_of(given: str | Path, refused: type[InputFileError | OutputError]) -> Path:
    """A path that a program gives; raise `refused` where it is none."""
    try:
        return Path(given)
    except TypeError as error:
        raise refused(f"path is {given!r:.100}, but must be a file's name or Path") from error


def check_input(path: Path, *, stores: bool = False) -> None:
    """Raise InputFileError when there is no readable file at `path`, nor, if allowed, a store."""
    check_name(path, InputFileError)
    if not path.exists():
        raise InputFileError(f"{path} does not exist; check the path")
    if path.is_dir() and not (stores and is_folder_store(path)):
        raise InputFileError(f"{path} is a folder; name a file in it")
    if not (path.is_dir() or path.is_file()):
        raise InputFileError(f"{path} is no regular file, but a pipe or device; name a file")
    try:
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if path.is_file():
            path.open("rb").close()  # which Windows refuses while another program writes it
    except OSError as error:
        raise InputFileError(
            f"{path} cannot be read: {why(error)}; check its permissions, and whether another "
            "program has it open"
        ) from error


def check_name(path: Path, refused: type[InputFileError | OutputError]) -> None:
    """Raise `refused` where the system cannot even look: a name too long, links in a circle."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # told by who asks
    except (OSError, ValueError) as error:  # the latter of names with a null byte
        raise refused(f"{path} cannot be used: {why(error)}; name another file") from error


def check_output(
    path: Path, *, overwrite: bool, inputs: Iterable[Path] = (), suffixes: Sequence[str] = ("",)
) -> None:
    """Raise OutputError when `path` cannot become a new file with such an end, or is an input.

    Called before the work as well as before the writing: a user should not wait for a
    training whose result cannot be kept.
    """
    check_name(path, OutputError)
    for given in inputs:
        check_name(given, InputFileError)
        if path.resolve() == given.resolve():
            raise OutputError(f"{path} is the input itself, which is never changed; name another")
    if path.is_dir() and not _may_be_a_store(path):
        raise OutputError(f"{path} is a folder; name a file in it")
    if (path.exists() or path.is_symlink()) and not overwrite:  # links that lead nowhere too
        raise _exists(path)
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; create it first")
    if not _takes_files(path.parent):
        raise OutputError(f"the folder {path.parent} cannot be written to; choose another")
    if not path.name.endswith(tuple(suffixes)):
        raise OutputError(
            f"{path} must end in {' or '.join(suffixes)}, or nobody will know what it is"
        )


def check_folder(folder: Path) -> None:
    """Raise OutputError when `folder` takes no files, or is missing and cannot be made."""
    check_name(folder, OutputError)
    ways = (folder, *folder.parents)
    there = next((way for way in ways if way.exists() or way.is_symlink()), folder)
    if not there.is_dir():
        raise OutputError(f"{there} is a file, but must be a folder to write into; name another")
    if not _takes_files(there):
        raise OutputError(f"the folder {there} cannot be written to; choose another")


def _takes_files(folder: Path) -> bool:
    if sys.platform == "win32":  # where os.access() knows nothing of permissions
        temporary = temporary_of(folder / "n2sr")
        try:
            temporary.touch(exist_ok=False)
            temporary.unlink()
        except OSError:
            return False
    return os.access(folder, os.W_OK | os.X_OK)


def _exists(path: Path) -> OutputExistsError:
    return OutputExistsError(f"{path} exists already; choose another name")


def _may_be_a_store(path: Path) -> bool:
    """Only what looks like one, inside and by name, is ever replaced."""
    return path.suffix.lower() == ".zspy" and is_folder_store(path)


def temporary_of(path: Path) -> Path:
    """Give a new name beside `path` that tells whose temporary file it is, and who writes it."""
    writer = f"{_mark(_here(), _NODE)}{os.getpid():0{_PID}x}"
    return path.with_name(f".n2sr-{mark_of(path)}{writer}{uuid.uuid4().hex[:_NODE]}{path.suffix}")


def mark_of(path: Path) -> str:
    """What stands after ``.n2sr-`` in the names of temporary files of `path`."""
    return _mark(path.name, _MARK)


def mark_in(name: str) -> str | None:
    """The mark in the name of a temporary file; None in that of another."""
    found = re.fullmatch(
        rf"\.n2sr-([0-9a-f]{{{_MARK}}})[0-9a-f]{{{_NODE + _PID + _NODE}}}(\..*)?", name
    )
    return found[1] if found else None


def _mark(name: str, n_digits: int) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:n_digits]


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of `path` that killed processes of this machine left.

    What another machine writes is not known here, nor, on Windows, which processes there are.
    """
    if os.name == "nt":
        return
    ours = re.escape(mark_of(path) + _mark(_here(), _NODE))
    ending = re.escape(path.suffix) + (f"({_ASIDE})?" if path.suffix.lower() == ".zspy" else "")
    left = []
    for temporary in path.parent.glob(".n2sr-*"):
        of_whom = re.fullmatch(
            rf"\.n2sr-{ours}([0-9a-f]{{{_PID}}})[0-9a-f]+{ending}", temporary.name
        )
        if of_whom is not None and not _is_running(int(of_whom[1], 16)):
            left.append(temporary)
    with suppress(OSError):  # another user's
        clear(path, left)


def clear(path: Path, left: Iterable[Path]) -> None:
    """Remove temporary files that were left of `path`; finish what a killed process was at.

    A store that was put aside lies beside the whole one that was to take its place: if neither has
    it, that one is given it.
    """
    left = list(left)
    for aside in left:
        if aside.name.endswith(_ASIDE) and not path.exists():
            whole = aside.with_name(aside.name.removesuffix(_ASIDE))
            (whole if whole.exists() else aside).rename(path)
    for temporary in left:
        remove(temporary)


@cache
def _here() -> str:
    """Where a process's number is one: this machine since it was started, and its container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # not on Linux
        return platform.node()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # which only asks
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` when the block succeeds.

    Whatever happens in the block, a file at `path` is either the old one or the whole new one,
    and no temporary file stays behind. The block may make a folder store instead of a file.

    Raises
    ------
    OutputError
        When `path` cannot become a new file, or the system refuses the writing (disk full).
    """
    check_output(path, overwrite=overwrite)
    temporary = temporary_of(path)
    try:
        yield temporary
        if temporary.is_dir() or path.is_dir():
            _replace_store(temporary, path, overwrite=overwrite)
        elif overwrite:
            temporary.replace(path)
        else:
            _rename_to_new(temporary, path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {path}: {why(error)}; no part of it is left") from error
    finally:
        remove(temporary)


def keep_elsewhere(save: Callable[[Path], None], output: Path, suffix: str) -> None:
    """Write what was learned beside `output`, or where temporary files go, and say where.

    For when it could not be used as it was meant to be. Where nothing can be written nothing is.
    """
    folders = [output.parent]
    with suppress(FileNotFoundError):  # where nothing can be written, there is none
        folders.append(Path(tempfile.gettempdir()))
    for folder in folders:
        path = folder / f"{output.stem}-{uuid.uuid4().hex[:8]}{suffix}"
        try:
            save(path)
        except (N2SRError, MemoryError):  # what made it necessary is told, not this
            continue
        _log.warning("what was learned is kept in %s", path)
        return


def why(error: OSError | ValueError) -> str:
    """What the system says, without Python's number and quotes."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        return os.strerror(errno.ENOSPC)  # NumPy only counts what found room
    return error.strerror or str(error)


def check_room(folder: Path, n_bytes: int) -> None:
    """Raise OSError when the disk has less, or hardly more."""
    if shutil.disk_usage(folder).free < n_bytes + _MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def claim(path: Path) -> None:
    """Claim the disk's room for all of a file that will be mapped into memory.

    Where it is missing later, the system ends the program. On Windows a file has it already.

    Raises
    ------
    OSError
        When there is not as much.
    """
    if os.name == "nt":
        return
    n_bytes = path.stat().st_size
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
    except AttributeError:  # macOS
        check_room(path.parent, n_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # the file system knows no such
            raise
        check_room(path.parent, n_bytes)


def _replace_store(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """A folder cannot be renamed over another, so the old one is put aside first."""
    if path.exists() and not overwrite:
        raise _exists(path)
    aside = temporary.with_name(temporary.name + _ASIDE)
    if path.exists():
        path.rename(aside)
    try:
        temporary.rename(path)
    except OSError:
        if aside.exists():
            aside.rename(path)
        raise
    remove(aside)


def remove(path: Path) -> None:
    """Remove a file, or a folder that zarr keeps."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Rename, unless another process has put a file there since."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError:  # a file system without hard links
        _replace_what_is_claimed(temporary, path)


def _replace_what_is_claimed(temporary: Path, path: Path) -> None:
    try:
        path.touch(exist_ok=False)
    except FileExistsError as error:
        raise _exists(path) from error
    try:
        temporary.replace(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
