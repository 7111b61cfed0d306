"""Decoding: frame i is the i-th frame shown, in any container; nothing but a video reaches a decoder."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import clips
from vswin_cli.errors import ContainerError, DecodeError, VideoError
from vswin_cli.video import decode, demux
from vswin_cli.video.containers import sniff
from vswin_cli.video.decode import Decoded, read

try:
    import decord  # noqa: F401
except ImportError:
    HAS_DECORD = False
else:
    HAS_DECORD = True
needs_decord = pytest.mark.skipif(not HAS_DECORD, reason="decord has no wheel for this platform")

B_FRAMES = {"bf": "3", "g": "12"}


def every(total: int, fps: float) -> range:
    return range(total)


# name, arguments of write_clip, the decoder that should read it where decord is installed
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "plain.mp4": ({"options": {"bf": "0"}}, "decord"),
    "bframes.mp4": ({"frames": 40, "options": B_FRAMES}, "decord"),
    "bframes.mkv": ({"frames": 40, "options": B_FRAMES}, "decord"),
    "opengop.mp4": ({"frames": 40, "options": {**B_FRAMES, "x264-params": "open-gop=1"}}, "pyav"),
    "fragmented.mp4": ({"container_options": {"movflags": "frag_keyframe+empty_moov"}}, "decord"),
    "vfr.mp4": ({"ticks": [0, 20, 25, 90, 91, 200, 240, 300, 500, 510], "frames": 10}, "decord"),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}, "decord"),
    "hevc.mp4": (
        {"codec": "libx265", "frames": 40, "options": {"x265-params": "log-level=none:keyint=10:open-gop=0"}},
        "decord",
    ),
    "hevc-open.mp4": (  # open groups of pictures are x265's default
        {
            "codec": "libx265",
            "frames": 40,
            "options": {"x265-params": "log-level=none:keyint=10:min-keyint=10"},
        },
        "pyav",
    ),
    "mpeg4.mp4": ({"codec": "mpeg4", "options": {"bf": "2"}}, "pyav"),
    "flash.flv": ({"codec": "flv1"}, "decord"),
    "bframes.avi": ({"frames": 40, "options": B_FRAMES}, "pyav"),
    "bframes.ts": ({"frames": 40, "options": B_FRAMES}, "pyav"),
    "mpeg4.avi": ({"codec": "mpeg4", "options": {"bf": "2"}}, "pyav"),
    "motion.avi": ({"codec": "mjpeg", "pixels": "yuvj420p"}, "pyav"),
    "vp8.webm": (
        {"codec": "libvpx", "frames": 40, "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
        "pyav",
    ),
    "mpeg2.mpg": ({"codec": "mpeg2video"}, "pyav"),
    "windows.wmv": ({"codec": "wmv2"}, "pyav"),
    "picture.gif": ({"codec": "gif", "pixels": "rgb8"}, "pyav"),
    "raw.y4m": ({"codec": "wrapped_avframe"}, "pyav"),
    "av1.mp4": ({"codec": "libsvtav1", "frames": 6, "options": {"preset": "12"}}, "pyav"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


def clip(made: Path, name: str) -> Path:
    """The clip of that name, written once."""
    path = made / name
    arguments = KINDS[name][0]
    if not clips.has_encoder(arguments.get("codec", "libx264")):
        pytest.skip(f"this PyAV cannot write {arguments['codec']}")
    return path if path.exists() else clips.write_clip(path, **arguments)


@pytest.mark.parametrize("name", KINDS)
def test_frame_i_is_the_ith_shown(made: Path, name: str) -> None:
    path = clip(made, name)
    count = KINDS[name][0].get("frames", 20)
    by_pyav = read(path, every, decoder="pyav")
    assert by_pyav.total == count
    assert clips.numbers_of(by_pyav.frames) == list(range(count))
    assert by_pyav.indices == tuple(range(count))
    assert not by_pyav.partial
    assert by_pyav.notes == ()
    assert by_pyav.frames.shape == (count, clips.HEIGHT, clips.WIDTH, 3)

    by_default = read(path, every)
    assert by_default.decoder == (KINDS[name][1] if HAS_DECORD else "pyav")
    assert (by_default.total, by_default.fps) == (by_pyav.total, by_pyav.fps)
    # Both use swscale with the same settings: equal to the last bit on 8-bit progressive video.
    assert np.array_equal(by_default.frames, by_pyav.frames)
    if name != "vfr.mp4":
        assert by_default.fps == pytest.approx(25.0)


@pytest.mark.parametrize("name", KINDS)
def test_few_frames_are_the_right_ones(made: Path, name: str) -> None:
    """Sparse frames need seeks in decord, which gives other frames on some files; those must not go to it."""
    path = clip(made, name)
    last = KINDS[name][0].get("frames", 20) - 1
    for wanted in ([17, 3, 3, 11], [last], [0], [12, 13, 1], [last, last - 3, 8], range(1, last, 4)):
        possible = [i for i in wanted if i <= last]
        if possible:
            decoded = read(path, lambda _total, _fps, possible=possible: possible)
            assert decoded.indices == tuple(sorted(set(possible)))
            assert clips.numbers_of(decoded.frames) == sorted(set(possible))


@pytest.mark.parametrize("decoder", [pytest.param("decord", marks=needs_decord), "pyav"])
@pytest.mark.parametrize("angle", [90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, angle: int, decoder: Any) -> None:
    path = clips.write_clip(tmp_path / "turned.mp4", 3, rotation=angle)
    frames = read(path, every, decoder=decoder).frames
    # A display rotation of d degrees counter-clockwise is d / 90 quarter turns of np.rot90.
    upright = np.rot90(frames, -angle // 90, axes=(1, 2))
    assert clips.numbers_of(upright) == [0, 1, 2]
    assert upright[0, -4, 4, 0] > 150  # the red corner: not mirrored
    assert upright[0, -4, 4, 1] < 100


def test_pyav_reads_all_where_decord_is_missing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(made, "bframes.mp4")
    monkeypatch.setitem(sys.modules, "decord", None)  # import decord raises ImportError
    decoded = read(path, every)
    assert decoded.decoder == "pyav"
    assert decoded.notes == ()
    with pytest.raises(DecodeError, match="not installed"):
        read(path, every, decoder="decord")


def test_the_transform_sees_each_chosen_frame_once(made: Path) -> None:
    seen: list[int] = []

    def shrink(frame: np.ndarray) -> np.ndarray:
        seen.append(clips.number_of(frame))
        return frame[::2, ::2]

    decoders: tuple[decode.Decoder, ...] = ("pyav", "auto")
    for decoder in decoders:
        seen.clear()
        decoded = read(clip(made, "bframes.mp4"), lambda _total, _fps: [5, 30, 5, 2], shrink, decoder)
        assert seen == [2, 5, 30]
        assert decoded.frames.shape == (3, clips.HEIGHT // 2, clips.WIDTH // 2, 3)


@pytest.mark.parametrize("chosen", [[20], [-1], []])
def test_choices_outside_the_video_are_a_bug_of_the_caller(made: Path, chosen: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.19"):
        read(clip(made, "plain.mp4"), lambda _total, _fps: chosen)


# ------------------------------------------------------------------------------------ damaged and cut files


@pytest.mark.parametrize("name", ["plain.mp4", "mpeg4.avi", "av1.mp4"])
def test_frames_before_the_damage_are_kept(made: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(clip(made, name).read_bytes())
    clips.damage(path, 4)
    totals: list[int] = []

    def choose(total: int, fps: float) -> range:
        totals.append(total)
        return range(total)

    decoded = read(path, choose)
    assert decoded.decoder == "pyav"
    assert decoded.partial
    assert totals[-1] == decoded.total == 4  # sampling is over the frames that there are
    assert clips.numbers_of(decoded.frames) == [0, 1, 2, 3]
    assert "only the first 4 frames" in decoded.notes[-1]


@needs_decord
def test_a_note_tells_that_decord_failed(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(clip(made, "plain.mp4").read_bytes())
    clips.damage(path, 4)
    assert read(path, every).notes[0] == "read with PyAV, because decord failed (a damaged packet)"
    with pytest.raises(DecodeError, match="decord failed: a damaged packet"):
        read(path, every, decoder="decord")
    # Damage after the last frame that is needed is nobody's concern.
    early = read(path, lambda _total, _fps: [0, 2])
    assert early.total == 20
    assert not early.partial


def test_damage_after_the_last_needed_frame_is_not_met(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(clip(made, "plain.mp4").read_bytes())
    clips.damage(path, 10)
    decoded = read(path, lambda _total, _fps: [0, 5], decoder="pyav")
    assert decoded.total == 20
    assert not decoded.partial


@needs_decord
def test_decord_must_not_repeat_frames_in_silence(made: Path) -> None:
    """In a transport stream decord 0.6.0 replaces frames by their neighbours; we make that an error."""
    with pytest.raises(DecodeError, match="damaged frames"):
        read(clip(made, "bframes.ts"), every, decoder="decord")


@pytest.mark.parametrize("name", ["bframes.mkv", "bframes.avi", "faststart.mp4"])
def test_cut_files_say_that_they_are_cut(tmp_path: Path, name: str) -> None:
    container: dict[str, str] = {"movflags": "faststart"} if name.endswith("mp4") else {}
    whole = clips.write_clip(tmp_path / name, 40, options=B_FRAMES, container_options=container)
    assert not read(whole, every).partial
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 4 // 5])
    decoded = read(cut, every)
    assert decoded.partial
    assert 5 < decoded.total < 40
    assert clips.numbers_of(decoded.frames)[:5] == [0, 1, 2, 3, 4]
    assert decoded.notes[-1].startswith(f"partial: only the first {decoded.total} frames could be read (")


def test_a_file_cut_between_two_frames_says_so(tmp_path: Path) -> None:
    """No packet is damaged then; only the index of the MP4 knows that there were more."""
    whole = clips.write_clip(tmp_path / "a.mp4", container_options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: clips.packets_of(whole)[12][0]])
    decoded = read(cut, every)
    assert decoded.partial
    assert decoded.total == 12
    assert len(decoded.notes) == 1


@pytest.mark.parametrize("name", ["plain.mp4", "bframes.mp4"])
def test_frames_that_an_edit_list_hides_do_not_count(made: Path, tmp_path: Path, name: str) -> None:
    """A trimmed MP4 keeps its old frames and an edit list says where to start; decord counts them all."""
    data = bytearray(clip(made, name).read_bytes())
    edit = data.index(b"elst") + 16
    header = data.index(b"mdhd") + 16
    (start,) = struct.unpack_from(">i", data, edit)
    (ticks_per_second,) = struct.unpack_from(">I", data, header)
    struct.pack_into(">i", data, edit, start + 5 * ticks_per_second // 25)
    path = tmp_path / name
    path.write_bytes(data)
    count = KINDS[name][0].get("frames", 20)
    decoded = read(path, every)
    assert decoded.decoder == "pyav"
    assert clips.numbers_of(decoded.frames) == list(range(5, count))
    assert not decoded.partial
    if HAS_DECORD:
        with pytest.raises(DecodeError, match=f"it counts {count} frames, the file has {count - 5}"):
            read(path, every, decoder="decord")


def test_one_frame(tmp_path: Path) -> None:
    decoded = read(clips.write_clip(tmp_path / "one.mp4", 1), every)
    assert clips.numbers_of(decoded.frames) == [0]


def test_nothing_to_decode_is_a_clear_error(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="no video stream"):
        read(clips.write_audio(tmp_path / "sound.mp4"), every)
    with pytest.raises(DecodeError, match="no video stream"):
        read(clips.write_audio(tmp_path / "song.mp4", cover=True), every)
    headless = tmp_path / "headless.mp4"  # no index: its 'moov' was never written
    headless.write_bytes(clip(made, "plain.mp4").read_bytes()[:2000])
    with pytest.raises(DecodeError, match="cannot be opened") as caught:
        read(headless, every)
    assert caught.value.hint
    all_bad = tmp_path / "bad.mp4"
    all_bad.write_bytes(clip(made, "plain.mp4").read_bytes())
    clips.damage(all_bad, 0)
    with pytest.raises(DecodeError, match="no frame could be decoded"):
        read(all_bad, every)


def test_huge_frames_and_endless_indexes_are_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demux, "MAX_PIXELS", clips.WIDTH * clips.HEIGHT - 1)
    with pytest.raises(DecodeError, match="192x128 pixels exceed"):
        read(clip(made, "plain.mp4"), every)
    monkeypatch.undo()
    for module in (decode, demux):
        monkeypatch.setattr(module, "MAX_FRAMES", 19)
    for name in ("plain.mp4", "mpeg4.avi"):
        with pytest.raises(DecodeError, match="more than 19 frames"):
            read(clip(made, name), every)


def test_decoding_keeps_only_the_chosen_frames(tmp_path: Path) -> None:
    """300 frames of 640x480 are 276 MB as RGB; reading three of them must stay far below that."""
    path = clips.write_clip(tmp_path / "a.mp4", 300, size=(640, 480), options={"preset": "ultrafast"})
    script = (
        "import resource, sys\n"
        "from vswin_cli.video.decode import read\n"
        "few = lambda _total, _fps: [0, 150, 299]\n"
        "read(sys.argv[1], lambda t, f: [0], decoder=sys.argv[2])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert read(sys.argv[1], few, decoder=sys.argv[2]).frames.shape[0] == 3\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    if sys.platform != "linux":
        pytest.skip("ru_maxrss is in kilobytes on Linux only")
    for decoder in ("pyav", "auto"):
        done = subprocess.run(
            [sys.executable, "-c", script, path, decoder], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) < 60_000  # kilobytes


# ----------------------------------------------------------------------------------------- what is no video


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.mp4\n", "HLS playlist"),
        (b"\xef\xbb\xbf\r\n#EXTM3U\n", "HLS playlist"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "concat list"),
        (b"<?xml version='1.0'?>\n<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>", "DASH manifest"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"v=0\r\nc=IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n", "text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "PNG image"),
        (b"\xff\xd8\xff\xe0" + bytes(20), "JPEG image"),
        (b"\x00\x00\x00\x1cftypavif" + bytes(20), "AVIF"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(20), "WAV audio"),
        (b"RIFF\x24\x00\x00\x00WEBPVP8 " + bytes(20), "WebP image"),
        (b"PK\x03\x04" + bytes(20), "zip archive"),
        (b"ID3\x04" + bytes(20), "MP3 audio"),
        (bytes(400), "unknown binary"),
        (b"\x47" + bytes(500), "unknown binary"),  # one sync byte is no transport stream
        (b"hello world\n", "text file"),
        (b"Good morning\n", "text file"),  # G is the sync byte of a transport stream
    ],
)
def test_other_files_are_named_and_never_reach_a_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, what: str
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a decoder was started")

    monkeypatch.setattr(demux, "load_av", never)
    monkeypatch.setattr(decode, "load_av", never)
    monkeypatch.setattr(decode, "_load_decord", never)
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(ContainerError, match=what) as caught:
        read(path, every)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_missing_folders_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="does not exist"):
        sniff(tmp_path / "none.mp4")
    with pytest.raises(ContainerError, match="is a folder"):
        sniff(tmp_path)
    with pytest.raises(ContainerError, match="cannot be read"):
        sniff("a\0b.mp4")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.mp4")
        with pytest.raises(ContainerError, match="not a regular file"):
            sniff(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("name", KINDS)
def test_sniffing_finds_the_demuxer_that_ffmpeg_finds(made: Path, name: str) -> None:
    import av

    path = clip(made, name)
    with av.open(str(path)) as opened:
        assert sniff(path).demuxer in opened.format.name.split(",")
    assert sniff(path).missing == 0


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_data_reference_to_another_file_is_not_followed(made: Path, tmp_path: Path, decoder: Any) -> None:
    """A QuickTime track may say that its samples lie in another file ('dref' not self-contained)."""
    whole = clip(made, "plain.mp4").read_bytes()
    (tmp_path / "other.mp4").write_bytes(whole)
    index, data = whole.index(b"moov") - 4, whole.index(b"mdat")
    assert data < index
    url = whole.index(b"url \x00\x00\x00\x01")
    patched = bytearray(whole)
    patched[url : url + 8] = b"alis\x00\x00\x00\x00"  # an alias, and no longer 'in this file'
    (tmp_path / "a.mov").write_bytes(
        bytes(patched[:data]) + b"mdat" + bytes(index - data - 4) + bytes(patched[index:])
    )
    with pytest.raises(VideoError):
        read(tmp_path / "a.mov", every, decoder=decoder)


def test_playlists_are_refused_even_by_the_opening_itself(made: Path, tmp_path: Path) -> None:
    """Behind the look at the first bytes stands FFmpeg's own list of allowed demuxers."""
    from vswin_cli.video.containers import Container

    clip(made, "plain.mp4")
    listing = tmp_path / "list.mp4"
    listing.write_text(f"ffconcat version 1.0\nfile {made / 'plain.mp4'}\n")
    for demuxer in ("mov", "matroska", "mpegts"):
        with pytest.raises(DecodeError):
            demux.index_video(str(listing), Container("disguised", demuxer))


def test_names_that_look_like_protocols_are_plain_files(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a.mp4|b.mp4", "file:x.mp4", "-i.mp4", "spaß und ötzi %03d.mp4"):
        Path(name).write_bytes(clip(made, "plain.mp4").read_bytes())
        decoded: Decoded = read(name, lambda _total, _fps: [7])
        assert clips.numbers_of(decoded.frames) == [7]


def test_decoding_imports_neither_torch_nor_typer(made: Path) -> None:
    script = (
        "import sys; import vswin_cli.video.views as v; from vswin_cli.config import PROTOCOLS; "
        "v.prepare(sys.argv[1], PROTOCOLS['k400-4x3']); print({'torch', 'typer'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, clip(made, "plain.mp4")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
    assert done.stderr == ""
