"""Training as a whole: what is learnt, killed and resumed, shared by ranks, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from tests import clips
from tests.moving import write_classes
from vswin_cli import Predictor, evaluate, finetune, load_model
from vswin_cli.checkpoints.files import load_checkpoint, save_native
from vswin_cli.cli.app import app
from vswin_cli.config import PROTOCOLS, ModelConfig
from vswin_cli.engine.finetune import RunInfo, TrainProgress
from vswin_cli.engine.rundir import read_rows
from vswin_cli.errors import DataError, ModelOutputError, OutputError, UsageError
from vswin_cli.model import VideoSwin

ROOT = Path(__file__).parents[2]
GEOMETRY = {"embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window": [4, 4, 4], "patch": [2, 4, 4]}
#: Small clips, and nothing that needs Kornia in the workers, which would take them seconds to import.
SMALL: dict[str, Any] = {
    "frames": 8,
    "interval": 1,
    "size": 32,
    "crop_area": 1.0,
    "flip": 0.0,
    "batch_size": 4,
    "epochs": 2,
    "lr": 2e-3,
    "device": "cpu",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models: a second thread costs more than it brings. Here and in the processes that tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 6 + 6 training and 3 + 3 validation videos: 3 steps of 4 clips an epoch."""
    return write_classes(tmp_path_factory.mktemp("data") / "set", {"going": 4, "coming": -4}, 6, 3)


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("geometry") / "model.json"
    path.write_text(json.dumps(GEOMETRY))
    return path


@pytest.fixture(scope="module")
def whole(data: Path, geometry: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of two epochs, 6 steps, with dropout and drop path on."""
    out = tmp_path_factory.mktemp("whole") / "run"
    result = finetune(data, out=out, config=str(geometry), drop_path=0.2, **SMALL)
    assert result.complete
    assert result.steps == 6
    return out


def checkpoint(path: Path, config: ModelConfig, labels: tuple[str, ...] | None = None, seed: int = 5) -> Path:
    torch.manual_seed(seed)
    model = VideoSwin(config)
    protocol = PROTOCOLS["k400-4x3"].override(frames=8, size=32)
    save_native(path, model.state_dict(), config, labels=labels, protocol=protocol, source={})
    return path


def same_state(first: Path, second: Path) -> bool:
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def same_metrics(first: Path, second: Path) -> bool:
    return (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()


def run_cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in ("finetune", *arguments)])


# ------------------------------------------------------------------------------------------------
# What a run leaves


def test_files_of_a_run(whole: Path) -> None:
    names = {p.name for p in whole.iterdir()} - {"lock"}
    assert names == {
        "config.json",
        "last.safetensors",
        "best.safetensors",
        "best_val.npy",
        "metrics.jsonl",
        "curves.png",
    }
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = read_rows(whole / "metrics.jsonl")
    assert [r["step"] for r in rows] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert [r["epoch"] for r in rows if "val_top1" in r] == [1, 2]
    config = json.loads((whole / "config.json").read_text())
    assert config["labels"] == ["coming", "going"]
    assert config["settings"]["drop_path"] == 0.2
    assert config["recipe"]["lr"] == 2e-3
    saved = load_checkpoint(whole / "best.safetensors")
    assert saved.labels == ("coming", "going")
    assert saved.protocol is not None
    assert (saved.protocol.frames, saved.protocol.crop_size, saved.protocol.views) == (8, 32, 12)


def test_validation_is_what_eval_and_predict_say_of_the_best_weights(
    whole: Path, data: Path, tmp_path: Path
) -> None:
    probabilities = np.load(whole / "best_val.npy")
    assert probabilities.shape == (6, 2)
    best = whole / "best.safetensors"
    videos = sorted(data.glob("val/*/*.mp4"))
    predicted = list(Predictor(best, views="1x1", device="cpu").predict(videos))
    assert np.array_equal(np.stack([v.probabilities for v in predicted if v.error is None]), probabilities)
    result = evaluate(data / "val", best, views="1x1", device="cpu", out=tmp_path / "eval")
    assert result.summary is not None
    rows = read_rows(whole / "metrics.jsonl")
    of_best = [r for r in rows if r.get("best")][-1]
    assert result.summary["top1"] == of_best["val_top1"]
    scores = np.fromfile(tmp_path / "eval" / "scores.bin", "<f2").reshape(6, 2)
    assert np.array_equal(scores, probabilities.astype("<f2"))


@pytest.mark.slow
def test_eight_clips_are_learnt_by_heart(geometry: Path, tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", {"going": 4, "coming": -4}, 4, 0)
    shutil.rmtree(root / "val")
    shutil.copytree(root / "train", root / "val")
    settings = {**SMALL, "epochs": 30, "lr": 3e-3, "batch_size": 8, "head_dropout": 0.0, "drop_path": 0.0}
    result = finetune(root, out=tmp_path / "run", config=str(geometry), **settings)
    assert result.best_top1 == 100.0
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    losses = [r["loss"] for r in rows if "loss" in r]
    assert losses[-1] < 0.2 * losses[0]


# ------------------------------------------------------------------------------------------------
# Resuming


def test_three_and_three_steps_are_six(whole: Path, data: Path, geometry: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for stop in (1, 3):  # within an epoch; at the third step of the launch, within the next
        part = finetune(
            *(() if out.exists() else (data,)),
            out=out,
            resume=out.exists(),
            max_steps=stop,
            **({} if out.exists() else {"config": str(geometry), "drop_path": 0.2, **SMALL}),
        )
        assert not part.complete
    rest = finetune(out=out, resume=True)
    assert rest.complete
    assert rest.steps == 6
    assert same_state(whole / "last.safetensors", out / "last.safetensors")
    assert same_state(whole / "best.safetensors", out / "best.safetensors")
    assert same_metrics(whole, out)
    assert np.array_equal(np.load(whole / "best_val.npy"), np.load(out / "best_val.npy"))
    again = finetune(out=out, resume=True)  # nothing is left to do
    assert again.complete
    assert same_metrics(whole, out)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_killed_and_resumed_is_bit_equal(whole: Path, data: Path, geometry: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
    command = [sys.executable, "-m", "vswin_cli", "finetune", f"--data={data}", f"--out={out}"]
    command += [f"--config={geometry}", "--drop-path=0.2", "--save-every=1", *options]
    for _ in range(5):  # a stalled machine may let it end before it is killed
        shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            lines = (out / "metrics.jsonl").read_text() if (out / "metrics.jsonl").exists() else ""
            if '"step": 4' in lines:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.returncode == -signal.SIGKILL:
            break
    assert process.returncode == -signal.SIGKILL
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "epo')  # torn by the kill
    done = subprocess.run(
        [sys.executable, "-m", "vswin_cli", "finetune", f"--out={out}", "--resume", "--json"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    assert json.loads(done.stdout)["complete"] is True
    assert same_state(whole / "last.safetensors", out / "last.safetensors")
    assert same_state(whole / "best.safetensors", out / "best.safetensors")
    assert same_metrics(whole, out)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ctrl_c_saves_and_says_how_to_go_on(data: Path, geometry: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [f"--{k.replace('_', '-')}={v}" for k, v in {**SMALL, "epochs": 500}.items()]
    command = [sys.executable, "-m", "vswin_cli", "finetune", f"--data={data}", f"--out={out}"]
    process = subprocess.Popen(
        [*command, f"--config={geometry}", *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (out / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in shown
    assert (out / "last.safetensors").exists()


def test_a_run_is_not_overwritten_and_not_changed(whole: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds a training run already"):
        finetune(data, out=whole, variant="T")
    with pytest.raises(UsageError, match=r"--lr 0\.5 differs from the run's 0\.002"):
        finetune(out=whole, resume=True, lr=0.5)
    with pytest.raises(OutputError, match="no training run to go on with"):
        finetune(out=tmp_path, resume=True)


def test_killed_between_an_epoch_and_its_validation(
    whole: Path, data: Path, geometry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is saved before a validation: what fails there costs no training."""
    out = tmp_path / "run"

    def broken(*_: object) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("vswin_cli.engine.finetune.validate", broken)
        patch.setattr("vswin_cli.engine.finetune.Trainer._dry_run", lambda *_: None)
        with pytest.raises(OutputError, match="the disk is full"):
            finetune(data, out=out, config=str(geometry), drop_path=0.2, save_every=100, **SMALL)
    assert finetune(out=out, resume=True, max_steps=1).steps == 4
    finetune(out=out, resume=True)
    assert same_state(whole / "last.safetensors", out / "last.safetensors")
    assert same_state(whole / "best.safetensors", out / "best.safetensors")
    assert same_metrics(whole, out)


def test_a_resumed_run_may_take_smaller_forwards(data: Path, geometry: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**SMALL, "drop_path": 0.0, "head_dropout": 0.0}
    finetune(data, out=out, config=str(geometry), max_steps=2, **settings)
    infos: list[RunInfo] = []
    assert finetune(out=out, resume=True, batch_size=2, started=infos.append).complete
    assert (infos[0].plan.per_rank, infos[0].plan.accumulate, infos[0].plan.clips_per_step) == (2, 2, 4)


def test_other_videos_are_noticed(data: Path, geometry: Path, tmp_path: Path) -> None:
    mine = tmp_path / "set"
    shutil.copytree(data, mine)
    finetune(mine, out=tmp_path / "run", config=str(geometry), max_steps=1, **SMALL)
    next(mine.glob("train/going/*.mp4")).unlink()
    with pytest.raises(DataError, match="had other train videos"):
        finetune(out=tmp_path / "run", resume=True)


def test_a_broken_state_is_an_error(data: Path, geometry: Path, tmp_path: Path) -> None:
    finetune(data, out=tmp_path / "run", config=str(geometry), max_steps=1, **SMALL)
    last = tmp_path / "run" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.raises(OutputError, match="the saved state cannot be used"):
        finetune(out=tmp_path / "run", resume=True)


# ------------------------------------------------------------------------------------------------
# Ranks


def torchrun(ranks: int, *arguments: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [*command, "--standalone", "-m", "vswin_cli", "finetune", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_ranks_are_one_with_twice_the_batch(
    data: Path, geometry: Path, tmp_path: Path, accumulate: int
) -> None:
    """9 clips in steps of 4: the last step of an epoch has one, which leaves a rank without a clip."""
    mine = tmp_path / "set"
    shutil.copytree(data, mine)
    for name in ("going/0.mp4", "going/1.mp4", "going/2.mp4"):
        (mine / "train" / name).unlink()
    settings = {**SMALL, "head_dropout": 0.0, "drop_path": 0.0}
    one = finetune(mine, out=tmp_path / "one", config=str(geometry), **settings)
    options = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items() if k != "batch_size"]
    options += [f"--batch-size={2 // accumulate}", f"--accumulate={accumulate}"]
    torchrun(2, f"--data={mine}", f"--out={tmp_path / 'two'}", f"--config={geometry}", *options)
    assert one.steps == 6
    first = load_file(tmp_path / "one" / "last.safetensors")
    second = load_file(tmp_path / "two" / "last.safetensors")
    weights = [k for k in first if k.startswith("model.")]
    largest = max(float((first[k] - second[k]).abs().max()) for k in weights)
    moved = max(float(first[f"optimizer.exp_avg.{k.removeprefix('model.')}"].abs().max()) for k in weights)
    assert moved > 0
    assert largest < 1e-5
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    for a, b in zip(*rows, strict=True):
        assert a["step"] == b["step"]
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), abs=1e-5)
        assert a.get("val_loss", 0) == pytest.approx(b.get("val_loss", 0), abs=1e-5)


@pytest.mark.slow
def test_two_ranks_resume_bit_equal(data: Path, geometry: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "batch_size": 2, "drop_path": 0.2}
    options = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
    start = [f"--data={data}", f"--config={geometry}", *options]
    torchrun(2, f"--out={tmp_path / 'whole'}", *start)
    torchrun(2, f"--out={tmp_path / 'parts'}", *start, "--max-steps=2")
    torchrun(2, f"--out={tmp_path / 'parts'}", "--resume")
    assert same_state(tmp_path / "whole" / "last.safetensors", tmp_path / "parts" / "last.safetensors")
    assert same_metrics(tmp_path / "whole", tmp_path / "parts")


# ------------------------------------------------------------------------------------------------
# Starts


def test_image_weights_are_inflated_and_get_a_new_head(data: Path, tmp_path: Path) -> None:
    image = ModelConfig(16, (2, 2), (1, 2), (1, 4, 4), (1, 4, 4), 10)
    source = checkpoint(tmp_path / "image.safetensors", image)
    infos: list[RunInfo] = []
    finetune(data, source, out=tmp_path / "run", started=infos.append, max_steps=1, window=(2, 4, 4), **SMALL)
    assert infos[0].start.config.window == (2, 4, 4)
    assert not infos[0].keeps_head
    assert any("inflated to window 2x4x4" in note for note in infos[0].notes)
    state = load_file(tmp_path / "run" / "last.safetensors")
    assert state["model.head.weight"].shape == (2, 32)
    old = load_file(source)
    # One step at a tenth of a tenth of the learning rate: still the inflated weights, nearly.
    new = state["model.patch_embed.proj.weight"]
    assert torch.allclose(new, old["patch_embed.proj.weight"].repeat(1, 1, 2, 1, 1) / 2, atol=1e-4)


@pytest.mark.parametrize("labels", [("going", "Coming"), ("apples", "pears")])
def test_the_head_is_kept_only_for_the_same_classes(
    data: Path, tmp_path: Path, labels: tuple[str, ...]
) -> None:
    config = ModelConfig.from_json({**GEOMETRY, "num_classes": 2})
    source = checkpoint(tmp_path / "video.safetensors", config, labels)
    infos: list[RunInfo] = []
    settings = {**SMALL, "lr": 1e-9}
    finetune(data, source, out=tmp_path / "run", started=infos.append, max_steps=1, **settings)
    same = labels[0] == "going"
    assert infos[0].keeps_head is same
    assert infos[0].splits.labels == (labels if same else ("coming", "going"))
    head = load_file(tmp_path / "run" / "last.safetensors")["model.head.weight"]
    assert torch.allclose(head, load_file(source)["head.weight"], atol=1e-6) is same


def test_another_window_is_resized(data: Path, tmp_path: Path) -> None:
    config = ModelConfig.from_json({**GEOMETRY, "num_classes": 2})
    source = checkpoint(tmp_path / "video.safetensors", config, ("a", "b"))
    settings = {**SMALL, "lr": 1e-9}
    finetune(data, source, out=tmp_path / "run", window=(2, 8, 8), max_steps=1, **settings)
    table = load_file(tmp_path / "run" / "last.safetensors")[
        "model.layers.0.blocks.0.attn.relative_position_bias_table"
    ]
    assert table.shape == (3 * 15 * 15, 1)


def test_frozen_parts_stay_until_they_are_thawed(data: Path, tmp_path: Path) -> None:
    config = ModelConfig.from_json({**GEOMETRY, "num_classes": 2})
    source = checkpoint(tmp_path / "video.safetensors", config, ("a", "b"))
    frozen = {**SMALL, "freeze": "backbone", "unfreeze_epoch": 1}
    finetune(data, source, out=tmp_path / "run", max_steps=3, **frozen)
    before = load_file(source)
    state = load_file(tmp_path / "run" / "last.safetensors")
    assert all(torch.equal(state[f"model.{k}"], v) for k, v in before.items() if not k.startswith("head."))
    assert not any(k.startswith("optimizer.") and ".layers." in k for k in state)
    finetune(out=tmp_path / "run", resume=True)
    state = load_file(tmp_path / "run" / "last.safetensors")
    assert not torch.equal(state["model.patch_embed.proj.weight"], before["patch_embed.proj.weight"])


def test_lists_instead_of_folders(data: Path, geometry: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        videos = sorted((data / split).glob("*/*.mp4"))
        rows = [f"{v.relative_to(data)} {int(v.parent.name == 'going')}\n" for v in videos]
        (tmp_path / f"{split}.txt").write_text("".join(rows))
    (tmp_path / "names.txt").write_text("it comes\nit goes\n")
    lists = {"train_list": str(tmp_path / "train.txt"), "val_list": str(tmp_path / "val.txt")}
    names = {"labels": str(tmp_path / "names.txt")}
    finetune(
        data,
        out=tmp_path / "run",
        config=str(geometry),
        max_steps=3,
        **{**SMALL, "epochs": 1},
        **lists,
        **names,
    )
    assert load_model(tmp_path / "run" / "best.safetensors").labels == ("it comes", "it goes")


# ------------------------------------------------------------------------------------------------
# What goes wrong


def test_a_loss_that_is_not_finite_stops_before_the_step(data: Path, geometry: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "lr": 1e30, "warmup_epochs": 0.0}
    with pytest.raises(
        ModelOutputError, match=r"step 2; training stopped before the update.*\.mp4"
    ) as caught:
        finetune(data, out=tmp_path / "run", config=str(geometry), **settings)
    assert caught.value.hint is not None
    assert "--lr" in caught.value.hint
    state = load_file(tmp_path / "run" / "last.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_unreadable_training_videos_are_replaced_counted_and_listed(
    data: Path, geometry: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "set"
    shutil.copytree(data, mine)
    for name in ("going", "coming"):  # 24 videos, of which one is 4 %
        for i in range(6):
            shutil.copy(mine / "train" / name / f"{i}.mp4", mine / "train" / name / f"copy {i}.mp4")
    (mine / "train" / "going" / "0.mp4").write_bytes(b"no video")
    seen: list[TrainProgress] = []
    result = finetune(mine, out=tmp_path / "run", config=str(geometry), progress=seen.append, **SMALL)
    assert list(result.unreadable) == ["going/0.mp4"]
    assert seen[-1].unreadable == 1
    rows = read_rows(tmp_path / "run" / "unreadable.jsonl")
    assert [r["id"] for r in rows] == ["going/0.mp4"]
    (mine / "train" / "going" / "1.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"2 of 24 training videos cannot be read, more than 5%"):
        finetune(mine, out=tmp_path / "run2", config=str(geometry), **SMALL)
    for i in range(2):  # repaired, in their places
        shutil.copy(mine / "train" / "going" / "2.mp4", mine / "train" / "going" / f"{i}.mp4")
    rest = finetune(out=tmp_path / "run2", resume=True)
    assert rest.complete
    assert not rest.unreadable


def test_a_broken_validation_set_fails_before_the_first_step(
    data: Path, geometry: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "set"
    shutil.copytree(data, mine)
    for video in (mine / "val").glob("*/*.mp4"):
        video.write_bytes(b"no video")
    seen: list[TrainProgress] = []
    with pytest.raises(DataError, match="validation videos can be read"):
        finetune(mine, out=tmp_path / "run", config=str(geometry), progress=seen.append, **SMALL)
    assert not seen


def test_sides_are_not_mirrored(geometry: Path, tmp_path: Path) -> None:
    mine = write_classes(tmp_path / "set", {"pan left": 4, "pan right": -4}, 1, 1)
    result = run_cli("--data", mine, "--config", geometry, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "speak of sides" in result.output
    assert "--flip 0" in result.output
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--out", "x"], "no data given"),
        (["--out", "x", "--data", "nowhere", "--variant", "T"], "nowhere does not exist"),
        (["--out", "x", "--data", "."], "--weights"),
        (["--out", "x", "--data", ".", "--variant", "Q"], "unknown variant 'Q'"),
        (["--out", "x", "--data", ".", "--config", "none.json"], "none.json"),
        (["--out", "x", "--data", ".", "--variant", "T", "--amp", "fp8"], "--amp"),
        (["--out", "x", "--data", ".", "--variant", "T", "--recipe", "mine"], "known: k400, ssv2, small"),
        (["--out", "x", "--data", ".", "--variant", "T", "--val-views", "3"], "--val-views '3' is not CLIPS"),
        (
            ["--out", "x", "--data", ".", "--variant", "T", "--recipe", "ssv2", "--val-views", "5x3"],
            "use --val-views 1x3",
        ),
        (["--out", "x", "--data", ".", "--variant", "T", "--seed", "-1"], "--seed must be"),
        (["--out", "train/going", "--resume"], "no training run to go on with"),
        (["--out", "file", "--resume"], "file: cannot be read"),
        (["--out", "x", "--data", ".", "--weights", "w.pth", "--variant", "T"], "random weights"),
        (["--out", "x", "--data", ".", "--weights", "w.pth"], "no such file"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], text: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data / "val", "val")
    shutil.copytree(data / "val", "train")
    Path("file").touch()
    result = run_cli(*arguments)
    assert result.exit_code in (1, 2)
    assert text in result.output
    assert "Traceback" not in result.output
    assert not Path("x/config.json").exists()


def test_a_table_and_json(data: Path, geometry: Path, tmp_path: Path) -> None:
    options = [f"--{k.replace('_', '-')}={v}" for k, v in SMALL.items()]
    result = run_cli("--data", data, "--config", geometry, "--out", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    assert "backbone: norms and bias tables" in result.stderr
    assert "best validation Top-1" in result.stdout
    result = run_cli("--out", tmp_path / "run", "--resume", "--json")
    found = json.loads(result.stdout)
    assert found["complete"] is True
    assert found["steps"] == 6


@pytest.mark.slow
def test_augmented_training_with_kornia(data: Path, geometry: Path, tmp_path: Path) -> None:
    """The default draws (crop, mirror), bf16 and gradient checkpointing: same losses with and without."""
    settings = {k: v for k, v in SMALL.items() if k not in ("crop_area", "flip")}
    settings |= {"drop_path": 0.0, "head_dropout": 0.0, "epochs": 1}
    plain = finetune(data, out=tmp_path / "a", config=str(geometry), **settings)
    assert plain.complete
    finetune(data, out=tmp_path / "b", config=str(geometry), grad_checkpointing=True, **settings)
    finetune(data, out=tmp_path / "c", config=str(geometry), amp="bf16", **settings)
    losses = [
        [
            r["loss"]
            for r in map(json.loads, (tmp_path / n / "metrics.jsonl").read_text().splitlines())
            if "loss" in r
        ]
        for n in "abc"
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=0.05)
    assert losses[2] != losses[0]


def test_a_cut_video_still_trains(geometry: Path, tmp_path: Path) -> None:
    mine = write_classes(tmp_path / "set", {"going": 4, "coming": -4}, 2, 1)
    clips.write_clip(mine / "train" / "going" / "one.mp4", frames=1)  # shorter than a clip: it loops
    result = finetune(mine, out=tmp_path / "run", config=str(geometry), **{**SMALL, "epochs": 1})
    assert result.complete
    assert not result.unreadable
