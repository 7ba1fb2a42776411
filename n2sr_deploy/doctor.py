"""What `n2sr doctor` tells: versions, kernels, backends, processor, GPU, and what is missing."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from n2sr_deploy.backends.choosing import FASTEST_FIRST, ON_GPU
from n2sr_deploy.backends.native import require_matrix_units
from n2sr_deploy.backends.tensorrt_library import LIBRARIES, import_library, require_capability
from n2sr_deploy.cores import cores_allowed
from n2sr_deploy.cuda.driver import find_driver
from n2sr_deploy.cuda.runtime import CudaDevice, load_library
from n2sr_deploy.engine import engine_folder, option_of
from n2sr_deploy.errors import DeviceError, MissingExtraError, ModelError, N2SRError, installing
from n2sr_deploy.kernels import describe_kernels
from n2sr_deploy.version import VERSION
from n2sr_deploy.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_OPTIONAL = {
    "formats": "other makers' files need",
    "em": "more makers' files need",
    "report": "n2sr report needs",
    "dask": "clusters need",
    "live": "live frames need",
    "micromanager": "Micro-Manager's cameras need",
    "openvino": "backend openvino needs",
}
"""What extras are for; those of backends on GPUs are told with these."""
_COMPRESSED = "missing; compressed TIFF (LZW, say) needs: pip install imagecodecs"
_NAMES = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}
_NO_GPU = "no GPU works, see GPU"
_CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


class _Backend(NamedTuple):
    works: bool
    """As far as can be told without a model."""
    told: str


def report() -> Iterator[tuple[str, str]]:
    """Pairs of topic and finding, in the order to show them."""
    yield "n2sr", VERSION
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    for package in _required(extra=None):
        yield package, _version(package) or _instead(package)
    for package in _required(extra="train"):
        yield package, _version(package) or f"missing; training needs: {installing('train')}"
    for extra, what in _OPTIONAL.items():
        for package in _required(extra=extra):
            yield package, _version(package) or f"missing; {what}: {installing(extra)}"
    yield "imagecodecs", _version("imagecodecs") or _COMPRESSED
    yield "kernels", describe_kernels()
    yield "CUDA kernels", _cuda_kernels()
    backends = {
        "ort": _onnxruntime(),
        "openvino": _openvino(),
        "native": _native(),
        **{option_of(library): _tensorrt(library) for library in LIBRARIES},
        "cuda": _cuda(),
    }
    for name, backend in backends.items():
        yield f"backend {_NAMES.get(name, name)}", backend.told
    yield "backend of auto", _of_auto(backends)
    yield "processor", _processor()
    yield "GPU", _gpu()
    if _version("torch"):
        yield "training on", _training_device()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _instead(package: str) -> str:
    """What takes a package's place, or how to install it."""
    if package == "onnxruntime" and _version("onnxruntime-gpu"):
        return f"{_version('onnxruntime-gpu')} (onnxruntime-gpu)"
    return "missing; install it with: pip install n2sr"


def _required(extra: str | None) -> list[str]:
    """The packages n2sr says it needs on this system, or one of its extras does."""
    lines = [line.partition(";") for line in requires("n2sr") or ()]
    wanted = {"" if extra is None else f'extra == "{extra}"'}
    if sys.platform != "win32":
        wanted |= {f'sys_platform != "win32" and {marker}' for marker in wanted}
    names = [
        re.split(r"[^\w.-]", package, maxsplit=1)[0]
        for package, _, marker in lines
        if marker.strip().replace("'", '"') in wanted
    ]
    return [name for name in names if name != "n2sr"]  # by which an extra names another


def _of_auto(backends: Mapping[str, _Backend]) -> str:
    """What is taken on this machine, and why."""
    order = *ON_GPU, *FASTEST_FIRST
    working = [name for name in order if backends[name].works]
    if not working:
        return f"none of {', '.join(order)} works"
    told = f"{working[0]}, the first that works of {', '.join(order)}"
    others = ", ".join(working[1:])
    return f"{told}; for models that it cannot run: {others}" if others else told


def _native() -> _Backend:
    try:
        require_matrix_units(CudaDevice())
    except N2SRError as error:
        return _Backend(False, f"missing: {_told(error)}")
    return _Backend(True, "works, and needs nothing but the driver")


def _onnxruntime() -> _Backend:
    try:
        from n2sr_deploy.backends.ort import describe
    except ModelError as error:
        works, told = False, str(error)
    else:
        works, told = True, describe()
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        told = (
            "both onnxruntime and onnxruntime-gpu are installed and overwrite each other; "
            "uninstall both, then install the one you want"
        )
    return _Backend(works, told)


def _cuda() -> _Backend:
    try:
        from n2sr_deploy.backends.ort import require_cuda

        require_cuda()
        CudaDevice()
    except N2SRError as error:
        return _Backend(False, f"missing: {_advised(error)}")
    told = "ONNX Runtime is built for it; it needs the CUDA and cuDNN of its version"
    return _Backend(True, told)


def _tensorrt(library: str) -> _Backend:
    """Without a driver nothing of it is started: it may end the process."""
    try:
        version = import_library(library).__version__
    except MissingExtraError as error:
        return _Backend(False, f"missing: {_advised(error)}")
    except ModelError as error:
        return _Backend(False, f"missing: {error}")
    try:
        require_capability(library, CudaDevice())
    except ModelError as error:
        return _Backend(False, str(error))
    except DeviceError as error:
        return _Backend(False, f"{version}; it cannot be used: {_told(error)}")
    return _Backend(True, f"{version}; engines: {_from_home(engine_folder())}")


def _told(error: N2SRError) -> str:
    """The error, but for what stands under GPU already."""
    return _NO_GPU if str(error) in _gpu() else str(error)


def _advised(error: N2SRError) -> str:
    """The error, whose advice is for machines with a GPU."""
    has_gpu = not _gpu().startswith("none")
    return _told(error) if has_gpu else f"it needs an NVIDIA GPU, and {_NO_GPU}"


def _from_home(folder: Path) -> Path:
    """Reports are shown to others, whom a user's name does not concern."""
    home = Path.home()
    return Path("~", folder.relative_to(home)) if folder.is_relative_to(home) else folder


def _openvino() -> _Backend:
    try:
        from n2sr_deploy.backends.openvino import describe
    except MissingExtraError as error:
        return _Backend(False, f"missing: {error}")
    except (ImportError, OSError) as error:
        again = "install it again with: pip install --force-reinstall openvino"
        return _Backend(False, f"broken: {error}; {again}")
    try:
        return _Backend(True, describe())
    except RuntimeError as error:
        return _Backend(False, f"broken: {' '.join(str(error).split())}")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    cores = _cores()
    if not cpuinfo.exists():
        found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
        return f"{platform.processor() or platform.machine()}, {cores}, {' '.join(found)}"
    lines = [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line]
    facts = {key.strip(): value.strip() for key, value in lines}
    flags = facts.get("flags", facts.get("Features", "")).split()
    found = [name for name in _CPU_FEATURES if name in flags]
    name = facts.get("model name", platform.machine())
    return f"{name}, {cores}, {' '.join(found) or 'none of ' + ' '.join(_CPU_FEATURES)}"


def _cores() -> str:
    n, allowed = os.cpu_count() or 1, cores_allowed()
    return counted(n, "core") if allowed == n else f"{allowed} of {counted(n, 'core')}"


def _gpu() -> str:
    try:
        return find_driver().describe()
    except DeviceError as error:
        return f"none: {error}"


def _cuda_kernels() -> str:
    try:
        load_library()
    except DeviceError as error:
        return f"missing: {error}"
    return "compiled"


def _training_device() -> str:
    import torch  # seconds; only this command pays

    if torch.cuda.is_available():
        return f"GPU ({torch.cuda.get_device_name(0)})"
    threads = counted(torch.get_num_threads(), "thread")
    return f"CPU, {threads} (PyTorch {torch.__version__} sees no GPU)"
