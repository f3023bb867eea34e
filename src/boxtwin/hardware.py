"""Device, number format and threads of the networks of a process."""

from __future__ import annotations

import sys

import cv2
import torch

from boxtwin.errors import InputError

MOST_BATCH_THREADS = 8  # each has a batch in memory: 16 colour images of 832 pixels are 133 MB
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LIGHTNING = {"bfloat16": "bf16-mixed", "float16": "16-mixed", "float32": "32-true"}  # names of precisions


def choose_device(device: str, asked_by: str) -> torch.device:
    """The device of a setting, "auto" for a CUDA device if there is one; raises `InputError` if it does not exist."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"{asked_by}: device={device} must be auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{asked_by}: device=cuda, but PyTorch finds no CUDA device; use device=auto or device=cpu")
    return torch.device(lightning_accelerator(device))


def choose_dtype(dtype: str, device: torch.device, asked_by: str, *, float16: bool = True) -> torch.dtype:
    """The number format of a setting; "auto" takes bfloat16 if the hardware computes in it, else float16 on a GPU.

    Without ``float16``, for networks that are trained without a gradient scaler, float32 takes its place. Raises
    `InputError` if there is no such format, or not on this device.
    """
    known = [name for name in DTYPES if float16 or name != "float16"]
    if dtype == "auto":
        dtype = "float16" if float16 and device.type == "cuda" else "float32"
        dtype = "bfloat16" if has_bfloat16(device.type) else dtype
    if dtype not in known:
        raise InputError(f"{asked_by}: dtype={dtype} must be auto, {' or '.join(known)}")
    if dtype == "float16" and device.type == "cpu":
        raise InputError(f"{asked_by}: dtype=float16 needs a GPU; CPUs take float32 or bfloat16")
    return DTYPES[dtype]


def has_bfloat16(accelerator: str) -> bool:
    """Whether the hardware computes in bfloat16; emulated, it is slower than float32."""
    if accelerator in ("cuda", "gpu"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False))


def peak_memory() -> tuple[str, int]:
    """Whose memory it is, "gpu" if this process draws there and else "process", and the most bytes that were taken.

    Of a GPU it is the most since the last call, of the process the most since it began; 0 if the system does not tell.
    """
    if torch.cuda.is_available() and (most := torch.cuda.max_memory_allocated()):
        torch.cuda.reset_peak_memory_stats()
        return "gpu", most
    try:
        import resource
    except ImportError:  # Windows
        return "process", 0
    unit = 1 if sys.platform == "darwin" else 1024
    return "process", unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def on_gpu(accelerator: str) -> bool:
    """Whether Lightning's accelerator is a CUDA device of this machine."""
    return accelerator in ("cuda", "gpu") and torch.cuda.is_available()


ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")  # names that Lightning takes


def has_accelerator(accelerator: str) -> bool:
    """Whether this machine has the device of one of the `ACCELERATORS`."""
    has_mps = torch.backends.mps.is_available()
    return {"cuda": torch.cuda.is_available(), "gpu": torch.cuda.is_available() or has_mps, "mps": has_mps}.get(
        accelerator, True
    )


def torch_device(accelerator: str) -> str:
    """PyTorch's name of the device that Lightning computes on with one of the `ACCELERATORS`, except "auto"."""
    if accelerator == "gpu":
        return "cuda" if torch.cuda.is_available() else "mps"
    return accelerator


def batch_threads(accelerator: str, processes: int) -> int:
    """How many threads of a training make batches, with so many ``processes`` of trainings on this machine.

    One where the network itself needs the cores; on a GPU a share of the cores, at most `MOST_BATCH_THREADS`.
    """
    if not on_gpu(accelerator):
        return 1
    import joblib  # late: counting images needs a device and no cores

    return max(1, min(MOST_BATCH_THREADS, joblib.cpu_count() // processes))


def lightning_accelerator(accelerator: str) -> str:
    """The name that Lightning gives an accelerator; "auto" takes a CUDA device if there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if accelerator == "auto" else accelerator


def lightning_precision(precision: str, accelerator: str) -> str:
    """The name that Lightning gives a precision; "auto" takes bfloat16 if the hardware computes in it, else float32."""
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(lightning_accelerator(accelerator)) else "float32"
    return LIGHTNING[precision]


def use_threads(threads: int | None) -> None:
    """Set the threads of torch and OpenCV; None keeps their choice."""
    if threads is not None:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
