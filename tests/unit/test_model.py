"""The model: geometry, caches that are never stale, the two paths, published sizes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.parity import writers
from tests.parity.reference import ReferenceSwin, relative_index
from vswin_cli.config import VARIANTS, ModelConfig
from vswin_cli.engine.profiling import count
from vswin_cli.errors import ModelInputError, UsageError
from vswin_cli.model import VideoSwin, relative_position_index

SMALL = ModelConfig(8, (2, 2), (1, 2), (2, 4, 4), (2, 4, 4), 5)


def pair(
    window: tuple[int, int, int] = (2, 4, 4), patch: tuple[int, int, int] = (2, 4, 4), seed: int = 0
) -> tuple[VideoSwin, ReferenceSwin]:
    """The model under test and the reference with the same weights."""
    reference = writers.small_3d(seed, window=window, patch=patch, depths=(2, 2), num_heads=(1, 2))
    model = VideoSwin(replace(SMALL, window=window, patch=patch)).eval()
    model.load_state_dict(dict(reference.named_parameters()), strict=True)
    return model, reference


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 11),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    window=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    batch=st.integers(1, 3),
)
def test_any_size_agrees_with_the_reference(
    frames: int, height: int, width: int, window: tuple[int, int, int], batch: int
) -> None:
    """Windows that shrink, shift, pad, in all combinations; both paths."""
    model, reference = pair(window)
    x = clip(batch, 3, frames, height, width)
    expected = reference.forward_features(x).detach()
    with torch.no_grad():
        cold = model.forward_features(x)
        warm = model.forward_features(x)
    plain = model.forward_features(x).detach()
    for ours in (cold, warm, plain):
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "changes", "size", "params", "gmacs"),
    [
        ("T", {}, 224, 28_158_070, 87.764),
        ("S", {}, 224, 49_816_678, 165.682),
        ("B", {}, 224, 88_048_984, 281.333),
        ("L", {}, 224, 196_953_916, 603.269),
        ("B", {"window": (16, 7, 7), "num_classes": 174}, 224, 88_834_038, 320.356),
        ("L", {"window": (8, 12, 12)}, 384, 199_999_516, 2106.38),
    ],
)
def test_published_sizes(
    variant: str, changes: dict[str, object], size: int, params: int, gmacs: float
) -> None:
    config = replace(VARIANTS[variant], **changes)  # type: ignore[arg-type]
    assert count(config, 32, size) == (params, pytest.approx(gmacs, rel=1e-4))


@pytest.mark.parametrize("window", [(8, 7, 7), (1, 4, 4), (3, 2, 5)])
def test_relative_position_index(window: tuple[int, int, int]) -> None:
    assert torch.equal(relative_position_index(window), relative_index(window))


def _optimizer_step(model: VideoSwin) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(clip(1, 3, 8, 64, 64)).sum().backward()
    optimizer.step()


def _through_data(model: VideoSwin) -> None:
    for table in model.bias_tables():
        table.data.mul_(2)  # bumps no version counter


def _through_numpy(model: VideoSwin) -> None:
    model.bias_tables()[0].detach().numpy()[::2] += 1.0


def _load(model: VideoSwin) -> None:
    model.load_state_dict(pair(seed=9)[0].state_dict())


def _assign(model: VideoSwin) -> None:
    model.load_state_dict(pair(seed=9)[0].state_dict(), assign=True)


def _swap_blocks(model: VideoSwin) -> None:
    blocks = model.layers[0].blocks
    assert isinstance(blocks, torch.nn.ModuleList)
    first, second = blocks[0].attn, blocks[1].attn
    blocks[0].attn, blocks[1].attn = second, first


@pytest.mark.parametrize(
    "change", [_optimizer_step, _through_data, _through_numpy, _load, _assign, _swap_blocks]
)
def test_cache_is_never_stale(change: Callable[[VideoSwin], None]) -> None:
    model, _ = pair()
    x = clip(1, 3, 8, 64, 64)
    with torch.no_grad():
        before = model(x)
    change(model)
    with torch.no_grad():
        after = model(x)
    fresh = VideoSwin(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = fresh(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-6)


def test_cache_follows_dtype_and_back() -> None:
    model, _ = pair()
    x = clip(1, 3, 8, 64, 64)
    with torch.inference_mode():
        single = model(x)
        half = model.to(torch.bfloat16)(x.to(torch.bfloat16)).float()
        again = model.float()(x)
    assert 0 < float((single - half).abs().max()) < 0.2 * float(single.abs().max())
    assert float((single - again).abs().max()) > 0  # the weights were rounded on the way


def test_cache_is_bounded_and_results_do_not_depend_on_it() -> None:
    model, _ = pair()
    x = clip(1, 3, 8, 64, 64)
    with torch.no_grad():
        expected = model(x)
        used = model.bias_cache.nbytes
        assert used > 0
        for limit in (0, used // 3, used // 2):
            model.bias_cache.limit = limit
            model.bias_cache.clear()
            for _ in range(2):
                assert torch.equal(model(x), expected)
                assert model.bias_cache.nbytes <= limit


def test_cache_makes_room_for_a_new_size() -> None:
    model, _ = pair()
    small, large = clip(1, 3, 4, 32, 32), clip(1, 3, 8, 64, 64)
    with torch.no_grad():
        expected = VideoSwin.forward(model, large)
        model.bias_cache.limit = model.bias_cache.nbytes
        model(small)
        model(large)
        assert torch.equal(model(large), expected)
        assert model.bias_cache.nbytes <= model.bias_cache.limit


def test_cache_is_no_state_and_is_not_copied() -> None:
    model, _ = pair()
    with torch.no_grad():
        expected = model(clip(1, 3, 8, 64, 64))
    parameters = {name for name, _ in model.named_parameters()}
    assert set(model.state_dict()) == parameters
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.bias_cache.nbytes == 0
        assert twin.bias_cache is not model.bias_cache
        with torch.no_grad():
            assert torch.equal(twin(clip(1, 3, 8, 64, 64)), expected)


def test_inference_then_training() -> None:
    """Index tensors made in inference mode must not break a later backward pass."""
    model, _ = pair()
    x = clip(1, 3, 8, 64, 64)
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_gradients_agree_with_the_reference() -> None:
    model, reference = pair()
    reference.requires_grad_(True)
    x = clip(2, 3, 6, 40, 52)
    model(x).square().sum().backward()
    reference(x).square().sum().backward()
    theirs = {n: p.grad for n, p in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 3, 6, 40, 52), (1, 3, 8, 64, 64), (2, 3, 1, 9, 9), (1, 3, 3, 16, 48)])
@pytest.mark.parametrize("chunk", [1, 5000, 2**20])
def test_gradients_are_exact(shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, padded, shifted and shrunken windows, however attention is cut for the backward pass."""
    monkeypatch.setattr("vswin_cli.model.CPU_CHUNK_SCORES", chunk)
    model, reference = pair()
    model.double()
    reference.double().requires_grad_(True)
    ours, theirs = (clip(*shape).double().requires_grad_(True) for _ in range(2))
    model(ours).square().sum().backward()
    reference(theirs).square().sum().backward()
    expected = {n: p.grad for n, p in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-8)


def test_frozen_parts_stay_without_gradients() -> None:
    model, _ = pair()
    for table in model.bias_tables():
        table.requires_grad_(False)
    model(clip(1, 3, 8, 64, 64)).sum().backward()
    assert all(t.grad is None for t in model.bias_tables())
    assert model.patch_embed.proj.weight.grad is not None


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_gradients_in_half_precision(enabled: bool, inside: bool) -> None:
    """bfloat16 autocast; backward within it or, as it should be, after it."""
    gradients = []
    for half in (False, True):
        model, _ = pair()
        model.set_grad_checkpointing(enabled)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(clip(2, 3, 6, 40, 52)).float().square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[1].dtype == torch.float32
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.05


@pytest.mark.parametrize("rows", [1, 100, 2**13])
def test_grad_checkpointing_changes_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stochastic depth, whose choices must be the same when a block is computed anew."""
    monkeypatch.setattr("vswin_cli.model.CHECKPOINT_ROWS", rows)
    gradients = []
    for enabled in (False, True):
        reference = pair()[0]
        model = VideoSwin(reference.config, drop_path=0.5)
        model.load_state_dict(reference.state_dict())
        model.set_grad_checkpointing(enabled)
        model.double().train()
        torch.manual_seed(0)
        model(clip(3, 3, 4, 30, 36).double()).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_drop_path_rises_linearly_and_works_in_training_only() -> None:
    model = VideoSwin(SMALL, drop_path=0.3)
    rates = [m.rate for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    x = clip(4, 3, 4, 32, 32)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_reset_head() -> None:
    model, _ = pair()
    model.reset_head(3, ["a", "b", "c"])
    assert model.config.num_classes == 3
    assert model.labels == ("a", "b", "c")
    assert model(clip(1, 3, 4, 32, 32)).shape == (1, 3)
    model.reset_head(0)
    assert model(clip(1, 3, 4, 32, 32)).shape == (1, 16)
    assert not any(name.startswith("head") for name in model.state_dict())


def test_no_weight_decay_names() -> None:
    model = VideoSwin(SMALL)
    names = model.no_weight_decay()
    assert names <= {n for n, _ in model.named_parameters()}
    assert "layers.0.blocks.0.attn.relative_position_bias_table" in names
    assert {"norm.weight", "norm.bias", "patch_embed.norm.weight", "layers.0.downsample.norm.bias"} <= names
    assert not any(n.endswith(("qkv.bias", "fc1.weight", "proj.weight")) for n in names)


def test_two_sizes_and_batches_in_turn() -> None:
    model, reference = pair()
    for shape in [(1, 3, 8, 64, 64), (3, 3, 8, 64, 64), (1, 3, 5, 30, 64), (3, 3, 8, 64, 64)]:
        x = clip(*shape)
        with torch.no_grad():
            torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 8, 64, 64), (1, 4, 8, 64, 64), (1, 3, 0, 64, 64), (1, 3, 64, 64)])
def test_wrong_clips_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelInputError, match="clip"):
        VideoSwin(SMALL)(torch.zeros(shape))


def test_wrong_configs_are_refused() -> None:
    with pytest.raises(UsageError, match="divisible"):
        ModelConfig(10, (2,), (3,))
    with pytest.raises(UsageError, match="stages"):
        ModelConfig(8, (2, 2), (1,))
    assert ModelConfig.from_json(SMALL.to_json()) == SMALL


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param("S", marks=pytest.mark.slow),
        pytest.param("B", marks=pytest.mark.slow),
        pytest.param("L", marks=pytest.mark.huge),
    ],
)
def test_full_size_variants_agree_with_the_reference(variant: str) -> None:
    config = VARIANTS[variant]
    reference = ReferenceSwin(
        config.embed_dim, config.depths, config.num_heads, config.window, config.patch, 400
    ).fill(0)
    model = VideoSwin(config).eval()
    model.load_state_dict(dict(reference.named_parameters()), strict=True)
    x = clip(1, 3, 32, 224, 224)
    with torch.no_grad():
        ours, theirs = model(x).softmax(-1), reference(x).softmax(-1)
    assert float((ours - theirs).abs().max()) <= 1e-5
