"""Sampling: indices worked out by hand from the references' formulas, and properties for every length."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vswin_cli.config import PROTOCOLS, Augmentation, TrainSampling, ViewProtocol
from vswin_cli.errors import DecodeError
from vswin_cli.video.sampling import is_looped, sample_clips, sample_training_clip

K400 = PROTOCOLS["k400-4x3"]
SSV2 = PROTOCOLS["ssv2-1x3"]
TORCHVISION = PROTOCOLS["torchvision-12x1"]
MMACTION2 = PROTOCOLS["mmaction2-4x3"]

lengths = st.integers(1, 2000)


def firsts(protocol: ViewProtocol, total: int, fps: float = 30.0) -> list[int]:
    """The first index of each clip, after checking that each clip is an arithmetic run of its interval."""
    clips = sample_clips(protocol, total, fps)
    for clip in clips:
        assert clip == tuple((clip[0] + 2 * k) % total for k in range(32))
    return [clip[0] for clip in clips]


@pytest.mark.parametrize(
    ("total", "starts"),
    [
        # avg = (T - 63) / 4; start = trunc(i avg + avg / 2)
        (300, [29, 88, 148, 207]),  # avg 59.25: 29.625, 88.875, 148.125, 207.375
        (310, [30, 92, 154, 216]),  # avg 61.75: 30.875, 92.625, 154.375, 216.125
        (250, [23, 70, 116, 163]),  # avg 46.75: 23.375, 70.125, 116.875, 163.625
        (67, [0, 1, 2, 3]),  # avg 1: 0.5, 1.5, 2.5, 3.5
        (64, [0, 0, 0, 0]),  # avg 0.25: 0.125, 0.375, 0.625, 0.875
        (63, [0, 0, 0, 0]),
        (10, [0, 0, 0, 0]),
        (1, [0, 0, 0, 0]),
    ],
)
def test_segment_centers(total: int, starts: list[int]) -> None:
    assert firsts(K400, total) == starts


def test_segment_centers_with_other_numbers() -> None:
    ten = K400.override(views="10x3", frames=8, interval=8)
    # avg = (300 - 63) / 10 = 23.7: 11.85, 35.55, 59.25, 82.95, 106.65, 130.35, 154.05, 177.75, 201.45, 225.15
    clips = sample_clips(ten, 300, 30.0)
    assert [clip[0] for clip in clips] == [11, 35, 59, 82, 106, 130, 154, 177, 201, 225]
    assert clips[0] == (11, 19, 27, 35, 43, 51, 59, 67)


@pytest.mark.parametrize("protocol", [K400, MMACTION2])
def test_short_videos_start_over(protocol: ViewProtocol) -> None:
    clip = (0, 2, 4, 6, 8) * 6 + (0, 2)
    assert sample_clips(protocol, 10, 30.0) == (clip,) * 4
    assert sample_clips(protocol, 1, 30.0) == ((0,) * 32,) * 4
    # An odd length turns even steps into odd frames: 0 2 4 | 1 3 | 0 ...
    assert sample_clips(protocol, 5, 30.0)[0][:7] == (0, 2, 4, 1, 3, 0, 2)


@pytest.mark.parametrize(
    ("total", "starts"),
    [
        # round(i (T - 63) / 3)
        (300, [0, 79, 158, 237]),
        (310, [0, 82, 165, 247]),  # 82.33, 164.67
        (64, [0, 0, 1, 1]),  # 0.33, 0.67
        (63, [0, 0, 0, 0]),
        (10, [0, 0, 0, 0]),
        (1, [0, 0, 0, 0]),
    ],
)
def test_endpoints(total: int, starts: list[int]) -> None:
    assert firsts(MMACTION2, total) == starts


def test_endpoints_rounds_half_to_even_and_centres_one_clip() -> None:
    three = MMACTION2.override(views="3x1")
    assert [clip[0] for clip in sample_clips(three, 64, 30.0)] == [0, 0, 1]  # 0.5 -> 0
    assert [clip[0] for clip in sample_clips(three, 66, 30.0)] == [0, 2, 3]  # 1.5 -> 2
    assert sample_clips(MMACTION2.override(views="1x1"), 300, 30.0)[0][0] == 118  # 237 // 2


@pytest.mark.parametrize(
    ("total", "clip"),
    [
        # edges = round(i (T - 1) / 32), half to even; frame = (edge + next edge) // 2
        (33, list(range(32))),  # edges 0, 1, ..., 32
        (65, list(range(1, 64, 2))),  # edges 0, 2, ..., 64
        (1, [0] * 32),
        # i / 32 rounds to 0 up to 16 / 32 (half to even), to 1 from 17 / 32; (0 + 1) // 2 = 0
        (2, [0] * 17 + [1] * 15),
        # i 9 / 32: edges 0 0 1 1 1 1 2 2 2 3 3 3 3 4 4 4 4 5 5 5 6 6 6 6 7 7 7 8 8 8 8 9 9 (4.5 -> 4)
        (
            10,
            [0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 8, 8, 8, 8, 9],
        ),
        # i 299 / 32 = 9.34375 i
        (
            300,
            [
                4,
                14,
                23,
                32,
                42,
                51,
                60,
                70,
                79,
                88,
                98,
                107,
                116,
                126,
                135,
                145,
                154,
                163,
                173,
                182,
                191,
                201,
                210,
                219,
                229,
                238,
                247,
                257,
                266,
                275,
                285,
                294,
            ],
        ),
    ],
)
def test_uniform(total: int, clip: list[int]) -> None:
    assert sample_clips(SSV2, total, 12.0) == (tuple(clip),)


def test_resampled_with_a_whole_step() -> None:
    # 30 fps: every second frame, 150 of them, 119 windows; floor(i 118 / 11)
    starts = [0, 10, 21, 32, 42, 53, 64, 75, 85, 96, 107, 118]
    expected = tuple(tuple(range(2 * s, 2 * s + 64, 2)) for s in starts)
    assert sample_clips(TORCHVISION, 300, 30.0) == expected
    # 63 and 64 frames both give 32 resampled frames: one window.
    for total in (63, 64):
        assert sample_clips(TORCHVISION, total, 30.0) == (tuple(range(0, 64, 2)),) * 12
    # 33 resampled frames, two windows: floor(i / 11) is 0 but for the last clip.
    assert [c[0] for c in sample_clips(TORCHVISION, 66, 30.0)] == [0] * 11 + [2]


def test_resampled_with_a_broken_step() -> None:
    # 25 fps: step 5/3, n = floor(100 x 15 / 25) = 60, 29 windows; source = floor(5 k / 3)
    starts = [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 28]  # floor(28 i / 11)
    expected = tuple(tuple(5 * k // 3 for k in range(s, s + 32)) for s in starts)
    assert sample_clips(TORCHVISION, 100, 25.0) == expected
    # 12 fps: step 0.8 repeats frames: 0 0 1 2 3 4 4 5 ...
    assert sample_clips(TORCHVISION, 40, 12.0)[0][:8] == (0, 0, 1, 2, 3, 4, 4, 5)


def test_resampled_short_videos_loop_one_window() -> None:
    # 10 frames at 30 fps are 5 at 15 fps.
    assert sample_clips(TORCHVISION, 10, 30.0) == ((0, 2, 4, 6, 8) * 6 + (0, 2),) * 12
    assert sample_clips(TORCHVISION, 1, 30.0) == ((0,) * 32,) * 12
    # One frame at 50 fps is not one whole frame at 15 fps, and there is still something to show.
    assert sample_clips(TORCHVISION, 2, 50.0) == ((0,) * 32,) * 12


@pytest.mark.parametrize(
    ("protocol", "longest"),
    [(K400, 62), (MMACTION2, 62), (SSV2, 31), (TORCHVISION, 62)],
    ids=lambda p: str(p)[:30],
)
def test_is_looped_up_to_the_length_of_a_clip(protocol: ViewProtocol, longest: int) -> None:
    assert is_looped(protocol, longest, 30.0)
    assert not is_looped(protocol, longest + 1, 30.0)


@pytest.mark.parametrize("fps", [0.0, math.nan, math.inf, -30.0])
def test_only_resampling_needs_a_frame_rate(fps: float) -> None:
    assert sample_clips(K400, 300, fps) == sample_clips(K400, 300, 30.0)
    with pytest.raises(DecodeError, match="frame rate"):
        sample_clips(TORCHVISION, 300, fps)


def test_a_rate_that_repeats_frames_without_end_is_refused() -> None:
    with pytest.raises(DecodeError, match="damaged"):
        sample_clips(TORCHVISION, 1000, 0.001)


def test_no_frame_is_an_error() -> None:
    with pytest.raises(DecodeError, match="no frame"):
        sample_clips(K400, 0, 30.0)


@settings(max_examples=150, deadline=None)
@given(
    protocol=st.sampled_from(list(PROTOCOLS.values())),
    total=lengths,
    fps=st.one_of(
        st.sampled_from([12.0, 15.0, 23.976, 24.0, 25.0, 30000 / 1001, 30.0, 60.0]), st.floats(1.0, 240.0)
    ),
)
def test_every_index_exists_and_clips_run_forward(protocol: ViewProtocol, total: int, fps: float) -> None:
    clips = sample_clips(protocol, total, fps)
    assert np.shape(clips) == (protocol.clips, protocol.frames)
    assert all(type(i) is int and 0 <= i < total for clip in clips for i in clip)
    if not is_looped(protocol, total, fps):
        assert all(a <= b for clip in clips for a, b in itertools.pairwise(clip))
        starts = [clip[0] for clip in clips]
        assert starts == sorted(starts)
    if protocol.sampling == "resampled" and fps < 15:
        return  # frames repeat to reach 15 per second
    if not is_looped(protocol, total, fps) and protocol.sampling != "uniform":
        assert all(len(set(clip)) == protocol.frames for clip in clips)


@settings(max_examples=100, deadline=None)
@given(total=lengths, clips=st.integers(1, 20), frames=st.integers(1, 40), interval=st.integers(1, 6))
def test_segment_centers_equals_the_reference(total: int, clips: int, frames: int, interval: int) -> None:
    """The numpy lines of mmaction 0.x (dtype conversions included)."""
    protocol = replace(K400, clips=clips, frames=frames, interval=interval)
    length = frames * interval
    offsets = np.zeros(clips, int)
    average = (total - length + 1) / float(clips)
    if total > length - 1:
        offsets = (np.arange(clips) * average + average / 2.0).astype(int)
    expected = np.mod(offsets[:, None] + np.arange(frames)[None, :] * interval, total)
    assert np.array_equal(sample_clips(protocol, total, 30.0), expected)


@settings(max_examples=100, deadline=None)
@given(total=lengths, clips=st.integers(2, 20), frames=st.integers(1, 40), interval=st.integers(1, 6))
def test_endpoints_equals_the_reference(total: int, clips: int, frames: int, interval: int) -> None:
    protocol = replace(MMACTION2, clips=clips, frames=frames, interval=interval)
    slack = max(total - ((frames - 1) * interval + 1), 0)
    offsets = np.round(np.arange(clips) * (slack / float(clips - 1))).astype(int)
    expected = np.mod(offsets[:, None] + np.arange(frames)[None, :] * interval, total)
    assert np.array_equal(sample_clips(protocol, total, 30.0), expected)


@settings(max_examples=100, deadline=None)
@given(
    total=st.integers(1, 20_000),
    clips=st.integers(1, 20),
    fps=st.sampled_from([12.0, 23.976, 25.0, 29.97, 50.0]),
)
def test_resampled_equals_the_reference(total: int, clips: int, fps: float) -> None:
    """torch's own float32 arange and linspace, as torchvision calls them."""
    step = fps / 15.0
    source = (torch.arange(math.floor(total * 15.0 / fps), dtype=torch.float32) * step).floor().long()
    windows = len(source) - 31
    if windows < 1:
        return
    starts = torch.linspace(0, windows - 1, steps=clips).floor().long().tolist()
    expected = [source[s : s + 32].tolist() for s in starts]
    assert np.array_equal(sample_clips(replace(TORCHVISION, clips=clips), total, fps), expected)


@settings(max_examples=200, deadline=None)
@given(
    total=lengths,
    frames=st.integers(1, 40),
    interval=st.integers(1, 6),
    sampling=st.sampled_from(["random", "uniform"]),
    seed=st.integers(0, 2**63),
)
def test_training_clips(total: int, frames: int, interval: int, sampling: TrainSampling, seed: int) -> None:
    augmentation = Augmentation(sampling=sampling, frames=frames, interval=interval)
    clip = sample_training_clip(augmentation, total, random.Random(seed))
    assert len(clip) == frames
    assert all(type(i) is int and 0 <= i < total for i in clip)
    assert clip == sample_training_clip(augmentation, total, random.Random(seed))
    if sampling == "uniform":
        assert all(a <= b for a, b in itertools.pairwise(clip))
        edges = [int(np.round((total - 1) / frames * i)) for i in range(frames + 1)]  # SlowFast's lines
        assert all(low <= i <= high for i, (low, high) in zip(clip, itertools.pairwise(edges), strict=True))
    elif total >= (frames - 1) * interval + 1:
        assert all(b - a == interval for a, b in itertools.pairwise(clip))
    if sampling == "random":
        assert clip == tuple((clip[0] + k * interval) % total for k in range(frames))
        assert clip[0] <= max(0, total - frames * interval)


@settings(max_examples=100, deadline=None)
@given(total=lengths, frames=st.integers(1, 40), interval=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_a_training_clip_starts_where_the_reference_may(
    total: int, frames: int, interval: int, seed: int
) -> None:
    """Each start of mmaction 0.x's lines, for one clip, is one of ours: as many places, from 0 on."""
    length = frames * interval
    average = total - length + 1  # // 1 clip
    theirs = int(np.random.RandomState(seed).randint(average)) if average > 0 else 0
    augmentation = Augmentation(frames=frames, interval=interval)

    class Fixed(random.Random):
        def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
            assert (start, stop) == (average, None)
            return theirs

    assert sample_training_clip(augmentation, total, Fixed())[0] == theirs


def test_training_clips_reach_both_ends() -> None:
    augmentation = Augmentation(frames=8, interval=2)
    starts = [sample_training_clip(augmentation, 20, random.Random(seed))[0] for seed in range(300)]
    assert set(starts) == {0, 1, 2, 3, 4}  # 20 - 16
    assert all(30 <= starts.count(i) <= 90 for i in range(5))
    # A clip that fits only just, or not at all, starts at the first frame.
    assert sample_training_clip(augmentation, 15, random.Random(0)) == tuple(range(0, 15, 2))
    assert sample_training_clip(augmentation, 5, random.Random(0)) == (0, 2, 4, 1, 3, 0, 2, 4)

    uniform = Augmentation(sampling="uniform", frames=4)
    drawn = [sample_training_clip(uniform, 41, random.Random(seed)) for seed in range(300)]
    for part in range(4):
        assert {clip[part] for clip in drawn} == set(range(10 * part, 10 * part + 11))
    assert sample_training_clip(uniform, 1, random.Random(0)) == (0, 0, 0, 0)


@pytest.mark.parametrize("sampling", ["random", "uniform"])
def test_a_training_clip_of_no_frame_is_an_error(sampling: TrainSampling) -> None:
    with pytest.raises(DecodeError, match="no frame"):
        sample_training_clip(Augmentation(sampling=sampling), 0, random.Random(0))
