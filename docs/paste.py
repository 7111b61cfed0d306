"""Paste the real output of every `$ vswin ...` command into README.md.

Runs the commands of all ```console blocks in a folder that `prepare` fills, and rewrites what stands
below them. Run: python docs/paste.py
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"```console\n(\$ vswin .*)\n(?:.*\n)*?```")


def output_of(command: str, folder: Path) -> str:
    """What a command prints, both streams, without the blanks at line ends."""
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command.removeprefix("$ ").replace("vswin", "vswin_cli", 1))],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "TERM": "dumb"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    lines = [line.rstrip() for line in done.stdout.strip().splitlines()]
    return "\n".join(line for line in lines if line)


def prepare(folder: Path) -> None:
    """The files that README's commands name: clip.mp4, swin_2d.pth, val/ and clips/."""
    sys.path.insert(0, str(ROOT / "examples"))
    import quickstart

    quickstart.make_clip(folder / "clip.mp4")
    quickstart.make_checkpoint(folder / "swin_2d.pth")
    for name, pan in (("pan_right", 3), ("static", 0)):
        place = folder / "val" / name
        place.mkdir(parents=True)
        for k in range(3):
            quickstart.make_clip(place / f"{k}.mp4", frames=40 + k, pan=pan and pan + k)
    for split, count in (("train", 8), ("val", 4)):
        for name, pan in (("slow", 2), ("fast", 12)):
            place = folder / "clips" / split / name
            place.mkdir(parents=True)
            for k in range(count):
                quickstart.make_clip(place / f"{k}.mp4", frames=32 + k + 10 * (split == "val"), pan=pan)


def main() -> None:
    """Rewrite README.md in place."""
    readme = ROOT / "README.md"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        text = readme.read_text(encoding="utf-8")
        text = BLOCK.sub(lambda m: f"```console\n{m[1]}\n{output_of(m[1], folder)}\n```", text)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
