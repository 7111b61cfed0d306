"""Opening a video with PyAV, and what its packets tell without decoding a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from vswin_cli.errors import DecodeError
from vswin_cli.video.containers import Container

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

#: Larger pictures are refused: a header of a few bytes can ask a decoder for gigabytes.
MAX_PIXELS = 8192 * 8192
#: 9 hours at 30 frames per second; an index of more is a damaged or hostile file.
MAX_FRAMES = 1_000_000


@dataclass(frozen=True)
class Index:
    """What demuxing alone tells, without decoding a frame."""

    codec: str
    count: int  # packets that should give a shown frame
    fps: float
    size: tuple[int, int]  # width, height
    regular: bool  # distinct timestamps, a key frame first, nothing hidden or damaged
    closed: bool  # no frame is shown before the key frame that it follows in the file
    cut: str | None  # why the file is known to be incomplete


def load_av() -> Any:
    """PyAV, with FFmpeg's own talk switched off: what matters is raised."""
    import av
    import av.logging

    av.logging.set_level(None)
    return av


def open_video(file: str, container: Container) -> InputContainer:
    """Open with the one demuxer that ``sniff`` allowed and no protocol but local files."""
    av = load_av()
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": _whitelist(container.demuxer),
    }
    if container.demuxer == "mov":
        # A QuickTime file may name other files for its data; FFmpeg's default is to ignore that. Keep it so.
        options |= {"enable_drefs": "0", "use_absolute_path": "0"}
    try:
        # Not 'options': before PyAV 18 that crashes on formats whose header names no streams (FLV, MPEG-TS).
        opened: InputContainer = av.open(
            file, format=container.demuxer, container_options=options, metadata_errors="replace"
        )
    except av.FFmpegError as error:
        raise DecodeError(
            f"{file}: the {container.name} file cannot be opened: {reason(error)}",
            "it may be cut off or damaged: copy or download it again",
        ) from error
    return opened


def _whitelist(demuxer: str) -> str:
    """FFmpeg compares the list with a demuxer's full name."""
    return {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}.get(demuxer, demuxer)


def reason(error: Exception) -> str:
    """One line of an FFmpeg error, without the path that we print ourselves."""
    text = getattr(error, "strerror", None) or str(error)
    return str(text).splitlines()[0] if text else type(error).__name__


def video_stream(opened: InputContainer, file: str) -> VideoStream:
    """The video stream that FFmpeg (and decord) would choose; cover art does not count."""
    av = load_av()
    stream = cast("VideoStream | None", opened.streams.best("video"))
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise DecodeError(f"{file} has no video stream (audio only?)", "name a file with pictures in it")
    context = cast("VideoCodecContext | None", stream.codec_context)
    if context is None:
        raise DecodeError(f"{file}: there is no decoder for its video", "convert it to H.264 MP4 with ffmpeg")
    check_size(context.width, context.height, file)
    context.thread_count = 1  # several workers run side by side, and damage then always hits the same frame
    # FFmpeg's own guard: the size can also change in the middle of a stream.
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def check_size(width: int, height: int, file: str) -> None:
    """Raises DecodeError for frames of more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise DecodeError(
            f"{file}: frames of {width}x{height} pixels exceed the {MAX_PIXELS:,} pixels that vswin allows",
            "scale the video down first: ffmpeg -i INPUT -vf scale=-2:1080 OUTPUT.mp4",
        )


def index_video(file: str, container: Container) -> Index:
    """Demux the whole video stream once, decoding nothing: milliseconds for a ten-second clip."""
    av = load_av()
    with open_video(file, container) as opened:
        stream = video_stream(opened, file)
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else 0.0
        context = stream.codec_context
        stamps: set[int] = set()
        count, hidden, regular, closed = 0, 0, True, True
        key: int | None = None
        cut = f"{container.missing} bytes are missing at the end" if container.missing else None
        try:
            for packet in opened.demux(stream):
                if packet.size == 0:  # PyAV's marker for the end of the stream
                    continue
                if packet.is_discard:
                    hidden += 1
                    regular = False
                    continue
                if count == 0 and hidden == 0 and not packet.is_keyframe:
                    regular = False
                if packet.is_corrupt or packet.pts is None or packet.pts in stamps:
                    regular = False
                else:
                    stamps.add(packet.pts)
                    if packet.is_keyframe:
                        key = packet.pts
                    elif key is not None and packet.pts < key:
                        closed = False
                count += 1
                if count > MAX_FRAMES:
                    raise DecodeError(
                        f"{file} has more than {MAX_FRAMES:,} frames", "cut it into shorter clips first"
                    )
        except av.FFmpegError as error:
            cut = cut or f"reading stopped early: {reason(error)}"
        # MP4 tables state the exact number of frames (edit lists hide some of them).
        if container.demuxer == "mov" and stream.frames > count + hidden:
            cut = cut or f"it holds {count} of the {stream.frames} frames in its index"
        codec = stream.codec.canonical_name
        return Index(codec, count, fps, (context.width, context.height), regular and cut is None, closed, cut)
