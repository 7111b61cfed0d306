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

import torch

from vswin_cli.checkpoints.files import save_native
from vswin_cli.config import PROTOCOLS, ModelConfig
from vswin_cli.model import VideoSwin

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
    """The files that README's commands name: clip.mp4, swin_2d.pth, val/, clips/ and named.safetensors."""
    sys.path.insert(0, str(ROOT / "examples"))
    import quickstart

    quickstart.make_clip(folder / "clip.mp4")
    quickstart.make_checkpoint(folder / "swin_2d.pth")
    labels = ("cross the picture", "stand still", *(f"class {i}" for i in range(2, 10)))
    torch.manual_seed(0)
    model = VideoSwin(ModelConfig(24, (2, 2), (1, 2), num_classes=len(labels)))
    protocol = PROTOCOLS["k400-4x3"].override(frames=8, size=64)
    save_native(
        folder / "named.safetensors",
        model.state_dict(),
        model.config,
        labels=labels,
        protocol=protocol,
        source={},
    )
    for i, label in enumerate(labels[:2]):
        place = folder / "val" / label.replace(" ", "_")
        place.mkdir(parents=True)
        for k in range(3):
            quickstart.make_clip(place / f"{k}.mp4", frames=20 + 10 * i + k)
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
