"""The cores of this machine that this process may use."""

from __future__ import annotations

import os


def cores_allowed() -> int:
    """How many there are: Slurm, taskset and containers allow some of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
