"""vswin convert and inflate --to as a user meets them: streams, exit codes, files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from tests.parity import writers
from vswin_cli.cli.app import app

GOLDEN = Path(__file__).parents[1] / "golden"
SWIN_2D = GOLDEN / "dialects/timm-2d.safetensors"
SWIN_3D = GOLDEN / "dialects/torchvision-3d.pth"


def vswin(*arguments: object, code: int = 0) -> Result:
    """Run one command in this process; a bug raises here."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == code, done.stderr
    return done


def result(*arguments: object) -> Any:
    return json.loads(vswin(*arguments, "--json").stdout)


def test_convert_json(tmp_path: Path) -> None:
    out = tmp_path / "o.pth"
    data = result("convert", SWIN_3D, out, "--to", "official-3d")
    assert data["source"]["dialect"] == "torchvision-3d"
    assert data["to"] == "official-3d"
    assert data["dtype"] == "fp32"
    assert data["written"] == {"parameters": 121, "buffers": 8}
    assert data["verify"]["max_rel_diff"] <= 1e-6
    assert data["verify"]["clip"] == [1, 3, 8, 128, 128]
    assert data["report"]["loaded"] == 121
    assert [x.partition(":")[0] for x in data["not_held"]] == ["protocol"]
    assert data["config_json"] is None
    assert data["size"] is None
    assert out.stat().st_size == data["bytes"]
    assert [p.name for p in tmp_path.iterdir()] == ["o.pth"]  # no temporary file is left


def test_convert_table(tmp_path: Path) -> None:
    done = vswin("convert", SWIN_2D, tmp_path / "model.safetensors", "--to", "huggingface-2d", "--size", 256)
    assert "timm-2d" in done.stdout
    assert "153 tensors (fp32) and 0 buffers" in done.stdout
    assert "256 pixels" in done.stdout
    assert "config.json" in done.stdout
    assert done.stderr.startswith("next: vswin inspect")
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == 256
    done = vswin("convert", SWIN_3D, tmp_path / "o.pth", "--to", "official-3d", "--no-verify")
    assert "not verified" in done.stdout
    assert "official-3d cannot hold" in done.stdout


def test_wrong_usage(tmp_path: Path) -> None:
    out = tmp_path / "o.pth"
    assert "Missing option '--to'" in vswin("convert", SWIN_3D, out, code=2).stderr
    assert "known:" in vswin("convert", SWIN_3D, out, "--to", "keras", code=2).stderr
    assert "read only" in vswin("convert", SWIN_3D, out, "--to", "omnivore", code=2).stderr
    assert "fp8" in vswin("convert", SWIN_3D, out, "--to", "torchvision-3d", "--dtype", "fp8", code=2).stderr
    done = vswin("convert", SWIN_3D, tmp_path / "o.safetensors", "--to", "official-3d", code=2)
    assert "which safetensors cannot hold" in done.stderr
    assert "o.pth" in done.stderr
    done = vswin("convert", SWIN_2D, out, "--to", "official-3d", code=1)
    assert f"vswin inflate {SWIN_2D} {out} --to official-3d" in done.stderr
    assert "video model" in vswin("convert", SWIN_3D, out, "--to", "timm-2d", code=1).stderr
    assert "mkdir" in vswin("convert", SWIN_3D, tmp_path / "no/o.pth", "--to", "official-3d", code=1).stderr
    assert "no such file" in vswin("convert", "none.pth", out, "--to", "official-3d", code=1).stderr
    assert not list(tmp_path.iterdir())


def test_existing_files_need_force(tmp_path: Path) -> None:
    out = tmp_path / "o.pth"
    vswin("convert", SWIN_3D, out, "--to", "official-3d", "--no-verify")
    before = out.read_bytes()
    assert "--force" in vswin("convert", SWIN_3D, out, "--to", "mmaction2-3d", code=1).stderr
    assert out.read_bytes() == before
    vswin("convert", SWIN_3D, out, "--to", "mmaction2-3d", "--force", "--no-verify")
    assert set(torch.load(out, weights_only=True)) == {"meta", "state_dict"}


def test_inflate_to_a_dialect(tmp_path: Path) -> None:
    data = result(
        "inflate", SWIN_2D, tmp_path / "o.pth", "--to", "mmaction2-3d", "--window", "2,4,4", "--no-verify"
    )
    assert data["to"] == "mmaction2-3d"
    assert any("source" in x for x in data["not_held"])
    assert "backbone.norm3.weight" in torch.load(tmp_path / "o.pth", weights_only=True)["state_dict"]
    done = vswin("inflate", SWIN_2D, tmp_path / "x.pth", "--to", "native", code=2)
    assert "native files are safetensors" in done.stderr
    done = vswin("inflate", SWIN_2D, tmp_path / "p.pth", "--to", "official-3d", "--no-verify")
    assert "official-3d cannot hold" in done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process")
def test_full_disk_is_one_of_our_errors(tmp_path: Path) -> None:
    """Files that cannot be written whole leave nothing; a limit on file size stands for a full disk."""
    source = writers.save(writers.torchvision_3d(writers.small_3d(1)), tmp_path / "source.pth")
    code = (
        "import resource, signal, sys\n"
        "from typer.testing import CliRunner\n"
        "from vswin_cli.cli.app import app\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "targets = {'o.safetensors': 'torchvision-3d', 'o.pth': 'official-3d', 'n.safetensors': 'native'}\n"
        "for name, to in targets.items():\n"
        f"    command = ['convert', {str(source)!r}, {str(tmp_path)!r} + '/' + name, '--to', to]\n"
        "    done = CliRunner().invoke(app, command, catch_exceptions=False)\n"
        "    assert done.exit_code == 1, done.output\n"
        "    assert 'cannot be written' in done.stderr, done.stderr\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [p.name for p in tmp_path.iterdir()] == ["source.pth"]
