"""Files that list labelled videos, in the formats of FACTS 4; which one it is, is told by the content."""

from __future__ import annotations

import csv
import glob
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vswin_cli.errors import DataError
from vswin_cli.video.listing import (
    Found,
    counted,
    quoted,
    scan,
    short,
)

_FORMATS = (
    "known: CVDF's CSV (label,youtube_id,time_start,time_end), lists of 'path label' (mmaction, PySlowFast), "
    "Something-Something's JSON, the split files of UCF101 and HMDB51"
)
_MAX_BYTES = 2**30  # of an annotation file
_MAX_LINE = 10_000


# Annotation files

_Lines = list[tuple[int, str]]  # number and text of each line that is not blank
_Read = tuple[str, tuple[str, ...] | None]  # layout, the data set's own labels


def annotated(found: Found, source: Path) -> _Read:
    try:
        several = source.is_dir() or (glob.has_magic(str(source)) and not source.exists())
    except OSError as error:
        raise DataError(f"{short(str(source))}: {error.strerror}", "check the path") from error
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
    return DataError(f"{source}, line {number}: {what}: {short(line.strip())}", hint)


# 'path label': mmaction, PySlowFast

_LAST_NUMBER = re.compile(r"(.*[^\s,])(\s*,\s*|\s+)(-?[0-9]{1,9})", re.DOTALL)
_SHAPES = (
    "a line is 'path label', or 'folder frames label' for folders of frames; videos of several classes are "
    "not supported"
)


def _list(found: Found, source: Path, lines: _Lines) -> _Read:
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


def _where(found: Found, path: str) -> list[tuple[str, bool]]:
    inside = found.tree.inside(path)
    return [] if inside is None else found.tree.find(inside)


def _unquoted(path: str) -> str:
    return path[1:-1].replace('""', '"') if len(path) > 1 and path[0] == path[-1] == '"' else path


def _is_header(row: str) -> bool:
    return re.split(r"[\s,]+", row.casefold())[-1].strip('"') in {"label", "labels", "class", "label_id"}


# Kinetics: CVDF


def _cvdf(found: Found, source: Path, text: str) -> _Read:
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
                what = f"{counted(len(cells), 'field')} for {len(header)} columns"
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
        found.notes.append(f"{counted(len(unlabelled), 'row')} of {len(table)} without a label left out")
    unknown = {row["label"] for _, row in table if row["label"] and found.names.find(row["label"]) is None}
    if unknown:
        raise found.names.unknown(unknown, "label")
    folders: dict[int, list[str]] = {}  # the videos may lie in class folders, too
    if found.labels is not None:
        for name, is_folder in scan(found.root).items():
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
    found: Found, source: Path, table: list[tuple[int, dict[str, str]]]
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


def _json(found: Found, source: Path, text: str) -> _Read:
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
                    f"{source}, entry {number}: no path with a class number: {short(str(row))}", _FORMATS
                )
            found.add([path], label)
        return "mmaction JSON", None
    raise DataError(f"{source}: entries have neither an id nor a filename: {short(str(data[0]))}", _FORMATS)


def _parsed(source: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{source}, line {error.lineno}: broken JSON: {error.msg}", _FORMATS) from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of 5000 digits
        raise DataError(f"{source}: the JSON cannot be read ({type(error).__name__})", _FORMATS) from error


def _ssv2(found: Found, source: Path, data: Sequence[Mapping[str, Any]]) -> _Read:
    bare = [row for row in data if not isinstance(row.get("template"), str)]
    if bare:
        raise DataError(
            f"{source}: {len(bare)} of {counted(len(data), 'video')} without a template, "
            "which says the class (the list of the test set has none)",
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
            what = f"{counted(len(unknown), 'template')} not in labels.json"
            raise DataError(f"{source}: {what}: {quoted(unknown)}", "are both of the same release?")
    for number, row in enumerate(data, 1):
        name, label = row.get("id"), index[row["template"]]
        assert label is not None  # unknown ones have raised
        name = str(name) if type(name) is int else name
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise DataError(f"{source}, entry {number}: {short(str(name))} is no id of a video", _FORMATS)
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


def _ucf(found: Found, source: Path, lines: _Lines) -> _Read | None:
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
        what = f"{counted(len(strange), 'class')} not in {class_file.name}"
        raise DataError(f"{source}: {what}: {quoted(strange)}", "are both of the same data set?")
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


def _hmdb_files(found: Found, source: Path) -> _Read:
    if source.is_dir():
        paths = sorted(source / name for name in scan(source))
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


def _hmdb(found: Found, files: Sequence[tuple[Path, _Lines]]) -> _Read:
    classes = {path: match[1] for path, _ in files if (match := _hmdb_class(path))}
    if unknown := [name for name in classes.values() if found.names.find(name) is None]:
        raise found.names.unknown(unknown, "class name")
    wanted = "1" if found.part == "train" else "2"
    for path, lines in files:
        label = found.names.find(classes[path])
        assert label is not None  # unknown ones have raised
        for number, line in lines:
            match = _HMDB_ROW.fullmatch(line.strip())
            if not match:
                raise _broken(path, number, line, "expected is 'name.avi' and 0, 1 or 2", _FORMATS)
            if match[2] == wanted:
                found.add([f"{classes[path]}/{match[1]}", match[1]], label)
    return "HMDB51 split", None
