"""Where weights come from: a reference (name or path) -> a local file."""

from __future__ import annotations

from pathlib import Path

from vswin_cli.checkpoints.files import SUFFIXES
from vswin_cli.errors import CheckpointError


def resolve(reference: str | Path) -> Path:
    """The local file that a reference names.

    An existing path, or anything with a separator or a file suffix, is a path. Raises
    CheckpointError for anything else.
    """
    text = str(reference)
    try:
        path = Path(reference).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{text[:100]!r} cannot be a path ({error})") from error
    if "://" in text or text.startswith("hf:"):
        raise CheckpointError(
            f"{text}: weights are read from local files only", "download the file, then give its path"
        )
    if path.exists() or isinstance(reference, Path) or path.suffix in SUFFIXES or "/" in text or "\\" in text:
        return path
    raise CheckpointError(
        f"{text!r} is neither a file nor a known name",
        "give the path of a checkpoint: --weights path/to/file.pth",
    )
