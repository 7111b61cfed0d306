"""Weights are brought here before a command needs them, with progress on stderr."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from vswin_cli.cli import output

if TYPE_CHECKING:
    from vswin_cli.checkpoints.download import Transfer

PLAIN_SECONDS = 10  # between two progress lines where stderr is no terminal


def bring(reference: str | None, insecure: bool) -> None:
    """Download what a reference names, unless it is here already: then engine/ finds it in the cache."""
    if reference is None:
        return
    from vswin_cli.checkpoints.zoo import resolve
    from vswin_cli.engine.distributed import place

    line = _ProgressLine()
    try:
        resolve(reference, insecure=insecure, progress=line.show if place().is_first else None)
    finally:
        output.end_progress()


class _ProgressLine:
    """What is downloaded, then how far: rewritten in a terminal, every 10 s elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.name = ""
        self.shown = 0.0

    def show(self, now: Transfer) -> None:
        begins = now.name != self.name
        if begins:
            output.end_progress()
            size = "" if now.total is None else f" ({output.megabytes(now.total)})"
            what = "another process is downloading" if now.waits else "downloading"
            output.say(f"{what} {now.name}{size}")
            self.name, self.shown = now.name, time.monotonic()
        if self.live or time.monotonic() - self.shown >= PLAIN_SECONDS:
            self.shown = time.monotonic()
            output.progress(_text(now), self.live)


def _text(now: Transfer) -> str:
    done = output.megabytes(now.done)
    if now.waits:
        return f"{done} so far"
    parts = [done, f"{output.megabytes(round(now.per_second))}/s"]
    if now.total:
        parts[0] = f"{output.bar(now.done / now.total):{output.BAR}} {now.done / now.total:4.0%}, {done}"
        parts.append(f"ETA {output.clock(now.eta_seconds)}")
    return ", ".join(parts)
