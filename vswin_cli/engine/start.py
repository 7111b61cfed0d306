"""Where training starts: a 2D checkpoint (inflated), a 3D one (its windows resized if asked), or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vswin_cli.checkpoints.files import load_checkpoint
from vswin_cli.checkpoints.inflate import inflate_state, inflated_config, resize_window
from vswin_cli.checkpoints.zoo import resolve
from vswin_cli.config import VARIANTS, ModelConfig, TrainRecipe, Window
from vswin_cli.errors import UsageError
from vswin_cli.model import VideoSwin

#: A classifier of this many classes and more is ImageNet-22k's (21,841 or 21,842; 10,450 in some releases).
FROM_22K = 10_000


@dataclass(frozen=True)
class Start:
    """Native 3D weights, or none, before the classifier is made.

    config: geometry of the model; its number of classes is that of the weights
    state:  float32 tensors; empty for random weights
    source: where the weights come from, as it is kept in files
    notes:  what a user should know
    """

    config: ModelConfig
    state: Mapping[str, Tensor]
    labels: tuple[str, ...] | None
    source: Mapping[str, Any]
    from_22k: bool = False
    notes: list[str] = field(default_factory=list)


def start_from_weights(
    weights: str | Path,
    window: Window | None,
    *,
    dialect: str | None = None,
    ignore: Sequence[str] = (),
) -> Start:
    """Read a checkpoint of any dialect; ``window`` is the window to train with. Raises CheckpointError."""
    checkpoint = load_checkpoint(resolve(weights), dialect=dialect, ignore=ignore)
    config, state, notes = checkpoint.config, dict(checkpoint.state), []
    classes = config.num_classes
    if config.is_2d:
        target = inflated_config(config, window)
        state, _ = inflate_state(state, config, target)
        notes.append(f"image weights ({checkpoint.dialect}), inflated to window {_x(target.window)}")
        state = {k: v for k, v in state.items() if not k.startswith("head.")}
        target, labels = replace(target, num_classes=0), None
    else:
        target, labels = config, checkpoint.labels
        stages = {config.stage_window(i) for i in range(len(config.depths))}
        if window is not None and stages != {window}:
            target = replace(config, window=window, stage_windows=None)
            state = resize_window(state, config, target)
            notes.append(f"window {', '.join(map(_x, sorted(stages)))} resized to {_x(window)}")
    if checkpoint.note:
        notes.append(checkpoint.note)
    source = {"name": checkpoint.path.name, "dialect": checkpoint.dialect, "sha256": checkpoint.sha256}
    state = {name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}
    return Start(target, state, labels, source, classes >= FROM_22K, notes)


def start_from_nothing(variant: str | None, config: Path | None, window: Window | None) -> Start:
    """Random weights for a variant's geometry, or that of a JSON file. Raises UsageError."""
    if (variant is None) == (config is None):
        raise UsageError(
            "training starts from --weights, or from random weights with --variant or --config",
            "for example --weights swin_tiny_patch4_window7_224.pth",
        )
    if config is not None:
        geometry = _read_config(config)
    else:
        if variant not in VARIANTS:
            raise UsageError(f"unknown variant {variant!r}", f"one of {', '.join(VARIANTS)}")
        geometry = VARIANTS[variant]
    if window is not None:
        geometry = replace(geometry, window=window, stage_windows=None)
    name = f"variant {variant}" if config is None else config.name
    return Start(replace(geometry, num_classes=0), {}, None, {"name": name, "dialect": "random"})


def _read_config(path: Path) -> ModelConfig:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a JSON file"
        raise UsageError(
            f"{path}: {reason}",
            'a model is described like {"embed_dim": 96, "depths": [2, 2, 6, 2], '
            '"num_heads": [3, 6, 12, 24], "window": [8, 7, 7], "patch": [2, 4, 4]}',
        ) from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a model is described by a JSON object")
    try:
        return ModelConfig.from_json(data)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", error.hint) from error


def training_model(
    start: Start, labels: Sequence[str], keep_head: bool, recipe: TrainRecipe, seed: int
) -> VideoSwin:
    """The start's model in training mode, with a classifier for ``labels``: new unless ``keep_head``.

    Random parts are drawn from ``seed``, whatever ran before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = start.config if keep_head else replace(start.config, num_classes=0)
        model = VideoSwin(config, drop_path=recipe.drop_path, head_dropout=recipe.head_dropout)
        if start.state:
            wanted = model.state_dict()
            model.load_state_dict({k: v for k, v in start.state.items() if k in wanted}, strict=True)
        if not keep_head:
            model.reset_head(len(labels))
    model.labels = tuple(labels)
    return model.train()


def _x(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))
