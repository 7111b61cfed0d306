"""From a video file to a training clip: which frames, which crop, and what is done to the pixels.

All pixel operations and their random numbers are Kornia's. The crop and the mirroring run on uint8, which
Kornia's modules refuse as input (they check for float) but their ``apply_transform`` takes: three times as
fast, and within one grey level of the same in float. torch and Kornia are imported where they are needed, so
that workers which decode for evaluation never load them.

Every random number of a clip follows from one seed. The global generators are left as they were; while a clip
is drawn, torch's is in use, so one process draws one clip at a time.
"""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from vswin_cli.config import MEAN, Augmentation
from vswin_cli.video.decode import read
from vswin_cli.video.sampling import sample_training_clip
from vswin_cli.video.views import resize_short_side

if TYPE_CHECKING:
    import torch

Frame = NDArray[np.uint8]
#: Name, low and high, in the words of kornia.augmentation.auto.
Operation = tuple[str, float | int, float | int | None]

#: Frames that RandAugment works on at a time: their float copies stay in the processor's cache (1 and 32
#: frames of 224 pixels at a time take twice as long).
_FRAMES_AT_A_TIME = 4


@dataclass(frozen=True)
class TrainingClip:
    """One augmented clip; what a decoding worker sends back.

    ``frames`` (T, size, size, 3) uint8 RGB, C-contiguous and writable; ``sampled_frames`` the T source
    indices; ``total`` frames in the video; ``partial`` a damaged or cut file read up to the damage;
    ``notes`` for the user.
    """

    path: str
    frames: Frame
    sampled_frames: tuple[int, ...]
    total: int
    partial: bool
    notes: tuple[str, ...]


def draw_clip(path: str | os.PathLike[str], augmentation: Augmentation, seed: int) -> TrainingClip:
    """Draw a training clip from a video: the frames, decoded and resized, then :func:`augment`.

    ``seed`` is any integer; equal arguments give equal bits, whatever ran before. Raises VideoError.
    """
    sampled: tuple[int, ...] = ()

    def choose(total: int, fps: float) -> tuple[int, ...]:  # noqa: ARG001  (no rule here needs the rate)
        nonlocal sampled
        # Seeded in here: `read` asks again where a file has fewer frames than it says.
        sampled = sample_training_clip(augmentation, total, random.Random(seed))
        return sampled

    # Without random crops the centre square is taken at full scale, as at test time: one resize, not two.
    short_side = augmentation.size if augmentation.crop_area == 1 else augmentation.short_side
    decoded = read(path, choose, partial(resize_short_side, short_side=short_side))
    # Each used frame is augmented once, however often a short video repeats it.
    frames = augment(decoded.frames, augmentation, seed)
    if decoded.indices != sampled:
        rows = {index: row for row, index in enumerate(decoded.indices)}
        frames = frames[[rows[index] for index in sampled]]
    return TrainingClip(str(path), frames, sampled, decoded.total, decoded.partial, decoded.notes)


def draw_clip_in_worker(path: str | os.PathLike[str], augmentation: Augmentation, seed: int) -> TrainingClip:
    """:func:`draw_clip` for DecodePool.call: torch gets one thread, because the pool has enough processes."""
    if _needs_kornia(augmentation):
        import torch

        torch.set_num_threads(1)
    return draw_clip(path, augmentation, seed)


def augment(frames: Frame, augmentation: Augmentation, seed: int) -> Frame:
    """(U, h, w, 3) uint8 RGB to (U, size, size, 3), a new array; every frame gets the same draw.

    In this order: a random resized crop (bilinear, as OpenCV's: half-pixel centres, no antialias), or, with a
    ``crop_area`` of 1, the centre square of frames whose short side is ``size``; mirroring; RandAugment; an
    erased rectangle. ``seed`` is any integer.

    The order, the crop and the erasing are the official Something-Something recipe's, which erases 2 to 33 %
    of the area, aspect 0.3 to 1 / 0.3, after normalisation with zeros: with the mean colour, that is.

    RandAugment (n, m) applies n distinct ones of fourteen operations of Kornia's. The recipe uses imgaug's;
    the ranges are set to imgaug's where Kornia lets them (see _policy), because Kornia's own are those of
    AutoAugment, in which a small m is no small change: at m = 7 brightness and contrast would halve, and
    solarize invert nearly everything. What still differs from imgaug: it also has the identity, cutout, blur
    and smoothing among its operations, and always mirrors half of the clips and crops up to m / 224 of each
    side first; here what a turned or moved picture leaves behind is black, not grey; contrast multiplies,
    brightness adds, colour is HSV's saturation; shear keeps the picture's centre in place, not its corner.
    """
    size = augmentation.size
    if not _needs_kornia(augmentation):
        return _centre(frames, size).copy()
    import torch

    generator = random.Random(seed)
    # Not torch.manual_seed, which would seed the accelerators, too; fork_rng would not restore those.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(generator.getrandbits(63))
        whole = augmentation.crop_area == 1
        pixels = torch.from_numpy(_centre(frames, size) if whole else frames).permute(0, 3, 1, 2)
        if not whole:
            pixels = _crop(pixels, augmentation)
        if augmentation.flip > 0:
            pixels = _flip(pixels, augmentation.flip)
        if augmentation.rand_augment is not None:
            pixels = _rand_augment(pixels, *augmentation.rand_augment, generator)
        pixels = pixels.permute(0, 2, 3, 1).contiguous()
        if np.may_share_memory(pixels.numpy(), frames):
            pixels = pixels.clone()  # nothing was done to the whole frames; the input must stay as it is
        if augmentation.erase > 0:
            _erase(pixels, augmentation.erase)
    return cast(Frame, pixels.numpy())


def _needs_kornia(augmentation: Augmentation) -> bool:
    a = augmentation
    return a.crop_area < 1 or a.flip > 0 or a.rand_augment is not None or a.erase > 0


def _centre(frames: Frame, size: int) -> Frame:
    """The view (U, size, size, 3) in the middle, as mmaction's CenterCrop: half an odd slack rounds down."""
    y, x = (frames.shape[1] - size) // 2, (frames.shape[2] - size) // 2
    return frames[:, y : y + size, x : x + size]


def _crop(pixels: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """(U, 3, h, w) uint8 to (U, 3, size, size)."""
    import kornia.augmentation as kornia

    size, aspect = augmentation.size, augmentation.crop_aspect
    # align_corners=False is OpenCV's grid, and that of the frames which the model is tested with.
    crop = kornia.RandomResizedCrop(
        (size, size),
        (augmentation.crop_area, 1.0),
        (1 / aspect, aspect),
        same_on_batch=True,
        align_corners=False,
        cropping_mode="slice",
    )
    cropped: torch.Tensor = crop.apply_transform(pixels, crop.forward_parameters(pixels.shape), crop.flags)
    return cropped


def _flip(pixels: torch.Tensor, probability: float) -> torch.Tensor:
    """(U, 3, h, w) uint8, mirrored left and right or as it is."""
    import kornia.augmentation as kornia

    flip = kornia.RandomHorizontalFlip(probability, same_on_batch=True)
    params = flip.forward_parameters(pixels.shape)
    return flip.apply_transform(pixels, params, flip.flags) if params["batch_prob"][0] > 0 else pixels


def _policy(magnitude: int, generator: random.Random) -> list[list[Operation]]:
    """Kornia's operations in imgaug's ranges (imgaug/augmenters/collections.py, 0.4).

    Kornia takes low + (high - low) x magnitude / 30, with a random sign where low = -high. Ranges of one
    number are magnitudes worked out here: imgaug's fall with m, or lie on either side of 1.
    """
    share = magnitude / 30

    def just(name: str, value: float) -> list[Operation]:
        return [(name, value, value)]

    shear = 0.3 / math.pi  # 0.3 radians; Kornia multiplies by 180 degrees
    return [
        just("auto_contrast", 0),
        just("equalize", 0),
        just("invert", 0),
        [("rotate", -30.0, 30.0)],  # degrees
        just("posterize", 8 - int(6 * share)),  # bits that are kept
        just("solarize", 1 - share),  # the threshold above which a pixel is inverted
        *(
            just(name, 1 + generator.choice((-1, 1)) * 0.9 * share)
            for name in ("color", "contrast", "brightness", "sharpness")
        ),
        [("shear_x", -shear, shear)],
        [("shear_y", -shear, shear)],
        [("translate_x", -0.33, 0.33)],  # of the width
        [("translate_y", -0.33, 0.33)],
    ]


def _rand_augment(
    pixels: torch.Tensor, operations: int, magnitude: int, generator: random.Random
) -> torch.Tensor:
    """(U, 3, h, w) uint8 to the same."""
    import torch
    from kornia.augmentation.auto import RandAugment

    policy = RandAugment(operations, magnitude, policy=_policy(magnitude, generator))
    # Drawn for one frame: RandAugment itself knows only a draw per image, and VideoSequential refuses it.
    drawn = policy.forward_parameters(torch.Size((1, *pixels.shape[1:])))
    result = torch.empty_like(pixels)
    for start in range(0, len(pixels), _FRAMES_AT_A_TIME):
        block = pixels[start : start + _FRAMES_AT_A_TIME]
        scaled = block.to(torch.float32, memory_format=torch.channels_last) / 255
        augmented = policy(scaled, params=_repeat(drawn, len(block)))
        result[start : start + _FRAMES_AT_A_TIME] = (augmented * 255).round_().clamp_(0, 255)
    return result


def _repeat(drawn: Any, count: int) -> Any:
    """Kornia's parameters of one image (lists of ParamItem, dictionaries of tensors) for ``count`` images."""
    if isinstance(drawn, dict):
        # This one names the shape of the input; all others have a row for each image.
        return {
            k: v if k == "forward_input_shape" else v.repeat_interleave(count, 0) for k, v in drawn.items()
        }
    return [item._replace(data=_repeat(item.data, count)) for item in drawn]


def _erase(pixels: torch.Tensor, probability: float) -> None:
    """Maybe fill a rectangle of (U, h, w, 3) uint8, in place.

    Kornia draws it but can fill it only with a grey.
    """
    import kornia.augmentation as kornia
    import torch

    erasing = kornia.RandomErasing((0.02, 1 / 3), (0.3, 1 / 0.3), same_on_batch=True, p=probability)
    count, height, width, channels = pixels.shape
    params = erasing.forward_parameters(torch.Size((count, channels, height, width)))
    if params["batch_prob"][0] > 0:
        x, y, w, h = (int(params[name][0]) for name in ("xs", "ys", "widths", "heights"))
        pixels[:, y : y + h, x : x + w] = torch.tensor(MEAN).round().to(torch.uint8)
