"""Mutated files do nothing but load or end in one of our errors (tests/fuzz.py); and what that once found."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from tests import hostile
from tests.parity import writers
from vswin_cli.checkpoints.files import load_checkpoint
from vswin_cli.checkpoints.raw import read_file
from vswin_cli.errors import MismatchError, UnreadableError, printable

ROOT = Path(__file__).parents[2]
PROCESSES = 2


def fuzz(folder: Path, seed: int, count: int) -> dict[str, int]:
    """Read ``count`` mutated files in two processes; what came of them."""
    share = count // PROCESSES
    running = []
    for i in range(PROCESSES):
        place = folder / str(i)
        place.mkdir()
        command = [sys.executable, "-m", "tests.fuzz", str(place), str(seed), str(i * share), str(share)]
        # A payload that runs after all leaves a file here.
        env = {**os.environ, "CANARY": str(place / "canary"), "PYTHONPATH": str(ROOT)}
        running.append(
            subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    outcomes: dict[str, int] = {}
    for i, process in enumerate(running):
        out, err = process.communicate()
        left = [p.name for p in (folder / str(i)).rglob("current-*")]
        assert process.returncode in (0, 1), f"died with {process.returncode} at {left}: {err[-2000:]}"
        result = json.loads(out)
        assert not result["problem"], result["problem"]
        assert not result["strays"]
        assert not result["poisoned"]
        assert not (folder / str(i) / "canary").exists()
        for kind, number in result["outcomes"].items():
            outcomes[kind] = outcomes.get(kind, 0) + number
    assert sum(outcomes.values()) == share * PROCESSES
    return outcomes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space is limited and measured")
def test_some_mutated_files(tmp_path: Path) -> None:
    outcomes = fuzz(tmp_path, seed=1, count=300)
    # The mutations reach behind the container: files still load, or fail for what is in them.
    assert outcomes["read"] > 10
    assert outcomes["MismatchError"] > 10
    assert outcomes["UnreadableError"] > 50


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space is limited and measured")
@pytest.mark.timeout(600)
def test_ten_thousand_mutated_files(tmp_path: Path) -> None:
    fuzz(tmp_path, seed=2, count=10_000)


# -------------------------------------------------- what it found


@pytest.mark.parametrize(
    "value",
    [torch.zeros(8), torch.zeros(()), torch.zeros(8, 8, 8), torch.zeros(8, 8, dtype=torch.int64)],
    ids=["vector", "number", "cube", "whole numbers"],
)
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_thirds_of_different_kinds_are_a_mismatch(which: str, value: torch.Tensor, tmp_path: Path) -> None:
    """torch.cat raised RuntimeError, or made whole numbers into floats."""
    state = writers.huggingface_2d(writers.small_2d(1))
    key = f"swin.encoder.layers.0.blocks.0.attention.self.{which}.weight"
    assert state[key].shape == (8, 8)
    torch.save({**state, key: value}, tmp_path / "m.pth")
    with pytest.raises(MismatchError, match=which):
        load_checkpoint(tmp_path / "m.pth")


@pytest.mark.parametrize("arguments", [b"N", hostile.frag(3), hostile.frag("ab")], ids=["none", "int", "str"])
@pytest.mark.parametrize("opcode", [b"R", b"\x81"], ids=["REDUCE", "NEWOBJ"])
def test_storages_are_never_printed(opcode: bytes, arguments: bytes, tmp_path: Path) -> None:
    """Where arguments are no tuple, Python's error message names the function: a storage has no name, so all
    of its numbers were printed; 12 MB took two minutes."""
    numbers = 500_000
    fields, storages = hostile.good_fields()
    evil = hostile.storage(numbers, "big") + arguments + opcode
    pickled = hostile.document(extra=evil, model=fields)
    hostile.write_zip(tmp_path / "m.pth", pickled, {**storages, "big": bytes(4 * numbers)})
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as an error, torch's warning would end the printing
        with pytest.raises(UnreadableError):
            read_file(tmp_path / "m.pth")
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize("part", ["protocol", "keys"])
def test_nested_heads_of_legacy_files_end_at_once(part: str, tmp_path: Path) -> None:
    """torch prints a wrong protocol number and hashes storage keys: for tuples of tuples, without end."""
    nested = b")" + b"2\x86" * 40  # () then twice the tuple before, again and again
    path = tmp_path / "m.pth"
    hostile.write_legacy(path, hostile.document(model=b"}"))
    data = path.read_bytes()
    if part == "protocol":
        number = pickle.dumps(1001, 2)
        path.write_bytes(data.replace(number, hostile.bare(nested), 1))
    else:
        path.write_bytes(data.removesuffix(pickle.dumps([], 2)) + hostile.bare(b"](" + nested + b"e"))
    started = time.perf_counter()
    with pytest.raises(UnreadableError):
        read_file(path)
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize("number", ["9" * 5000, "\u0663"], ids=["long", "arabic"])
@pytest.mark.parametrize("key", ["layers.{}.blocks.0.norm1.weight", "layers.0.blocks.{}.norm1.weight"])
def test_numbers_in_names(key: str, number: str, tmp_path: Path) -> None:
    """int() refuses more than 4,300 digits, and takes those of any alphabet."""
    state = writers.state_of(writers.microsoft_2d(writers.small_2d(1), 128))
    torch.save({"model": {**state, key.format(number): torch.zeros(8)}}, tmp_path / "m.pth")
    with pytest.raises(MismatchError, match="1 keys unexpected"):
        load_checkpoint(tmp_path / "m.pth")


def test_names_from_a_file_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    """Escape sequences and line breaks in a key went into the message as they were, whatever its length."""
    state = writers.state_of(writers.microsoft_2d(writers.small_2d(1), 128))
    torch.save({"model": {**state, "a\nb\x1b[2J\u202e.c" + "x" * 10_000: torch.zeros(8)}}, tmp_path / "m.pth")
    with pytest.raises(MismatchError) as caught:
        load_checkpoint(tmp_path / "m.pth")
    assert "a\\nb\\x1b[2J\\u202e.cxxx" in caught.value.message
    assert printable("東京\u3000 é\u00a0🧑\u200d🚀.mp4") == "東京\u3000 é\u00a0🧑\u200d🚀.mp4"
    assert caught.value.message.isprintable()
    assert str(caught.value.hint).isprintable()
    assert len(caught.value.message) < 5000
