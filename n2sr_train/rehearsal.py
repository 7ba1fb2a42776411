"""A GPU made ready for a training while the host still measures the noise."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from n2sr_deploy.errors import N2SRError
from n2sr_train.devices import chosen_device
from n2sr_train.training import rehearse

if TYPE_CHECKING:
    from collections.abc import Callable

    from n2sr_deploy.sampling import Shape
    from n2sr_train.config import TrainingConfig

_log = logging.getLogger("n2sr")
_Found = TypeVar("_Found")


def beside_rehearsal(work: Callable[[], _Found], config: TrainingConfig, shape: Shape) -> _Found:
    """What `work` gives, done in a thread of its own while a training on a GPU is rehearsed.

    On a CPU, which the rehearsal would slow, there is none. It runs in the caller's thread, since
    PyTorch keeps what cuDNN has planned for each thread.

    Parameters
    ----------
    work
        What the host has to do before the training.
    config
        Of the training, as far as it is known.
    shape
        Of its frame.

    Raises
    ------
    SettingError
        When the device is not there. And what `work` does; what fails in the rehearsal is left to
        the training to tell.
    """
    if chosen_device(config.device).type == "cpu":
        return work()
    with ThreadPoolExecutor(1, "n2sr measuring") as worker:
        found = worker.submit(work)
        try:
            rehearse(config, shape)
        except (N2SRError, RuntimeError) as error:
            _log.debug("the rehearsal failed: %s", error)
        return found.result()
