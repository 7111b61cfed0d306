"""The hostile files themselves: that the evil ones really are, so that the reader's tests mean something."""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import tracemalloc
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from tests import hostile
from tests.hostile import HOSTILE, effects, good_state, lay, poisoned
from tests.parity import writers

# Without the files that only a limit on time or memory would make safe to open.
REFUSED_BY_PLAIN_TORCH = [
    "truncated_zip", "truncated_zip_end", "truncated_legacy", "truncated_legacy_pickle", "html_page",
    "zero_bytes", "one_byte", "zeros", "lfs_pointer", "noise", "missing_storage", "tensor_size",
    "tensor_offset_past", "tensor_offset_negative", "tensor_storage_key", "tar_plain", "zip_plain",
]  # fmt: skip


@pytest.fixture(autouse=True)
def clean_interpreter() -> Iterator[None]:
    yield
    hostile.heal()
    assert not poisoned()


def unsafe_load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, weights_only=False)


def run(path: Path) -> None:
    """Load it as a careless reader would; the payload runs before its odd result fails."""
    with contextlib.suppress(Exception):
        if path.name == "model.safetensors":
            pickle.loads(path.read_bytes())
        else:
            unsafe_load(path)


@pytest.mark.parametrize("name", HOSTILE)
def test_every_file_is_written_and_nothing_happens_by_writing(name: str, tmp_path: Path) -> None:
    path, canary = lay(name, tmp_path)
    assert path.exists()
    assert effects(canary) == []
    assert not poisoned()
    if path.is_file() and not path.is_symlink():
        assert path.stat().st_size < 20_000_000


EVIL = [
    name
    for name in HOSTILE
    if name.startswith(("zip_", "legacy_", "raw_", "beside_")) and name.split("_", 1)[1] in hostile.PAYLOADS
]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", EVIL)
def test_plain_loading_runs_the_payload(name: str, tmp_path: Path) -> None:
    path, canary = lay(name, tmp_path)
    run(path)
    assert effects(canary) == ["touched"]


@pytest.mark.parametrize(
    "name",
    [
        "hub_load",
        "legacy_evil_head",
        "legacy_evil_keys",
        "persistent_id",
        "tar_torch",
        "evil_named_safetensors",
    ],
)
def test_other_evil_files_run_their_code_too(name: str, tmp_path: Path) -> None:
    path, canary = lay(name, tmp_path)
    run(path)
    assert effects(canary) == ["touched"]


@pytest.mark.parametrize("name", ["legacy_source_patch_class", "legacy_source_patch_function"])
def test_torch_writes_a_patch_where_the_file_says(name: str, tmp_path: Path) -> None:
    path, canary = lay(name, tmp_path)
    unsafe_load(path)
    assert effects(canary) == ["touched.patch"]
    assert poisoned()


@pytest.mark.parametrize(
    "name",
    [
        "build_on_function",
        "build_on_class",
        "setitems_on_module",
        "setitems_on_builtins",
        "appends_on_sys_path",
    ],
)
def test_plain_loading_leaves_the_interpreter_changed(name: str, tmp_path: Path) -> None:
    path, _ = lay(name, tmp_path)
    unsafe_load(path)
    assert poisoned()


@pytest.mark.parametrize("name", REFUSED_BY_PLAIN_TORCH)
def test_broken_files_do_not_load(name: str, tmp_path: Path) -> None:
    path, _ = lay(name, tmp_path)
    with pytest.raises((RuntimeError, OSError, EOFError, LookupError, pickle.UnpicklingError)):
        unsafe_load(path)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, case in HOSTILE.items()
        if case.file == "model.safetensors" and case.expect == "refuse" and not name.startswith("endless")
    ],
)
def test_broken_safetensors_do_not_open(name: str, tmp_path: Path) -> None:
    path, _ = lay(name, tmp_path)
    if name == "safetensors_only_metadata":
        with safetensors.safe_open(path, "pt") as file:
            assert not list(file.keys())
        return
    with pytest.raises((safetensors.SafetensorError, OSError)):
        safetensors.safe_open(path, "pt")


def test_stride_zero_expands_beyond_its_storage(tmp_path: Path) -> None:
    path, _ = lay("tensor_stride_zero", tmp_path)
    weight = torch.load(path, weights_only=True)["model"]["patch_embed.proj.weight"]
    assert weight.numel() == 10**10
    assert weight.untyped_storage().nbytes() == 16


def test_the_zip_bombs_are_small_and_unpack_to_a_gigabyte(tmp_path: Path) -> None:
    for name, entry in (("zip_bomb_pickle", "archive/data.pkl"), ("zip_bomb_storage", "archive/data/0")):
        path, _ = lay(name, tmp_path / name)
        assert path.stat().st_size < 1_200_000
        with zipfile.ZipFile(path) as archive:
            assert archive.getinfo(entry).file_size == 2**30
            with archive.open(entry) as stream:
                assert stream.read(2**20) == bytes(2**20)


def test_a_bytearray_takes_what_it_states(tmp_path: Path) -> None:
    """A smaller one than the file's: the pure-Python unpickler asks for all of it before it reads."""
    tracemalloc.start()
    with pytest.raises(EOFError):
        pickle._loads(b"\x80\x05\x96" + (2**26).to_bytes(8, "little") + b"abc.")  # type: ignore[attr-defined]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak > 2**26


@pytest.mark.parametrize("name", [n for n in HOSTILE if n.startswith(("raw_bomb_deep", "raw_bomb_laughs"))])
def test_deep_and_repeating_pickles_are_well_formed(name: str, tmp_path: Path) -> None:
    path, _ = lay(name, tmp_path)
    raw = path.read_bytes()
    assert max(position or 0 for _, _, position in pickletools.genops(raw)) == len(raw) - 1
    if name != "raw_bomb_laughs_hash":
        assert pickle.loads(raw)


@pytest.mark.parametrize("name", [n for n in HOSTILE if HOSTILE[n].expect == "load"])
def test_good_files_hold_the_good_weights(name: str, tmp_path: Path) -> None:
    path, _ = lay(name, tmp_path)
    if path.suffix != ".pth":
        shards = [path] if path.suffix == ".safetensors" else sorted(path.parent.glob("*.safetensors"))
        state = {key: value for shard in shards for key, value in load_file(shard).items()}
    else:
        with writers.faked_modules(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = writers.state_of(torch.load(path, weights_only=False, map_location="cpu"))
    for key, value in good_state().items():
        assert torch.allclose(state[key].float(), value, atol=0.01 if name == "good_half" else 0.0), key
