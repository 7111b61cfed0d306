"""Options that several commands share, and how their values are parsed."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from vswin_cli.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]
Dialect = Annotated[
    Optional[str], typer.Option(help="Read the weights as this dialect instead of detecting it.")
]
Window = Annotated[
    Optional[str], typer.Option(metavar="D,H,W", help="Window in tokens: frames, height, width.")
]
Ignore = Annotated[
    Optional[list[str]],
    typer.Option(
        metavar="PATTERN", help="Allow unexpected keys that match, for example 'neck.*'. Repeatable."
    ),
]
_WEIGHTS = (
    "Checkpoint of any Swin dialect: a path, a name that vswin zoo lists, hf:user/repo or an https URL."
)
Weights = Annotated[Optional[str], typer.Option("--weights", "-w", metavar="REF", help=_WEIGHTS)]
WeightsOrDefault = Annotated[
    str, typer.Option("--weights", "-w", metavar="REF", help=_WEIGHTS, envvar="VSWIN_WEIGHTS")
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow weights to come over http.")]
Protocol = Annotated[
    Optional[str],
    typer.Option(help="k400-4x3, ssv2-1x3, torchvision-12x1 or mmaction2-4x3. Default: the checkpoint's."),
]
Views = Annotated[Optional[str], typer.Option(metavar="CxK", help="Clips x crops (1 or 3), for example 4x3.")]
Frames = Annotated[Optional[int], typer.Option(min=1, help="Frames per clip.")]
Interval = Annotated[Optional[int], typer.Option(min=1, help="Take every n-th frame.")]
Size = Annotated[Optional[int], typer.Option(min=1, help="Side of a crop in pixels.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(help="fp32, bf16, fp16 or auto.")]
Workers = Annotated[
    Optional[int],
    typer.Option(min=1, help="Processes that decode, per rank. Default: what the device needs."),
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds that decoding one video may take.")]


def parse_window(text: str | None) -> tuple[int, int, int] | None:
    """'8,7,7' -> (8, 7, 7). Raises UsageError."""
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
        raise UsageError(f"--window {text!r} is not three positive numbers", "for example --window 8,7,7")
    depth, height, width = (int(p) for p in parts)
    return depth, height, width
