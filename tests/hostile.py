"""Broken and hostile checkpoint files, and a few odd but good ones, for the tests of the reader.

HOSTILE maps a name to how to write the file and to what a reader must do with it:
- "refuse": one of the reader's own errors;
- "load": the weights come out, whatever lies beside them;
- "either": one or the other, but cleanly.
Whatever the outcome, it comes within seconds and without taking memory much beyond the file's size; nothing
may appear in the canary's folder (`effects`) and nothing in the interpreter may have changed (`poisoned`).
Sources: FACTS 1.a, 1.b and 1.f (what real files hold beside their weights), torch's public source (formats).
"""

from __future__ import annotations

import argparse
import builtins
import collections
import io
import json
import os
import pathlib
import pickle
import pickletools
import shlex
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from tests.parity import writers

Write = Callable[[Path, Path], None]
Expectation = Literal["refuse", "load", "either"]


@dataclass(frozen=True)
class Hostile:
    """One file: how to write it to (path, canary), what a reader must do, and what it is."""

    write: Write
    expect: Expectation
    about: str
    file: str = "model.pth"


HOSTILE: dict[str, Hostile] = {}


def hostile(
    expect: Expectation, about: str, file: str = "model.pth", name: str = ""
) -> Callable[[Write], Write]:
    def register(write: Write) -> Write:
        key = name or write.__name__.strip("_")
        assert key not in HOSTILE
        HOSTILE[key] = Hostile(write, expect, about, file)
        return write

    return register


def lay(name: str, folder: Path) -> tuple[Path, Path]:
    """Write one of HOSTILE under folder; returns the file and its canary (a path in a folder of its own)."""
    path, canary = folder / "case" / HOSTILE[name].file, folder / "canary" / "touched"
    path.parent.mkdir(parents=True)
    canary.parent.mkdir()
    HOSTILE[name].write(path, canary)
    return path, canary


def effects(canary: Path) -> list[str]:
    """What reading the file has written: anything at all beside the canary."""
    return sorted(item.name for item in canary.parent.iterdir())


_NAMES: dict[Any, str] = {torch._utils._rebuild_tensor_v2: "_rebuild_tensor_v2", TorchVersion: "TorchVersion"}
_MARK = "vswin_poisoned"


def poisoned() -> list[str]:
    """What reading the file has changed in the running interpreter."""
    found = [f"name of {name}" for item, name in _NAMES.items() if item.__name__ != name]
    found += [name for item, name in _NAMES.items() if _MARK in vars(item) or "dump_patches" in vars(item)]
    found += [module.__name__ for module in (torch, builtins) if _MARK in vars(module)]
    found += ["sys.path"] if _MARK in sys.path else []
    return found


def heal() -> None:
    """Undo what `poisoned` finds (for tests that show a file to be evil)."""
    for item, name in _NAMES.items():
        item.__name__ = name
        for attribute in (_MARK, "dump_patches"):
            if attribute in vars(item):
                delattr(item, attribute)
    for module in (torch, builtins):
        vars(module).pop(_MARK, None)
    while _MARK in sys.path:
        sys.path.remove(_MARK)


# -------------------------------------------------- pieces of pickle


def frag(value: object) -> bytes:
    """The opcodes that push a plain value."""
    return pickletools.optimize(pickle.dumps(value, 2))[2:-1]


def glob(module: str, name: str) -> bytes:
    """GLOBAL."""
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def stack_glob(module: str, name: str) -> bytes:
    """STACK_GLOBAL, whose name may have dots in a protocol 4 pickle."""
    return frag(module) + frag(name) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    """REDUCE."""
    return function + b"(" + b"".join(arguments) + b"t" + b"R"


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(frag(key) + value for key, value in items.items()) + b"u"


def document(*, protocol: int = 2, **fields: bytes) -> bytes:
    """A whole pickle of a dict with these fields."""
    return bytes([0x80, protocol]) + mapping(fields) + b"."


def bare(fragment: bytes, protocol: int = 2) -> bytes:
    return bytes([0x80, protocol]) + fragment + b"."


def storage(
    numel: int, key: str = "0", location: str = "cpu", kind: str = "FloatStorage", legacy: bool = False
) -> bytes:
    """A persistent id of a storage, in the zip or the legacy format."""
    rest = b"N" if legacy else b""
    parts = frag("storage") + glob("torch", kind) + frag(key) + frag(location) + frag(numel) + rest
    return b"(" + parts + b"tQ"


def tensor(of: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """torch._utils._rebuild_tensor_v2."""
    rebuild = glob("torch._utils", "_rebuild_tensor_v2")
    hooks = call(glob("collections", "OrderedDict"))
    return call(rebuild, of, frag(offset), frag(size), frag(stride), b"\x89", hooks)


# -------------------------------------------------- containers


def write_zip(
    path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None, method: int = 0
) -> None:
    """A torch zip archive around any bytes."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key, raw in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", raw)
        archive.writestr("archive/version", "3\n")


def write_legacy(path: Path, pickled: bytes, keys: list[str] | None = None, storages: bytes = b"") -> None:
    """torch's format before zip, around any bytes."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    parts = [pickle.dumps(part, 2) for part in head] + [pickled, pickle.dumps(keys or [], 2), storages]
    path.write_bytes(b"".join(parts))


def write_raw(path: Path, pickled: bytes) -> None:
    path.write_bytes(pickled)


CONTAINERS: dict[str, Callable[[Path, bytes], None]] = {
    "zip": write_zip,
    "legacy": write_legacy,
    "raw": write_raw,
}


def write_safetensors(path: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    """The safetensors layout around any header (bytes as they are, else JSON) and any stated length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


@cache
def good_state() -> dict[str, Tensor]:
    """What every file that ought to load holds: a small 2D model, microsoft names, no buffers."""
    return writers.small_2d(77).plain()


def good_fields() -> tuple[bytes, dict[str, bytes]]:
    """The same weights as opcodes for a zip archive, and its storages."""
    state = good_state()
    items = {
        name: tensor(storage(value.numel(), str(i)), 0, tuple(value.shape), value.stride())
        for i, (name, value) in enumerate(state.items())
    }
    return mapping(items), {str(i): value.numpy().tobytes() for i, value in enumerate(state.values())}


def beside_weights(path: Path, extra: bytes, protocol: int = 2) -> None:
    """Good weights, and something else first."""
    weights, storages = good_fields()
    write_zip(path, document(protocol=protocol, extra=extra, model=weights), storages)


# -------------------------------------------------- code that would run

_POSIX = glob("posix", "system")
_TOUCH_PYTHON = "open({!r}, 'w').close()"


def _shell(canary: Path) -> bytes:
    return frag(f"touch {shlex.quote(str(canary))}")


def _python(canary: Path) -> bytes:
    return frag(_TOUCH_PYTHON.format(str(canary)))


def _import_os() -> bytes:
    return call(glob("builtins", "__import__"), frag("os"))


def _twice_built(canary: Path) -> bytes:
    """No REDUCE: one BUILD gives a Namespace os.system as its __setstate__, the next calls it."""
    blank = glob("argparse", "Namespace") + b")\x81"
    return blank + mapping({"__setstate__": _POSIX}) + b"b" + _shell(canary) + b"b"


def _nested_load(canary: Path) -> bytes:
    """torch.storage._load_from_bytes reads a whole pickle from inside the pickle, unrestricted."""
    buffer = io.BytesIO()
    inner = document(model=call(_POSIX, _shell(canary)))
    head: tuple[object, ...] = (0x1950A86A20F9469CFC6C, 1001, {})
    for part in head:
        buffer.write(pickle.dumps(part, 2))
    buffer.write(inner + pickle.dumps([], 2))
    data = call(glob("_codecs", "encode"), frag(buffer.getvalue().decode("latin1")), frag("latin1"))
    return call(glob("torch.storage", "_load_from_bytes"), data)


def _nested_pickle(canary: Path) -> bytes:
    inner = bare(call(_POSIX, _shell(canary)))
    data = call(glob("_codecs", "encode"), frag(inner.decode("latin1")), frag("latin1"))
    return call(glob("pickle", "loads"), data)


def _via_torch_rebuild(canary: Path) -> bytes:
    """torch's own _rebuild_from_type_v2 calls the function that it is given."""
    rebuild, args = glob("torch._tensor", "_rebuild_from_type_v2"), b"(" + _shell(canary) + b"t"
    return call(rebuild, _POSIX, glob("builtins", "int"), args, b"}")


PAYLOADS: dict[str, tuple[Callable[[Path], bytes], int, str]] = {
    "os_system": (lambda c: call(_POSIX, _shell(c)), 2, "REDUCE of posix.system"),
    "exec": (lambda c: call(glob("builtins", "exec"), _python(c)), 2, "REDUCE of builtins.exec"),
    "exec_py2": (
        lambda c: call(glob("__builtin__", "eval"), _python(c)),
        2,
        "REDUCE of Python 2's __builtin__.eval",
    ),
    "open": (
        lambda c: call(glob("builtins", "open"), frag(str(c)), frag("w")),
        2,
        "REDUCE of builtins.open to write",
    ),
    "getattr": (
        lambda c: call(call(glob("builtins", "getattr"), _import_os(), frag("system")), _shell(c)),
        2,
        "builtins.getattr of an imported module, then REDUCE",
    ),
    "inst": (lambda c: b"(" + _shell(c) + b"iposix\nsystem\n", 2, "INST, the oldest way of calling"),
    "obj": (lambda c: b"(" + _POSIX + _shell(c) + b"o", 2, "OBJ"),
    "partial": (
        lambda c: call(glob("functools", "partial") + b"(" + _POSIX + _shell(c) + b"t\x81"),
        2,
        "NEWOBJ of functools.partial, then REDUCE of it",
    ),
    "setstate": (_twice_built, 2, "BUILD that gives an object its __setstate__, and BUILD that calls it"),
    "dotted_serialization": (
        lambda c: call(stack_glob("torch.serialization", "os.system"), _shell(c)),
        4,
        "a dotted name under an innocent torch module",
    ),
    "dotted_utils": (
        lambda c: call(stack_glob("torch._utils", "os.system"), _shell(c)),
        4,
        "a dotted name under the very module of the rebuild functions",
    ),
    "dotted_torch": (
        lambda c: call(stack_glob("torch", "os.system"), _shell(c)),
        4,
        "a dotted name under torch",
    ),
    "dotted_deep": (
        lambda c: call(stack_glob("torch._utils", "traceback.linecache.os.system"), _shell(c)),
        4,
        "a dotted name through several modules",
    ),
    "collect_env": (
        lambda c: call(glob("torch.utils.collect_env", "run"), _shell(c)),
        2,
        "a function of torch that runs shell commands",
    ),
    "load_from_bytes": (_nested_load, 2, "torch.storage._load_from_bytes around another evil file"),
    "pickle_loads": (_nested_pickle, 2, "pickle.loads around another evil pickle"),
    "rebuild_from_type": (_via_torch_rebuild, 2, "torch._tensor._rebuild_from_type_v2 of posix.system"),
}


def _register_payloads() -> None:
    for name, (payload, protocol, about) in PAYLOADS.items():
        for container, write in CONTAINERS.items():
            if container != "zip" and name not in ("os_system", "exec", "dotted_utils", "setstate"):
                continue

            def evil(path: Path, canary: Path, p: Any = payload, n: int = protocol, w: Any = write) -> None:
                w(path, document(protocol=n, model=p(canary)))

            hostile("refuse", f"{about}; {container}", name=f"{container}_{name}")(evil)

        def beside(path: Path, canary: Path, p: Any = payload, n: int = protocol) -> None:
            beside_weights(path, p(canary), n)

        hostile("either", f"{about}; beside good weights", name=f"beside_{name}")(beside)


_register_payloads()


@hostile("refuse", "torch.hub._load_local would run the hubconf.py lying beside the file")
def hub_load(path: Path, canary: Path) -> None:
    hub = path.parent / "hub"
    hub.mkdir()
    touch = _TOUCH_PYTHON.format(str(canary))
    (hub / "hubconf.py").write_text(f"def evil():\n    {touch}\n")
    write_zip(path, document(model=call(glob("torch.hub", "_load_local"), frag(str(hub)), frag("evil"))))


@hostile("refuse", "the legacy head (magic number, protocol, system info) is where the code sits")
def legacy_evil_head(path: Path, canary: Path) -> None:
    path.write_bytes(bare(call(_POSIX, _shell(canary))) + pickle.dumps([], 2))


@hostile(
    "refuse", "a legacy file's list of storage keys, the last pickle of the file, is where the code sits"
)
def legacy_evil_keys(path: Path, canary: Path) -> None:
    write_legacy(path, document(model=b"}"))
    good = path.read_bytes()
    path.write_bytes(good[: -len(pickle.dumps([], 2))] + bare(call(_POSIX, _shell(canary))))


@hostile("refuse", "a persistent id whose fields are made by code")
def persistent_id(path: Path, canary: Path) -> None:
    evil = b"(" + frag("storage") + call(_POSIX, _shell(canary)) + b"tQ"
    write_zip(path, document(model=evil))


# -------------------------------------------------- changing what is already there


def _patching(canary: Path, target: bytes) -> bytes:
    """Legacy persistent id 'module': torch writes NAME.patch when the stated source differs."""
    state = b"N" + mapping({"dump_patches": b"\x88", "__name__": frag(str(canary))}) + b"\x86"
    source = frag("source.py") + frag("original source")
    return b"(" + frag("module") + target + state + b"b" + source + b"tQ"


@hostile("refuse", "legacy 'module' id on a class made to dump patches: torch would write NAME.patch")
def legacy_source_patch_class(path: Path, canary: Path) -> None:
    write_legacy(path, document(model=_patching(canary, glob("torch.torch_version", "TorchVersion"))))


@hostile("refuse", "legacy 'module' id on a rebuild function, which every reader lets through")
def legacy_source_patch_function(path: Path, canary: Path) -> None:
    write_legacy(path, document(model=_patching(canary, glob("torch._utils", "_rebuild_tensor_v2"))))


@hostile("either", "BUILD on torch's rebuild function would leave a mark on it, for every later read")
def build_on_function(path: Path, canary: Path) -> None:
    beside_weights(path, glob("torch._utils", "_rebuild_tensor_v2") + mapping({_MARK: b"\x88"}) + b"b")


@hostile("either", "BUILD with slot state on a class would set attributes of the class")
def build_on_class(path: Path, canary: Path) -> None:
    state = b"N" + mapping({_MARK: b"\x88"}) + b"\x86"
    beside_weights(path, glob("torch.torch_version", "TorchVersion") + state + b"b")


@hostile("either", "SETITEMS on a module's __dict__")
def setitems_on_module(path: Path, canary: Path) -> None:
    beside_weights(path, glob("torch", "__dict__") + b"(" + frag(_MARK) + b"\x88u")


@hostile("either", "SETITEMS on the builtins' __dict__")
def setitems_on_builtins(path: Path, canary: Path) -> None:
    beside_weights(path, glob("builtins", "__dict__") + b"(" + frag(_MARK) + b"\x88u")


@hostile("either", "APPENDS on sys.path")
def appends_on_sys_path(path: Path, canary: Path) -> None:
    beside_weights(path, glob("sys", "path") + b"(" + frag(_MARK) + b"e")


# -------------------------------------------------- not a checkpoint, or half of one


def _save_good(path: Path, legacy: bool = False) -> bytes:
    writers.save({"model": good_state()}, path, legacy=legacy)
    return path.read_bytes()


@hostile("refuse", "a zip cut in the middle")
def truncated_zip(path: Path, canary: Path) -> None:
    raw = _save_good(path)
    path.write_bytes(raw[: len(raw) // 2])


@hostile("refuse", "a zip without its last bytes")
def truncated_zip_end(path: Path, canary: Path) -> None:
    path.write_bytes(_save_good(path)[:-30])


@hostile("refuse", "a zip one of whose storages is shorter than stated")
def short_storage(path: Path, canary: Path) -> None:
    weights, storages = good_fields()
    write_zip(path, document(model=weights), {**storages, "0": storages["0"][:-4]})


@hostile("refuse", "a zip without one of its storages")
def missing_storage(path: Path, canary: Path) -> None:
    weights, storages = good_fields()
    del storages["3"]
    write_zip(path, document(model=weights), storages)


@hostile("either", "a flipped bit in a storage: a wrong checksum, which torch ignores")
def bad_checksum(path: Path, canary: Path) -> None:
    raw = bytearray(_save_good(path))
    weight = good_state()["layers.3.blocks.0.mlp.fc1.weight"].numpy().tobytes()
    raw[raw.index(weight) + 100] ^= 0x40
    path.write_bytes(raw)


@hostile("refuse", "a legacy file cut in its storages")
def truncated_legacy(path: Path, canary: Path) -> None:
    raw = _save_good(path, legacy=True)
    path.write_bytes(raw[: len(raw) // 2])


@hostile("refuse", "a legacy file cut in its pickle")
def truncated_legacy_pickle(path: Path, canary: Path) -> None:
    path.write_bytes(_save_good(path, legacy=True)[:300])


@hostile("refuse", "a safetensors file cut in its data", "model.safetensors")
def truncated_safetensors(path: Path, canary: Path) -> None:
    safetensors.torch.save_file(good_state(), path)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


@hostile("refuse", "a safetensors file cut in its header", "model.safetensors")
def truncated_safetensors_header(path: Path, canary: Path) -> None:
    safetensors.torch.save_file(good_state(), path)
    path.write_bytes(path.read_bytes()[:100])


def _plain_files() -> None:
    pages: dict[str, tuple[bytes, str]] = {
        "html_page": (b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n", "an HTML page"),
        "zero_bytes": (b"", "an empty file"),
        "one_byte": (b"\x80", "one byte"),
        "zeros": (bytes(100_000), "a file of zeros (a download that was only allocated)"),
        "lfs_pointer": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 113000000\n",
            "a Git LFS pointer",
        ),
        "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(2000), "a Keras .h5 file"),
        "gzip": (b"\x1f\x8b\x08\x00" + bytes(200), "a gzip file"),
        "noise": (np.random.default_rng(0).bytes(50_000), "random bytes"),
        "empty_pickle": (bare(b"}"), "a pickle of an empty dict"),
        "pickled_list": (bare(frag([1, 2, 3])), "a pickle of a list"),
        "no_weights": (document(model=frag({"epoch": 3})), "a pickle with no tensor"),
    }
    for name, (raw, about) in pages.items():

        def write(path: Path, canary: Path, raw: bytes = raw) -> None:
            path.write_bytes(raw)

        hostile("refuse", about, name=name)(write)
        if name in ("html_page", "zero_bytes", "lfs_pointer", "zeros"):
            hostile("refuse", f"{about}, named safetensors", "model.safetensors", f"{name}_safetensors")(
                write
            )


_plain_files()


@hostile("refuse", "a folder")
def folder(path: Path, canary: Path) -> None:
    path.mkdir()


@hostile("refuse", "a named pipe: opening it waits forever")
def fifo(path: Path, canary: Path) -> None:
    os.mkfifo(path)


@hostile("refuse", "a link to an endless device")
def endless_device(path: Path, canary: Path) -> None:
    path.symlink_to("/dev/zero")


@hostile("refuse", "a link to an endless device, named safetensors", "model.safetensors")
def endless_device_safetensors(path: Path, canary: Path) -> None:
    path.symlink_to("/dev/zero")


@hostile("refuse", "a whole pickled model, not its state dict")
def whole_module(path: Path, canary: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), path)


# -------------------------------------------------- safetensors that lie

_HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def _lying_safetensors() -> None:
    def entry(dtype: object, shape: object, offsets: object) -> dict[str, Any]:
        return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}

    b = {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}
    one = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    twice = b"{" + one + b"," + one + b"}"
    files: dict[str, tuple[object, int | None, str]] = {
        "length_2_60": (_HEADER, 2**60, "a header length of 2**60"),
        "length_2_63": (_HEADER, 2**63 + 1, "a header length beyond a signed integer"),
        "length_zero": (_HEADER, 0, "a header length of 0"),
        "length_past_file": (_HEADER, 4096, "a header length just past the file"),
        "offsets_past_file": (entry("F32", [2], [0, 2**40]), None, "offsets beyond the file"),
        "offsets_and_shape_past_file": (
            entry("F32", [2**38], [0, 2**40]),
            None,
            "a tensor larger than the file",
        ),
        "offsets_reversed": (entry("F32", [2], [8, 0]), None, "offsets that run backwards"),
        "offsets_negative": (entry("F32", [2], [-8, 0]), None, "negative offsets"),
        "offsets_overlap": ({**_HEADER, "b": b}, None, "two tensors on the same bytes"),
        "offsets_hole": (entry("F32", [1], [4, 8]), None, "bytes that no tensor claims"),
        "shape_mismatch": (entry("F32", [3], [0, 8]), None, "a shape that does not fit the bytes"),
        "shape_overflow": (entry("F32", [2**32, 2**32], [0, 8]), None, "a shape whose product overflows"),
        "shape_negative": (entry("F32", [-2, -1], [0, 8]), None, "a negative shape"),
        "shape_fraction": (entry("F32", [2.0], [0, 8]), None, "a shape that is no integer"),
        "dtype_unknown": (entry("F13", [2], [0, 8]), None, "an unknown dtype"),
        "duplicate_name": (twice, None, "the same name twice"),
        "not_json": (b"{'a': 1}", None, "a header that is not JSON"),
        "not_a_dict": ([1, 2], None, "a header that is a list"),
        "not_utf8": (b'{"\xff\xfe":1}', None, "a header that is not UTF-8"),
        "deep_json": (
            b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            None,
            "a header nested 100,000 deep",
        ),
        "metadata_not_text": ({"__metadata__": {"a": [1]}, **_HEADER}, None, "metadata that is not text"),
        "only_metadata": ({"__metadata__": {"vswin": "{"}}, None, "metadata and no tensor"),
    }
    for name, (header, length, about) in files.items():

        def write(path: Path, canary: Path, header: object = header, length: int | None = length) -> None:
            write_safetensors(
                path, header, b"" if header == {"__metadata__": {"vswin": "{"}} else bytes(8), length
            )

        expect: Expectation = "either" if name == "duplicate_name" else "refuse"
        hostile(expect, about, "model.safetensors", f"safetensors_{name}")(write)


_lying_safetensors()


@hostile(
    "either",
    "a good safetensors file whose own metadata is broken JSON under the key vswin",
    "model.safetensors",
)
def safetensors_broken_metadata(path: Path, canary: Path) -> None:
    safetensors.torch.save_file(good_state(), path, {"vswin": '{"config": ' + "[" * 50_000})


@hostile("either", "a pickle named safetensors: what it is, not its name, should decide", "model.safetensors")
def pickle_named_safetensors(path: Path, canary: Path) -> None:
    _save_good(path)


@hostile("refuse", "an evil pickle named safetensors", "model.safetensors")
def evil_named_safetensors(path: Path, canary: Path) -> None:
    write_raw(path, document(model=call(_POSIX, _shell(canary))))


@hostile("either", "a safetensors file named .pth")
def safetensors_named_pth(path: Path, canary: Path) -> None:
    safetensors.torch.save_file(good_state(), path)


# -------------------------------------------------- TorchScript and tar


@hostile("refuse", "a TorchScript archive: torch.load would hand it to torch.jit, past any unpickler")
def torchscript(path: Path, canary: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))


@hostile("refuse", "a hand-made archive with constants.pkl and code/, which torch takes for TorchScript")
def torchscript_by_hand(path: Path, canary: Path) -> None:
    weights, storages = good_fields()
    write_zip(path, document(model=weights), storages)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", bare(call(_POSIX, _shell(canary))))
        archive.writestr("archive/code/__torch__.py", "def forward(self):\n  return 1\n")


def _tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))


@hostile("refuse", "torch's first format, a tar, with code in its storages")
def tar_torch(path: Path, canary: Path) -> None:
    evil = bare(call(_POSIX, _shell(canary)))
    _tar(path, {"storages": evil, "tensors": pickle.dumps(0, 2), "pickle": document(model=b"}")})


@hostile("refuse", "torch's first format, a tar, whose storages is a link out of the folder")
def tar_link(path: Path, canary: Path) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("storages")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)


@hostile("refuse", "an ordinary tar around a good checkpoint")
def tar_plain(path: Path, canary: Path) -> None:
    _tar(path, {"model.pth": _save_good(path)})


@hostile("refuse", "an ordinary zip around a good checkpoint")
def zip_plain(path: Path, canary: Path) -> None:
    raw = _save_good(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.pth", raw)


# -------------------------------------------------- bombs


@cache
def _deflated_zeros(mebibytes: int) -> tuple[bytes, int]:
    """That many MiB of zeros, deflated, and their checksum; one flushed block is repeated."""
    block = bytes(2**24)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum, count = 0, mebibytes // 16
    for _ in range(count):
        checksum = zlib.crc32(block, checksum)
    return packed * count + b"\x03\x00", checksum


def _zip_records(path: Path, records: list[tuple[str, int, int, int, bytes]]) -> None:
    """A zip written by hand: (name, method, checksum, stated size, raw bytes)."""
    body, directory = b"", b""
    for name, method, checksum, size, raw in records:
        shared = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 33, checksum, len(raw), size, len(name), 0)
        tail = struct.pack("<HHHII", 0, 0, 0, 0, len(body))
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + shared + tail + name.encode()
        body += b"PK\x03\x04" + shared + name.encode() + raw
    count = len(records)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(body + directory + b"PK\x05\x06" + end)


def _stored(name: str, raw: bytes) -> tuple[str, int, int, int, bytes]:
    return name, 0, zlib.crc32(raw), len(raw), raw


@hostile("refuse", "1 MB deflated to 1 GB: data.pkl")
def zip_bomb_pickle(path: Path, canary: Path) -> None:
    packed, checksum = _deflated_zeros(1024)
    version = _stored("archive/version", b"3\n")
    _zip_records(path, [("archive/data.pkl", 8, checksum, 2**30, packed), version])


@hostile("refuse", "1 MB deflated to 1 GB: a storage that the pickle uses")
def zip_bomb_storage(path: Path, canary: Path) -> None:
    packed, checksum = _deflated_zeros(1024)
    weight = tensor(storage(2**28), 0, (2**28,), (1,))
    pickled = document(model=mapping({"patch_embed.proj.weight": weight}))
    records = [_stored("archive/data.pkl", pickled), _stored("archive/version", b"3\n")]
    _zip_records(path, [*records, ("archive/data/0", 8, checksum, 2**30, packed)])


@hostile("refuse", "a stored entry that states a size of 4 GB")
def zip_lying_size(path: Path, canary: Path) -> None:
    pickled = document(model=mapping({"patch_embed.proj.weight": tensor(storage(4), 0, (4,), (1,))}))
    records = [_stored("archive/data.pkl", pickled), _stored("archive/version", b"3\n")]
    _zip_records(path, [*records, ("archive/data/0", 0, 0, 2**32 - 2, bytes(16))])


@hostile("either", "two entries of the name data.pkl, the second one evil")
def zip_duplicate_entry(path: Path, canary: Path) -> None:
    weights, storages = good_fields()
    write_zip(path, document(model=weights), storages)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("archive/data.pkl", document(model=call(_POSIX, _shell(canary))))


@hostile("refuse", "a zip of 60,000 empty entries and no pickle")
def zip_many_entries(path: Path, canary: Path) -> None:
    name = b"archive/data/000000"
    shared = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0)
    directory = b"".join(
        b"PK\x01\x02"
        + struct.pack("<H", 20)
        + shared
        + struct.pack("<HHHII", 0, 0, 0, 0, 0)
        + b"%s%06d" % (name[:-6], i)
        for i in range(60_000)
    )
    body = b"PK\x03\x04" + shared + name
    end = struct.pack("<HHHHIIH", 0, 0, 60_000, 60_000, len(directory), len(body), 0)
    path.write_bytes(body + directory + b"PK\x05\x06" + end)


def _laughing(levels: int, wrap: Callable[[bytes], bytes]) -> bytes:
    """Each level holds the one below several times, through the memo."""
    opcodes = b"N"
    for level in range(levels):
        put, get = b"q" + bytes([level]), b"h" + bytes([level])
        opcodes = opcodes + put + b"0" + wrap(get)
    return opcodes


def _bombs() -> None:
    deep_list = b"]" * 100_000 + b"a" * 99_999
    deep_tuple = b"N" + b"\x85" * 100_000
    deep_dict = b"".join(b"}" + frag("model") for _ in range(100_000)) + b"N" + b"s" * 100_000
    list_laughs = _laughing(60, lambda get: b"](" + get * 10 + b"e")
    dict_laughs = _laughing(60, lambda get: mapping({"model": get, "state_dict": get}))
    tuple_laughs = _laughing(60, lambda get: get + get + b"\x86")
    fragments: dict[str, tuple[bytes, str]] = {
        "memo": (b"Nr" + struct.pack("<I", 2**28), "LONG_BINPUT with a huge index (4 GB in the C unpickler)"),
        "binbytes8": (b"\x8e" + struct.pack("<Q", 2**40) + b"abc", "BINBYTES8 that states 1 TB"),
        "binunicode8": (b"\x8d" + struct.pack("<Q", 2**40) + b"abc", "BINUNICODE8 that states 1 TB"),
        "bytearray8": (b"\x96" + struct.pack("<Q", 2**36) + b"abc", "BYTEARRAY8 that states 64 GB"),
        "binstring": (b"T" + struct.pack("<i", -5) + b"abc", "BINSTRING of a negative length"),
        "binunicode": (b"X" + struct.pack("<I", 2**32 - 1) + b"abc", "BINUNICODE that states 4 GB"),
        "long4": (b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc", "LONG4 that states 2 GB"),
        "frame": (b"\x95" + struct.pack("<Q", 2**40) + b"N", "FRAME that states 1 TB"),
        "deep_list": (deep_list, "100,000 lists in one another"),
        "deep_tuple": (deep_tuple, "100,000 tuples in one another"),
        "deep_dict": (deep_dict, "100,000 dicts in one another, each under a wrapper's name"),
        "laughs_list": (list_laughs, "a billion laughs of lists: tiny in memory, endless to walk"),
        "laughs_dict": (dict_laughs, "a billion laughs of dicts under wrappers' names"),
        "laughs_hash": (
            b"}" + tuple_laughs + b"Ns",
            "a billion laughs of tuples as a dict key: endless to hash",
        ),
        "bytearray_call": (call(glob("builtins", "bytearray"), frag(2**40)), "bytearray(2**40) by REDUCE"),
        "repeat": (call(glob("operator", "mul"), frag("x"), frag(2**40)), "'x' * 2**40 by REDUCE"),
    }
    for name, (fragment, about) in fragments.items():

        def raw(path: Path, canary: Path, fragment: bytes = fragment) -> None:
            write_raw(path, bare(fragment, 5))

        def zipped(path: Path, canary: Path, fragment: bytes = fragment) -> None:
            write_zip(path, document(protocol=5, model=fragment))

        def legacy(path: Path, canary: Path, fragment: bytes = fragment) -> None:
            write_legacy(path, document(protocol=5, model=fragment))

        def beside(path: Path, canary: Path, fragment: bytes = fragment) -> None:
            beside_weights(path, fragment, 5)

        hostile("refuse", f"{about}; raw", name=f"raw_bomb_{name}")(raw)
        hostile("refuse", f"{about}; zip", name=f"zip_bomb_{name}")(zipped)
        hostile("refuse", f"{about}; legacy", name=f"legacy_bomb_{name}")(legacy)
        hostile("either", f"{about}; beside good weights", name=f"beside_bomb_{name}")(beside)


_bombs()


# -------------------------------------------------- storages and tensors that lie


@hostile("refuse", "a legacy storage of 2**40 elements")
def legacy_huge_storage(path: Path, canary: Path) -> None:
    weight = tensor(storage(2**40, legacy=True), 0, (4,), (1,))
    raw = struct.pack("<q", 4) + bytes(16)
    write_legacy(path, document(model=mapping({"patch_embed.proj.weight": weight})), ["0"], raw)


@hostile("refuse", "a legacy storage whose length in the data is 2**40")
def legacy_huge_data(path: Path, canary: Path) -> None:
    weight = tensor(storage(4, legacy=True), 0, (4,), (1,))
    raw = struct.pack("<q", 2**40) + bytes(16)
    write_legacy(path, document(model=mapping({"patch_embed.proj.weight": weight})), ["0"], raw)


def _lying_tensors() -> None:
    bare_numel = tensor(storage(2**40), 0, (4,), (1,))
    meta = call(
        glob("torch._utils", "_rebuild_meta_tensor_no_storage"),
        glob("torch", "float32"),
        frag((2**40,)),
        frag((1,)),
        b"\x89",
    )
    tensors: dict[str, tuple[bytes, str]] = {
        "storage_numel": (bare_numel, "a storage that states 2**40 elements and holds 4"),
        "size": (tensor(storage(4), 0, (2**40,), (1,)), "a size of 2**40 on 4 elements"),
        "size_negative": (tensor(storage(4), 0, (-4,), (1,)), "a negative size"),
        "size_overflow": (tensor(storage(4), 0, (2**62, 2**62), (1, 1)), "a size whose product overflows"),
        "stride_zero": (tensor(storage(4), 0, (10**10,), (0,)), "one element expanded to 10**10 by stride 0"),
        "stride_negative": (tensor(storage(4), 3, (4,), (-1,)), "a negative stride"),
        "stride_huge": (tensor(storage(4), 0, (2,), (2**40,)), "a stride out of the storage"),
        "stride_count": (tensor(storage(4), 0, (2, 2), (1,)), "fewer strides than sizes"),
        "offset_negative": (tensor(storage(4), -1, (4,), (1,)), "a negative offset"),
        "offset_past": (tensor(storage(4), 1, (4,), (1,)), "an offset that leaves too little"),
        "offset_huge": (tensor(storage(4), 2**60, (1,), (1,)), "an offset far out of the storage"),
        "many_dimensions": (tensor(storage(4), 0, (1,) * 10_000, (1,) * 10_000), "10,000 dimensions"),
        "meta": (meta, "a tensor without data, of 2**40 elements"),
        "storage_key": (
            tensor(storage(4, "../../../etc/passwd"), 0, (4,), (1,)),
            "a storage named by a path",
        ),
        "not_a_storage": (tensor(frag("storage"), 0, (4,), (1,)), "a string in the place of a storage"),
    }
    for name, (opcodes, about) in tensors.items():

        def write(path: Path, canary: Path, opcodes: bytes = opcodes) -> None:
            weights, storages = good_fields()
            lying = weights[:-1] + frag("norm.weight") + opcodes + b"u"
            write_zip(path, document(model=lying), {**storages, "0": bytes(16)})

        def alone(path: Path, canary: Path, opcodes: bytes = opcodes) -> None:
            fields = mapping({"patch_embed.proj.weight": opcodes})
            write_zip(path, document(model=fields), {"0": bytes(16)})

        expect: Expectation = "either" if name == "many_dimensions" else "refuse"
        hostile(expect, f"{about}; the only tensor", name=f"tensor_{name}")(alone)
        hostile(expect, f"{about}; in a whole model", name=f"model_tensor_{name}")(write)


_lying_tensors()


# -------------------------------------------------- shard indexes

_INDEX = "model.safetensors.index.json"


def _write_index(path: Path, weight_map: object) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def _shard(path: Path, state: Mapping[str, Tensor] | None = None) -> None:
    safetensors.torch.save_file(dict(state or good_state()), path)


def _indexes() -> None:
    names: dict[str, tuple[object, str]] = {
        "parent": ("../outside.safetensors", "a shard in the parent folder (which is there)"),
        "absolute": ("/etc/passwd", "an absolute path"),
        "nested_parent": ("sub/../../outside.safetensors", "a shard in the parent folder, by a detour"),
        "subfolder": ("sub/inside.safetensors", "a shard in a folder below: names must be plain"),
        "backslash": ("..\\outside.safetensors", "a shard in the parent folder, for Windows"),
        "missing": ("model-00001-of-00002.safetensors", "a shard that is missing"),
        "itself": (_INDEX, "the index itself as its shard"),
        "empty": ("", "an empty name"),
        "dot": (".", "the folder itself as a shard"),
        "null": ("a\0b.safetensors", "a name with a null character"),
        "long": ("a" * 5000, "a name of 5000 characters"),
        "number": (3, "a number as the name"),
        "list": (["a.safetensors"], "a list as the name"),
        "url": ("https://example.invalid/a.safetensors", "a URL as the name"),
        "pipe": ("pipe.safetensors", "a named pipe as a shard"),
        "passwd_link": ("link.safetensors", "a link to /etc/passwd as a shard"),
    }
    for key, (shard, about) in names.items():

        def write(path: Path, canary: Path, key: str = key, shard: object = shard) -> None:
            _shard(path.parent.parent / "outside.safetensors")
            (path.parent / "sub").mkdir()
            _shard(path.parent / "sub" / "inside.safetensors")
            if key == "pipe":
                os.mkfifo(path.parent / "pipe.safetensors")
            if key == "passwd_link":
                (path.parent / "link.safetensors").symlink_to("/etc/passwd")
            _write_index(path, dict.fromkeys(good_state(), shard))

        hostile("refuse", f"index: {about}", _INDEX, f"index_{key}")(write)

    raws: dict[str, tuple[bytes, str]] = {
        "deep": (b'{"weight_map":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON nested 100,000 deep"),
        "huge": (
            b'{"weight_map":{'
            + b",".join(b'"t%d":"model-%d.safetensors"' % (i, i) for i in range(300_000))
            + b"}}",
            "300,000 tensors in as many shards, none there",
        ),
        "not_json": (b"<html></html>", "not JSON"),
        "not_utf8": (b'{"weight_map": "\xff"}', "not UTF-8"),
        "a_list": (b"[]", "a list"),
        "no_map": (b'{"metadata":{}}', "no weight_map"),
        "empty_map": (b'{"metadata":{},"weight_map":{}}', "an empty weight_map"),
        "map_list": (b'{"weight_map":["a"]}', "a weight_map that is a list"),
        "big_number": (b'{"weight_map":' + b"9" * 1_000_000 + b"}", "a number of a million digits"),
    }
    for key, (raw, about) in raws.items():

        def write_bytes(path: Path, canary: Path, raw: bytes = raw) -> None:
            path.write_bytes(raw)

        hostile("refuse", f"index: {about}", _INDEX, f"index_{key}")(write_bytes)


_indexes()


@hostile("refuse", "index: names a tensor that its shard does not hold", _INDEX)
def index_tensor_missing(path: Path, canary: Path) -> None:
    _shard(path.parent / "a.safetensors")
    _write_index(path, {**dict.fromkeys(good_state(), "a.safetensors"), "layers.9.extra": "a.safetensors"})


@hostile("either", "index: two shards hold a tensor of the same name, one not listed for it", _INDEX)
def index_tensor_twice(path: Path, canary: Path) -> None:
    state = good_state()
    _shard(path.parent / "a.safetensors", state)
    _shard(path.parent / "b.safetensors", {"norm.weight": torch.full_like(state["norm.weight"], 9.0)})
    _write_index(path, {**dict.fromkeys(state, "a.safetensors"), "norm.weight": "b.safetensors"})


@hostile(
    "either", "index: a shard that links out of the folder to good weights, as the hub's cache does", _INDEX
)
def index_cache_link(path: Path, canary: Path) -> None:
    _shard(path.parent.parent / "blob")
    (path.parent / "a.safetensors").symlink_to("../blob")
    _write_index(path, dict.fromkeys(good_state(), "a.safetensors"))


@hostile("refuse", "index of pickles: the shard is evil", "pytorch_model.bin.index.json")
def index_evil_bin(path: Path, canary: Path) -> None:
    write_zip(path.parent / "pytorch_model-00001-of-00001.bin", document(a=call(_POSIX, _shell(canary))))
    _write_index(path, dict.fromkeys(good_state(), "pytorch_model-00001-of-00001.bin"))


# -------------------------------------------------- odd, but good


@hostile("load", "index: two good shards", _INDEX)
def good_index(path: Path, canary: Path) -> None:
    state = good_state()
    halves = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(state)}
    for shard in set(halves.values()):
        _shard(path.parent / shard, {name: value for name, value in state.items() if halves[name] == shard})
    _write_index(path, halves)


@hostile("load", "safetensors", "model.safetensors")
def good_safetensors(path: Path, canary: Path) -> None:
    _shard(path)


@hostile("load", "a microsoft training checkpoint: yacs CfgNode, numpy scalars, optimizer (FACTS 1.a)")
def good_cfgnode(path: Path, canary: Path) -> None:
    writers.save(writers.microsoft_2d_training(writers.small_2d(77), 128), path)


@hostile("load", "the same in the format before zip")
def good_cfgnode_legacy(path: Path, canary: Path) -> None:
    writers.save(writers.microsoft_2d_training(writers.small_2d(77), 128), path, legacy=True)


@hostile("load", "the same with NumPy 1's module names")
def good_numpy_1(path: Path, canary: Path) -> None:
    writers.save(writers.microsoft_2d_training(writers.small_2d(77), 128), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in members.items():
            archive.writestr(
                name, raw.replace(b"cnumpy._core.", b"cnumpy.core.") if name.endswith(".pkl") else raw
            )


@hostile("load", "an argparse.Namespace beside the weights (timm's train.py, FACTS 1.b)")
def good_namespace(path: Path, canary: Path) -> None:
    namespace = argparse.Namespace(
        lr=1e-3, output=pathlib.PurePosixPath("out"), betas=(0.9, 0.999), resume=None
    )
    torch.save({"state_dict": good_state(), "args": namespace, "epoch": np.int64(3)}, path)


@hostile(
    "load",
    "what training scripts leave beside the weights: arrays, sets, defaultdicts, dtypes, sizes, devices",
)
def good_training_state(path: Path, canary: Path) -> None:
    extra = {
        "optimizer": {"state": collections.defaultdict(dict, {0: {"step": 3}}), "param_groups": []},
        "rng": np.random.default_rng(0).integers(0, 9, 624),
        "python_rng": (3, tuple(range(625)), None),
        "seen": {"a", "b"},
        "frozen": frozenset({1}),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "complex": 1 + 2j,
        "counter": collections.Counter("abc"),
        "slice": slice(1, 2),
        "bytes": b"\x00\x01",
        "big": 2**100,
        "half": torch.ones(3, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "error": ValueError("left behind"),
        "torch": torch.__version__,
    }
    torch.save({**extra, "model": good_state()}, path)


@hostile("load", "mmengine's HistoryBuffer beside the weights (FACTS 1.f)")
def good_message_hub(path: Path, canary: Path) -> None:
    hub = {"log_scalars": {"train/loss": writers.HistoryBuffer([5.9, 1.5])}}
    writers.save({"meta": {}, "state_dict": good_state(), "message_hub": hub}, path)


@hostile("load", "Module.state_dict() itself: an OrderedDict with a _metadata attribute")
def good_module_state_dict(path: Path, canary: Path) -> None:
    state: Any = collections.OrderedDict(good_state())
    state._metadata = collections.OrderedDict({"": {"version": 1}, "norm": {"version": 1}})
    torch.save({"model": state}, path)


@hostile("load", "parameters instead of tensors")
def good_parameters(path: Path, canary: Path) -> None:
    torch.save({"model": {name: torch.nn.Parameter(value) for name, value in good_state().items()}}, path)


@hostile("load", "protocol 4: framed, with STACK_GLOBAL")
def good_protocol_4(path: Path, canary: Path) -> None:
    torch.save({"model": good_state()}, path, pickle_protocol=4)


@hostile("load", "weights of one storage with offsets, and one of them not contiguous")
def good_views(path: Path, canary: Path) -> None:
    state, views, at = good_state(), {}, 0
    everything = torch.cat([value.flatten() for value in state.values()])
    for name, value in state.items():
        views[name] = everything[at : at + value.numel()].view(value.shape)
        at += value.numel()
    key = "layers.0.blocks.0.attn.qkv.weight"
    views[key] = views[key].t().contiguous().t()
    torch.save({"model": views}, path)


@hostile("load", "saved on a GPU")
def good_cuda(path: Path, canary: Path) -> None:
    weights, storages = good_fields()
    write_zip(path, document(model=weights.replace(frag("cpu"), frag("cuda:0"))), storages)


@hostile("load", "half precision")
def good_half(path: Path, canary: Path) -> None:
    torch.save({"model": {name: value.half() for name, value in good_state().items()}}, path)


@hostile("load", "hand-written opcodes around good weights (proves the helpers that the evil ones use)")
def good_by_hand(path: Path, canary: Path) -> None:
    beside_weights(path, b"N")


def _nested_twice(levels: int) -> bytes:
    """A tuple of the tuple before, twice, and so on: small on disk, endless to print or to hash."""
    pickled = b"("[0:0] + b")"
    for level in range(levels):
        pickled += b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86"
    return pickled


def _endless() -> None:
    tall = _nested_twice(60)
    cases = {
        "ordered_dict_hash": (
            glob("collections", "OrderedDict") + b"(](" + tall + b"K\x01\x86e" + b"tR",
            "given items",
        ),
        "persistent_id_kind": (b"(" + tall + b"K\x00K\x00K\x00K\x00tQ", "a persistent id of an endless kind"),
        "persistent_id_numel": (
            b"(X\x07\x00\x00\x00storage" + glob("torch", "FloatStorage") + b"X\x01\x00\x00\x000"
            b"X\x03\x00\x00\x00cpu" + tall + b"tQ",
            "a storage with an endless number of elements",
        ),
        "tensor_size": (
            glob("torch._utils", "_rebuild_tensor_v2")
            + b"("
            + storage(4)
            + b"K\x00"
            + tall
            + b"(tt"[:2]
            + b"tR",
            "a tensor of an endless size",
        ),
    }
    for name, (opcodes, about) in cases.items():

        def write(path: Path, canary: Path, opcodes: bytes = opcodes) -> None:
            write_zip(path, b"\x80\x02" + opcodes + b".", {"0": bytes(16)})

        hostile("refuse", about, name=f"endless_{name}")(write)


_endless()
