"""Many files with one command, here or on a Dask cluster: resumable, and the same bytes always.

`plan` says what there is to do, `manifest` what has been done; `local` (with `worker`) or
`cluster` has it done by processes that each do `work`.
"""

from __future__ import annotations

import logging
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from n2sr_deploy import files
from n2sr_deploy.batch.manifest import Entry, Manifest
from n2sr_deploy.batch.plan import Job, planned, settings_of
from n2sr_deploy.batch.work import Outcome, Task
from n2sr_deploy.errors import OutputError, SettingError
from n2sr_deploy.learning import check_settings
from n2sr_deploy.model import ExportedModel
from n2sr_deploy.signals import held_back
from n2sr_deploy.words import about, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from n2sr_deploy.denoise_options import DenoiseOptions

    Standing = Literal["to do", "done before", "of another input", "of other settings", "not ours"]

_log = logging.getLogger("n2sr")


class Runner(Protocol):
    """Has tasks done by other processes."""

    n_threads: int
    """Of each process; 0: that is theirs to say."""

    def describe(self) -> str:
        """Who works, in words."""

    def submit(self, task: Task) -> None:
        """Let it be done when somebody is free."""

    def next_result(self) -> tuple[Task, Outcome]:
        """Wait for the next task that ends, in any order."""

    def close(self) -> None:
        """End what is still being done."""


class Watcher(Protocol):
    """Is told how a batch goes on; from any thread."""

    def begin(self, n_files: int, told: str) -> None:
        """So many files are to be done, by whom."""

    def share(self, name: str, share: float) -> None:
        """A share of a file, by its output's name, is done."""

    def end(self, name: str, entry: Entry) -> None:
        """A file is done or has failed for good."""


if TYPE_CHECKING:
    Begins = Callable[[Task], None]
    Shares = Callable[[Task, float], None]
    OpensRunner = Callable[[Begins, Shares, int], Runner]


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a batch is done."""

    denoising: DenoiseOptions
    """Of each file; files of several frames are done as stacks."""
    std: bool = False
    """Whether the calibrated standard error of each pixel is written too: of ``NAME.tif``, as
    ``NAME.std.tif``."""
    recursive: bool = False
    """Whether folders in folders are looked into."""
    extension: str | None = None
    """``.tif``, say: the format of all results; None: the input's, where n2sr writes it."""
    retries: int = 1
    """How often a file that failed is tried again; not where that is hopeless."""
    n_threads: int = 0
    """Of each process; 0: those of the run that began, where networks are learned, for with others
    they are the same only to rounding; else its share of the cores."""
    overwrite: bool = False
    """Whether results of other settings or inputs, and files of others, are replaced."""


@dataclass(kw_only=True)
class Summary:
    """What became of a batch's files, by their outputs' names; of those that failed, inputs'."""

    done: list[str] = field(default_factory=list)
    done_before: list[str] = field(default_factory=list)
    of_another_input: list[str] = field(default_factory=list)
    """Left as they are: what is there was made of another file, or of this before it changed."""
    of_other_settings: list[str] = field(default_factory=list)
    """Left as they are: what is there was made with other settings."""
    failed: dict[str, str] = field(default_factory=dict)
    """And why."""


def run_batch(
    inputs: Sequence[str],
    folder: Path,
    options: BatchOptions,
    open_runner: OpensRunner,
    watcher: Watcher,
) -> Summary:
    """Denoise many files into a folder; what an earlier run has done is not done again.

    Parameters
    ----------
    inputs
        Folders, files and globs: see `plan.planned`.
    folder
        Where results and the manifest go; made if it is missing.
    options
        How.
    open_runner
        Gives who does the work, from what is called when a task begins and when a share of it is
        done, and the threads of each process (0: their share of the cores).
    watcher
        Is told how it goes on.

    Returns
    -------
    What became of each file. The files are the same, byte for byte, whoever does them in whichever
    order, and however often the batch was killed meanwhile.

    Raises
    ------
    InputFileError, OutputError
        When there is nothing to do, or results cannot be written; or another batch writes into
        this folder.
    SettingError, ModelError
        When a setting is wrong, or the model is none.
    """
    if options.denoising.model is None:  # else files of other settings would hide a wrong one
        check_settings(options.denoising.learn)
    with _made(folder), Manifest(folder) as manifest:
        n_left = manifest.remove_leftovers()
        if n_left:
            _log.info("removed %s of a run that was killed", counted(n_left, "temporary file"))
        jobs = planned(
            inputs,
            folder,
            settings_of(options.denoising, std=options.std),
            recursive=options.recursive,
            extension=options.extension,
            leave_out=manifest.outputs(),
        )
        summary = Summary()
        to_do = _sorted_out(jobs, manifest, summary, overwrite=options.overwrite)
        if to_do:
            if options.denoising.model is not None:
                ExportedModel.open(options.denoising.model)  # else each file would fail by it
            try:
                _Run(to_do, options, manifest, watcher, summary).run(open_runner)
            finally:
                manifest.remove_leftovers()  # of workers that were killed
    return summary


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make the folder; it goes again if it was not there and nothing was written into it."""
    files.check_name(folder, OutputError)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def _standing(job: Job, manifest: Manifest) -> Standing:
    """Where a file stands before this run."""
    if not any(output.exists() for output in job.outputs):
        return "to do"
    last = manifest.entries.get(job.name)
    if last is None:
        return "not ours"
    if not last.is_of_input(job.entry):
        return "of another input"
    if not last.is_of_settings(job.entry):
        return "of other settings"
    if last.outcome == "done" and manifest.are_there(last):
        return "done before"
    return "to do"  # begun, or failed, or partly removed since


def _sorted_out(
    jobs: Sequence[Job], manifest: Manifest, summary: Summary, *, overwrite: bool
) -> list[Job]:
    """The jobs to do; where the others stand is told."""
    to_do = []
    for job in jobs:
        standing = _standing(job, manifest)
        if standing == "done before":
            summary.done_before.append(job.name)
        elif standing == "to do" or overwrite:
            to_do.append(job)
        elif standing == "of another input":
            summary.of_another_input.append(job.name)
        elif standing == "of other settings":
            summary.of_other_settings.append(job.name)
        else:
            summary.failed[str(job.noisy)] = (
                f"{job.output} is there already, and not of this batch; name another folder, or "
                "pass --overwrite"
            )
    return to_do


class _Run:
    """What is still to be done, on its way."""

    def __init__(
        self,
        jobs: Sequence[Job],
        options: BatchOptions,
        manifest: Manifest,
        watcher: Watcher,
        summary: Summary,
    ) -> None:
        self._jobs = {job.name: job for job in jobs}
        self._attempts = dict.fromkeys(self._jobs, 0)
        self._options, self._manifest = options, manifest
        self._watcher, self._summary = watcher, summary
        self._n_threads = 0

    def run(self, open_runner: OpensRunner) -> None:
        runner = open_runner(self._begin, self._share, self._threads_to_go_on_with())
        self._n_threads = runner.n_threads if self._options.denoising.model is None else 0
        try:
            self._watcher.begin(len(self._jobs), runner.describe())
            for job in self._jobs.values():
                runner.submit(Task.of(job, self._options.denoising))
            n_open = len(self._jobs)
            while n_open:
                task, outcome = runner.next_result()
                self._check_settings(outcome)
                if self._is_tried_again(task, outcome):
                    # The first try may have written one of them.
                    runner.submit(replace(task, overwrite=True))
                else:
                    n_open -= 1
                    self._end(self._jobs[task.name], outcome)
        finally:
            runner.close()

    def _check_settings(self, outcome: Outcome) -> None:
        """A wrong setting would fail every file: it is told at the first."""
        if outcome.is_of_settings and not self._summary.done and not self._summary.done_before:
            raise SettingError(outcome.error)

    def _threads_to_go_on_with(self) -> int:
        """What was asked for; or, where networks are learned, what an earlier run had."""
        if self._options.n_threads or self._options.denoising.model is not None:
            return self._options.n_threads
        settings = next(iter(self._jobs.values())).entry.settings
        earlier = self._manifest.entries.values()
        return next((e.n_threads for e in earlier if e.settings == settings), 0)

    def _begin(self, task: Task) -> None:
        entry = self._jobs[task.name].entry
        self._manifest.append([replace(entry, n_threads=self._n_threads)])

    def _share(self, task: Task, share: float) -> None:
        self._watcher.share(task.name, share)

    def _is_tried_again(self, task: Task, outcome: Outcome) -> bool:
        self._attempts[task.name] += 1
        again = (
            outcome.error is not None
            and not outcome.is_hopeless
            and self._attempts[task.name] <= self._options.retries
        )
        if again:
            told = about(task.noisy, outcome.error or "")
            _log.info("tried again after it failed: %s", told)
        return again

    def _end(self, job: Job, outcome: Outcome) -> None:
        with held_back(signal.SIGINT):  # what is noted as done is told as done
            self._note_end(job, outcome)

    def _note_end(self, job: Job, outcome: Outcome) -> None:
        folder, error = self._manifest.path.parent, outcome.error
        names = [path.relative_to(folder).as_posix() for path in job.outputs]
        entry = replace(
            job.entry,
            outcome="done" if error is None else "failed",
            sizes=dict(zip(names, outcome.sizes, strict=False)),
            error=error,
            seconds=round(outcome.seconds, 3),
            attempts=self._attempts[job.name],
            n_threads=self._n_threads,
            warnings=outcome.warnings,
        )
        self._manifest.append([entry])
        if error is None:
            self._summary.done.append(job.name)
        else:
            self._summary.failed[str(job.noisy)] = error
        self._watcher.end(job.name, entry)
