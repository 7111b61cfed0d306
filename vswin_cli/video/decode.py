"""A video file to the RGB frames that a protocol asks for.

decord goes first where it is known to give frame i = the i-th frame shown (and is installed: it has wheels
for few platforms); PyAV reads everything else, and everything that decord gives up on. Both deliver the same
pixels: each uses FFmpeg's decoder and swscale, and rotation from the display matrix is applied. (10-bit and
interlaced video differs slightly at sharp edges: swscale changed there.)

Frames are chosen after the number of frames is known, and converted to RGB one at a time: memory holds the
chosen frames after ``transform``, never the whole video.

A folder of numbered pictures is a video, too: OpenCV reads those.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from vswin_cli.errors import DecodeError, VideoError
from vswin_cli.video.containers import Container, list_pictures, picture_size, sniff
from vswin_cli.video.demux import (
    MAX_FRAMES,
    Index,
    check_size,
    index_video,
    load_av,
    open_video,
    reason,
    video_stream,
)

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

Frame = NDArray[np.uint8]
Choose = Callable[[int, float], Sequence[int]]
Transform = Callable[[Frame], Frame]
Decoder = Literal["auto", "decord", "pyav"]

#: Where decord 0.6.0 gave exactly the frames that PyAV gives, for random choices of frames. It gave others
#: for MPEG-4 part 2, AVI, ASF and transport streams; it cannot read AV1 and GIF; VP8 has hidden frames.
_DECORD = {
    "mov": {"h264", "hevc", "vp9"},
    "matroska": {"h264", "hevc", "vp9"},
    "flv": {"h264", "flv1"},
}
#: Codecs whose packets are one shown frame each, so that counting packets counts frames.
_ONE_FRAME_PER_PACKET = {"h264", "hevc", "vp9", "av1", "gif", "mjpeg", "flv1", "wmv1", "wmv2"}

# decord polls its decoding thread this many times at the end of a file before it gives up (default 10240);
# the count is a matter of timing, and giving up too early only costs a second reading with PyAV.
_EOF_RETRIES = "2048"
#: Of one picture file; MAX_PIXELS of noise as PNG are 200 MB.
_MAX_PICTURE_BYTES = 2**28


@dataclass(frozen=True)
class Decoded:
    """The frames that were asked for, each once.

    ``frames`` (U, h, w, 3) uint8 RGB after the transform, row k being source frame ``indices[k]`` (rising);
    ``total`` T, the frames of the video; ``fps`` its average rate, 0.0 where the file states none;
    ``partial`` says that the file is cut or damaged and T counts the frames before that.
    """

    indices: tuple[int, ...]
    frames: Frame
    total: int
    fps: float
    decoder: str
    partial: bool = False
    notes: tuple[str, ...] = ()


def read(
    path: str | os.PathLike[str],
    choose: Choose,
    transform: Transform | None = None,
    decoder: Decoder = "auto",
) -> Decoded:
    """Decode the frames that ``choose(total, fps)`` names (any order, repeats allowed) from a video file.

    A folder is read as the numbered pictures in it, in the order of their numbers; frame i is the i-th.

    ``transform`` sees each chosen RGB frame (H, W, 3) once and must give frames of one shape. Raises
    ContainerError if the file is no video container, DecodeError if no frame can be had, and whatever
    ``choose`` raises. With decoder='decord' a file that decord cannot read is an error, not handed to PyAV.
    """
    if Path(path).is_dir():
        return _read_pictures(Path(path), choose, transform)
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise DecodeError(
            f"{str(path)!a}: the name is not valid Unicode, which no decoder takes", "rename it"
        ) from None
    container = sniff(path)
    # An absolute path cannot be taken for a protocol such as 'concat:' or for an option.
    file = str(Path(path).absolute())
    index = index_video(file, container)
    notes: list[str] = []
    if decoder != "pyav" and (decoder == "decord" or _decord_fits(container, index)):
        try:
            return _read_decord(file, index, choose, transform)
        except ImportError:
            if decoder == "decord":
                raise DecodeError("decord is not installed", "leave the choice of decoder to vswin") from None
        except _DecordError as error:
            if decoder == "decord":
                raise DecodeError(f"{path}: decord failed: {error}") from error
            notes.append(f"read with PyAV, because decord failed ({error})")
    decoded = _read_pyav(file, container, index, choose, transform)
    return Decoded(**{**vars(decoded), "notes": (*notes, *decoded.notes)})


class _DecordError(Exception):
    """decord could not read a file; the message is one short line."""


def _decord_fits(container: Container, index: Index) -> bool:
    # Open groups of pictures (x265's default): after a seek decord miscounts the frames before the key frame
    # and gives other frames than asked for, without a word.
    return index.regular and index.closed and index.codec in _DECORD.get(container.demuxer, ())


def _load_decord() -> Any:
    """decord with its log silenced; raises ImportError where it is not installed."""
    os.environ["DECORD_EOF_RETRY_MAX"] = _EOF_RETRIES  # read by the library at each use
    import decord  # type: ignore[import-untyped,unused-ignore]  # it has no types, and may be absent

    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _read_decord(file: str, index: Index, choose: Choose, transform: Transform | None) -> Decoded:
    """Raises _DecordError wherever its answer is not to be trusted."""
    decord = _load_decord()
    try:
        # fault_tol: by default decord silently repeats a good frame in place of one that does not decode.
        reader = decord.VideoReader(file, ctx=decord.cpu(0), num_threads=1, fault_tol=1e-6)
        total = len(reader)
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError) as error:
        raise _DecordError(_decord_reason(error)) from error
    if total != index.count:
        raise _DecordError(f"it counts {total} frames, the file has {index.count}")
    wanted = _distinct(choose(total, index.fps), total)
    width, height = index.size
    # Several frames at a time save seeks; the limit is 64 MB of full-size frames.
    batch = max(1, min(16, 2**26 // max(1, width * height * 3)))
    frames = _Collector(len(wanted), transform, file)
    for start in range(0, len(wanted), batch):
        try:
            block: Frame = reader.get_batch(wanted[start : start + batch]).asnumpy()
        except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError) as error:
            raise _DecordError(_decord_reason(error)) from error
        for frame in block:
            frames.add(frame)
    return Decoded(tuple(wanted), frames.array(), total, index.fps, "decord")


def _decord_reason(error: Exception) -> str:
    """decord's messages carry C++ source lines and a stack; keep what is meant."""
    text = str(error).strip().splitlines()
    first = text[0] if text else type(error).__name__
    for known, short in (
        ("Unable to handle EOF", "it found no end of the stream"),
        ("Error sending packet", "a damaged packet"),
        ("LimitReached", "damaged frames"),
        ("recovered from", "damaged frames"),
    ):
        if known in str(error) or known in type(error).__name__:
            return short
    return first.rsplit(": ", 1)[-1][:80]


def _read_pyav(
    file: str, container: Container, index: Index, choose: Choose, transform: Transform | None
) -> Decoded:
    """One pass where packets count the frames, else a pass that counts and a pass that converts."""
    total, damage = index.count, index.cut
    if not (index.regular and index.codec in _ONE_FRAME_PER_PACKET):
        total, stopped = _count(file, container)
        damage = stopped or damage
    # A damaged packet may only show while converting: then the frames before it are the video.
    for _ in range(2):
        if total == 0:
            break
        wanted = _distinct(choose(total, index.fps), total)
        frames = _Collector(len(wanted), transform, file)
        pictures = _Pictures(file, container)
        position, targets = 0, iter(wanted)
        target = next(targets, None)
        for picture in pictures:
            if position == target:
                frames.add(_rgb(picture, index.size, file))
                target = next(targets, None)
                if target is None:
                    break
            position += 1
        if target is None:
            first = "frame" if total == 1 else f"{total} frames"
            notes = (f"partial: only the first {first} could be read ({damage})",) if damage else ()
            return Decoded(tuple(wanted), frames.array(), total, index.fps, "pyav", damage is not None, notes)
        if pictures.error is None and index.regular:
            damage = damage or f"its index has {total} frames, {position} can be decoded"
        total, damage = position, pictures.error or damage
    if total == 0:
        raise DecodeError(
            f"{file}: no frame could be decoded" + (f" ({damage})" if damage else ""),
            "check that it plays; otherwise copy or download it again",
        )
    raise DecodeError(f"{file}: decoding twice gave different numbers of frames", "copy or convert the file")


def _read_pictures(folder: Path, choose: Choose, transform: Transform | None) -> Decoded:
    series = list_pictures(folder)
    total = len(series.names)
    if total > MAX_FRAMES:
        raise DecodeError(f"{folder} has more than {MAX_FRAMES:,} frames", "cut it into shorter clips first")
    wanted = _distinct(choose(total, 0.0), total)  # pictures state no frame rate
    frames = _Collector(len(wanted), transform, str(folder))
    for position in wanted:
        frames.add(_picture(folder / series.names[position]))
    notes = (f"partial: {series.gaps}",) if series.gaps else ()
    return Decoded(tuple(wanted), frames.array(), total, 0.0, "frames", series.gaps is not None, notes)


def _picture(file: Path) -> Frame:
    """(H, W, 3) uint8 RGB of a JPEG or PNG file."""
    try:
        if not file.is_file() or file.stat().st_size > _MAX_PICTURE_BYTES:
            raise DecodeError(f"{file} is no file, or too large for a picture", "extract the frames again")
        data = file.read_bytes()
    except OSError as error:
        raise DecodeError(f"{file} cannot be read: {error.strerror}", "check its permissions") from error
    size = picture_size(data)
    damaged = DecodeError(f"{file} is no JPEG or PNG picture, or it is damaged", "extract the frames again")
    if size is None:
        raise damaged
    check_size(*size, str(file))
    try:
        # mmaction's RawFrameDecode reads with mmcv's flag 'color', which is IMREAD_COLOR: it turns pictures
        # upright by their EXIF orientation (and makes three channels of grey ones).
        picture = cast("Frame | None", cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    except cv2.error:
        picture = None
    if picture is None:
        raise damaged
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def _count(file: str, container: Container) -> tuple[int, str | None]:
    """Frames that decode before the end or the first damage, and the reason if it was damage."""
    pictures = _Pictures(file, container)
    count = 0
    for _ in pictures:
        count += 1
        if count > MAX_FRAMES:
            raise DecodeError(
                f"{file} has more than {MAX_FRAMES:,} frames", "cut it into shorter clips first"
            )
    return count, pictures.error


class _Pictures:
    """The frames of a video in presentation order; ``error`` says afterwards why they ended early, if so."""

    def __init__(self, file: str, container: Container) -> None:
        self.file = file
        self.container = container
        self.error: str | None = None

    def __iter__(self) -> Iterator[VideoFrame]:
        av = load_av()
        with open_video(self.file, self.container) as opened:
            stream = video_stream(opened, self.file)
            context: VideoCodecContext = stream.codec_context
            try:
                for packet in opened.demux(stream):
                    yield from packet.decode()
                return
            except av.FFmpegError as error:
                self.error = reason(error)
            # Frames before the damage may still wait in the decoder to be put in order.
            try:
                yield from context.decode(None)
            except av.FFmpegError:
                return  # nothing more to be had; the first reason stands in self.error


def _rgb(picture: VideoFrame, size: tuple[int, int], file: str) -> Frame:
    """(H, W, 3) uint8 RGB, turned upright; ``size`` is (width, height) of the stream before turning."""
    check_size(picture.width, picture.height, file)
    width, height = size if min(size) > 0 else (picture.width, picture.height)
    # A size that changes in mid-stream is scaled back to the first, as decord's filter does.
    frame = cast(Frame, picture.to_ndarray(format="rgb24", width=width, height=height))
    turns, rest = divmod(picture.rotation, 90)
    # FFmpeg's rotation is counter-clockwise degrees, as is np.rot90; players ignore other angles too.
    return np.rot90(frame, turns % 4) if rest == 0 and turns % 4 else frame


def _distinct(chosen: Sequence[int], total: int) -> list[int]:
    """The chosen indices, each once, rising."""
    wanted = sorted({int(i) for i in chosen})
    if not wanted or wanted[0] < 0 or wanted[-1] >= total:
        raise ValueError(f"chosen frames must lie in 0..{total - 1}")
    return wanted


class _Collector:
    """Fills one array with the transformed frames; its shape is known from the first one."""

    def __init__(self, count: int, transform: Transform | None, file: str) -> None:
        self._count = count
        self._transform = transform
        self._file = file
        self._frames: Frame | None = None
        self._filled = 0

    def add(self, frame: Frame) -> None:
        if self._transform is not None:
            frame = self._transform(frame)
        if self._frames is None:
            self._frames = np.empty((self._count, *frame.shape), np.uint8)
        if frame.shape != self._frames.shape[1:]:
            raise DecodeError(
                f"{self._file}: frames change in mid-video from {self._frames.shape[1:]} to {frame.shape}",
                "convert it to one size with ffmpeg",
            )
        self._frames[self._filled] = frame
        self._filled += 1

    def array(self) -> Frame:
        if self._frames is None or self._filled != self._count:
            raise VideoError(f"{self._file}: {self._filled} of {self._count} frames arrived")
        return self._frames
