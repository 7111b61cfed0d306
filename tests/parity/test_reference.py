"""The oracle itself: held to the golden outputs and inflated weights of the official code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity.reference import (
    ReferenceSwin,
    fit_window,
    inflate_like_official,
    relative_index,
    shift_mask,
)
from tests.parity.writers import small_2d, small_3d

GOLDEN = Path(__file__).parents[1] / "golden" / "inflation"
MANIFEST: dict[str, Any] = json.loads((GOLDEN / "manifest.json").read_text())


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for one another's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def swin_2d(name: str) -> dict[str, Tensor]:
    checkpoint: dict[str, Any] = torch.load(GOLDEN / f"{name}.swin2d.pth", weights_only=True)
    state: dict[str, Tensor] = checkpoint["model"]
    return state


def golden_model(name: str) -> ReferenceSwin:
    case = MANIFEST[name]
    model = ReferenceSwin(
        case["embed_dim"],
        case["depths"],
        case["num_heads"],
        window=tuple(case["window_3d"]),
        patch=tuple(case["patch_3d"]),
        num_classes=5,
    )
    outputs = load_file(GOLDEN / f"{name}.outputs.safetensors")
    head = {key: outputs[key] for key in ("head.weight", "head.bias")}
    model.load_state_dict({**load_file(GOLDEN / f"{name}.inflated.safetensors"), **head})
    return model


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", MANIFEST)
def test_reference_gives_the_official_features_and_logits(name: str) -> None:
    model = golden_model(name)
    outputs = load_file(GOLDEN / f"{name}.outputs.safetensors")
    for i, shape in enumerate(MANIFEST[name]["clips"]):
        if f"clip.{i}" in outputs:
            clip = outputs[f"clip.{i}"]
        else:
            noise = np.random.default_rng(int(outputs[f"clip.{i}.seed"])).standard_normal(shape)
            clip = torch.from_numpy(noise.astype(np.float32))
        features = model.forward_features(clip)
        assert_close(features.permute(0, 4, 1, 2, 3), outputs[f"features.{i}"])
        assert_close(model.head(features.mean(dim=(1, 2, 3))), outputs[f"logits.{i}"])


@pytest.mark.parametrize("name", MANIFEST)
def test_inflate_like_official_equals_the_official_dict(name: str) -> None:
    case = MANIFEST[name]
    expected = load_file(GOLDEN / f"{name}.inflated.safetensors")
    got = inflate_like_official(swin_2d(name), tuple(case["window_3d"]), case["patch_3d"][0])
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        if name.endswith("bicubic") and key.endswith("bias_table"):
            assert_close(got[key], value, 1e-6)
        else:
            assert torch.equal(got[key], value), key


def test_static_clip_gives_the_2d_features() -> None:
    """The README of the goldens: an inflated model on a static clip repeats the 2D features.

    128 px, so that no map is smaller than the window: where height or width shrink, the official slice of
    the index picks other rows in 3D than in 2D (FACTS 1.j), and the equality does not hold.
    """
    image_model = ReferenceSwin().load_2d(swin_2d("w4_to_4x4x4"))
    video_model = golden_model("w4_to_4x4x4")
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(5))
    clip = image.unsqueeze(2).expand(-1, -1, 16, -1, -1)
    expected = image_model.forward_features(image).expand(-1, 8, -1, -1, -1)
    assert_close(video_model.forward_features(clip), expected, 1e-5)


def test_golden_index_buffers_agree() -> None:
    for key, value in swin_2d("w7_to_8x7x7").items():
        if key.endswith("relative_position_index"):
            assert torch.equal(relative_index((1, 7, 7)), value)
    assert relative_index((8, 7, 7)).max() == 2534
    assert relative_index((8, 7, 7))[0, -1] == 0


def test_window_and_shift_shrink_axis_by_axis() -> None:
    assert fit_window((4, 56, 7), (8, 7, 7), True) == ((4, 7, 7), (0, 3, 0))
    assert fit_window((16, 56, 56), (8, 7, 7), True) == ((8, 7, 7), (4, 3, 3))
    assert fit_window((16, 56, 56), (8, 7, 7), False) == ((8, 7, 7), (0, 0, 0))


def test_mask_separates_what_the_roll_brought_together() -> None:
    mask = shift_mask((1, 4, 8), (1, 4, 4), (0, 0, 2))
    assert mask.shape == (2, 16, 16)
    assert mask[0].abs().sum() == 0
    assert mask[1, 0].tolist() == [0.0, 0.0, -100.0, -100.0] * 4


def test_unfold_and_slices_differ_only_by_the_known_permutation() -> None:
    """FACTS 1.0: B -> A moves the channels; done here, the two orders give the same logits."""
    unfold = small_2d(3, merge="unfold")
    state = unfold.state_dict()
    for i in range(3):
        weight, out = state[f"layers.{i}.downsample.reduction.weight"], 16 * 2**i
        moved = weight.reshape(out, -1, 4).transpose(1, 2)[:, [0, 2, 1, 3]].reshape(out, -1)
        state[f"layers.{i}.downsample.reduction.weight"] = moved
        for kind in ("weight", "bias"):
            key = f"layers.{i}.downsample.norm.{kind}"
            state[key] = state[key].reshape(-1, 4).T[[0, 2, 1, 3]].reshape(-1)
    slices = small_2d(0)
    slices.load_state_dict(state)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert_close(slices(image), unfold(image), 1e-5)
    slices.load_state_dict(unfold.state_dict())
    assert (slices(image) - unfold(image)).abs().max() > 0.05 * unfold(image).abs().max()


@pytest.mark.parametrize(
    "part", ["bias_table", "attn.qkv.bias", "norm1.bias", "downsample.norm.weight", "patch_embed"]
)
def test_every_kind_of_parameter_shows_in_the_logits(part: str) -> None:
    """Weights too tame would hide mistakes: reversing one tensor must move the logits past tolerance."""
    clip = torch.randn(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(2))
    model = small_3d(4)
    expected = model(clip)
    name, value = next((k, v) for k, v in model.named_parameters() if part in k)
    value.copy_(value.flip(0))
    assert (model(clip) - expected).abs().max() > 1e-2 * expected.abs().max(), name
