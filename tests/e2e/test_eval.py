"""Evaluation as a whole: one process, two ranks, killed and resumed, broken videos; one result."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

from tests import clips
from vswin_cli import Predictor, evaluate
from vswin_cli.checkpoints.files import save_native
from vswin_cli.cli.app import app
from vswin_cli.config import ModelConfig, ViewProtocol
from vswin_cli.engine.evaluate import Progress, rank_of, view_grids, wilson
from vswin_cli.engine.inference import average
from vswin_cli.errors import OutputError
from vswin_cli.model import VideoSwin

ROOT = Path(__file__).parents[2]
LABELS = ("Riding a bike", "Surfing (water)", "abseiling", "air_drumming", "Zumba", "yoga")
PROTOCOL = ViewProtocol("k400-4x3", "segment-centers", 4, 3, frames=4, short_side=32, crop_size=32)
STATIC = ("summary.json", "scores.bin", "per_class.csv", "confusions.csv")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small seeded model with labels, whose classes are told apart by what it sees."""
    torch.manual_seed(3)
    model = VideoSwin(ModelConfig(8, (2, 2), (1, 2), (2, 4, 4), (2, 4, 4), len(LABELS)))
    torch.nn.init.normal_(model.head.weight, std=2.0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_native(path, model.state_dict(), model.config, labels=LABELS, protocol=PROTOCOL, source={})
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: 26 clips (few different ones), one cut off, one that is no video."""
    root = tmp_path_factory.mktemp("data") / "val"
    sources = [
        clips.write_clip(tmp_path_factory.mktemp("clips") / f"{n}.mp4", frames=n, size=(64, 48))
        for n in (5, 20, 40, 60)
    ]
    for i in range(26):
        folder = root / ("riding_a_bike", "surfing water", "Air Drumming")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(sources[i % 4], folder / f"clip {i:02d}.mp4")
    whole = sources[3].read_bytes()
    (root / "surfing water/cut off.mp4").write_bytes(whole[: len(whole) // 3])
    (root / "surfing water/list.mp4").write_text("#EXTM3U\n")
    return root


def vswin(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(
        app, [str(a) for a in arguments], catch_exceptions=False, env={"COLUMNS": "140"}
    )
    assert done.exit_code == code, done.stderr
    return done


def command(data: Path, weights: Path, out: Path, *more: object) -> list[str]:
    parts: list[object] = [
        "eval",
        "--data",
        data,
        "--weights",
        weights,
        "--out",
        out,
        "--device",
        "cpu",
        *more,
    ]
    return [str(p) for p in parts]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def static(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in STATIC}


@pytest.fixture(scope="module")
def reference(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one undisturbed run gives."""
    out = tmp_path_factory.mktemp("reference") / "out"
    done = vswin(*command(data, weights, out), code=1)  # two videos fail
    assert "what does each view buy" in done.stdout
    return static(out)


def without_scores(results: dict[str, bytes]) -> dict[str, bytes]:
    return {k: v for k, v in results.items() if k != "scores.bin"}


def test_summary(reference: dict[str, bytes], data: Path, weights: Path) -> None:
    summary = json.loads(reference["summary.json"])
    assert (summary["n_videos"], summary["n_evaluated"], summary["n_failed"]) == (28, 26, 2)
    assert summary["complete"]
    assert {f["id"] for f in summary["failed"]} == {"surfing water/cut off.mp4", "surfing water/list.mp4"}
    assert str(data) not in json.dumps(summary["failed"])
    assert summary["protocol"] == PROTOCOL.to_json()
    assert len(summary["weights"]["sha256"]) == 64
    assert list(summary["views"]["grids"]) == ["1x1", "1x3", "2x1", "2x3", "4x1", "4x3"]
    assert summary["views"]["grids"]["4x3"]["top1"] == summary["top1"]

    # The same figures by hand, from what predict gives for each video.
    predictor = Predictor(weights, device="cpu")
    videos = sorted(p for p in data.rglob("*.mp4") if p.name not in ("cut off.mp4", "list.mp4"))
    truth = {"riding_a_bike": 0, "surfing water": 1, "Air Drumming": 3}
    answers = list(predictor.predict(videos))
    hits = {1: 0, 5: 0}
    by_class: dict[int, list[bool]] = {}
    for video, answer in zip(videos, answers, strict=True):
        label = truth[video.parent.name]
        top = [t.index for t in answer.top]
        hits[1] += top[0] == label
        hits[5] += label in top
        by_class.setdefault(label, []).append(top[0] == label)
    assert summary["top1"] == pytest.approx(100 * hits[1] / 26)
    assert summary["top5"] == pytest.approx(100 * hits[5] / 26)
    assert summary["top1_all"] == pytest.approx(100 * hits[1] / 28)
    means = [sum(v) / len(v) for v in by_class.values()]
    assert summary["mean_class_accuracy"] == pytest.approx(100 * sum(means) / 3)
    assert 0 < hits[1] < 26  # the set is no trivial one

    # scores.bin: one float16 record a video, in order of id; NaN where it failed.
    scores = np.frombuffer(reference["scores.bin"], "<f2").reshape(28, len(LABELS))
    ids = sorted(p.relative_to(data).as_posix() for p in data.rglob("*.mp4"))
    for row, name in zip(scores, ids, strict=True):
        if name.endswith(("cut off.mp4", "list.mp4")):
            assert np.isnan(row).all()
    by_id = dict(zip(ids, scores, strict=True))
    for video, answer in zip(videos, answers, strict=True):
        assert answer.probabilities is not None
        expected = answer.probabilities.astype("<f2")
        np.testing.assert_array_equal(by_id[video.relative_to(data).as_posix()], expected)


def test_tables(reference: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "per_class.csv").write_bytes(reference["per_class.csv"])
    (tmp_path / "confusions.csv").write_bytes(reference["confusions.csv"])
    per_class = pd.read_csv(tmp_path / "per_class.csv")
    assert per_class["videos"].sum() == 26
    assert list(per_class["label"]) == [LABELS[0], LABELS[1], LABELS[3]]
    summary = json.loads(reference["summary.json"])
    assert per_class["top1"].mean() == pytest.approx(summary["mean_class_accuracy"], abs=1e-4)
    confusions = pd.read_csv(tmp_path / "confusions.csv")
    wrong = round(26 * (100 - summary["top1"]) / 100)
    assert confusions["videos"].sum() == wrong
    assert set(confusions["truth"]) <= set(LABELS)
    assert not (confusions["truth"] == confusions["predicted"]).any()


def test_json_output_and_exit_codes(
    data: Path, weights: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = vswin(*command(data, weights, out, "--json", "--allow-failures", 2))
    shown = json.loads(done.stdout)
    assert shown.pop("out") == str(out)
    assert shown == json.loads(reference["summary.json"])
    assert "class folders" in done.stderr
    assert "28 videos" in done.stderr
    vswin(*command(data, weights, out, "--allow-failures", 1), code=1)


def test_limit_then_the_rest(data: Path, weights: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = json.loads(
        vswin(
            *command(data, weights, out, "--limit", 7, "--shuffle-seed", 1, "--json", "--allow-failures", 9)
        ).stdout
    )
    assert first["n_evaluated"] + first["n_failed"] == 7
    assert first["n_open"] == 21
    assert not first["complete"]
    assert (out / "scores.bin").stat().st_size == 28 * 2 * len(LABELS)
    assert "run again" in vswin(*command(data, weights, out, "--limit", 3, "--allow-failures", 9)).stdout
    vswin(*command(data, weights, out), code=1)
    assert static(out) == reference


def test_a_finished_run_is_not_done_again(data: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vswin(*command(data, weights, out), code=1)
    before = (out / "rows-0000.jsonl").read_bytes()
    start = time.perf_counter()
    vswin(*command(data, weights, out), code=1)
    assert time.perf_counter() - start < 5
    assert (out / "rows-0000.jsonl").read_bytes() == before


def test_corrupt_rows_are_done_again(
    data: Path, weights: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    vswin(*command(data, weights, out), code=1)
    rows = bytearray((out / "rows-0000.jsonl").read_bytes())
    for place in (40, len(rows) // 2, len(rows) - 5):
        rows[place] ^= 1
    (out / "rows-0000.jsonl").write_bytes(bytes(rows[:-3]))
    scores = bytearray((out / "scores-0000.bin").read_bytes())
    scores[2 * len(LABELS) * 4] ^= 1
    (out / "scores-0000.bin").write_bytes(bytes(scores))
    done = vswin(*command(data, weights, out), code=1)
    assert "damaged rows" in done.stderr
    assert static(out) == reference


def test_retry_failed(data: Path, weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "val"
    shutil.copytree(data, copy)
    out = tmp_path / "out"
    vswin(*command(copy, weights, out), code=1)
    for name in ("cut off.mp4", "list.mp4"):
        shutil.copy(copy / "riding_a_bike/clip 00.mp4", copy / "surfing water" / name)
    vswin(*command(copy, weights, out), code=1)  # failures are results, too
    done = json.loads(vswin(*command(copy, weights, out, "--retry-failed", "--json")).stdout)
    assert (done["n_failed"], done["n_evaluated"]) == (0, 28)


def test_other_settings_are_refused_by_name(data: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vswin(*command(data, weights, out, "--limit", 1, "--allow-failures", 1))
    assert "protocol" in vswin(*command(data, weights, out, "--views", "2x1"), code=1).stderr
    assert "dtype" in vswin(*command(data, weights, out, "--dtype", "bf16"), code=1).stderr
    model = Predictor(weights, device="cpu").model
    other = tmp_path / "other.safetensors"
    torch.nn.init.zeros_(model.head.weight)
    save_native(other, model.state_dict(), model.config, labels=LABELS, protocol=PROTOCOL, source={})
    error = vswin(*command(data, other, out), code=1).stderr
    assert "weights_sha256" in error
    assert "--out" in error


def test_default_folder_is_named_after_data_and_weights(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vswin("eval", "--data", data, "--weights", weights, "--limit", 1, "--allow-failures", 1, "--views", "1x1")
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("eval-val-small-")


def test_wrong_input(data: Path, weights: Path, tmp_path: Path) -> None:
    assert "--weights" in vswin("eval", "--data", data, code=1).stderr
    assert "none" in vswin("eval", "--data", tmp_path / "none", "--weights", weights, code=1).stderr
    strange = tmp_path / "val"
    shutil.copytree(data, strange)
    (strange / "Zumbaa").mkdir()
    shutil.copy(strange / "riding_a_bike/clip 00.mp4", strange / "Zumbaa")
    error = vswin("eval", "--data", strange, "--weights", weights, code=1).stderr
    assert "Zumbaa" in error
    assert "Zumba" in error.replace("Zumbaa", "")
    assert list(tmp_path.iterdir()) == [strange]  # no folder of results is made for nothing


def test_progress_counts(data: Path, weights: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    evaluate(data, weights, out=tmp_path / "out", progress=seen.append, device="cpu", views="1x1")
    assert seen[-1].done == seen[-1].total == 28
    assert seen[-1].failed == 2
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_out_of_memory_halves_the_batch(
    data: Path, weights: Path, reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = VideoSwin.forward
    failures = []

    def tight(self: VideoSwin, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            failures.append(len(x))
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, x)

    monkeypatch.setattr(VideoSwin, "forward", tight)
    out = tmp_path / "out"
    vswin(*command(data, weights, out, "--view-batch", 8), code=1)
    assert failures == [8, 4]  # twice, then never again
    ours, theirs = json.loads((out / "summary.json").read_bytes()), json.loads(reference["summary.json"])
    assert ours["top1"] == theirs["top1"]
    assert json.loads((out / "run.json").read_bytes())["out_of_memory_halvings"] == 2
    scores = np.frombuffer((out / "scores.bin").read_bytes(), "<f2").astype(np.float32)
    expected = np.frombuffer(reference["scores.bin"], "<f2").astype(np.float32)
    np.testing.assert_allclose(scores, expected, atol=1e-3)  # each view once, in order


def test_a_second_run_is_refused(data: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def second(_: object, __: object, ___: object, ____: object) -> None:
        with pytest.raises(OutputError, match="in use"):
            evaluate(data, weights, out=out, device="cpu")

    evaluate(data, weights, out=out, device="cpu", limit=1, started=second)


def torchrun(ranks: int, port: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(port)]
    return subprocess.run(
        [sys.executable, *launcher, "-m", "vswin_cli", *arguments],
        capture_output=True, text=True, env=environment(), timeout=110, encoding="utf-8",
    )  # fmt: skip


@pytest.mark.slow
def test_two_ranks_give_the_same_and_may_resume_one(
    data: Path, weights: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    vswin(*command(data, weights, out, "--limit", 5, "--shuffle-seed", 4, "--allow-failures", 9))
    done = torchrun(2, 29713, [*command(data, weights, out), "--allow-failures", "2", "--json"])
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)  # rank 0 alone speaks on stdout
    assert shown["complete"]
    assert without_scores(static(out)) == without_scores(reference)
    for rank in range(2):
        assert (out / f"rows-{rank:04d}.jsonl").read_bytes().count(b"\n") > 5
    ours = np.frombuffer((out / "scores.bin").read_bytes(), "<f2").astype(np.float32)
    theirs = np.frombuffer(reference["scores.bin"], "<f2").astype(np.float32)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)  # threads differ: float noise


@pytest.mark.slow
def test_ranks_without_work_end(
    data: Path, weights: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    """A finished folder, and more ranks than open videos: no rank waits for ever."""
    out = tmp_path / "out"
    vswin(*command(data, weights, out, "--limit", 27), code=1)
    for port in (29721, 29722):  # one video open, then none
        done = torchrun(3, port, [*command(data, weights, out), "--allow-failures", "2", "--json"])
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["complete"]
    assert without_scores(static(out)) == without_scores(reference)


def kill_at_random(arguments: list[str], out: Path, chance: random.Random) -> None:
    """Start a run and SIGKILL it at some moment between its start and its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vswin_cli", *arguments], env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    rows = out / "rows-0000.jsonl"
    before = rows.stat().st_size if rows.exists() else 0
    goal = chance.choice([0, 0, 1, 1, 2, 3]) * 300
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        if rows.exists() and rows.stat().st_size >= before + goal:
            break
        time.sleep(0.002)
    time.sleep(chance.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
def test_killed_and_resumed(
    kills: int, data: Path, weights: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = command(data, weights, out)
    chance = random.Random(kills)
    for _ in range(kills):
        kill_at_random(arguments, out, chance)
    vswin(*arguments, code=1)
    assert without_scores(static(out)) == without_scores(reference)
    assert json.loads((out / "summary.json").read_bytes())["complete"]


def test_ctrl_c_says_how_to_go_on(data: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "vswin_cli", *command(data, weights, out)], env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    rows = out / "rows-0000.jsonl"
    deadline = time.monotonic() + 60
    while not (rows.exists() and rows.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode in (130, 1)  # 1: it was already over, with its two failures
    if process.returncode == 130:
        assert "same command" in errors
        assert "Traceback" not in errors


def test_a_video_that_takes_too_long_is_a_row(data: Path, weights: Path, tmp_path: Path) -> None:
    slow = tmp_path / "val/Zumba"
    slow.mkdir(parents=True)
    clips.write_clip(slow / "long.mp4", frames=600, size=(640, 480))
    done = vswin(*command(tmp_path / "val", weights, tmp_path / "out", "--timeout", 0.1, "--json"), code=1)
    (failed,) = json.loads(done.stdout)["failed"]
    assert failed["kind"] == "WorkerError"
    assert "0.1 s" in failed["error"]


def test_view_grids() -> None:
    grids = view_grids(4, 3)
    # Crops outer (left, right, centre), clips inner.
    assert grids["1x1"] == [2 * 4 + 1]
    assert grids["2x1"] == [8, 11]
    assert grids["1x3"] == [1, 5, 9]
    assert grids["4x3"] == list(range(12))
    assert view_grids(1, 1) == {"1x1": [0]}
    assert view_grids(2, 1) == {"1x1": [0], "2x1": [0, 1]}
    assert view_grids(12, 1)["1x1"] == [5]
    assert list(view_grids(1, 3)) == ["1x1", "1x3"]


def test_rank_and_wilson() -> None:
    scores = np.array([0.1, 0.4, 0.4, 0.1], np.float32)
    assert [rank_of(scores, i) for i in range(4)] == [2, 0, 1, 3]
    # Wilson 1927, worked by hand: 80 of 100 at 95 %.
    assert wilson(80, 100) == pytest.approx([71.117, 86.663], abs=1e-3)
    assert wilson(0, 10) == pytest.approx([0.0, 27.753], abs=1e-3)
    assert wilson(0, 0) is None


def test_average_is_the_mean_of_the_softmaxes() -> None:
    views = np.array([[0.2, 0.8], [0.6, 0.4]], np.float32)
    np.testing.assert_allclose(average(views), [0.4, 0.6], rtol=1e-6)


def test_summary_has_no_time_host_or_rank(reference: dict[str, bytes]) -> None:
    text = reference["summary.json"].decode()
    summary: dict[str, Any] = json.loads(text)
    for word in ("seconds", "host", "rank", "pid", "time", str(ROOT)):
        assert word not in {k.lower() for k in summary}
    assert os.uname().nodename not in text


def test_missing_videos_of_a_list(data: Path, weights: Path, tmp_path: Path) -> None:
    """Published Kinetics lists name videos that are gone; leaving them out is said, never silent."""
    listing = tmp_path / "val.txt"
    names = [p.relative_to(data).as_posix() for p in sorted(data.rglob("clip*.mp4"))]
    listing.write_text("".join(f"{name} 1\n" for name in [*names[:3], "surfing water/gone.mp4"]))
    arguments = [*command(data, weights, tmp_path / "out"), "--annotations", str(listing)]
    error = vswin(*arguments, code=1).stderr
    assert "gone.mp4" in error
    assert "--skip-missing" in error
    done = vswin(*arguments, "--skip-missing", "--json")
    assert "1 of 4 listed videos not found" in done.stderr
    summary = json.loads(done.stdout)
    assert (summary["n_videos"], summary["data"]["layout"]) == (3, "mmaction list")
