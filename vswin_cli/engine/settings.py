"""What a training run is asked to do, and the recipe that follows from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vswin_cli.config import PROTOCOLS, TrainRecipe, ViewProtocol, Window, recipe_for
from vswin_cli.engine.rundir import read_run_config
from vswin_cli.engine.start import Start
from vswin_cli.errors import DataError, UsageError


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do; all of it is kept in config.json. None takes the recipe's number.

    lr:         peak learning rate of the head as it is; the recipe's is scaled with the batch instead
    val_views:  clips x crops of the validation after each epoch; ``views`` those of the finished model
    save_every: steps between two saved states; by default ten minutes, and after each epoch
    """

    data: str
    weights: str | None = None
    variant: str | None = None
    config: str | None = None
    train_list: str | None = None
    val_list: str | None = None
    labels: str | None = None
    recipe: str = "k400"
    epochs: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    lr: float | None = None
    backbone_lr_mult: float | None = None
    weight_decay: float | None = None
    warmup_epochs: float | None = None
    drop_path: float | None = None
    head_dropout: float | None = None
    label_smoothing: float | None = None
    clip_grad: float | None = None
    frames: int | None = None
    interval: int | None = None
    size: int | None = None
    crop_area: float | None = None
    flip: float | None = None
    freeze: str | None = None
    unfreeze_epoch: int | None = None
    amp: str = "off"
    grad_checkpointing: bool = False
    seed: int = 0
    workers: int | None = None
    timeout: float = 60.0
    window: Window | None = None
    dialect: str | None = None
    ignore: tuple[str, ...] = ()
    device: str = "auto"
    views: str | None = None
    val_views: str = "1x1"
    force_flip: bool = False
    skip_missing: bool = False
    save_every: int | None = None

    def __post_init__(self) -> None:
        if self.amp not in ("off", "bf16"):
            raise UsageError(f"unknown --amp {self.amp!r}", "off or bf16")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers must be at least 1, not {self.workers}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed must be from 0 to 2^63 - 1, not {self.seed}")
        if self.save_every is not None and self.save_every < 1:
            raise UsageError(f"--save-every must be at least 1, not {self.save_every}")


_RECIPE_FIELDS = (
    "epochs",
    "batch_size",
    "accumulate",
    "backbone_lr_mult",
    "weight_decay",
    "warmup_epochs",
    "drop_path",
    "head_dropout",
    "label_smoothing",
    "clip_grad",
)
_CLIP_FIELDS = ("frames", "interval", "size", "crop_area", "flip")


def new_settings(given: Mapping[str, Any]) -> Settings:
    if "data" not in given:
        raise UsageError("no data given", "--data FOLDER with train/ and val/ in it")
    return Settings(**given)


def settings_of_run(folder: Path, given: Mapping[str, Any]) -> Settings:
    """The settings in a run's folder; raises UsageError where what is given now differs."""
    stored = read_run_config(folder).get("settings")
    known = {f.name for f in fields(Settings)}
    if not isinstance(stored, dict) or not set(stored) <= known:
        raise UsageError(f"{folder}: its config.json is not one of this version's")
    for name in ("ignore", "window"):
        if isinstance(stored.get(name), list):
            stored[name] = tuple(stored[name])
    # What says how fast and where, not what is computed, may change.
    free = {"workers", "timeout", "device", "save_every", "batch_size", "accumulate"}
    for name, value in given.items():
        if name not in free and stored.get(name) != value:
            raise UsageError(
                f"--{name.replace('_', '-')} {value} differs from the run's {stored.get(name)} in {folder}",
                "leave it out with --resume, or start another run with another --out",
            )
    return Settings(**{**stored, **{k: v for k, v in given.items() if k in free}})


def resolve_recipe(asked: Settings, start: Start, clips_per_step: int | None, world: int) -> TrainRecipe:
    """The recipe with everything that was asked for; its learning rate is the one that is used.

    clips_per_step: of a resumed run, kept whatever the number of ranks is now
    """
    recipe = recipe_for(asked.recipe, start.config, start.from_22k)
    if not start.state:
        # The gentle start of a new head on a trained backbone has no meaning for random weights.
        recipe = replace(recipe, freeze="none", unfreeze_epoch=None, backbone_lr_mult=1.0)
    if asked.freeze is not None:
        recipe = replace(recipe, freeze=asked.freeze, unfreeze_epoch=asked.unfreeze_epoch)
    elif asked.unfreeze_epoch is not None:
        recipe = replace(recipe, unfreeze_epoch=asked.unfreeze_epoch)
    changes = {n: getattr(asked, n) for n in _RECIPE_FIELDS if getattr(asked, n) is not None}
    inner = {n: getattr(asked, n) for n in _CLIP_FIELDS if getattr(asked, n) is not None}
    recipe = replace(recipe, **changes, augmentation=replace(recipe.augmentation, **inner))
    recipe.frozen_stages(len(start.config.depths))
    per_step = recipe.batch_size * recipe.accumulate * world
    if clips_per_step is not None and per_step != clips_per_step:
        forwards, left = divmod(clips_per_step, recipe.batch_size * world)
        per_rank, left_by_forwards = divmod(clips_per_step, recipe.accumulate * world)
        if not left:
            recipe = replace(recipe, accumulate=forwards)
        elif not left_by_forwards:
            recipe = replace(recipe, batch_size=per_rank)
        else:
            raise UsageError(
                f"the run takes {clips_per_step} clips a step, which {world} ranks with {recipe.batch_size} "
                f"clips x {recipe.accumulate} forwards each cannot make",
                "resume with another number of ranks, or give --batch-size and --accumulate",
            )
        per_step = clips_per_step
    lr = asked.lr if asked.lr is not None else recipe.lr * per_step / recipe.reference_batch
    return replace(recipe, lr=lr, reference_batch=per_step)


def speaks_of_sides(name: str) -> bool:
    """Whether left, right or clockwise is in a class name: 'pan left', 'TurnLeft', 'counter-clockwise'."""
    words = [*re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name), *name.split()]
    return any(w.startswith(("left", "right")) or "clockwise" in w for w in map(str.casefold, words))


def refuse_flips(labels: Sequence[str], recipe: TrainRecipe, force: bool) -> None:
    """Raise DataError where clips would be mirrored although class names speak of sides."""
    sided = [name for name in labels if speaks_of_sides(name)]
    if sided and recipe.augmentation.flip > 0 and not force:
        raise DataError(
            f"recipe {recipe.name} mirrors clips (flip {recipe.augmentation.flip:g}), but {len(sided)} class "
            f"names speak of sides: {', '.join(map(repr, sided[:5]))}",
            "--flip 0 trains without mirroring; --force-flip mirrors all the same",
        )


def protocol_of_recipe(recipe: TrainRecipe, views_: str | None) -> ViewProtocol:
    """The views that the finished model is tested with: the recipe's, over clips like those of training."""
    clip = recipe.augmentation
    named = PROTOCOLS[recipe.protocol]
    strided = named.sampling in ("segment-centers", "endpoints")
    return named.override(views_, clip.frames, clip.interval if strided else None, clip.size)


def read_class_names(path: str | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of class names ({error})") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise DataError(f"{path}: no class name in it", "a line is the name of a class, the first of class 0")
    return names
