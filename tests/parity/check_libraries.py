"""By hand: the real libraries load what vswin writes, strictly, and give the same logits.

    python3 -m venv env
    env/bin/python -m pip install -r tests/parity/check_libraries.txt
    env/bin/python -m pip install --no-deps mmaction2==1.2.0
    env/bin/python -m pip install --no-deps --target old timm==0.6.13
    PYTHONPATH=. env/bin/python tests/parity/check_libraries.py old

Their torch is not the one that is pinned here, so this is no part of the tests, which compare key sets,
shapes and values with the same libraries' golden files instead. Old timm stands for microsoft's own code,
which is in no package: it has the same names and buffers. official-3d has no package either; test_convert.py
compares it with golden files of the official code. What this printed last is kept in check_libraries.out.
"""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

warnings.simplefilter("ignore")
torch.set_num_threads(2)

GOLDEN = Path(__file__).parents[1] / "golden/dialects"
# Files that a library wrote, and whose outputs it gave: golden file -> its outputs.
SOURCES_2D = {
    "timm-2d.safetensors": "timm-2d",
    "huggingface-2d-hub.safetensors": "huggingface-2d",
    "huggingface-2d.safetensors": "huggingface-2d",
    "torchvision-2d.pth": "torchvision-2d",
}
SOURCES_3D = {"torchvision-3d.pth": "torchvision-3d", "mmaction2-3d.pth": "mmaction2-3d"}
SHAPE: dict[str, Any] = {"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}
TOLERANCE = 1e-4  # of the largest logit


def torchvision_2d() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer(patch_size=[4, 4], window_size=[4, 4], num_classes=10, **SHAPE)


def torchvision_3d() -> nn.Module:
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    return SwinTransformer3d(patch_size=[2, 4, 4], window_size=[4, 4, 4], num_classes=5, **SHAPE)


def timm_2d() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(img_size=128, window_size=4, num_classes=10, **SHAPE)


@cache
def mmaction_backbones() -> types.ModuleType:
    """The file of mmaction2's backbone alone: the package's own __init__ imports what its wheel lacks."""
    from mmengine.registry import MODELS

    registry = types.ModuleType("mmaction.registry")
    registry.MODELS = MODELS  # type: ignore[attr-defined]
    sys.modules |= {"mmaction": types.ModuleType("mmaction"), "mmaction.registry": registry}
    file = distribution("mmaction2").locate_file("mmaction/models/backbones/swin.py")
    spec = importlib.util.spec_from_file_location("mmaction_swin", str(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Recognizer(nn.Module):
    """mmaction2's backbone, and the classifier of its I3DHead as the recognizer names it."""

    def __init__(self) -> None:
        super().__init__()
        arch = {"embed_dims": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}
        self.backbone = mmaction_backbones().SwinTransformer3D(
            arch=arch, patch_size=(2, 4, 4), window_size=(4, 4, 4), pretrained=None, out_indices=(3,)
        )
        self.cls_head = nn.Module()
        self.cls_head.fc_cls = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cls_head.fc_cls(self.backbone(x).mean(dim=(2, 3, 4)))


def transformers_2d(folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    from transformers import SwinForImageClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model, info = SwinForImageClassification.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    assert not any(info.values()), info
    return lambda x: model.eval()(x).logits


LIBRARIES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "torchvision-2d": ("torchvision", torchvision_2d),
    "torchvision-3d": ("torchvision", torchvision_3d),
    "timm-2d": ("timm", timm_2d),
    "mmaction2-3d": ("mmaction2", Recognizer),
}


def state_in(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    held = torch.load(path, weights_only=True)
    return next((held[k] for k in ("model", "state_dict") if k in held), held)


def check(source: str, outputs_of: str, to: str, build: Callable[[], nn.Module], library: str) -> None:
    """Convert, compare buffers, load strictly, compare logits; prints one line, raises where any differ."""
    from vswin_cli.engine.convert import convert

    outputs = load_file(GOLDEN / f"{outputs_of}.outputs.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / ("model.pth" if to in ("microsoft-2d", "mmaction2-3d") else "model.safetensors")
        convert(GOLDEN / source, out, to)
        if to == "huggingface-2d":
            run = transformers_2d(Path(folder))
        else:
            run = build().eval()
            state = state_in(out)
            for name, buffer in run.state_dict().items():
                if "index" in name or "mask" in name:
                    assert torch.equal(buffer, state[name]), name
            run.load_state_dict(state, strict=True)
        with torch.no_grad():
            got = run(outputs["input"])
    off = float((got - outputs["logits"]).abs().max() / outputs["logits"].abs().max())
    print(f"{source:32} -> {to:15} {library:22} strict, logits within {off:.1e}", flush=True)
    assert off <= TOLERANCE


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--old-timm":
        sys.path.insert(0, sys.argv[2])
        import timm

        for source, outputs in SOURCES_2D.items():
            check(source, outputs, "microsoft-2d", timm_2d, f"timm {timm.__version__}")
        return
    print(f"Python {platform.python_version()}, torch {torch.__version__}", flush=True)
    for to, (library, build) in LIBRARIES.items():
        for source, outputs in (SOURCES_2D if to.endswith("2d") else SOURCES_3D).items():
            check(source, outputs, to, build, f"{library} {version(library)}")
    for source, outputs in SOURCES_2D.items():
        check(source, outputs, "huggingface-2d", nn.Identity, f"transformers {version('transformers')}")
    if len(sys.argv) > 1:
        command = [sys.executable, __file__, "--old-timm", sys.argv[1]]
        subprocess.run(command, check=True)
    print("all loaded strictly, all logits agree with the golden ones")


if __name__ == "__main__":
    main()
