"""Training and validation sets: folders, lists, and which classes they speak of."""

from __future__ import annotations

from pathlib import Path

import pytest

from vswin_cli.errors import DataError
from vswin_cli.video.dataset import Classes, discover_classes, find_splits


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_folders(tmp_path: Path) -> None:
    root = put(tmp_path, "train/b c/1.mp4", "train/A_d/2.mp4", "val/b_c/3.mp4")
    found = find_splits(root)
    assert found.labels == ("A_d", "b c")
    assert not found.same_classes
    assert [(i.id, i.label) for i in found.train.items] == [("A_d/2.mp4", 0), ("b c/1.mp4", 1)]
    assert [(i.id, i.label) for i in found.val.items] == [("b_c/3.mp4", 1)]


@pytest.mark.parametrize(
    ("train", "val"), [("Train", "validation"), ("training", "test"), ("train", "valid")]
)
def test_other_names_of_the_splits(tmp_path: Path, train: str, val: str) -> None:
    root = put(tmp_path, f"{train}/a/1.mp4", f"{val}/a/2.mp4")
    assert find_splits(root).val.root == root / val


def test_the_checkpoints_classes_keep_their_order(tmp_path: Path) -> None:
    root = put(tmp_path, "train/b_c/1.mp4", "train/a/2.mp4", "val/a/3.mp4")
    found = find_splits(root, known=("B c", "A"))
    assert found.same_classes
    assert found.labels == ("B c", "A")
    assert [i.label for i in found.train.items] == [1, 0]
    assert not find_splits(root, known=("B c", "A", "d")).same_classes
    assert not find_splits(root, known=("B c", "d")).same_classes


def test_a_class_of_validation_only_is_an_error(tmp_path: Path) -> None:
    root = put(tmp_path, "train/a/1.mp4", "val/a/2.mp4", "val/ab/3.mp4")
    with pytest.raises(DataError, match="none of the training set's 1 classes: 'ab'"):
        find_splits(root)


def test_missing_splits(tmp_path: Path) -> None:
    root = put(tmp_path, "train/a/1.mp4")
    with pytest.raises(DataError, match="has no folder val"):
        find_splits(root)
    with pytest.raises(DataError, match="has no folder train/val"):
        find_splits(root / "train")
    with pytest.raises(DataError, match="does not exist"):
        find_splits(root / "nowhere")
    with pytest.raises(DataError, match="only one of"):
        find_splits(root, train_list=tmp_path / "train.txt")


def test_numbered_lists(tmp_path: Path) -> None:
    root = put(tmp_path / "d", "x/1.mp4", "x/2.mp4", "x/3.mp4")
    train = write(tmp_path / "train.txt", "x/1.mp4 0", "x/2.mp4 2")
    val = write(tmp_path / "val.txt", "x/3.mp4 1")
    found = find_splits(root, train, val)
    assert found.labels == ("class 0", "class 1", "class 2")
    assert not found.same_classes
    assert [i.label for i in found.train.items] == [0, 2]
    named = find_splits(root, train, val, names=("a", "b", "c", "d"))
    assert named.labels == ("a", "b", "c", "d")
    with pytest.raises(DataError, match="numbers 3 classes, but only 2 names"):
        find_splits(root, train, val, names=("a", "b"))
    # As many classes are no proof that they are the same: they keep their numbers, and a note says so.
    other = find_splits(root, train, val, known=("p", "q", "r"))
    assert (other.labels, other.same_classes) == (("class 0", "class 1", "class 2"), False)
    assert "--labels" in other.notes[0]
    kept = find_splits(root, train, val, names=("P", "q", "r"), known=("p", "q", "r"))
    assert (kept.labels, kept.same_classes, kept.notes) == (("p", "q", "r"), True, ())
    # Numbers follow the list's own order, never the checkpoint's.
    swapped = find_splits(root, train, val, names=("q", "p", "r"), known=("p", "q", "r"))
    assert (swapped.labels, swapped.same_classes) == (("q", "p", "r"), False)
    assert [i.label for i in swapped.train.items] == [0, 2]
    late = write(tmp_path / "late.txt", "x/3.mp4 3")
    with pytest.raises(DataError, match=r"outside 0\.\.2"):
        find_splits(root, train, late)


def test_lists_of_the_splits_own_folders(tmp_path: Path) -> None:
    """CVDF: k400/{train,val} flat, the CSV files elsewhere."""
    root = put(tmp_path / "k400", "train/aaaaaaaaaaa_000001_000011.mp4", "val/bbbbbbbbbbb_000002_000012.mp4")
    head = "label,youtube_id,time_start,time_end,split"
    train = write(tmp_path / "train.csv", head, "zumba,aaaaaaaaaaa,1,11,train")
    val = write(tmp_path / "val.csv", head, "zumba,bbbbbbbbbbb,2,12,validate")
    found = find_splits(root, train, val)
    assert found.labels == ("zumba",)
    assert [i.id for i in found.train.items] == ["aaaaaaaaaaa_000001_000011.mp4"]
    assert found.train.root == root / "train"
    assert [i.id for i in found.val.items] == ["bbbbbbbbbbb_000002_000012.mp4"]


def test_hmdb51_has_both_in_one_list(tmp_path: Path) -> None:
    root = put(tmp_path / "d", "wave/1.avi", "wave/2.avi", "run/3.avi", "run/4.avi", "run/5.avi")
    lists = tmp_path / "splits"
    lists.mkdir()
    write(lists / "wave_test_split1.txt", "1.avi 1", "2.avi 2")
    write(lists / "run_test_split1.txt", "3.avi 1", "4.avi 2", "5.avi 0")
    found = find_splits(root, lists, lists)
    assert found.labels == ("run", "wave")
    assert [(i.id, i.label) for i in found.train.items] == [("run/3.avi", 0), ("wave/1.avi", 1)]
    assert [(i.id, i.label) for i in found.val.items] == [("run/4.avi", 0), ("wave/2.avi", 1)]


def test_ucf101_names_its_classes(tmp_path: Path) -> None:
    root = put(tmp_path / "d", "ApplyLipstick/v_ApplyLipstick_g01_c01.avi", "Archery/v_Archery_g01_c01.avi")
    write(tmp_path / "classInd.txt", "1 ApplyLipstick", "2 Archery")
    train = write(
        tmp_path / "trainlist01.txt",
        "ApplyLipstick/v_ApplyLipstick_g01_c01.avi 1",
        "Archery/v_Archery_g01_c01.avi 2",
    )
    val = write(tmp_path / "testlist01.txt", "Archery/v_Archery_g01_c01.avi")
    found = find_splits(root, train, val)
    assert found.labels == ("ApplyLipstick", "Archery")
    assert [i.label for i in found.train.items] == [0, 1]
    assert [i.label for i in found.val.items] == [1]


def test_discovering(tmp_path: Path) -> None:
    root = put(tmp_path / "d", "b c/1.mp4", "B_C/2.mp4", "a/3.mp4")
    assert discover_classes(root) == Classes(("B_C", "a"), True)  # one class, written in two ways
    listing = write(tmp_path / "l.txt", "nowhere.mp4 0")
    with pytest.raises(DataError, match="none of its videos"):
        discover_classes(root, listing)
