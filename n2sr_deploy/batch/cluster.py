"""The workers of a Dask cluster: each opens the model once and writes its results itself.

All see the files under the same paths. What goes between the machines is Dask's own protocol.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from n2sr_deploy.batch.work import Outcome, Task, work
from n2sr_deploy.errors import MissingExtraError, SettingError
from n2sr_deploy.opening import Denoisers
from n2sr_deploy.words import counted

try:
    from distributed import Client, KilledWorker, WorkerPlugin, as_completed, get_worker
except ModuleNotFoundError as error:
    raise MissingExtraError("--scheduler", "distributed", "dask") from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Future, Worker

_ANSWERS_S = 30


class _Opened(WorkerPlugin):  # type: ignore[misc]
    """What a worker process keeps between tasks: the denoiser. It does one file at a time."""

    def setup(self, worker: Worker) -> None:
        """Called once in each worker process, those that join later included."""
        self.one_at_a_time = threading.Lock()
        self.denoisers = Denoisers(worker.state.nthreads)

    def teardown(self, worker: Worker) -> None:
        """Called when the worker ends, or the batch does."""
        if self.one_at_a_time.acquire(blocking=False):  # else a file still needs it
            self.denoisers.close()
            self.one_at_a_time.release()


def _worked(values: dict[str, Any], plugin: str) -> dict[str, Any]:
    """In a worker: do a task."""
    opened = get_worker().plugins[plugin]
    with opened.one_at_a_time:
        return work(Task(**values), opened.denoisers, lambda _: None).to_dict()


class ClusterRunner:
    """Does tasks on a Dask cluster. What a lost worker had is done by another.

    Dask gives a task up after it has lost several workers with it, but suspects all that they
    held. Suspects are tried again one at a time, when nothing else is left, so that one file that
    ends workers fails alone.

    Parameters
    ----------
    address
        Of the scheduler.
    begins
        Called when a task begins.
    shares
        Called with the share of a task that is done; here, never.

    Raises
    ------
    SettingError
        When no scheduler answers there.
    """

    n_threads = 0  # each worker has its own

    def __init__(
        self, address: str, begins: Callable[[Task], None], shares: Callable[[Task, float], None]
    ) -> None:
        self._begins = begins
        try:
            self._client = Client(address, timeout=_ANSWERS_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise SettingError(
                f"no Dask scheduler answers at {address!r} ({error}); start one with: "
                "dask scheduler --host 127.0.0.1"
            ) from error
        self._plugin = f"n2sr-batch-{uuid.uuid4().hex}"
        self._client.register_plugin(_Opened(), name=self._plugin)
        self._completed = as_completed(loop=self._client.loop)
        self._tasks: dict[str, Task] = {}
        self._futures: dict[str, Future] = {}
        self._suspects: deque[Task] = deque()
        self._alone: set[str] = set()

    def describe(self) -> str:
        """Who works, in words."""
        n_workers = len(self._client.nthreads())
        told = counted(n_workers, "Dask worker")
        return told if n_workers else f"{told} yet: it waits for them"

    def submit(self, task: Task) -> None:
        """Let a worker do it when one is free."""
        self._begins(task)
        task = replace(task, overwrite=True)  # Dask does again what a lost worker had written
        future = self._client.submit(
            _worked, task.to_dict(), self._plugin, pure=False, key=f"n2sr-{uuid.uuid4().hex}"
        )
        self._tasks[future.key], self._futures[future.key] = task, future
        self._completed.add(future)

    def next_result(self) -> tuple[Task, Outcome]:
        """Wait for the next task that ends."""
        while True:
            if not self._futures:
                task = self._suspects.popleft()
                self._alone.add(task.name)
                self.submit(task)
            future = next(self._completed)
            if future.status in ("pending", "lost"):  # with its worker, and done again
                self._completed.add(future)
                continue
            task = self._tasks.pop(future.key)
            del self._futures[future.key]
            outcome = self._outcome(task, future)
            if outcome is not None:
                return task, outcome

    def _outcome(self, task: Task, future: Future) -> Outcome | None:
        """What became of it; None: it is suspected, and will be tried alone."""
        if future.status == "cancelled":
            return Outcome(error="the Dask scheduler was lost", is_hopeless=True)
        error = future.exception()
        if error is None:
            return Outcome.from_dict(future.result())
        if not isinstance(error, KilledWorker):
            return Outcome(error=f"{type(error).__name__}: {error}")
        if task.name not in self._alone:
            self._suspects.append(task)
            return None
        return Outcome(
            error="every worker that did it was lost; did memory run out?", is_hopeless=True
        )

    def close(self) -> None:
        """Cancel what is not done, and leave the cluster."""
        self._client.cancel(list(self._futures.values()))
        self._futures.clear()
        self._completed.clear()
        if self._client.status == "running":
            self._client.unregister_worker_plugin(self._plugin)
        self._client.close()
