"""Every dialect, written by an independent writer, gives the logits of an independent reference model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.parity import writers
from tests.parity.reference import ReferenceSwin
from vswin_cli.checkpoints.files import load_checkpoint
from vswin_cli.engine.load import build_model, load_model
from vswin_cli.errors import DialectError, MismatchError

EXPECTED = {
    "microsoft": "microsoft-2d", "microsoft-training": "microsoft-2d", "simmim": "microsoft-2d",
    "moby": "microsoft-2d", "timm": "timm-2d", "timm-old": "microsoft-2d", "timm-old-wrapped": "timm-2d",
    "timm-ema": "timm-2d", "huggingface": "huggingface-2d", "huggingface-indexed": "huggingface-2d",
    "huggingface-model": "huggingface-2d", "huggingface-masked": "huggingface-2d",
    "huggingface-memory": "huggingface-2d", "torchvision": "torchvision-2d", "mmpretrain": "mmpretrain-2d",
    "mmpretrain-released": "mmpretrain-2d", "official": "official-3d", "official-meta": "official-3d",
    "mmaction2": "mmaction2-3d", "mmaction2-preprocessor": "mmaction2-3d",
    "mmaction2-training": "mmaction2-3d",
    "mmaction2-multi": "mmaction2-3d", "torchvision-3d": "torchvision-3d", "omnivore": "omnivore",
    "omnivore-nested": "omnivore", "omnivore-no-depth": "omnivore", "omnivore-epic": "omnivore",
}  # fmt: skip


def check(path: Path, reference: ReferenceSwin, name: str, dialect: str | None = None) -> None:
    """The file's model agrees with the reference, in logits or (headless) in features."""
    checkpoint = load_checkpoint(path, dialect=dialect)
    assert checkpoint.dialect == (dialect or EXPECTED[name])
    model = build_model(checkpoint, torch.device("cpu"), torch.float32)
    frames = 1 if reference.is_2d else 8
    x = torch.randn(2, 3, frames, 128, 128, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        if name in writers.HEADLESS:
            assert model.config.num_classes == 0
            ours, theirs = model.forward_features(x), reference.forward_features(x)
        else:
            ours, theirs = model(x), reference(x)
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


def reference_2d(name: str, **options: Any) -> ReferenceSwin:
    merge = "unfold" if name in writers.UNFOLD else "slices"
    return writers.small_2d(1, merge=merge, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", writers.WRITERS_2D)
def test_2d_dialect(name: str, tmp_path: Path) -> None:
    reference = reference_2d(name)
    made = writers.WRITERS_2D[name](reference, 128)
    if name == "timm-ema":
        made = writers.timm_training_ema(writers.small_2d(2), 128, ema=reference)  # EMA is what is used
    check(writers.save(made, tmp_path / "model.pth"), reference, name)


@pytest.mark.parametrize("name", writers.WRITERS_3D)
def test_3d_dialect(name: str, tmp_path: Path) -> None:
    reference = writers.small_3d(1)
    path = writers.save(writers.WRITERS_3D[name](reference), tmp_path / "model.pth", legacy=True)
    check(path, reference, name)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt"])
@pytest.mark.parametrize("wrapper", writers.WRAPPERS)
def test_wrappers(wrapper: str, suffix: str, tmp_path: Path) -> None:
    reference = writers.small_2d(3)
    state = writers.state_of(writers.microsoft_2d(reference, 128))
    path = writers.save(writers.WRAPPERS[wrapper](state), tmp_path / f"model{suffix}")
    check(path, reference, "microsoft")


def test_safetensors_and_bin_with_safetensors_inside(tmp_path: Path) -> None:
    reference = writers.small_2d(4)
    for name in ("model.safetensors", "pytorch_model.bin"):
        save_file(writers.timm_2d(reference), tmp_path / name)
        check(tmp_path / name, reference, "timm")


def test_old_timm_can_be_named(tmp_path: Path) -> None:
    reference = writers.small_2d(4)
    path = writers.save(writers.timm_2d_old(reference, 128), tmp_path / "model.pth")
    check(path, reference, "timm-old", dialect="timm-2d")


def test_wrong_merge_order_fails(tmp_path: Path) -> None:
    """The check itself can tell: official merging written as if it were nn.Unfold's gives other logits."""
    reference = writers.small_2d(1, merge="unfold")
    path = writers.save(writers.mmpretrain_2d(reference, 128), tmp_path / "model.pth")
    straight = writers.small_2d(1)  # same weights, slices merging
    with pytest.raises(AssertionError):
        check(path, straight, "mmpretrain")


@pytest.mark.parametrize("make", [writers.simmim_192_2d, writers.s3_2d])
def test_windows_that_differ_between_stages(make: Any, tmp_path: Path) -> None:
    reference = make(2)
    path = writers.save(
        writers.microsoft_2d(reference, 192 if make is writers.simmim_192_2d else 224), tmp_path / "m.pth"
    )
    model = load_model(path)
    assert model.config.stage_windows is not None
    size = 192 if make is writers.simmim_192_2d else 224
    x = torch.randn(1, 3, 1, size, size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", writers.REFUSED_2D)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    path = writers.save(writers.REFUSED_2D[name](writers.small_2d(1), 128), tmp_path / "model.pth")
    with pytest.raises(
        (DialectError, MismatchError), match="absolute_pos_embed" if "ape" in name else "Swin V2"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("layer1.0.conv1.weight", "ResNet"),
        ("blocks.0.attn.qkv.weight", "ViT"),
        ("downsample_layers.0.0.weight", "ConvNeXt"),
        ("bert.embeddings.weight", "no Swin dialect"),
    ],
)
def test_other_models_are_refused_by_name(key: str, name: str, tmp_path: Path) -> None:
    torch.save({key: torch.zeros(4, 4)}, tmp_path / "model.pth")
    with pytest.raises(DialectError, match=name):
        load_checkpoint(tmp_path / "model.pth")


def test_every_key_is_accounted_for(tmp_path: Path) -> None:
    made = writers.moby_2d(writers.small_2d(1), 128)
    path = writers.save(made, tmp_path / "model.pth")
    report = load_checkpoint(path).report
    seen = [*report.loaded, *report.transformed, *report.dropped]
    assert sorted(seen) == sorted(writers.state_of(made))
    assert all(report.dropped.values())


def test_strictness_names_each_key(tmp_path: Path) -> None:
    state = writers.state_of(writers.microsoft_2d(writers.small_2d(1), 128))
    broken = dict(state)
    del broken["layers.1.blocks.0.mlp.fc2.bias"]
    broken["layers.2.blocks.1.norm1.weight"] = torch.zeros(3)
    broken["neck.conv.weight"] = torch.zeros(3)
    torch.save({"model": broken}, tmp_path / "broken.pth")
    with pytest.raises(MismatchError) as caught:
        load_checkpoint(tmp_path / "broken.pth")
    for key in ("layers.1.blocks.0.mlp.fc2.bias", "layers.2.blocks.1.norm1.weight", "neck.conv.weight"):
        assert key in caught.value.message
    torch.save({"model": state | {"neck.conv.weight": torch.zeros(3)}}, tmp_path / "neck.pth")
    with pytest.raises(MismatchError, match=r"neck\.conv\.weight"):
        load_checkpoint(tmp_path / "neck.pth")
    assert load_checkpoint(tmp_path / "neck.pth", ignore=["neck.*"]).report.dropped["neck.conv.weight"]


def test_depth_is_checked_not_silently_cut(tmp_path: Path) -> None:
    """FACTS 1.i: Swin-T weights load partially into Swin-S in the official code."""
    state = writers.state_of(writers.microsoft_2d(writers.small_2d(1), 128))
    state = {k: v for k, v in state.items() if not k.startswith("layers.2.blocks.0.")}
    torch.save({"model": state}, tmp_path / "gap.pth")
    with pytest.raises(MismatchError, match="not numbered"):
        load_checkpoint(tmp_path / "gap.pth")


def test_ambiguous_window_lists_candidates(tmp_path: Path) -> None:
    reference = writers.small_3d(1, window=(8, 8, 8))
    state = {k: v for k, v in writers.official_state(reference).items() if "index" not in k}
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    with pytest.raises(DialectError, match=r"8,8,8.*68,3,3") as caught:
        load_checkpoint(tmp_path / "model.pth")
    assert "--window" in str(caught.value.hint)
    assert load_checkpoint(tmp_path / "model.pth", window=(8, 8, 8)).config.window == (8, 8, 8)
    with pytest.raises(DialectError, match="3375"):
        load_checkpoint(tmp_path / "model.pth", window=(8, 7, 7))
    with_index = writers.official_state(reference)
    torch.save({"state_dict": with_index}, tmp_path / "index.pth")
    assert load_checkpoint(tmp_path / "index.pth").config.window == (8, 8, 8)
