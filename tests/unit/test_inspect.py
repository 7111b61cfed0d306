"""vswin inspect: what it says of each kind of file; and that it runs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests import hostile
from tests.parity import writers
from vswin_cli.checkpoints.files import TRAINING_KEY, load_checkpoint, save_native
from vswin_cli.cli.app import app
from vswin_cli.config import PROTOCOLS, ModelConfig
from vswin_cli.engine.inspection import inspect
from vswin_cli.engine.rundir import save_state
from vswin_cli.errors import DialectError, UnreadableError


def shown(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == code, done.stderr
    return done.stdout + done.stderr


def as_json(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["inspect", *map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_video_checkpoint(tmp_path: Path) -> None:
    model = writers.small_3d(1)
    path = writers.save(writers.official_3d(model), tmp_path / "a file.pth")
    data = as_json(path)
    assert data["kind"] == "checkpoint"
    assert data["dialect"] == "official-3d"
    assert "wrapper state_dict" in data["evidence"]
    assert data["config"]["window"] == [4, 4, 4]
    assert data["classes"] == 5
    assert data["labels"] is None
    assert data["protocol"]["name"] == "k400-4x3"
    assert data["tensors"] == 129
    assert data["dtypes"] == {"fp32": 121, "int64": 8}
    assert data["parameters"] == sum(p.numel() for p in model.parameters())
    assert data["report"] == {"loaded": 121, "transformed": 0, "dropped": 8}
    assert data["sha256"] == load_checkpoint(path).sha256
    assert data["bytes"] == path.stat().st_size
    assert data["uses"][:3] == ["predict", "eval", "finetune"]
    assert data["uses"][3] == "convert to native, mmaction2-3d, torchvision-3d"
    assert data["next"] == f"vswin predict VIDEO --weights '{path}'"
    text = shown(path)
    for part in ("official-3d", "k400-4x3", "by its geometry and dialect", "8 int64", "next: vswin predict"):
        assert part in text


def test_image_checkpoint_and_headless_ones(tmp_path: Path) -> None:
    image = writers.save(writers.timm_2d(writers.small_2d(1)), tmp_path / "image.pth")
    data = as_json(image)
    assert data["protocol"] is None
    assert data["next"] == f"vswin inflate {image} video.safetensors"
    assert "microsoft-2d" in data["uses"][-1]
    assert "timm-2d" not in data["uses"][-1]
    headless = writers.official_3d(writers.small_3d(1))["state_dict"]
    headless = {k: v for k, v in headless.items() if not k.startswith("cls_head")}
    data = as_json(writers.save({"state_dict": headless}, tmp_path / "headless.pth"))
    assert data["classes"] == 0
    assert "predict" not in data["uses"]
    assert data["next"].startswith("vswin finetune --data DATA --weights")


def test_native_file_with_labels_and_source(tmp_path: Path) -> None:
    config = ModelConfig(8, (2, 2, 2, 2), (1, 2, 4, 8), (4, 4, 4), num_classes=12)
    state = {k: v.half() for k, v in writers.small_3d(1, num_classes=12).state_dict().items()}
    path = tmp_path / "native.safetensors"
    names = [f"\x1b[31mname {i}" for i in range(12)]
    save_native(
        path,
        state,
        config,
        labels=names,
        protocol=PROTOCOLS["ssv2-1x3"],
        source={"name": "x", "sha256": "ab"},
    )
    data = as_json(path)
    assert data["labels"] == names[:5]
    assert data["dtypes"] == {"fp16": 121}
    assert data["protocol"]["name"] == "ssv2-1x3"
    assert data["source"] == {"name": "x", "sha256": "ab"}
    text = shown(path)
    assert "\x1b" not in text  # a name in a file does not speak to the terminal
    assert "name 4, ..." in text
    assert "name x, sha256 ab" in text
    assert "by its geometry" not in text


def test_omnivore_keeps_its_licence_note(tmp_path: Path) -> None:
    path = writers.save(writers.omnivore(writers.small_3d(1)), tmp_path / "o.pth")
    assert "CC-BY-NC" in as_json(path)["note"]
    assert "CC-BY-NC" in shown(path)


@pytest.fixture
def training_state(tmp_path: Path) -> Path:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    path = tmp_path / "run" / "last.safetensors"
    path.parent.mkdir()
    facts = {"step": 7, "epoch": 1, "best": None, "rows": [1, 2]}
    save_state(path, model.state_dict(), optimizer, [n for n, _ in model.named_parameters()], facts)
    return path


def test_training_state_is_told_apart(training_state: Path) -> None:
    data = as_json(training_state)
    assert data["kind"] == "training state"
    assert data["training"] == {"step": 7, "epoch": 1}
    assert data["next"] == f"vswin finetune --resume --out {training_state.parent}"
    assert "dialect" not in data
    text = shown(training_state)
    assert "best.safetensors" in text
    assert "--resume" in text
    with pytest.raises(DialectError, match="state of a training run") as caught:
        load_checkpoint(training_state)
    assert "--resume" in str(caught.value.hint)


def test_broken_training_metadata(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for i, text in enumerate(("{", "[1]", "[" * 100_000)):
        path = tmp_path / f"{i}.safetensors"
        save_file({"model.x": torch.zeros(1)}, path, {TRAINING_KEY: text})
        assert inspect(path).training == {}


@pytest.mark.parametrize("name", [n for n, h in hostile.HOSTILE.items() if h.expect == "refuse"][::9])
def test_hostile_files_run_nothing(name: str, tmp_path: Path) -> None:
    path, canary = hostile.lay(name, tmp_path)
    assert shown(path, code=1).startswith("error: ")
    assert hostile.effects(canary) == []
    assert hostile.poisoned() == []


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("hello")
    with pytest.raises(UnreadableError, match="not a checkpoint"):
        inspect(tmp_path / "x.pth")
    torch.save({"layer1.0.conv1.weight": torch.zeros(4)}, tmp_path / "resnet.pth")
    assert "ResNet" in shown(tmp_path / "resnet.pth", code=1)
