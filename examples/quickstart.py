"""Two jobs, offline: the built-in model says how the camera moves; an image checkpoint becomes a video model.

Makes a short clip in which the camera pans, and a small Swin-2D checkpoint with random weights in the layout
of microsoft/Swin-Transformer, so that its probabilities mean nothing. The steps are those for real files:

    vswin predict clip.mp4 --weights camera-motion
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


def make_clip(path: Path, frames: int = 75, pan: int = 4) -> None:
    """A drawn landscape, 320x240, 25 frames per second; the camera turns right by ``pan`` pixels a frame."""
    random = np.random.default_rng(0)
    width = 320 + pan * frames
    scene = np.empty((240, width, 3), np.uint8)
    scene[:] = np.linspace((120, 170, 220), (210, 220, 200), 240)[:, None]
    rows, columns = np.mgrid[:240, :width]
    for _ in range(width // 8):
        x, y, radius = random.integers(0, width), random.integers(60, 240), random.integers(6, 40)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        scene[inside] = random.integers(20, 235, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for i in range(frames):
            picture = np.ascontiguousarray(scene[:, pan * i : pan * i + 320])
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
    """Make the files, then the three commands."""
    make_clip(folder / "clip.mp4")
    run("predict", folder / "clip.mp4", "--weights", "camera-motion")
    make_checkpoint(folder / "swin_2d.pth")
    run("inflate", folder / "swin_2d.pth", folder / "video.safetensors", "--force")
    run("predict", folder / "clip.mp4", "--weights", folder / "video.safetensors")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
