"""Recipes, schedule, parameter groups, freezing, batches: numbers of the paper and the official configs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vswin_cli.config import RECIPES, VARIANTS, Augmentation, ModelConfig, TrainRecipe, recipe_for
from vswin_cli.engine.batches import Plan
from vswin_cli.engine.optimize import freeze, lr_factor, make_optimizer, parameter_groups, set_lr
from vswin_cli.engine.settings import Settings, refuse_flips, resolve_recipe
from vswin_cli.engine.start import Start
from vswin_cli.errors import DataError, UsageError
from vswin_cli.model import VideoSwin

SMALL = ModelConfig(16, (2, 2), (1, 2), (2, 4, 4), (2, 4, 4), 3)


# FACTS 2.1: lr 1e-3 (T, S, B-1k) / 3e-4 (B-22k, SSv2), wd .02 (T, S) / .05 (B), drop path T .1, S .1,
# B-1k .3, B-22k .2, SSv2 .4; the paper's L starts from 22k.
@pytest.mark.parametrize(
    ("variant", "from_22k", "lr", "decay", "drop_path"),
    [
        ("T", False, 1e-3, 0.02, 0.1),
        ("S", False, 1e-3, 0.02, 0.1),
        ("B", False, 1e-3, 0.05, 0.3),
        ("B", True, 3e-4, 0.05, 0.2),
        ("L", True, 3e-4, 0.05, 0.2),
    ],
)
def test_k400(variant: str, from_22k: bool, lr: float, decay: float, drop_path: float) -> None:
    recipe = recipe_for("k400", VARIANTS[variant], from_22k)
    assert (recipe.lr, recipe.weight_decay, recipe.drop_path) == (lr, decay, drop_path)
    assert (recipe.reference_batch, recipe.betas, recipe.backbone_lr_mult) == (64, (0.9, 0.999), 0.1)
    assert (recipe.warmup_epochs, recipe.epochs, recipe.head_dropout) == (2.5, 30, 0.5)
    assert (recipe.label_smoothing, recipe.freeze, recipe.protocol) == (0.0, "none", "k400-4x3")
    clip = recipe.augmentation
    assert (clip.sampling, clip.frames, clip.interval, clip.size, clip.flip) == ("random", 32, 2, 224, 0.5)
    assert (clip.crop_area, clip.crop_aspect, clip.rand_augment, clip.erase) == (0.08, 4 / 3, None, 0.0)


def test_ssv2() -> None:
    recipe = recipe_for("ssv2", replace(VARIANTS["B"], window=(16, 7, 7)), False)
    assert (recipe.lr, recipe.weight_decay, recipe.drop_path, recipe.epochs) == (3e-4, 0.05, 0.4, 60)
    assert (recipe.label_smoothing, recipe.head_dropout, recipe.backbone_lr_mult) == (0.1, 0.5, 0.1)
    clip = recipe.augmentation
    assert (clip.sampling, clip.flip, clip.rand_augment, clip.erase) == ("uniform", 0.0, (4, 7), 0.25)
    assert recipe.protocol == "ssv2-1x3"


def test_recipes_round_trip_through_json() -> None:
    import json

    for recipe in RECIPES.values():
        assert TrainRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0},
        {"lr": math.nan},
        {"epochs": 0},
        {"drop_path": 1.0},
        {"freeze": "half"},
        {"clip_grad": -1.0},
    ],
)
def test_nonsense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(RECIPES["k400"], **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"flip": 1.5}, {"crop_area": 0.0}, {"frames": 0}, {"rand_augment": (0, 5)}]
)
def test_nonsense_clips_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        replace(Augmentation(), **change)  # type: ignore[arg-type]


def test_learning_rate_is_scaled_with_the_batch() -> None:
    start = Start(SMALL, {"x": torch.zeros(1)}, None, {})
    assert resolve_recipe(Settings("d"), start, None, world=1).lr == pytest.approx(1e-3 * 8 / 64)
    assert resolve_recipe(Settings("d"), start, None, world=8).lr == pytest.approx(1e-3)
    assert resolve_recipe(Settings("d", accumulate=2), start, None, world=4).lr == pytest.approx(1e-3)
    assert resolve_recipe(Settings("d", lr=0.5), start, None, world=3).lr == 0.5


def test_a_resumed_run_keeps_its_clips_per_step() -> None:
    start = Start(SMALL, {"x": torch.zeros(1)}, None, {})
    recipe = resolve_recipe(Settings("d", batch_size=16), start, 32, world=4)
    assert (recipe.batch_size, recipe.accumulate) == (8, 1)
    recipe = resolve_recipe(
        Settings("d", batch_size=2), start, 32, world=4
    )  # memory ran out: smaller forwards
    assert (recipe.batch_size, recipe.accumulate) == (2, 4)
    with pytest.raises(UsageError, match="32 clips a step, which 3 ranks"):
        resolve_recipe(Settings("d"), start, 32, world=3)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_torch_cannot_take(seed: int) -> None:
    with pytest.raises(UsageError, match="--seed"):
        Settings("d", seed=seed)


def test_random_weights_are_not_trained_gently() -> None:
    nothing = Start(SMALL, {}, None, {})
    recipe = resolve_recipe(Settings("d", recipe="small"), nothing, None, 1)
    assert (recipe.freeze, recipe.unfreeze_epoch, recipe.backbone_lr_mult) == ("none", None, 1.0)
    weights = replace(nothing, state={"x": torch.zeros(1)})
    recipe = resolve_recipe(Settings("d", recipe="small"), weights, None, 1)
    assert (recipe.freeze, recipe.unfreeze_epoch, recipe.backbone_lr_mult) == ("backbone", 5, 0.1)


@pytest.mark.parametrize("recipe", ["k400", "ssv2", "small"])
def test_groups_cover_each_parameter_once(recipe: str) -> None:
    model = VideoSwin(SMALL)
    groups = parameter_groups(model, RECIPES[recipe], lr=0.01)
    names = [n for g in groups for n in g.parameters]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    assert len(set(names)) == len(names)
    assert sum(g.numbers for g in groups) == sum(p.numel() for p in model.parameters())
    of = {name: g for g in groups for name in g.parameters}
    for name in names:
        free = "norm" in name or "relative_position_bias_table" in name
        assert of[name].weight_decay == (0 if free else RECIPES[recipe].weight_decay), name
        assert of[name].lr == pytest.approx(0.01 if name.startswith("head.") else 0.001), name
    assert of["layers.0.blocks.0.attn.qkv.bias"].weight_decay > 0  # only norms' biases are free
    assert of["head.bias"].weight_decay > 0
    optimizer = make_optimizer(model, groups, RECIPES[recipe])
    set_lr(optimizer, groups, 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [g.lr / 2 for g in groups]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)


def test_schedule() -> None:
    values = [lr_factor(s, 100, 10) for s in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert values[5] == pytest.approx(0.55 * 0.5 * (1 + math.cos(math.pi * 0.05)))
    assert values[10] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.1)))
    assert values[50] == pytest.approx(0.5)
    assert 0 < values[99] < 1e-3
    assert max(values) == values[10]
    assert lr_factor(0, 10, 0) == 1.0


@pytest.mark.parametrize(
    ("asked", "stages"), [("none", -1), ("backbone", 2), ("stages:0", 0), ("stages:1", 1), ("stages:2", 2)]
)
def test_frozen_stages(asked: str, stages: int) -> None:
    assert replace(RECIPES["k400"], freeze=asked).frozen_stages(2) == stages


def test_freezing() -> None:
    model = VideoSwin(SMALL, drop_path=0.5)
    freeze(model, 1)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning
    assert all(n.startswith(("layers.1.", "norm.", "head.")) for n in learning)
    assert not model.layers[0].training
    assert model.layers[1].training
    freeze(model, 2)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert model.training
    assert model.dropout.training
    freeze(model, -1)
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
    with pytest.raises(UsageError, match="stages:3"):
        replace(RECIPES["k400"], freeze="stages:3").frozen_stages(2)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_a_plan_uses_each_video_once_an_epoch(
    videos: int, per_rank: int, accumulate: int, world: int, epoch: int
) -> None:
    plan = Plan(videos, per_rank, accumulate, world, seed=7)
    seen: list[int] = []
    for step in range(plan.steps_per_epoch):
        ranks = [plan.forwards(epoch, step, r) for r in range(world)]
        assert all(len(f) == accumulate for f in ranks)
        assert all(len(numbers) <= per_rank for f in ranks for numbers in f)
        here = [n for f in ranks for numbers in f for n in numbers]
        assert len(here) == plan.size(step)
        seen += here
    assert sorted(seen) == list(range(videos))


def test_a_step_has_the_same_videos_for_any_number_of_ranks() -> None:
    one, two = Plan(50, 8, 1, 1, 0), Plan(50, 4, 1, 2, 0)
    for step in range(one.steps_per_epoch):
        alone = sorted(one.forwards(3, step, 0)[0])
        assert alone == sorted(n for r in range(2) for n in two.forwards(3, step, r)[0])
    assert one.order(0) != one.order(1)
    assert one.order(0) != Plan(50, 8, 1, 1, 1).order(0)


@pytest.mark.parametrize(
    "name",
    [
        "pan left",
        "Turning_Right",
        "roll counter-clockwise",
        "moving left-to-right",
        "leftwards",
        "turn-left",
        "TurnLeft",
        "Swiping-Right",
        "ANTICLOCKWISE",
    ],
)
def test_flips_are_refused_where_names_speak_of_sides(name: str) -> None:
    labels = ("static", name)
    with pytest.raises(DataError, match="speak of sides"):
        refuse_flips(labels, RECIPES["k400"], False)
    refuse_flips(labels, RECIPES["k400"], True)
    refuse_flips(labels, RECIPES["ssv2"], False)  # which does not flip
    refuse_flips(("bright light", "copyright", "clock", "Upright", "cleft lip"), RECIPES["k400"], False)
