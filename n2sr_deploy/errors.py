"""The exceptions n2sr raises on purpose.

    N2SRError                       everything below; `except n2sr_deploy.N2SRError` catches all
     ├─ FrameError (ValueError)         a frame that cannot be denoised: its shape, values or type
     │   └─ BadFrameError                  one that came damaged over a live connection
     ├─ SettingError (ValueError)       a setting outside what it may be
     ├─ FileFormatError (ValueError)    a file that is not, or not wholly, what it should be
     │   └─ NotChosenError                 it holds several frames or signals
     ├─ InputFileError (OSError)        a file that cannot be opened
     ├─ OutputError (OSError)           a result that cannot be written
     │   └─ OutputExistsError              there is a file already
     ├─ ModelError (ValueError)         a checkpoint or exported model that cannot be used
     │   └─ OutOfMemoryError (MemoryError)  its network finds too little memory on a CPU
     ├─ TrainingError (RuntimeError)    a training that led to nothing
     ├─ DeviceError (RuntimeError)      a GPU, its driver or n2sr's kernels that cannot be used
     │   └─ OutOfDeviceMemoryError         its memory is full
     ├─ ConnectionLostError (OSError)   a source or sink that is away; it is tried again
     ├─ NotNowError                     a sink that has no room now
     ├─ EndOfStreamError                a source that has no more frames
     └─ MissingExtraError (ImportError) an optional part that is not installed

Each message is one line: what was given, what was expected, what to do. The command line
prints it and exits with 2.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class N2SRError(Exception):
    """Base of every error n2sr raises on purpose."""


class FrameError(N2SRError, ValueError):
    """A frame that cannot be denoised: its shape, values or type."""


class BadFrameError(FrameError):
    """What came over a live connection is no frame."""


class SettingError(N2SRError, ValueError):
    """A setting outside what it may be."""


class FileFormatError(N2SRError, ValueError):
    """A file that is not, or not wholly, what it should be."""


class NotChosenError(FileFormatError):
    """A file holds several frames or signals, and none was chosen.

    Parameters
    ----------
    held
        What it holds, as a sentence without its full stop.
    advice
        How to choose, as another one. Of frames it names the parameter, for which the command line
        puts its option, or leaves it out where nothing can be chosen.
    """

    def __init__(self, held: str, advice: str) -> None:
        super().__init__(held, advice)
        self.held, self.advice = held, advice

    def __str__(self) -> str:
        return f"{self.held}. {self.advice}"


class InputFileError(N2SRError, OSError):
    """A file that cannot be opened."""


class OutputError(N2SRError, OSError):
    """A result that cannot be written."""


class OutputExistsError(OutputError):
    """A result that may not replace the file that is there."""


class ModelError(N2SRError, ValueError):
    """A checkpoint or exported model that cannot be used."""


class OutOfMemoryError(ModelError, MemoryError):
    """A network finds too little memory on a CPU."""


class TrainingError(N2SRError, RuntimeError):
    """A training that led to nothing."""


class DeviceError(N2SRError, RuntimeError):
    """A GPU, its driver or n2sr's kernels that cannot be used."""


class OutOfDeviceMemoryError(DeviceError):
    """A GPU's memory is full."""


class ConnectionLostError(N2SRError, ConnectionError):
    """A source or sink is away; it is tried again."""


class NotNowError(N2SRError):
    """A sink has no room now; it is offered the same again."""


class EndOfStreamError(N2SRError):
    """A source has no more frames."""


class MissingExtraError(N2SRError, ImportError):
    """An optional part that is not installed.

    Parameters
    ----------
    purpose
        What needs it, as the beginning of a sentence: ``"training"``.
    package
        The package that could not be imported.
    extra
        The extra of n2sr that installs it.
    """

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(purpose, package, extra)  # by which it comes out of another process

    def __str__(self) -> str:
        purpose, package, extra = self.args
        return (
            f"{purpose} needs {package!r}, which is not installed. "
            f"Install it with: {installing(extra)}"
        )


def installing(extra: str) -> str:
    """The command that adds an extra, from any folder.

    n2sr is in no package index. pip needs none for it: it takes the one that is installed, whose
    extras it reads.
    """
    return f'pip install "n2sr[{extra}]"'


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise SettingError, with the nearest known one, when a value is none of those known."""
    known = list(known)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise SettingError(f"{name} is {value!r}, but must be one of {', '.join(known)}{hint}")
