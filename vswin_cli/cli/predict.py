"""vswin predict: what is seen in a video."""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from vswin_cli.checkpoints.published import DEFAULT
from vswin_cli.cli import options, output
from vswin_cli.cli.weights import bring
from vswin_cli.errors import VideoError

if TYPE_CHECKING:
    from vswin_cli.engine.predict import VideoPrediction


def predict(
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO...", help="Videos, folders or globs.")],
    weights: options.WeightsOrDefault = DEFAULT,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to show.")] = 5,
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
    timeout: options.Timeout = 60.0,
    workers: options.Workers = None,
    insecure: options.Insecure = False,
    json: options.Json = False,
) -> None:
    """Name the most probable classes of one video, or many."""
    parsed = options.parse_window(window)
    from vswin_cli.video.files import find_videos

    missing: dict[str, VideoError] = {}
    paths = find_videos(videos, missing)
    if not paths:
        raise next(iter(missing.values()))
    bring(weights, insecure)
    from vswin_cli.engine.predict import Predictor, VideoPrediction

    predictor = Predictor(
        weights,
        device=device,
        dtype=dtype,
        protocol=protocol,
        views=views,
        frames=frames,
        interval=interval,
        size=size,
        dialect=dialect,
        window=parsed,
        ignore=ignore or (),
        workers=workers,
        timeout=timeout,
    )
    results = []
    failed = 0
    start = time.perf_counter()
    lost = (VideoPrediction(name, error=error) for name, error in missing.items())
    for done, result in enumerate(chain(lost, predictor.predict(paths, top_k)), 1):
        failed += result.error is not None
        if json:
            results.append(result.to_json())
        else:
            _show(result)
        if json and len(paths) + len(missing) > 1:
            output.say(f"{done} of {len(paths) + len(missing)} videos, {failed} failed")
    if json:
        output.print_json(
            {
                "weights": predictor.weights,
                "source": predictor.source,
                "protocol": predictor.protocol.to_json(),
                "device": predictor.device,
                "dtype": predictor.dtype,
                "videos": results,
            }
        )
    else:
        output.out().print(
            f"weights {predictor.weights}, protocol {predictor.protocol.name} "
            f"({predictor.protocol.describe()}), {predictor.dtype} on {predictor.device}, "
            f"{time.perf_counter() - start:.1f} s",
            markup=False,
            soft_wrap=True,
        )
    if predictor.source["note"]:
        output.say(f"note: {predictor.source['note']}")
    if failed:
        raise typer.Exit(1)


def _show(result: VideoPrediction) -> None:
    console = output.out()
    console.print(result.path, style="bold", markup=False, soft_wrap=True)
    if result.error is not None:
        rows = [("error", result.error.message)] + (
            [("hint", result.error.hint)] if result.error.hint else []
        )
        console.print(output.table(("failed", ""), rows))
        return
    rows3 = [(f"{t.prob:7.2%}", output.bar(t.prob), t.label) for t in result.top]
    console.print(output.table(("prob", "", "label"), rows3, "1"))
    console.print(
        f"{result.frames} frames at {result.fps:.4g} fps, {result.views} views, decoded by {result.decoder}, "
        f"{result.seconds:.1f} s",
        markup=False,
        soft_wrap=True,
    )
    for note in result.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
