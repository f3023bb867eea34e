"""Where a network runs and in which numbers."""

from __future__ import annotations

import torch

from boxtwin.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str, asked_by: str) -> torch.device:
    """The device of a setting; "auto" takes a CUDA device if there is one.

    Raises:
        InputError: there is no such device. ``asked_by`` is whose setting it is.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"{asked_by}: device is auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{asked_by}: device=cuda, but PyTorch finds no CUDA device; use device=auto or device=cpu")
    return torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")


def choose_dtype(dtype: str, device: torch.device, asked_by: str, *, float16: bool = True) -> torch.dtype:
    """The numbers of a setting; "auto" takes bfloat16 where the hardware computes in it, else float16 on a GPU.

    Without ``float16``, for networks that are trained here without a gradient scaler, there is float32 instead of it.

    Raises:
        InputError: there are no such numbers, or not on this device.
    """
    if dtype != "auto":
        known = [name for name in DTYPES if float16 or name != "float16"]
        if dtype not in known:
            raise InputError(f"{asked_by}: dtype is auto, {', '.join(known)}, got {dtype!r}")
        if dtype == "float16" and device.type == "cpu":
            raise InputError(f"{asked_by}: dtype=float16 needs a GPU; CPUs take float32 or bfloat16")
        return DTYPES[dtype]
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float16 if float16 else torch.float32
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    return torch.bfloat16 if fast else torch.float32
