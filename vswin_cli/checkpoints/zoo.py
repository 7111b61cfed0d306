"""Where weights come from: a reference (name or path) -> a local file."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from vswin_cli.checkpoints.files import SUFFIXES
from vswin_cli.errors import CheckpointError

#: Models that ship inside the package: name -> file in data/.
BUILT_IN = {"camera-motion": "camera_motion.safetensors"}


def resolve(reference: str | Path) -> Path:
    """The local file that a reference names.

    An existing path, or anything with a separator or a file suffix, is a path; the rest is a name. Raises
    CheckpointError for a name that is not known.
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
    if text in BUILT_IN:
        return Path(str(files("vswin_cli").joinpath("data", BUILT_IN[text])))
    near = difflib.get_close_matches(text, BUILT_IN, n=1)
    raise CheckpointError(
        f"{text!r} is neither a file nor a known name",
        f"did you mean --weights {near[0]}?"
        if near
        else f"give the path of a checkpoint, --weights path/to/file.pth, or a name: {', '.join(BUILT_IN)}",
    )
