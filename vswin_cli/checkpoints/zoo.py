"""Where weights come from: a reference (path, name, hub repository, URL) -> a local file.

The cache is the folder that VSWIN_CACHE names, by default ~/.cache/vswin (under XDG_CACHE_HOME where set):
``zoo/FILE`` for the files of the zoo, ``url/HASH/FILE`` for other URLs. What comes from the Hugging Face
hub lies in the hub's cache.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote

from vswin_cli.checkpoints.download import Tell, fetch, file_name_of
from vswin_cli.checkpoints.hub import CHECKPOINTS, fetch_hub, hub_cache, remove_hub
from vswin_cli.checkpoints.published import DEFAULT, PUBLISHED, Published
from vswin_cli.errors import CheckpointError, DownloadError

_HUB = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/(.+))?", re.ASCII)


def resolve(reference: str | Path, *, insecure: bool = False, progress: Tell | None = None) -> Path:
    """The local file that a reference names; it is downloaded where it is not here yet.

    A reference is ``hf:user/repo[@revision][/file]``, an https URL, a path, or a name of the zoo: an
    existing path, or anything with a separator or a file suffix, is a path; the rest is a name. ``insecure``
    allows http. Raises CheckpointError for what cannot be any of these, DownloadError for what cannot be
    had.
    """
    text = str(reference)
    try:
        path = Path(reference).expanduser()
        if path.exists() or isinstance(reference, Path):
            return path
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{text[:100]!r} cannot be a path ({error})") from error
    if text.startswith("hf:"):
        return _from_hub(text, progress)
    if "://" in text:
        return fetch(text, place_of_url(text), insecure=insecure, progress=progress)
    if path.suffix or "/" in text or "\\" in text:
        return path
    entry = named(text)
    if entry.hub:
        return _from_hub(f"hf:{entry.hub}", progress)
    place = place_of(entry)
    assert place is not None
    if entry.url is None:
        return place
    return fetch(entry.url, place, sha256=entry.sha256, insecure=insecure, progress=progress)


def named(name: str) -> Published:
    """The zoo's checkpoint of that name. Raises CheckpointError with the name that was meant."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    near = difflib.get_close_matches(name, PUBLISHED, n=1)
    raise CheckpointError(
        f"{name!r} is neither a file nor a known name",
        f"did you mean {near[0]}?"
        if near
        else f"give a path, path/to/file.pth say, or a name that vswin zoo lists, {DEFAULT} say",
    )


def _from_hub(reference: str, progress: Tell | None) -> Path:
    found = _HUB.fullmatch(reference)
    if found is None or ".." in reference or not reference.isprintable():
        raise CheckpointError(
            f"{reference[:200]}: not of the form hf:user/repo[@revision][/file]",
            "for example hf:timm/swin_tiny_patch4_window7_224.ms_in1k",
        )
    repo, revision, file = found.groups()
    return fetch_hub(repo, unquote(revision) if revision else None, file, progress)


def cache_folder() -> Path:
    """The folder of downloaded files."""
    if folder := os.environ.get("VSWIN_CACHE"):
        return Path(folder).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vswin"


def place_of(entry: Published) -> Path | None:
    """Where a checkpoint of the zoo lies once it is here; None for one of the hub."""
    if entry.built_in:
        return Path(str(files("vswin_cli").joinpath("data", entry.built_in)))
    return cache_folder() / "zoo" / entry.file if entry.file else None


def place_of_url(url: str) -> Path:
    """Where the file of a URL lies in the cache: its own folder, under a plain name."""
    url = url.partition("#")[0]
    return cache_folder() / "url" / hashlib.sha256(os.fsencode(url)).hexdigest()[:16] / file_name_of(url)


@dataclass(frozen=True)
class Cached:
    """A checkpoint that is here: its file (or folder, in the hub's cache), and bytes."""

    path: Path
    nbytes: int


def cached() -> dict[str, Cached]:
    """The checkpoints of the zoo that are here: name -> file."""
    hub = hub_cache()
    here = {}
    for name, entry in PUBLISHED.items():
        place = place_of(entry)
        if place is not None and place.is_file():
            here[name] = Cached(place, place.stat().st_size)
        copies = [c for c in hub.get(entry.hub or "", []) if any(f.endswith(CHECKPOINTS) for f in c.files)]
        if copies:
            here[name] = Cached(copies[0].folder, sum(copy.nbytes for copy in copies))
    return here


def remove(name: str) -> int:
    """Remove a checkpoint of the zoo, or the file of a URL, from its cache; the bytes that this freed.

    The SHA-256 of its first use stays, so that it must be the same file when it comes again. Raises
    CheckpointError where there is nothing to remove.
    """
    entry = None if "://" in name else named(name)
    if entry is not None and entry.built_in:
        raise CheckpointError(f"{name} is a part of vswin and takes no place in the cache")
    if entry is not None and entry.hub:
        if not (freed := remove_hub(entry.hub)):
            raise CheckpointError(f"{name} is not in the hub's cache")
        return freed
    place = place_of_url(name) if entry is None else place_of(entry)
    assert place is not None
    freed = 0
    try:
        for suffix in ("", ".part", ".part.etag"):
            path = place.with_name(place.name + suffix)
            if path.is_file():
                freed += path.stat().st_size
                path.unlink()
    except OSError as error:
        raise DownloadError(f"{place}: cannot be removed ({error.strerror or error})") from error
    if not freed:
        raise CheckpointError(f"{name} is not in the cache ({place})")
    return freed


def published_as(file: str, sha256: str) -> Published | None:
    """The zoo's checkpoint that a file is, by its name and what is published of its SHA-256."""
    for entry in PUBLISHED.values():
        if entry.file == file and sha256.startswith(entry.sha256):
            return entry
    return None
