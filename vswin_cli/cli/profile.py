"""vswin profile: what a model costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from vswin_cli.cli import options, output
from vswin_cli.cli.weights import bring
from vswin_cli.config import VARIANTS
from vswin_cli.errors import UsageError

if TYPE_CHECKING:
    from vswin_cli.engine.profiling import Profile


def profile(
    variant: Annotated[Optional[str], typer.Option(help="T, S, B or L. Default: all four.")] = None,
    weights: options.Weights = None,
    frames: options.Frames = None,
    size: options.Size = None,
    window: options.Window = None,
    dialect: options.Dialect = None,
    classes: Annotated[Optional[int], typer.Option(min=0, help="Classes of the head.")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "fp32",
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Time forwards, or only count.")
    ] = True,
    runs: Annotated[int, typer.Option(min=1, help="Timed forwards, after one warm-up.")] = 5,
    insecure: options.Insecure = False,
    json: options.Json = False,
) -> None:
    """Parameters, multiply-adds, latency and memory of a variant or a checkpoint."""
    if variant is not None and weights is not None:
        raise UsageError("--variant and --weights exclude each other")
    parsed = options.parse_window(window)
    bring(weights, insecure)
    from vswin_cli.engine.profiling import CONVENTION
    from vswin_cli.engine.profiling import profile as run

    names: list[str | None] = [variant] if variant or weights else list(VARIANTS)
    results = []
    for name in names:
        results.append(
            run(
                name,
                weights=weights,
                frames=frames,
                size=size,
                window=parsed,
                classes=classes,
                dialect=dialect,
                device=device,
                dtype=dtype,
                latency=latency,
                runs=runs,
            )
        )
        if not json and latency and len(names) > 1:
            output.say(f"{len(results)} of {len(names)} variants measured")
    if json:
        data = [r.to_json() for r in results]
        output.print_json(data[0] if len(data) == 1 else {"variants": data})
        return
    first = results[0]
    console = output.out()
    console.print(
        output.table(
            ("variant", "params", "GMACs", "GFLOPs", "latency ms", "p10", "p90", "peak MB"),
            [_row(r) for r in results],
            "01111111",
        )
    )
    console.print(
        f"clip 1x3x{first.frames}x{first.size}x{first.size}, window {output.by(first.config.window)}, "
        f"{first.dtype} on {first.device}, {first.threads} threads. {CONVENTION}.",
        markup=False,
        soft_wrap=True,
    )


def _row(result: Profile) -> tuple[str, ...]:
    timed = result.latency
    times = [f"{v:,.0f}" for v in (timed.median, timed.p10, timed.p90)] if timed else ["-"] * 3
    peak = "-" if result.peak_memory_mb is None else f"{result.peak_memory_mb:,.0f}"
    return (
        result.variant,
        f"{result.params:,}",
        f"{result.gmacs:,.3f}",
        f"{2 * result.gmacs:,.3f}",
        *times,
        peak,
    )
