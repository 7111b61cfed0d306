"""Move the virtual camera over real footage: a test set with real light, lenses, people and compression.

The videos should be filmed with a camera that stands still (or nearly), larger than what the virtual camera
sees of them. Writes OUT/<class>/*.mp4; then: vswin eval --data OUT --weights camera-motion

Run: python examples/camera_motion/on_footage.py OUT VIDEO...
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import generate
import numpy as np
from numpy.typing import NDArray

from vswin_cli.video.decode import read

FRAMES = 44
REPEATS = 4  # clips of each class and video
SIZE = (192, 144)


def stretch(video: Path, first: int) -> NDArray[np.uint8]:
    """``FRAMES`` neighbouring frames; (n, H, W, 3)."""
    return read(video, lambda total, _fps: [min(first + i, total - 1) for i in range(FRAMES)]).frames


def film(frames: NDArray[np.uint8], motion: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a camera that moves over the frames sees, as large as fits for the whole path."""
    path = generate.camera_path(rng, motion, len(frames), 0.5)
    height, width = frames.shape[1:3]
    views = generate.matrices(path, 0.0)
    corners = np.array([[x, y, 1] for x in (-2 / 3, 2 / 3) for y in (-0.5, 0.5)]).T
    seen = (views @ corners)[:, :2]
    low, high = seen.min((0, 2)), seen.max((0, 2))
    side = min(np.array([width, height]) / (high - low))  # source pixels in a short side
    middle = np.array([width, height]) / 2 - side * (low + high) / 2
    to_source = generate.move(*middle) @ generate.move(0, 0, side)
    from_pixels = generate.move(-2 / 3, -0.5) @ generate.move(0, 0, 1 / SIZE[1])
    shots = [
        cv2.warpAffine(
            frame, (to_source @ view @ from_pixels)[:2], SIZE, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        for frame, view in zip(frames, views, strict=True)
    ]
    return np.stack(shots).astype(np.uint8)


def main(out: Path, videos: list[Path]) -> None:
    """``REPEATS`` clips of each class from each video."""
    for number, video in enumerate(videos):
        for index, motion in enumerate(generate.CLASSES):
            folder = out / motion
            folder.mkdir(parents=True, exist_ok=True)
            for k in range(REPEATS):
                rng = np.random.default_rng([number, index, k])
                shots = film(stretch(video, int(rng.integers(0, 60))), motion, rng)
                clip = generate.Clip(shots, motion, generate.Fraction(25), "libx264", {"crf": "23"})
                generate.write(folder / f"{video.stem}-{k}.mp4", clip)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(v) for v in sys.argv[2:]])
