"""What becomes of each key: which dialect a file speaks, which native parameter a key is, and the way back.

Works on names and shapes alone; never imports torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from vswin_cli.checkpoints.dialects import DIALECTS, TIMM_OLD, Dialect, Rule, dialect_named
from vswin_cli.checkpoints.geometry import Shape, Shapes, native_shapes
from vswin_cli.config import ModelConfig
from vswin_cli.errors import DialectError, MismatchError

_OTHERS = (
    (r"attn\.logit_scale|cpb_mlp|continuous_position_bias_mlp|relative_coords_table|rpe_mlp", "a Swin V2"),
    (r"(^|\.)timeattn\.|temporal_attn", "a TimeSformer"),
    (r"(^|\.)rel_pos_[hwt]$|pool_[qkv]\.|(^|\.)pool_[qkv]$|norm_pool", "an MViT"),
    (r"downsample_layers\.", "a ConvNeXt"),
    (r"(^|\.)layer1\.0\.(conv1|bn1)", "a ResNet"),
    (r"multipathway|pathway0", "a SlowFast or another PyTorchVideo model"),
    (r"(^|\.)cls_token$|(^|\.)class_token$|encoder\.layer\.0\.attention|(^|\.)blocks\.0\.attn\.qkv", "a ViT"),
)


# ------------------------------------------------------------------------------------------------
# Detection


@dataclass(frozen=True)
class Detection:
    """Which dialect a file speaks, where in its keys the backbone lies, and how we know."""

    dialect: Dialect
    outer: str
    prefix: str
    evidence: tuple[str, ...]


def detect(shapes: Shapes, dialect: str | None = None, beside: Iterable[str] = ()) -> Detection:
    """Tell the dialect from key names and shapes, or find where the given one's backbone lies.

    ``beside`` are the names that stand beside the state dict in its wrapper.

    Raises DialectError: not a Swin (by name, where it is a known other model), two backbones, or
    the given dialect does not fit.
    """
    for pattern, name in _OTHERS[:1]:
        if found := _first(shapes, pattern):
            raise DialectError(
                f"this is {name} checkpoint (key {found}); its attention differs from Swin's",
                "vswin reads Swin (V1) and Video Swin checkpoints",
            )
    candidates = [dialect_named(dialect)] if dialect else list(DIALECTS.values())
    if dialect == TIMM_OLD.name:
        candidates.append(TIMM_OLD)
    seen: list[str] = []
    for candidate in candidates:
        for whole in _backbones(shapes, candidate.patch):
            prefix = next((p for p in candidate.prefixes if whole.endswith(p)), None)
            if prefix is None or (prefix and whole != prefix and not whole.endswith("." + prefix)):
                continue
            evidence = _fits(shapes, candidate, whole)
            if isinstance(evidence, str):
                seen.append(f"{candidate.name}: {evidence}")
                continue
            outer = whole[: len(whole) - len(prefix)]
            if outer:
                evidence.append(f"all under {outer!r}")
            if candidate.name == "microsoft-2d" and "arch" in beside:
                candidate = TIMM_OLD
                evidence.append("'arch' beside the weights: a timm training file")
            return Detection(candidate, outer, prefix, tuple(evidence))
    if dialect:
        why = seen[0].partition(": ")[2] if seen else f"no key ends in {candidates[0].patch}"
        raise DialectError(
            f"the file is not {dialect}: {why}", "leave --dialect out to have the dialect detected"
        )
    for pattern, name in _OTHERS:
        if found := _first(shapes, pattern):
            raise DialectError(
                f"this looks like {name} checkpoint (key {found}), not a Swin",
                "vswin reads Swin (V1) and Video Swin checkpoints",
            )
    sample = ", ".join(list(shapes)[:4]) or "none"
    raise DialectError(
        f"no Swin dialect fits these {len(shapes)} keys (first: {sample})"
        + (f"; nearest: {seen[0]}" if seen else ""),
        f"known dialects: {', '.join(DIALECTS)}",
    )


def _first(shapes: Shapes, pattern: str) -> str | None:
    regex = re.compile(pattern)
    return next((k for k in shapes if regex.search(k)), None)


def _backbones(shapes: Shapes, patch: str) -> list[str]:
    """Everything that stands before the patch key; momentum copies of a backbone do not count."""
    whole = [k[: -len(patch)] for k in shapes if k == patch or k.endswith("." + patch)]
    whole = [w for w in whole if "encoder_k." not in w]
    if len(whole) > 1:
        raise DialectError(
            f"the file holds {len(whole)} backbones, under {', '.join(repr(w) for w in whole)}",
            "save the one you want into a file of its own",
        )
    return whole


def _fits(shapes: Shapes, dialect: Dialect, whole: str) -> list[str] | str:
    """Evidence for the dialect, or in one phrase why it is not."""
    keys = [k[len(whole) :] for k in shapes if k.startswith(whole)]
    patch = shapes[whole + dialect.patch]
    rank = 4 if dialect.dim == 2 else 5
    if dialect.dim and len(patch) != rank:
        return f"{whole}{dialect.patch} has shape {patch}, {rank} axes expected"
    evidence = [f"{dialect.patch} {patch}: {'images' if len(patch) == 4 else 'video'}"]
    for pattern in dialect.requires:
        rule = Rule(pattern, None)
        found = next((k for k in keys if rule.match(k) is not None), None)
        if found is None:
            return f"no key {whole}{pattern}"
        evidence.append(f"has {found}")
    for key in dialect.absent:
        if key in keys:
            return f"has a key {whole}{key}"
        evidence.append(f"has no {key}")
    return evidence


# ------------------------------------------------------------------------------------------------
# Applying a dialect


@dataclass(frozen=True)
class Step:
    """One native parameter: made from ``sources`` (three for a 'join', in order) by ``how``."""

    native: str
    sources: tuple[str, ...]
    how: str


@dataclass
class Plan:
    """What becomes of every key of a file."""

    steps: list[Step] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    window_tokens: dict[int, int] = field(default_factory=dict)


def plan(shapes: Shapes, found: Detection) -> Plan:
    """Assign every key of the file to one native parameter or one reason for dropping it."""
    result = Plan()
    joins: dict[str, dict[int, str]] = {}
    numbered: list[tuple[int, str, str]] = []
    for key, shape in shapes.items():
        match = _match(key, found)
        if match is None:
            result.unexpected.append(key)
            continue
        rule, values = match
        if rule.native is None:
            result.dropped[key] = rule.why
            if rule.buffer == "index":
                # (N, N), or flattened by torchvision's 2D models.
                result.window_tokens[int(values["i"])] = math.isqrt(math.prod(shape))
        elif rule.how == "join":
            joins.setdefault(rule.native.format(**values), {})[rule.part] = key
        elif rule.how == "last":
            numbered.append((int(values["n"]), rule.native.format(**values), key))
        else:
            result.steps.append(Step(rule.native.format(**values), (key,), rule.how))
    for native, parts in joins.items():
        if len(parts) < 3:
            result.missing.append(f"{native} (needs query, key and value; has {len(parts)} of them)")
        else:
            result.steps.append(Step(native, tuple(parts[k] for k in range(3)), "join"))
    last = max((n for n, _, _ in numbered), default=None)
    for n, native, key in numbered:
        if n == last:
            result.steps.append(Step(native, (key,), "copy"))
        else:
            result.dropped[key] = f"norm of an earlier output; norm{last} is the final one"
    return result


#: What training tools put beside the weights of any dialect.
_ANYWHERE = (Rule("n_averaged", None, why="counter of torch's AveragedModel"),)


def _match(key: str, found: Detection) -> tuple[Rule, dict[str, str]] | None:
    inner = key[len(found.outer) :] if key.startswith(found.outer) else ""
    attempts: list[tuple[str, Iterable[Rule]]] = [(inner, found.dialect.top)]
    if inner.startswith(found.prefix):
        attempts.insert(0, (inner[len(found.prefix) :], found.dialect.backbone))
    for name, rules in [*attempts, (key, _ANYWHERE)]:
        for rule in rules:
            if (values := rule.match(name)) is not None:
                return rule, values
    return None


def step_shape(step: Step, shapes: Shapes) -> Shape:
    """Shape of the native parameter that a step makes. Raises MismatchError for parts that do not fit."""
    shape = tuple(shapes[step.sources[0]])
    if odd := next((s for s in step.sources if tuple(shapes[s]) != shape), None):
        raise MismatchError(f"{odd} has shape {shapes[odd]}, but {step.sources[0]} has {shape}")
    if step.how == "join" and not shape:
        raise MismatchError(f"{step.sources[0]} is a single number")
    if step.how == "frame" and len(shape) == 4:
        return (*shape[:2], 1, *shape[2:])
    if step.how == "join":
        return (len(step.sources) * shape[0], *shape[1:])
    return shape


def unfold_to_official(channels: int) -> list[int]:
    """Order that turns nn.Unfold's 4C merged channels into the official ones: new[k] = old[order[k]].

    nn.Unfold is channel-major with (h, w) = (0,0), (0,1), (1,0), (1,1) inside; official merging is
    four blocks of C in the order (0,0), (1,0), (0,1), (1,1).
    """
    blocks = channels // 4
    return [c * 4 + place for place in (0, 2, 1, 3) for c in range(blocks)]


# ------------------------------------------------------------------------------------------------
# The way back


@dataclass(frozen=True)
class Entry:
    """One tensor of a file to be written: made from a native parameter, or from the geometry alone.

    what:  'copy'; 'flat frame' takes the time axis off a 2D patch weight; 'third' is one of q, k and v;
           'index' and 'mask' are the buffers of a block
    third: which one
    stage: of a buffer's block
    """

    key: str
    what: Literal["copy", "flat frame", "third", "index", "mask"]
    native: str = ""
    third: int = 0
    stage: int = 0


_BACKWARD: dict[str, Literal["copy", "flat frame", "third"]] = {
    "copy": "copy",
    "last": "copy",
    "frame": "flat frame",
    "join": "third",
}


def entries(config: ModelConfig, dialect: Dialect, shifted: Iterable[int]) -> list[Entry]:
    """The tensors of a model's file in a dialect, by the rules that read it, backwards.

    ``shifted`` are the stages whose odd blocks shift at the image size that masks are stored for.
    """
    prefix = dialect.prefix if config.num_classes or dialect.bare is None else dialect.bare
    rules = [(prefix, rule) for rule in dialect.backbone] + [("", rule) for rule in dialect.top]
    masked = set(shifted) if dialect.masks else set()
    made: list[Entry] = []
    for native in native_shapes(config):
        thirds: set[int] = set()
        for start, rule in rules:
            key = rule.invert(native, len(config.depths) - 1)
            if key is None or rule.part in thirds:
                continue
            made.append(Entry(start + key, _BACKWARD[rule.how], native, rule.part))
            thirds.add(rule.part)
            if rule.how != "join" or len(thirds) == 3:
                break
        block = re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table", native)
        if block is not None:
            stage, number = int(block[1]), int(block[2])
            wanted = {"index": bool(dialect.index), "mask": stage in masked and number % 2 == 1}
            made += [
                Entry(prefix + rule.write({"i": block[1], "j": block[2]}), rule.buffer, stage=stage)
                for rule in dialect.backbone
                if rule.buffer and wanted[rule.buffer]
            ]
    return made
