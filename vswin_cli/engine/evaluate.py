"""Multi-view accuracy over a labelled set of videos: exact, resumable, shared by many processes.

Protocols and metrics are those of the official code (mmaction 0.x, FACTS 3.1): softmax per view, mean
over views, Top-1 and Top-5 over videos, mean class accuracy over the classes that occur.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vswin_cli.checkpoints.files import atomic_file
from vswin_cli.checkpoints.zoo import published_as
from vswin_cli.engine.device import device_of_rank
from vswin_cli.engine.distributed import Place, place
from vswin_cli.engine.inference import average, prepared_ahead
from vswin_cli.engine.predict import Predictor
from vswin_cli.engine.runlog import Row, RunLog, write_json
from vswin_cli.errors import OutputError, UsageError, VideoError
from vswin_cli.video.dataset import Dataset, Item, find_dataset
from vswin_cli.video.views import PreparedVideo
from vswin_cli.video.workers import DecodePool

ENGINE = "torch"
CONFUSIONS = 50  # pairs listed in confusions.csv
POLL_SECONDS = 1.0

GRID_NOTE = (
    "subsets of this run's views; "
    "not the accuracy of a protocol with that many clips, which samples other frames"
)


@dataclass(frozen=True)
class Progress:
    """Where a run stands. Figures of all ranks for rank 0; rates are of this launch."""

    done: int
    total: int
    failed: int
    top1: float | None
    top5: float | None
    per_second: float
    eta_seconds: float | None


@dataclass(frozen=True)
class Evaluation:
    """The result of a run: what summary.json holds, and where it lies.

    summary: None on ranks other than 0
    corrupt: rows that were found damaged and done again
    """

    out: Path
    summary: dict[str, Any] | None
    corrupt: int


def evaluate(
    data: str | Path,
    weights: str | Path,
    *,
    annotations: str | Path | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    shuffle_seed: int | None = None,
    retry_failed: bool = False,
    skip_missing: bool = False,
    progress: Callable[[Progress], None] | None = None,
    started: Callable[[Dataset, Predictor, Path, int], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluate weights on a data set, going on where an earlier run in the same folder stopped.

    ``options`` are those of Predictor. ``limit`` and ``shuffle_seed`` choose which videos to do now.
    Raises DataError, CheckpointError, OutputError; a video that fails becomes a row with its error.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}")
    here = place()
    device = device_of_rank(options.get("device", "auto"), here.local_rank, here.local_world)
    predictor = Predictor(weights, **{**options, "device": device})
    labels, classes = predictor.model.labels, predictor.model.config.num_classes
    listing = None if annotations is None else Path(annotations)
    dataset = find_dataset(Path(data), labels, classes, listing, skip_missing=skip_missing)
    fingerprint = fingerprint_of(predictor, dataset)
    folder = Path(out) if out is not None else default_folder(dataset, predictor, fingerprint)
    items = {item.id: item for item in dataset.items}
    with RunLog(folder, fingerprint, list(items), classes, here) as log:
        if retry_failed:
            if here.world > 1:
                raise UsageError("--retry-failed rewrites rows; run it in one process")
            log.forget(i for i, row in log.rows.items() if "error" in row)
        wanted = choose(list(items), limit, shuffle_seed)
        mine = [items[i] for i in log.share(wanted)]
        if started is not None and here.is_first:
            started(dataset, predictor, folder, len(wanted) - sum(i not in log.rows for i in wanted))
        # A damaged line stays in its file; it matters only until its video has another row.
        corrupt = min(log.corrupt, sum(i not in log.rows for i in items))
        begin = time.perf_counter()
        teller = _Teller(log, wanted, progress)
        run_rows(predictor, mine, log, teller)
        if not here.is_first:
            return Evaluation(folder, None, corrupt)
        while teller.open():
            log.refresh()
            teller.tell()
            if teller.open():
                time.sleep(POLL_SECONDS)
        teller.tell()
        log.wait_for_ranks()
        summary = write_results(log, dataset, predictor)
        write_json(folder / "run.json", _run_facts(predictor, here, begin, corrupt))
        return Evaluation(folder, summary, corrupt)


def choose(ids: Sequence[str], limit: int | None, seed: int | None) -> list[str]:
    """Which videos to do now: all, or the first ``limit`` of them, in random order if seeded."""
    chosen = list(ids)
    if seed is not None:
        random.Random(seed).shuffle(chosen)
    return chosen[:limit]


def fingerprint_of(predictor: Predictor, dataset: Dataset) -> dict[str, Any]:
    """Everything that must agree for two runs' rows to belong together."""
    listing = "".join(f"{item.id}\t{item.label}\n" for item in dataset.items)
    labels = predictor.model.labels
    return {
        "weights_sha256": predictor.source["sha256"],
        "model": predictor.model.config.to_json(),
        "labels_sha256": _sha256(json.dumps(labels)),
        "protocol": predictor.protocol.to_json(),
        "videos": len(dataset.items),
        "videos_sha256": _sha256(listing),
        "dtype": predictor.dtype,
        "engine": ENGINE,
        "view_batch": predictor.view_batch,
    }


def default_folder(dataset: Dataset, predictor: Predictor, fingerprint: Mapping[str, Any]) -> Path:
    """eval-<data>-<weights>-<hash of the fingerprint>, in the current folder."""
    stem = Path(str(predictor.source["name"])).stem
    digest = _sha256(json.dumps(fingerprint, sort_keys=True))[:8]
    return Path(f"eval-{dataset.root.resolve().name or 'data'}-{stem}-{digest}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ------------------------------------------------------------------------------------------------
# Rows


def run_rows(predictor: Predictor, items: Sequence[Item], log: RunLog, teller: _Teller) -> None:
    """Do these videos, one row each. An error of the video is its row; anything else stops the run."""
    with DecodePool(workers=predictor.workers, timeout=predictor.timeout) as pool:
        paths = [item.path for item in items]
        start = time.perf_counter()
        for number, prepared in prepared_ahead(pool, paths, predictor.protocol, predictor.workers + 1):
            item = items[number]
            row: Row = {"id": item.id, "label": item.label}
            scores = None
            try:
                if isinstance(prepared, VideoError):
                    raise prepared
                views = predictor.view_scores(prepared)
            except VideoError as error:
                row |= {"error": told(error, item), "kind": type(error).__name__}
            else:
                scores = average(views)
                row |= row_of(views, scores, item.label, predictor, prepared)
                row["seconds"] = round(time.perf_counter() - start, 4)
            log.append(row, scores)
            if teller.is_due():
                log.refresh()
                teller.tell()
            start = time.perf_counter()


def told(error: VideoError, item: Item) -> str:
    """An error's message without what differs between machines and runs: folders, addresses."""
    text = error.message.replace(str(item.path.absolute()), item.id).replace(str(item.path), item.id)
    return re.sub(r"0x[0-9a-fA-F]{4,}", "0x...", text)


def row_of(
    views: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    label: int,
    predictor: Predictor,
    prepared: PreparedVideo,
) -> Row:
    """What a row says of an evaluated video."""
    protocol = predictor.protocol
    best = [int(i) for i in np.argsort(-scores, kind="stable")[:5]]
    return {
        "top": best,
        "scores": [float(scores[i]) for i in best],
        "ranks": {
            name: rank_of(average(views[chosen]), label)
            for name, chosen in view_grids(protocol.clips, protocol.crops).items()
        },
        "frames": prepared.total,
        "partial": prepared.partial,
        "notes": list(prepared.notes),
        "decoder": prepared.decoder,
        "view_batch": predictor.scorer.view_batch,
    }


def rank_of(scores: npt.NDArray[np.float32], label: int) -> int:
    """Place of the label among the classes, 0 for the best; of equals the smaller index goes first."""
    own = scores[label]
    # Not "greater than", which is false for NaN: what does not rank below counts as before.
    return int((~(scores <= own)).sum() + (scores[:label] == own).sum())


def view_grids(clips: int, crops: int) -> dict[str, list[int]]:
    """Subsets c x k of a protocol's views -> their view numbers (crops outer, clips inner).

    k=1 is the centre crop (index 2 of three in the reference's order), k=3 all; c=1 is clip
    (n-1)//2, c=2 the first and last, c=n all.
    """
    clip_sets = {1: [(clips - 1) // 2], 2: [0, clips - 1], clips: list(range(clips))}
    crop_sets = {1: [2 if crops == 3 else 0], crops: list(range(crops))}
    return {
        f"{c}x{k}": [crop * clips + clip for crop in chosen_crops for clip in chosen_clips]
        for c, chosen_clips in sorted(clip_sets.items())
        if c <= clips
        for k, chosen_crops in sorted(crop_sets.items())
    }


class _Teller:
    """Counts rows as they come and tells the progress callback."""

    def __init__(
        self, log: RunLog, wanted: Sequence[str], progress: Callable[[Progress], None] | None
    ) -> None:
        self.log, self.wanted, self.progress = log, wanted, progress
        self.start = time.perf_counter()
        self.next = self.start
        self.before = len(wanted) - self.open()

    def is_due(self) -> bool:
        """True at most once a second: looking at all rows after each would cost more than a fast video."""
        now = time.perf_counter()
        if now < self.next:
            return False
        self.next = now + POLL_SECONDS
        return True

    def open(self) -> int:
        """Wanted videos without a row."""
        return sum(i not in self.log.rows for i in self.wanted)

    def tell(self) -> None:
        if self.progress is None or not self.log.place.is_first:
            return
        rows = [self.log.rows[i] for i in self.wanted if i in self.log.rows]
        good = [r for r in rows if "error" not in r]
        rate = (len(rows) - self.before) / max(1e-9, time.perf_counter() - self.start)
        left = len(self.wanted) - len(rows)
        whole = _whole_grid(good)
        self.progress(
            Progress(
                done=len(rows),
                total=len(self.wanted),
                failed=len(rows) - len(good),
                top1=_percent(sum(r["ranks"][whole] < 1 for r in good), len(good)),
                top5=_percent(sum(r["ranks"][whole] < 5 for r in good), len(good)),
                per_second=rate,
                eta_seconds=left / rate if rate > 0 else None,
            )
        )


# ------------------------------------------------------------------------------------------------
# Results, all of them computed from rows


def write_results(log: RunLog, dataset: Dataset, predictor: Predictor) -> dict[str, Any]:
    """Merge all rows in video order: summary.json, scores.bin, per_class.csv, confusions.csv."""
    rows = [log.rows[item.id] for item in dataset.items if item.id in log.rows]
    names = predictor.labels
    summary = summarize(rows, dataset, predictor)
    good = [r for r in rows if "error" not in r]
    per_class, confusions = class_tables(good, names)
    with atomic_file(log.folder / "scores.bin") as temporary, temporary.open("wb") as file:
        empty = np.full(log.classes, np.nan, "<f2").tobytes()
        for item in dataset.items:
            row = log.rows.get(item.id)
            scores = None if row is None or "record" not in row else log.scores_of(row)
            if row is not None and "record" in row and scores is None:
                raise OutputError(
                    f"{log.folder}: the scores of {item.id} cannot be read", "run the same command again"
                )
            file.write(empty if scores is None else scores.tobytes())
    for name, table in (("per_class.csv", per_class), ("confusions.csv", confusions)):
        with atomic_file(log.folder / name) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
    write_json(log.folder / "summary.json", summary)
    return summary


def summarize(rows: Sequence[Row], dataset: Dataset, predictor: Predictor) -> dict[str, Any]:
    """The content of summary.json: nothing in it depends on time, machine, rank or order of work."""
    good = [r for r in rows if "error" not in r]
    failed = [r for r in rows if "error" in r]
    whole = _whole_grid(good)
    classes = predictor.model.config.num_classes
    hits1 = sum(r["ranks"][whole] < 1 for r in good)
    hits5 = sum(r["ranks"][whole] < 5 for r in good)
    five = classes >= 5
    per_class: dict[int, list[bool]] = {}
    for row in good:
        per_class.setdefault(row["label"], []).append(row["ranks"][whole] < 1)
    means = [sum(hits) / len(hits) for _, hits in sorted(per_class.items())]
    return {
        "top1": _percent(hits1, len(good)),
        "top5": _percent(hits5, len(good)) if five else None,
        "top1_ci95": wilson(hits1, len(good)),
        "top5_ci95": wilson(hits5, len(good)) if five else None,
        "mean_class_accuracy": round(100 * math.fsum(means) / len(means), 6) if means else None,
        "top1_all": _percent(hits1, len(rows)),
        "top5_all": _percent(hits5, len(rows)) if five else None,
        "published": published_accuracy(predictor.source),
        "n_videos": len(dataset.items),
        "n_evaluated": len(good),
        "n_failed": len(failed),
        "n_partial": sum(bool(r["partial"]) for r in good),
        "n_open": len(dataset.items) - len(rows),
        "complete": len(rows) == len(dataset.items),
        "views": {
            "note": GRID_NOTE,
            "grids": {
                name: {
                    "top1": _percent(sum(r["ranks"][name] < 1 for r in good), len(good)),
                    "top5": _percent(sum(r["ranks"][name] < 5 for r in good), len(good)) if five else None,
                }
                for name in view_grids(predictor.protocol.clips, predictor.protocol.crops)
            },
        },
        "failed": [{"id": r["id"], "kind": r["kind"], "error": r["error"]} for r in failed],
        "partial": [r["id"] for r in good if r["partial"]],
        "protocol": predictor.protocol.to_json(),
        "weights": {k: predictor.source[k] for k in ("name", "dialect", "sha256")},
        "model": predictor.model.config.to_json(),
        "data": {"layout": dataset.layout, "notes": list(dataset.notes)},
        "dtype": predictor.dtype,
        "engine": ENGINE,
        "versions": versions(),
    }


def published_accuracy(source: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the zoo knows of the weights' accuracy, by their file name and SHA-256; None if nothing."""
    entry = published_as(source["name"], source["sha256"])
    if entry is None or entry.top1 is None:
        return None
    return {
        "top1": entry.top1,
        "top5": entry.top5,
        "name": entry.name,
        "data": entry.data,
        "protocol": entry.protocol,
    }


def _whole_grid(rows: Sequence[Row]) -> str:
    """Name of the grid of all views: the last one."""
    return list(rows[0]["ranks"])[-1] if rows else ""


def _percent(hits: int, of: int) -> float | None:
    return round(100 * hits / of, 6) if of else None


def wilson(hits: int, of: int, z: float = 1.959963984540054) -> list[float] | None:
    """95 % confidence interval of a share, in percent (Wilson 1927)."""
    if not of:
        return None
    share, spread = hits / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    return [round(100 * max(0.0, middle - half), 6), round(100 * min(1.0, middle + half), 6)]


def class_tables(rows: Sequence[Row], names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy per class that occurs, and the most frequent confusions."""
    whole = _whole_grid(rows)
    table = pd.DataFrame(
        {
            "index": [r["label"] for r in rows],
            "predicted": [r["top"][0] for r in rows],
            "top1": [100.0 * (r["ranks"][whole] < 1) for r in rows],
            "top5": [100.0 * (r["ranks"][whole] < 5) for r in rows],
        }
    )
    per_class = (
        table.groupby("index", as_index=False)
        .agg(videos=("top1", "size"), top1=("top1", "mean"), top5=("top5", "mean"))
        .round(6)
    )
    per_class.insert(1, "label", [names[i] for i in per_class["index"]])
    wrong = table[table["index"] != table["predicted"]]
    pairs = (
        wrong.groupby(["index", "predicted"], as_index=False)
        .agg(videos=("top1", "size"))
        .sort_values(["videos", "index", "predicted"], ascending=[False, True, True])
        .head(CONFUSIONS)
    )
    confusions = pd.DataFrame(
        {
            "truth": [names[i] for i in pairs["index"]],
            "predicted": [names[i] for i in pairs["predicted"]],
            "videos": pairs["videos"].to_numpy(),
        }
    )
    return per_class, confusions


def versions() -> dict[str, str]:
    """Versions of what decides about the numbers."""
    found = {}
    for package in ("vswin-cli", "torch", "numpy", "opencv-python-headless", "av", "decord"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _run_facts(predictor: Predictor, here: Place, begin: float, corrupt: int) -> dict[str, Any]:
    """What run.json holds: the facts of this launch that results must not depend on."""
    import torch

    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.perf_counter() - begin, 3),
        "host": platform.node(),
        "pid": os.getpid(),
        "ranks": here.world,
        "device": predictor.device,
        "threads": torch.get_num_threads(),
        "workers": predictor.workers,
        "view_batch": predictor.scorer.view_batch,
        "out_of_memory_halvings": predictor.scorer.halvings,
        "corrupt_rows_redone": corrupt,
    }
