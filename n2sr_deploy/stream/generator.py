"""A stream as a generator: what another thread denoises, as it is asked for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from n2sr_deploy.stream.denoising import LiveDenoiser
from n2sr_deploy.stream.runner import StreamRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from n2sr_deploy.model import ExportedModel
    from n2sr_deploy.stream.base import LiveResult, Source
    from n2sr_deploy.stream.denoising import DenoisingOptions
    from n2sr_deploy.stream.ring import Policy

_TICK_S = 0.2  # how often who waits looks whether the stream has ended


class _Handing:
    """A sink that hands results to a generator, one by one."""

    name = "the caller"

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._result: LiveResult | None = None
        self._is_handed_out = self._is_closed = False

    def open(self) -> None:
        """Nothing to do."""

    def write(self, result: LiveResult) -> None:
        """Wait until the caller asks for the next."""
        with self._changed:
            self._result = result
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._result is None or self._is_closed)

    def next(self, is_alive: Callable[[], bool]) -> LiveResult | None:
        """The next result; None at the end. The one before is given back."""
        with self._changed:
            if self._is_handed_out:  # else it came before it was asked for
                self._result = None
                self._changed.notify_all()
            while self._result is None and is_alive():
                self._changed.wait(_TICK_S)
            self._is_handed_out = self._result is not None
            return self._result

    def close(self) -> None:
        """Wait for nobody any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def denoise_stream(
    source: Source,
    model: ExportedModel | None,
    *,
    policy: Policy = "latest",
    options: DenoisingOptions | None = None,
) -> Iterator[LiveResult]:
    """Denoise frames as they arrive.

    Parameters
    ----------
    source
        Where frames come from; `n2sr_deploy.stream.addresses.open_source` gives one by its address.
    model
        The exported model; None: frames pass as they are.
    policy
        ``latest`` skips frames where the caller or the denoiser is too slow, ``all`` lets the
        source wait.
    options
        Backend, M and seed.

    Returns
    -------
    A result for each frame; its arrays are valid until the next is asked for. The source is opened
    when the first is.

    Raises
    ------
    SettingError
        When the policy, the source or the model is none, at once.
    N2SRError
        As `StreamRunner.run` does, while results are asked for.
    """
    handing = _Handing()
    runner = StreamRunner(
        source,
        [handing],
        LiveDenoiser(model, "model", options),
        policy=policy,
        patience_s=None,
    )
    return _handed_out(runner, handing)


def _handed_out(runner: StreamRunner, handing: _Handing) -> Iterator[LiveResult]:
    """What another thread denoises, as it is asked for."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            runner.run()
        except BaseException as error:  # noqa: BLE001 raised below
            failed.append(error)

    thread = threading.Thread(target=run, name="n2sr stream", daemon=True)
    thread.start()
    try:
        while (result := handing.next(thread.is_alive)) is not None:
            yield result
    finally:
        runner.stop()
        handing.close()
        thread.join()
    if failed:
        raise failed[0]
