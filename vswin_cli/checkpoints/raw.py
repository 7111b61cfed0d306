"""Containers: any supported file -> its tensors by its own names, without running what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from vswin_cli.checkpoints.pickles import read_pickle
from vswin_cli.errors import UnreadableError

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".torch", ".pyth")
INDEX_SUFFIX = ".safetensors.index.json"
MAX_INDEX_BYTES = 64 * 2**20

# Containers that hold a state dict, the one to prefer first: timm evaluates its EMA weights.
# mmengine keeps the averaged weights in state_dict and the others in ema_state_dict.
WRAPPERS = (
    "state_dict_ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "weights",
    "model_ema",
    "ema",
    "ema_state_dict",
)


@dataclass
class RawFile:
    """Tensors of a file by the file's own names, before any dialect is applied."""

    path: Path
    state: dict[str, Tensor]
    others: dict[str, str]  # entries that are no tensors -> their type
    wrapper: str
    beside: dict[str, Any]  # what stands beside the state dict in its wrapper
    metadata: dict[str, str]
    nbytes: int


def read_file(path: Path) -> RawFile:
    """Read any supported container without executing anything in it.

    ``path`` is a .pth-like file, a .safetensors file, a shard index (*.safetensors.index.json), or a
    folder that holds one. Raises UnreadableError.
    """
    path = _resolve(path)
    with _io_errors(path):
        raw = _read(path)
    if not raw.state:
        raise UnreadableError(f"{path}: holds no tensors")
    return raw


def _read(path: Path) -> RawFile:
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    with path.open("rb") as file:
        start = file.read(16)
    # By content: .bin and .pt can be either.
    if path.suffix == ".safetensors" or start[8:10] == b'{"' or start[8:10] == b"{}":
        state, metadata = _read_safetensors(path)
        return RawFile(path, state, {}, "", {}, metadata, path.stat().st_size)
    state, others, wrapper, beside = _unwrap(read_pickle(path), path)
    return RawFile(path, state, others, wrapper, beside, {}, path.stat().st_size)


def files_of(path: Path) -> list[Path]:
    """All files that a checkpoint's path stands for: the file, or an index and its shards."""
    path = _resolve(path)
    with _io_errors(path):
        if not path.name.endswith(INDEX_SUFFIX):
            return [path]
        return [path, *(path.parent / name for name in sorted(set(_read_index(path).values())))]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file; of a shard index: over the index, then each shard in order of name."""
    with _io_errors(path):
        digest = hashlib.sha256()
        for part in files_of(path):
            with part.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        return digest.hexdigest()


@contextmanager
def _io_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror or error})") from error


def _resolve(path: Path) -> Path:
    try:
        path.exists()
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{str(path)[:100]!r} cannot be a file ({error})") from error
    if path.is_dir():
        for pattern in ("model" + INDEX_SUFFIX, "model.safetensors", "*" + INDEX_SUFFIX, "*.safetensors"):
            found = sorted(path.glob(pattern))
            if len(found) == 1:
                return found[0]
        raise UnreadableError(
            f"{path} is a folder without one model.safetensors or index file",
            "name the checkpoint file itself",
        )
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES)[:5]
        raise UnreadableError(f"{path}: no such file", f"in that folder: {', '.join(near)}" if near else None)
    if not path.is_file():
        raise UnreadableError(f"{path}: not a regular file")
    return path


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.stat().st_size == 0:
        raise UnreadableError(f"{path}: the file is empty", "download or copy it again")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:
        # The library raises SafetensorError, and other types for dtypes that torch does not have.
        raise UnreadableError(
            f"{path}: not a readable safetensors file ({str(error).strip()[:200]})",
            "download or copy the file again, and compare its size",
        ) from error


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard file name; shards are plain names in the index's own folder."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise UnreadableError(f"{path}: a shard index of {path.stat().st_size:,} bytes")
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        pairs = [(k, v) for k, v in weight_map.items() if isinstance(v, str)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableError(f"{path}: not a shard index (a JSON object with a weight_map)") from error
    if len(pairs) != len(weight_map) or not pairs:
        raise UnreadableError(f"{path}: its weight_map does not map tensor names to file names")
    for key, name in pairs:
        if "/" in name or "\\" in name or ":" in name or "\0" in name or not name.endswith(".safetensors"):
            raise UnreadableError(
                f"{path}: {key} is said to lie in {name!r}; shards are .safetensors files in the same folder"
            )
    return dict(pairs)


def _read_shards(path: Path) -> RawFile:
    weight_map = _read_index(path)
    state: dict[str, Tensor] = {}
    nbytes = path.stat().st_size
    metadata: dict[str, str] = {}
    for name in sorted(set(weight_map.values())):
        shard = path.parent / name
        if not shard.is_file():
            raise UnreadableError(f"{path}: shard {name} is not there", "put all shards into one folder")
        tensors, more = _read_safetensors(shard)
        metadata |= more
        nbytes += shard.stat().st_size
        for key, tensor in tensors.items():
            if weight_map.get(key) == name:
                state[key] = tensor
    if lost := sorted(set(weight_map) - set(state)):
        raise UnreadableError(f"{path}: {len(lost)} tensors are in no shard, for example {lost[0]}")
    return RawFile(path, state, {}, "", {}, metadata, nbytes)


def _unwrap(loaded: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, str], str, dict[str, Any]]:
    """Find the state dict in what a .pth held: (tensors, other entries, path of wrappers, siblings)."""
    trail: list[str] = []
    beside: dict[str, Any] = {}
    while isinstance(loaded, Mapping):
        keys = {k: v for k, v in loaded.items() if isinstance(k, str)}
        if isinstance(keys.get("trunk"), Mapping) and isinstance(keys.get("heads"), Mapping):
            flat = dict(_flatten(keys["trunk"], "trunk.")) | dict(_flatten(keys["heads"], "heads."))
            beside |= {k: v for k, v in keys.items() if k not in ("trunk", "heads")}
            return _tensors(flat, [*trail, "trunk + heads"], beside)
        inner = next((w for w in WRAPPERS if isinstance(keys.get(w), Mapping) and keys[w]), None)
        if inner is None or sum(isinstance(v, Tensor) for v in keys.values()) > 8:
            if not any(isinstance(v, Tensor) for v in keys.values()):
                raise UnreadableError(
                    f"{path}: no state dict in it; it holds {_names(keys)}"
                    + (f" (under {'.'.join(trail)})" if trail else ""),
                    f"known wrappers: {', '.join(WRAPPERS)}",
                )
            return _tensors(keys, trail, beside)
        trail.append(inner)
        beside |= {k: v for k, v in keys.items() if k != inner}
        loaded = keys[inner]
        if len(trail) > 5:
            break
    raise UnreadableError(
        f"{path}: holds a {type(loaded).__name__}, not a state dict",
        "a whole pickled module cannot be read safely; save its state_dict() instead",
    )


def _flatten(mapping: Mapping[Any, Any], prefix: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and depth < 3:
            yield from _flatten(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


def _tensors(
    entries: Mapping[str, Any], trail: list[str], beside: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str], str, dict[str, Any]]:
    state = {k: v for k, v in entries.items() if isinstance(v, Tensor)}
    others = {k: type(v).__name__ for k, v in entries.items() if k not in state}
    return state, others, ".".join(trail), beside


def _names(keys: Mapping[str, Any]) -> str:
    return ", ".join(list(keys)[:6]) or "nothing"
