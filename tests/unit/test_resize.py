"""Bias tables for another window: offsets in time keep their meaning, space is stretched."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vswin_cli.checkpoints.inflate import inflate_table, resize_table, resize_window
from vswin_cli.config import ModelConfig, Window
from vswin_cli.model import VideoSwin


def table(window: Window, heads: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(math.prod(2 * w - 1 for w in window), heads, generator=generator)


def test_the_same_window_changes_nothing() -> None:
    source = table((4, 3, 3))
    assert torch.equal(resize_table(source, (4, 3, 3), (4, 3, 3)), source)


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
def test_time_is_cropped_or_its_edge_repeated(depth: int) -> None:
    source = table((3, 2, 2)).view(5, 9, 3)  # offsets -2..2
    made = resize_table(source.flatten(0, 1), (3, 2, 2), (depth, 2, 2)).view(2 * depth - 1, 9, 3)
    for offset in range(-(depth - 1), depth):
        nearest = max(-2, min(2, offset))
        assert torch.equal(made[offset + depth - 1], source[nearest + 2]), offset


@pytest.mark.parametrize("side", [2, 5, 7])
def test_space_is_bicubic_for_each_time_offset_and_head(side: int) -> None:
    window = (2, 4, 4)
    source = table(window)
    made = resize_table(source, window, (2, side, side)).view(3, 2 * side - 1, 2 * side - 1, 3)
    grids = source.view(3, 7, 7, 3)
    for t in range(3):
        for head in range(3):
            wanted = F.interpolate(
                grids[t, :, :, head][None, None], size=(2 * side - 1, 2 * side - 1), mode="bicubic"
            )[0, 0]
            assert torch.allclose(made[t, :, :, head], wanted, atol=1e-6)


def test_an_image_table_resized_in_two_ways_is_the_same() -> None:
    """Inflating to a window = inflating to another, then resizing in time; and space in the same way."""
    source = table((1, 3, 3))
    direct = inflate_table(source, (1, 3, 3), (4, 5, 5), "duplicate")
    detour = resize_table(inflate_table(source, (1, 3, 3), (2, 3, 3), "duplicate"), (2, 3, 3), (4, 5, 5))
    assert torch.allclose(direct, detour, atol=1e-6)


def test_a_model_with_a_longer_window_sees_short_clips_as_before() -> None:
    """Where a clip fits into both windows, no offset beyond the old ones is used."""
    old = ModelConfig(8, (2, 2), (1, 2), (2, 4, 4), (2, 4, 4), 5)
    new = ModelConfig(8, (2, 2), (1, 2), (6, 4, 4), (2, 4, 4), 5)
    torch.manual_seed(0)
    first = VideoSwin(old).eval()
    with torch.no_grad():
        for parameter in first.bias_tables():
            parameter.normal_()
    second = VideoSwin(new).eval()
    second.load_state_dict(resize_window(first.state_dict(), old, new))
    clip = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        assert torch.allclose(first.forward_features(clip), second.forward_features(clip), atol=1e-5)
        longer = torch.randn(1, 3, 12, 64, 64)
        difference = first.forward_features(longer) - second.forward_features(longer)
        assert difference.abs().max() > 1e-3  # windows of 6 against windows of 4
