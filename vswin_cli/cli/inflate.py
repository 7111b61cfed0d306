"""vswin inflate: Swin-2D weights -> Video Swin weights."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from vswin_cli.cli import options, output, publishing
from vswin_cli.cli.weights import bring

if TYPE_CHECKING:
    from vswin_cli.engine.load import Inflation, Verification


def inflate(
    src: Annotated[
        str,
        typer.Argument(metavar="SRC", help="2D Swin checkpoint of any dialect: all that --weights takes."),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The file to write: .safetensors, or as --to needs it.")
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="DIALECT", help="native, official-3d, mmaction2-3d or torchvision-3d, as convert."
        ),
    ] = "native",
    window: Annotated[
        Optional[str],
        typer.Option(metavar="D,H,W", help="Window of the 3D model in tokens. Default: 8 x the file's own."),
    ] = None,
    patch_frames: Annotated[int, typer.Option(min=1, help="Frames per patch.")] = 2,
    patch_init: Annotated[
        Literal["inflate", "center"],
        typer.Option(help="Patch weights: repeated and divided, or placed at the middle frame."),
    ] = "inflate",
    bias_init: Annotated[
        Literal["duplicate", "center"],
        typer.Option(help="Bias tables: repeated over time, or placed at temporal offset 0."),
    ] = "duplicate",
    head: Annotated[
        Literal["keep", "drop"], typer.Option(help="Carry the 2D classifier over, or leave it out.")
    ] = "keep",
    dialect: options.Dialect = None,
    ignore: options.Ignore = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare with the 2D model on a static clip.")
    ] = True,
    force: options.Force = False,
    push: publishing.Push = None,
    save_dir: publishing.SaveDir = None,
    insecure: options.Insecure = False,
    json: options.Json = False,
) -> None:
    """Inflate Swin-2D weights to a Video Swin model (paper, section 2.4)."""
    parsed = options.parse_window(window)
    publishing.check(push, save_dir, out, to=to, force=force)
    bring(src, insecure)
    from vswin_cli.engine.load import inflate as run

    result = run(
        src,
        out,
        window=parsed,
        patch_frames=patch_frames,
        patch_init=patch_init,
        bias_init=bias_init,
        head=head,
        dialect=dialect,
        ignore=ignore or (),
        verify=verify,
        force=force,
        to=to,
    )
    if not json:
        _show(result)
    hub = publishing.publish(result.out, push, save_dir, out)
    if json:
        output.print_json({**result.to_json(), **({"hub": hub} if hub else {})})


def _show(result: Inflation) -> None:
    source, config, report = result.source, result.config, result.report
    rows = [
        ("source", f"{source.path} ({output.megabytes(source.nbytes)})"),
        ("dialect", f"{source.dialect} ({'; '.join(source.evidence)})"),
        ("source sha256", source.sha256),
        ("width, depths, heads", f"{config.embed_dim}, {list(config.depths)}, {list(config.num_heads)}"),
        ("patch", f"{output.by(source.config.patch)} -> {output.by(config.patch)}"),
        ("window", f"{_windows(result)} -> {output.by(config.window)}"),
        ("classes", f"{config.num_classes or 'none (no head)'}{', named' if result.labels else ''}"),
        ("keys loaded", str(len(report.loaded))),
        ("keys transformed", str(len(report.transformed))),
        ("keys dropped", str(len(report.dropped))),
        ("static clip", "not verified" if result.verification is None else _verdict(result.verification)),
        ("output", f"{result.out} ({result.to}, {output.megabytes(result.out_bytes)})"),
        ("output sha256", result.out_sha256),
    ]
    rows += [(f"{result.to} cannot hold", lost) for lost in result.unheld]
    if source.note:
        rows.append(("note", source.note))
    console = output.out()
    console.print(output.table(("", "inflated"), rows))
    for title, entries in (("transformed", report.transformed), ("dropped", report.dropped)):
        if entries:
            console.print(
                output.table(
                    (f"keys {title}", "what" if title[0] == "t" else "why", "for example"),
                    _grouped(entries),
                    "1",
                )
            )
    output.say(
        f"next: vswin predict VIDEO --weights {shlex.quote(str(result.out))}"
        if config.num_classes
        else f"next: finetune {result.out} on videos; it has no head to predict with"
    )


def _windows(result: Inflation) -> str:
    config = result.source.config
    return ", ".join(dict.fromkeys(output.by(config.stage_window(i)) for i in range(len(config.depths))))


def _grouped(entries: dict[str, str]) -> list[tuple[str, str, str]]:
    """Keys counted by what became of them."""
    groups: dict[str, list[str]] = {}
    for key, what in entries.items():
        groups.setdefault(what, []).append(key)
    return [(str(len(keys)), what, keys[0]) for what, keys in groups.items()]


def _verdict(check: Verification) -> str:
    figure = f"largest difference {check.max_rel_diff:.1e} of the largest feature"
    clip = f"clip {output.by(check.clip[2:])}"
    return (
        f"equal: {figure} ({clip})" if check.exact else f"not comparable: {check.reason}; {figure} ({clip})"
    )
