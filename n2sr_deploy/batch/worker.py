"""A worker process of a batch on one machine: ``python -m n2sr_deploy.batch.worker THREADS``.

It takes tasks from stdin and answers on stdout, a line of JSON each, until stdin ends: then nobody
waits for it any more, and it ends at once, even amid a task.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading

from n2sr_deploy.batch.work import Task, work
from n2sr_deploy.lifeline import parents_pipe
from n2sr_deploy.opening import Denoisers


def main() -> None:
    """Work until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the batch; it ends its workers
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
    coming = os.fdopen(parents_pipe(), encoding="utf-8")
    # Whatever libraries print goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def listen() -> None:
        for line in coming:
            tasks.put(line)
        os._exit(0)

    def answer(kind: str, value: object) -> None:
        answers.write(json.dumps({kind: value}) + "\n")
        answers.flush()

    threading.Thread(target=listen, name="n2sr batch: stdin", daemon=True).start()
    with Denoisers(int(sys.argv[1])) as denoisers:
        while True:
            task = Task(**json.loads(tasks.get()))
            outcome = work(task, denoisers, lambda share: answer("share", share))
            answer("outcome", outcome.to_dict())


if __name__ == "__main__":
    main()
