"""Training clips: one draw for all frames of a clip, all of it from the seed, pixels by hand."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import kornia.augmentation
import numpy as np
import pytest
import torch

from tests import clips
from vswin_cli.config import RECIPES, Augmentation
from vswin_cli.errors import ContainerError, DecodeError, VideoError
from vswin_cli.video import augment as module
from vswin_cli.video.augment import augment, draw_clip, draw_clip_in_worker
from vswin_cli.video.decode import read
from vswin_cli.video.views import resize_short_side
from vswin_cli.video.workers import DecodePool

PLAIN = Augmentation(frames=8, interval=2, size=56, crop_area=1.0, flip=0.0)  # frames of short side 56
CROPS = replace(PLAIN, crop_area=0.3)  # frames of short side 64
EVERYTHING = replace(CROPS, crop_area=0.08, flip=0.5, rand_augment=(4, 7), erase=0.5)


def picture(height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """(height, width, 3): coarse noise, without any symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def still(frames: int = 6, height: int = 64, width: int = 96) -> np.ndarray:
    return np.repeat(picture(height, width)[None], frames, axis=0)


def moving(frames: int = 6) -> np.ndarray:
    return np.stack([picture(seed=i) for i in range(frames)])


def ramps(height: int = 256, width: int = 256) -> np.ndarray:
    """(1, height, width, 3): red is the column, green the row."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([x, y, np.zeros_like(x)], axis=-1)[None]


def box(crop: np.ndarray) -> tuple[float, float, float, float]:
    """x, y, width and height of the part of ``ramps`` that was enlarged to a crop (S, S, 3)."""
    size = len(crop)
    low, high = size // 8, size - size // 8 - 1  # the outermost pixels repeat

    def axis(line: np.ndarray) -> tuple[float, float]:
        step = (line[high] - line[low]) / (high - low)
        return line[low] - (low + 0.5) * step + 0.5, size * step

    (x, width), (y, height) = axis(crop[0, :, 0].astype(float)), axis(crop[:, 0, 1].astype(float))
    return x, y, width, height


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in a worker: pictures this small cost torch's threads far more in waiting than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.write_clip(tmp_path_factory.mktemp("clips") / "a.mp4", 40)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(workers=1, timeout=90.0) as shared:
        yield shared


# One draw for all frames.


@pytest.mark.parametrize("magnitude", [1, 7, 29])
def test_a_still_clip_stays_still(magnitude: int) -> None:
    augmentation = replace(EVERYTHING, rand_augment=(10, magnitude))
    for seed in range(25):
        clip = augment(still(), augmentation, seed)
        assert clip.shape == (6, 56, 56, 3)
        assert (clip == clip[0]).all(), seed


def test_each_frame_gets_what_it_would_get_alone() -> None:
    frames = moving()
    for seed in range(25):
        together = augment(frames, EVERYTHING, seed)
        for i in (0, 3, 5):
            assert np.array_equal(together[i], augment(frames[i : i + 1], EVERYTHING, seed)[0]), seed


@pytest.mark.parametrize("number", range(14))
def test_each_operation_of_rand_augment_treats_frames_alike(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = module._policy
    monkeypatch.setattr(module, "_policy", lambda m, rng: policy(m, rng)[number : number + 1])
    augmentation = replace(PLAIN, rand_augment=(1, 15))
    frames = still(height=56)
    for seed in range(4):
        clip = augment(frames, augmentation, seed)
        assert (clip == clip[0]).all()
        assert not np.array_equal(clip, augment(frames, PLAIN, seed))


def test_operations_move_to_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_policy", lambda _m, _rng: [[("translate_x", -0.33, 0.33)]])
    frames = np.full((2, 56, 56, 3), 200, np.uint8)
    left = [augment(frames, replace(PLAIN, rand_augment=(1, 15)), seed)[0, 28, 0, 0] for seed in range(40)]
    assert 10 <= left.count(0) <= 30


def test_magnitudes_are_imgaugs() -> None:
    found = {name: (low, high) for ((name, low, high),) in module._policy(7, random.Random(0))}
    assert len(found) == 14
    assert found["posterize"] == (7, 7)  # 8 - int(1.4)
    assert found["solarize"] == (pytest.approx(23 / 30),) * 2
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert found[name][0] == found[name][1] == pytest.approx(1.21) or found[name][0] == pytest.approx(
            0.79
        )
    signs = {module._policy(7, random.Random(seed))[8][0][1] > 1 for seed in range(20)}
    assert signs == {True, False}
    assert found["shear_x"][1] * 180 == pytest.approx(17.19, abs=0.01)  # 0.3 radians


# Everything from the seed.


def test_the_seed_alone_decides(video: Path) -> None:
    first = draw_clip(video, EVERYTHING, 5)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    draw_clip(video, EVERYTHING, 6)
    again = draw_clip(video, EVERYTHING, 5)
    assert np.array_equal(first.frames, again.frames)
    assert first.sampled_frames == again.sampled_frames
    others = [draw_clip(video, EVERYTHING, seed) for seed in (6, 2**80, -1)]
    assert not any(np.array_equal(first.frames, other.frames) for other in others)
    assert len({clip.sampled_frames for clip in others} | {first.sampled_frames}) > 1


def test_global_generators_are_left_alone(video: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    draw_clip(video, EVERYTHING, 5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_only_a_worker_changes_the_number_of_threads(video: Path) -> None:
    torch.set_num_threads(2)
    draw_clip(video, CROPS, 5)
    assert torch.get_num_threads() == 2
    draw_clip_in_worker(video, CROPS, 5)
    assert torch.get_num_threads() == 1


def test_the_number_of_threads_does_not_matter() -> None:
    augmentation = replace(EVERYTHING, rand_augment=(10, 9))
    results = []
    for count in (2, 1):
        torch.set_num_threads(count)
        results.append([augment(moving(), augmentation, seed) for seed in range(3)])
    assert np.array_equal(*results)


def threads_of_torch() -> int:
    return torch.get_num_threads()


def test_a_worker_draws_the_same(video: Path, pool: DecodePool) -> None:
    here = draw_clip(video, EVERYTHING, 5)
    there = pool.call(draw_clip_in_worker, str(video), EVERYTHING, 5, name=str(video)).result()
    assert np.array_equal(there.frames, here.frames)
    assert (there.path, there.total, there.sampled_frames) == (str(video), 40, here.sampled_frames)
    for clip in (here, there):
        assert clip.frames.flags.c_contiguous
        assert clip.frames.flags.writeable
        assert clip.frames.dtype == np.uint8
    assert pool.call(threads_of_torch).result() == 1


def test_without_random_pixels_nothing_heavy_is_loaded(video: Path) -> None:
    code = (
        "import sys\nfrom vswin_cli.config import Augmentation\n"
        "from vswin_cli.video.augment import draw_clip_in_worker\n"
        "a = Augmentation(frames=8, size=56, crop_area=1.0, flip=0.0)\n"
        f"draw_clip_in_worker({str(video)!r}, a, 0)\n"
        "assert not {'torch', 'kornia'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Pixels.


def test_without_augmentation_it_is_the_centre_of_the_resized_frame(video: Path) -> None:
    clip = draw_clip(video, PLAIN, 3)
    assert clip.sampled_frames == tuple(range(clip.sampled_frames[0], clip.sampled_frames[0] + 16, 2))
    decoded = read(video, lambda _total, _fps: clip.sampled_frames)
    expected = [resize_short_side(frame, 56)[:, 14:70] for frame in decoded.frames]  # 84 wide
    assert np.array_equal(clip.frames, expected)
    assert (clip.total, clip.partial, clip.notes) == (40, False, ())


def test_flip_mirrors_exactly() -> None:
    frames = moving()[:, 4:60]
    mirrored = replace(PLAIN, flip=1.0)
    plain, once = augment(frames, PLAIN, 0), augment(frames, mirrored, 0)
    assert np.array_equal(once, plain[:, :, ::-1])
    assert np.array_equal(augment(once, mirrored, 1), plain)


def test_flip_has_its_probability() -> None:
    rising = [
        bool(clip[0, 0, -1, 0] > clip[0, 0, 0, 0])
        for p in (0.0, 0.5)
        for clip in (augment(ramps(), replace(CROPS, flip=p), seed) for seed in range(200))
    ]
    assert all(rising[:200])
    assert 75 <= sum(rising[200:]) <= 125


def test_the_input_stays_as_it_was() -> None:
    # Also where nothing needs to be copied: frames of the right size, erased in place.
    for augmentation in (replace(PLAIN, erase=1.0), replace(PLAIN, flip=1e-9), EVERYTHING, PLAIN):
        frames = still(height=56, width=56)
        clip = augment(frames, augmentation, 0)
        assert not np.may_share_memory(clip, frames)
        assert np.array_equal(frames, still(height=56, width=56))


@pytest.mark.parametrize(("area", "aspect"), [(0.08, 4 / 3), (0.3, 4 / 3), (0.3, 1.0), (0.9, 2.0)])
def test_crops_lie_inside_and_have_their_share(area: float, aspect: float) -> None:
    augmentation = replace(CROPS, size=112, crop_area=area, crop_aspect=aspect)
    boxes = np.array([box(augment(ramps(), augmentation, seed)[0]) for seed in range(300)])
    x, y, width, height = boxes.T
    near = 2.5  # pixels; the ramps are whole numbers
    assert min(x.min(), y.min()) > -near
    assert max((x + width).max(), (y + height).max()) < 256 + near
    share = width * height / 256**2
    assert share.min() > area - 0.03
    assert share.max() < 1.03
    ratio = width / height
    assert ratio.min() > 1 / aspect * 0.93
    assert ratio.max() < aspect * 1.07
    if aspect == 1.0:  # others draw again where a crop does not fit, and large ones do not fit more often
        assert share.mean() == pytest.approx((1 + area) / 2, abs=0.04)
    # Anywhere: the middle of the crops is the middle of the picture, and they reach both edges.
    assert (x + width / 2).mean() == pytest.approx(128, abs=8)
    assert x.min() < 8
    assert (x + width).max() > 248


def test_crops_are_kornias_and_opencvs_to_one_grey_level() -> None:
    frames = moving(3)
    for seed in range(20):
        clip = augment(frames, CROPS, seed).astype(int)
        crop = kornia.augmentation.RandomResizedCrop(
            (56, 56), (0.3, 1.0), (3 / 4, 4 / 3), same_on_batch=True, align_corners=False
        )
        with torch.random.fork_rng():
            torch.manual_seed(random.Random(seed).getrandbits(63))
            exact = crop(torch.from_numpy(frames).permute(0, 3, 1, 2).float())
        assert np.abs(clip - exact.permute(0, 2, 3, 1).numpy()).max() < 1.001
        (x, y), (right, bottom) = crop._params["src"][0, [0, 2]].int().tolist()
        for got, frame in zip(clip, frames, strict=True):
            expected = cv2.resize(frame[y : bottom + 1, x : right + 1], (56, 56))
            assert np.abs(got - expected).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(64, 640), (640, 64), (64, 64)])
def test_no_shape_of_frame_is_too_long(height: int, width: int) -> None:
    for seed in range(10):
        assert augment(still(2, height, width), replace(CROPS, crop_area=0.9), seed).shape == (2, 56, 56, 3)


def test_erasing_fills_the_same_rectangle_with_the_mean_colour() -> None:
    frames = np.stack([np.full((56, 56, 3), 10 * i, np.uint8) for i in range(6)])
    shares = []
    for seed in range(60):
        clip = augment(frames, replace(PLAIN, erase=1.0), seed)
        gone = (clip != frames).any(axis=-1)
        assert (gone == gone[0]).all()
        assert (clip[gone] == (124, 116, 104)).all()
        rows, columns = gone[0].any(axis=1).sum(), gone[0].any(axis=0).sum()
        assert gone[0].sum() == rows * columns
        shares.append(gone[0].mean())
    assert 0.015 < min(shares) < 0.07
    assert 0.25 < max(shares) < 0.35
    some = [np.array_equal(augment(frames, replace(PLAIN, erase=0.25), seed), frames) for seed in range(200)]
    assert 125 <= sum(some) <= 175


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_draws(name: str, video: Path) -> None:
    augmentation = replace(RECIPES[name].augmentation, size=56)
    clip = draw_clip(video, augmentation, 1)
    assert clip.frames.shape == (augmentation.frames, 56, 56, 3)
    assert clip.frames.std() > 10


# Videos.


def test_a_short_video_starts_over(tmp_path: Path) -> None:
    one = draw_clip(clips.write_clip(tmp_path / "one.mp4", 1), EVERYTHING, 0)
    assert one.sampled_frames == (0,) * 8
    assert (one.frames == one.frames[0]).all()
    five = draw_clip(clips.write_clip(tmp_path / "five.mp4", 5), EVERYTHING, 0)
    assert five.sampled_frames == (0, 2, 4, 1, 3, 0, 2, 4)
    assert np.array_equal(five.frames[:3], five.frames[5:])
    assert not np.array_equal(five.frames[0], five.frames[1])


def test_a_broken_video_is_a_video_error(tmp_path: Path, video: Path, pool: DecodePool) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 100)
    with pytest.raises(ContainerError):
        draw_clip(broken, EVERYTHING, 0)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        pool.call(draw_clip_in_worker, str(broken), EVERYTHING, 0, name=str(broken)).result()
    with pytest.raises(DecodeError, match="no video stream"):
        draw_clip(clips.write_audio(tmp_path / "sound.mp4"), EVERYTHING, 0)


def test_of_a_damaged_video_the_frames_before_the_damage_are_drawn(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "a.mp4", 40, options={"bf": "0"})
    clips.damage(path, 25)
    for seed in range(3):
        clip = draw_clip(path, replace(EVERYTHING, sampling="uniform"), seed)
        assert clip.partial
        assert clip.total == 25
        assert max(clip.sampled_frames) < 25
        assert "only the first 25 frames" in clip.notes[-1]
