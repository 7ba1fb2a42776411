"""What `n2sr doctor` tells: versions, kernels, backends, processor, GPU, and what is missing."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from n2sr_deploy.backends.choosing import FASTEST_FIRST
from n2sr_deploy.sampling import describe_kernels
from n2sr_deploy.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

_CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def report() -> Iterator[tuple[str, str]]:
    """Pairs of topic and finding, in the order to show them."""
    yield "n2sr", VERSION
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    for package in _required(extra=None):
        yield package, _version(package) or "missing; install it with: pip install n2sr"
    for package in _required(extra="train"):
        yield package, _version(package) or "missing; training needs: pip install 'n2sr[train]'"
    yield "kernels", describe_kernels()
    yield "backend ONNX Runtime", _onnxruntime()
    yield "backend OpenVINO", _openvino()
    yield "backend of auto", f"the first that works of {', '.join(FASTEST_FIRST)}"
    yield "backend TensorRT", "not part of this version of n2sr"
    yield "processor", _processor()
    yield "GPU", _gpu()
    if _version("torch"):
        yield "training on", _training_device()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _required(extra: str | None) -> list[str]:
    """The packages n2sr says it needs, or one of its extras does."""
    lines = [line.partition(";") for line in requires("n2sr") or ()]
    wanted = "" if extra is None else f'extra == "{extra}"'
    return [
        re.split(r"[^\w.-]", package, maxsplit=1)[0]
        for package, _, marker in lines
        if marker.strip().replace("'", '"') == wanted
    ]


def _onnxruntime() -> str:
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        return (
            "both onnxruntime and onnxruntime-gpu are installed and overwrite each other; "
            "uninstall both, then install the one you want"
        )
    try:
        import onnxruntime
    except ImportError as error:
        return f"missing: {error}; install it with: pip install onnxruntime"
    providers = ", ".join(onnxruntime.get_available_providers())
    return f"works, on the CPU (built with {providers}; this version of n2sr uses the CPU's)"


def _openvino() -> str:
    try:
        from n2sr_deploy.backends.openvino import describe
    except ModuleNotFoundError:
        return "missing; install it with: pip install 'n2sr[openvino]'"
    except (ImportError, OSError) as error:
        return f"broken: {error}; install it again with: pip install --force-reinstall openvino"
    try:
        return describe()
    except RuntimeError as error:
        return f"broken: {' '.join(str(error).split())}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    cores = f"{os.cpu_count()} cores"
    if not cpuinfo.exists():
        found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
        return f"{platform.processor() or platform.machine()}, {cores}, {' '.join(found)}"
    lines = [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line]
    facts = {key.strip(): value.strip() for key, value in lines}
    flags = facts.get("flags", facts.get("Features", "")).split()
    found = [name for name in _CPU_FEATURES if name in flags]
    name = facts.get("model name", platform.machine())
    return f"{name}, {cores}, {' '.join(found) or 'none of ' + ' '.join(_CPU_FEATURES)}"


def _gpu() -> str:
    """Ask the NVIDIA driver itself: no library is needed, and none can be misled."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"none: no NVIDIA driver ({library} is not there)"
    code = driver.cuInit(0)
    if code != 0:
        return f"none: the NVIDIA driver answers error {code} to cuInit"
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    supports = f"driver {_driver_version()}, for CUDA up to {_dotted(number.value)}"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode())
    return f"{', '.join(names) or 'none'}; {supports}"


def _dotted(version_number: int) -> str:
    return f"{version_number // 1000}.{version_number % 1000 // 10}"


def _driver_version() -> str:
    library = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return "of unknown version"
    name = ctypes.create_string_buffer(80)
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlSystemGetDriverVersion(name, len(name)) != 0:
        return "of unknown version"
    nvml.nvmlShutdown()
    return name.value.decode()


def _training_device() -> str:
    import torch  # seconds; only this command pays

    if torch.cuda.is_available():
        return f"GPU ({torch.cuda.get_device_name(0)})"
    return f"CPU, {torch.get_num_threads()} threads (PyTorch {torch.__version__} sees no GPU)"
