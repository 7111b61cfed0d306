"""One training step of Swin-T against torchvision's swin3d_t: same weights, clips, optimizer, in one process.

A step is forward, cross-entropy, backward, AdamW; drop path is 0 on both sides. Environment: see forward.py.

    PYTHONPATH=. /tmp/peers/bin/python benchmarks/training.py
    PYTHONPATH=. /tmp/peers/bin/python benchmarks/training.py --memory

The first form compares losses and gradients, then prints the medians, the ratio of each pair and their
median. The second needs only torch (and Linux): peak resident memory of one step, with and without
gradient checkpointing, each in a process of its own.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vswin_cli.config import VARIANTS
from vswin_cli.model import VideoSwin

SHAPE = (2, 3, 16, 112, 112)
MEMORY_SHAPE = (1, 3, 32, 224, 224)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, clips: Tensor, labels: Tensor) -> float:
    """One training step; its loss."""
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(clips), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def two_sides() -> tuple[VideoSwin, nn.Module]:
    """Our model and torchvision's, with the same random weights."""
    from forward import official_names
    from torchvision.models.video import swin3d_t

    theirs = swin3d_t(weights=None)
    for module in theirs.modules():
        if type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    for name, parameter in theirs.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.normal_(parameter, std=0.5)
    ours = VideoSwin(VARIANTS["T"])
    ours.load_state_dict(official_names(theirs.state_dict()), strict=True)
    return ours.train(), theirs.train()


def compare(ours: nn.Module, theirs: nn.Module, clips: Tensor, labels: Tensor) -> None:
    """Print how far losses and gradients are apart; fail where it is more than rounding."""
    from forward import official_names

    losses = []
    for model in (ours, theirs):
        loss = F.cross_entropy(model(clips), labels)
        loss.backward()
        losses.append(loss.item())
    expected = official_names({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    worst = 0.0
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        gap = (parameter.grad - expected[name]).norm() / expected[name].norm()
        # The gradient of a key's bias is 0 but for rounding; so qkv.bias is compared as a whole.
        worst = max(worst, gap.item())
    print(f"loss {losses[0]:.6f}, apart by {abs(losses[0] - losses[1]):.1e}", end="; ")
    print(f"gradients apart by {worst:.1e} of their norm at most")
    assert abs(losses[0] - losses[1]) < 1e-4
    assert worst < 1e-3


def speed(runs: int) -> None:
    """Compare, then time."""
    import torchvision

    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}", end=", ")
    print(f"{torch.get_num_threads()} threads, clips {tuple(SHAPE)}")
    torch.manual_seed(0)
    clips, labels = torch.randn(SHAPE), torch.randint(0, 400, SHAPE[:1])
    ours, theirs = two_sides()
    compare(ours, theirs, clips, labels)
    sides = {"vswin": ours, "torchvision": theirs}
    optimizers = {name: torch.optim.AdamW(m.parameters(), lr=1e-4) for name, m in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(runs + 1):
        for name, model in sides.items():
            start = time.perf_counter()
            step(model, optimizers[name], clips, labels)
            if run:  # the first is the warm-up
                times[name].append(time.perf_counter() - start)
    for name, values in times.items():
        spread = f"(min {min(values):.2f}, max {max(values):.2f})"
        print(f"{name:12} median {statistics.median(values):.2f} s {spread}")
    ratios = [a / b for a, b in zip(times["vswin"], times["torchvision"], strict=True)]
    print("ratios      ", " ".join(f"{r:.2f}" for r in ratios))
    spread = f"(min {min(ratios):.2f}, max {max(ratios):.2f})"
    print(f"ratio        median {statistics.median(ratios):.2f} {spread}, goal at most 0.7")


def status_mib(field: str) -> float:
    """A field of /proc/self/status, MiB."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


def measure_one(checkpointing: bool) -> None:
    """In a fresh process: print resident memory before the step and its peak during the step, MiB."""
    torch.manual_seed(0)
    model = VideoSwin(VARIANTS["T"]).train()
    model.set_grad_checkpointing(checkpointing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    clips, labels = torch.randn(MEMORY_SHAPE), torch.randint(0, 400, MEMORY_SHAPE[:1])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status_mib("VmRSS")
    start = time.perf_counter()
    step(model, optimizer, clips, labels)
    print(before, status_mib("VmHWM"), time.perf_counter() - start)


def memory() -> None:
    """Peak resident memory with and without gradient checkpointing."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, clip {tuple(MEMORY_SHAPE)}")
    peaks, increments = [], []
    for name in ("off", "on"):
        command = [sys.executable, __file__, "--measure-one", name]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        before, peak, seconds = map(float, out.split())
        peaks.append(peak)
        increments.append(peak - before)
        print(
            f"checkpointing {name:3}  before {before:5.0f} MiB, peak {peak:5.0f} MiB, "
            f"increment {peak - before:5.0f} MiB ({seconds:.1f} s)"
        )
    print(
        f"on / off: peaks {peaks[1] / peaks[0]:.2f}, increments {increments[1] / increments[0]:.2f}, "
        "goal at most 0.5"
    )


def main() -> None:
    """Speed or memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--measure-one", choices=("off", "on"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.measure_one:
        measure_one(options.measure_one == "on")
    elif options.memory:
        memory()
    else:
        speed(options.runs)


if __name__ == "__main__":
    main()
