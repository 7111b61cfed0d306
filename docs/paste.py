"""Paste the real output of every `$ vswin ...` command into README.md.

Runs the commands of all ```console blocks in a folder that holds the quick start's clip.mp4 and
swin_2d.pth, and rewrites what stands below them. Run: python docs/paste.py
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


def main() -> None:
    """Rewrite README.md in place."""
    sys.path.insert(0, str(ROOT / "examples"))
    import quickstart

    readme = ROOT / "README.md"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quickstart.make_clip(folder / "clip.mp4")
        quickstart.make_checkpoint(folder / "swin_2d.pth")
        text = readme.read_text(encoding="utf-8")
        text = BLOCK.sub(lambda m: f"```console\n{m[1]}\n{output_of(m[1], folder)}\n```", text)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
