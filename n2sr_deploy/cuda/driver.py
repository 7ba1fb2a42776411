"""Asks the NVIDIA driver itself what there is: no library is needed, and none can be misled.

Libraries must not be asked first: some end the process, or hang, where there is no driver.
"""

from __future__ import annotations

import ctypes
import sys
from typing import NamedTuple

from n2sr_deploy.errors import DeviceError

_IS_WINDOWS = sys.platform == "win32"
LIBRARY = "nvcuda.dll" if _IS_WINDOWS else "libcuda.so.1"
_NVML = "nvml.dll" if _IS_WINDOWS else "libnvidia-ml.so.1"
_NO_DEVICE = 100
_NO_GPU = "the NVIDIA driver finds no GPU; is CUDA_VISIBLE_DEVICES set?"
NEEDED = 13, 0
"""The CUDA version that the driver must support for n2sr's kernels: that they are built with."""


class Driver(NamedTuple):
    """The NVIDIA driver and the GPUs it drives."""

    version: str
    """Like ``580.65.06``; "of unknown version" where the driver does not tell."""
    cuda: tuple[int, int]
    """The newest CUDA it supports."""
    gpus: tuple[str, ...]
    """Their names; at least one."""

    def describe(self) -> str:
        """In words."""
        major, minor = self.cuda
        return f"{', '.join(self.gpus)}; driver {self.version}, for CUDA up to {major}.{minor}"


def find_driver() -> Driver:
    """The driver, if it works and drives a GPU.

    Raises
    ------
    DeviceError
        When there is no driver, it refuses to start, or there is no GPU.
    """
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise DeviceError(
            f"no NVIDIA driver ({LIBRARY} is not there); install it if there is an NVIDIA GPU; "
            "without one, n2sr runs on the CPU (backend auto)"
        ) from error
    code = driver.cuInit(0)
    if code == _NO_DEVICE:
        raise DeviceError(_NO_GPU)
    if code != 0:
        raise DeviceError(
            f"the NVIDIA driver answers error {code} to cuInit; nvidia-smi may tell why (no GPU, "
            "a driver that was updated without a restart)"
        )
    number, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    driver.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode())
    if not names:
        raise DeviceError(_NO_GPU)
    cuda = number.value // 1000, number.value % 1000 // 10
    return Driver(_version(), cuda, tuple(names))


def _version() -> str:
    try:
        nvml = ctypes.CDLL(_NVML)
    except OSError:
        return "of unknown version"
    name = ctypes.create_string_buffer(80)
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlSystemGetDriverVersion(name, len(name)) != 0:
        return "of unknown version"
    nvml.nvmlShutdown()
    return name.value.decode()
