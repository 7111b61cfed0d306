"""The built-in model and the data it was trained on: directions, determinism, and what it says of clips."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vswin_cli import Predictor
from vswin_cli.checkpoints.files import load_checkpoint
from vswin_cli.checkpoints.zoo import resolve
from vswin_cli.errors import CheckpointError

EXAMPLES = Path(__file__).parents[2] / "examples"
CLASSES = {
    "static",
    "pan left",
    "pan right",
    "tilt up",
    "tilt down",
    "zoom in",
    "zoom out",
    "roll clockwise",
    "roll counter-clockwise",
}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """examples/camera_motion/generate.py; its photographs need scikit-image, so drawn scenes stand in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES / "camera_motion"))
        import generate

    generate.photo_scene = lambda rng, _split: generate.drawn_scene(rng, 500)
    return generate


def motion_of(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Median motion of the picture between frames: (right, down, log of growth, clockwise turn)."""
    gray = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
    height, width = gray[0].shape
    centre = np.array([width / 2, height / 2])
    steps = []
    for first, second in zip(gray, gray[4:], strict=False):
        points = cv2.goodFeaturesToTrack(first, 200, 0.01, 5)
        moved, found, _ = cv2.calcOpticalFlowPyrLK(first, second, points, None)
        good = found.ravel() == 1
        matrix, _ = cv2.estimateAffinePartial2D(
            points[good].reshape(-1, 2) - centre, moved[good].reshape(-1, 2) - centre
        )
        if matrix is not None:
            (a, _, x), (b, _, y) = matrix
            # Rows count downward, so a positive angle turns clockwise on the screen.
            steps.append((x / height, y / height, np.log(np.hypot(a, b)), np.arctan2(b, a)))
    return np.median(steps, axis=0)


@pytest.mark.parametrize("name", sorted(CLASSES - {"static"}))
def test_directions_are_those_of_the_camera(generate: ModuleType, name: str) -> None:
    """Pan left: the picture slides right; tilt up: down; zoom in: it grows; roll clockwise: it turns back."""
    axis, sign = {
        "pan left": (0, 1),
        "pan right": (0, -1),
        "tilt up": (1, 1),
        "tilt down": (1, -1),
        "zoom in": (2, 1),
        "zoom out": (2, -1),
        "roll clockwise": (3, -1),
        "roll counter-clockwise": (3, 1),
    }[name]
    right = 0
    for k in range(2):
        index = generate.CLASSES.index(name) + k * len(generate.CLASSES)
        clip = generate.draw_clip(5, "train", index, 0.0, (192, 144))
        assert clip.motion == name
        # A point of a square is 0.38 sides away from its centre on average: compare as flow.
        flow = motion_of(clip.frames) * np.array([1, 1, 0.38, 0.38])
        right += int(np.abs(flow).argmax() == axis and np.sign(flow[axis]) == sign)
    assert right == 2


def test_a_clip_follows_from_seed_split_and_number(generate: ModuleType) -> None:
    assert set(generate.CLASSES) == CLASSES
    first = generate.draw_clip(0, "val", 7, 1.0, (96, 64))
    again = generate.draw_clip(0, "val", 7, 1.0, (96, 64))
    assert np.array_equal(first.frames, again.frames)
    for other in (("train", 7, 0), ("val", 16, 0), ("val", 7, 1)):
        clip = generate.draw_clip(other[2], other[0], other[1], 1.0, (96, 64))
        assert clip.frames.shape != first.frames.shape or not np.array_equal(clip.frames, first.frames)
    assert not set(generate.PHOTOS["train"]) & set(generate.PHOTOS["val"])


def test_the_file() -> None:
    path = resolve("camera-motion")
    assert path.stat().st_size <= 6_000_000
    found = load_checkpoint(path)
    assert found.labels is not None
    assert set(found.labels) == CLASSES
    assert found.protocol is not None
    assert found.source["from"]["finetuned"]["val_top1"] >= 95
    with pytest.raises(CheckpointError) as caught:
        resolve("camera-motoin")
    assert "camera-motion" in str(caught.value.hint)


def write(path: Path, frames: NDArray[np.uint8]) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "20"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path


def test_what_it_says_of_clips_it_has_never_seen(generate: ModuleType, tmp_path: Path) -> None:
    """Two clips of each class, of drawn scenes from a seed that training did not use."""
    videos, truth = [], []
    for index in range(18):
        clip = generate.draw_clip(12345, "val", index, 0.5)
        videos.append(write(tmp_path / f"{index}.mp4", clip.frames))
        truth.append(clip.motion)
    said = [v.top[0].label for v in Predictor("camera-motion", device="cpu").predict(videos, 1)]
    assert sum(a == b for a, b in zip(said, truth, strict=True)) >= 16, list(zip(said, truth, strict=True))


def test_the_examples_clip_pans_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import quickstart

    quickstart.make_clip(tmp_path / "clip.mp4")
    (video,) = Predictor("camera-motion", device="cpu").predict([tmp_path / "clip.mp4"])
    assert video.top[0].label == "pan right"
    assert video.top[0].prob > 0.5


@pytest.mark.slow
def test_examples_run(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import inflate_and_finetune
    import python_use
    import quickstart

    for split in ("train", "val"):
        for name, index in (("static", 0), ("zoom in", 5)):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            clip = generate.draw_clip(1, split, index, 0.0, (96, 64))
            write(folder / "a.mp4", clip.frames)
    quickstart.make_checkpoint(tmp_path / "image.pth")
    data = tmp_path / "data"
    inflate_and_finetune.main(
        str(data), str(tmp_path / "image.pth"), str(tmp_path / "run"), epochs=1, frames=8, size=32, flip=0.0
    )
    shown = capsys.readouterr().out
    assert "best Top-1" in shown
    assert str(data / "val" / "zoom in" / "a.mp4") in shown
    python_use.main(str(data / "val"))
    shown = capsys.readouterr().out
    assert "logits (1, 9)" in shown
    assert "of 2 videos" in shown


def test_the_start_has_no_class_in_it(tmp_path: Path) -> None:
    """start.py writes what its docstring says: a checkpoint that training can begin from."""
    sys.path.insert(0, str(EXAMPLES / "camera_motion"))
    try:
        import start
    finally:
        sys.path.pop(0)
    start.main(tmp_path / "start.safetensors")
    found = load_checkpoint(tmp_path / "start.safetensors")
    assert found.labels is None
    assert found.config == load_checkpoint(resolve("camera-motion")).config
