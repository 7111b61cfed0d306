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
from pathlib import Path

from vswin_cli.errors import DataError
from vswin_cli.video.annotations import annotated
from vswin_cli.video.listing import (
    SPLITS,
    Dataset,
    Found,
    Item,
    counted,
    is_frames,
    normalise,
    quoted,
    scan,
    some,
    stem,
)

_BESIDE_SPLITS = {"annotations", "labels", "replacement"}


__all__ = ["Dataset", "Item", "discover_classes", "find_dataset", "normalise"]


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
    scan(root)  # says what is wrong with the folder
    found = Found(root, labels, num_classes)
    if annotations is None:
        layout = _class_folders(found)
        return found.dataset(f"class folders of {root}", layout, None, False)
    layout, own = annotated(found, Path(annotations))
    return found.dataset(str(annotations), layout, own, skip_missing)


def discover_classes(root: Path) -> tuple[str, ...]:
    """The names of the class folders below ``root`` as they are, sorted; DataError if there are none."""
    root = Path(root)
    names = sorted(n for n, is_folder in scan(root).items() if is_folder and not n.startswith("."))
    _refuse_splits(root, names)
    if not names:
        raise DataError(f"{root} holds no class folders", "expected is FOLDER/CLASS/VIDEO.mp4")
    return tuple(names)


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
