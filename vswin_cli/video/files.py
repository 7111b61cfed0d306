"""Command-line arguments to video files: files, folders and quoted globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from vswin_cli.errors import UsageError, VideoError

#: What counts as a video inside a folder. A file named on its own may have any suffix: its bytes decide.
VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3g2", "3gp", "asf", "avi", "f4v", "flv", "gif", "ivf", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg"),
        *("mpg", "mts", "ogv", "ts", "vob", "webm", "wmv", "y4m"),
    )
)


def find_videos(arguments: Sequence[str], failed: dict[str, VideoError] | None = None) -> list[Path]:
    """The video files that the arguments name, in their order, each once.

    With ``failed``, an argument that gives nothing is put there with its error, and the rest goes on.

    A folder gives every file below it with a video suffix, sorted by path; a pattern such as ``clips/*.mp4``
    or ``clips/**/*.mp4`` gives its matches, sorted. A file that exists under the literal name wins over the
    pattern. Raises VideoError for an argument that gives nothing, UsageError for '-' (standard input).
    """
    found: dict[str, Path] = {}  # by real place, so that the same file by two names is kept once
    for argument in arguments:
        try:
            paths = _expand(argument)
        except VideoError as error:
            if failed is None:
                raise
            failed[argument] = error
            continue
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _expand(argument: str) -> Iterable[Path]:
    if argument == "-":
        raise UsageError(
            "videos are not read from standard input", "save it to a file first, for example: cat > clip.mp4"
        )
    if not argument:
        raise UsageError("a video name is empty", "name a file, a folder or a pattern such as 'clips/*.mp4'")
    path = Path(argument)
    try:
        if path.is_dir():
            return _in_folder(path)
        exists = os.path.lexists(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VideoError(f"{argument[:100]!r} cannot be a file name: {reason}", "check the path") from error
    if exists:
        return [path]
    if glob.has_magic(argument):
        matches: list[Path] = []
        # Not Path.glob: it cannot take absolute patterns.
        for name in sorted(glob.glob(argument, recursive=True)):  # noqa: PTH207
            match = Path(name)
            # A pattern such as 'val/*' may give class folders: look into them, as for a folder by name.
            matches.extend(_videos_below(match) if match.is_dir() else [match])
        if not matches:
            raise VideoError(f"no file matches {argument}", "check the pattern; ** matches any folders")
        return matches
    raise VideoError(f"{argument} does not exist", _near(path))


def _in_folder(folder: Path) -> list[Path]:
    videos = _videos_below(folder)
    if not videos:
        raise VideoError(
            f"there is no video below {folder}",
            f"looked for {' '.join(sorted(VIDEO_SUFFIXES))} in all its folders",
        )
    return videos


def _videos_below(folder: Path) -> list[Path]:
    """Sorted video files in a folder and its folders; hidden ones are left out (._clip.mp4 is no video)."""

    def refuse(error: OSError) -> None:
        raise VideoError(f"{error.filename} cannot be listed: {error.strerror}", "check its permissions")

    videos: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        videos.extend(
            Path(place, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES
        )
    return sorted(videos)


def _near(path: Path) -> str:
    """A hint with names that exist and look alike."""
    import difflib

    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"the folder {path.parent} does not exist or cannot be read"
    close = difflib.get_close_matches(path.name, names, n=3)
    return f"did you mean {', '.join(close)}?" if close else "check the path"
