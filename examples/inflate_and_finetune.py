"""Image weights -> a video model of your own classes, in ten lines.

DATA holds train/CLASS/VIDEO.mp4 and val/CLASS/VIDEO.mp4; WEIGHTS is a Swin image checkpoint of any dialect.

Run: python examples/inflate_and_finetune.py DATA WEIGHTS OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vswin_cli import Predictor, finetune, inflate


def main(data: str, weights: str, out: str, **settings: Any) -> None:
    """``settings`` overrule numbers of the recipe: epochs=5, lr=3e-4."""
    inflate(weights, f"{out}.safetensors", head="drop", force=True)
    result = finetune(data, f"{out}.safetensors", out=out, recipe="small", **settings)
    print(f"best Top-1 {result.best_top1:.2f} % after epoch {result.best_epoch}")
    for video in Predictor(result.best).predict(sorted(Path(data).glob("val/*/*"))):
        print(video.path, video.top[0].label if video.top else video.error)


if __name__ == "__main__":
    main(*sys.argv[1:4])
