"""The production path against the outputs of the official code and of each library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vswin_cli.checkpoints.files import load_checkpoint
from vswin_cli.engine.load import inflate, load_model
from vswin_cli.model import VideoSwin

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "inflation/manifest.json").read_text(encoding="utf-8"))
DIALECT_FILES = {
    "timm-2d.safetensors": ("timm-2d", "timm-2d"),
    "huggingface-2d.safetensors": ("huggingface-2d", "huggingface-2d"),
    "huggingface-2d-hub.safetensors": ("huggingface-2d", "huggingface-2d"),
    "torchvision-2d.pth": ("torchvision-2d", "torchvision-2d"),
    "torchvision-3d.pth": ("torchvision-3d", "torchvision-3d"),
    "mmaction2-3d.pth": ("mmaction2-3d", "mmaction2-3d"),
}


def close(ours: Tensor, golden: Tensor, share: float = 1e-4) -> None:
    assert ours.shape == golden.shape
    assert float((ours.detach() - golden).abs().max()) <= share * float(golden.abs().max())


def clip(outputs: dict[str, Tensor], i: int, shape: list[int]) -> Tensor:
    if f"clip.{i}" in outputs:
        return outputs[f"clip.{i}"]
    seed = int(outputs[f"clip.{i}.seed"])
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("name", CASES)
def test_inflation_golden(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    out = tmp_path / "out.safetensors"
    result = inflate(GOLDEN / f"inflation/{name}.swin2d.pth", out, window=tuple(case["window_3d"]))
    ours, golden = load_file(out), load_file(GOLDEN / f"inflation/{name}.inflated.safetensors")
    assert set(ours) - set(golden) == {"head.weight", "head.bias"}  # the goldens carry no head
    for key, tensor in golden.items():
        if "bicubic" in name and key.endswith("bias_table"):
            torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-6)
        else:
            assert torch.equal(ours[key], tensor), key
    assert result.verification is not None
    assert result.verification.exact == ("bicubic" not in name)

    outputs = load_file(GOLDEN / f"inflation/{name}.outputs.safetensors")
    model = load_model(out)
    model.reset_head(len(outputs["head.bias"]))
    model.head.load_state_dict({"weight": outputs["head.weight"], "bias": outputs["head.bias"]})
    for i, shape in enumerate(case["clips"]):
        x = clip(outputs, i, shape)
        for gradients in (False, True):  # two paths through the model
            with torch.set_grad_enabled(gradients):
                features = model.forward_features(x)
                close(features.permute(0, 4, 1, 2, 3), outputs[f"features.{i}"])
                close(model(x), outputs[f"logits.{i}"])


@pytest.mark.parametrize("file", DIALECT_FILES)
def test_dialect_golden(file: str) -> None:
    dialect, outputs_of = DIALECT_FILES[file]
    checkpoint = load_checkpoint(GOLDEN / "dialects" / file)
    assert checkpoint.dialect == dialect
    outputs = load_file(GOLDEN / f"dialects/{outputs_of}.outputs.safetensors")
    x = outputs["input"]
    model = load_model(GOLDEN / "dialects" / file)
    assert isinstance(model, VideoSwin)
    assert model.config.is_2d == dialect.endswith("-2d")
    with torch.no_grad():
        close(model(x if x.ndim == 5 else x[:, :, None]), outputs["logits"])
