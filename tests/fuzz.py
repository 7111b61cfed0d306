"""Mutated checkpoint files, and a process that reads them and watches itself.

    python -m tests.fuzz FOLDER SEED FIRST COUNT

reads COUNT files, the numbers FIRST, FIRST + 1, ..., each a mutation of one of the files of `originals` that
SEED and its number alone decide. It prints one JSON object: what came of them, the slowest, the peak of
memory. It stops at the first file that does anything but load or end in one of the package's own errors.
Every file stands in FOLDER/ground while it is read, and is left there where the process dies.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import io
import json
import pickletools
import random
import re
import resource
import sys
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests import hostile
from tests.parity import writers
from vswin_cli.checkpoints.files import read_file, save_native
from vswin_cli.config import PROTOCOLS, ModelConfig
from vswin_cli.engine.inspection import inspect
from vswin_cli.errors import VswinError

SLOW_SECONDS = 20.0
MEMORY_MB = 1024
SMALL: dict[str, Any] = {"embed_dim": 4, "depths": (1, 2), "num_heads": (1, 2)}
Random = random.Random
GOOD = (
    "microsoft.pth", "legacy.pth", "mmaction2.pth", "omnivore.pth", "huggingface.bin", "timm.safetensors",
    "native.safetensors", "model.safetensors.index.json",
)  # fmt: skip

# What no reader of weights has any business with. find_class is the standard unpickler's.
FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.remove", "os.rename",
    "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.putenv",
    "os.kill", "subprocess.", "shutil.", "socket.", "urllib.", "ftplib.", "http.", "smtplib.", "webbrowser.",
    "pty.", "ctypes.dlopen", "pickle.find_class", "marshal.", "code.__new__", "builtins.breakpoint",
    "tempfile.",
)  # fmt: skip


# -------------------------------------------------- files to begin with


def originals(folder: Path) -> dict[str, bytes]:
    """Good and evil files, by name; small, so that a mutation hits what matters."""
    image = writers.small_2d(1, window=2, num_classes=3, **SMALL)
    video = writers.small_3d(1, window=(2, 2, 2), num_classes=3, **SMALL)
    config = ModelConfig(4, (1, 2), (1, 2), (2, 2, 2), num_classes=3)
    made: dict[str, Path] = {
        "microsoft.pth": writers.save(writers.microsoft_2d_training(image, 32), folder / "a.pth"),
        "legacy.pth": writers.save(writers.timm_2d_old_wrapped(image, 32), folder / "b.pth", legacy=True),
        "mmaction2.pth": writers.save(writers.mmaction2_3d_training(video), folder / "c.pth"),
        "omnivore.pth": writers.save(writers.omnivore(video), folder / "d.pth"),
        "huggingface.bin": writers.save(writers.huggingface_2d(image), folder / "e.bin"),
        "timm.safetensors": folder / "f.safetensors",
        "native.safetensors": folder / "g.safetensors",
        "model.safetensors.index.json": folder / "h.json",
    }
    save_file(writers.timm_2d(image), made["timm.safetensors"])
    save_native(
        made["native.safetensors"],
        video.state_dict(),
        config,
        labels=["a", "b", "c"],
        protocol=PROTOCOLS["k400-4x3"],
        source={"name": "x"},
    )
    state = writers.huggingface_2d(image)
    shards: dict[str, dict[str, torch.Tensor]] = {"s1.safetensors": {}, "s2.safetensors": {}}
    for i, (name, tensor) in enumerate(state.items()):
        shards[f"s{i % 2 + 1}.safetensors"][name] = tensor
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    made["model.safetensors.index.json"].write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    found = {name: path.read_bytes() for name, path in made.items()}
    assert set(GOOD) == set(found)
    for name in hostile.HOSTILE:
        path, _ = hostile.lay(name, folder / "hostile" / name)
        if path.is_file() and path.suffix in (".pth", ".safetensors") and path.stat().st_size < 100_000:
            found[f"{name}{path.suffix}"] = path.read_bytes()
    return found


def states_of(files: dict[str, bytes], folder: Path) -> dict[str, dict[str, Any]]:
    """The tensors of the good files, to be changed as such."""
    made = {}
    for name in GOOD[:-1]:
        path = folder / f"tensors.{name}"
        path.write_bytes(files[name])
        made[name] = {k: v.clone() for k, v in read_file(path).state.items()}
        path.unlink()
    return made


# -------------------------------------------------- mutations


def mutate(data: bytes, rng: Random, others: list[bytes]) -> bytes:
    """One or a few changes, at the level of the format where there is one, else of bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with contextlib.suppress(Exception):  # a file that an earlier change has made unreadable to us
            if rng.random() < 0.7:
                if data.startswith(b"PK"):
                    data = _zip(data, rng, others)
                    continue
                if data[8:9] == b"{":
                    data = _safetensors(data, rng)
                    continue
                if data[:1] == b"{":
                    data = json.dumps(_json(json.loads(data), rng)).encode()
                    continue
                if data[:1] == b"\x80":
                    data = _pickle(data, rng)
                    continue
        data = _bytes(data, rng, others)
    return data


NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63)


def _bytes(data: bytes, rng: Random, others: list[bytes]) -> bytes:
    made = bytearray(data)
    at = rng.randrange(len(made) + 1)
    length = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(made) - at)
    kind = rng.randrange(8)
    if kind == 0 and at < len(made):
        made[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < len(made):
        made[at] = rng.choice((0, 0x28, 0x2E, 0x52, 0x7F, 0x80, 0x93, 0xFF, rng.randrange(256)))
    elif kind == 2:
        del made[at : at + length]
    elif kind == 3:
        made[at:at] = made[at : at + length] * rng.choice((1, 2, 50))
    elif kind == 4:
        made[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
    elif kind == 5:
        size = rng.choice((2, 4, 8))
        number = rng.choice(NUMBERS) % 256**size
        made[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
    elif kind == 6:
        del made[at:]
    else:
        other = rng.choice(others)
        start = rng.randrange(len(other) + 1)
        made[at : at + length] = other[start : start + length]
    return bytes(made)


def _evil(rng: Random) -> bytes:
    """Opcodes that a full unpickler would obey."""
    canary = b"open(__import__('os').environ['CANARY'],'w')"
    touch = b"touch $CANARY"
    frag, call, glob = hostile.frag, hostile.call, hostile.glob
    choices: list[Callable[[], bytes]] = [
        lambda: call(glob("os", "system"), frag(touch.decode())),
        lambda: call(glob("posix", "system"), frag(touch.decode())),
        lambda: call(glob("builtins", "exec"), frag(canary.decode())),
        lambda: call(glob("builtins", "eval"), frag(canary.decode())),
        lambda: call(glob("subprocess", "Popen"), frag(["touch", "x"])),
        lambda: call(glob("torch", "load"), frag("x")),
        lambda: call(glob("torch.serialization", "load"), frag("x")),
        lambda: call(hostile.stack_glob("builtins", "__import__"), frag("antigravity")),
        lambda: call(
            glob("torch._utils", "_rebuild_tensor_v2"), *(frag(rng.choice(NUMBERS)) for _ in range(6))
        ),
        lambda: b"\x80\x04\x95" + rng.choice(NUMBERS).to_bytes(9, "little")[:8],
        lambda: b"r" + rng.randbytes(4),
        lambda: b"\x8e" + rng.choice(NUMBERS).to_bytes(9, "little")[:8],
        lambda: b"\x8d" + rng.choice(NUMBERS).to_bytes(9, "little")[:8],
        lambda: b"(" * 2000,
        lambda: b"2" + b"\x86" * 100,
    ]
    return rng.choice(choices)()


def _pickle(data: bytes, rng: Random) -> bytes:
    """Insert, delete, repeat or move opcodes, or change their numbers and names."""
    ops = [(op, arg, at) for op, arg, at in pickletools.genops(data) if at is not None]
    places = [at for _, _, at in ops] + [len(data)]
    kind = rng.randrange(6)
    i = rng.randrange(len(ops))
    at = ops[i][2]
    end = places[i + 1]
    if kind == 0:
        return data[:at] + _evil(rng) + data[at:]
    if kind == 1:
        return data[:at] + data[places[min(i + rng.randrange(1, 4), len(ops))] :]
    if kind == 2:
        j = rng.randrange(len(ops))
        return data[:at] + data[places[j] : places[j + 1]] * rng.choice((1, 1, 100)) + data[at:]
    if kind == 3:
        numbers = [k for k, (o, a, _) in enumerate(ops) if isinstance(a, int) and "INT" in o.name]
        if numbers:
            k = rng.choice(numbers)
            number = rng.choice((*NUMBERS, -1, -(2**31)))
            return data[: places[k]] + hostile.frag(number) + data[places[k + 1] :]
    if kind == 4:
        texts = [k for k, (_, a, _) in enumerate(ops) if isinstance(a, str)]
        if texts:
            k = rng.choice(texts)
            other = ops[rng.choice(texts)][1]
            return data[: places[k]] + hostile.frag(other) + data[places[k + 1] :]
    return _bytes(data[at:end], rng, [data]).join((data[:at], data[end:]))


def _zip(data: bytes, rng: Random, others: list[bytes]) -> bytes:
    """Change an entry, mostly the pickle, and write the archive anew with right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        held = [(e.filename, archive.read(e)) for e in archive.infolist()]
    kind = rng.randrange(10)
    at = rng.randrange(len(held))
    packed = zipfile.ZIP_STORED
    if kind < 6:
        at = next((i for i, (name, _) in enumerate(held) if name.endswith("data.pkl")), at)
        held[at] = (held[at][0], _pickle(held[at][1], rng))
    elif kind == 6:
        held[at] = (held[at][0], _bytes(held[at][1], rng, others))
    elif kind == 7:
        del held[at]
    elif kind == 8:
        name = rng.choice(
            ("../evil", "/tmp/evil", "archive/code/x.py", "archive/constants.pkl", "", "a/b/data.pkl")
        )
        held.insert(at, (name, held[at][1]))
    else:
        packed = zipfile.ZIP_DEFLATED
        held[at] = (held[at][0], b"\0" * 1_000_000)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packed) as archive:
        for name, content in held:
            archive.writestr(name, content)
    return made.getvalue()


def _safetensors(data: bytes, rng: Random) -> bytes:
    """Change the header's JSON and give it its right length."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    text = json.dumps(_json(header, rng)).encode()
    if rng.random() < 0.1:
        text = _bytes(text, rng, [text])
    length = len(text) if rng.random() < 0.9 else rng.choice(NUMBERS) % 2**64
    return length.to_bytes(8, "little") + text + body


def _json(value: Any, rng: Random) -> Any:
    """Change one value somewhere inside."""
    odd: list[Any] = [
        *NUMBERS, -1, 0.5, 1e308, None, True, "", "F32", "I64", "F8_E4M3", "BOOL", "../x.safetensors", "a\0b",
        "/etc/passwd", "s1.safetensors", "a" * 10_000, [], {}, [0, 0], [2**40, 2**40], [1] * 100, ["x"],
        "\ud800",
    ]  # fmt: skip
    if isinstance(value, str) and value[:1] == "{" and rng.random() < 0.9:
        return json.dumps(_json(json.loads(value), rng))  # our own metadata
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        action = rng.random()
        made = dict(value)
        if action < 0.1:
            del made[key]
        elif action < 0.2:
            made[rng.choice([*map(str, odd), rng.choice(list(value))])] = made.pop(key)
        else:
            made[key] = _json(value[key], rng)
        return made
    if isinstance(value, list) and value:
        made_list = list(value)
        i = rng.randrange(len(value))
        if rng.random() < 0.3:
            made_list[i : i + 1] = [value[i]] * rng.choice((0, 2, 3000))
        else:
            made_list[i] = _json(value[i], rng)
        return made_list
    if isinstance(value, int) and rng.random() < 0.5:
        return value + rng.choice((-4, -1, 1, 4, 1000))
    return rng.choice(odd)


SHAPES = ((), (0,), (1,), (4,), (3, 0), (0, 3), (4, 4), (4, 3, 4, 4), (4, 3, 1, 4, 4), (1,) * 9)
DTYPES = (torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn, torch.float64)


def _tensors(state: dict[str, Any], rng: Random) -> dict[str, Any]:
    """Change tensors and names of a state dict, as no damage to bytes would."""
    made = dict(state)
    for _ in range(rng.choice((1, 1, 2, 5))):
        key = rng.choice(list(made))
        value = made[key]
        kind = rng.randrange(9)
        if kind == 0:
            made[key] = torch.zeros(rng.choice(SHAPES))
        elif kind == 1:
            made[key] = value.to(rng.choice(DTYPES))
        elif kind == 2:
            made[key] = value.new_zeros([max(0, n + rng.choice((-1, 0, 0, 1, n))) for n in value.shape])
        elif kind == 3:
            made[key] = value.mT.contiguous() if value.ndim > 1 else value[:-1].clone()
        elif kind == 4:
            del made[key]
        elif kind == 5:
            numbers = ("0", "1", "7", "00", "-1", "99999", "9" * 5000, "\u0663", "x")
            made[re.sub(r"\d+", rng.choice(numbers), key, count=rng.choice((1, 2)))] = made.pop(key)
        elif kind == 6:
            made[rng.choice(("", "a.", "module.", "a\nb\x1b[2J.", "x" * 5000)) + key] = value.clone()
        elif kind == 7:
            made[key] = torch.full_like(value, rng.choice((0, 1))) * float("nan")
        else:
            made[rng.choice(list(state))] = value.clone()
    return made


def _rebuilt(name: str, states: dict[str, dict[str, Any]], rng: Random, folder: Path) -> bytes:
    """A whole file around a changed state dict."""
    state = _tensors(states[name], rng)
    path = folder / "rebuilt"
    if name.endswith(".safetensors"):
        save_file({k: v.contiguous() for k, v in state.items()}, path, {"format": "pt"})
    else:
        wrapped = rng.choice((state, {"model": state}, {"state_dict": state, "meta": None, "extra": [1, ()]}))
        torch.save(wrapped, path, _use_new_zipfile_serialization=rng.random() < 0.8)
    data = path.read_bytes()
    path.unlink()
    return data


def case(
    number: int, seed: int, files: dict[str, bytes], states: dict[str, dict[str, Any]], folder: Path
) -> tuple[str, bytes]:
    """Name and content of a mutated file; depends on the number and the seed only."""
    rng = random.Random(f"{seed}/{number}")
    if rng.random() < 0.3:
        name = rng.choice(list(states))
        with contextlib.suppress(RuntimeError, IndexError, NotImplementedError):  # no such tensor or file
            return name, _rebuilt(name, states, rng, folder)
    name = rng.choice(GOOD if rng.random() < 0.8 else list(files))
    return name, mutate(files[name], rng, list(files.values()))


# -------------------------------------------------- the process that reads


class Watch:
    """An audit hook that notes what a reader must not do, while it is armed."""

    def __init__(self) -> None:
        self.armed = False
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        bad = event.startswith(FORBIDDEN)
        if event == "open":
            bad = _writes(args)
        elif event in ("exec", "compile"):
            file = getattr(args[0], "co_filename", None) if event == "exec" else args[1]
            bad = not isinstance(file, str) or (file.startswith("<") and not file.startswith("<frozen"))
        elif event == "import":
            bad = args[0].split(".")[0] in (
                "os",
                "posix",
                "subprocess",
                "antigravity",
                "nt",
                "shutil",
                "yacs",
            )
        if bad:
            self.seen.append(f"{event} {args!r}"[:300])


def _writes(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return any(c in mode for c in "wax+")
    return bool(isinstance(flags, int) and flags & 3)


def visit(path: Path) -> str:
    """Read the file as `vswin inspect` does, and every number in it; the kind of outcome."""
    try:
        found = inspect(path)
    except VswinError as error:
        if "\n" in error.message or len(error.message) > 20_000:
            raise AssertionError(f"not one line: {error.message[:300]!r}") from error
        return type(error).__name__
    json.dumps(found.to_json())
    if found.checkpoint is not None:
        for tensor in found.checkpoint.state.values():
            tensor.double().sum()
    return "read"


def status_mb(field: str) -> float:
    """VmPeak (addresses) or VmHWM (resident) of this process; 0 where /proc is not there."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    return 0.0


def main(folder: Path, seed: int, first: int, count: int) -> int:
    torch.set_num_threads(1)
    ground = folder / "ground"
    ground.mkdir()
    files = originals(folder)
    for shard in folder.glob("s?.safetensors"):
        (ground / shard.name).write_bytes(shard.read_bytes())
    states = states_of(files, folder)
    laid = set(folder.rglob("*"))
    watch = Watch()
    warm: Counter[str] = Counter()
    for name, data in files.items():  # lazy imports happen here
        path = ground / f"current-warm.{name}"
        path.write_bytes(data)
        warm[visit(path)] += 1
        path.unlink()
    assert warm["read"] >= 8, warm
    for codec in ("ascii", "latin-1", "raw_unicode_escape"):
        codecs.lookup(codec)  # pickle's own decoding, of which Python imports each when it first meets it
    addresses, resident = status_mb("VmPeak"), status_mb("VmHWM")
    # Far above what is allowed, so that a greedy reader is seen and not saved by an error of the allocator.
    limit = int(addresses + 8 * MEMORY_MB) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    outcomes: Counter[str] = Counter()
    slowest, problem = (0.0, -1), ""
    for number in range(first, first + count):
        name, data = case(number, seed, files, states, folder)
        # Tensors may be mapped: a file is never overwritten, only replaced by one of another name.
        path = ground / f"current-{number}.{name}"
        path.write_bytes(data)
        began = time.perf_counter()
        watch.armed = True
        try:
            outcomes[visit(path)] += 1
        except BaseException as error:  # noqa: BLE001
            watch.armed = False
            problem = "".join(traceback.format_exception(error))
            del error
        watch.armed = False
        slowest = max(slowest, (time.perf_counter() - began, number))
        grown = max(status_mb("VmPeak") - addresses, status_mb("VmHWM") - resident)
        if watch.seen:
            problem += f"\nit did: {watch.seen}"
        if grown > MEMORY_MB:
            problem += f"\nit took {grown:.0f} MB"
        if slowest[0] > SLOW_SECONDS:
            problem += f"\nit took {slowest[0]:.0f} s"
        if problem:
            problem = f"{path}: {problem}"
            break
        path.unlink()
    gc.collect()
    strays = sorted(str(p) for p in set(folder.rglob("*")) - laid if not p.name.startswith("current-"))
    print(
        json.dumps(
            {
                "outcomes": outcomes,
                "slowest": {"seconds": round(slowest[0], 3), "number": slowest[1]},
                "grown_mb": round(max(status_mb("VmPeak") - addresses, status_mb("VmHWM") - resident), 1),
                "problem": problem,
                "strays": strays,
                "poisoned": hostile.poisoned(),
            }
        )
    )
    return 1 if problem or strays or hostile.poisoned() else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:5])))
