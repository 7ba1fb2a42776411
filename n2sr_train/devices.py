"""Where a training runs."""

from __future__ import annotations

import torch

from n2sr_deploy.errors import SettingError
from n2sr_deploy.kernels import has_lost_threads
from n2sr_deploy.words import counted


def chosen_device(name: str) -> torch.device:
    """The device that `TrainingConfig.device` names; ``auto``: a GPU where there is one.

    Raises
    ------
    SettingError
        When it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(
            f"device is {name!r}, but this PyTorch ({torch.__version__}) sees no CUDA GPU; "
            "leave --device out, or see: n2sr doctor"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError(f"device is {name!r}, but there are {torch.cuda.device_count()} GPUs")
    return device


def without_lost_threads() -> None:
    """In a fork, have PyTorch compute on the one thread there is."""
    if has_lost_threads():
        torch.set_num_threads(1)


def device_name(device: torch.device) -> str:
    """What a person calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return counted(torch.get_num_threads(), "CPU thread")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the machine computes in bfloat16, rather than imitating it."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    names = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # of x86-64 and of Arm
    return any(capabilities.get(name, False) for name in names)
