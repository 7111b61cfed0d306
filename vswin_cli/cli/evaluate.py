"""vswin eval: accuracy over a data set, resumable."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from vswin_cli.checkpoints.published import DEFAULT
from vswin_cli.cli import options, output
from vswin_cli.cli.weights import bring

if TYPE_CHECKING:
    from vswin_cli.engine.evaluate import Progress
    from vswin_cli.engine.predict import Predictor
    from vswin_cli.video.dataset import Dataset

PLAIN_SECONDS = 30  # between two progress lines where stderr is no terminal


def evaluate(
    data: Annotated[
        Path, typer.Option(help="Folder of the videos: class folders, or flat with --annotations.")
    ],
    weights: options.WeightsOrDefault = DEFAULT,
    annotations: Annotated[
        Optional[Path],
        typer.Option(help="CSV, list or JSON that labels the videos. README lists the formats."),
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option(help="Folder of the results. Default: named after data and weights.")
    ] = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Do only the first N videos now.")] = None,
    shuffle_seed: Annotated[Optional[int], typer.Option(help="Do them in a random order.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do failed videos again.")] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out listed videos that are not there, and say so.")
    ] = False,
    allow_failures: Annotated[
        int, typer.Option(min=0, help="Exit with 0 although up to N videos failed.")
    ] = 0,
    protocol: options.Protocol = None,
    views: options.Views = None,
    frames: options.Frames = None,
    interval: options.Interval = None,
    size: options.Size = None,
    dialect: options.Dialect = None,
    window: options.Window = None,
    ignore: options.Ignore = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "fp32",
    view_batch: Annotated[
        Optional[int],
        typer.Option(min=1, help="Views in one forward. Default: 1 on a CPU, else all that fit."),
    ] = None,
    workers: options.Workers = None,
    timeout: options.Timeout = 60.0,
    insecure: options.Insecure = False,
    json: options.Json = False,
) -> None:
    """Multi-view Top-1 and Top-5 by the published protocols. Run it again to go on where it stopped."""
    parsed = options.parse_window(window)
    bring(weights, insecure)
    from vswin_cli.engine.evaluate import evaluate as run

    line = _ProgressLine()
    try:
        result = run(
            data,
            weights,
            annotations=annotations,
            out=out,
            limit=limit,
            shuffle_seed=shuffle_seed,
            retry_failed=retry_failed,
            skip_missing=skip_missing,
            progress=line.show,
            started=line.begin,
            protocol=protocol,
            views=views,
            frames=frames,
            interval=interval,
            size=size,
            dialect=dialect,
            window=parsed,
            ignore=ignore or (),
            device=device,
            dtype=dtype,
            view_batch=view_batch,
            workers=workers,
            timeout=timeout,
        )
    except KeyboardInterrupt:
        line.end()
        output.say("finished videos are kept; run the same command again to go on")
        raise
    line.end()
    if result.summary is None:  # a rank other than 0: torchrun ends the whole job at a non-zero exit
        return
    if result.corrupt:
        output.say(
            f"{result.corrupt} damaged rows of an earlier run did not count; their videos were done again"
        )
    if json:
        output.print_json({**result.summary, "out": str(result.out)})
    else:
        _show(result.summary, result.out)
    if result.summary["n_failed"] > allow_failures:
        raise typer.Exit(1)


class _ProgressLine:
    """One line on stderr: rewritten in a terminal, every 30 s elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.shown = time.monotonic()

    def begin(self, dataset: Dataset, predictor: Predictor, out: Path, done: int) -> None:
        protocol = predictor.protocol
        output.say(
            f"data {dataset.root} ({dataset.layout}, {len(dataset.items)} videos), "
            f"weights {predictor.weights} "
            f"({predictor.source['dialect']}), protocol {protocol.name} ({protocol.describe()}), "
            f"{predictor.dtype} on {predictor.device}, results in {out}"
            + (f", {done} videos done before" if done else "")
        )
        for note in [*dataset.notes, *([predictor.source["note"]] if predictor.source["note"] else [])]:
            output.say(f"note: {note}")

    def show(self, now: Progress) -> None:
        if not self.live and time.monotonic() - self.shown < PLAIN_SECONDS:
            return
        self.shown = time.monotonic()
        rate = (
            f"{now.per_second:.1f} videos/s"
            if now.per_second >= 1
            else f"{60 * now.per_second:.1f} videos/min"
        )
        parts = [f"{now.done}/{now.total} videos", rate, f"ETA {output.clock(now.eta_seconds)}"]
        if now.top1 is not None and now.top5 is not None:
            parts.append(f"Top-1 {now.top1:.2f} Top-5 {now.top5:.2f}")
        parts.append(f"{now.failed} failed")
        output.progress(", ".join(parts), self.live)

    def end(self) -> None:
        output.end_progress()


def _show(summary: dict[str, Any], out: Path) -> None:
    console = output.out()
    known = summary["published"] or {}
    rows = [
        _figure("Top-1", summary["top1"], summary["top1_ci95"], summary["top1_all"], known.get("top1")),
        _figure("Top-5", summary["top5"], summary["top5_ci95"], summary["top5_all"], known.get("top5")),
        _figure("mean class accuracy", summary["mean_class_accuracy"], None, None, None),
    ]
    columns = ["accuracy", "%", "95 % interval", "failures as wrong", *(["published"] if known else [])]
    console.print(output.table(columns, [row[: len(columns)] for row in rows], "01111"))
    if known:
        console.print(
            f"published: {known['name']} on {known['data']}"
            + (f" by {known['protocol']}" if known["protocol"] else ""),
            markup=False,
            soft_wrap=True,
        )
    grids = summary["views"]["grids"]
    console.print("what does each view buy", style="bold")
    console.print(
        output.table(
            ("clips x crops", "Top-1", "Top-5"),
            [(name, _percent(g["top1"]), _percent(g["top5"])) for name, g in grids.items()],
            "011",
        )
    )
    console.print(summary["views"]["note"], markup=False, soft_wrap=True)
    if summary["failed"]:
        shown = summary["failed"][:10]
        console.print(output.table(("failed video", "error"), [(f["id"], f["error"]) for f in shown]))
        if len(summary["failed"]) > len(shown):
            console.print(f"and {len(summary['failed']) - len(shown)} more in {out / 'summary.json'}")
    counts = (
        f"{summary['n_evaluated']} of {summary['n_videos']} videos evaluated, {summary['n_failed']} failed, "
        f"{summary['n_partial']} read in part"
    )
    if not summary["complete"]:
        counts += f", {summary['n_open']} still open: run again without --limit for them"
    console.print(counts, markup=False, soft_wrap=True)
    console.print(
        f"weights {summary['weights']['name']} (sha256 {summary['weights']['sha256'][:12]}), protocol "
        f"{summary['protocol']['name']}, {summary['dtype']}; results in {out}",
        markup=False,
        soft_wrap=True,
    )


def _figure(
    name: str,
    value: float | None,
    interval: list[float] | None,
    over_all: float | None,
    published: float | None,
) -> tuple[str, ...]:
    between = "-" if interval is None else f"{interval[0]:.2f} .. {interval[1]:.2f}"
    return name, _percent(value), between, _percent(over_all), _percent(published)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
