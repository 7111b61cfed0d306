"""Resizing, crops and the order of views, against the references' formulas and hand-made numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests import clips
from vswin_cli.config import PROTOCOLS
from vswin_cli.errors import DecodeError
from vswin_cli.video.views import (
    PreparedVideo,
    crop_offsets,
    prepare,
    resize_short_side,
    resize_torchvision,
    views,
)

K400 = PROTOCOLS["k400-4x3"]
TORCHVISION = PROTOCOLS["torchvision-12x1"]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "new"),
    [
        (240, 426, (224, 398)),  # 426 x 224 / 240 = 397.6
        (256, 340, (224, 298)),  # 297.5 rounds up
        (340, 256, (298, 224)),
        (720, 1280, (224, 398)),
        (224, 300, (224, 300)),
        (100, 100, (224, 224)),
    ],
)
def test_short_side_rounds_as_the_reference(height: int, width: int, new: tuple[int, int]) -> None:
    frame = noise(height, width)
    resized = resize_short_side(frame, 224)
    assert resized.shape == (*new, 3)
    assert resized.dtype == np.uint8
    assert np.array_equal(resized, cv2.resize(frame, new[::-1], interpolation=cv2.INTER_LINEAR))


def test_short_side_pixels_are_opencv_fixed_point() -> None:
    # 4 -> 8 pixels, half-pixel centres: weights 1/4 and 3/4, edges repeat; 2 rows alike stay alike.
    frame = np.repeat(np.array([[0, 100, 200, 40]], np.uint8)[:, :, None], 3, 2).repeat(4, 0)
    assert resize_short_side(frame, 8)[3, :, 0].tolist() == [0, 25, 75, 125, 175, 160, 80, 40]


@pytest.mark.parametrize(
    ("height", "width", "new"),
    [
        (240, 426, (256, 454)),
        (256, 340, (256, 340)),
        (340, 256, (340, 256)),
        (1280, 720, (455, 256)),
        (300, 533, (256, 454)),
    ],
)
def test_torchvision_size_cuts_the_long_side(height: int, width: int, new: tuple[int, int]) -> None:
    # 426 x 256 / 240 = 454.4; 1280 x 256 / 720 = 455.1; 533 x 256 / 300 = 454.8
    assert resize_torchvision(noise(height, width), 256).shape == (*new, 3)


@pytest.mark.parametrize("shape", [(240, 426), (426, 240), (96, 128), (300, 300), (531, 720), (241, 427)])
def test_torchvision_pixels_are_those_of_interpolate(shape: tuple[int, int]) -> None:
    frame = noise(*shape)
    ours = resize_torchvision(frame, 256)
    tensor = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    theirs = [
        functional.interpolate(x, ours.shape[:2], mode="bilinear", align_corners=False)
        .round()[0]
        .permute(1, 2, 0)
        for x in (tensor, tensor.contiguous())
    ]
    for reference in theirs:
        assert np.array_equal(ours, reference.numpy().astype(np.uint8))


def test_long_strips_are_refused() -> None:
    for resize in (resize_short_side, resize_torchvision):
        with pytest.raises(DecodeError, match="long and thin"):
            resize(noise(2, 200), 224)


@pytest.mark.parametrize(
    ("height", "width", "offsets"),
    [
        (224, 398, ((0, 0), (0, 174), (0, 87))),  # left, right, middle
        (224, 299, ((0, 0), (0, 74), (0, 37))),  # slack 75: the last crop ends one pixel early
        (298, 224, ((0, 0), (74, 0), (37, 0))),
        (224, 224, ((0, 0), (0, 0), (0, 0))),
    ],
)
def test_three_crops(height: int, width: int, offsets: tuple[tuple[int, int], ...]) -> None:
    assert crop_offsets(height, width, K400) == offsets


def test_centre_crops() -> None:
    one = K400.override(views="4x1")
    assert crop_offsets(224, 399, one) == ((0, 87),)  # 175 // 2
    # torchvision: int(round(slack / 2.0)), half to even
    assert crop_offsets(256, 455, TORCHVISION) == ((16, 116),)  # 231 / 2 = 115.5 -> 116
    assert crop_offsets(256, 453, TORCHVISION) == ((16, 114),)  # 229 / 2 = 114.5 -> 114


def test_crops_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DecodeError, match="smaller than the crop"):
        crop_offsets(200, 300, K400)
    with pytest.raises(DecodeError, match="three crops"):
        crop_offsets(256, 300, K400)


@settings(max_examples=100, deadline=None)
@given(height=st.integers(16, 1200), width=st.integers(16, 1200), crops=st.sampled_from(["4x1", "4x3"]))
def test_crops_of_a_resized_frame_lie_inside_it(height: int, width: int, crops: str) -> None:
    if max(height, width) > 64 * min(height, width):
        return
    factor = 224 / min(height, width)
    new = (int(height * factor + 0.5), int(width * factor + 0.5))
    for y, x in crop_offsets(*new, K400.override(views=crops)):
        assert 0 <= y <= new[0] - 224
        assert 0 <= x <= new[1] - 224


def prepared_from(frames: np.ndarray, rows: np.ndarray) -> PreparedVideo:
    return PreparedVideo("x.mp4", frames, rows, (), 9, 25.0, "pyav", False, (), 0.0)


def test_views_go_crops_outer_clips_inner() -> None:
    # Each pixel says which frame and column it is: 100 x row + column.
    frames = np.zeros((3, 4, 10, 3), np.uint8)
    frames[...] = (np.arange(3) * 100)[:, None, None, None] + np.arange(10)[None, None, :, None]
    protocol = replace(K400, clips=2, frames=2, short_side=4, crop_size=4)
    rows = np.array([[0, 1], [1, 2]])
    seen = [
        (view.shape, int(view[0, 0, 0, 0]), int(view[1, 0, 0, 0]))
        for view in views(prepared_from(frames, rows), protocol)
    ]
    shape = (2, 4, 4, 3)
    assert seen == [
        (shape, 0, 100),
        (shape, 100, 200),
        (shape, 6, 106),
        (shape, 106, 206),
        (shape, 3, 103),
        (shape, 103, 203),
    ]


def test_views_are_the_reference_pipeline(tmp_path: Path) -> None:
    """Every view, pixel by pixel, built the long way: gather, resize, crop."""
    path = clips.write_clip(tmp_path / "a.mp4", 80)
    prepared = prepare(path, K400, "pyav")
    everything = prepare(path, replace(K400, clips=1, frames=80, interval=1), "pyav").frames
    offsets = crop_offsets(*everything.shape[1:3], K400)
    expected = [
        np.stack([everything[i] for i in clip])[:, y : y + 224, x : x + 224]
        for y, x in offsets
        for clip in prepared.sampled_frames
    ]
    got = list(views(prepared, K400))
    assert len(got) == K400.views == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    # avg (80 - 63) / 4 = 4.25: starts 2.125, 6.375, 10.625, 14.875
    assert [clip[0] for clip in prepared.sampled_frames] == [2, 6, 10, 14]
    assert clips.numbers_of(prepared.frames[prepared.clips[3]]) == list(range(14, 78, 2))


def test_prepare_reports_what_happened(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "short.mp4", 10)
    prepared = prepare(path, K400)
    assert prepared.path == str(path)
    assert prepared.total == 10
    assert prepared.fps == 25.0
    assert prepared.frames.shape == (5, 224, 336, 3)
    assert prepared.frames.flags.c_contiguous
    assert clips.numbers_of(prepared.frames) == [0, 2, 4, 6, 8]
    assert prepared.clips.shape == (4, 32)
    assert prepared.notes == ("short video: 10 frames, repeated to fill a clip",)
    assert not prepared.partial
    assert prepared.seconds > 0


def test_prepare_for_torchvision_resizes_to_256(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "a.mp4", 70, fps=15)
    prepared = prepare(path, TORCHVISION)
    assert prepared.frames.shape == (70, 256, 384, 3)
    got = list(views(prepared, TORCHVISION))
    assert [view.shape for view in got] == [(32, 224, 224, 3)] * 12
    # 39 windows; floor(38 i / 11)
    assert [clip[0] for clip in prepared.sampled_frames] == [0, 3, 6, 10, 13, 17, 20, 24, 27, 31, 34, 38]
    assert np.array_equal(got[-1][0], prepared.frames[38, 16:240, 80:304])
