"""A GPU made ready for a training while the host still measures the noise."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING

from n2sr_deploy.errors import N2SRError
from n2sr_train.devices import chosen_device
from n2sr_train.training import rehearse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from n2sr_deploy.sampling import Shape
    from n2sr_train.config import TrainingConfig

_log = logging.getLogger("n2sr")


@contextmanager
def rehearsing(config: TrainingConfig, shape: Shape) -> Iterator[None]:
    """Rehearse a training on a GPU beside the body; on a CPU nothing is done.

    Parameters
    ----------
    config
        Of the training to come, as far as it is known.
    shape
        Of its frame.

    Raises
    ------
    SettingError
        When the device is not there. What fails in the rehearsal is left to the training to tell.
    """
    if chosen_device(config.device).type == "cpu":
        yield
        return
    thread = Thread(target=_quietly, args=(config, shape), name="n2sr rehearsal")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _quietly(config: TrainingConfig, shape: Shape) -> None:
    try:
        rehearse(config, shape)
    except (N2SRError, RuntimeError) as error:  # the training will meet it too
        _log.debug("the rehearsal failed: %s", error)
