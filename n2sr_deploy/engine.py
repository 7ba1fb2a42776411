"""Engines: what a GPU library compiled of a model for this machine, kept in the user's cache.

An engine file (a plan) is a program: only files that this user alone may write are loaded, and
only if everything the plan depends on is as it was. Beside `NAME.plan` lies `NAME.json`, which
tells all that; nothing is prefixed to the plan itself. `NAME.kernels` is what the library compiled
of the plan when it first ran; without it, it only starts more slowly.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from n2sr_deploy import files
from n2sr_deploy.errors import MissingExtraError, ModelError, OutputError
from n2sr_deploy.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_log = logging.getLogger("n2sr")
FORMAT_VERSION = 1
_DIGEST_BYTES = hashlib.sha256().digest_size
EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
"""Of n2sr, by the library that they install."""
LOCK_TIMEOUT_S = 1800.0  # of a build in another process


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """Everything an engine depends on: another value of any of it is another engine."""

    onnx_sha256: str
    """Of the ONNX file with its weights."""
    library: str
    """``tensorrt`` or ``tensorrt_rtx``."""
    library_version: str
    """All of it, like ``10.13.3.9``."""
    gpu: str
    """The name of the GPU."""
    capability: str
    """Its compute capability, like ``9.0``."""
    driver: str
    """The version of the NVIDIA driver."""
    precision: str
    """``fp32`` or ``fp16``; the model's."""
    shape: tuple[int, int, int, int]
    """Of the input, (M, 1, H / stride_y, W / stride_x)."""
    options: str
    """How it is built: the builder's settings in words."""

    @property
    def name(self) -> str:
        """Of its files: the shape to read, and a hash of everything."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        shape = "x".join(map(str, self.shape))
        return f"{self.library}-{shape}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def engine_folder() -> Path:
    """Where engines are kept."""
    return files.cache_folder() / "engines"


def path_of(key: EngineKey) -> Path:
    """Of its plan, whether it is there or not."""
    return engine_folder() / f"{key.name}.plan"


def keep(key: EngineKey, plan: bytes, props: Mapping[str, str]) -> Path:
    """Write an engine and what is known of it, whole or not at all; kernels of an older one go.

    Where it cannot be written, an older engine stays as it was.

    Parameters
    ----------
    key
        What it depends on.
    plan
        What the library built.
    props
        The ``metadata_props`` of the ONNX file.

    Returns
    -------
    The plan's path.

    Raises
    ------
    OutputError
        When the folder cannot be written to, is full, or is open to other users.
    """
    folder = _own_folder()
    path = folder / f"{key.name}.plan"
    told = {
        "n2sr_engine": FORMAT_VERSION,
        "n2sr_version": VERSION,
        "key": dataclasses.asdict(key),
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "model": dict(props),
    }
    described = json.dumps(told, indent=1).encode()
    with _writing(path.with_suffix(".json"), described), _writing(path, plan), _told():
        path.with_suffix(".kernels").unlink(missing_ok=True)  # what is left to do needs no room
    return path


def check_room(n_bytes: int) -> None:
    """Raise OutputError when there is less room for an engine, or hardly more."""
    folder = _own_folder()
    with _told():
        files.check_room(folder, n_bytes)


def keep_kernels(key: EngineKey, kernels: bytes) -> None:
    """Write what the library compiled while it ran an engine, whole or not at all.

    Raises
    ------
    OutputError
        As `keep` does.
    """
    path = _own_folder() / f"{key.name}.kernels"
    with _writing(path, hashlib.sha256(kernels).digest() + kernels):
        pass


def find_kernels(key: EngineKey) -> bytes | None:
    """What `keep_kernels` kept; None where there is none, or it is damaged or not to be trusted."""
    path = path_of(key).with_suffix(".kernels")
    try:
        _check_owner(path.parent)
        content = _trusted(path)
    except FileNotFoundError:
        return None
    except (OSError, ModelError) as error:
        _log.warning("kernels that were compiled before are not used: %s", error)
        return None
    digest, kernels = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if digest != hashlib.sha256(kernels).digest():
        _log.warning("%s is damaged: its kernels are compiled again", path)
        return None
    return kernels


def find(key: EngineKey) -> bytes | None:
    """The plan that was built for exactly this, or None where there is none, or a damaged one.

    Raises
    ------
    ModelError
        When there is one that cannot be trusted, since others may have written it.
    """
    path = path_of(key)
    try:
        _check_owner(path.parent)
        plan, described = _trusted(path), _trusted(path.with_suffix(".json"))
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("engine %s cannot be read (%s): it is not used", path, error.strerror or error)
        return None
    told = _parsed(described)
    if told is None or told.get("plan_sha256") != hashlib.sha256(plan).hexdigest():
        _log.warning("engine %s is damaged, or of another version of n2sr: it is not used", path)
        return None
    is_the_same = told["key"] == json.loads(json.dumps(dataclasses.asdict(key)))
    return plan if is_the_same else None


def why_not(key: EngineKey) -> str:
    """Why `find` finds nothing: the engine that comes nearest, in a sentence; or an empty string.

    A model's engine for the same input, made for another GPU, driver or version.
    """
    for path in sorted(engine_folder().glob("*.json")):
        told = _read(path)
        if told is None or told["key"].get("onnx_sha256") != key.onnx_sha256:
            continue
        other = told["key"]
        if other.get("shape") != list(key.shape) or other.get("library") != key.library:
            continue
        here = dataclasses.asdict(key)
        different = [name for name in here if name != "shape" and other.get(name) != here[name]]
        then = ", ".join(f"{name.replace('_', ' ')} {other.get(name)}" for name in different)
        now = ", ".join(f"{here[name]}" for name in different)
        return f"{path.stem} was built for {then}; this is {now}. "
    return ""


@contextmanager
def building(key: EngineKey) -> Iterator[None]:
    """Hold the lock of an engine while it is built: another process waits, and then finds it.

    Raises
    ------
    MissingExtraError
        When the library for locks is not installed.
    OutputError
        When the folder cannot be written to, or another process builds for too long.
    """
    try:
        from filelock import FileLock, Timeout
    except ModuleNotFoundError as error:
        raise MissingExtraError("building an engine", "filelock", EXTRAS[key.library]) from error
    path = _own_folder() / f"{key.name}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout as error:
        raise OutputError(
            f"another process has been building this engine for {LOCK_TIMEOUT_S / 60:.0f} minutes; "
            f"if there is none, delete {path}"
        ) from error
    except OSError as error:
        raise OutputError(_unwritable(error)) from error
    try:
        yield
    finally:
        lock.release()


def option_of(library: str) -> str:
    """``tensorrt_rtx`` as users write it: ``tensorrt-rtx``."""
    return library.replace("_", "-")


@contextmanager
def _writing(path: Path, content: bytes) -> Iterator[None]:
    """Write a temporary file, and rename it when the block succeeds."""
    files.remove_leftovers(path)
    with files.replacing(path, overwrite=True) as temporary:
        with _told():
            temporary.touch(mode=0o600)
            temporary.write_bytes(content)
        yield


@contextmanager
def _told() -> Iterator[None]:
    """What the system refuses, as OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(_unwritable(error)) from error


def _own_folder() -> Path:
    folder = engine_folder()
    try:
        with _told():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _check_owner(folder)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except ModelError as error:
        raise OutputError(str(error)) from error
    return folder


def _unwritable(error: OSError) -> str:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return (
        f"engines cannot be kept in {engine_folder()} ({error.strerror or error}); "
        f"{'free some space there' if is_full else 'make it writable'}, or name another folder "
        "with N2SR_CACHE_DIR"
    )


def _trusted(path: Path) -> bytes:
    """What a file holds that this user alone may write; ModelError of another.

    The file that is checked is the one that is read, whatever is put in its place meanwhile.
    """
    with path.open("rb") as file:
        _check_owner(path, file.fileno())
        return file.read()


def _check_owner(path: Path, opened: int | None = None) -> None:
    """Raise ModelError when users other than this one may write what is at `path`, or is open."""
    if os.name != "posix":
        return  # the user's cache folder on Windows is closed to others by inheritance
    found = path.stat() if opened is None else os.fstat(opened)
    if found.st_uid != os.getuid():
        raise ModelError(
            f"{path} belongs to another user, so it is not trusted: an engine is a program; "
            "name a folder of your own with N2SR_CACHE_DIR"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ModelError(
            f"{path} can be written by other users, so it is not trusted: an engine is a program; "
            f"close it with: chmod go-w '{path}'"
        )


def _read(path: Path) -> dict[str, Any] | None:
    """What is told of an engine in a file; None where that cannot be read, or as `_parsed`."""
    try:
        return _parsed(path.read_bytes())
    except OSError as error:
        _log.debug("%s cannot be read: %s", path, error)
        return None


def _parsed(described: bytes) -> dict[str, Any] | None:
    """What is told of an engine; None where that is damaged or of another version of n2sr."""
    try:
        told = json.loads(described)
    except ValueError as error:
        _log.debug("what is told of an engine cannot be read: %s", error)
        return None
    if not isinstance(told, dict) or told.get("n2sr_engine") != FORMAT_VERSION:
        return None
    return told if isinstance(told.get("key"), dict) else None
