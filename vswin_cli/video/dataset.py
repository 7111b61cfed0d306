"""A data set on disk -> labelled videos: class folders, or videos and a file that lists them.

Everything is checked here, before a video is opened: what is listed but missing, labels that the model does
not have, names that fit no class. The format of an annotation file is told by its content. Class names are
matched to the checkpoint's by name, never by sorted order: torchvision's Kinetics folders (blanks to '_',
quotes and brackets gone) sort differently from the labels. Lists come from strangers: no path of theirs
leads out of the data set's folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vswin_cli.config import MAX_CLASSES
from vswin_cli.errors import DataError
from vswin_cli.video.annotations import annotated
from vswin_cli.video.listing import (
    SPLITS,
    Dataset,
    Found,
    Item,
    OpenNames,
    Part,
    counted,
    is_frames,
    normalise,
    quoted,
    scan,
    some,
    stem,
)

_BESIDE_SPLITS = {"annotations", "labels", "replacement"}


__all__ = [
    "Classes",
    "Dataset",
    "Item",
    "Splits",
    "discover_classes",
    "find_dataset",
    "find_splits",
    "normalise",
]


def find_dataset(
    root: Path,
    labels: Sequence[str] | None,
    num_classes: int,
    annotations: Path | None = None,
    *,
    part: Part = "test",
    skip_missing: bool = False,
    whose: str = "the checkpoint's",
) -> Dataset:
    """The labelled videos below ``root``: class folders, or those that ``annotations`` lists.

    ``labels`` are the checkpoint's class names in index order, None where it has only numbers.
    ``annotations`` is a file, a folder of HMDB51's split files, or a pattern for those. With
    ``skip_missing`` listed files that do not exist are a note and no error. ``part`` is what to read of split
    files that name both (HMDB51's); ``whose`` the labels are, for error messages. Raises DataError.
    """
    root = Path(root)
    scan(root)  # says what is wrong with the folder
    found = Found(root, labels, num_classes, part, whose)
    if annotations is None:
        layout = _class_folders(found)
        return found.dataset(f"class folders of {root}", layout, None, False)
    layout, own = annotated(found, Path(annotations))
    return found.dataset(str(annotations), layout, own, skip_missing)


def discover_classes(root: Path, annotations: Path | None = None) -> Classes:
    """The classes that a training set speaks of: its folders' names, sorted, or those of its list.

    Raises DataError if there are none.
    """
    root = Path(root)
    if annotations is None:
        folders = sorted(n for n, is_folder in scan(root).items() if is_folder and not n.startswith("."))
        _refuse_splits(root, folders)
        if not folders:
            raise DataError(f"{root} holds no class folders", "expected is FOLDER/CLASS/VIDEO.mp4")
        unique = OpenNames()
        for name in folders:  # folders of one name, written differently, are one class
            unique.find(name)
        return Classes(tuple(unique.found), True)
    found = Found(root, None, MAX_CLASSES, "train")
    found.names = collected = OpenNames()
    _, own = annotated(found, Path(annotations))
    if own is not None:
        return Classes(own, True)
    if collected.found:
        return Classes(tuple(sorted(collected.found)), True)
    numbers = [n for n in found.items.values() if 0 <= n < MAX_CLASSES]
    if not numbers:
        raise DataError(f"{annotations}: none of its videos is in {root}", "check --data")
    return Classes(tuple(f"class {i}" for i in range(max(numbers) + 1)), False)


@dataclass(frozen=True)
class Classes:
    """Class names in index order; ``named`` is false where the data numbers them and we made names up."""

    labels: tuple[str, ...]
    named: bool


@dataclass(frozen=True)
class Splits:
    """What a training run reads. ``same_classes``: those of the start's checkpoint, in its order."""

    train: Dataset
    val: Dataset
    labels: tuple[str, ...]
    same_classes: bool
    notes: tuple[str, ...] = ()


def find_splits(
    root: Path,
    train_list: Path | None = None,
    val_list: Path | None = None,
    *,
    names: Sequence[str] | None = None,
    known: Sequence[str] | None = None,
    skip_missing: bool = False,
) -> Splits:
    """The training and the validation set of a folder that holds train/ and val/, or of two lists.

    ``names`` name the classes of lists that only number them; ``known`` are the class names of the
    checkpoint that training starts from: where the data has the same ones, their order is kept. Lists are
    looked up in the split's own folder first, then in ``root``. Raises DataError.
    """
    root = Path(root)
    entries = {name.casefold(): name for name, is_folder in scan(root).items() if is_folder}
    if (train_list is None) != (val_list is None):
        raise DataError(
            "a list of only one of training and validation videos", "give both --train-list and --val-list"
        )
    train_root, val_root = (
        next((root / entries[name] for name in wanted if name in entries), None)
        for wanted in (_TRAIN, _VALIDATION)
    )
    if train_list is None or val_list is None:
        if train_root is None or val_root is None:
            lacking = "/".join(w[0] for w, r in ((_TRAIN, train_root), (_VALIDATION, val_root)) if r is None)
            raise DataError(
                f"{root} has no folder {lacking} (it has {some(sorted(entries)) or 'no folders'})",
                "expected is FOLDER/train/CLASS/VIDEO.mp4 and the same in FOLDER/val; or give --train-list "
                "and --val-list",
            )
        roots = (train_root, val_root)
    else:
        roots = (_root_of(train_list, train_root, root), _root_of(val_list, val_root, root))
    classes = discover_classes(roots[0], train_list)
    labels, same = classes.labels, False
    if not classes.named and names is not None:
        if len(names) < len(labels):
            raise DataError(
                f"{train_list} numbers {len(labels)} classes, but only {len(names)} names are given",
                "a line of --labels is the name of a class, the first that of class 0",
            )
        labels = tuple(names)
    mine, theirs = list(map(normalise, labels)), list(map(normalise, known or ()))
    # A list's numbers follow its own order; where folders or lists name the classes, any order will do.
    if mine == theirs or (classes.named and sorted(mine) == sorted(theirs)):
        labels, same = tuple(known or ()), True
    notes: tuple[str, ...] = ()
    if not classes.named and names is None and len(theirs) == len(labels):
        notes = (
            f"the list only numbers its {len(labels)} classes; if they are those of the checkpoint, "
            "name them with --labels, and its classifier is kept",
        )
    count = len(labels)
    train = find_dataset(roots[0], labels, count, train_list, part="train", skip_missing=skip_missing)
    val = find_dataset(
        roots[1], labels, count, val_list, skip_missing=skip_missing, whose="the training set's"
    )
    return Splits(train, val, labels, same, notes)


_TRAIN = ("train", "training")
_VALIDATION = ("val", "validation", "valid", "validate", "test", "testing")


def _root_of(listing: Path, split: Path | None, root: Path) -> Path:
    """The folder that a list's paths are relative to: the split's own, if a video of it is there."""
    if split is not None:
        found = Found(split, None, MAX_CLASSES, "train")
        found.names = OpenNames()
        annotated(found, listing)
        if found.items:
            return split
    return root


# Class folders


def _class_folders(found: Found) -> str:
    root = found.root
    entries = {name: is_folder for name, is_folder in scan(root).items() if not name.startswith(".")}
    folders = sorted(name for name, is_folder in entries.items() if is_folder)
    loose = [name for name, is_folder in entries.items() if not is_folder and stem(name) != name]
    if not folders:
        if loose:
            raise DataError(
                f"{root} holds {counted(len(loose), 'video')} but no class folders",
                "give the file that says their classes with --annotations",
            )
        what = "is a folder of frames, not a data set" if is_frames(root) else "holds no videos"
        raise DataError(f"{root} {what}", "expected is FOLDER/CLASS/VIDEO.mp4")
    label_of = _labels_of_folders(found, folders)
    if loose:
        found.notes.append(f"{counted(len(loose), 'video')} beside the class folders left out: {some(loose)}")
    uses = Counter(label_of.values())
    if twice := [name for name in folders if uses[label_of[name]] > 1]:
        found.notes.append(f"several folders for one class: {quoted(twice)}")
    nested, ignored, empty = [], [], []
    for folder in folders:
        before = len(found.items)
        for name, is_folder in scan(root / folder).items():
            item = f"{folder}/{name}"
            if name.startswith("."):
                continue
            if is_folder and not is_frames(root / item):
                nested.append(item)
            elif is_folder or stem(name) != name:
                found.put(item, is_folder, label_of[folder])
            else:
                ignored.append(item)
        if len(found.items) == before:
            empty.append(folder)
    if nested:
        raise DataError(
            f"{counted(len(nested), 'folder')} inside class folders hold no numbered pictures: "
            f"{quoted(sorted(nested))}",
            "expected is FOLDER/CLASS/VIDEO.mp4, or FOLDER/CLASS/VIDEO/img_00001.jpg",
        )
    if empty:
        found.notes.append(f"{counted(len(empty), 'class folder')} without videos: {quoted(empty)}")
    if ignored:
        first = quoted(sorted(ignored))
        found.notes.append(f"{counted(len(ignored), 'file')} that are no videos by their suffix: {first}")
    return "class folders"


def _labels_of_folders(found: Found, folders: Sequence[str]) -> dict[str, int]:
    label_of: dict[str, int | None]
    if found.labels is None:
        numbered = re.compile("[0-9]{1,9}")
        label_of = {name: int(name) if numbered.fullmatch(name) else None for name in folders}
    else:
        label_of = {name: found.names.find(name) for name in folders}
    unknown = [name for name, label in label_of.items() if label is None]
    if len(unknown) == len(folders):
        _refuse_splits(found.root, folders)
    if any(is_frames(found.root / name) for name in unknown[:3]):
        raise DataError(
            f"{found.root} holds folders of frames, not class folders: {quoted(unknown)}",
            "give the file that says their classes with --annotations",
        )
    if unknown and found.labels is None:
        raise DataError(
            f"the checkpoint has no class names, and {len(unknown)} of {counted(len(folders), 'folder')} "
            f"{'is' if len(unknown) == 1 else 'are'} not named by number: {quoted(unknown)}",
            f"name them 0 to {found.num_classes - 1}, or list the videos with --annotations",
        )
    if unknown:
        raise found.names.unknown(unknown, "folder")
    return {name: label for name, label in label_of.items() if label is not None}


def _refuse_splits(root: Path, folders: Sequence[str]) -> None:
    """Raises DataError where the folders are train/ and val/, not classes."""
    splits = [name for name in folders if name.casefold() in SPLITS]
    if splits and all(name.casefold() in SPLITS | _BESIDE_SPLITS for name in folders):
        best = next((name for name in splits if name.casefold().startswith("val")), splits[0])
        raise DataError(
            f"{root} holds the parts of a data set: {some(folders)}", f"name one: --data {root / best}"
        )
