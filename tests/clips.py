"""Small videos for tests, written with PyAV: every frame carries its own number as black and white blocks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.codec
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]

WIDTH, HEIGHT = 192, 128
BITS, BLOCK = 12, 16  # the number, lowest bit first, in blocks along the top edge


def draw(number: int, width: int = WIDTH, height: int = HEIGHT) -> Frame:
    """(height, width, 3) uint8: a ramp that moves with the number, its bits on top, red at the lower left."""
    ramp = (np.arange(width)[None, :] + np.arange(height)[:, None] + 3 * number) % 200
    frame = np.repeat(ramp[:, :, None], 3, axis=2).astype(np.uint8)
    for bit in range(BITS):
        frame[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    frame[-BLOCK:, :BLOCK] = (230, 20, 20)
    return frame


def number_of(frame: Frame) -> int:
    """The number that a frame carries, at any size (blocks keep their share of width and height)."""
    height, width = frame.shape[:2]
    y = int(BLOCK / 2 / HEIGHT * height)
    columns = [int((bit + 0.5) * BLOCK / WIDTH * width) for bit in range(BITS)]
    return sum(1 << bit for bit, x in enumerate(columns) if frame[y, x].mean() > 128)


def numbers_of(frames: Frame) -> list[int]:
    """The numbers of (U, h, w, 3) frames."""
    return [number_of(frame) for frame in frames]


def has_encoder(codec: str) -> bool:
    """Whether this build of PyAV can write a codec."""
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def write_clip(
    path: Path,
    frames: int = 20,
    codec: str = "libx264",
    *,
    fps: int = 25,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    ticks: Sequence[int] | None = None,
    rotation: int | None = None,
    numbers: Sequence[int] | None = None,
    **encoder: Any,
) -> Path:
    """Write one clip and return its path.

    ``ticks`` are presentation times in 1/1000 s for a variable rate; ``rotation`` a display matrix, degrees;
    ``numbers`` what the frames carry, else 0..frames-1; ``encoder`` sets attributes of the codec context.
    """
    with av.open(str(path), "w", options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        for name, value in encoder.items():
            setattr(stream.codec_context, name, value)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        base = Fraction(1, 1000) if ticks is not None else Fraction(1, fps)
        stream.codec_context.time_base = base
        for i, number in enumerate(range(frames) if numbers is None else numbers):
            frame = av.VideoFrame.from_ndarray(draw(number, *size), format="rgb24").reformat(format=pixels)
            frame.pts = i if ticks is None else ticks[i]
            frame.time_base = base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def write_audio(path: Path, cover: bool = False) -> Path:
    """Half a second of silence in an MP4 without a video stream, or with cover art as music has."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        if cover:
            art = out.add_stream("png", rate=1)
            art.width, art.height, art.pix_fmt = WIDTH, HEIGHT, "rgb24"
            art.disposition = av.stream.Disposition.attached_pic
            out.mux(art.encode(av.VideoFrame.from_ndarray(draw(0), format="rgb24")))
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, i * 1024
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def packets_of(path: Path) -> list[tuple[int, int]]:
    """(position in the file, size in bytes) of each video packet, in file order."""
    with av.open(str(path)) as opened:
        return [(p.pos, p.size) for p in opened.demux(video=0) if p.size and p.pos is not None]


def damage(path: Path, packet: int) -> None:
    """Overwrite all of one packet with 0xFF, so that its decoder refuses it."""
    position, size = packets_of(path)[packet]
    data = bytearray(path.read_bytes())
    data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
