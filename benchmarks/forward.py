"""One Swin-T forward against torchvision's swin3d_t: same weights, same clip, interleaved in one process.

Needs only torch and torchvision (which has no build for the small CPU torch of constraints.txt), so run it
in an environment of its own, from the repository's root:

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install torch==2.14.1 torchvision==0.29.1 numpy
    PYTHONPATH=. /tmp/peers/bin/python benchmarks/forward.py

Prints the medians, the ratio of each pair and their median. Outputs are compared first.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time

import torch
import torchvision
from torchvision.models.video import swin3d_t

from vswin_cli.config import VARIANTS
from vswin_cli.model import VideoSwin


def official_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's parameter names -> the official ones."""
    renamed = {}
    for key, value in state.items():
        if key.endswith("relative_position_index"):
            continue
        if match := re.match(r"features\.(\d+)\.(.*)", key):
            place, rest = int(match[1]), match[2]
            rest = rest.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
            inner = f"downsample.{rest}" if place % 2 else f"blocks.{rest}"
            key = f"layers.{place // 2}.{inner}"
        renamed[key] = value
    return renamed


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    theirs = swin3d_t(weights=None).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter, std=0.5)
    ours = VideoSwin(VARIANTS["T"]).eval()
    ours.load_state_dict(official_names(theirs.state_dict()), strict=True)
    clip = torch.randn(1, 3, 32, 224, 224)
    sides = {"vswin": ours, "torchvision": theirs}
    times: dict[str, list[float]] = {name: [] for name in sides}
    with torch.inference_mode():
        results = {name: model(clip) for name, model in sides.items()}  # the warm-up, too
        difference = (results["vswin"] - results["torchvision"]).abs().max()
        print(f"torch {torch.__version__}, torchvision {torchvision.__version__}", end=", ")
        print(f"{torch.get_num_threads()} threads")
        largest = results["vswin"].abs().max()
        print(f"largest difference of logits: {difference:.1e} (largest logit {largest:.2f})")
        assert difference < 1e-4
        for _ in range(options.runs):
            for name, model in sides.items():
                start = time.perf_counter()
                model(clip)
                times[name].append(time.perf_counter() - start)
    for name, values in times.items():
        spread = f"(min {min(values):.2f}, max {max(values):.2f})"
        print(f"{name:12} median {statistics.median(values):.2f} s {spread}")
    ratios = [a / b for a, b in zip(times["vswin"], times["torchvision"], strict=True)]
    print(
        f"ratio        median {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
