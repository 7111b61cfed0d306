"""From Python: a model as a torch module, predictions of videos, accuracy over a data set.

Run: python examples/python_use.py DATA [WEIGHTS]; DATA holds CLASS/VIDEO.mp4, WEIGHTS default to the model
`camera-motion`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from vswin_cli import Predictor, evaluate, load_model


def main(data: str, weights: str = "camera-motion") -> None:
    """Features of a clip, the best class of each video, Top-1 of all."""
    model = load_model(weights)  # a torch.nn.Module in evaluation mode
    assert model.protocol is not None  # only image models have none
    frames, side = model.protocol.frames, model.protocol.crop_size
    clip = torch.randn(1, 3, frames, side, side)  # normalised RGB
    with torch.inference_mode():
        print("features", tuple(model.forward_features(clip).shape), "logits", tuple(model(clip).shape))

    predictor = Predictor(weights)
    for video in predictor.predict(sorted(Path(data).glob("*/*"))):
        print(video.path, video.top[0].label, f"{video.top[0].prob:.2f}") if video.top else print(video.error)

    with tempfile.TemporaryDirectory() as folder:
        result = evaluate(data, weights, out=Path(folder) / "results")
    assert result.summary is not None  # only ranks other than 0 have none
    print(f"Top-1 {result.summary['top1']:.2f} % of {result.summary['n_evaluated']} videos")


if __name__ == "__main__":
    main(*sys.argv[1:3])
