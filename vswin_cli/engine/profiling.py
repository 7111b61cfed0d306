"""What a model costs: parameters, multiply-adds, latency, memory."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vswin_cli.config import VARIANTS, ModelConfig, Window
from vswin_cli.engine.device import (
    choose_device,
    choose_dtype,
    dtype_name,
    peak_memory_mb,
    reset_peak_memory,
    synchronize,
)
from vswin_cli.engine.load import load_model
from vswin_cli.errors import UsageError
from vswin_cli.model import VideoSwin

CONVENTION = (
    "GMACs count one multiply-add of linear layers, attention products and the patch embedding "
    "(torch.utils.flop_counter); GFLOPs = 2 x GMACs; one view"
)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward of one clip."""

    median: float
    p10: float
    p90: float
    runs: int


@dataclass(frozen=True)
class Profile:
    """Cost of one model for one clip (1, 3, frames, size, size)."""

    variant: str
    config: ModelConfig
    frames: int
    size: int
    params: int
    gmacs: float
    latency: Latency | None
    peak_memory_mb: float | None
    device: str
    dtype: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """The JSON of `vswin profile --json` (keys of DESIGN.md)."""
        timed = self.latency
        return {
            "variant": self.variant,
            "params": self.params,
            "gmacs": round(self.gmacs, 4),
            "gflops": round(2 * self.gmacs, 4),
            "latency_ms": timed
            and {"median": timed.median, "p10": timed.p10, "p90": timed.p90, "runs": timed.runs},
            "peak_memory_mb": self.peak_memory_mb,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "clip": [1, 3, self.frames, self.size, self.size],
            "config": self.config.to_json(),
            "convention": CONVENTION,
        }


def profile(
    variant: str | None = None,
    *,
    weights: str | Path | None = None,
    frames: int | None = None,
    size: int | None = None,
    window: Window | None = None,
    classes: int | None = None,
    dialect: str | None = None,
    device: str = "auto",
    dtype: str = "fp32",
    latency: bool = True,
    runs: int = 5,
) -> Profile:
    """Profile a variant (random weights, which cost the same) or a checkpoint's model.

    ``frames`` defaults to 32 (1 for an image model), ``size`` to 224. With weights, ``window`` and
    ``dialect`` say how to read them, as in load_model. Raises UsageError or
    CheckpointError.
    """
    if (variant is None) == (weights is None):
        raise UsageError("name either a variant or weights")
    if runs < 1 or min(frames or 1, size or 1) < 1:
        raise UsageError("runs, frames and size are at least 1")
    chosen = choose_device(device)
    kind = choose_dtype(dtype, chosen)
    if weights is not None:
        if classes is not None:
            raise UsageError("the classes are those of the weights", "leave --classes out")
        model = load_model(weights, chosen, kind, dialect=dialect, window=window)
        name, config = Path(weights).name, model.config
    else:
        assert variant is not None
        name = variant.upper()
        if name not in VARIANTS:
            raise UsageError(f"unknown variant {variant!r}", f"one of {', '.join(VARIANTS)}")
        config = VARIANTS[name]
        config = replace(
            config,
            window=window or config.window,
            num_classes=config.num_classes if classes is None else classes,
        )
        model = None
    frames = frames or (1 if config.is_2d else 32)
    size = size or 224
    params, gmacs = count(config, frames, size)
    timed = peak = None
    if latency:
        if model is None:
            torch.manual_seed(0)
            model = VideoSwin(config).to(chosen, kind).eval()
        timed, peak = measure(model, frames, size, runs)
    return Profile(
        name,
        config,
        frames,
        size,
        params,
        gmacs,
        timed,
        peak,
        str(chosen),
        dtype_name(kind),
        torch.get_num_threads(),
    )


def count(config: ModelConfig, frames: int, size: int) -> tuple[int, float]:
    """Parameters and GMACs of one clip, on the meta device: no memory, no forward.

    On a CPU the counter would miss the fused attention kernel.
    """
    with torch.device("meta"), torch.no_grad():
        model = VideoSwin(config).eval()
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(1, 3, frames, size, size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2e9


def measure(model: VideoSwin, frames: int, size: int, runs: int) -> tuple[Latency, float]:
    """Latency over ``runs`` forwards after one warm-up, and peak memory in MB."""
    parameter = next(model.parameters())
    clip = torch.randn(
        (1, 3, frames, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.float32
    ).to(parameter.device, parameter.dtype)
    times = []
    reset_peak_memory(parameter.device)
    with torch.inference_mode():
        for _ in range(runs + 1):
            synchronize(parameter.device)
            start = time.perf_counter()
            model(clip)
            synchronize(parameter.device)
            times.append((time.perf_counter() - start) * 1000)
    timed = times[1:]
    deciles = statistics.quantiles(timed, n=10, method="inclusive") if runs > 1 else [timed[0]] * 9
    return (
        Latency(statistics.median(timed), deciles[0], deciles[-1], runs),
        peak_memory_mb(parameter.device),
    )
