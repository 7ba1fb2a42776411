"""``micromanager:CONFIG.cfg``: the camera of a Micro-Manager configuration, by pymmcore-plus."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from n2sr_deploy.errors import ConnectionLostError, InputFileError, MissingExtraError
from n2sr_deploy.stream.base import LiveFrame

try:
    from pymmcore_plus import CMMCorePlus
except ModuleNotFoundError as error:
    raise MissingExtraError("micromanager:", "pymmcore-plus", "micromanager") from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from n2sr_deploy.stream.addresses import Address

_LOOKS_EVERY_S = 0.001


def _time(told: Mapping[str, Any]) -> float | None:
    """When the image came from the camera, by this machine's clock."""
    try:
        return datetime.fromisoformat(str(told["TimeReceivedByCore"])).timestamp()
    except (KeyError, ValueError, OverflowError, OSError):
        return None


class MicroManagerSource:
    """Runs a continuous acquisition of the configuration's camera.

    ``exposure`` in milliseconds (default: the configuration's). ``micromanager:demo`` is
    Micro-Manager's simulated camera.
    """

    def __init__(self, address: Address) -> None:
        address.check_options("exposure")
        self.name = address.text
        self._config = address.target
        self._exposure_ms = address.number("exposure", 0, 0, 1e6)
        self._core: CMMCorePlus | None = None
        self._n_read = 0

    def open(self) -> None:
        """Load the configuration and begin to acquire."""
        if self._config != "demo" and not Path(self._config).exists():
            raise InputFileError(f"{self._config} does not exist; check the path")
        self._core = CMMCorePlus()
        try:
            self._core.loadSystemConfiguration(
                "MMConfig_demo.cfg" if self._config == "demo" else self._config
            )
            if self._exposure_ms:
                self._core.setExposure(self._exposure_ms)
            self._core.startContinuousSequenceAcquisition(0)
        except (RuntimeError, OSError) as error:
            raise ConnectionLostError(f"Micro-Manager cannot acquire: {error}") from error

    def read(self, timeout_s: float) -> LiveFrame | None:
        """The next frame of the camera's buffer."""
        core = self._core
        if core is None:
            raise ConnectionLostError("it is closed")
        end = time.monotonic() + timeout_s
        while core.getRemainingImageCount() == 0:
            if core.isBufferOverflowed():
                raise ConnectionLostError("the camera's buffer overflowed")
            if not core.isSequenceRunning():
                raise ConnectionLostError("the acquisition ended")
            if time.monotonic() > end:
                return None
            time.sleep(_LOOKS_EVERY_S)
        pixels, told = core.popNextImageAndMD()
        size_um = core.getPixelSizeUm()
        index = int(told.get("ImageNumber", self._n_read))
        self._n_read = index + 1
        return LiveFrame(
            pixels=pixels,
            index=index,
            pixel_size=(size_um, size_um) if size_um > 0 else None,
            unit="um" if size_um > 0 else None,
            source_time_s=_time(told),
            metadata={str(name): str(value) for name, value in dict(told).items()},
        )

    def close(self) -> None:
        """End the acquisition."""
        core, self._core = self._core, None
        if core is not None:
            if core.isSequenceRunning():
                core.stopSequenceAcquisition()
            core.unloadAllDevices()
