"""--push and --save-dir: the result of a command as a folder for the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from vswin_cli.cli import output
from vswin_cli.errors import UsageError

Push = Annotated[
    Optional[str],
    typer.Option(metavar="USER/NAME", help="Upload the result to the hub: weights, config.json and a card."),
]
SaveDir = Annotated[
    Optional[Path], typer.Option(metavar="DIR", help="Write the folder that --push uploads, here.")
]


def check(push: str | None, save_dir: Path | None, out: Path, *, to: str = "native", force: bool) -> None:
    """See before the work whether its result can be published. Raises UsageError, OutputError."""
    if push is None and save_dir is None:
        return
    if to != "native":
        raise UsageError(f"a folder for the hub holds a native file, not {to}", "leave out --to, or --push")
    from vswin_cli.engine.publish import check_folder, check_repo

    if push is not None:
        check_repo(push)
    folder = _folder(save_dir, out)
    if folder.resolve() == out.resolve():
        raise UsageError(f"--save-dir {folder} is the output itself", "name another folder")
    check_folder(folder, force)


def publish(checkpoint: Path, push: str | None, save_dir: Path | None, out: Path) -> dict[str, Any]:
    """Write the folder, upload it if asked; what --json adds: {"folder": ..., "url": ...}, or nothing."""
    if push is None and save_dir is None:
        return {}
    from vswin_cli.engine import publish as engine

    folder = _folder(save_dir, out)
    title = push.partition("/")[2] if push else folder.name
    engine.write_folder(checkpoint, folder, title=title)
    if push is None:
        output.say(f"folder for the hub: {folder}")
        return {"folder": str(folder), "url": None}
    url = engine.push(folder, push)
    output.say(f"folder for the hub: {folder}, uploaded to {url}")
    return {"folder": str(folder), "url": url}


def _folder(save_dir: Path | None, out: Path) -> Path:
    if save_dir is not None:
        return save_dir
    path = out.resolve()  # '.' has no name of its own
    return path.with_name(path.name.removesuffix(".safetensors") + "-hub")
