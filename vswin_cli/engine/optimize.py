"""What is trained, how fast and with how much decay: parameter groups, schedule, freezing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from vswin_cli.config import TrainRecipe
from vswin_cli.model import VideoSwin

WARMUP_START = 0.1  # share of the learning rate in the first step (mmcv's warmup_ratio)


@dataclass(frozen=True)
class Group:
    """Parameters that share learning rate and decay. ``lr`` is the peak, before the schedule."""

    name: str
    parameters: tuple[str, ...]
    numbers: int
    lr: float
    weight_decay: float


def parameter_groups(model: VideoSwin, recipe: TrainRecipe, lr: float) -> list[Group]:
    """Head and backbone, each with and without decay; every parameter is in exactly one group.

    The backbone learns at ``backbone_lr_mult`` x the head's rate; norms and bias tables do not decay
    (official configs, paramwise_cfg).
    """
    free = model.no_weight_decay()
    groups = []
    for part, rate in (("head", lr), ("backbone", lr * recipe.backbone_lr_mult)):
        for decays in (True, False):
            named = {
                name: p
                for name, p in model.named_parameters()
                if name.startswith("head.") == (part == "head") and (name not in free) == decays
            }
            if named:
                groups.append(
                    Group(
                        part if decays else f"{part}: norms and bias tables",
                        tuple(named),
                        sum(p.numel() for p in named.values()),
                        rate,
                        recipe.weight_decay if decays else 0.0,
                    )
                )
    return groups


def make_optimizer(model: nn.Module, groups: list[Group], recipe: TrainRecipe) -> torch.optim.AdamW:
    """AdamW over the groups, in their order."""
    parameters = dict(model.named_parameters())
    return torch.optim.AdamW(
        [
            {"params": [parameters[n] for n in g.parameters], "lr": g.lr, "weight_decay": g.weight_decay}
            for g in groups
        ],
        betas=recipe.betas,
    )


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate in step 0..steps-1: linear warm-up x cosine to zero.

    mmcv's CosineAnnealing with linear warm-up, per step where the official runs step the cosine once an
    epoch.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    if step >= warmup:
        return cosine
    return cosine * (1 - (1 - step / warmup) * (1 - WARMUP_START))


def set_lr(optimizer: torch.optim.Optimizer, groups: list[Group], factor: float) -> None:
    """Set each group's learning rate to ``factor`` x its peak."""
    for mine, group in zip(optimizer.param_groups, groups, strict=True):
        mine["lr"] = group.lr * factor


def freeze(model: VideoSwin, stages: int) -> None:
    """Stop the gradients of the patch embedding and the first ``stages`` stages; of everything but the head
    where that is all of them; of nothing for -1. Frozen parts drop no paths."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.train()
    if stages < 0:
        return
    frozen: list[nn.Module] = [model.patch_embed, *model.layers[:stages]]
    if stages == len(model.layers):
        frozen.append(model.norm)
    for module in frozen:
        module.eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
