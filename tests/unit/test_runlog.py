"""The evaluation folder: nothing that was finished is lost, nothing torn or corrupt counts."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vswin_cli.engine import runlog
from vswin_cli.engine.distributed import Place, place
from vswin_cli.engine.runlog import RunLog
from vswin_cli.errors import OutputError, UsageError

IDS = [f"v{i}.mp4" for i in range(6)]
PRINT = {"weights_sha256": "ab", "protocol": {"clips": 4}}
CLASSES = 3


def log(folder: Path, where: Place | None = None, fingerprint: dict[str, Any] | None = None) -> RunLog:
    return RunLog(folder, fingerprint or PRINT, IDS, CLASSES, where or Place())


def fill(run: RunLog, ids: list[str]) -> None:
    for i in ids:
        scores = np.full(CLASSES, int(i[1]) / 8, np.float32)
        run.append({"id": i, "label": 1, "note": "ä\u2028\n"}, scores)


def test_rows_and_scores_come_back(tmp_path: Path) -> None:
    with log(tmp_path / "new/folder") as run:
        fill(run, ["v0.mp4", "v3.mp4"])
        run.append({"id": "v1.mp4", "label": 0, "error": "broken"}, None)
        assert set(run.rows) == {"v0.mp4", "v3.mp4", "v1.mp4"}
    with log(tmp_path / "new/folder") as run:
        assert set(run.rows) == {"v0.mp4", "v3.mp4", "v1.mp4"}
        assert run.rows["v3.mp4"]["note"] == "ä\u2028\n"
        scores = run.scores_of(run.rows["v3.mp4"])
        assert scores is not None
        assert scores.tolist() == [0.375] * 3
        assert run.corrupt == 0
        assert run.share(IDS) == ["v2.mp4", "v4.mp4", "v5.mp4"]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_end_costs_one_video(cut: int, tmp_path: Path) -> None:
    with log(tmp_path) as run:
        fill(run, ["v0.mp4", "v1.mp4"])
    rows = tmp_path / "rows-0000.jsonl"
    os.truncate(rows, rows.stat().st_size - cut)
    with (tmp_path / "scores-0000.bin").open("ab") as file:
        file.write(b"x" * (cut % 6))  # a torn record, too
    with log(tmp_path) as run:
        assert run.share(IDS) == IDS[1:]
        fill(run, IDS[1:])
    with log(tmp_path) as run:
        assert set(run.rows) == set(IDS)
        for i in IDS:
            scores = run.scores_of(run.rows[i])
            assert scores is not None
            assert scores.tolist() == [int(i[1]) / 8] * 3


@pytest.mark.parametrize("where", range(0, 150, 11))
def test_a_flipped_byte_in_a_row_is_noticed(where: int, tmp_path: Path) -> None:
    with log(tmp_path) as run:
        fill(run, IDS[:4])
    rows = tmp_path / "rows-0000.jsonl"
    data = bytearray(rows.read_bytes())
    data[where] ^= 0x15
    rows.write_bytes(bytes(data))
    with log(tmp_path) as run:
        assert 1 <= len(IDS[:4]) - len(run.rows) <= 2  # a lost line break joins two rows
        assert run.corrupt >= 1
        assert all(row["label"] == 1 for row in run.rows.values())


def test_lost_scores_open_the_video_again(tmp_path: Path) -> None:
    with log(tmp_path) as run:
        fill(run, IDS[:3])
    scores = tmp_path / "scores-0000.bin"
    data = bytearray(scores.read_bytes())
    data[7] ^= 1  # in the record of v1
    scores.write_bytes(bytes(data))
    with log(tmp_path) as run:
        assert run.share(IDS) == ["v1.mp4", *IDS[3:]]
        fill(run, ["v1.mp4"])
    with log(tmp_path) as run:
        assert "v1.mp4" in run.rows
    os.truncate(scores, 3)
    with log(tmp_path) as run:
        assert run.rows == {}


def test_another_fingerprint_is_refused_by_the_name_of_the_field(tmp_path: Path) -> None:
    with log(tmp_path) as run:
        fill(run, IDS[:1])
    with pytest.raises(OutputError, match=r'protocol is \{"clips": 4\} there, \{"clips": 2\} here') as caught:
        log(tmp_path, fingerprint={**PRINT, "protocol": {"clips": 2}}).__enter__()
    assert "--out" in str(caught.value.hint)
    (tmp_path / "header.json").write_text("{torn")
    with pytest.raises(OutputError, match="damaged"):
        log(tmp_path).__enter__()


def test_a_second_run_is_refused_and_the_lock_ends_with_the_first(tmp_path: Path) -> None:
    with log(tmp_path):
        with pytest.raises(OutputError, match="in use"):
            log(tmp_path).__enter__()
        with log(tmp_path, Place(1, 2)):
            pass  # another rank has a lock of its own
    with log(tmp_path):
        pass


def test_a_full_disk_is_one_clear_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with log(tmp_path) as run:
        fill(run, IDS[:2])

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(runlog.os, "fsync", full)
        with pytest.raises(OutputError, match="No space left") as caught:
            fill(run, IDS[2:3])
        assert "same command" in str(caught.value.hint)
        monkeypatch.undo()
    with log(tmp_path) as run:
        assert set(IDS[:2]) <= set(run.rows)


def test_forget_takes_rows_out(tmp_path: Path) -> None:
    with log(tmp_path) as run:
        fill(run, IDS[:3])
        run.forget(["v1.mp4"])
        assert set(run.rows) == {"v0.mp4", "v2.mp4"}
        fill(run, ["v1.mp4"])
    with log(tmp_path) as run:
        assert set(run.rows) == set(IDS[:3])
        assert len((tmp_path / "rows-0000.jsonl").read_bytes().splitlines()) == 3


def test_ranks_share_the_open_videos_without_overlap_or_gap(tmp_path: Path) -> None:
    with log(tmp_path) as run:
        fill(run, ["v2.mp4"])
    # What an earlier launch has left must not be taken for this launch's plan.
    runlog.write_json(tmp_path / "plan.json", {"nonces": {"1": "old"}, "open": IDS})
    runlog.write_json(tmp_path / "hello-0001.json", {"nonce": "old", "world": 2})
    taken: list[str] = []

    def second() -> None:
        with log(tmp_path, Place(1, 2)) as other:
            taken.extend(other.share(IDS))

    thread = threading.Thread(target=second)
    thread.start()
    thread.join(0.5)
    assert taken == []  # rank 0 has not spoken yet
    with log(tmp_path, Place(0, 2)) as first:
        mine = first.share(IDS)
        fill(first, ["v0.mp4"])  # rank 0 is ahead: that must not change the shares
        first.wait_for_ranks()
        thread.join(5)
        assert not thread.is_alive()
    assert mine == ["v0.mp4", "v3.mp4", "v5.mp4"]
    assert taken == ["v1.mp4", "v4.mp4"]


def test_rows_of_other_ranks_are_taken_in(tmp_path: Path) -> None:
    with log(tmp_path, Place(0, 2)) as first, log(tmp_path, Place(1, 2)) as second:
        fill(first, ["v0.mp4"])
        fill(second, ["v1.mp4", "v4.mp4"])
        first.refresh()
        assert set(first.rows) == {"v0.mp4", "v1.mp4", "v4.mp4"}
        scores = first.scores_of(first.rows["v4.mp4"])
        assert scores is not None
        assert scores.tolist() == [0.5] * 3


def test_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert place() == Place(0, 1, 0, 1)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert place() == Place(5, 8, 1, 4)
    assert not place().is_first
    monkeypatch.setenv("RANK", "8")
    with pytest.raises(UsageError, match="WORLD_SIZE 8"):
        place()
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(UsageError, match="numbers expected"):
        place()


def test_json_files_are_written_in_one_order(tmp_path: Path) -> None:
    runlog.write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, "ä"]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == json.dumps(
        {"a": [1.5, "ä"], "b": 1}, indent=2, ensure_ascii=False
    ) + "\n"
