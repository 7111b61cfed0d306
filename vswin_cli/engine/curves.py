"""The picture of a training run. Matplotlib is imported only to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vswin_cli.checkpoints.files import atomic_file


def draw_curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Training loss, validation loss and Top-1 over epochs, from the rows of metrics.jsonl, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [r for r in rows if "loss" in r]
    checks = [r for r in rows if "val_top1" in r]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot([r["epoch"] for r in steps], [r["loss"] for r in steps], label="training")
    left.plot([r["epoch"] for r in checks], [r["val_loss"] for r in checks], "o-", label="validation")
    left.set(xlabel="epoch", ylabel="loss")
    left.legend()
    right.plot([r["epoch"] for r in checks], [r["val_top1"] for r in checks], "o-", color="tab:green")
    right.set(xlabel="epoch", ylabel="validation Top-1 (%)", ylim=(0, 100))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
