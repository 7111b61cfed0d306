"""Small videos whose classes differ in the direction in which the picture slides; one frame does not tell."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np


def write_sliding(path: Path, step: int, seed: int, frames: int = 12, size: int = 48) -> None:
    """A blurred noise picture that slides by ``step`` pixels a frame."""
    noise = np.random.default_rng(seed).integers(0, 256, (size, 4 * size, 3)).astype(np.uint8)
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for i in range(frames):
            x = (size if step > 0 else 2 * size) + step * i
            shown = np.ascontiguousarray(picture[:, x : x + size])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        out.mux(stream.encode())


def write_classes(root: Path, names: dict[str, int], train: int, val: int) -> Path:
    """Class folders root/{train,val}/<name>/<i>.mp4; ``names`` maps a class to its pixels per frame."""
    for split, count in (("train", train), ("val", val)):
        for number, (name, step) in enumerate(names.items()):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                write_sliding(
                    folder / f"{i}.mp4", step, seed=1000 * number + i + (500 if split == "val" else 0)
                )
    return root
