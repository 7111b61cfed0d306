"""vswin convert: a checkpoint in the words of another library."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from vswin_cli.cli import options, output, publishing
from vswin_cli.cli.weights import bring

if TYPE_CHECKING:
    from vswin_cli.engine.convert import Conversion


def convert(
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="Checkpoint of any dialect: all that --weights takes.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; its suffix says how.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="DIALECT",
            help="native, official-3d, mmaction2-3d, torchvision-3d; microsoft-2d, timm-2d, huggingface-2d, "
            "torchvision-2d.",
        ),
    ],
    dtype: Annotated[
        Optional[Literal["fp32", "bf16", "fp16"]], typer.Option(help="Default: the source's own.")
    ] = None,
    size: Annotated[
        Optional[int],
        typer.Option(min=1, help="Image side that microsoft-2d's masks are made for. Default: 32 x window."),
    ] = None,
    dialect: options.Dialect = None,
    window: options.Window = None,
    ignore: options.Ignore = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run source and result on a seeded clip.")
    ] = True,
    force: options.Force = False,
    push: publishing.Push = None,
    save_dir: publishing.SaveDir = None,
    insecure: options.Insecure = False,
    json: options.Json = False,
) -> None:
    """Write a checkpoint in another dialect, as its library loads it strictly."""
    parsed = options.parse_window(window)
    publishing.check(push, save_dir, out, to=to, force=force)
    bring(src, insecure)
    from vswin_cli.engine.convert import convert as run

    result = run(
        src,
        out,
        to,
        dtype=dtype,
        size=size,
        dialect=dialect,
        window=parsed,
        ignore=tuple(ignore or ()),
        verify=verify,
        force=force,
    )
    if not json:
        _show(result)
    hub = publishing.publish(result.out, push, save_dir, out)
    if json:
        output.print_json({**result.to_json(), **({"hub": hub} if hub else {})})


def _show(result: Conversion) -> None:
    source, target, config = result.source, result.target, result.source.config
    name = target.dialect.name
    compared = result.comparison
    rows = [
        ("source", f"{source.path} ({output.megabytes(source.nbytes)})"),
        ("dialect", f"{source.dialect} ({'; '.join(source.evidence)})"),
        ("source sha256", source.sha256),
        ("width, depths, heads", f"{config.embed_dim}, {list(config.depths)}, {list(config.num_heads)}"),
        ("classes", str(config.num_classes or "none (no head)")),
        ("keys dropped", str(len(source.report.dropped))),
        ("written", f"{result.parameters} tensors ({result.dtype}) and {result.buffers} buffers"),
        (
            "on a clip",
            "not verified"
            if compared is None
            else (
                f"largest difference {compared.max_rel_diff:.1e} of the largest output"
                if compared.max_abs_diff
                else "equal to the last bit"
            )
            + f" (clip {output.by(compared.clip[2:])})",
        ),
        ("output", f"{result.out} ({name}, {output.megabytes(result.out_bytes)})"),
        ("output sha256", result.out_sha256),
    ]
    if target.size:
        rows.insert(-2, ("image size", f"{target.size} pixels"))
    if target.config_json is not None:
        rows.append(("beside it", str(target.config_json)))
    rows += [(f"{name} cannot hold", lost) for lost in result.unheld]
    if source.note:
        rows.append(("note", source.note))
    output.out().print(output.table(("", "converted"), rows))
    output.say(f"next: vswin inspect {shlex.quote(str(result.out))}")
