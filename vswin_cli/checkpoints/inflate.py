"""Swin-2D weights to Video Swin weights (paper, section 2.4 "Initialization from pre-trained model").

Source: inflate_weights of the official code, mmaction/models/backbones/swin_transformer.py, whose
results are reproduced bit for bit; in addition each table's own size is read, and nothing is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vswin_cli.config import ModelConfig, Window
from vswin_cli.errors import MismatchError

PatchInit = Literal["inflate", "center"]
BiasInit = Literal["duplicate", "center"]

FRAMES = 8  # default temporal window (paper, section 4.1)
CENTER_BIAS = -4.6  # bias of tokens of other frames under bias-init "center" (paper; see FACTS 7)


def inflated_config(config: ModelConfig, window: Window | None = None, patch_frames: int = 2) -> ModelConfig:
    """The 3D geometry: ``window`` defaults to 8 frames x the largest spatial window of the file."""
    if window is None:
        _, height, width = config.window
        window = (FRAMES, height, width)
    return replace(config, window=window, stage_windows=None, patch=(patch_frames, *config.patch[1:]))


def inflate_state(
    state: Mapping[str, Tensor],
    config: ModelConfig,
    target: ModelConfig,
    *,
    patch_init: PatchInit = "inflate",
    bias_init: BiasInit = "duplicate",
    keep_head: bool = True,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Native 2D parameters -> native 3D ones, and what was done to those that changed.

    Tensors that do not change are the given ones, not copies. Raises MismatchError where ``config``
    is no 2D model.
    """
    if not config.is_2d:
        raise MismatchError(f"patch {config.patch} and window {config.window} are those of a 3D model")
    made: dict[str, Tensor] = {}
    changed: dict[str, str] = {}
    for name, tensor in state.items():
        if name == "patch_embed.proj.weight":
            made[name] = inflate_patch(tensor, target.patch[0], patch_init)
            changed[name] = (
                f"repeated over {target.patch[0]} frames and divided by {target.patch[0]}"
                if patch_init == "inflate"
                else f"placed at frame {target.patch[0] // 2} of {target.patch[0]}, zeros elsewhere"
            )
        elif name.endswith("relative_position_bias_table"):
            stage = int(name.split(".")[1])
            source, window = config.stage_window(stage), target.stage_window(stage)
            made[name] = inflate_table(tensor, source, window, bias_init)
            resized = (
                f"resized {source[1]}x{source[2]} -> {window[1]}x{window[2]} (bicubic), "
                if source[1:] != window[1:]
                else ""
            )
            changed[name] = resized + (
                f"repeated {2 * window[0] - 1} times"
                if bias_init == "duplicate"
                else f"placed at temporal offset 0, {CENTER_BIAS} elsewhere"
            )
        elif keep_head or not name.startswith("head."):
            made[name] = tensor
    return made, changed


def inflate_patch(weight: Tensor, frames: int, init: PatchInit) -> Tensor:
    """Patch embedding (C, 3, 1, h, w) -> (C, 3, frames, h, w).

    'inflate' keeps the output's mean and variance on a static clip; so does 'center', which looks
    at one frame only.
    """
    if init == "inflate":
        return weight.repeat(1, 1, frames, 1, 1) / frames
    placed = weight.new_zeros((*weight.shape[:2], frames, *weight.shape[3:]))
    placed[:, :, frames // 2] = weight[:, :, 0]
    return placed


def inflate_table(table: Tensor, source: Window, window: Window, init: BiasInit) -> Tensor:
    """Bias table ((2h-1)(2w-1), heads) -> ((2D-1)(2H-1)(2W-1), heads), time slowest.

    Where the spatial window differs, each head's table is resized bicubically first (align_corners
    False, as in the official code). The repeated table is not divided: every frame pairs alike.
    """
    heads = table.shape[1]
    table = _resize_space(table.view(1, -1, heads), source, window)[0]
    offsets = 2 * window[0] - 1
    if init == "duplicate":
        return table.repeat(offsets, 1)
    placed = torch.full((offsets, *table.shape), CENTER_BIAS, dtype=table.dtype)
    placed[window[0] - 1] = table
    return placed.flatten(0, 1)


def _resize_space(table: Tensor, source: Window, window: Window) -> Tensor:
    """Tables (time offsets, (2h-1)(2w-1), heads) -> (time offsets, (2H-1)(2W-1), heads), bicubically,
    each time offset and head for itself (align_corners False, as in the official code)."""
    old = (2 * source[1] - 1, 2 * source[2] - 1)
    new = (2 * window[1] - 1, 2 * window[2] - 1)
    if old == new:
        return table
    times, _, heads = table.shape
    grid = table.float().permute(0, 2, 1).reshape(times, heads, *old)
    grid = F.interpolate(grid, size=new, mode="bicubic")
    return grid.reshape(times, heads, math.prod(new)).permute(0, 2, 1).to(table.dtype)


def resize_table(table: Tensor, source: Window, window: Window) -> Tensor:
    """A 3D bias table for another window: ((2d-1)(2h-1)(2w-1), heads) -> ((2D-1)(2H-1)(2W-1), heads).

    Offsets in time mean the same frames apart as before: those beyond the new window are dropped, new ones
    repeat the outermost. Offsets in space are stretched (bicubic, each time offset for itself).
    """
    heads = table.shape[1]
    slices = _resize_space(table.view(2 * source[0] - 1, -1, heads), source, window)
    reach = source[0] - 1
    wanted = torch.arange(-(window[0] - 1), window[0]).clamp(-reach, reach) + reach
    return slices.index_select(0, wanted).flatten(0, 1)


def resize_window(state: Mapping[str, Tensor], config: ModelConfig, target: ModelConfig) -> dict[str, Tensor]:
    """Native 3D parameters with bias tables for ``target``'s windows; other tensors are the given ones."""
    resized = dict(state)
    for name, tensor in state.items():
        if name.endswith("relative_position_bias_table"):
            stage = int(name.split(".")[1])
            resized[name] = resize_table(tensor, config.stage_window(stage), target.stage_window(stage))
    return resized
