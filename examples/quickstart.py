"""The main job, offline: an image checkpoint is inflated to a video model, and a clip is classified.

Makes a short clip and a small Swin-2D checkpoint with random weights in the layout of
microsoft/Swin-Transformer, so the probabilities mean nothing; the steps are those for real files:

    vswin inflate swin_tiny_patch4_window7_224.pth video.safetensors
    vswin predict clip.mp4 --weights video.safetensors

Run: python examples/quickstart.py [FOLDER]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import torch

from vswin_cli.config import ModelConfig
from vswin_cli.model import VideoSwin


def make_clip(path: Path, frames: int = 75) -> None:
    """A disc that crosses the picture, 320x240, 25 frames per second."""
    rows, columns = np.mgrid[:240, :320]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for i in range(frames):
            picture = np.full((240, 320, 3), 40, np.uint8)
            picture[(rows - 120) ** 2 + (columns - 20 - 4 * i) ** 2 < 900] = (220, 160, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def make_checkpoint(path: Path) -> None:
    """A small image model, saved as microsoft/Swin-Transformer saves its own."""
    torch.manual_seed(0)
    model = VideoSwin(
        ModelConfig(24, (2, 2, 2, 2), (1, 2, 4, 8), window=(1, 7, 7), patch=(1, 4, 4), num_classes=10)
    )
    state = dict(model.state_dict())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, 0]
    torch.save({"model": state}, path)


def run(*arguments: object) -> None:
    """Show a command and run it."""
    print("$ vswin", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "vswin_cli", *map(str, arguments)], check=True)


def main(folder: Path) -> None:
    """Make the files, then the two commands."""
    make_clip(folder / "clip.mp4")
    make_checkpoint(folder / "swin_2d.pth")
    run("inflate", folder / "swin_2d.pth", folder / "video.safetensors", "--force")
    run("predict", folder / "clip.mp4", "--weights", folder / "video.safetensors")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
