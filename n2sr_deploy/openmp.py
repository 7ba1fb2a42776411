"""How OpenMP's threads wait for work: it looks at its settings once, when it is loaded."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SETTINGS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
SLEEPING = "OMP_WAIT_POLICY", "passive"
# For the many short operations of a training: microseconds, not the milliseconds of the default,
# after which two trainings on the same cores would do next to nothing but wait for each other.
SPINNING_BRIEFLY = "GOMP_SPINCOUNT", "2000"
_changing = threading.RLock()  # else one thread's setting were the user's to another


@contextlib.contextmanager
def loaded_with(setting: tuple[str, str]) -> Iterator[bool]:
    """Have the OpenMP that is loaded meanwhile wait like this; False if the user says how."""
    with _changing:
        if any(name in os.environ for name in _SETTINGS):
            yield False
            return
        name, value = setting
        os.environ[name] = value
        try:
            yield True
        finally:
            os.environ.pop(name, None)
