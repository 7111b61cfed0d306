"""The one sink: results on stdout (tables or one JSON object), talk and progress on stderr."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vswin_cli.errors import VswinError, printable

BAR = 24


def prepare_streams() -> None:
    """Characters that the terminal's encoding lacks (bars under ASCII, odd file names) are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def out() -> Console:
    """The console of results. Wide when piped, so that no cell is cut."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def err() -> Console:
    """The console of talk."""
    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal else Console(stderr=True, highlight=False, width=160)


def say(message: str) -> None:
    """One line of talk, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(escape(printable(message)))


def print_json(data: Any) -> None:
    """One JSON object on stdout, and nothing else there."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    # A file name that is no valid Unicode holds lone surrogates, which UTF-8 cannot write.
    if any("\ud800" <= c <= "\udfff" for c in text):
        text = json.dumps(data, indent=2, allow_nan=False)
    sys.stdout.write(text + "\n")


def print_error(error: VswinError) -> None:
    """`error: ...` and `hint: ...` on stderr."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(error.message)}")
    if error.hint:
        console.print(f"[bold]hint:[/] {escape(error.hint)}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> Table:
    """A table of plain cells; ``right`` holds a '1' for each column that is aligned right."""
    made = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(
            escape(column), justify="right" if right[i : i + 1] == "1" else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*(escape(printable(cell)) for cell in row))
    return made


def bar(share: float) -> str:
    """A bar for a number between 0 and 1."""
    eighths = round(max(0.0, min(1.0, share)) * BAR * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[rest]


def megabytes(nbytes: int) -> str:
    """'109.1 MB' (10^6 bytes)."""
    return f"{nbytes / 1e6:,.1f} MB"


def by(numbers: Sequence[int]) -> str:
    """'8x7x7'."""
    return "x".join(map(str, numbers))


_open_line = False


def progress(text: str, live: bool) -> None:
    """A line of progress on stderr: rewritten in place where ``live``, else a line of its own."""
    global _open_line
    if not live:
        say(text)
        return
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()
    _open_line = True


def end_progress() -> None:
    """Go on below a line that was rewritten in place."""
    global _open_line
    if _open_line:
        sys.stderr.write("\n")
        _open_line = False


def clock(seconds: float | None) -> str:
    """'1:02:03'."""
    if seconds is None or seconds == float("inf"):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
