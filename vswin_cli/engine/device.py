"""Every decision that depends on the device: which one, which dtype, how many views at once."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from vswin_cli.errors import UsageError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """'auto' takes CUDA, then Apple's MPS, then the CPU. Raises UsageError for what is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}", "for example cpu, cuda, cuda:1 or mps") from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise UsageError(f"device {name!r} is not available here", "--device cpu works everywhere")
    return device


def device_of_rank(name: str, local_rank: int, local_world: int) -> str:
    """Each rank its own accelerator, where several run on this machine."""
    if local_world > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"{local_world} processes on a machine with {torch.cuda.device_count()} GPUs",
                f"--nproc-per-node {torch.cuda.device_count()}",
            )
        return f"cuda:{local_rank}"
    return name


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """'auto' is bf16 where the device computes in it, else fp32. Raises UsageError."""
    if name == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}", f"one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """'fp32' for torch.float32, and so on."""
    return next((name for name, known in DTYPES.items() if known is dtype), str(dtype).removeprefix("torch."))


def default_view_batch(device: torch.device, views: int) -> int:
    """Views in one forward: on a CPU more than one is slower per view (its caches); elsewhere all views
    of a video, up to 16. Where that does not fit, the batch is halved until it does."""
    return 1 if device.type == "cpu" else min(views, 16)


def default_workers(device: torch.device, local_world: int) -> int:
    """Decoding processes: a CPU model is slow enough for one; an accelerator is fed by its share of the
    cores, less the one that feeds it."""
    cores = os.cpu_count() or 1
    return 1 if device.type == "cpu" else max(1, min(8, cores // local_world - 1))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device (or the CPU's allocator) ran out of memory; torch has several ways to say so."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text or "can't allocate memory" in text or "DefaultCPUAllocator" in text)
    )


@contextmanager
def prompt_memory() -> Iterator[None]:
    """Give freed blocks of a megabyte and more back to the system at once, on Linux with glibc.

    By default glibc keeps them once a larger one has been freed; a forward's temporaries then leave holes
    of hundreds of megabytes. Costs time (fresh pages are zeroed), so only where memory is promised.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    libc.mallopt(mmap_threshold, 2**20)
    try:
        yield
    finally:
        libc.mallopt(mmap_threshold, 32 * 2**20)  # where glibc's own adjustment ends


def reset_peak_memory(device: torch.device) -> None:
    """Begin a measurement of :func:`peak_memory_mb`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        # Resets the high-water mark of the resident set; not permitted in some sandboxes, where the
        # figure is then that of the whole process.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB: of the device's allocator, or on a CPU the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
