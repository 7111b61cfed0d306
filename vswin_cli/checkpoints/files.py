"""Checkpoints: a file of any dialect -> native names, strictly, with a report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vswin_cli.checkpoints import dialects
from vswin_cli.checkpoints import plan as plans
from vswin_cli.checkpoints.geometry import infer_config, native_shapes
from vswin_cli.checkpoints.raw import MAX_INDEX_BYTES, SUFFIXES, RawFile, files_of, read_file, sha256_of
from vswin_cli.checkpoints.saving import METADATA_KEY, atomic_file, check_writable, save_native
from vswin_cli.config import ModelConfig, ViewProtocol, Window
from vswin_cli.errors import DialectError, MismatchError, UnreadableError, VswinError
from vswin_cli.labels import labels_for

__all__ = [
    "SUFFIXES",
    "TRAINING_KEY",
    "Checkpoint",
    "RawFile",
    "Report",
    "atomic_file",
    "check_writable",
    "files_of",
    "load_checkpoint",
    "read_file",
    "save_native",
    "sha256_of",
    "translate",
]

#: Metadata key of the state of a training run, which is resumed and not loaded (engine/rundir.py).
TRAINING_KEY = "vswin-training"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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


def load_checkpoint(
    path: Path, *, dialect: str | None = None, window: Window | None = None, ignore: Sequence[str] = ()
) -> Checkpoint:
    """Read a checkpoint of any dialect into native names, strictly.

    ``dialect`` and ``window`` overrule what is inferred; ``ignore`` are patterns (``neck.*``) of
    keys that may be unexpected. Raises UnreadableError, DialectError, or MismatchError, which
    names every missing, unexpected or misshapen key.
    """
    return translate(read_file(path), dialect=dialect, window=window, ignore=ignore)


def translate(
    raw: RawFile, *, dialect: str | None = None, window: Window | None = None, ignore: Sequence[str] = ()
) -> Checkpoint:
    """The second half of :func:`load_checkpoint`: what was read -> native names."""
    if TRAINING_KEY in raw.metadata:
        raise DialectError(
            f"{raw.path}: this is the state of a training run, not a checkpoint",
            f"go on with it: vswin finetune --resume --out {shlex.quote(str(raw.path.parent))}; "
            "its best weights are in best.safetensors beside it",
        )
    described = _described(raw)
    shapes = {k: tuple(v.shape) for k, v in raw.state.items()}
    if described is not None and dialect in (None, dialects.NATIVE.name):
        found = plans.Detection(dialects.NATIVE, "", "", ("says so in its metadata",))
    elif dialect == dialects.NATIVE.name:
        raise DialectError(f"{raw.path}: has no vswin metadata, so it is not native")
    else:
        try:
            found = plans.detect(shapes, dialect, raw.beside)
        except DialectError as error:
            raise DialectError(f"{raw.path}: {error.message}", error.hint) from error
    plan = plans.plan(shapes, found)
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
    found: plans.Detection,
    plan: plans.Plan,
    report: Report,
    described: dict[str, Any] | None,
    window: Window | None,
) -> Checkpoint:
    shapes = {k: tuple(v.shape) for k, v in raw.state.items()}
    made: dict[str, tuple[int, ...]] = {}
    for step in plan.steps:
        if step.native in made:
            raise MismatchError(f"two sets of keys make {step.native}, the second from {step.sources[0]}")
        made[step.native] = plans.step_shape(step, shapes)
    config = (
        ModelConfig.from_json(described["config"])
        if described is not None
        else infer_config(made, plan.window_tokens, window)
    )
    if described is not None and window is not None and window != config.window:
        raise DialectError(
            f"--window {window} is not the file's own window, {config.window}",
            "leave --window out: this file says its window itself",
        )
    blocks = sum("relative_position_bias_table" in name for name in made)
    if sum(config.depths) != blocks:
        raise MismatchError(f"the file has {blocks} blocks, its config says {sum(config.depths)}")
    expected = native_shapes(config)
    report.missing += [n for n in expected if n not in made]
    state: dict[str, Tensor] = {}
    for step in plan.steps:
        wanted = expected.get(step.native)
        if wanted is None:
            report.unexpected += step.sources
        elif made[step.native] != wanted:
            report.mismatched[step.sources[0]] = f"shape {shapes[step.sources[0]]}, {wanted} expected"
        elif odd := [s for s in step.sources if raw.state[s].dtype not in FLOATS]:
            report.mismatched[odd[0]] = f"{raw.state[odd[0]].dtype}, fp16, bf16, fp32 or fp64 expected"
        else:
            state[step.native] = _make(step, raw.state)
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


def _make(step: plans.Step, state: Mapping[str, Tensor]) -> Tensor:
    """The native tensor of a step; shares memory with the file's wherever values stay in place."""
    first = state[step.sources[0]]
    if step.how == "frame" and first.ndim == 4:
        return first.unsqueeze(2)
    if step.how == "join":
        return torch.cat([state[s] for s in step.sources])
    if step.how == "unfold":
        order = torch.tensor(plans.unfold_to_official(first.shape[-1]))
        return first.index_select(-1, order)
    return first


def _check(report: Report, found: plans.Detection) -> None:
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
