"""From a video file to views: uint8 RGB frames at model size, and the crops that are views of them.

Nothing is normalised here: views stay uint8 until they are on the device. This module never imports torch,
because decoding workers run it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import cv2
import numpy as np
from numpy.typing import NDArray

from vswin_cli.config import ViewProtocol
from vswin_cli.errors import DecodeError
from vswin_cli.video.decode import Decoder, read
from vswin_cli.video.sampling import is_looped, sample_clips

Frame = NDArray[np.uint8]

#: A strip of 1 x 1000 pixels resized to a short side of 224 would be 224,000 wide.
MAX_ASPECT = 64


@dataclass(frozen=True)
class PreparedVideo:
    """All that views need of one video; what a decoding worker sends back.

    ``frames`` (U, h, w, 3) uint8 RGB, resized, each used source frame once; ``clips`` (clips, frames) rows of
    ``frames``; ``sampled_frames`` the source indices per clip; ``total`` frames in the video; ``fps`` its
    average rate; ``partial`` a damaged or cut file read up to the damage; ``notes`` for the user;
    ``seconds`` spent decoding and resizing.
    """

    path: str
    frames: Frame
    clips: NDArray[np.int64]
    sampled_frames: tuple[tuple[int, ...], ...]
    total: int
    fps: float
    decoder: str
    partial: bool
    notes: tuple[str, ...]
    seconds: float


def prepare(path: str | os.PathLike[str], protocol: ViewProtocol, decoder: Decoder = "auto") -> PreparedVideo:
    """Decode the frames that the protocol samples and resize each once. Raises VideoError."""
    start = time.perf_counter()
    sampled: tuple[tuple[int, ...], ...] = ()

    def choose(total: int, fps: float) -> list[int]:
        nonlocal sampled
        sampled = sample_clips(protocol, total, fps)
        return [index for clip in sampled for index in clip]

    resize = resize_torchvision if protocol.resize == "torchvision" else resize_short_side
    decoded = read(path, choose, partial(resize, short_side=protocol.short_side), decoder)
    rows = {index: row for row, index in enumerate(decoded.indices)}
    clips = np.array([[rows[index] for index in clip] for clip in sampled], np.int64)
    notes = decoded.notes
    if is_looped(protocol, decoded.total, decoded.fps):
        notes = (
            *notes,
            f"short video: {decoded.total} frame{'s' * (decoded.total != 1)}, repeated to fill a clip",
        )
    return PreparedVideo(
        path=str(path),
        frames=decoded.frames,
        clips=clips,
        sampled_frames=sampled,
        total=decoded.total,
        fps=decoded.fps,
        decoder=decoded.decoder,
        partial=decoded.partial,
        notes=notes,
        seconds=time.perf_counter() - start,
    )


def views(prepared: PreparedVideo, protocol: ViewProtocol) -> Iterator[Frame]:
    """Yield ``protocol.views`` arrays (frames, crop, crop, 3) uint8, crops outer and clips inner.

    View number = crop x clips + clip, the order of the reference's (12, 3, 32, 224, 224) tensor.
    """
    height, width = prepared.frames.shape[1:3]
    size = protocol.crop_size
    for y, x in crop_offsets(height, width, protocol):
        window = prepared.frames[:, y : y + size, x : x + size]
        for clip in prepared.clips:
            yield window[clip]


def crop_offsets(height: int, width: int, protocol: ViewProtocol) -> tuple[tuple[int, int], ...]:
    """(y, x) of each crop, in the reference's order. Raises DecodeError if a crop does not fit.

    Three crops (mmaction ThreeCrop): first, last, middle along the longer side; with odd slack the last one
    starts at 2 x (slack // 2), a pixel before the edge. One crop is the centre: torchvision rounds half the
    slack to even, mmaction's CenterCrop rounds down.
    """
    size = protocol.crop_size
    if height < size or width < size:
        raise DecodeError(f"frames of {width}x{height} pixels are smaller than the crop of {size}")
    if protocol.crops == 1:
        if protocol.resize == "torchvision":
            return ((round((height - size) / 2.0), round((width - size) / 2.0)),)
        return (((height - size) // 2, (width - size) // 2),)
    if height == size:
        step = (width - size) // 2
        return ((0, 0), (0, 2 * step), (0, step))
    if width == size:
        step = (height - size) // 2
        return ((0, 0), (2 * step, 0), (step, 0))
    raise DecodeError(f"three crops of {size} need one side of {size} pixels, not {width}x{height}")


def resize_short_side(frame: Frame, short_side: int) -> Frame:
    """(H, W, 3) uint8 to a short side of ``short_side`` pixels, as mmcv.imrescale((inf, short_side)) does.

    OpenCV's uint8 bilinear (fixed point, no antialias) is part of the reference's numbers.
    """
    height, width = frame.shape[:2]
    _check_aspect(height, width)
    factor = short_side / min(height, width)
    size = (int(width * factor + 0.5), int(height * factor + 0.5))
    if size == (width, height):
        return frame
    resized: Frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    return resized


def resize_torchvision(frame: Frame, short_side: int) -> Frame:
    """(H, W, 3) uint8 to a short side of ``short_side`` pixels, as torchvision's F.resize(antialias=False).

    That casts to float32, calls F.interpolate(bilinear, align_corners=False), rounds half to even. Bit for
    bit the same here, without torch: along the width first, each pair w0*p0 + w1*p1 as one fused
    multiply-add onto the rounded w1*p1 (torch's CPU kernels on any processor with such an instruction).
    """
    height, width = frame.shape[:2]
    _check_aspect(height, width)
    # torchvision _compute_resized_output_size: the long side is cut to whole pixels, not rounded.
    if width <= height:
        new_width, new_height = short_side, int(short_side * height / width)
    else:
        new_height, new_width = short_side, int(short_side * width / height)
    if (new_height, new_width) == (height, width):
        return frame
    left, right, across = _taps(width, new_width)
    mixed = _blend(frame[:, left], frame[:, right], across[None, :, None])
    top, bottom, down = _taps(height, new_height)
    mixed = _blend(mixed[top], mixed[bottom], down[:, None, None])
    rounded: Frame = np.rint(mixed).astype(np.uint8)
    return rounded


def _blend(
    first: NDArray[np.uint8] | NDArray[np.float32],
    second: NDArray[np.uint8] | NDArray[np.float32],
    weight: NDArray[np.float32],
) -> NDArray[np.float32]:
    """fma(1 - weight, first, round(weight * second)); float64 holds the exact product."""
    total = np.multiply(first, np.float32(1) - weight, dtype=np.float64)
    total += np.multiply(second, weight, dtype=np.float32)
    blended: NDArray[np.float32] = total.astype(np.float32)
    return blended


@lru_cache(maxsize=8)
def _taps(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each new pixel: its two source pixels and the weight of the second (align_corners=False)."""
    scale = np.float64(np.float32(old) / np.float32(new))
    # Fused in float32: the product is not rounded before the half is taken off.
    centre = ((np.arange(new) + 0.5) * scale - 0.5).astype(np.float32)
    centre = np.maximum(centre, np.float32(0))
    first = np.minimum(centre.astype(np.int64), old - 1)
    weight = np.clip(centre - first.astype(np.float32), 0, 1).astype(np.float32)
    return first, np.minimum(first + 1, old - 1), weight


def _check_aspect(height: int, width: int) -> None:
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise DecodeError(
            f"frames of {width}x{height} pixels are too long and thin (more than {MAX_ASPECT} to 1)",
            "crop the video first",
        )
