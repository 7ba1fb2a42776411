"""One file of a batch, done by whichever process has it."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from n2sr_deploy import files
from n2sr_deploy.denoise_file import denoise_file
from n2sr_deploy.denoise_options import DenoiseOptions
from n2sr_deploy.errors import (
    FileFormatError,
    FrameError,
    MissingExtraError,
    ModelError,
    N2SRError,
    OutputExistsError,
    SettingError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from n2sr_deploy.batch.plan import Job
    from n2sr_deploy.learning import Progress, TrainingStatus
    from n2sr_deploy.opening import Denoisers

_HOPELESS = (
    FileFormatError, FrameError, MissingExtraError, ModelError, OutputExistsError, SettingError,
)  # fmt: skip
_TELL_EVERY_S = 0.5
_OF_TRAINING = 0.95  # of the time a file takes, where it is learned from


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process is told to do; all paths are absolute."""

    name: str
    """Of the output, within the batch's folder."""
    noisy: str
    output: str
    std: str | None
    options: Mapping[str, Any]
    """`DenoiseOptions.to_dict`."""
    overwrite: bool
    """Whether outputs that are there may be replaced."""

    @classmethod
    def of(cls, job: Job, options: DenoiseOptions) -> Self:
        """What a job is, for another process."""
        return cls(
            name=job.name,
            noisy=str(job.noisy.absolute()),
            output=str(job.output.absolute()),
            std=None if job.std is None else str(job.std.absolute()),
            options=options.to_dict(),
            overwrite=job.is_there,  # those that may not be replaced are no jobs any more
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a task."""

    error: str | None = None
    """Why it failed; None: it is done."""
    is_hopeless: bool = False
    """Whether another try would fail too."""
    is_of_settings: bool = False
    """Whether a setting is wrong, rather than the file."""
    seconds: float = 0.0
    sizes: tuple[int, ...] = ()
    """Bytes of each output. Asked where they were written: elsewhere a network's file system may
    not show them yet."""
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what JSON kept."""
        return cls(**{**values, **{key: tuple(values[key]) for key in ("sizes", "warnings")}})

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


class _Kept(logging.Handler):
    """Keeps what is warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self.lines:
            self.lines.append(record.getMessage())


def work(task: Task, denoisers: Denoisers, on_share: Callable[[float], None]) -> Outcome:
    """Do a task.

    Parameters
    ----------
    task
        What to do.
    denoisers
        Of this process; keeps the model open for the next task.
    on_share
        Called now and then with the share that is done.

    Returns
    -------
    What became of it. What n2sr, the system or the memory refuses is an outcome; anything else is
    raised.
    """
    began = time.monotonic()
    with _kept_warnings() as warnings:
        try:
            sizes = _denoised(task, denoisers, _Share(on_share))
        except (N2SRError, OSError, MemoryError) as error:
            return Outcome(
                error=" ".join(str(error).split()) or type(error).__name__,
                is_hopeless=isinstance(error, _HOPELESS) and not _is_of_the_system(error),
                is_of_settings=isinstance(error, SettingError),
                seconds=time.monotonic() - began,
                warnings=tuple(warnings),
            )
    seconds = time.monotonic() - began
    return Outcome(seconds=seconds, sizes=sizes, warnings=tuple(warnings))


def _is_of_the_system(error: BaseException) -> bool:
    """Whether the system refused something, as when a share is away, or memory ran out.

    What libraries raise of a damaged file has no error number.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:  # libraries raise errors from themselves
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno):
            return True
        seen.add(id(cause))
        cause = cause.__cause__
    return False


def _denoised(task: Task, denoisers: Denoisers, share: _Share) -> tuple[int, ...]:
    output = Path(task.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    done = denoise_file(
        Path(task.noisy),
        output,
        DenoiseOptions.from_dict(task.options),
        denoisers,
        std=None if task.std is None else Path(task.std),
        overwrite=task.overwrite,
        training=share.training,
        on_frame=share.frame,
    )
    return tuple(files.size_and_mtime(path)[0] for path in done.outputs)


@contextmanager
def _kept_warnings() -> Iterator[list[str]]:
    handler = _Kept()
    logger = logging.getLogger("n2sr")
    logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)


class _Share:
    """Tells which share of a file is done: first its training, then its frames."""

    def __init__(self, on_share: Callable[[float], None]) -> None:
        self._on_share = on_share
        self._due = 0.0
        self._learned = 0.0

    @contextmanager
    def training(self) -> Iterator[Progress]:
        """As `shown_training`."""

        def on_step(status: TrainingStatus) -> None:
            total = status.elapsed_s + (status.remaining_s or 0.0)
            if status.remaining_s is not None and total > 0:
                self._learned = _OF_TRAINING * status.elapsed_s / total
            self._tell(self._learned)

        yield on_step

    def frame(self, done: float, total: int) -> None:
        """As `shown_frames`."""
        self._tell(self._learned + (1 - self._learned) * done / total)

    def _tell(self, share: float) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _TELL_EVERY_S
            self._on_share(share)
