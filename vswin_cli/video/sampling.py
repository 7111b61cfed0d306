"""Which frames of a video a protocol looks at: pure functions of three numbers (protocol, T, fps).

For training, sample_training_clip; it draws from a generator that the caller seeds.

Every function follows one reference implementation to the last rounding, because sampling alone moves the
published accuracies. Indices are source frames in presentation order, 0 <= index < T.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np

from vswin_cli.config import Augmentation, ViewProtocol
from vswin_cli.errors import DecodeError

Clips = tuple[tuple[int, ...], ...]

#: A damaged frame rate (0.0001 per second, say) would ask for billions of repeated frames.
MAX_RESAMPLED = 10_000_000


def sample_clips(protocol: ViewProtocol, total: int, fps: float) -> Clips:
    """Frame indices of each clip: ``protocol.clips`` tuples of ``protocol.frames`` indices, in play order.

    ``total`` is T, the number of frames; ``fps`` the average rate in frames per second, which only
    'resampled' looks at. Raises DecodeError if there is no frame, or no rate where one is needed.
    """
    if total < 1:
        raise DecodeError("the video has no frame to sample from")
    match protocol.sampling:
        case "segment-centers":
            return _segment_centers(protocol, total)
        case "endpoints":
            return _endpoints(protocol, total)
        case "uniform":
            return _uniform(protocol, total)
        case "resampled":
            return _windows(protocol, _resampled(protocol, total, fps))


def sample_training_clip(augmentation: Augmentation, total: int, rng: random.Random) -> tuple[int, ...]:
    """Frame indices of one training clip, in play order: ``augmentation.frames`` of 0..total-1.

    'random' is mmaction 0.x's SampleFrames in training with one clip: it starts anywhere from 0 to
    total - frames x interval; a shorter video starts at 0, and what lies past its end starts over ('loop').
    'uniform' is SlowFast's ssv2.py in training: a random frame of each of ``frames`` equal segments, both
    edges included, so that neighbours can be the same frame. Raises DecodeError if there is no frame.
    """
    if total < 1:
        raise DecodeError("the video has no frame to sample from")
    match augmentation.sampling:
        case "random":
            # The reference counts a clip as frames x interval, one gap more than the frames span.
            places = total - augmentation.frames * augmentation.interval + 1
            start = rng.randrange(places) if places > 0 else 0
            return tuple((start + k * augmentation.interval) % total for k in range(augmentation.frames))
        case "uniform":
            edges = _segment_edges(total, augmentation.frames)
            return tuple(rng.randint(start, end) for start, end in itertools.pairwise(edges))


def is_looped(protocol: ViewProtocol, total: int, fps: float) -> bool:
    """Whether the video is too short for one clip, so that frames repeat."""
    match protocol.sampling:
        case "segment-centers" | "endpoints":
            return total < (protocol.frames - 1) * protocol.interval + 1
        case "uniform":
            return total < protocol.frames
        case "resampled":
            return len(_resampled(protocol, total, fps)) < protocol.frames


def _segment_centers(protocol: ViewProtocol, total: int) -> Clips:
    """mmaction 0.x SampleFrames, test mode: the video in equal segments, a clip at each one's centre."""
    length = protocol.frames * protocol.interval
    # The reference counts a clip as frames x interval, one gap more than the frames span.
    if total > length - 1:
        gap = (total - length + 1) / protocol.clips
        offsets = [int(i * gap + gap / 2.0) for i in range(protocol.clips)]
    else:
        offsets = [0] * protocol.clips
    return _strided(protocol, offsets, total)


def _endpoints(protocol: ViewProtocol, total: int) -> Clips:
    """mmaction2 1.x SampleFrames, test mode: the first clip starts, the last one ends, with the video."""
    slack = max(total - ((protocol.frames - 1) * protocol.interval + 1), 0)
    if protocol.clips == 1:
        offsets = [slack // 2]
    else:
        gap = slack / (protocol.clips - 1)
        # Python's round is half to even, as np.round of the reference.
        offsets = [round(i * gap) for i in range(protocol.clips)]
    return _strided(protocol, offsets, total)


def _strided(protocol: ViewProtocol, offsets: Sequence[int], total: int) -> Clips:
    """Every ``interval``-th frame from each offset; past the end they start over ('loop')."""
    return tuple(
        tuple((offset + k * protocol.interval) % total for k in range(protocol.frames)) for offset in offsets
    )


def _uniform(protocol: ViewProtocol, total: int) -> Clips:
    """Something-Something's frame_uniform (SlowFast ssv2.py): the middle frame of each segment."""
    edges = _segment_edges(total, protocol.frames)
    clip = tuple((start + end) // 2 for start, end in itertools.pairwise(edges))
    return (clip,) * protocol.clips


def _segment_edges(total: int, segments: int) -> list[int]:
    """The frames, first and last included, that cut a video into ``segments`` parts of equal length."""
    size = (total - 1) / segments
    return [round(size * i) for i in range(segments + 1)]


def _resampled(protocol: ViewProtocol, total: int, fps: float) -> list[int]:
    """torchvision VideoClips._resample_video_idx: source frames of the video read at ``protocol.fps``.

    Never empty: a video shorter than one resampled frame gives its first frame.
    """
    if protocol.fps is None or not (math.isfinite(fps) and fps > 0):
        raise DecodeError(
            f"the file states no usable frame rate ({fps:g}), which protocol {protocol.name} needs",
            "use another --protocol, or give the file a frame rate with ffmpeg",
        )
    step = fps / protocol.fps
    if step.is_integer():
        return list(range(0, total, int(step)))
    count = math.floor(total * protocol.fps / fps)
    if count > MAX_RESAMPLED:
        raise DecodeError(f"a frame rate of {fps:g} would repeat {total} frames to {count:,}; it is damaged")
    # float32 on purpose: the reference multiplies a float32 arange, and its rounding decides the floor.
    positions = np.floor(np.arange(count, dtype=np.float32) * np.float32(step)).astype(np.int64)
    return np.minimum(positions, total - 1).tolist() or [0]


def _windows(protocol: ViewProtocol, frames: Sequence[int]) -> Clips:
    """torchvision UniformClipSampler: ``clips`` of all runs of ``frames`` resampled frames, evenly spread.

    Where there is no such run the reference drops the video; here its frames loop (see is_looped).
    """
    windows = len(frames) - protocol.frames + 1
    if windows < 1:
        clip = tuple(frames[k % len(frames)] for k in range(protocol.frames))
        return (clip,) * protocol.clips
    starts = _linspace_floor(windows - 1, protocol.clips)
    return tuple(tuple(frames[start : start + protocol.frames]) for start in starts)


def _linspace_floor(last: int, count: int) -> list[int]:
    """floor(torch.linspace(0, last, count)): float32, the upper half computed backwards from ``last``.

    torch multiplies and subtracts in one rounding (fused multiply-add); float64 holds the product exactly.
    """
    if count == 1:
        return [0]
    step = float(np.float32(last) / np.float32(count - 1))
    values = [step * i if i < count // 2 else float(last) - step * (count - 1 - i) for i in range(count)]
    return [math.floor(np.float32(value)) for value in values]
