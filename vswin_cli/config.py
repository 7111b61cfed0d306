"""What a model is, how a video is viewed, how a model is trained: frozen dataclasses and tables.

Standard library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from vswin_cli.errors import UsageError

Window = tuple[int, int, int]
Sampling = Literal["segment-centers", "uniform", "endpoints", "resampled"]
Resize = Literal["cv2", "torchvision"]
TrainSampling = Literal["random", "uniform"]

# Bounds on what a file may claim; far above any real model.
MAX_SIZE = 65_536
MAX_CLASSES = 10_000_000
MAX_STAGES = 8

#: ImageNet statistics on the 0..255 scale, RGB (every recipe of FACTS 3 uses them).
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ModelConfig:
    """Geometry of one Swin Transformer, 2D (patch and window of depth 1) or 3D.

    ``window`` counts tokens (depth, height, width); ``stage_windows`` overrides it per stage for
    models whose bias tables differ between stages (SimMIM at 192 pixels, Swin-S3).
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window: Window = (8, 7, 7)
    patch: Window = (2, 4, 4)
    num_classes: int = 400
    mlp_ratio: float = 4.0
    stage_windows: tuple[Window, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads):
            raise UsageError(
                f"depths has {len(self.depths)} stages, num_heads {len(self.num_heads)}; they must agree"
            )
        if self.stage_windows is not None and len(self.stage_windows) != len(self.depths):
            raise UsageError(
                f"stage_windows has {len(self.stage_windows)} entries for {len(self.depths)} stages"
            )
        windows = (n for window in self.stage_windows or () for n in window)
        sizes = (self.embed_dim, *self.depths, *self.num_heads, *self.window, *self.patch, *windows)
        if any(type(n) is not int or not 0 < n <= MAX_SIZE for n in sizes) or not self.depths:
            raise UsageError(f"model sizes must be whole numbers from 1 to {MAX_SIZE}: {str(self)[:300]}")
        if type(self.num_classes) is not int or not 0 <= self.num_classes <= MAX_CLASSES:
            raise UsageError(f"num_classes must be a whole number from 0 to {MAX_CLASSES}")
        if not isinstance(self.mlp_ratio, int | float) or not 0 < self.mlp_ratio <= 64:
            raise UsageError("mlp_ratio must be a number above 0, at most 64")
        if len(self.depths) > MAX_STAGES:
            raise UsageError(f"{len(self.depths)} stages, at most {MAX_STAGES} are possible")
        for stage, heads in enumerate(self.num_heads):
            if self.stage_dim(stage) % heads:
                raise UsageError(
                    f"stage {stage} has {self.stage_dim(stage)} channels, not divisible by {heads} heads"
                )

    @property
    def is_2d(self) -> bool:
        """True for an image model: one frame per patch and per window."""
        return self.patch[0] == 1 and all(self.stage_window(i)[0] == 1 for i in range(len(self.depths)))

    @property
    def num_features(self) -> int:
        """Channels after the last stage."""
        return self.stage_dim(len(self.depths) - 1)

    def stage_dim(self, stage: int) -> int:
        """Channels of a stage."""
        return int(self.embed_dim * 2**stage)

    def stage_window(self, stage: int) -> Window:
        """Window of a stage."""
        return self.window if self.stage_windows is None else self.stage_windows[stage]

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON types; the inverse of :meth:`from_json`."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Rebuild a config; raises UsageError for unknown fields or wrong types."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(f"unknown model config fields: {', '.join(unknown)}")
        try:
            values: dict[str, Any] = {
                k: tuple(int(x) for x in v) if k in {"depths", "num_heads", "window", "patch"} else v
                for k, v in data.items()
            }
            if values.get("stage_windows") is not None:
                values["stage_windows"] = tuple(
                    (int(d), int(h), int(w)) for d, h, w in values["stage_windows"]
                )
            for name in ("window", "patch"):
                if len(values.get(name, (1, 1, 1))) != 3:
                    raise UsageError(f"model config field {name} needs three numbers: {values[name]}")
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise UsageError(f"model config cannot be read: {error}") from error


#: Paper, section 3.1 ("Architecture Variants").
VARIANTS: dict[str, ModelConfig] = {
    "T": ModelConfig(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "S": ModelConfig(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "B": ModelConfig(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "L": ModelConfig(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


@dataclass(frozen=True)
class ViewProtocol:
    """How a video becomes views: which frames, which pixels.

    A *clip* is ``frames`` frames; a *crop* is a square of ``crop_size`` pixels; a *view* is one crop
    of one clip. ``interval`` counts source frames between two frames of a clip (unused by the
    samplings 'uniform' and 'resampled'). ``fps`` is the rate that 'resampled' reads the video at.
    """

    name: str
    sampling: Sampling
    clips: int
    crops: int
    frames: int = 32
    interval: int = 2
    short_side: int = 224
    crop_size: int = 224
    resize: Resize = "cv2"
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.crops not in (1, 3):
            raise UsageError(f"crops must be 1 or 3, not {self.crops}", "for example --views 4x3")
        if self.sampling not in get_args(Sampling) or self.resize not in get_args(Resize):
            raise UsageError(
                f"unknown sampling or resize in protocol {self.name}: {self.sampling}, {self.resize}"
            )
        if self.sampling == "uniform" and self.clips != 1:
            raise UsageError(
                f"protocol {self.name} samples one clip over the whole video, not {self.clips}",
                f"use --views 1x{self.crops}",
            )
        if min(self.clips, self.frames, self.interval, self.crop_size) < 1:
            raise UsageError(f"protocol {self.name}: clips, frames, interval and size must be at least 1")
        if self.crop_size > self.short_side:
            raise UsageError(f"a crop of {self.crop_size} does not fit a short side of {self.short_side}")
        if self.crops == 3 and self.crop_size != self.short_side:
            raise UsageError(
                f"three crops need a crop as large as the short side ({self.crop_size}, {self.short_side})"
            )
        if self.sampling == "resampled" and not (self.fps and self.fps > 0):
            raise UsageError(f"protocol {self.name} needs a positive fps")

    @property
    def views(self) -> int:
        """Views of one video: clips x crops."""
        return self.clips * self.crops

    def describe(self) -> str:
        """One phrase for people: '4 clips x 3 crops, 32 frames every 2, 224 px'."""

        def count(n: int, word: str) -> str:
            return f"{n} {word}" + ("" if n == 1 else "s")

        spacing = {
            "uniform": "spread over the video",
            "resampled": f"at {self.fps:g} fps" if self.fps else "",
        }.get(self.sampling, f"every {self.interval}")
        return (
            f"{count(self.clips, 'clip')} x {count(self.crops, 'crop')}, "
            f"{count(self.frames, 'frame')} {spacing}, {self.crop_size} px"
        )

    def override(
        self,
        views: str | None = None,
        frames: int | None = None,
        interval: int | None = None,
        size: int | None = None,
    ) -> ViewProtocol:
        """The same protocol with some numbers replaced; ``views`` is 'CxK', say '4x3'.

        Raises UsageError where the result makes no sense.
        """
        changes: dict[str, Any] = {}
        if views is not None:
            match = re.fullmatch(r"([1-9]\d{0,3})x([1-9])", views)
            if match is None:
                raise UsageError(f"--views {views!r} is not CLIPSxCROPS", "for example --views 4x3")
            changes.update(clips=int(match[1]), crops=int(match[2]))
        if frames is not None:
            changes["frames"] = frames
        if interval is not None:
            if self.sampling in ("uniform", "resampled"):
                raise UsageError(
                    f"--interval has no meaning under {self.name}, which does not sample every n-th frame"
                )
            changes["interval"] = interval
        if size is not None:
            # The gap between short side and crop is part of a protocol (256 to 224, say): keep the ratio.
            changes["crop_size"] = size
            changes["short_side"] = round(size * self.short_side / self.crop_size)
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON types; the inverse of :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ViewProtocol:
        """Rebuild a protocol; raises UsageError for unknown fields or wrong types."""
        kinds: dict[str, type | tuple[type, ...]] = {
            "name": str,
            "sampling": str,
            "resize": str,
            "fps": (int, float, type(None)),
        }
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(data) - set(known)):
            raise UsageError(f"unknown view protocol fields: {', '.join(unknown)}")
        for name, value in data.items():
            if not isinstance(value, kinds.get(name, int)):
                raise UsageError(f"view protocol field {name} has the wrong type: {value!r}")
        try:
            return cls(**data)
        except TypeError as error:
            raise UsageError(f"view protocol cannot be read: {error}") from error


#: FACTS 3: official code (mmaction 0.x), its Something-Something recipe, torchvision, mmaction2 1.x.
PROTOCOLS: dict[str, ViewProtocol] = {
    p.name: p
    for p in (
        ViewProtocol("k400-4x3", "segment-centers", 4, 3),
        ViewProtocol("ssv2-1x3", "uniform", 1, 3),
        ViewProtocol("torchvision-12x1", "resampled", 12, 1, short_side=256, resize="torchvision", fps=15.0),
        ViewProtocol("mmaction2-4x3", "endpoints", 4, 3),
    )
}


def protocol_named(name: str) -> ViewProtocol:
    """The protocol of that name; raises UsageError that lists the known ones."""
    if name not in PROTOCOLS:
        raise UsageError(f"unknown protocol {name!r}", f"known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


@dataclass(frozen=True)
class Augmentation:
    """How a training clip is drawn from a video. Every frame of a clip gets the same draw.

    sampling:     'random' takes ``frames`` frames, ``interval`` apart, from a random place; 'uniform' one
                  random frame of each of ``frames`` equal segments
    crop_area:    random resized crop: least share of the frame's area; 1.0 takes the centre square
    crop_aspect:  and its aspect ratio, from 1 / crop_aspect to crop_aspect
    flip:         probability of mirroring left and right
    rand_augment: (number of operations, magnitude 1..29); None for none
    erase:        probability of erasing a rectangle
    """

    sampling: TrainSampling = "random"
    frames: int = 32
    interval: int = 2
    size: int = 224
    crop_area: float = 0.08
    crop_aspect: float = 4 / 3
    flip: float = 0.5
    rand_augment: tuple[int, int] | None = None
    erase: float = 0.0

    def __post_init__(self) -> None:
        if min(self.frames, self.interval, self.size) < 1:
            raise UsageError("frames, interval and size of a training clip must be at least 1")
        if not (0 < self.crop_area <= 1 and self.crop_aspect >= 1):
            raise UsageError("a crop's area must be above 0, at most 1, and its aspect at least 1")
        if not (0 <= self.flip <= 1 and 0 <= self.erase <= 1):
            raise UsageError("flip and erase are probabilities from 0 to 1")
        if self.rand_augment is not None and not (
            1 <= self.rand_augment[0] <= 10 and 1 <= self.rand_augment[1] <= 29
        ):
            raise UsageError("RandAugment takes 1 to 10 operations and a magnitude from 1 to 29")

    @property
    def short_side(self) -> int:
        """Short side in pixels to which frames are resized before they are cropped: 256 for 224."""
        return round(self.size * 256 / 224)


@dataclass(frozen=True)
class TrainRecipe:
    """The numbers of a training run.

    lr:               of the head, at ``reference_batch`` clips a step; scaled linearly with the batch
    batch_size:       clips in one forward of one rank; a step takes batch_size x accumulate x ranks clips
    backbone_lr_mult: learning rate of everything but the head, in units of the head's
    warmup_epochs:    linear, from a tenth; then cosine to zero over all epochs
    clip_grad:        largest norm of all gradients together
    freeze:           'none', 'backbone' or 'stages:N' (patch embedding and the first N stages)
    unfreeze_epoch:   first epoch in which nothing is frozen any more; None for never
    protocol:         name in PROTOCOLS of the views that the finished model is tested with
    """

    name: str
    epochs: int
    lr: float
    batch_size: int = 8
    accumulate: int = 1
    reference_batch: int = 64
    betas: tuple[float, float] = (0.9, 0.999)
    backbone_lr_mult: float = 0.1
    weight_decay: float = 0.02
    warmup_epochs: float = 2.5
    drop_path: float = 0.1
    head_dropout: float = 0.5
    label_smoothing: float = 0.0
    clip_grad: float = 40.0
    freeze: str = "none"
    unfreeze_epoch: int | None = None
    protocol: str = "k400-4x3"
    augmentation: Augmentation = Augmentation()

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.accumulate, self.reference_batch) < 1:
            raise UsageError("epochs, batch size and accumulate must be at least 1")
        positive = (self.lr, self.clip_grad)
        if not all(math.isfinite(x) and x > 0 for x in positive):
            raise UsageError(f"lr and clip-grad must be positive numbers, not {positive}")
        others = (self.backbone_lr_mult, self.weight_decay, self.warmup_epochs)
        if not all(math.isfinite(x) and x >= 0 for x in others):
            raise UsageError(f"backbone-lr-mult, weight-decay and warm-up must not be negative: {others}")
        if not all(0 <= x < 1 for x in (self.drop_path, self.head_dropout, self.label_smoothing)):
            raise UsageError("drop-path, head dropout and label smoothing must be from 0 to below 1")
        self.frozen_stages(99)

    def frozen_stages(self, stages: int) -> int:
        """How many of ``stages`` stages are frozen, the patch embedding with them; -1 for nothing.

        'backbone' freezes all of them and the final norm. Raises UsageError.
        """
        if self.freeze == "none":
            return -1
        if self.freeze == "backbone":
            return stages
        match = re.fullmatch(r"stages:(\d)", self.freeze)
        if match is None or int(match[1]) > stages:
            raise UsageError(
                f"--freeze {self.freeze!r} is none of: none, backbone, stages:N with N from 0 to {stages}"
            )
        return int(match[1])

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON types; the inverse of :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainRecipe:
        """Rebuild a recipe; raises UsageError for unknown fields or wrong types."""
        try:
            values = dict(data)
            inner = dict(values.pop("augmentation"))
            if inner.get("rand_augment") is not None:
                inner["rand_augment"] = tuple(inner["rand_augment"])
            values["betas"] = tuple(values["betas"])
            return cls(**values, augmentation=Augmentation(**inner))
        except (TypeError, ValueError, KeyError) as error:
            raise UsageError(f"the training recipe cannot be read: {error}") from error


#: k400, ssv2: the official configs (FACTS 2.1, "Training recipe"), which name no clipping of gradients;
#: 40 is mmaction2 1.x's. Their crops: mmaction's RandomResizedCrop, area 0.08..1, aspect 3/4..4/3.
#: small: ours, for a few hundred clips. A head first, then all of it, gently, at a quarter of the resolution
#: in time; milder crops, because a class may depend on the whole picture.
RECIPES: dict[str, TrainRecipe] = {
    r.name: r
    for r in (
        TrainRecipe("k400", epochs=30, lr=1e-3),
        TrainRecipe(
            "ssv2",
            epochs=60,
            lr=3e-4,
            weight_decay=0.05,
            drop_path=0.4,
            label_smoothing=0.1,
            protocol="ssv2-1x3",
            augmentation=Augmentation(sampling="uniform", flip=0.0, rand_augment=(4, 7), erase=0.25),
        ),
        TrainRecipe(
            "small",
            epochs=20,
            lr=1e-3,
            reference_batch=8,
            weight_decay=0.05,
            warmup_epochs=1.0,
            label_smoothing=0.1,
            clip_grad=1.0,
            freeze="backbone",
            unfreeze_epoch=5,
            augmentation=Augmentation(frames=16, interval=4, crop_area=0.3),
        ),
    )
}

#: What differs between the variants in the official K400 configs: weight decay and drop path; then, for a
#: start from ImageNet-22k, learning rate and drop path.
_BY_VARIANT: dict[str, dict[str, float]] = {
    "T": {"weight_decay": 0.02, "drop_path": 0.1},
    "S": {"weight_decay": 0.02, "drop_path": 0.1},
    "B": {"weight_decay": 0.05, "drop_path": 0.3},
    "L": {"weight_decay": 0.05, "drop_path": 0.2},
}
_FROM_22K = {"lr": 3e-4, "drop_path": 0.2}


def variant_of(config: ModelConfig) -> str | None:
    """T, S, B or L by width and depths; None for others."""
    same = (n for n, v in VARIANTS.items() if (v.embed_dim, v.depths) == (config.embed_dim, config.depths))
    return next(same, None)


def recipe_for(name: str, config: ModelConfig, from_22k: bool) -> TrainRecipe:
    """The recipe of that name with the numbers of a model's variant. Raises UsageError."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}", f"known: {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if name != "k400":
        return recipe
    variant = variant_of(config)
    changes: dict[str, Any] = dict(_BY_VARIANT.get(variant or "", {}))
    # Swin-L was only ever started from 22k (paper, section 4.1); S and T were not, and keep their drop path.
    if from_22k or variant == "L":
        changes |= _FROM_22K if variant in ("B", "L") else {"lr": _FROM_22K["lr"]}
    return replace(recipe, **changes)
