"""What a file is, by its first bytes, before any decoder may open it.

FFmpeg picks a demuxer by content, not by name: a text playlist called clip.mp4 makes it open whatever other
files or addresses the text lists. So only containers that hold their own frames are let through, and PyAV is
told the one demuxer to use.

A video may also be a folder of numbered pictures, as frame-based data sets keep them (img_00001.jpg).
"""

from __future__ import annotations

import itertools
import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from vswin_cli.errors import ContainerError

_HEAD = 16_384  # enough to tell text from bytes and to see several MPEG-TS packets


@dataclass(frozen=True)
class Container:
    """A container we open: ``name`` for people, ``demuxer`` as FFmpeg calls it, and whether the file is cut.

    ``missing`` counts the bytes that the container's own header promises and the file does not have.
    """

    name: str
    demuxer: str
    missing: int = 0


# ISO base media files that hold pictures instead of a video.
_IMAGE_BRANDS = (b"avif", b"heic", b"heix", b"mif1", b"msf1")
# QuickTime files from before 'ftyp' start with one of these atoms.
_MOV_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp")

_VIDEO_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c", "ASF/WMV", "asf"),
    (b"FLV\x01", "FLV", "flv"),
    (b"GIF87a", "GIF", "gif"),
    (b"GIF89a", "GIF", "gif"),
    (b"OggS", "Ogg", "ogg"),
    (b"\x00\x00\x01\xba", "MPEG program stream", "mpeg"),
    (b"\x00\x00\x01\xb3", "MPEG video stream", "mpegvideo"),
    (b"\x00\x00\x01\xb0", "MPEG-4 video stream", "m4v"),
    (b"DKIF", "IVF", "ivf"),
    (b"YUV4MPEG2 ", "Y4M", "yuv4mpegpipe"),
)

_OTHER_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"#EXTM3U", "an HLS playlist"),
    (b"ffconcat", "an FFmpeg concat list"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"%PDF", "a PDF document"),
    (b"ID3", "an MP3 audio file"),
    (b"fLaC", "a FLAC audio file"),
    (b"\x7fELF", "a program"),
)


def sniff(path: str | os.PathLike[str]) -> Container:
    """The container of a file by its first bytes.

    Raises ContainerError, which says what the file looks like instead: missing, a folder, empty, a playlist,
    a web page, an image and so on.
    """
    file = Path(path)
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ContainerError(
                f"{file} is a folder, not a video", "name its files, for example FOLDER/*.mp4"
            )
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for a writer that may never come.
            raise ContainerError(f"{file} is not a regular file", "save the video to a file first")
        with file.open("rb") as stream:
            head = stream.read(_HEAD)
    except FileNotFoundError:
        raise ContainerError(f"{file} does not exist", "check the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ContainerError(
            f"{file} cannot be read: {reason}", "check the path and its permissions"
        ) from error
    if not head:
        raise ContainerError(f"{file} is empty (0 bytes)", "download or copy it again")
    container = _recognise(head, status.st_size)
    if container is None:
        raise ContainerError(
            f"{file} is not a video that vswin opens: it looks like {_looks_like(head)}",
            "convert it to MP4, for example: ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4",
        )
    return container


def _recognise(head: bytes, size: int) -> Container | None:
    if head[4:8] in _MOV_ATOMS:
        if head[4:8] == b"ftyp" and head[8:12] in _IMAGE_BRANDS:
            return None
        return Container("MP4/MOV", "mov")
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return Container("Matroska/WebM", "matroska", _matroska_missing(head, size))
    if head.startswith(b"RIFF") and head[8:12] in (b"AVI ", b"AVIX"):
        promised = int.from_bytes(head[4:8], "little")
        known = 0 < promised < 2**32 - 1  # live writers leave it open
        return Container("AVI", "avi", max(0, promised + 8 - size) if known else 0)
    for signature, name, demuxer in _VIDEO_SIGNATURES:
        if head.startswith(signature):
            return Container(name, demuxer)
    # Transport streams have no magic number, only a sync byte per packet; M2TS puts 4 bytes before each.
    for start, step in ((0, 188), (4, 192)):
        packets = head[start::step][:5]
        if len(packets) >= 3 and set(packets) == {0x47}:
            return Container("MPEG transport stream", "mpegts")
    return None


def _matroska_missing(head: bytes, size: int) -> int:
    """Bytes that the Segment element promises and the file lacks; 0 when complete or of unknown length."""
    segment = head.find(b"\x18\x53\x80\x67", 0, 4096)
    if segment < 0 or segment + 5 > len(head):
        return 0
    start = segment + 4
    width = 9 - head[start].bit_length()  # EBML: leading zeros of the first byte give the length's own length
    if not 1 <= width <= 8 or start + width > len(head):
        return 0
    length = int.from_bytes(head[start : start + width], "big") & ((1 << 7 * width) - 1)
    if length == (1 << 7 * width) - 1:  # all ones: live streams do not know their length
        return 0
    return max(0, start + width + length - size)


def _looks_like(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        return "an AVIF or HEIF image"
    if head.startswith(b"RIFF"):
        return {b"WAVE": "a WAV audio file", b"WEBP": "a WebP image"}.get(head[8:12], "an unknown RIFF file")
    for signature, what in _OTHER_SIGNATURES:
        if head.startswith(signature):
            return what
    if b"\x00" in head:
        return "unknown binary data"
    text = head.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n").lower()
    for mark, what in (
        ("#extm3u", "an HLS playlist"),
        ("ffconcat", "an FFmpeg concat list"),
        ("<!doctype html", "a web page"),
        ("<html", "a web page"),
        ("version https://git-lfs", "a Git LFS pointer (the video itself was not downloaded)"),
    ):
        if text.startswith(mark):
            return what
    if "<mpd" in text:
        return "a DASH manifest"
    if text.startswith(("<?xml", "<")):
        return "an XML or web page"
    return "unknown binary data" if text.count("\ufffd") > len(text) // 10 else "a text file"


#: img_00001.jpg, frame000001.jpg, 1.png: what is before the number names the series.
_PICTURE = re.compile(r"(.*?)([0-9]{1,18})\.(?:jpe?g|png)", re.IGNORECASE | re.DOTALL)
_FLOW = ("flow_x", "flow_y")  # optical flow that mmaction's tools write beside the frames


@dataclass(frozen=True)
class PictureSeries:
    """The numbered pictures of a folder, in order; ``gaps`` says where numbers are missing."""

    names: tuple[str, ...]
    gaps: str | None = None


def _picture(name: str) -> re.Match[str] | None:
    return None if name.startswith((".", *_FLOW)) else _PICTURE.fullmatch(name)


def holds_pictures(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a video as numbered pictures; looks for the first one only. Raises OSError."""
    with os.scandir(folder) as entries:
        return any(_picture(entry.name) for entry in entries)


def list_pictures(folder: str | os.PathLike[str]) -> PictureSeries:
    """The frames of a folder of numbered pictures. Raises ContainerError if there are none, or two series."""
    try:
        found = [match for path in Path(folder).iterdir() if (match := _picture(path.name))]
    except OSError as error:
        raise ContainerError(
            f"{folder} cannot be listed: {error.strerror}", "check the path and its permissions"
        ) from error
    if not found:
        raise ContainerError(
            f"{folder} is a folder, not a video: it holds no numbered pictures such as img_00001.jpg",
            "name its files, for example FOLDER/*.mp4",
        )
    if len(series := sorted({match[1] for match in found})) > 1:
        raise ContainerError(
            f"{folder} holds pictures of {len(series)} series: {', '.join(f'{s}*' for s in series[:5])}",
            "keep the frames of one video in a folder",
        )
    found.sort(key=lambda match: (int(match[2]), match[0]))
    numbers = [int(match[2]) for match in found]
    steps = [b - a for a, b in itertools.pairwise(numbers)]
    if 0 in steps:
        a, b = (found[steps.index(0) + k][0] for k in (0, 1))
        raise ContainerError(f"{folder} has one frame number twice: {a} and {b}", "remove one of the two")
    # Numbers may rise by 5, say, where every fifth frame was kept: that is no gap.
    stride = math.gcd(*steps) or 1
    gaps = None
    if steps and max(steps) > stride:
        missing = (numbers[-1] - numbers[0]) // stride + 1 - len(numbers)
        before = next(i for i, step in enumerate(steps) if step > stride)
        gaps = f"{missing} picture{'s' * (missing != 1)} missing, the first after {found[before][0]}"
    return PictureSeries(tuple(match[0] for match in found), gaps)


def picture_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a whole JPEG or PNG file by its header; None for anything else, or if it is cut."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
        whole = data.find(b"IEND", 24) > 0
        return (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) if whole else None
    if not data.startswith(b"\xff\xd8"):
        return None
    size, at = None, 2
    while at + 4 <= len(data) and data[at] == 0xFF:  # segments: FF, marker, length of the rest
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC) and at + 9 <= len(data):
            height, width = (int.from_bytes(data[at + k : at + k + 2], "big") for k in (5, 7))
            size = size or (width, height)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # pixels follow; in them FF D9 can only be the end marker
            return size if data.find(b"\xff\xd9", at) > 0 else None
    return None
