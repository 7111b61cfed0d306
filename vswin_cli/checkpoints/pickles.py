"""Reading torch's .pth without running what is in it.

A pickle names callables and asks for them to be called. Here only tensor rebuilding and
OrderedDict exist; every other name becomes an inert stand-in: nothing is imported, nothing is
called, and training files that carry configs, schedulers or NumPy scalars still load.

torch's own weights_only reader refuses such files (items set on a dict subclass, for one), so
``torch.load`` is given this module's :data:`RestrictedPickle` in place of pickle. What torch would
hand to other readers (TorchScript, tar) or would inflate in memory (deflated zip entries) is
refused before.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from vswin_cli.errors import UnreadableError

MAX_PICKLE_BYTES = 256 * 2**20  # data.pkl of a checkpoint: names and shapes only, a few MB at most
MAX_ENTRIES = 200_000

_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))

_LEGACY_HINT = "in a safe place: torch.save(torch.load(FILE), NEW) rewrites it in today's format"


class Inert:
    """Stands in for any class or function that a pickle names; does nothing, whatever is asked."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        return self

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        """List opcodes end here."""

    def extend(self, items: object) -> None:
        """List opcodes end here."""

    def add(self, item: object) -> None:
        """Set opcodes end here."""


class _InertClass(type):
    """Metaclass of the stand-ins, so that calling one gives an Inert whatever the arguments."""

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        return type.__call__(cls)


def _inert(module: str, name: str) -> type:
    return _InertClass(name.rpartition(".")[2] or "Inert", (Inert,), {"__module__": f"inert.{module}"})


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Any:
    """torch._utils._rebuild_tensor(_v2), with the bounds that torch leaves to the pickle."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor is rebuilt from something that is no storage")
    # Messages name no value that is not known to be a number: printing a nested tuple can take forever.
    if not all(isinstance(n, tuple | list) and len(n) <= 64 for n in (size, stride)):
        raise pickle.UnpicklingError("a tensor's size or stride is no short list")
    numbers = (offset, *size, *stride)
    if any(type(n) is not int for n in numbers):
        raise pickle.UnpicklingError("a tensor's size, stride or offset is no whole number")
    if len(size) != len(stride) or any(n < 0 or n > 2**62 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor has size {size}, stride {stride}, offset {offset}"[:200])
    elements, used = 1, 1
    for n, step in zip(size, stride, strict=True):
        elements *= n
        used += (n - 1) * step
    stored = storage._untyped_storage.nbytes() // torch._utils._element_size(storage.dtype)
    if elements and (offset + used > stored or elements > stored):
        raise pickle.UnpicklingError(
            f"a tensor of size {tuple(size)}, stride {tuple(stride)}, offset {offset} "
            f"does not fit its storage of {stored} elements"
        )
    return torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))


def _first_argument(data: Any, *_: object) -> Any:
    """torch._utils._rebuild_parameter(_with_state): the tensor itself."""
    return data


def _rebuild_from_type(function: Any, _type: object, arguments: Any, _state: object) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor subclass; its base tensor."""
    known = any(function is allowed for allowed in _ALLOWED.values()) and isinstance(arguments, tuple)
    return function(*arguments) if known else Inert()


def _ordered_dict(*_: object) -> OrderedDict[str, Any]:
    """collections.OrderedDict, empty: it is filled item by item; hashing given items can take forever."""
    return OrderedDict()


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _first_argument,
    ("torch._utils", "_rebuild_parameter_with_state"): _first_argument,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("collections", "OrderedDict"): _ordered_dict,
}


def _module(limit: int, stored: Mapping[str, int] | None) -> types.ModuleType:
    """A stand-in for the pickle module.

    Storages in it may not claim more than ``limit`` bytes in all, nor any more than ``stored`` says
    that its zip entry has.
    """

    # The C unpickler allocates its memo by the largest index named in the file: nine bytes make
    # it take 4 GB. The Python one keeps a dictionary.
    class RestrictedUnpickler(pickle._Unpickler):
        dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

        stack: list[Any]  # these are set by the standard reader
        append: Callable[[Any], None]
        pop_mark: Callable[[], list[Any]]

        def __init__(self, file: Any, **options: Any) -> None:
            super().__init__(file, encoding="utf-8", errors="replace")
            self.claimed: dict[object, int] = {}

        def find_class(self, module: str, name: str) -> Any:
            return _ALLOWED.get((module, name)) or _inert(module, name)

        def checked(self, pid: Any) -> Any:
            """What torch is given to load as a storage."""
            if not isinstance(pid, tuple) or not pid:
                raise pickle.UnpicklingError("a persistent id is no tuple")
            if pid[0] in ("module", b"module"):
                # torch would compare source code, and write a patch file where a class asks for it.
                return Inert()
            if pid[0] not in ("storage", b"storage") or len(pid) not in (5, 6):
                raise pickle.UnpicklingError("unknown kind of persistent id")
            if type(pid[2]) is not str:
                raise pickle.UnpicklingError("a storage's key is no string")
            elements = pid[4]
            if type(elements) is not int or elements < 0:
                raise pickle.UnpicklingError("a storage's number of elements is none")
            dtype = getattr(pid[1], "dtype", torch.uint8)
            claim = elements * torch._utils._element_size(dtype)
            if stored is not None and claim > stored.get(pid[2], 0):
                raise pickle.UnpicklingError(
                    f"storage {pid[2]!r} claims {claim:,} bytes, its entry has {stored.get(pid[2], 0):,}"
                )
            self.claimed[pid[2]] = claim
            if sum(self.claimed.values()) > limit:
                raise pickle.UnpicklingError(
                    f"storages claim {sum(self.claimed.values()):,} bytes, the file has {limit:,}"
                )
            return self.persistent_load(pid)  # torch sets it on the instance

        def load_persid(self) -> None:
            raise pickle.UnpicklingError("text persistent ids are not used by torch")

        def load_binpersid(self) -> None:
            self.append(self.checked(self.stack.pop()))

        def called(self, function: Any, arguments: Any) -> Any:
            """The only way to call anything. Python's own error messages would print a storage that is called
            as if it were a function: all of its numbers."""
            if not isinstance(arguments, tuple):
                raise pickle.UnpicklingError("arguments of a call are no tuple")
            if isinstance(function, Inert | _InertClass):
                return function()
            if not any(function is allowed for allowed in _ALLOWED.values()):
                raise pickle.UnpicklingError("something is called that is no function")
            return function(*arguments)

        def load_reduce(self) -> None:
            arguments = self.stack.pop()
            self.stack[-1] = self.called(self.stack[-1], arguments)

        def load_newobj_ex(self) -> None:
            self.stack.pop()  # keyword arguments
            self.load_reduce()

        def _instantiate(self, klass: Any, arguments: list[Any]) -> None:
            # What the standard INST and OBJ end in.
            self.append(self.called(klass, tuple(arguments)))

        def load_build(self) -> None:
            # State is for objects; ours are inert, and a tensor's __setstate__ resizes its storage.
            self.stack.pop()

        def store(self, target: Any, items: list[Any]) -> None:
            """Set key, value, key, value, ... on a dict; only keys that are cheap to hash."""
            if not isinstance(target, dict):
                return
            for key, value in zip(items[::2], items[1::2], strict=True):
                # The hash of a tuple of tuples of ... takes forever; state dicts have names as keys.
                if type(key) in _PLAIN_KEYS:
                    target[key] = value

        def load_setitem(self) -> None:
            value, key = self.stack.pop(), self.stack.pop()
            self.store(self.stack[-1], [key, value])

        def load_setitems(self) -> None:
            items = self.pop_mark()
            self.store(self.stack[-1], items)

        def load_dict(self) -> None:
            items = self.pop_mark()
            made: dict[Any, Any] = {}
            self.store(made, items)
            self.append(made)

        def load_set(self) -> None:
            self.append(Inert())

        def load_additems(self) -> None:
            self.pop_mark()

        def load_frozenset(self) -> None:
            self.pop_mark()
            self.append(Inert())

        def load_bytearray8(self) -> None:
            # The standard reader allocates the stated size before it reads.
            raise pickle.UnpicklingError("byte arrays are not used by torch")

        dispatch[pickle.SETITEM[0]] = load_setitem
        dispatch[pickle.SETITEMS[0]] = load_setitems
        dispatch[pickle.DICT[0]] = load_dict
        dispatch[pickle.EMPTY_SET[0]] = load_set
        dispatch[pickle.ADDITEMS[0]] = load_additems
        dispatch[pickle.FROZENSET[0]] = load_frozenset
        dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
        dispatch[pickle.PERSID[0]] = load_persid
        dispatch[pickle.BINPERSID[0]] = load_binpersid
        dispatch[pickle.BUILD[0]] = load_build
        dispatch[pickle.REDUCE[0]] = load_reduce
        dispatch[pickle.NEWOBJ[0]] = load_reduce
        dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def load(file: Any, **options: Any) -> Any:
        """What stands around the weights of a legacy file: magic number, protocol number, facts about the
        writing system, names of the storages. torch prints or hashes these, which for tuples of tuples of
        tuples never ends."""
        made = RestrictedUnpickler(file).load()
        if isinstance(made, dict):
            return {}  # not used
        if isinstance(made, int) or (isinstance(made, list) and all(isinstance(k, str) for k in made)):
            return made
        raise pickle.UnpicklingError("not one of the parts of torch's format before zip")

    module = types.ModuleType("restricted_pickle")
    module.Unpickler = RestrictedUnpickler  # type: ignore[attr-defined]
    module.load = load  # type: ignore[attr-defined]
    return module


def read_pickle(path: Path) -> Any:
    """The object in a .pth, .pt or .bin file; tensors of zip files are memory-mapped.

    Raises UnreadableError for anything that is not a plain torch checkpoint.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
    is_zip = start.startswith(b"PK\x03\x04")
    stored = None
    if is_zip:
        stored = _check_zip(path)
    else:
        _check_no_zip(path, start)
    try:
        return torch.load(
            path, map_location="cpu", pickle_module=_module(size, stored), weights_only=False, mmap=is_zip
        )
    except (MemoryError, RecursionError) as error:
        raise UnreadableError(f"{path}: reading it takes more memory than a checkpoint may") from error
    except Exception as error:
        # Damaged pickles raise anything at all; nothing of theirs has run.
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise UnreadableError(
            f"{path}: not a readable torch checkpoint, or damaged ({reason})",
            "download or copy the file again, and compare its size",
        ) from error


def _check_zip(path: Path) -> dict[str, int]:
    """Refuse zip files that torch would not read as a plain checkpoint; bytes of each storage."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UnreadableError(
            f"{path}: the zip file is damaged or cut off ({error})",
            "download or copy the file again, and compare its size",
        ) from error
    names = [e.filename for e in entries]
    if len(entries) > MAX_ENTRIES:
        raise UnreadableError(f"{path}: {len(entries):,} entries, more than a checkpoint has")
    if any(n.endswith("/constants.pkl") or "/code/" in n for n in names):
        raise UnreadableError(
            f"{path}: a TorchScript archive holds a program, which vswin does not run",
            "in a safe place: torch.save(torch.jit.load(FILE).state_dict(), NEW)",
        )
    if packed := next((e for e in entries if e.compress_type != zipfile.ZIP_STORED), None):
        raise UnreadableError(
            f"{path}: entry {packed.filename} is compressed "
            f"({packed.compress_size:,} to {packed.file_size:,} bytes); torch.save never does that",
            "unpack the file if it is a download that was zipped",
        )
    pickles = [e for e in entries if e.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnreadableError(
            f"{path}: a zip file, but not one of torch.save (no data.pkl in it)",
            f"it holds {', '.join(names[:4]) or 'nothing'}",
        )
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        raise UnreadableError(f"{path}: data.pkl has {pickles[0].file_size:,} bytes")
    folder = pickles[0].filename.removesuffix("data.pkl") + "data/"
    return {e.filename.removeprefix(folder): e.file_size for e in entries if e.filename.startswith(folder)}


def _check_no_zip(path: Path, start: bytes) -> None:
    """Refuse what is no pickle, and name it."""
    text = start.lstrip().lower()
    if not start:
        raise UnreadableError(f"{path}: the file is empty", "download or copy it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UnreadableError(
            f"{path}: this is a web page, not a checkpoint",
            "the download link led to a page; use the file's own",
        )
    if text.startswith(b"version https://git-lfs"):
        raise UnreadableError(f"{path}: this is a Git LFS pointer, not the file", "run: git lfs pull")
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"Rar!", b"7z\xbc\xaf")):
        raise UnreadableError(f"{path}: a compressed archive", "unpack it first")
    if tarfile.is_tarfile(io.BytesIO(start)) or start[257:262] == b"ustar":
        raise UnreadableError(f"{path}: a tar archive (torch before 0.1.10 wrote those)", _LEGACY_HINT)
    if start[:1] not in (b"\x80", b"(", b"]", b"}", b"c"):
        raise UnreadableError(f"{path}: not a checkpoint; it starts with {start[:8]!r}")
