"""Data sets on disk: every layout, every error before decoding, and folders of frames as videos."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import clips
from vswin_cli.config import PROTOCOLS
from vswin_cli.errors import ContainerError, DataError, DecodeError
from vswin_cli.labels import label_sets
from vswin_cli.video.containers import list_pictures, picture_size
from vswin_cli.video.dataset import Dataset, discover_classes, find_dataset, normalise
from vswin_cli.video.decode import read
from vswin_cli.video.views import prepare

K400 = label_sets()["kinetics400"]
SSV2 = label_sets()["something-something-v2"]
LABELS = ("brush hair", "cartwheel", "high kick")


def touch(root: Path, *names: str) -> Path:
    """Empty files below a folder; nothing is decoded when a data set is looked for."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def frames(root: Path, *names: str) -> Path:
    """Folders of frames."""
    return touch(root, *(f"{name}/img_{i:05d}.jpg" for name in names for i in (1, 2)))


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def pairs(dataset: Dataset) -> dict[str, int]:
    """id -> label, having seen that items are sorted, unique and where they say."""
    ids = [item.id for item in dataset.items]
    assert ids == sorted(set(ids))
    assert all(item.path == dataset.root / item.id and item.path.exists() for item in dataset.items)
    return {item.id: item.label for item in dataset.items}


def listed(root: Path, *lines: str, name: str = "list.txt", **options: Any) -> Dataset:
    """The data set that a list beside the root gives, for a checkpoint with three classes."""
    source = write(root.parent / name, *lines)
    return find_dataset(root, LABELS, 3, source, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


# Names


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("Brush_Hair", "brush hair"),
        ("massaging person's head", "massaging_persons_head"),
        ("skiing (not slalom or crosscountry)", "skiing_not_slalom_or_crosscountry"),
        ("  a   b ", "A_B"),
        ("ﬁxing hair", "fixing hair"),  # a ligature
        ("cafe\u0301", "CAFÉ"),  # e and an accent; one letter
        ("straße", "STRASSE"),
        ("Putting something, that", "putting something that"),
    ],
)
def test_names_that_mean_the_same(name: str, same: str) -> None:
    assert normalise(name) == normalise(same)


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing(name: str) -> None:
    assert normalise(normalise(name)) == normalise(name)


@given(st.text(max_size=20), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_unicode_form_and_case_do_not_matter(name: str, form: Any) -> None:
    assert normalise(unicodedata.normalize(form, name)) == normalise(name)
    assert normalise(name.casefold()) == normalise(name)


@given(st.sampled_from([label for labels in label_sets().values() for label in labels]), st.data())
def test_shipped_labels_survive_what_copies_do_to_them(label: str, data: st.DataObject) -> None:
    changed = "".join(
        data.draw(
            st.sampled_from([c, c.upper(), "_" if c == " " else c, c if c.isalnum() or c == " " else ""])
        )
        for c in label
    )
    assert normalise(changed) == normalise(label)


@pytest.mark.parametrize("labels", label_sets().values(), ids=label_sets())
def test_no_two_shipped_labels_mean_the_same(labels: tuple[str, ...]) -> None:
    assert len({normalise(label).replace(" ", "") for label in labels}) == len(labels)


# Class folders


def sanitised(label: str) -> str:
    """What torchvision's Kinetics makes of a label to name its folder."""
    return label.replace(" ", "_").replace("'", "").replace("(", "").replace(")", "")


@pytest.mark.parametrize("name", ["kinetics400", "kinetics600", "kinetics700"])
def test_torchvision_folders_get_the_labels_indices(root: Path, name: str) -> None:
    labels = label_sets()[name]
    touch(root, *(f"{sanitised(label)}/v{i}.mp4" for i, label in enumerate(labels)))
    dataset = find_dataset(root, labels, len(labels))
    assert dataset.layout == "class folders"
    assert len(dataset.items) == len(labels)
    assert all(item.path.name == f"v{item.label}.mp4" for item in dataset.items)
    # Sorted order would be wrong for some of them: that is why names are matched.
    assert sorted(map(sanitised, labels)) != [sanitised(label) for label in labels]


def test_the_two_skiing_classes_of_kinetics_400_are_not_swapped(root: Path) -> None:
    touch(root, "skiing_not_slalom_or_crosscountry/a.mp4", "skiing_crosscountry/b.mp4")
    found = pairs(find_dataset(root, K400, 400))
    other = K400.index("skiing (not slalom or crosscountry)")
    assert found == {
        "skiing_crosscountry/b.mp4": K400.index("skiing crosscountry"),
        "skiing_not_slalom_or_crosscountry/a.mp4": other,
    }
    # In the order of labels the bracket comes first, in the order of folders it comes second.
    assert other < K400.index("skiing crosscountry")


def test_what_class_folders_hold_is_taken_or_noted(root: Path) -> None:
    touch(root, "brush_hair/b.MP4", "brush_hair/a b.webm", "brush_hair/.hidden.mp4", "brush_hair/notes.txt")
    touch(root, "Brush Hair/c.avi", "loose.mp4", ".git/x.mp4", "readme.md")
    (root / "cartwheel").mkdir()
    dataset = find_dataset(root, LABELS, 3)
    assert pairs(dataset) == {"Brush Hair/c.avi": 0, "brush_hair/a b.webm": 0, "brush_hair/b.MP4": 0}
    notes = "\n".join(dataset.notes)
    assert "several folders for one class: 'Brush Hair', 'brush_hair'" in notes
    assert "1 class folder without videos: 'cartwheel'" in notes
    assert "1 file that are no videos by their suffix: 'brush_hair/notes.txt'" in notes
    assert "1 video beside the class folders left out: loose.mp4" in notes


def test_links_to_videos_and_folders_are_followed(root: Path, tmp_path: Path) -> None:
    store = touch(tmp_path / "store", "a.mp4", "kicks/b.mp4")
    (root / "cartwheel").mkdir()
    (root / "cartwheel/a.mp4").symlink_to(store / "a.mp4")
    (root / "cartwheel/gone.mp4").symlink_to(store / "gone.mp4")
    (root / "high_kick").symlink_to(store / "kicks", target_is_directory=True)
    assert pairs(find_dataset(root, LABELS, 3)) == {"cartwheel/a.mp4": 1, "high_kick/b.mp4": 2}


def test_numbered_folders_serve_a_checkpoint_without_names(root: Path) -> None:
    touch(root, "0/a.mp4", "02/b.mp4")
    assert pairs(find_dataset(root, None, 3)) == {"0/a.mp4": 0, "02/b.mp4": 2}
    with pytest.raises(DataError, match=r"1 label of 2 outside 0\.\.1: '02/b\.mp4' has 2"):
        find_dataset(root, None, 2)
    touch(root, "jumping/c.mp4")
    with pytest.raises(DataError, match="1 of 3 folders is not named by number: 'jumping'"):
        find_dataset(root, None, 3)


def test_joined_words_fit_where_no_other_label_reads_the_same(root: Path) -> None:
    touch(root, "BrushHair/a.mp4", "HighKick/b.mp4")
    assert pairs(find_dataset(root, LABELS, 3)) == {"BrushHair/a.mp4": 0, "HighKick/b.mp4": 2}
    with pytest.raises(DataError, match="'HighKick'"):
        find_dataset(root, ("brush hair", "high kick", "hig hkick"), 3)


def test_unknown_folders_are_an_error_with_the_nearest_names(root: Path) -> None:
    touch(root, "abseiling/a.mp4", "skiing_crosscuntry/b.mp4", "qqq/c.mp4")
    with pytest.raises(DataError, match="2 folders fit none of the checkpoint's 400 classes") as caught:
        find_dataset(root, K400, 400)
    assert "'skiing_crosscuntry' (nearest: 'skiing crosscountry'" in caught.value.message
    assert "'qqq' (none is near)" in caught.value.message


def test_many_unknown_folders_are_counted_and_the_first_shown(root: Path) -> None:
    touch(root, *(f"strange{i}/a.mp4" for i in range(9)))
    with pytest.raises(DataError, match=r"9 folders fit none .*'strange4' .* and 4 more"):
        find_dataset(root, LABELS, 3)


def test_labels_that_mean_the_same_are_an_error(root: Path) -> None:
    touch(root, "walk/a.mp4")
    with pytest.raises(DataError, match="'Walk!' and 'walk' cannot be told apart"):
        find_dataset(root, ("Walk!", "run", "walk"), 3)


@pytest.mark.parametrize("labels", [LABELS, None])
def test_the_folder_above_the_splits_is_an_error_that_names_one(root: Path, labels: Any) -> None:
    touch(root, "train/brush_hair/a.mp4", "val/brush_hair/b.mp4", "annotations/val.csv")
    with pytest.raises(DataError, match="parts of a data set: annotations, train, val") as caught:
        find_dataset(root, labels, 3)
    assert caught.value.hint == f"name one: --data {root / 'val'}"
    assert pairs(find_dataset(root / "val", LABELS, 3)) == {"brush_hair/b.mp4": 0}


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        (["a.mp4", "b.mp4"], "holds 2 videos but no class folders", "--annotations"),
        ([], "holds no videos", "FOLDER/CLASS/VIDEO.mp4"),
        (["brush_hair/notes.txt"], "there is no video in it", "'brush_hair/notes.txt'"),
        (["img_00001.jpg", "img_00002.jpg"], "is a folder of frames", "FOLDER/CLASS/VIDEO.mp4"),
        (["clip1/img_00001.jpg", "clip2/img_00001.jpg"], "folders of frames, not class folders", "--annot"),
        (["brush_hair/deep/a.mp4"], "1 folder inside class folders hold no numbered pictures", "CLASS/VIDEO"),
        (["brush_hair/v/flow_x_00001.jpg"], "1 folder inside class folders", "img_00001.jpg"),
    ],
)
def test_folders_that_are_no_class_folders(root: Path, names: list[str], message: str, hint: str) -> None:
    touch(root, *names)
    with pytest.raises(DataError, match=message) as caught:
        find_dataset(root, LABELS, 3)
    assert hint in str(caught.value.hint)


def test_roots_that_are_none(root: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        find_dataset(root / "none", LABELS, 3)
    with pytest.raises(DataError, match="is a file, not the folder"):
        find_dataset(touch(root, "f.mp4") / "f.mp4", LABELS, 3)
    with pytest.raises(DataError, match="cannot be listed"):
        find_dataset(root / ("x" * 5000), LABELS, 3)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may list any folder")
def test_a_class_folder_that_cannot_be_listed_is_an_error(root: Path) -> None:
    touch(root, "cartwheel/a.mp4")
    (root / "cartwheel").chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be listed"):
            find_dataset(root, LABELS, 3)
    finally:
        (root / "cartwheel").chmod(0o700)


def test_classes_are_discovered_as_they_are(root: Path) -> None:
    touch(root, "b c/1.mp4", "A_d/1.mp4", ".x/1.mp4", "list.txt")
    assert discover_classes(root).labels == ("A_d", "b c")
    with pytest.raises(DataError, match="no class folders"):
        discover_classes(root / "b c")
    touch(root.parent / "both", "train/a/1.mp4", "val/a/1.mp4")
    with pytest.raises(DataError, match="parts of a data set"):
        discover_classes(root.parent / "both")


# 'path label': mmaction, PySlowFast


def test_lines_of_path_and_label(root: Path) -> None:
    touch(root, "a.mp4", "my clips/the end 2.mp4", "c/b.avi", "3.mp4")
    dataset = listed(
        root, "# a comment", "a.mp4 2", "", "my clips/the end 2.mp4 0", "  c/b.avi\t1  ", "3.mp4 1"
    )
    assert dataset.layout == "mmaction list"
    assert dataset.notes == ()
    assert pairs(dataset) == {"3.mp4": 1, "a.mp4": 2, "c/b.avi": 1, "my clips/the end 2.mp4": 0}


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_byte_order_mark_and_line_endings(root: Path, ending: str) -> None:
    touch(root, "ñ.mp4", "b.mp4")
    source = root.parent / "list.txt"
    source.write_bytes(f"\ufeffñ.mp4 1{ending}{ending}b.mp4 2{ending}".encode())
    assert pairs(find_dataset(root, None, 3, source)) == {"b.mp4": 2, "ñ.mp4": 1}


def test_comma_separated_lines(root: Path) -> None:
    touch(root, "a.mp4", "b, c.mp4", 'd "e", f.mp4', "g 1.mp4")
    lines = ["path,label", "a.mp4,2", "b, c.mp4,1", '"d ""e"", f.mp4",0', "g 1.mp4, 2"]
    dataset = listed(root, *lines, name="val.csv")
    assert dataset.layout == "PySlowFast CSV"
    assert pairs(dataset) == {"a.mp4": 2, "b, c.mp4": 1, 'd "e", f.mp4': 0, "g 1.mp4": 2}
    assert listed(root, "a.mp4 2", name="val.csv").layout == "PySlowFast CSV"
    assert listed(root, "a.mp4,2", name="val.txt").layout == "PySlowFast CSV"


def test_paths_that_end_in_numbers(root: Path) -> None:
    touch(root, "clip 7/video 12.mp4")
    (root / "clip 7/take 3").write_bytes(b"")  # no suffix, and a number at its end
    dataset = listed(root, "clip 7/video 12.mp4 1", "clip 7/take 3 2")
    assert pairs(dataset) == {"clip 7/take 3": 2, "clip 7/video 12.mp4": 1}


def test_a_suffix_may_differ_or_be_absent(root: Path) -> None:
    touch(root, "c/a.mp4", "c/b.webm", "c/d.MP4", "c/e.f.mp4")
    dataset = listed(root, "c/a 0", "c/b.avi 1", "c/d.mp4 2", "c/e.f 0")
    assert pairs(dataset) == {"c/a.mp4": 0, "c/b.webm": 1, "c/d.MP4": 2, "c/e.f.mp4": 0}
    assert dataset.notes == ("4 videos found with another suffix, first 'c/a' is 'c/a.mp4'",)
    touch(root, "c/a.mkv")
    with pytest.raises(DataError, match=r"1 name could mean several files: 'c/a': c/a\.mkv, c/a\.mp4"):
        listed(root, "c/a 0", "c/b.webm 1")


def test_a_name_that_starts_with_the_comment_sign_is_a_name_where_it_exists(root: Path) -> None:
    touch(root, "#1.mp4")
    assert pairs(listed(root, "#1.mp4 2", "#2.mp4 2")) == {"#1.mp4": 2}


def test_frame_folders_in_lists(root: Path) -> None:
    frames(root, "c/v1", "c/v 2", "c/v3.avi")
    dataset = listed(root, "c/v1 120 0", "c/v 2 75 1", "c/v3.avi 9 2")
    assert dataset.layout == "mmaction rawframe list, frame folders"
    assert pairs(dataset) == {"c/v 2": 1, "c/v1": 0, "c/v3.avi": 2}
    assert listed(root, "c/v1.mp4 0").layout == "mmaction list, frame folders"
    with pytest.raises(DataError, match="line 1: 'folder offset frames label' is not supported"):
        listed(root, "c/v1 5 120 0")
    with pytest.raises(DataError, match=r"1 of 2 listed videos not found .* 'c/v4'"):
        listed(root, "c/v1 120 0", "c/v4 120 1")
    (root / "c/empty").mkdir()
    with pytest.raises(DataError, match=r"1 folder where a video should be .* 'c/empty'"):
        listed(root, "c/v1 120 0", "c/empty 120 1")


@pytest.mark.parametrize("line", ["a.mp4 1 2", "a.mp4 0,1", "a.mp4,0,1", "a.mp4 0 1 2", "a.mp4 0 1 2 0"])
def test_several_labels_are_refused(root: Path, line: str) -> None:
    touch(root, "a.mp4", "b.mp4")
    separator = "," if line.rfind(",") > line.rfind(" ") else " "
    with pytest.raises(DataError, match=r"list\.txt, line 2: [234] labels for one video") as caught:
        listed(root, f"b.mp4{separator}1", line)
    assert "not supported" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.mp4 1", "b.mp4 walking"], r"line 2: there is no class number at its end: 'b\.mp4 walking'"),
        (["a.mp4"], "line 1: the video has no label"),
        (["a.mp4 1", "b.mp4,1"], "line 2: a comma before the label, unlike above"),
        (["a.mp4 1", "x" * 20_000], "line 2: 20000 characters in one line"),
        (["a.mp4 1", "b.mp4 1.5"], "line 2: there is no class number"),
        (["a.mp4 1", "b.mp4 ٣"], "line 2: there is no class number"),
        (["a.mp4 1", "b.mp4 99999999999999999999"], "line 2: there is no class number"),
        (["a.mp4 1", "b.mp4 \x1b[31m"], r"line 2: .*'b\.mp4 \\x1b\[31m'"),
        ([], "is empty"),
        (["# nothing", "#"], "there is no video in it"),
        (["path,label"], "there is no video in it"),
        (["a.mp4 3", "b.mp4 -1"], r"2 labels of 2 outside 0\.\.2: 'a\.mp4' has 3, 'b\.mp4' has -1"),
        (["a.mp4 1", "a.mp4 2", "b.mp4 1"], r"1 video listed with different labels: 'a\.mp4' \(1 and 2\)"),
        (["original_vido_id video_id frame_id path labels", 'v 0 0 v/1.jpg ""'], "lists single frames"),
    ],
)
def test_broken_lists(root: Path, lines: list[str], message: str) -> None:
    touch(root, "a.mp4", "b.mp4")
    with pytest.raises(DataError, match=message) as caught:
        listed(root, *lines)
    assert caught.value.hint
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    ("labels", "hint"), [((1, 2, 3), "count from 1"), ((-1, -1, -1), "test set"), ((0, 2, 9), "was trained")]
)
def test_hints_for_labels_out_of_range(root: Path, labels: tuple[int, ...], hint: str) -> None:
    touch(root, "a.mp4", "b.mp4", "c.mp4")
    with pytest.raises(DataError) as caught:
        listed(root, *(f"{name}.mp4 {label}" for name, label in zip("abc", labels, strict=True)))
    assert hint in str(caught.value.hint)


def test_missing_videos_are_counted_and_the_first_five_shown(root: Path) -> None:
    touch(root, "v1.mp4")
    lines = [f"v{i}.mp4 1" for i in range(9)]
    with pytest.raises(DataError, match="8 of 9 listed videos not found") as caught:
        listed(root, *lines)
    assert caught.value.message.endswith("'v0.mp4', 'v2.mp4', 'v3.mp4', 'v4.mp4', 'v5.mp4', ...")
    dataset = listed(root, *lines, skip_missing=True)
    assert pairs(dataset) == {"v1.mp4": 1}
    assert dataset.notes[0].startswith("8 of 9 listed videos not found and left out: 'v0.mp4'")
    with pytest.raises(DataError, match="1 of 1 listed video not found"):
        listed(root, "none.mp4 1", skip_missing=True)  # nothing would be left


def test_lists_relative_to_the_folder_above_are_told_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(root, "a.mp4")
    with pytest.raises(DataError) as caught:
        listed(root, "data/a.mp4 1")
    assert caught.value.hint == f"the list's paths start with data/: give --data {root.parent}"
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match="1 of 1") as caught:
        find_dataset(Path(), LABELS, 3, root.parent / "list.txt")
    assert "paths start with data/" in str(caught.value.hint)


def test_a_video_listed_twice_is_used_once(root: Path) -> None:
    touch(root, "a.mp4", "b.mp4")
    dataset = listed(root, "a.mp4 1", "./a.mp4 1", "b.mp4 1", "x/../b.mp4 1", "a 1")
    assert pairs(dataset) == {"a.mp4": 1, "b.mp4": 1}
    assert "3 videos listed more than once, each used once" in dataset.notes


@pytest.mark.parametrize(
    "path", ["../secret.mp4", "c/../../secret.mp4", "/etc/passwd", "..", ".", "/", "c/../../data2/x.mp4"]
)
def test_paths_that_lead_out_of_the_data_are_refused(root: Path, path: str) -> None:
    touch(root, "a.mp4", "c/b.mp4")
    touch(root.parent, "secret.mp4", "data2/x.mp4")
    with pytest.raises(DataError, match="1 path of 2 outside"):
        listed(root, "a.mp4 1", f"{path} 1")


def test_absolute_paths_inside_the_data_are_taken(root: Path, tmp_path: Path) -> None:
    touch(root, "c/a.mp4", "b.mp4")
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    for place in (root, tmp_path / "link"):
        source = write(tmp_path / "list.txt", f"{place}/c/a.mp4 1", f"{root}/c/../b.mp4 2")
        assert pairs(find_dataset(place, LABELS, 3, source)) == {"b.mp4": 2, "c/a.mp4": 1}


@pytest.mark.parametrize("path", ["a/" * 3000 + "x.mp4", "x" * 5000, "a.mp4/b.mp4", "c//b", "~/b.mp4"])
def test_odd_paths_are_missing_or_found_without_ado(root: Path, path: str) -> None:
    touch(root, "a.mp4", "c/b.mp4")
    if path == "c//b":
        assert "c/b.mp4" in pairs(listed(root, "a.mp4 1", f"{path} 1"))
    else:
        with pytest.raises(DataError, match="1 of 2 listed videos not found"):
            listed(root, "a.mp4 1", f"{path} 1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.mp4 1\n\xff\xfe", "is not UTF-8 text"),
        ("a.mp4 1\n".encode("utf-16"), "is not UTF-8 text"),
        (b"a.mp4\0 1\n", "is not text"),
        (b"", "is empty"),
        (b'[{"id": "1"', "line 1: broken JSON"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read"),
    ],
)
def test_files_that_are_no_annotations(root: Path, content: bytes, message: str) -> None:
    touch(root, "a.mp4")
    source = root.parent / "list"
    source.write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_dataset(root, LABELS, 3, source)


def test_annotations_that_are_not_there(root: Path) -> None:
    for name in ("none.txt", "x" * 5000, "a\0b", "none*.txt"):
        with pytest.raises(DataError):
            find_dataset(root, LABELS, 3, root / name)
    if hasattr(os, "mkfifo"):
        os.mkfifo(root / "pipe")
        with pytest.raises(DataError, match="not a regular file"):
            find_dataset(root, LABELS, 3, root / "pipe")


def test_a_long_list_lists_each_folder_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(root, *(f"c{i % 3}/{i}.mp4" for i in range(300)))
    scanned: list[str] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (scanned.append(os.fspath(path)), real(path))[1])
    source = write(root.parent / "list.txt", *(f"c{i % 3}/{i}.mp4 {i % 3}" for i in range(300)))
    assert len(find_dataset(root, None, 3, source).items) == 300
    assert len(scanned) == 1 + 1 + 3  # the root by itself, the root and its folders for the list


# Kinetics: CVDF


HEADER = "label,youtube_id,time_start,time_end,split"


def test_cvdf_csv(root: Path) -> None:
    touch(root, "-abc_DEF123_000010_000020.mp4", "zzzzzzzzzzz_000003_000013.mkv")
    touch(root, "high_kick/yyyyyyyyyyy_000000_000010.mp4", "extra.mp4")
    dataset = listed(
        root,
        HEADER,
        "Brush hair,-abc_DEF123,10,20,val",
        "",
        '"cartwheel",zzzzzzzzzzz,3,13.0,val',
        "# a comment",
        '"high_kick",yyyyyyyyyyy,0,10,val',
        ",ttttttttttt,1,11,val",
        name="val.csv",
    )
    assert dataset.layout == "CVDF CSV"
    assert pairs(dataset) == {
        "-abc_DEF123_000010_000020.mp4": 0,
        "high_kick/yyyyyyyyyyy_000000_000010.mp4": 2,
        "zzzzzzzzzzz_000003_000013.mkv": 1,
    }
    assert dataset.notes == ("1 row of 4 without a label left out",)


def test_cvdf_with_byte_order_mark_quotes_and_old_columns(root: Path) -> None:
    touch(root, "aaaaaaaaaaa_000001_000011.mp4")
    source = root.parent / "val.csv"
    source.write_bytes(
        "\ufefflabel,youtube_id,time_start,time_end,split,is_cc\r\n"
        '"walk, slowly (in ""rain"")",aaaaaaaaaaa,1,11,validate,0\r\n'.encode()
    )
    dataset = find_dataset(root, ("run", 'walk, slowly (in "rain")'), 2, source)
    assert pairs(dataset) == {"aaaaaaaaaaa_000001_000011.mp4": 1}


def test_cvdf_rows_of_the_folders_split(tmp_path: Path) -> None:
    root = touch(tmp_path / "val", "aaaaaaaaaaa_000001_000011.mp4")
    rows = ["cartwheel,aaaaaaaaaaa,1,11,validate", "cartwheel,bbbbbbbbbbb,1,11,train"]
    dataset = listed(root, HEADER, *rows, name="all.csv")
    assert pairs(dataset) == {"aaaaaaaaaaa_000001_000011.mp4": 1}
    assert dataset.notes == ("1 of 2 rows are of the split validate",)
    (tmp_path / "k400").mkdir()
    with pytest.raises(DataError, match="lists several splits"):
        listed(tmp_path / "k400", HEADER, *rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["cartwhel,aaaaaaaaaaa,1,11,val"], r"1 label fits none .* \(nearest: 'cartwheel'\)"),
        (["cartwheel,aaaaaaaaaaa,1,11"], "line 2: 4 fields for 5 columns: 'cartwheel,aaaaaaaaaaa,1,11'"),
        (["cartwheel,aaaaaaaaaaa,one,11,val"], "line 2: no youtube_id, time_start and time_end"),
        (["cartwheel,../../aaaa,1,11,val"], "line 2: no youtube_id"),
        (["", 'car"twheel,aaaaaaaaaaa,1,11,val', '"open,aaaaaaaaaaa,1,11,val'], "line [45]: "),
        (["cartwheel,bbbbbbbbbbb,1,11,val"], "1 of 1 listed video not found .* 'bbbbbbbbbbb_000001_000011'"),
        ([",aaaaaaaaaaa,1,11,val"], "there is no video in it"),
        ([], "there is no video in it"),
    ],
)
def test_broken_cvdf(root: Path, rows: list[str], message: str) -> None:
    touch(root, "aaaaaaaaaaa_000001_000011.mp4")
    with pytest.raises(DataError, match=message):
        listed(root, HEADER, *rows, name="val.csv")


def test_cvdf_needs_labels_on_both_sides(root: Path) -> None:
    touch(root, "aaaaaaaaaaa_000001_000011.mp4")
    with pytest.raises(DataError, match="has no column label"):
        listed(root, "youtube_id,time_start,time_end,split", "aaaaaaaaaaa,1,11,test")
    source = write(root.parent / "val.csv", HEADER, "cartwheel,aaaaaaaaaaa,1,11,val")
    with pytest.raises(DataError, match="the checkpoint has no class names"):
        find_dataset(root, None, 3, source)


# JSON


def ssv2(path: Path, *rows: tuple[Any, str | None]) -> Path:
    data = [{"id": i} if template is None else {"id": i, "template": template} for i, template in rows]
    return write(path, json.dumps(data))


def test_ssv2_json(root: Path) -> None:
    touch(root, "1.webm", "22.mp4")
    frames(root, "333")
    source = ssv2(
        root.parent / "validation.json",
        ("1", "Approaching [something] with your camera"),
        (22, "Pretending to put [something] on a surface"),
        ("333", "Moving [something] across a surface until it falls down"),
    )
    dataset = find_dataset(root, SSV2, 174, source)
    assert dataset.layout == "SSv2 JSON, frame folders"
    assert pairs(dataset) == {
        "1.webm": 0,
        "22.mp4": SSV2.index("Pretending to put something on a surface"),
        "333": SSV2.index("Moving something across a surface until it falls down"),
    }


@pytest.mark.parametrize("name", ["labels.json", "something-something-v2-labels.json", "labels/labels.json"])
def test_ssv2_numbers_come_from_labels_json_where_the_checkpoint_has_no_names(root: Path, name: str) -> None:
    touch(root, "20bn-something-something-v2/7.webm")
    source = ssv2(root.parent / "v.json", (7, "Holding [something] in front of [something]"))
    names = {"Holding something": "1", "Holding something in front of something": "0"}
    write(root.parent / name, json.dumps(names))
    dataset = find_dataset(root, None, 2, source)
    assert pairs(dataset) == {"20bn-something-something-v2/7.webm": 0}
    assert dataset.labels == ("Holding something in front of something", "Holding something")


@pytest.mark.parametrize(
    ("rows", "labels", "extra", "message"),
    [
        ([("1", None), ("2", None)], SSV2, None, "2 of 2 videos without a template"),
        ([("1", "Aproaching [something] with your camera")], SSV2, None, "nearest: 'Approaching something"),
        ([("../1", SSV2[0])], SSV2, None, "entry 1: '../1' is no id"),
        ([(None, SSV2[0])], SSV2, None, "entry 1: 'None' is no id"),
        ([("9", SSV2[0])], SSV2, None, "1 of 1 listed video not found"),
        ([("1", SSV2[0])], None, None, r"no labels\.json beside"),
        ([("1", SSV2[0])], None, {"x": "0"}, r"1 template not in labels\.json"),
        ([("1", SSV2[0])], None, {SSV2[0]: "1"}, "does not number 1 classes from 0"),
        ([("1", SSV2[0])], None, {SSV2[0]: "one"}, "does not number the classes"),
        ([("1", SSV2[0])], None, ["x"], "does not number the classes"),
    ],
)
def test_broken_ssv2(root: Path, rows: Any, labels: Any, extra: Any, message: str) -> None:
    touch(root, "1.webm", "2.webm")
    if extra is not None:
        write(root.parent / "labels.json", json.dumps(extra))
    with pytest.raises(DataError, match=message):
        find_dataset(root, labels, 174, ssv2(root.parent / "v.json", *rows))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"Holding something": "0"}, "is the list of classes, not of videos"),
        ({"vid": {"annotations": {"label": "x"}}}, "is not a list of videos"),
        ([], "is an empty list|no class number"),
        (["a.mp4"], "is not a list of videos"),
        ([{"path": "a.mp4"}], "neither an id nor a filename"),
        ([{"filename": "a.mp4", "label": [0, 1]}], "entry 1: 2 labels for one video"),
        ([{"filename": "a.mp4", "label": "0"}], "entry 1: no path with a class number"),
        ([{"filename": "a.mp4", "label": True}], "entry 1: no path with a class number"),
    ],
)
def test_broken_json(root: Path, data: Any, message: str) -> None:
    touch(root, "a.mp4")
    with pytest.raises(DataError, match=message):
        listed(root, json.dumps(data), name="v.json")


def test_mmaction_json(root: Path) -> None:
    touch(root, "a.mp4")
    frames(root, "c/v")
    rows = [{"filename": "a.mp4", "label": [2]}, {"frame_dir": "c/v", "total_frames": 2, "label": 1}]
    dataset = listed(root, json.dumps(rows), name="v.json")
    assert dataset.layout == "mmaction JSON, frame folders"
    assert pairs(dataset) == {"a.mp4": 2, "c/v": 1}


# UCF101 and HMDB51

UCF = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
UCF_VIDEOS = (
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
    "HandstandPushups/v_HandStandPushups_g02_c03.avi",
)


@pytest.fixture
def ucf(root: Path) -> Path:
    write(root.parent / "classInd.txt", *(f"{i} {name}" for i, name in enumerate(UCF, 1)))
    return touch(root, *UCF_VIDEOS)


@pytest.mark.parametrize(
    "lines", [UCF_VIDEOS, [f"{UCF_VIDEOS[0]} 1", f"{UCF_VIDEOS[1]} 2"]], ids=["testlist", "trainlist"]
)
def test_ucf101_splits(ucf: Path, lines: Iterable[str]) -> None:
    source = write(ucf.parent / "list01.txt", *lines)
    dataset = find_dataset(ucf, None, 3, source)
    assert (dataset.layout, dataset.labels) == ("UCF101 split", UCF)
    assert pairs(dataset) == dict(zip(UCF_VIDEOS, (0, 1), strict=True))
    # A checkpoint's own order of names wins.
    names = ("yo yo", "Handstand Pushups", "apply_eye_makeup")
    assert pairs(find_dataset(ucf, names, 3, source)) == dict(zip(UCF_VIDEOS, (2, 1), strict=True))


def test_ucf101_in_mmactions_list_counts_from_0(ucf: Path) -> None:
    lines = [f"{UCF_VIDEOS[0]} 0", f"{UCF_VIDEOS[1]} 1"]
    assert pairs(find_dataset(ucf, None, 3, write(ucf.parent / "l.txt", *lines))) == {
        UCF_VIDEOS[0]: 0,
        UCF_VIDEOS[1]: 1,
    }
    # One class, and not the first: only classInd.txt tells.
    source = write(ucf.parent / "l.txt", f"{UCF_VIDEOS[1]} 1")
    dataset = find_dataset(ucf, None, 3, source)
    assert (dataset.layout, pairs(dataset)) == ("mmaction list", {UCF_VIDEOS[1]: 1})
    (ucf.parent / "classInd.txt").unlink()
    with pytest.raises(DataError, match=r"no classInd\.txt says how its classes count from 0 or from 1"):
        find_dataset(ucf, None, 3, source)
    assert find_dataset(ucf, None, 3, write(source, *lines)).layout == "mmaction list"


def test_ucf101_as_frame_folders(root: Path) -> None:
    write(root.parent / "classInd.txt", "1 ApplyEyeMakeup")
    frames(root, UCF_VIDEOS[0].removesuffix(".avi"))
    dataset = find_dataset(root, None, 1, write(root.parent / "testlist01.txt", UCF_VIDEOS[0]))
    assert dataset.layout == "UCF101 split, frame folders"
    assert pairs(dataset) == {UCF_VIDEOS[0].removesuffix(".avi"): 0}


@pytest.mark.parametrize(
    ("lines", "class_ind", "message"),
    [
        ([UCF_VIDEOS[0]], None, r"no classInd\.txt says how its classes are called"),
        ([f"{UCF_VIDEOS[0]} 3"], [], "its class numbers are not those of"),
        ([f"{UCF_VIDEOS[0]} 1", f"{UCF_VIDEOS[1]} 1"], [], "its class numbers are not those of"),
        (["Juggle/v_Juggle_g01_c01.avi"], [], r"1 class not in classInd\.txt: 'Juggle'"),
        ([UCF_VIDEOS[0]], ["1 A", "3 B"], r"classInd\.txt, line 2: expected is '2 ClassName': '3 B'"),
        ([UCF_VIDEOS[0]], ["A"], r"classInd\.txt, line 1: expected is '1 ClassName'"),
        (["YoYo/v_YoYo_g01_c01.avi"], [], "1 of 1 listed video not found"),
    ],
)
def test_broken_ucf101(ucf: Path, lines: list[str], class_ind: Any, message: str) -> None:
    if class_ind is None:
        (ucf.parent / "classInd.txt").unlink()
    elif class_ind:
        write(ucf.parent / "classInd.txt", *class_ind)
    with pytest.raises(DataError, match=message):
        find_dataset(ucf, None, 3, write(ucf.parent / "list01.txt", *lines))


def test_ucf101_against_a_checkpoint_of_other_classes(ucf: Path) -> None:
    source = write(ucf.parent / "testlist01.txt", *UCF_VIDEOS)
    with pytest.raises(DataError, match="2 class names fit none of the checkpoint's 400 classes"):
        find_dataset(ucf, K400, 400, source)
    with pytest.raises(DataError, match=r"1 label of 2 outside 0\.\.0"):
        find_dataset(ucf, None, 1, source)


@pytest.fixture
def hmdb(root: Path) -> Path:
    touch(
        root, "brush_hair/a (1).avi", "brush_hair/#20_b.avi", "brush_hair/c.avi", "cartwheel/d.avi", "e.avi"
    )
    splits = root.parent / "splits"
    write(splits / "brush_hair_test_split1.txt", "a (1).avi 2 ", "#20_b.avi 2 ", "c.avi 1 ")
    write(splits / "cartwheel_test_split1.txt", "d.avi 2 ", "e.avi 0 ")
    write(splits / "brush_hair_test_split2.txt", "c.avi 2 ")
    write(splits / "cartwheel_test_split2.txt", "e.avi 2 ")
    write(splits / "readme.md", "splits")
    return root


def test_hmdb51_splits(hmdb: Path) -> None:
    splits = hmdb.parent / "splits"
    first = find_dataset(hmdb, LABELS, 3, splits)
    assert first.layout == "HMDB51 split"
    assert pairs(first) == {"brush_hair/#20_b.avi": 0, "brush_hair/a (1).avi": 0, "cartwheel/d.avi": 1}
    assert "splits 1, 2 are there, split 1 is used" in first.notes[0]
    second = find_dataset(hmdb, LABELS, 3, splits / "*_test_split2.txt")
    assert pairs(second) == {"brush_hair/c.avi": 0, "e.avi": 1}
    assert second.notes == ()
    assert pairs(find_dataset(hmdb, LABELS, 3, splits / "brush_hair_test_split2.txt")) == {
        "brush_hair/c.avi": 0
    }


def test_broken_hmdb51(hmdb: Path) -> None:
    splits = hmdb.parent / "splits"
    with pytest.raises(DataError, match="no class names"):
        find_dataset(hmdb, None, 3, splits)
    write(splits / "cartwheel_test_split1.txt", "d.avi 2", "e.avi 3")
    with pytest.raises(DataError, match=r"cartwheel_test_split1\.txt, line 2: expected is"):
        find_dataset(hmdb, LABELS, 3, splits)
    write(splits / "jump_test_split1.txt", "d.avi 2")
    with pytest.raises(DataError, match="1 class name fits none of the checkpoint's 3 classes: 'jump'"):
        find_dataset(hmdb, LABELS, 3, splits)
    with pytest.raises(DataError, match="holds no split files of HMDB51"):
        find_dataset(hmdb, LABELS, 3, hmdb)


# Folders of frames


def write_frames(
    folder: Path, numbers: Iterable[int], pattern: str = "img_{:05d}.jpg", size: tuple[int, int] = (192, 128)
) -> Path:
    """Pictures that carry their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        picture = cv2.cvtColor(clips.draw(number, *size), cv2.COLOR_RGB2BGR)
        assert cv2.imwrite(str(folder / pattern.format(number)), picture)
    return folder


def every(total: int, fps: float) -> range:
    return range(total)


def test_frame_folders_in_class_folders_reach_the_model_as_videos(root: Path) -> None:
    write_frames(root / "cartwheel/v_1", range(1, 81))
    write_frames(root / "cartwheel/v_1", range(1, 81), "flow_x_{:05d}.jpg", (32, 32))
    touch(root, "brush_hair/a.mp4")
    dataset = find_dataset(root, LABELS, 3)
    assert dataset.layout == "class folders, frame folders"
    assert pairs(dataset) == {"brush_hair/a.mp4": 0, "cartwheel/v_1": 1}
    protocol = replace(PROTOCOLS["k400-4x3"], short_side=64, crop_size=64)
    prepared = prepare(dataset.items[1].path, protocol)
    assert (prepared.total, prepared.fps, prepared.decoder, prepared.partial) == (80, 0.0, "frames", False)
    for clip, rows in zip(prepared.sampled_frames, prepared.clips, strict=True):
        # The first picture is number 1 and frame 0.
        assert clips.numbers_of(prepared.frames[rows]) == [index + 1 for index in clip]
    with pytest.raises(DecodeError, match="no usable frame rate"):
        prepare(dataset.items[1].path, PROTOCOLS["torchvision-12x1"])


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("img_{:05d}.jpg", range(1, 13)),
        ("frame{:06d}.JPG", range(12)),
        ("{}.png", range(1, 13)),  # 10.png after 9.png
        ("v2_c3_{:010d}.jpeg", range(5, 100, 8)),  # every eighth frame kept: no gap
    ],
)
def test_pictures_are_read_in_the_order_of_their_numbers(
    tmp_path: Path, pattern: str, numbers: range
) -> None:
    folder = write_frames(tmp_path / "v", numbers, pattern)
    touch(folder, "thumbnail.jpg", "._img_00001.jpg", "notes.txt", "flow_y_00001.jpg")
    decoded = read(folder, every)
    assert clips.numbers_of(decoded.frames) == list(numbers)
    assert (decoded.total, decoded.partial, decoded.notes) == (len(numbers), False, ())
    assert decoded.frames[0, -1, 0].tolist() == pytest.approx([230, 20, 20], abs=25)  # red is red
    few = read(folder, lambda *_: [3, 1, 3])
    assert few.indices == (1, 3)
    assert clips.numbers_of(few.frames) == [numbers[1], numbers[3]]


def test_missing_pictures_are_noted(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "v", [1, 2, 3, 6, 7, 9])
    decoded = read(folder, every)
    assert decoded.total == 6
    assert decoded.partial
    assert decoded.notes == ("partial: 3 pictures missing, the first after img_00003.jpg",)
    assert prepare(folder, PROTOCOLS["ssv2-1x3"]).partial


def test_pictures_are_upright_and_of_three_colours(tmp_path: Path) -> None:
    grey = clips.draw(5)[:, :, 0]
    data = cv2.imencode(".jpg", grey)[1].tobytes()
    # An EXIF segment that says: turn by 90 degrees (orientation 6).
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\0\0" + tiff
    turned = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    for name, content, shape in (("a", data, (128, 192, 3)), ("b", turned, (192, 128, 3))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(content)
        assert picture_size(content) == (192, 128)
        assert read(tmp_path / name, every).frames.shape == (1, *shape)


def test_the_size_of_a_jpeg_is_in_its_frame_header_only() -> None:
    whole = cv2.imencode(".jpg", clips.draw(1))[1].tobytes()
    tables = b"\xff\xc4\x00\x0b" + b"\x11" * 9  # Huffman tables may come first; their marker is near
    assert picture_size(whole[:2] + tables + whole[2:]) == (192, 128)
    assert picture_size(whole[:2] + b"\xff\xff\xff" + whole[2:]) == (192, 128)  # padding


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"IEND"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JPEG or PNG"),
        (b"GIF89a" + b"\0" * 50, "no JPEG or PNG"),
        (b"\xff\xd8\xff" * 9, "no JPEG or PNG"),
        (png_header(100_000, 100_000), "100000x100000 pixels exceed"),
        (png_header(0, 0), "damaged"),
        (png_header(10, 10), "damaged"),
    ],
)
def test_bad_pictures_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    folder = write_frames(tmp_path / "v", range(1, 4))
    (folder / "img_00002.jpg").write_bytes(content)
    with pytest.raises(DecodeError, match=rf"img_00002\.jpg.*{message}"):
        read(folder, every)
    assert read(folder, lambda *_: [0, 2]).indices == (0, 2)  # what is not asked for is not read


@pytest.mark.parametrize("pattern", ["img_{:05d}.jpg", "img_{:05d}.png"])
def test_every_cut_of_a_picture_is_an_error(tmp_path: Path, pattern: str) -> None:
    folder = write_frames(tmp_path / "v", [1], pattern, (48, 32))
    picture = folder / pattern.format(1)
    whole = picture.read_bytes()
    assert picture_size(whole) == (48, 32)
    for length in [*range(0, len(whole) - 12, 37), len(whole) - 12]:
        assert picture_size(whole[:length]) is None  # some releases of OpenCV fill the rest with grey
        picture.write_bytes(whole[:length])
        with pytest.raises(DecodeError, match="damaged"):
            read(folder, every)


def test_folders_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ContainerError, match="is a folder, not a video: it holds no numbered pictures"):
        read(tmp_path / "empty", every)
    touch(tmp_path, "two/img_1.jpg", "two/depth_1.jpg")
    with pytest.raises(ContainerError, match=r"pictures of 2 series: depth_\*, img_\*"):
        read(tmp_path / "two", every)
    touch(tmp_path, "twice/img_1.jpg", "twice/img_01.jpg", "twice/img_2.jpg")
    with pytest.raises(ContainerError, match=r"one frame number twice: img_0?1\.jpg and img_0?1\.jpg"):
        list_pictures(tmp_path / "twice")
    write_frames(tmp_path / "sizes", [1])
    write_frames(tmp_path / "sizes", [2], size=(64, 64))
    with pytest.raises(DecodeError, match="frames change"):
        read(tmp_path / "sizes", every)
    (tmp_path / "nested/img_00001.jpg").mkdir(parents=True)
    with pytest.raises(DecodeError, match="is no file"):
        read(tmp_path / "nested", every)
    if hasattr(os, "mkfifo"):
        (tmp_path / "pipes").mkdir()
        os.mkfifo(tmp_path / "pipes/img_1.jpg")
        with pytest.raises(DecodeError, match="is no file"):
            read(tmp_path / "pipes", every)


@given(st.binary(max_size=200))
def test_picture_size_survives_any_bytes(data: bytes) -> None:
    for head in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        picture_size(head + data)


def test_an_error_crosses_process_borders() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(DataError("a", "b")))
    assert (type(error), error.message, error.hint) == (DataError, "a", "b")
