"""The command line as a user meets it: real processes, real files, exit codes and streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import vswin_cli
from tests import clips
from tests.parity import writers
from vswin_cli import Predictor, load_model
from vswin_cli.cli.app import app

GOLDEN = Path(__file__).parents[1] / "golden"
SWIN_2D = GOLDEN / "inflation/w4_to_4x4x4.swin2d.pth"


def vswin(*arguments: object, code: int = 0) -> Result:
    """Run one command in this process; a bug raises here."""
    done = CliRunner().invoke(
        app, [str(a) for a in arguments], catch_exceptions=False, env={"COLUMNS": "140"}
    )
    assert done.exit_code == code, done.stderr
    return done


def result(*arguments: object, code: int = 0) -> Any:
    return json.loads(vswin(*arguments, "--json", code=code).stdout)


@pytest.fixture(scope="module")
def inflated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("weights") / "out.safetensors"
    vswin("inflate", SWIN_2D, out, "--window", "4,4,4", "--no-verify")
    return out


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.write_clip(tmp_path_factory.mktemp("videos") / "ein Clip äöü.mp4", frames=40)


def test_inflate_json(tmp_path: Path) -> None:
    data = result("inflate", SWIN_2D, tmp_path / "o.safetensors")
    assert data["source"]["dialect"] == "microsoft-2d"
    assert len(data["source"]["sha256"]) == 64
    assert data["config"]["window"] == [8, 4, 4]
    assert data["verify"]["max_rel_diff"] <= 1e-5
    assert data["report"]["missing"] == data["report"]["unexpected"] == []
    assert data["report"]["loaded"] + len(data["report"]["transformed"]) == 121
    assert len(data["report"]["dropped"]) == 12
    assert Path(data["out"]).stat().st_size == data["bytes"]
    assert [p.name for p in tmp_path.iterdir()] == ["o.safetensors"]  # no temporary file is left


def test_inflate_table_goes_to_stdout_and_talk_to_stderr(tmp_path: Path) -> None:
    done = vswin("inflate", SWIN_2D, tmp_path / "o.safetensors")
    assert "microsoft-2d" in done.stdout
    assert "equal: largest difference" in done.stdout
    assert "derived from the window" in done.stdout
    assert done.stderr.startswith("next: vswin predict")


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--window", "4,6,6"], "spatial window changes"), (["--bias-init", "center"], "center")],
)
def test_verify_says_where_equality_is_not_to_be_had(options: list[str], reason: str, tmp_path: Path) -> None:
    check = result("inflate", SWIN_2D, tmp_path / "o.safetensors", *options)["verify"]
    assert not check["exact"]
    assert reason in check["reason"]


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize("patch_init", ["inflate", "center"])
def test_static_clip_holds_for_every_patch(frames: int, patch_init: str, tmp_path: Path) -> None:
    from vswin_cli import inflate

    made = inflate(
        SWIN_2D, tmp_path / "o.safetensors", patch_frames=frames, window=(2, 4, 4), patch_init=patch_init
    )  # type: ignore[arg-type]
    assert made.verification is not None
    assert made.verification.exact
    assert made.verification.max_rel_diff <= 1e-5


def test_inflate_errors(tmp_path: Path, inflated: Path) -> None:
    done = vswin("inflate", inflated, tmp_path / "o.safetensors", code=1)
    assert "video model already" in done.stderr
    assert "vswin predict" in done.stderr
    copy = tmp_path / "same.safetensors"
    copy.write_bytes(inflated.read_bytes())
    assert "is the source itself" in vswin("inflate", copy, copy, "--force", code=1).stderr
    assert "--force" in vswin("inflate", SWIN_2D, copy, code=1).stderr
    assert copy.read_bytes() == inflated.read_bytes()
    assert (
        "no such file" in vswin("inflate", tmp_path / "none.pth", tmp_path / "o.safetensors", code=1).stderr
    )
    assert "mkdir" in vswin("inflate", SWIN_2D, tmp_path / "no/o.safetensors", code=1).stderr
    assert ".safetensors" in vswin("inflate", SWIN_2D, tmp_path / "o.pth", code=2).stderr
    assert (
        "--window" in vswin("inflate", SWIN_2D, tmp_path / "o.safetensors", "--window", "8,7", code=2).stderr
    )
    assert "known:" in vswin("inflate", SWIN_2D, tmp_path / "o.safetensors", "--dialect", "x", code=2).stderr
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>not found</html>")
    assert "web page" in vswin("inflate", tmp_path / "page.pth", tmp_path / "o.safetensors", code=1).stderr
    assert not (tmp_path / "o.safetensors").exists()


def test_head_drop(tmp_path: Path, clip: Path) -> None:
    out = tmp_path / "o.safetensors"
    data = result("inflate", SWIN_2D, out, "--head", "drop", "--no-verify")
    assert data["config"]["num_classes"] == 0
    assert data["report"]["dropped"]["head.weight"] == "classifier, dropped as asked"
    assert "no classifier" in vswin("predict", clip, "--weights", out, code=1).stderr


def test_predict(inflated: Path, clip: Path) -> None:
    data = result("predict", clip, "--weights", inflated, "--views", "2x3", "--frames", "8")
    assert data["protocol"]["name"] == "k400-4x3"
    assert data["protocol"]["clips"] == 2
    (video,) = data["videos"]
    assert video["path"] == str(clip)
    assert video["frames"] == 40
    assert video["views"] == 6
    assert len(video["sampled_frames"]) == 2
    assert video["sampled_frames"][0] == [6, 8, 10, 12, 14, 16, 18, 20]
    assert len(video["top"]) == 5
    probabilities = [t["prob"] for t in video["top"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert video["top"][0]["label"] == f"class {video['top'][0]['index']}"
    table = vswin("predict", clip, "--weights", inflated, "--views", "2x3", "--frames", "8").stdout
    assert f"class {video['top'][0]['index']}" in table
    assert "█" in table
    assert "2 clips x 3 crops, 8 frames every 2, 224 px" in table


def test_python_gives_the_same_probabilities(inflated: Path, clip: Path) -> None:
    predictor = Predictor(inflated, device="cpu", views="1x1", frames=8)
    (answer,) = predictor.predict([clip], top=3)
    (video,) = result(
        "predict", clip, "--weights", inflated, "--views", "1x1", "--frames", "8", "--top-k", "3"
    )["videos"]
    assert [t["prob"] for t in video["top"]] == [t.prob for t in answer.top]
    model = load_model(inflated)
    assert model.protocol == predictor.protocol.override(views="4x3", frames=32)
    assert not model.training


def test_one_failing_video_does_not_stop_the_rest(inflated: Path, clip: Path, tmp_path: Path) -> None:
    playlist = tmp_path / "a list.mp4"
    playlist.write_text("#EXTM3U\n/etc/hostname\n")
    done = vswin(
        "predict", playlist, clip, "--weights", inflated, "--views", "1x1", "--frames", "4", "--json", code=1
    )
    first, second = json.loads(done.stdout)["videos"]
    assert "error" in first
    assert "top" not in first
    assert second["top"]
    table = vswin("predict", playlist, "--weights", inflated, code=1)
    assert "playlist" in table.stdout.lower() or "text" in table.stdout.lower()


def test_predict_errors(inflated: Path, clip: Path, tmp_path: Path) -> None:
    image_model = vswin("predict", clip, "--weights", SWIN_2D, code=1).stderr
    assert "image model" in image_model
    assert "vswin inflate" in image_model
    assert (
        "does not exist"
        in vswin("predict", tmp_path / "no.mp4", "--weights", inflated, code=1).stderr.lower()
    )
    assert "--views" in vswin("predict", clip, "--weights", inflated, "--views", "4by3", code=2).stderr
    assert "crops" in vswin("predict", clip, "--weights", inflated, "--views", "4x2", code=2).stderr
    assert "known:" in vswin("predict", clip, "--weights", inflated, "--protocol", "k500", code=2).stderr
    assert "--device" in vswin("predict", clip, "--weights", inflated, "--device", "cuda:7", code=2).stderr
    assert "swin-x" in vswin("predict", clip, "--weights", "swin-x", code=1).stderr


@pytest.mark.parametrize(
    ("dialect", "classes", "window", "protocol"),
    [
        ("official", 5, (4, 4, 4), "k400-4x3"),
        ("torchvision-3d", 5, (4, 4, 4), "torchvision-12x1"),
        ("official", 174, (16, 7, 7), "ssv2-1x3"),
    ],
)
def test_protocol_and_labels_are_guessed(
    dialect: str, classes: int, window: tuple[int, int, int], protocol: str, tmp_path: Path
) -> None:
    reference = writers.small_3d(1, num_classes=classes, window=window)
    path = writers.save(writers.WRITERS_3D[dialect](reference), tmp_path / "m.pth")
    model = load_model(path)
    assert model.protocol is not None
    assert model.protocol.name == protocol
    assert (model.labels is not None) == (classes == 174)
    if model.labels:
        assert model.labels[0] == "Approaching something with your camera"


def test_profile() -> None:
    data = result("profile", "--variant", "t", "--frames", "4", "--size", "64", "--runs", "2")
    assert data["params"] == 28_158_070
    assert data["gflops"] == pytest.approx(2 * data["gmacs"])
    assert 0 < data["latency_ms"]["p10"] <= data["latency_ms"]["median"] <= data["latency_ms"]["p90"]
    assert data["peak_memory_mb"] > 50
    assert data["threads"] == torch.get_num_threads()
    everything = result("profile", "--no-latency")["variants"]
    assert [v["variant"] for v in everything] == ["T", "S", "B", "L"]
    assert everything[0]["gmacs"] == pytest.approx(87.764, rel=1e-3)
    assert everything[0]["latency_ms"] is None
    assert "one of T, S, B, L" in vswin("profile", "--variant", "XL", code=2).stderr
    assert "GMACs" in vswin("profile", "--no-latency").stdout


def test_profile_of_weights(inflated: Path) -> None:
    data = result("profile", "--weights", inflated, "--frames", "8", "--size", "64", "--runs", "1")
    assert data["variant"] == "out.safetensors"
    assert data["config"]["window"] == [4, 4, 4]


def test_as_a_process(inflated: Path, clip: Path, tmp_path: Path) -> None:
    """Exit codes and streams of the real thing, in another folder, with warnings as errors."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONWARNINGS": "error"}
        return subprocess.run(
            [sys.executable, "-m", "vswin_cli", *map(str, arguments)],
            capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=100, encoding="utf-8",
        )  # fmt: skip

    assert run("--version").stdout.strip() == vswin_cli.__version__
    good = run("predict", clip, "--weights", inflated, "--views", "1x1", "--frames", "4", "--json")
    assert good.returncode == 0
    assert good.stderr == ""
    assert json.loads(good.stdout)["videos"][0]["top"]
    bad = run("predict", clip, "--weights", tmp_path / "no.pth")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("error: ")
    assert "Traceback" not in bad.stderr
    assert run("predict").returncode == 2
