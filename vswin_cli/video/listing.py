"""Labelled videos while a data set is read: what its folder holds, what names mean, all that is wrong.

Everything is gathered first and reported once, with counts, before a video is opened. Lists come from
strangers: no path of theirs leads out of the data set's folder.
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from vswin_cli.errors import DataError
from vswin_cli.video.containers import holds_pictures
from vswin_cli.video.files import VIDEO_SUFFIXES

_FORMATS = (
    "known: CVDF's CSV (label,youtube_id,time_start,time_end), lists of 'path label' (mmaction, PySlowFast), "
    "Something-Something's JSON, the split files of UCF101 and HMDB51"
)
Part = Literal["train", "test"]  # of a list that holds both
SPLITS = {"train", "training", "val", "valid", "validate", "validation", "test", "testing"}
_MAX_DEPTH = 50  # folders in a listed path


@dataclass(frozen=True)
class Item:
    """One labelled video.

    ``id`` its path below the data set's folder, with '/': unique, and the same on every machine; ``path`` the
    file or folder of frames; ``label`` the class index of the checkpoint.
    """

    id: str
    path: Path
    label: int


@dataclass(frozen=True)
class Dataset:
    """Labelled videos, sorted by id.

    ``layout`` names what was found, 'CVDF CSV' for example; ``labels`` the class names where the data set
    numbers its classes itself (classInd.txt, labels.json); ``notes`` what a user should know.
    """

    root: Path
    layout: str
    items: tuple[Item, ...]
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def normalise(name: str) -> str:
    """A class name without what copies of a data set change: case, punctuation, '_' for ' ', Unicode form."""
    text = unicodedata.normalize("NFD", name)
    for _ in range(2):  # Unicode's compatibility caseless matching (D146)
        text = unicodedata.normalize("NFKD", text.casefold())
    text = text.replace("_", " ")
    text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
    return " ".join(unicodedata.normalize("NFKD", text).split())


class Names:
    """The checkpoint's class names, to be found by names written a little differently."""

    def __init__(self, labels: Sequence[str], whose: str = "the checkpoint's") -> None:
        self._labels = labels
        self._whose = whose
        self._index: dict[str, int] = {}
        squeezed: dict[str, list[int]] = {}
        for i, label in enumerate(labels):
            key = normalise(label)
            if (other := self._index.setdefault(key, i)) != i:
                raise DataError(
                    f"{whose} classes {labels[other]!r} and {label!r} cannot be told apart by name",
                    "list the videos with class numbers: lines of 'path label'",
                )
            squeezed.setdefault(key.replace(" ", ""), []).append(i)
        # ApplyEyeMakeup is 'apply eye makeup', where no other label reads the same.
        self._squeezed = {key: who[0] for key, who in squeezed.items() if len(who) == 1}
        self._seen: dict[str, int | None] = {}

    def find(self, name: str) -> int | None:
        """The index of a class, or None."""
        if name not in self._seen:
            key = normalise(name)
            self._seen[name] = self._index.get(key, self._squeezed.get(key.replace(" ", "")))
        return self._seen[name]

    def unknown(self, names: Iterable[str], what: str) -> DataError:
        """An error that shows the names, each with the labels nearest to it."""
        names = sorted(set(names))
        shown = []
        for name in names[:5]:
            close = difflib.get_close_matches(normalise(name), list(self._index), n=2, cutoff=0.5)
            near = " or ".join(repr(self._labels[self._index[key]]) for key in close)
            shown.append(f"{short(name)} (nearest: {near})" if near else f"{short(name)} (none is near)")
        rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
        whose = self._whose.removesuffix("'s")
        return DataError(
            f"{counted(len(names), what)} fit{'s' * (len(names) == 1)} none of {self._whose} "
            f"{len(self._labels)} classes: {', '.join(shown)}{rest}",
            f"check that {whose} is of this data set; rename or move what is not of it",
        )


class OpenNames(Names):
    """Class names as they turn up: finding a new one adds it. For data that says what its classes are."""

    def __init__(self) -> None:
        super().__init__(())
        self.found: list[str] = []

    def find(self, name: str) -> int:
        """The index of a class, in order of first appearance."""
        index = self._index.setdefault(normalise(name), len(self.found))
        if index == len(self.found):
            self.found.append(name)
        return index


class Tree:
    """Names below a folder, each folder listed once and only when asked for: no stat per file."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bases = [f"{base}".rstrip(os.sep) + os.sep for base in (root.absolute(), root.resolve())]
        self._listed: dict[str, dict[str, bool]] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}

    def inside(self, path: str) -> str | None:
        """The path relative to the root without '.' and '..'; None where it leads out."""
        if path.startswith("/") or (path[1:2] == ":" and Path(path).is_absolute()):
            path = os.path.normpath(path)
            below = (path[len(base) :] for base in self._bases if path.startswith(base))
            return next((rest.replace(os.sep, "/") for rest in below if rest), None)
        if not {"", ".", ".."}.isdisjoint(path.split("/")):
            path = os.path.normpath(path).replace(os.sep, "/")
        return None if path in ("..", ".") or path.startswith("../") else path

    def find(self, path: str) -> list[tuple[str, bool]]:
        """(path, is a folder) of what lies there; else of all that differ in the suffix only."""
        folder, _, name = path.rpartition("/")
        if path.count("/") > _MAX_DEPTH:
            return []
        entries = self._list(folder)
        if name in entries:
            return [(path, entries[name])]
        if folder not in self._stems:
            stems: dict[str, list[str]] = {}
            for entry, is_folder in entries.items():
                stems.setdefault(entry if is_folder else stem(entry), []).append(entry)
            self._stems[folder] = stems
        near = self._stems[folder].get(name) or self._stems[folder].get(stem(name)) or []
        return [(f"{folder}/{entry}" if folder else entry, entries[entry]) for entry in sorted(near)]

    def _list(self, folder: str) -> dict[str, bool]:
        if folder not in self._listed:
            # A name that is too long, or goes through a file, is only missing.
            above, _, name = folder.rpartition("/")
            there = not folder or self._list(above).get(name, False)
            self._listed[folder] = scan(self._root / folder) if there else {}
        return self._listed[folder]


def stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")  # Path(name).suffix takes ten times as long
    return stem if stem and dot + suffix.lower() in VIDEO_SUFFIXES else name


def scan(folder: Path) -> dict[str, bool]:
    """name -> is a folder, of all entries; links are followed, broken ones left out."""
    entries: dict[str, bool] = {}
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                if not entry.is_symlink() or Path(entry.path).exists():
                    entries[entry.name] = entry.is_dir()
    except FileNotFoundError:
        raise DataError(f"{folder} does not exist", "check the path given to --data") from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file, not the folder of a data set", "give its folder") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(
            f"{folder} cannot be listed: {reason}", "check the path and its permissions"
        ) from error
    return entries


@dataclass
class Found:
    """Videos as they are found, and all that is wrong with them: ``dataset`` raises it once, with counts."""

    root: Path
    labels: Sequence[str] | None
    num_classes: int
    part: Part = "test"
    whose: str = "the checkpoint's"
    items: dict[str, int] = field(default_factory=dict)  # id -> label
    folders: list[str] = field(default_factory=list)  # ids that are folders of frames
    notes: list[str] = field(default_factory=list)
    rows: int = 0
    missing: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    repeats: int = 0

    @cached_property
    def name(self) -> str:
        """The root's own name, also where it was given as '.'."""
        return self.root.resolve().name

    @cached_property
    def tree(self) -> Tree:
        """What lies below the root."""
        return Tree(self.root)

    @cached_property
    def names(self) -> Names:
        """The checkpoint's labels by name; raises DataError where it has none."""
        if self.labels is None:
            raise DataError(
                "the data set names its classes, but the checkpoint has no class names to match them with",
                "list the videos with class numbers: lines of 'path label'",
            )
        return Names(self.labels, self.whose)

    def put(self, item: str, is_folder: bool, label: int) -> None:
        """A video that exists."""
        if item not in self.items:
            self.items[item] = label
            if is_folder:
                self.folders.append(item)
        elif self.items[item] == label:
            self.repeats += 1
        else:
            self.conflicts.append(f"{short(item)} ({self.items[item]} and {label})")

    def add(self, paths: Sequence[str], label: int, *, shown: str | None = None, as_is: bool = True) -> None:
        """A video as a list has it, at the first of these paths that exists; ``as_is``: paths, not ids.

        What is wrong with it is kept for later.
        """
        self.rows += 1
        for path in paths:
            inside = self.tree.inside(path)
            if inside is None:
                self.outside.append(path)
                return
            match self.tree.find(inside):
                case [(item, is_folder)]:
                    if as_is and item != inside:
                        self.renamed.append(f"{short(inside)} is {short(item)}")
                    self.put(item, is_folder, label)
                    return
                case [_, _, *_] as several:
                    self.several.append(f"{short(inside)}: {', '.join(item for item, _ in several)}")
                    return
        self.missing.append(shown or paths[0])

    def dataset(self, source: str, layout: str, own: tuple[str, ...] | None, skip_missing: bool) -> Dataset:
        """All that was found, or the DataError for what is wrong."""
        self._check_paths(source, skip_missing)
        if odd := [i for i in self.items if any("\ud800" <= c <= "\udfff" for c in i)]:
            raise DataError(
                f"{source}: {counted(len(odd), 'name')} not valid Unicode: {quoted(odd)}", "rename them"
            )
        bad = [i for i, label in self.items.items() if not 0 <= label < self.num_classes]
        if bad:
            wrong = {self.items[i] for i in bad}
            hint = "check that the checkpoint was trained on this data set"
            if wrong == {self.num_classes} and 0 not in self.items.values():
                hint = "the labels seem to count from 1; they must count from 0"
            elif wrong == {-1}:
                hint = "-1 stands for no label: this is the list of a test set"
            shown = some([f"{short(i)} has {self.items[i]}" for i in bad])
            raise DataError(
                f"{source}: {counted(len(bad), 'label')} of {len(self.items)} outside "
                f"0..{self.num_classes - 1}: {shown}",
                hint,
            )
        if not self.items:
            raise DataError(f"{source}: there is no video in it", "; ".join(self.notes) or _FORMATS)
        without = [i for i in self.folders if not is_frames(self.root / i)]
        if without:
            raise DataError(
                f"{counted(len(without), 'folder')} where a video should be hold no numbered pictures: "
                f"{quoted(without)}",
                "a video is a file, or a folder of img_00001.jpg, img_00002.jpg, ...",
            )
        if self.repeats:
            self.notes.append(f"{counted(self.repeats, 'video')} listed more than once, each used once")
        if self.renamed:
            count = len(self.renamed)
            self.notes.append(f"{counted(count, 'video')} found with another suffix, first {self.renamed[0]}")
        parents: dict[str, Path] = {}
        items = []
        for item in sorted(self.items):
            above, _, name = item.rpartition("/")
            parent = parents.get(above) or parents.setdefault(above, self.root / above)
            items.append(Item(item, parent / name, self.items[item]))
        layout += ", frame folders" if self.folders else ""
        return Dataset(self.root, layout, tuple(items), own, tuple(self.notes))

    def _check_paths(self, source: str, skip_missing: bool) -> None:
        if self.outside:
            raise DataError(
                f"{source}: {counted(len(self.outside), 'path')} of {self.rows} outside {self.root}: "
                f"{quoted(self.outside)}",
                "make the paths relative to the folder given to --data",
            )
        if self.several:
            raise DataError(
                f"{source}: {counted(len(self.several), 'name')} could mean several files: "
                f"{some(self.several)}",
                "write the suffix into the list, or remove what is not wanted",
            )
        if self.missing and not (skip_missing and self.items):
            hint = "check --data, download what is missing, or leave it out with --skip-missing"
            if not self.items and all(path.startswith(f"{self.name}/") for path in self.missing[:100]):
                hint = f"the list's paths start with {self.name}/: give --data {self.root.resolve().parent}"
            raise DataError(
                f"{source}: {len(self.missing)} of {counted(self.rows, 'listed video')} not found in "
                f"{self.root}: {quoted(self.missing)}",
                hint,
            )
        if self.missing:
            self.notes.append(
                f"{len(self.missing)} of {counted(self.rows, 'listed video')} not found and left out: "
                f"{quoted(self.missing)}"
            )
        if self.conflicts:
            raise DataError(
                f"{source}: {counted(len(self.conflicts), 'video')} listed with different labels: "
                f"{some(self.conflicts)}",
                "correct the list",
            )


def is_frames(folder: Path) -> bool:
    try:
        return holds_pictures(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}", "check its permissions") from error


def counted(number: int, what: str) -> str:
    plural = "es" if what.endswith("s") else "s"
    return f"{number} {what}{plural if number != 1 else ''}"


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def quoted(names: Sequence[str]) -> str:
    return some([short(name) for name in names[:6]])


def short(text: str) -> str:
    """Quoted, on one line, without terminal escapes, and not too long."""
    return repr(text if len(text) <= 100 else f"{text[:97]}...")
