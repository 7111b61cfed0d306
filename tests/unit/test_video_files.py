"""Arguments to video files: files, folders, globs, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vswin_cli.errors import UsageError, VideoError
from vswin_cli.video.files import find_videos


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "b.mp4",
        "a clip.MP4",
        "tür/ñ.webm",
        "tür/deep/z.avi",
        "notes.txt",
        "._b.mp4",
        ".hidden/c.mp4",
        "odd[1].mp4",
        "noend",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(paths: list[Path]) -> list[str]:
    return [path.as_posix() for path in paths]


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["b.mp4", "a clip.MP4"], ["b.mp4", "a clip.MP4"]),  # order as given
        (["tür"], ["tür/deep/z.avi", "tür/ñ.webm"]),
        (["."], ["a clip.MP4", "b.mp4", "odd[1].mp4", "tür/deep/z.avi", "tür/ñ.webm"]),
        (["*.mp4"], ["b.mp4", "odd[1].mp4"]),
        (["tür/**/*.*"], ["tür/deep/z.avi", "tür/ñ.webm"]),
        (["t?r"], ["tür/deep/z.avi", "tür/ñ.webm"]),  # a pattern may match folders
        (["odd[1].mp4"], ["odd[1].mp4"]),  # the literal name, though the pattern would be odd1.mp4
        (["notes.txt", "noend"], ["notes.txt", "noend"]),  # named on its own: its bytes decide
        (["b.mp4", "./b.mp4", "*.mp4", "b.mp4"], ["b.mp4", "odd[1].mp4"]),
        (["tür/ñ.webm", "tür"], ["tür/ñ.webm", "tür/deep/z.avi"]),
        ([], []),
    ],
)
def test_found_in_order_and_once(arguments: list[str], found: list[str]) -> None:
    assert names(find_videos(arguments)) == found


def test_absolute_and_linked_names_are_the_same_file(tree: Path) -> None:
    (tree / "link.mp4").symlink_to(tree / "b.mp4")
    assert names(find_videos(["b.mp4", str(tree / "b.mp4"), "link.mp4"])) == ["b.mp4"]


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("argument", "message", "hint"),
    [
        ("b.mp5", "does not exist", "did you mean b.mp4"),
        ("nowhere/b.mp4", "does not exist", "the folder nowhere does not exist"),
        ("*.mkv", "no file matches", "pattern"),
        (".hidden/none", "does not exist", "check the path"),
        ("x" * 5000, "cannot be a file name", "check the path"),
    ],
)
def test_nothing_found_is_an_error_with_a_hint(argument: str, message: str, hint: str) -> None:
    with pytest.raises(VideoError, match=message) as caught:
        find_videos(["b.mp4", argument])
    assert hint in str(caught.value.hint)


def test_a_folder_without_videos_says_what_was_looked_for(tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(VideoError, match="no video below empty") as caught:
        find_videos(["empty"])
    assert ".mp4" in str(caught.value.hint)


@pytest.mark.parametrize("argument", ["-", ""])
def test_standard_input_and_empty_names_are_wrong_usage(argument: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_videos([argument])
    assert caught.value.hint


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may list any folder")
def test_a_folder_that_cannot_be_listed_is_an_error(tree: Path) -> None:
    (tree / "tür" / "deep").chmod(0)
    try:
        with pytest.raises(VideoError, match="cannot be listed"):
            find_videos(["tür"])
    finally:
        (tree / "tür" / "deep").chmod(0o700)
