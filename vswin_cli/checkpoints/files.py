"""Checkpoint files: safe reading, strict translation with a report, atomic self-describing saving."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from vswin_cli.checkpoints import dialects
from vswin_cli.checkpoints.pickles import read_pickle
from vswin_cli.config import ModelConfig, ViewProtocol, Window
from vswin_cli.errors import DialectError, MismatchError, OutputError, UnreadableError, VswinError
from vswin_cli.labels import labels_for

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".torch", ".pyth")
INDEX_SUFFIX = ".safetensors.index.json"
METADATA_KEY = "vswin"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
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
class Report:
    """What became of every key of a file. Lists hold the file's names, ``missing`` native ones."""

    loaded: list[str] = field(default_factory=list)
    transformed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Counts and, but for the keys simply loaded, names."""
        return {
            "loaded": len(self.loaded),
            "transformed": dict(self.transformed),
            "dropped": dict(self.dropped),
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "mismatched": dict(self.mismatched),
        }


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


@dataclass
class Checkpoint:
    """A checkpoint in native names, with all that is known about it.

    state:    native name -> tensor (CPU; often memory-mapped: do not write into it)
    origins:  native name -> the file's keys it was made from
    evidence: why we think it is this dialect, in short phrases
    """

    path: Path
    dialect: str
    evidence: tuple[str, ...]
    state: dict[str, Tensor]
    origins: dict[str, tuple[str, ...]]
    config: ModelConfig
    labels: tuple[str, ...] | None
    protocol: ViewProtocol | None
    report: Report
    sha256: str
    nbytes: int
    source: dict[str, Any]
    note: str | None = None


# ------------------------------------------------------------------------------------------------
# Reading


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


# ------------------------------------------------------------------------------------------------
# Translating


def load_checkpoint(
    path: Path, *, dialect: str | None = None, window: Window | None = None, ignore: Sequence[str] = ()
) -> Checkpoint:
    """Read a checkpoint of any dialect into native names, strictly.

    ``dialect`` and ``window`` overrule what is inferred; ``ignore`` are patterns (``neck.*``) of
    keys that may be unexpected. Raises UnreadableError, DialectError, or MismatchError, which
    names every missing, unexpected or misshapen key.
    """
    raw = read_file(path)
    described = _described(raw)
    shapes = {k: tuple(v.shape) for k, v in raw.state.items()}
    if described is not None and dialect in (None, dialects.NATIVE.name):
        found = dialects.Detection(dialects.NATIVE, "", "", ("says so in its metadata",))
    elif dialect == dialects.NATIVE.name:
        raise DialectError(f"{raw.path}: has no vswin metadata, so it is not native")
    else:
        try:
            found = dialects.detect(shapes, dialect, raw.beside)
        except DialectError as error:
            raise DialectError(f"{raw.path}: {error.message}", error.hint) from error
    plan = dialects.plan(shapes, found)
    report = Report(dropped=plan.dropped | {k: f"not a tensor but {t}" for k, t in raw.others.items()})
    for key in plan.unexpected:
        if any(fnmatchcase(key, pattern) for pattern in ignore):
            report.dropped[key] = "ignored, as asked"
        else:
            report.unexpected.append(key)
    report.missing = plan.missing
    try:
        return _translate(raw, found, plan, report, described, window)
    except (MismatchError, DialectError) as error:
        raise type(error)(f"{raw.path}: {error.message}", error.hint) from error


def _translate(
    raw: RawFile,
    found: dialects.Detection,
    plan: dialects.Plan,
    report: Report,
    described: dict[str, Any] | None,
    window: Window | None,
) -> Checkpoint:
    shapes = {k: tuple(v.shape) for k, v in raw.state.items()}
    made: dict[str, tuple[int, ...]] = {}
    for step in plan.steps:
        if step.native in made:
            raise MismatchError(f"two sets of keys make {step.native}, the second from {step.sources[0]}")
        made[step.native] = dialects.step_shape(step, shapes)
    config = (
        ModelConfig.from_json(described["config"])
        if described is not None
        else dialects.infer_config(made, plan.window_tokens, window)
    )
    if described is not None and window is not None and window != config.window:
        raise DialectError(
            f"--window {window} is not the file's own window, {config.window}",
            "leave --window out: this file says its window itself",
        )
    blocks = sum("relative_position_bias_table" in name for name in made)
    if sum(config.depths) != blocks:
        raise MismatchError(f"the file has {blocks} blocks, its config says {sum(config.depths)}")
    expected = dialects.native_shapes(config)
    report.missing += [n for n in expected if n not in made]
    state: dict[str, Tensor] = {}
    for step in plan.steps:
        wanted = expected.get(step.native)
        if wanted is None:
            report.unexpected += step.sources
        elif made[step.native] != wanted:
            report.mismatched[step.sources[0]] = f"shape {shapes[step.sources[0]]}, {wanted} expected"
        else:
            tensor = _make(step, raw.state)
            if tensor.dtype not in FLOATS:
                report.mismatched[step.sources[0]] = f"{tensor.dtype}, fp16, bf16, fp32 or fp64 expected"
                continue
            state[step.native] = tensor
            if step.how == "copy":
                report.loaded += step.sources
            else:
                report.transformed |= dict.fromkeys(step.sources, _HOW[step.how])
    _check(report, found)
    state = {name: state[name] for name in expected}
    protocol = labels = None
    source: dict[str, Any] = {}
    if described is not None:
        protocol = ViewProtocol.from_json(described["protocol"]) if described.get("protocol") else None
        labels = described.get("labels")
        source = described.get("source") or {}
    elif config.num_classes:
        labels = _labels_beside(raw)
    evidence = found.evidence + ((f"wrapper {raw.wrapper}",) if raw.wrapper else ())
    if "state_dict_ema" in raw.wrapper:
        evidence += ("its averaged (EMA) weights are used",)
    return Checkpoint(
        path=raw.path,
        dialect=found.dialect.name,
        evidence=evidence,
        state=state,
        origins={step.native: step.sources for step in plan.steps},
        config=config,
        labels=_fitting(labels, config.num_classes),
        protocol=protocol,
        report=report,
        sha256=sha256_of(raw.path),
        nbytes=raw.nbytes,
        source=source,
        note=found.dialect.note,
    )


_HOW = {
    "frame": "given a time axis of one frame",
    "join": "query, key and value joined",
    "unfold": "merging channels put into the official order",
}


def _make(step: dialects.Step, state: Mapping[str, Tensor]) -> Tensor:
    """The native tensor of a step; shares memory with the file's wherever values stay in place."""
    first = state[step.sources[0]]
    if step.how == "frame" and first.ndim == 4:
        return first.unsqueeze(2)
    if step.how == "join":
        return torch.cat([state[s] for s in step.sources])
    if step.how == "unfold":
        order = torch.tensor(dialects.unfold_to_official(first.shape[-1]))
        return first.index_select(-1, order)
    return first


def _check(report: Report, found: dialects.Detection) -> None:
    """Raise MismatchError unless every key has found its place."""
    problems = []
    for what, names in (
        ("missing", report.missing),
        ("unexpected", report.unexpected),
        ("of the wrong shape", [f"{k} ({v})" for k, v in report.mismatched.items()]),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            problems.append(f"{len(names)} keys {what}: {', '.join(names[:5])}{more}")
    if problems:
        only_unexpected = report.unexpected and not report.missing and not report.mismatched
        patterns = dict.fromkeys(k.partition(".")[0] + ".*" if "." in k else k for k in report.unexpected)
        ignore = " ".join(f"--ignore {shlex.quote(p)}" for p in list(patterns)[:5])
        raise MismatchError(
            f"read as {found.dialect.name}, but " + "; ".join(problems),
            f"if those keys do not matter: {ignore}" if only_unexpected else "--dialect overrules detection",
        )


def _described(raw: RawFile) -> dict[str, Any] | None:
    """The vswin metadata of a native file, checked for its types; None for foreign files."""
    text = raw.metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        data = json.loads(text)
        labels = data.get("labels")
        if not isinstance(data["config"], dict) or not isinstance(data.get("source", {}), dict | None):
            raise TypeError("config and source must be objects")
        if labels is not None and not (isinstance(labels, list) and all(isinstance(x, str) for x in labels)):
            raise TypeError("labels must be a list of strings")
        ModelConfig.from_json(data["config"])
        if data.get("protocol") is not None:
            ViewProtocol.from_json(data["protocol"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, VswinError) as error:
        raise UnreadableError(f"{raw.path}: its vswin metadata cannot be read ({error})") from error
    return dict(data)


def _labels_beside(raw: RawFile) -> Sequence[str] | None:
    """Class names that the file's own library keeps with it, if any.

    mmaction2 and mmpretrain: meta.dataset_meta.classes or meta.CLASSES; transformers: id2label in
    the config.json beside the file.
    """
    meta = raw.beside.get("meta")
    if isinstance(meta, Mapping):
        inner = meta.get("dataset_meta")
        names = inner.get("classes") if isinstance(inner, Mapping) else meta.get("CLASSES")
        if isinstance(names, list | tuple) and names and all(isinstance(n, str) for n in names):
            return list(names)
    config = raw.path.with_name("config.json")
    if raw.path.suffix in (".safetensors", ".bin", ".json") and config.is_file():
        try:
            if config.stat().st_size < MAX_INDEX_BYTES:
                names = json.loads(config.read_text(encoding="utf-8")).get("id2label")
                if isinstance(names, dict) and all(isinstance(v, str) for v in names.values()):
                    return [names[str(i)] for i in range(len(names))]
        except (ValueError, KeyError, AttributeError, RecursionError, OSError):
            return None  # Somebody else's config.json: labels stay numbered, and the table says so.
    return None


def _fitting(labels: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """The file's labels where they are as many as its classes; else the shipped ones for that number."""
    if labels is not None and len(labels) == num_classes:
        return tuple(labels)
    return labels_for(num_classes)


# ------------------------------------------------------------------------------------------------
# Writing


def check_writable(path: Path, force: bool, sources: Sequence[Path] = ()) -> None:
    """Raise OutputError where ``path`` may not be written: exists, is a source, has no folder."""
    try:
        path.exists()
    except OSError as error:
        raise OutputError(f"{path}: cannot be a file ({error.strerror})") from error
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise OutputError(f"{path} is the source itself", "name another output file")
    if path.is_dir():
        raise OutputError(f"{path} is a folder", f"name a file in it: {path / 'model.safetensors'}")
    if path.exists() and not force:
        raise OutputError(f"{path} exists already", "add --force to overwrite it")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} is not a folder", f"mkdir -p {path.parent}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary file in the same folder, and put it in place of ``path`` if all goes well."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp gives 0600; a new file should have what open() would have given it.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_native(
    path: Path,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    labels: Sequence[str] | None,
    protocol: ViewProtocol | None,
    source: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
) -> None:
    """Write a native checkpoint: safetensors, official names, everything about it in the metadata.

    Atomic; raises OutputError. Callers ask check_writable first, before they compute.
    """
    from vswin_cli import __version__

    described = {
        "config": config.to_json(),
        "labels": None if labels is None else list(labels),
        "protocol": None if protocol is None else protocol.to_json(),
        "source": dict(source),
        "report": None if report is None else dict(report),
        "vswin": __version__,
    }
    metadata = {METADATA_KEY: json.dumps(described, sort_keys=True), "format": "pt"}
    with atomic_file(path) as temporary:
        try:
            save_file(_separate(state), temporary, metadata)
        except safetensors.SafetensorError as error:
            # A full disk arrives as the library's own error type.
            raise OutputError(f"{path}: cannot be written ({error})") from error


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, no two of which share memory (safetensors refuses those)."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        shared = place in seen or not whole
        separate[name] = (
            tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
        )
        seen.add(place)
    return separate
