"""vswin zoo: the published checkpoints that have a name here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from vswin_cli.cli import options, output
from vswin_cli.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from vswin_cli.checkpoints.published import Published
    from vswin_cli.checkpoints.zoo import Cached


def zoo(
    text: Annotated[
        Optional[str],
        typer.Argument(metavar="[TEXT]", help="A name, for its card; or words that rows must hold."),
    ] = None,
    rm: Annotated[
        Optional[str], typer.Option("--rm", metavar="NAME", help="Remove a download, by name or URL.")
    ] = None,
    json: options.Json = False,
) -> None:
    """List the published checkpoints that --weights knows by name, and which of them are here."""
    if rm is not None and text is not None:
        raise UsageError("--rm takes the one name to remove, and nothing else")
    from vswin_cli.checkpoints import zoo as rooms
    from vswin_cli.checkpoints.published import PUBLISHED

    if rm is not None:
        freed = rooms.remove(rm)
        if json:
            output.print_json({"removed": rm, "freed_bytes": freed})
        else:
            output.out().print(f"removed {rm}, {output.megabytes(freed)}", markup=False, soft_wrap=True)
        return
    here = rooms.cached()
    if text in PUBLISHED:
        entry = PUBLISHED[text]
        if json:
            output.print_json(_as_json(entry, here))
        else:
            _show_card(entry, here, str(rooms.place_of(entry) or "the Hugging Face hub's cache"))
        return
    found = [entry for entry in PUBLISHED.values() if text is None or _matches(entry, text)]
    if not found:
        try:
            rooms.named(text or "")
        except CheckpointError as error:
            raise CheckpointError(f"nothing in the zoo matches {text!r}", error.hint) from None
    if json:
        output.print_json(
            {"cache": str(rooms.cache_folder()), "checkpoints": [_as_json(entry, here) for entry in found]}
        )
    else:
        _show_table(found, here, str(rooms.cache_folder()))


def _matches(entry: Published, text: str) -> bool:
    """Whether every word of a text occurs in what the table and the card say."""
    held = " ".join(str(value) for value in entry.to_json().values() if value is not None).lower()
    return all(word in held for word in text.lower().split())


def _as_json(entry: Published, here: dict[str, Cached]) -> dict[str, Any]:
    cached = here.get(entry.name)
    return {
        **entry.to_json(),
        "cached": None if cached is None else str(cached.path),
        "cached_bytes": None if cached is None else cached.nbytes,
    }


def _show_table(entries: list[Published], here: dict[str, Cached], folder: str) -> None:
    rows = [
        (
            e.name,
            e.dialect,
            e.data,
            _number(e.classes),
            e.protocol or "-",
            "-" if e.top1 is None else str(e.top1),
            "-" if e.top5 is None else str(e.top5),
            e.licence,
            _size(e, here),
        )
        for e in entries
    ]
    columns = ("name", "dialect", "data", "classes", "protocol", "Top-1", "Top-5", "licence", "here")
    output.out().print(output.table(columns, rows, "000101101"))
    held = [here[e.name].nbytes for e in entries if e.name in here and not e.built_in]
    output.say(
        f"{len(entries)} checkpoints, {len(held)} downloaded ({output.megabytes(sum(held))}); cache {folder}"
    )


def _show_card(entry: Published, here: dict[str, Cached], place: str) -> None:
    measured = f" by {entry.protocol}" if entry.protocol else ""
    accuracy = [f"Top-{k} {v} %" for k, v in ((1, entry.top1), (5, entry.top5)) if v is not None]
    rows = [
        ("from", entry.address),
        ("dialect", entry.dialect),
        ("data", f"{entry.data}, {_number(entry.classes)} classes"),
        ("published accuracy", ", ".join(accuracy) + measured if accuracy else "-"),
        ("licence", entry.licence),
        ("SHA-256", f"starts with {entry.sha256}" if 0 < len(entry.sha256) < 64 else entry.sha256 or "-"),
        ("here", _size(entry, here) or "no"),
        ("place", place),
    ]
    if entry.note:
        rows.append(("note", entry.note))
    output.out().print(output.table((entry.name, ""), rows))
    image = entry.dialect.endswith("-2d")
    output.say(
        f"next: vswin inflate {entry.name} video.safetensors"
        if image
        else f"next: vswin predict VIDEO --weights {entry.name}"
    )


def _size(entry: Published, here: dict[str, Cached]) -> str:
    if entry.built_in:
        return "built in"
    return output.megabytes(here[entry.name].nbytes) if entry.name in here else ""


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
