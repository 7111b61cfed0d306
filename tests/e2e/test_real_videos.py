"""Every file of the folder of real videos gives frames, or exactly one clear error, in good time.

The folder is not part of the repository: it is $VSWIN_REAL_VIDEOS, or shared/videos beside it.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from vswin_cli.config import PROTOCOLS
from vswin_cli.errors import DecodeError, VideoError
from vswin_cli.video.decode import read
from vswin_cli.video.files import VIDEO_SUFFIXES
from vswin_cli.video.views import views
from vswin_cli.video.workers import DecodePool

FOLDER = Path(os.environ.get("VSWIN_REAL_VIDEOS", Path(__file__).parents[2].parent / "shared" / "videos"))
FILES = sorted(p for p in FOLDER.glob("*") if p.suffix in VIDEO_SUFFIXES) if FOLDER.is_dir() else []
pytestmark = pytest.mark.skipif(
    not FILES, reason=f"no real videos in {FOLDER.name}/ (set VSWIN_REAL_VIDEOS to a folder of them)"
)

#: name: (frames, partial) or the error that is expected.
KNOWN: dict[str, tuple[int, bool] | str] = {
    "anim.gif": (84, False),
    "audio_only.mp4": "no video stream",
    "av1.mp4": (56, False),
    "corrupted.mp4": (30, True),
    "five_frames.mp4": (5, False),
    "hevc.mp4": (112, False),
    "no_index.mp4": "cannot be opened",
    "one_frame.mp4": (1, False),
    "pancake.mkv": (310, False),
    "part0.mp4": (32, False),
    "rotated90.mp4": (86, False),
    "truncated.mkv": (140, True),
    "unordered.mov": (4, False),
    "vfr.mp4": (50, False),
    "video_0.mov": (3, False),
    "video_90.mov": (3, False),
    "vp9.webm": (112, False),
    "wmv.wmv": (112, False),
}


def thin(frame: np.ndarray) -> np.ndarray:
    """Every fourth pixel: enough to tell frames apart, little memory."""
    return np.ascontiguousarray(frame[::4, ::4])


@pytest.fixture(scope="module")
def pool():  # type: ignore[no-untyped-def]
    with DecodePool(workers=1, timeout=20.0) as shared:
        yield shared


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_frames_or_one_clear_error(pool: DecodePool, path: Path, name: str) -> None:
    protocol = PROTOCOLS[name]
    expected = KNOWN.get(path.name)
    start = time.monotonic()
    future = pool.submit(path, protocol)
    error = future.exception()
    assert time.monotonic() - start < 10
    if error is not None:
        assert isinstance(error, VideoError)
        assert path.name in error.message
        assert error.hint
        assert "\n" not in error.message
        assert expected is None or (isinstance(expected, str) and expected in error.message)
        return
    prepared = future.result()
    assert expected is None or (prepared.total, prepared.partial) == expected
    assert prepared.partial == any(note.startswith("partial: ") for note in prepared.notes)
    assert prepared.fps > 0
    shapes = {view.shape for view in views(prepared, protocol)}
    assert shapes == {(protocol.frames, protocol.crop_size, protocol.crop_size, 3)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_decord_and_pyav_agree(path: Path) -> None:
    """Whole and sparse: where decord is chosen, it gives the pixels that PyAV gives."""
    pytest.importorskip("decord", reason="decord has no wheel for this platform")
    try:
        truth = read(path, lambda total, _fps: range(total), thin, "pyav")
    except DecodeError:
        return  # covered above
    choices: list[list[int]] = [list(range(truth.total))]
    dice = random.Random(0)
    choices += [sorted(dice.sample(range(truth.total), min(count, truth.total))) for count in (1, 3, 10, 30)]
    for chosen in choices:
        ours = read(path, lambda _total, _fps, chosen=chosen: chosen, thin)
        assert np.array_equal(ours.frames, truth.frames[chosen])
        assert ours.fps == truth.fps
        # A damaged file is only known to be shorter once the damage is met.
        assert ours.total == truth.total or truth.partial
