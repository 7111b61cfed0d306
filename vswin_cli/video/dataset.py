"""A data set on disk -> labelled videos: class folders, or videos and a file that lists them.

Everything is checked here, before a video is opened: what is listed but missing, labels that the model does
not have, names that fit no class. The format of an annotation file is told by its content. Class names are
matched to the checkpoint's by name, never by sorted order: torchvision's Kinetics folders (blanks to '_',
quotes and brackets gone) sort differently from the labels. Lists come from strangers: no path of theirs
leads out of the data set's folder.
"""

from __future__ import annotations

import csv
import difflib
import glob
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vswin_cli.errors import DataError
from vswin_cli.video.containers import holds_pictures
from vswin_cli.video.files import VIDEO_SUFFIXES

_FORMATS = (
    "known: CVDF's CSV (label,youtube_id,time_start,time_end), lists of 'path label' (mmaction, PySlowFast), "
    "Something-Something's JSON, the split files of UCF101 and HMDB51"
)
_SPLITS = {"train", "training", "val", "valid", "validate", "validation", "test", "testing"}
_BESIDE_SPLITS = {"annotations", "labels", "replacement"}
_MAX_BYTES = 2**30  # of an annotation file
_MAX_DEPTH = 50  # folders in a listed path
_MAX_LINE = 10_000


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


def find_dataset(
    root: Path,
    labels: Sequence[str] | None,
    num_classes: int,
    annotations: Path | None = None,
    *,
    skip_missing: bool = False,
) -> Dataset:
    """The labelled videos below ``root``: class folders, or those that ``annotations`` lists.

    ``labels`` are the checkpoint's class names in index order, None where it has only numbers.
    ``annotations`` is a file, a folder of HMDB51's split files, or a pattern for those. With
    ``skip_missing`` listed files that do not exist are a note and no error. Raises DataError.
    """
    root = Path(root)
    _scan(root)  # says what is wrong with the folder
    found = _Found(root, labels, num_classes)
    if annotations is None:
        layout = _class_folders(found)
        return found.dataset(f"class folders of {root}", layout, None, False)
    layout, own = _annotated(found, Path(annotations))
    return found.dataset(str(annotations), layout, own, skip_missing)


def discover_classes(root: Path) -> tuple[str, ...]:
    """The names of the class folders below ``root`` as they are, sorted; DataError if there are none."""
    root = Path(root)
    names = sorted(n for n, is_folder in _scan(root).items() if is_folder and not n.startswith("."))
    _refuse_splits(root, names)
    if not names:
        raise DataError(f"{root} holds no class folders", "expected is FOLDER/CLASS/VIDEO.mp4")
    return tuple(names)


def normalise(name: str) -> str:
    """A class name without what copies of a data set change: case, punctuation, '_' for ' ', Unicode form."""
    text = unicodedata.normalize("NFD", name)
    for _ in range(2):  # Unicode's compatibility caseless matching (D146)
        text = unicodedata.normalize("NFKD", text.casefold())
    text = text.replace("_", " ")
    text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
    return " ".join(unicodedata.normalize("NFKD", text).split())


class _Names:
    """The checkpoint's class names, to be found by names written a little differently."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._index: dict[str, int] = {}
        squeezed: dict[str, list[int]] = {}
        for i, label in enumerate(labels):
            key = normalise(label)
            if (other := self._index.setdefault(key, i)) != i:
                raise DataError(
                    f"the checkpoint's classes {labels[other]!r} and {label!r} cannot be told apart by name",
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
            shown.append(f"{_short(name)} (nearest: {near})" if near else f"{_short(name)} (none is near)")
        rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return DataError(
            f"{_count(len(names), what)} fit{'s' * (len(names) == 1)} none of the checkpoint's "
            f"{len(self._labels)} classes: {', '.join(shown)}{rest}",
            "check that the checkpoint was trained on this data set, and rename or move what is not of it",
        )


class _Tree:
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
                stems.setdefault(entry if is_folder else _stem(entry), []).append(entry)
            self._stems[folder] = stems
        near = self._stems[folder].get(name) or self._stems[folder].get(_stem(name)) or []
        return [(f"{folder}/{entry}" if folder else entry, entries[entry]) for entry in sorted(near)]

    def _list(self, folder: str) -> dict[str, bool]:
        if folder not in self._listed:
            # A name that is too long, or goes through a file, is only missing.
            above, _, name = folder.rpartition("/")
            there = not folder or self._list(above).get(name, False)
            self._listed[folder] = _scan(self._root / folder) if there else {}
        return self._listed[folder]


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")  # Path(name).suffix takes ten times as long
    return stem if stem and dot + suffix.lower() in VIDEO_SUFFIXES else name


def _scan(folder: Path) -> dict[str, bool]:
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
class _Found:
    """Videos as they are found, and all that is wrong with them: ``dataset`` raises it once, with counts."""

    root: Path
    labels: Sequence[str] | None
    num_classes: int
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
    def tree(self) -> _Tree:
        """What lies below the root."""
        return _Tree(self.root)

    @cached_property
    def names(self) -> _Names:
        """The checkpoint's labels by name; raises DataError where it has none."""
        if self.labels is None:
            raise DataError(
                "the data set names its classes, but the checkpoint has no class names to match them with",
                "list the videos with class numbers: lines of 'path label'",
            )
        return _Names(self.labels)

    def put(self, item: str, is_folder: bool, label: int) -> None:
        """A video that exists."""
        if item not in self.items:
            self.items[item] = label
            if is_folder:
                self.folders.append(item)
        elif self.items[item] == label:
            self.repeats += 1
        else:
            self.conflicts.append(f"{_short(item)} ({self.items[item]} and {label})")

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
                        self.renamed.append(f"{_short(inside)} is {_short(item)}")
                    self.put(item, is_folder, label)
                    return
                case [_, _, *_] as several:
                    self.several.append(f"{_short(inside)}: {', '.join(item for item, _ in several)}")
                    return
        self.missing.append(shown or paths[0])

    def dataset(self, source: str, layout: str, own: tuple[str, ...] | None, skip_missing: bool) -> Dataset:
        """All that was found, or the DataError for what is wrong."""
        self._check_paths(source, skip_missing)
        bad = [i for i, label in self.items.items() if not 0 <= label < self.num_classes]
        if bad:
            wrong = {self.items[i] for i in bad}
            hint = "check that the checkpoint was trained on this data set"
            if wrong == {self.num_classes} and 0 not in self.items.values():
                hint = "the labels seem to count from 1; they must count from 0"
            elif wrong == {-1}:
                hint = "-1 stands for no label: this is the list of a test set"
            shown = _some([f"{_short(i)} has {self.items[i]}" for i in bad])
            raise DataError(
                f"{source}: {_count(len(bad), 'label')} of {len(self.items)} outside "
                f"0..{self.num_classes - 1}: {shown}",
                hint,
            )
        if not self.items:
            raise DataError(f"{source}: there is no video in it", "; ".join(self.notes) or _FORMATS)
        without = [i for i in self.folders if not _is_frames(self.root / i)]
        if without:
            raise DataError(
                f"{_count(len(without), 'folder')} where a video should be hold no numbered pictures: "
                f"{_quoted(without)}",
                "a video is a file, or a folder of img_00001.jpg, img_00002.jpg, ...",
            )
        if self.repeats:
            self.notes.append(f"{_count(self.repeats, 'video')} listed more than once, each used once")
        if self.renamed:
            count = len(self.renamed)
            self.notes.append(f"{_count(count, 'video')} found with another suffix, first {self.renamed[0]}")
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
                f"{source}: {_count(len(self.outside), 'path')} of {self.rows} outside {self.root}: "
                f"{_quoted(self.outside)}",
                "make the paths relative to the folder given to --data",
            )
        if self.several:
            raise DataError(
                f"{source}: {_count(len(self.several), 'name')} could mean several files: "
                f"{_some(self.several)}",
                "write the suffix into the list, or remove what is not wanted",
            )
        if self.missing and not (skip_missing and self.items):
            hint = "check --data, and download what is missing or take it out of the list"
            if not self.items and all(path.startswith(f"{self.name}/") for path in self.missing[:100]):
                hint = f"the list's paths start with {self.name}/: give --data {self.root.resolve().parent}"
            raise DataError(
                f"{source}: {len(self.missing)} of {_count(self.rows, 'listed video')} not found in "
                f"{self.root}: {_quoted(self.missing)}",
                hint,
            )
        if self.missing:
            self.notes.append(
                f"{len(self.missing)} of {_count(self.rows, 'listed video')} not found and left out: "
                f"{_quoted(self.missing)}"
            )
        if self.conflicts:
            raise DataError(
                f"{source}: {_count(len(self.conflicts), 'video')} listed with different labels: "
                f"{_some(self.conflicts)}",
                "correct the list",
            )


def _is_frames(folder: Path) -> bool:
    try:
        return holds_pictures(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}", "check its permissions") from error


def _count(number: int, what: str) -> str:
    plural = "es" if what.endswith("s") else "s"
    return f"{number} {what}{plural if number != 1 else ''}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _quoted(names: Sequence[str]) -> str:
    return _some([_short(name) for name in names[:6]])


def _short(text: str) -> str:
    """Quoted, on one line, without terminal escapes, and not too long."""
    return repr(text if len(text) <= 100 else f"{text[:97]}...")


# Class folders


def _class_folders(found: _Found) -> str:
    root = found.root
    entries = {name: is_folder for name, is_folder in _scan(root).items() if not name.startswith(".")}
    folders = sorted(name for name, is_folder in entries.items() if is_folder)
    loose = [name for name, is_folder in entries.items() if not is_folder and _stem(name) != name]
    if not folders:
        if loose:
            raise DataError(
                f"{root} holds {_count(len(loose), 'video')} but no class folders",
                "give the file that says their classes with --annotations",
            )
        what = "is a folder of frames, not a data set" if _is_frames(root) else "holds no videos"
        raise DataError(f"{root} {what}", "expected is FOLDER/CLASS/VIDEO.mp4")
    label_of = _labels_of_folders(found, folders)
    if loose:
        found.notes.append(f"{_count(len(loose), 'video')} beside the class folders left out: {_some(loose)}")
    uses = Counter(label_of.values())
    if twice := [name for name in folders if uses[label_of[name]] > 1]:
        found.notes.append(f"several folders for one class: {_quoted(twice)}")
    nested, ignored, empty = [], [], []
    for folder in folders:
        before = len(found.items)
        for name, is_folder in _scan(root / folder).items():
            item = f"{folder}/{name}"
            if name.startswith("."):
                continue
            if is_folder and not _is_frames(root / item):
                nested.append(item)
            elif is_folder or _stem(name) != name:
                found.put(item, is_folder, label_of[folder])
            else:
                ignored.append(item)
        if len(found.items) == before:
            empty.append(folder)
    if nested:
        raise DataError(
            f"{_count(len(nested), 'folder')} inside class folders hold no numbered pictures: "
            f"{_quoted(sorted(nested))}",
            "expected is FOLDER/CLASS/VIDEO.mp4, or FOLDER/CLASS/VIDEO/img_00001.jpg",
        )
    if empty:
        found.notes.append(f"{_count(len(empty), 'class folder')} without videos: {_quoted(empty)}")
    if ignored:
        first = _quoted(sorted(ignored))
        found.notes.append(f"{_count(len(ignored), 'file')} that are no videos by their suffix: {first}")
    return "class folders"


def _labels_of_folders(found: _Found, folders: Sequence[str]) -> dict[str, int]:
    label_of: dict[str, int | None]
    if found.labels is None:
        numbered = re.compile("[0-9]{1,9}")
        label_of = {name: int(name) if numbered.fullmatch(name) else None for name in folders}
    else:
        label_of = {name: found.names.find(name) for name in folders}
    unknown = [name for name, label in label_of.items() if label is None]
    if len(unknown) == len(folders):
        _refuse_splits(found.root, folders)
    if any(_is_frames(found.root / name) for name in unknown[:3]):
        raise DataError(
            f"{found.root} holds folders of frames, not class folders: {_quoted(unknown)}",
            "give the file that says their classes with --annotations",
        )
    if unknown and found.labels is None:
        raise DataError(
            f"the checkpoint has no class names, and {len(unknown)} of {_count(len(folders), 'folder')} "
            f"{'is' if len(unknown) == 1 else 'are'} not named by number: {_quoted(unknown)}",
            f"name them 0 to {found.num_classes - 1}, or list the videos with --annotations",
        )
    if unknown:
        raise found.names.unknown(unknown, "folder")
    return {name: label for name, label in label_of.items() if label is not None}


def _refuse_splits(root: Path, folders: Sequence[str]) -> None:
    """Raises DataError where the folders are train/ and val/, not classes."""
    splits = [name for name in folders if name.casefold() in _SPLITS]
    if splits and all(name.casefold() in _SPLITS | _BESIDE_SPLITS for name in folders):
        best = next((name for name in splits if name.casefold().startswith("val")), splits[0])
        raise DataError(
            f"{root} holds the parts of a data set: {_some(folders)}", f"name one: --data {root / best}"
        )


# Annotation files

_Lines = list[tuple[int, str]]  # number and text of each line that is not blank
_Read = tuple[str, tuple[str, ...] | None]  # layout, the data set's own labels


def _annotated(found: _Found, source: Path) -> _Read:
    try:
        several = source.is_dir() or (glob.has_magic(str(source)) and not source.exists())
    except OSError as error:
        raise DataError(f"{_short(str(source))}: {error.strerror}", "check the path") from error
    if several:
        return _hmdb_files(found, source)
    text = _text(source)
    if re.match(r"""\s*(\{\s*"|\[\s*[\[{"\]])""", text):
        return _json(found, source, text)
    lines = _lines(text)
    first = next((line for _, line in lines if not line.startswith("#")), "")
    columns = [column.strip().strip('"').casefold() for column in first.split(",")]
    if "youtube_id" in columns:
        return _cvdf(found, source, text)
    if re.match(r"orig\w+_vid\w+_id\s+video_id\s+frame_id\s+path", first):
        raise DataError(
            f"{source} lists single frames, not labelled videos (PySlowFast's frame list)",
            "give Something-Something's own JSON, or lines of 'path label'",
        )
    if not lines:
        raise DataError(f"{source} is empty", _FORMATS)
    if wide := next(((i, line) for i, line in lines if len(line) > _MAX_LINE), None):
        raise _broken(source, *wide, f"{len(wide[1])} characters in one line")
    if _hmdb_class(source) and all(_HMDB_ROW.fullmatch(line.strip()) for _, line in lines):
        return _hmdb(found, [(source, lines)])
    return _ucf(found, source, lines) or _list(found, source, lines)


def _text(source: Path) -> str:
    try:
        if not source.is_file():
            what = "is not a regular file" if source.exists() else "does not exist"
            raise DataError(f"{source} {what}", "check the path of the annotation file")
        if source.stat().st_size > _MAX_BYTES:
            raise DataError(f"{source} is too large for an annotation file", _FORMATS)
        text = source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 text (byte {error.start})", _FORMATS) from error
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}", "check its permissions") from error
    if "\0" in text:
        raise DataError(f"{source} is not text", _FORMATS)
    return text


def _lines(text: str) -> _Lines:
    # Not splitlines, which also splits at characters that a file name may have.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _broken(source: Path, number: int, line: str, what: str, hint: str = _FORMATS) -> DataError:
    return DataError(f"{source}, line {number}: {what}: {_short(line.strip())}", hint)


# 'path label': mmaction, PySlowFast

_LAST_NUMBER = re.compile(r"(.*[^\s,])(\s*,\s*|\s+)(-?[0-9]{1,9})", re.DOTALL)
_SHAPES = (
    "a line is 'path label', or 'folder frames label' for folders of frames; videos of several classes are "
    "not supported"
)


def _list(found: _Found, source: Path, lines: _Lines) -> _Read:
    comma, frames = None, 0
    for number, line in lines:
        row = head = line.strip()
        heads: list[str] = []
        numbers: list[int] = []
        there: list[tuple[str, bool]] = []
        # Numbers are taken off the end until what is left exists: a path may contain blanks and numbers.
        by_comma = False
        while not there and len(heads) < 5 and (match := _LAST_NUMBER.fullmatch(head)):
            by_comma = "," in match[2] if not heads else by_comma  # the label's own separator
            head = match[1]
            heads.append(_unquoted(head))
            numbers.append(int(match[3]))
            there = _where(found, heads[-1])
        if not there and row.startswith("#"):
            continue  # a comment
        if not heads:
            if not found.rows and _is_header(row):
                continue
            what = "the video has no label" if _where(found, row) else "there is no class number at its end"
            raise _broken(source, number, row, what)
        comma = by_comma if comma is None else comma
        if comma != by_comma:
            raise _broken(
                source, number, row, f"a {'comma' if by_comma else 'blank'} before the label, unlike above"
            )
        depth = len(heads) if there else 1
        if depth == 1:
            shown = heads[1] if frames and len(heads) > 1 else None
            found.add([heads[0]], numbers[0], shown=shown)
        elif comma or not all(is_folder for _, is_folder in there) or depth > 3:
            raise _broken(source, number, row, f"{depth} labels for one video", _SHAPES)
        elif depth == 3:
            raise _broken(source, number, row, "'folder offset frames label' is not supported", _SHAPES)
        else:
            frames += 1
            found.add([heads[1]], numbers[0])
    as_csv = comma or (source.suffix.lower() == ".csv" and not frames)
    return ("PySlowFast CSV" if as_csv else "mmaction rawframe list" if frames else "mmaction list"), None


def _where(found: _Found, path: str) -> list[tuple[str, bool]]:
    inside = found.tree.inside(path)
    return [] if inside is None else found.tree.find(inside)


def _unquoted(path: str) -> str:
    return path[1:-1].replace('""', '"') if len(path) > 1 and path[0] == path[-1] == '"' else path


def _is_header(row: str) -> bool:
    return re.split(r"[\s,]+", row.casefold())[-1].strip('"') in {"label", "labels", "class", "label_id"}


# Kinetics: CVDF


def _cvdf(found: _Found, source: Path, text: str) -> _Read:
    # A comment's line stays, blank, so that line numbers hold.
    raw = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    rows = csv.reader(("\n" if line.startswith("#") else f"{line}\n" for line in raw), strict=True)
    header: list[str] = []
    table: list[tuple[int, dict[str, str]]] = []
    try:
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip().casefold() for cell in cells]
                if lacking := {"label", "youtube_id", "time_start", "time_end"} - set(header):
                    what = f"has no column {', '.join(sorted(lacking))} (the list of a test set?)"
                    raise DataError(f"{source} {what}", _FORMATS)
            elif len(cells) != len(header):
                what = f"{_count(len(cells), 'field')} for {len(header)} columns"
                raise _broken(source, rows.line_num, ",".join(cells), what)
            else:
                table.append((rows.line_num, dict(zip(header, map(str.strip, cells), strict=True))))
    except csv.Error as error:
        raise DataError(
            f"{source}, line {rows.line_num}: {error}", "is a quotation mark left open above?"
        ) from error
    table = _one_split(found, source, table)
    unlabelled = [row for _, row in table if not row["label"]]
    if unlabelled:
        found.notes.append(f"{_count(len(unlabelled), 'row')} of {len(table)} without a label left out")
    unknown = {row["label"] for _, row in table if row["label"] and found.names.find(row["label"]) is None}
    if unknown:
        raise found.names.unknown(unknown, "label")
    folders: dict[int, list[str]] = {}  # the videos may lie in class folders, too
    if found.labels is not None:
        for name, is_folder in _scan(found.root).items():
            if is_folder and (index := found.names.find(name)) is not None:
                folders.setdefault(index, []).append(name)
    for number, row in table:
        if not row["label"]:
            continue
        times = [re.fullmatch(r"([0-9]{1,6})(\.0*)?", row[key]) for key in ("time_start", "time_end")]
        if not re.fullmatch(r"[\w-]+", row["youtube_id"]) or None in times:
            raise _broken(source, number, ",".join(row.values()), "no youtube_id, time_start and time_end")
        start, end = (int(match[1]) for match in times if match)
        name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        label = found.names.find(row["label"])
        assert label is not None  # unknown ones have raised
        places = [name, *(f"{folder}/{name}" for folder in folders.get(label, ()))]
        found.add(places, label, as_is=False)
    return "CVDF CSV", None


def _one_split(
    found: _Found, source: Path, table: list[tuple[int, dict[str, str]]]
) -> list[tuple[int, dict[str, str]]]:
    """The rows of the split that the data folder is named after, where a table has several."""
    counts = Counter(row.get("split", "").casefold() for _, row in table)
    if len(counts) < 2:
        return table

    def short(split: str) -> str:
        return split.casefold()[:3]  # val, validate, validation; train; test

    here = [name for name in counts if name and short(name) == short(found.name)]
    if not here:
        raise DataError(
            f"{source} lists several splits ({', '.join(map(repr, sorted(counts)))}), and the folder "
            f"{found.name!r} is named like none",
            "keep the rows of one split",
        )
    found.notes.append(
        f"{sum(counts[n] for n in here)} of {len(table)} rows are of the split {' and '.join(here)}"
    )
    return [(number, row) for number, row in table if row.get("split", "").casefold() in here]


# JSON: Something-Something v2, mmaction


def _json(found: _Found, source: Path, text: str) -> _Read:
    data = _parsed(source, text)
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        what = "not a list of videos"
        if isinstance(data, dict) and data and all(str(v).isdecimal() for v in data.values()):
            what = "the list of classes, not of videos"
        raise DataError(f"{source} is {what}", _FORMATS)
    if not data:
        raise DataError(f"{source} is an empty list", _FORMATS)
    if "id" in data[0]:
        return _ssv2(found, source, data)
    if "filename" in data[0] or "frame_dir" in data[0]:
        for number, row in enumerate(data, 1):
            path, label = row.get("filename", row.get("frame_dir")), row.get("label")
            if isinstance(label, list) and len(label) == 1:
                label = label[0]
            if isinstance(label, list):
                raise DataError(f"{source}, entry {number}: {len(label)} labels for one video", _SHAPES)
            if not isinstance(path, str) or type(label) is not int or not path or "\0" in path:
                raise DataError(
                    f"{source}, entry {number}: no path with a class number: {_short(str(row))}", _FORMATS
                )
            found.add([path], label)
        return "mmaction JSON", None
    raise DataError(f"{source}: entries have neither an id nor a filename: {_short(str(data[0]))}", _FORMATS)


def _parsed(source: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{source}, line {error.lineno}: broken JSON: {error.msg}", _FORMATS) from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of 5000 digits
        raise DataError(f"{source}: the JSON cannot be read ({type(error).__name__})", _FORMATS) from error


def _ssv2(found: _Found, source: Path, data: Sequence[Mapping[str, Any]]) -> _Read:
    bare = [row for row in data if not isinstance(row.get("template"), str)]
    if bare:
        raise DataError(
            f"{source}: {len(bare)} of {_count(len(data), 'video')} without a template, which says the class "
            "(the list of the test set has none)",
            "give the JSON of the validation set",
        )
    classes = {row["template"]: row["template"].replace("[", "").replace("]", "") for row in data}
    own: tuple[str, ...] | None = None
    index: dict[str, int | None]
    if found.labels is not None:
        index = {template: found.names.find(name) for template, name in classes.items()}
        if unknown := [classes[template] for template, label in index.items() if label is None]:
            raise found.names.unknown(unknown, "template")
    else:
        own = _ssv2_labels(source)
        numbers = {name: i for i, name in enumerate(own)}
        index = {template: numbers.get(name) for template, name in classes.items()}
        if unknown := [classes[template] for template, label in index.items() if label is None]:
            what = f"{_count(len(unknown), 'template')} not in labels.json"
            raise DataError(f"{source}: {what}: {_quoted(unknown)}", "are both of the same release?")
    for number, row in enumerate(data, 1):
        name, label = row.get("id"), index[row["template"]]
        assert label is not None  # unknown ones have raised
        name = str(name) if type(name) is int else name
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise DataError(f"{source}, entry {number}: {_short(str(name))} is no id of a video", _FORMATS)
        found.add([name, f"20bn-something-something-v2/{name}"], label, as_is=False)
    return "SSv2 JSON", own


def _ssv2_labels(source: Path) -> tuple[str, ...]:
    names = ("labels.json", "something-something-v2-labels.json", "labels/labels.json")
    path = next((file for name in names if (file := source.parent / name).is_file()), None)
    if path is None:
        raise DataError(
            f"the checkpoint has no class names, and there is no labels.json beside {source}",
            "put Something-Something's labels.json there: it numbers the classes",
        )
    data = _parsed(path, _text(path))
    hint = 'expected is {"class name": "0", ...}'
    try:
        numbers = {int(number): name for name, number in data.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path} does not number the classes", hint) from error
    if sorted(numbers) != list(range(len(data))):
        raise DataError(f"{path} does not number {len(data)} classes from 0 to {len(data) - 1}", hint)
    return tuple(numbers[i] for i in range(len(data)))


# UCF101

_UCF_ROW = re.compile(r"(([^/]+)/v_[^/]+_g[0-9]+_c[0-9]+(?:\.\w+)?)(?:\s+([0-9]{1,9}))?")


def _ucf(found: _Found, source: Path, lines: _Lines) -> _Read | None:
    """None where the lines are another list: mmaction's of UCF101 has the same paths, counted from 0."""
    rows = [_UCF_ROW.fullmatch(line.strip()) for _, line in lines if not line.startswith("#")]
    matches = [match for match in rows if match]
    if not matches or len(matches) < len(rows):
        return None
    numbered = [int(match[3]) for match in matches if match[3]]
    if 0 in numbered:
        return None
    class_file = source.parent / "classInd.txt"
    if not class_file.is_file():
        why = "count from 0 or from 1" if numbered else "are called"
        raise DataError(
            f"{source} looks like a split of UCF101, but no classInd.txt says how its classes {why}",
            "put UCF101's classInd.txt beside it",
        )
    own = _class_ind(class_file)
    index = {name.casefold(): i for i, name in enumerate(own)}
    if strange := sorted({match[2] for match in matches if match[2].casefold() not in index}):
        what = f"{_count(len(strange), 'class')} not in {class_file.name}"
        raise DataError(f"{source}: {what}: {_quoted(strange)}", "are both of the same data set?")
    offsets = {int(match[3]) - index[match[2].casefold()] for match in matches if match[3]}
    if offsets == {0}:
        return None
    if offsets - {1}:
        raise DataError(
            f"{source}: its class numbers are not those of {class_file.name}",
            "are both of the same data set?",
        )
    label_of = {match[2]: index[match[2].casefold()] for match in matches}
    if found.labels is not None:
        by_name = {name: found.names.find(own[i]) for name, i in label_of.items()}
        if unknown := [own[label_of[name]] for name, label in by_name.items() if label is None]:
            raise found.names.unknown(unknown, "class name")
        label_of = {name: label for name, label in by_name.items() if label is not None}
    for match in matches:
        found.add([match[1]], label_of[match[2]])
    return "UCF101 split", own


def _class_ind(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for number, line in _lines(_text(path)):
        match = re.fullmatch(r"([0-9]{1,9})\s+(.*\S)", line.strip())
        if not match or int(match[1]) != len(names) + 1:
            raise _broken(path, number, line, f"expected is '{len(names) + 1} ClassName'", "restore it")
        names.append(match[2])
    return tuple(names)


# HMDB51

# File names may start with '#' here, so there are no comments; the number is 1 train, 2 test, 0 unused.
_HMDB_ROW = re.compile(r"([^/]*[^/\s])\s+([012])")


def _hmdb_class(source: Path) -> re.Match[str] | None:
    return re.fullmatch(r"(.+)_test_split([0-9]+)\.txt", source.name)


def _hmdb_files(found: _Found, source: Path) -> _Read:
    if source.is_dir():
        paths = sorted(source / name for name in _scan(source))
    else:
        paths = [Path(name) for name in sorted(glob.glob(str(source)))]  # noqa: PTH207  (absolute patterns)
    splits = {path: match[2] for path in paths if (match := _hmdb_class(path))}
    if not splits:
        raise DataError(
            f"{source} holds no split files of HMDB51 (CLASS_test_split1.txt)",
            "give one annotation file. " + _FORMATS,
        )
    first = min(splits.values(), key=int)
    if len(several := sorted(set(splits.values()), key=int)) > 1:
        found.notes.append(
            f"splits {', '.join(several)} are there, split {first} is used "
            f"(another: --annotations '{source}/*_test_split{several[1]}.txt')"
        )
    return _hmdb(found, [(path, _lines(_text(path))) for path, split in splits.items() if split == first])


def _hmdb(found: _Found, files: Sequence[tuple[Path, _Lines]]) -> _Read:
    classes = {path: match[1] for path, _ in files if (match := _hmdb_class(path))}
    if unknown := [name for name in classes.values() if found.names.find(name) is None]:
        raise found.names.unknown(unknown, "class name")
    for path, lines in files:
        label = found.names.find(classes[path])
        assert label is not None  # unknown ones have raised
        for number, line in lines:
            match = _HMDB_ROW.fullmatch(line.strip())
            if not match:
                raise _broken(path, number, line, "expected is 'name.avi' and 0, 1 or 2", _FORMATS)
            if match[2] == "2":
                found.add([f"{classes[path]}/{match[1]}", match[1]], label)
    return "HMDB51 split", None
