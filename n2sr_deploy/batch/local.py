"""Worker processes on this machine, which share its cores fairly."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from n2sr_deploy.batch.work import Outcome, Task
from n2sr_deploy.cores import threads_each
from n2sr_deploy.errors import N2SRError
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Begins = Callable[[Task], None]
    Shares = Callable[[Task, float], None]

_THREADS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"
_LOOK_EVERY_S = 0.5  # for Ctrl-C, which Windows does not let through while a thread waits
_KILL = 9  # SIGKILL, that Windows does not have


class LocalRunner:
    """Does tasks in processes of this machine, one at a time in each.

    A process that ends amid a task (the system kills one when memory runs out) fails that task
    only; another takes its place.

    Parameters
    ----------
    n_jobs
        How many processes.
    n_threads
        Of each; 0: its share of the cores.
    begins
        Called when a task begins, from any thread.
    shares
        Called with the share of a task that is done, from any thread.
    """

    def __init__(self, n_jobs: int, begins: Begins, shares: Shares, *, n_threads: int = 0) -> None:
        self._begins, self._shares = begins, shares
        self.n_threads = n_threads or threads_each(n_jobs)
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Task, Outcome] | Exception] = queue.SimpleQueue()
        self._is_closed = False
        self._workers: set[_Worker] = set()
        self._threads = [
            threading.Thread(target=self._serve, name=f"n2sr batch {i}") for i in range(n_jobs)
        ]
        for thread in self._threads:
            thread.start()

    def describe(self) -> str:
        """Who works, in words."""
        n_jobs, n_threads = len(self._threads), self.n_threads
        processes = "1 process" if n_jobs == 1 else f"{n_jobs} processes"
        return f"{processes} of {counted(n_threads, 'thread')}"

    def submit(self, task: Task) -> None:
        """Let a process do it when one is free."""
        self._tasks.put(task)

    def next_result(self) -> tuple[Task, Outcome]:
        """Wait for the next task that ends; raise what kept one from beginning."""
        while True:
            try:
                result = self._results.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                continue
            if isinstance(result, Exception):
                raise result
            return result

    def close(self) -> None:
        """End all processes, and whatever they do."""
        self._is_closed = True
        for _ in self._threads:
            self._tasks.put(None)
        while any(thread.is_alive() for thread in self._threads):
            for worker in list(self._workers):  # one may have begun meanwhile
                worker.kill()
            for thread in self._threads:
                thread.join(_LOOK_EVERY_S / len(self._threads))

    def _serve(self) -> None:
        """Hand tasks to a process; what goes wrong here is raised where results are waited for."""
        try:
            self._hand_out()
        except Exception as error:  # noqa: BLE001
            self._results.put(error)

    def _hand_out(self) -> None:
        """To a process, and to another when it ends."""
        with ExitStack() as ending:
            worker: _Worker | None = None
            while (task := self._tasks.get()) is not None and not self._is_closed:
                self._begins(task)
                if worker is None or not worker.is_alive():
                    ending.close()
                    worker = _Worker(self.n_threads)
                    self._workers.add(worker)
                    ending.callback(self._workers.discard, worker)
                    ending.callback(worker.close)
                outcome = worker.do(task, functools.partial(self._shares, task))
                self._results.put((task, outcome))


class _Worker:
    """A process, see `n2sr_deploy.batch.worker`."""

    def __init__(self, n_threads: int) -> None:
        try:
            self._process = subprocess.Popen(
                # -P: no module in the folder one happens to be in takes the place of another.
                [sys.executable, "-P", "-m", "n2sr_deploy.batch.worker", str(n_threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env={**os.environ, **dict.fromkeys(_THREADS, str(n_threads))},
                # Ctrl-C is the batch's, which ends it, also while it imports.
                process_group=0,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Windows
            )
        except OSError as error:
            raise N2SRError(
                f"cannot start a process to denoise in: {error.strerror or error}; with fewer "
                "--jobs, or more memory, the same command goes on"
            ) from error

    def is_alive(self) -> bool:
        """Whether it can take a task."""
        return self._process.poll() is None

    def do(self, task: Task, on_share: Callable[[float], None]) -> Outcome:
        """Have it done; that the process ends is an outcome."""
        began = time.monotonic()
        for message in self._messages(json.dumps(task.to_dict()) + "\n"):
            if "outcome" in message:
                return Outcome.from_dict(message["outcome"])
            on_share(message["share"])
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = "; did memory run out?" if code == -_KILL else ""
        return Outcome(
            error=f"the process that did it {how}{hint}", seconds=time.monotonic() - began
        )

    def _messages(self, line: str) -> Iterator[dict[str, Any]]:
        """What it says after this line, until its end."""
        with contextlib.suppress(OSError):  # a broken pipe; Windows says EINVAL
            if self._process.stdin and self._process.stdout:
                self._process.stdin.write(line)
                self._process.stdin.flush()
                for answer in self._process.stdout:
                    if answer.endswith("\n"):  # else torn by its end
                        yield json.loads(answer)

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._process.kill()

    def close(self) -> None:
        """End it, and wait until it has."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
