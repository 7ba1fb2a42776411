"""Which files a batch takes, and where each result goes."""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from n2sr_deploy import files, formats
from n2sr_deploy.batch.manifest import Entry, std_of
from n2sr_deploy.errors import InputFileError, OutputError
from n2sr_deploy.formats.ser import emi_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from n2sr_deploy.denoise_options import DenoiseOptions


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file of a batch."""

    noisy: Path
    output: Path
    std: Path | None
    name: str
    """`output` within the batch's folder, with ``/``."""
    entry: Entry
    """What the manifest says when it begins."""
    is_there: bool
    """Whether any of its outputs was there when the batch was planned."""

    @property
    def outputs(self) -> list[Path]:
        """All that it writes."""
        return [self.output] if self.std is None else [self.output, self.std]


def settings_of(options: DenoiseOptions, *, std: bool) -> dict[str, Any]:
    """All that decides what comes out of a file; of models and checkpoints their content."""
    values = {**options.to_dict(), "std": std}
    if options.model is not None:
        files.check_input(Path(options.model))
        values["model"] = _sha256(Path(options.model))
    init = options.learn.init
    if init is not None and Path(init).is_file():
        values["learn"]["init"] = _sha256(Path(init))
    if values["learn"]["stride"] is not None:
        values["learn"]["stride"] = list(values["learn"]["stride"])  # as it comes back from JSON
    return values


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def planned(
    inputs: Sequence[str],
    folder: Path,
    settings: dict[str, Any],
    *,
    recursive: bool = False,
    extension: str | None = None,
    leave_out: Collection[str] = (),
) -> list[Job]:
    """The jobs of a batch, by the names of their outputs.

    Parameters
    ----------
    inputs
        Folders, of which all frame files are taken; files; and globs (``**`` goes deep). Pictures
        and notes (``.png``, ``.xml``, ``.img``) are taken only where they or their extension are
        named, an EMI only without its SER files, which hold its frames.
    folder
        Where results go. Below the folder that all inputs share, their structure is kept. A result
        has its input's name, and format where n2sr writes it; else ``.tif`` is added.
    settings
        What `settings_of` gave.
    recursive
        Whether folders in folders are looked into.
    extension
        ``.tif``, say: the format of all results; it is added to other names.
    leave_out
        Outputs of this batch, that are no inputs.

    Raises
    ------
    InputFileError
        When an input does not exist or there is nothing to do.
    OutputError
        When two inputs would have one output, or an input would be replaced.
    """
    written = {(folder / name).resolve() for name in leave_out}
    found = _found(inputs, recursive=recursive)
    paths = {path: root for path, root in found.items() if path.resolve() not in written}
    if not paths:
        shared = sorted({ending for known in formats.FORMATS for ending in known.ambiguous})
        raise InputFileError(
            f"there is no frame file in {', '.join(inputs)}; n2sr reads {formats.names()}. Files "
            f"ending in {', '.join(shared)}, which many programs write, are taken where they are "
            'named: "FOLDER/*.png"'
        )
    try:
        base = Path(os.path.commonpath([_absolute(root) for root in paths.values()]))
    except ValueError as error:
        raise InputFileError(f"inputs on several drives: make a batch of each ({error})") from error
    jobs = [
        _job(path, _absolute(path).relative_to(base), folder, settings, extension) for path in paths
    ]
    _check_distinct(jobs)
    return sorted(jobs, key=lambda job: job.name)


def _absolute(path: Path) -> Path:
    """Without ``..``; links stay, for a result is named after the link."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _found(inputs: Iterable[str], *, recursive: bool) -> dict[Path, Path]:
    """Each file, and the folder its structure is kept below."""
    found: dict[Path, Path] = {}
    named: dict[Path, Path] = {}
    for given in inputs:
        path = Path(given)
        if not glob.has_magic(given):  # Windows cannot look for names with a star
            files.check_name(path, InputFileError)
        if path.is_dir() and not files.is_folder_store(path):
            found |= dict.fromkeys(_inside(path, recursive=recursive), path)
        elif path.exists():
            named[path] = path.parent
        elif glob.has_magic(given):
            root = Path(*_before_magic(path))
            # Path.glob takes no absolute pattern.
            matched = sorted(glob.glob(given, recursive=True))  # noqa: PTH207
            is_named = path.suffix not in ("", ".*")
            found |= {Path(file): root for file in matched if _is_frame_file(Path(file), is_named)}
        else:
            raise InputFileError(f"{path} does not exist; name a folder, a file or a glob")
    emis = {emi_of(path) for path in found if path.suffix.lower() == ".ser"}
    return {path: root for path, root in found.items() if path not in emis} | named


def _inside(folder: Path, *, recursive: bool) -> Iterator[Path]:
    """Frame files in a folder; those that zarr keeps are folders, but files to us."""
    for path in sorted(folder.iterdir()):
        if _is_frame_file(path, is_named=False):
            yield path
        elif recursive and path.is_dir() and not path.is_symlink():
            yield from _inside(path, recursive=True)


def _before_magic(path: Path) -> list[str]:
    """The parts of a glob's path before its first wildcard."""
    parts: list[str] = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def _is_frame_file(path: Path, is_named: bool) -> bool:
    if path.name.startswith(".") or not (path.is_file() or files.is_folder_store(path)):
        return False
    try:
        return formats.is_frame_file(path, is_named=is_named)
    except OSError:  # it will fail by itself, and say why
        return True


def _job(
    path: Path, relative: Path, folder: Path, settings: dict[str, Any], extension: str | None
) -> Job:
    wanted = extension or (path.suffix if formats.is_written(path) else ".tif")
    if relative.suffix.lower() != wanted.lower():
        relative = relative.with_name(relative.name + wanted)
    name = relative.as_posix()
    output, std = folder / name, folder / std_of(name) if settings["std"] else None
    try:
        size, mtime_ns = files.size_and_mtime(path)
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror}") from error
    entry = Entry(
        output=name,
        outcome="started",
        input=str(path.absolute()),
        size=size,
        mtime_ns=mtime_ns,
        settings=settings,
    )
    outputs = [each for each in (output, std) if each is not None]
    for each in outputs:
        files.check_name(each, OutputError)
    is_there = any(each.exists() for each in outputs)
    return Job(noisy=path, output=output, std=std, name=name, entry=entry, is_there=is_there)


def _check_distinct(jobs: Sequence[Job]) -> None:
    noisy = {job.noisy.resolve() for job in jobs}
    counted = Counter(path.resolve() for job in jobs for path in job.outputs)
    for path, n in counted.items():
        if n > 1:
            raise OutputError(
                f"{n} inputs would be written to {path}; make a batch of each, or rename one"
            )
        if path in noisy:
            raise OutputError(f"{path} is an input, which is never changed; name another folder")
