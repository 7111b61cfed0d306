"""vswin inspect: what a file of weights is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vswin_cli.cli import options, output
from vswin_cli.cli.weights import bring

if TYPE_CHECKING:
    from vswin_cli.checkpoints.files import Checkpoint
    from vswin_cli.engine.inspection import Inspection


def inspect(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="File of weights of any dialect: all that --weights takes.")
    ],
    dialect: options.Dialect = None,
    window: options.Window = None,
    ignore: options.Ignore = None,
    insecure: options.Insecure = False,
    json: options.Json = False,
) -> None:
    """Say what a file of weights is and what it is good for. Nothing in it is executed."""
    parsed = options.parse_window(window)
    bring(file, insecure)
    from vswin_cli.engine.inspection import inspect as run

    result = run(file, dialect=dialect, window=parsed, ignore=ignore or ())
    if json:
        output.print_json(result.to_json())
        return
    rows = [
        ("file", f"{result.path} ({output.megabytes(result.nbytes)})"),
        ("sha256", result.sha256),
        ("tensors", f"{result.tensors} ({', '.join(f'{n} {kind}' for kind, n in result.dtypes.items())})"),
    ]
    if result.checkpoint is not None:
        rows += _model_rows(result, result.checkpoint)
    else:
        rows.append(("state of", "a training run of vswin finetune"))
        rows += [(key, str(value)) for key, value in (result.training or {}).items()]
    rows.append(("good for", "; ".join(result.uses)))
    output.out().print(output.table(("", "inspected"), rows))
    output.say(f"next: {result.then}")


def _model_rows(result: Inspection, held: Checkpoint) -> list[tuple[str, str]]:
    config, counts = held.config, result.counts()
    windows = dict.fromkeys(output.by(config.stage_window(i)) for i in range(len(config.depths)))
    rows = [
        ("dialect", f"{held.dialect} ({'; '.join(held.evidence)})"),
        ("model", f"{'image' if config.is_2d else 'video'}, {result.parameters:,} parameters"),
        ("width, depths, heads", f"{config.embed_dim}, {list(config.depths)}, {list(config.num_heads)}"),
        ("patch, window", f"{output.by(config.patch)}, {', '.join(windows)}"),
        ("classes", str(config.num_classes or "none (no head)")),
    ]
    if held.labels:
        shown = (result.to_json()["labels"], len(held.labels))
        rows.append(("labels", ", ".join(shown[0]) + (", ..." if shown[1] > len(shown[0]) else "")))
    if result.protocol is not None:
        own = "" if held.protocol is not None else ", by its geometry and dialect"
        rows.append(("protocol", f"{result.protocol.name} ({result.protocol.describe()}){own}"))
    rows.append(("keys", ", ".join(f"{n} {what}" for what, n in counts.items())))
    if held.source:
        rows.append(
            ("made from", ", ".join(f"{k} {v}" for k, v in held.source.items() if isinstance(v, str)))
        )
    if held.note:
        rows.append(("note", held.note))
    return rows
