"""Every known Swin checkpoint dialect, as a table of rules over key names. Never imports torch.

A rule maps a foreign key pattern to a native one. Native names are the official ones
(``layers.0.blocks.1.attn.qkv.weight``). In a pattern ``{i}`` is a stage, ``{j}`` a block, ``{n}``
any number, ``{p}`` weight or bias, ``{rest}`` anything. A rule whose native side is None drops the
key on purpose and says why. The tables follow the sources that are named beside them; all key
lists were checked against files that those libraries wrote.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from vswin_cli.config import ModelConfig, Window
from vswin_cli.errors import DialectError, MismatchError, UsageError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

MAX_TABLE_ROWS = 10**6  # window (8,12,12) has 7,935

DERIVED = "buffer, derived from the window"


@dataclass(frozen=True)
class Rule:
    """One line of a dialect's table.

    stage: (a, b): the foreign stage number is a * i + b, for libraries that number layers otherwise
    how:   'copy'; 'frame' adds the time axis of a 2D patch weight; 'unfold' reorders the channels
           of nn.Unfold to those of the official merging; 'join' puts q, k and v together
    part:  the place among the three of a 'join'
    why:   reason for a drop (native None)
    """

    foreign: str
    native: str | None
    how: str = "copy"
    stage: tuple[int, int] = (1, 0)
    part: int = 0
    why: str = ""

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        kinds = {"i": r"(?P<i>\d+)", "j": r"(?P<j>\d+)", "n": r"(?P<n>\d+)"}
        kinds |= {"p": "(?P<p>weight|bias)", "rest": "(?P<rest>.*)"}
        parts = re.split(r"\{(\w+)\}", self.foreign)
        return re.compile("".join(kinds[p] if k % 2 else re.escape(p) for k, p in enumerate(parts)))

    def match(self, key: str) -> dict[str, str] | None:
        """The pattern's fields, with the native stage number as ``i``; None where it does not match."""
        found = self._regex.fullmatch(key)
        if found is None:
            return None
        values = found.groupdict()
        if "i" in values:
            stage, rest = divmod(int(values["i"]) - self.stage[1], self.stage[0])
            if rest or stage < 0:
                return None
            values["i"] = str(stage)
        return values


@dataclass(frozen=True)
class Dialect:
    """How one library names the parameters of a Swin.

    prefix:   what the library puts before backbone keys; the others in ``prefixes`` are read too
    patch:    backbone key of the patch embedding's weight, by which the backbone is found
    backbone: rules for keys under the prefix
    top:      rules for keys beside the backbone (heads, training state)
    requires, absent: backbone keys (patterns) that tell this dialect from others with the same patch key
    """

    name: str
    dim: int
    patch: str
    backbone: tuple[Rule, ...]
    top: tuple[Rule, ...]
    prefix: str = ""
    prefixes: tuple[str, ...] = ("",)
    requires: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    note: str | None = None


def _pairs(*names: tuple[str, str]) -> tuple[Rule, ...]:
    """Rules that copy weight and bias from the first name to the second."""
    return tuple(Rule(a + ".{p}", b + ".{p}") for a, b in names)


_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_TABLE = "attn.relative_position_bias_table"


def _blocks(
    foreign: str, names: Mapping[str, str], stage: tuple[int, int] = (1, 0), table: str = _TABLE
) -> tuple[Rule, ...]:
    """Rules for the blocks under ``foreign``; ``names`` renames those of _BLOCK that differ."""
    native = "layers.{i}.blocks.{j}."
    index = table.replace("bias_table", "index")
    return (
        *(
            Rule(f"{foreign}.{names.get(n, n)}.{{p}}", f"{native}{n}.{{p}}", stage=stage)
            for n in _BLOCK
            if names.get(n) != ""
        ),
        Rule(f"{foreign}.{table}", native + _TABLE, stage=stage),
        Rule(f"{foreign}.{index}", None, stage=stage, why=DERIVED),
        Rule(f"{foreign}.attn_mask", None, stage=stage, why=DERIVED),
    )


def _merging(foreign: str, stage: tuple[int, int] = (1, 0), how: str = "copy") -> tuple[Rule, ...]:
    native = "layers.{i}.downsample"
    return (
        Rule(f"{foreign}.reduction.weight", f"{native}.reduction.weight", how, stage),
        Rule(f"{foreign}.norm.{{p}}", f"{native}.norm.{{p}}", how, stage),
    )


def _patch(proj: str, norm: str, dim: int) -> tuple[Rule, ...]:
    return (
        Rule(f"{proj}.weight", "patch_embed.proj.weight", "copy" if dim == 3 else "frame"),
        Rule(f"{proj}.bias", "patch_embed.proj.bias"),
        *_pairs((norm, "patch_embed.norm")),
    )


_HEAD = _pairs(("head", "head"))
_FC_CLS = _pairs(("cls_head.fc_cls", "head"))
_OFFICIAL_BLOCKS = _blocks("layers.{i}.blocks.{j}", {}) + _merging("layers.{i}.downsample")
_OFFICIAL_PATCH_3D = _patch("patch_embed.proj", "patch_embed.norm", 3)
_NORM = _pairs(("norm", "norm"))
# One norm per output; the last is the model's final norm, see plan().
_NORM_N = (Rule("norm{n}.{p}", "norm.{p}", "last"),)
_MIM = "only used in masked image modelling"
_SELF_SUPERVISED = "only used in self-supervised training"
_PREPROCESSOR = (
    Rule("data_preprocessor.{rest}", None, why="input statistics, the same for all Swin models"),
)
_HF_NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.qkv": "",
}


def _hf_blocks(attention: str, qkv: Sequence[str], names: Mapping[str, str], table: str) -> tuple[Rule, ...]:
    base = "encoder.layers.{i}.blocks.{j}"
    joined = tuple(
        Rule(f"{base}.{attention}.{n}.{{p}}", "layers.{i}.blocks.{j}.attn.qkv.{p}", "join", part=k)
        for k, n in enumerate(qkv)
    )
    return _blocks(base, {**_HF_NAMES, **names}, table=table) + joined


_HF_COMMON = (
    *_patch("embeddings.patch_embeddings.projection", "embeddings.norm", 2),
    *_merging("encoder.layers.{i}.downsample"),
    *_pairs(("layernorm", "norm")),
    Rule("embeddings.mask_token", None, why=_MIM),
)
# transformers, modeling_swin.py: what hub repositories hold ...
_HF_HUB = _hf_blocks(
    "attention.self",
    ("query", "key", "value"),
    {"attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"},
    "attention.self.relative_position_bias_table",
)
# ... and what transformers 5 names them in memory.
_HF_MEMORY = _hf_blocks(
    "attention",
    ("q_proj", "k_proj", "v_proj"),
    {"attn.proj": "attention.o_proj"},
    "attention.relative_position_bias.relative_position_bias_table",
)

#: In the order in which detection tries them.
DIALECTS: dict[str, Dialect] = {
    d.name: d
    for d in (
        # timm/models/swin_transformer.py, 0.9 and later: merging stands at the start of the next stage.
        Dialect(
            "timm-2d",
            2,
            "patch_embed.proj.weight",
            _patch("patch_embed.proj", "patch_embed.norm", 2)
            + _blocks("layers.{i}.blocks.{j}", {})
            + _merging("layers.{i}.downsample", (1, 1))
            + _NORM,
            _pairs(("head.fc", "head")),
            requires=("layers.1.downsample.reduction.weight",),
            absent=("layers.0.downsample.reduction.weight",),
        ),
        # microsoft/Swin-Transformer models/swin_transformer.py; timm up to 0.8 has the same keys.
        # SimMIM and MoBY put the backbone under "encoder.".
        Dialect(
            "microsoft-2d",
            2,
            "patch_embed.proj.weight",
            _patch("patch_embed.proj", "patch_embed.norm", 2)
            + _OFFICIAL_BLOCKS
            + _NORM
            + (Rule("mask_token", None, why=_MIM),),
            (
                *_HEAD,
                Rule("decoder.{rest}", None, why=_MIM),
                Rule("encoder_k.{rest}", None, why="momentum encoder, " + _SELF_SUPERVISED),
                Rule("projector.{rest}", None, why=_SELF_SUPERVISED),
                Rule("projector_k.{rest}", None, why=_SELF_SUPERVISED),
                Rule("predictor.{rest}", None, why=_SELF_SUPERVISED),
                Rule("queue{rest}", None, why=_SELF_SUPERVISED),
            ),
            prefixes=("encoder.", "backbone.", "trunk.", ""),
        ),
        # transformers/models/swin/modeling_swin.py
        Dialect(
            "huggingface-2d",
            2,
            "embeddings.patch_embeddings.projection.weight",
            _HF_COMMON + _HF_HUB + _HF_MEMORY,
            (*_pairs(("classifier", "head")), Rule("decoder.{rest}", None, why=_MIM)),
            prefix="swin.",
            prefixes=("swin.", ""),
        ),
        # torchvision/models/swin_transformer.py
        Dialect(
            "torchvision-2d",
            2,
            "features.0.0.weight",
            _patch("features.0.0", "features.0.2", 2)
            + _blocks("features.{i}.{j}", {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}, (2, 1))
            + _merging("features.{i}", (2, 2))
            + _NORM,
            _HEAD,
            requires=("features.1.0.attn.relative_position_bias_table",),
        ),
        # mmpretrain (mmcls, mmdet) models/backbones/swin_transformer.py: merging by nn.Unfold.
        Dialect(
            "mmpretrain-2d",
            2,
            "patch_embed.projection.weight",
            _patch("patch_embed.projection", "patch_embed.norm", 2)
            + _blocks(
                "stages.{i}.blocks.{j}",
                {
                    "attn.qkv": "attn.w_msa.qkv",
                    "attn.proj": "attn.w_msa.proj",
                    "mlp.fc1": "ffn.layers.0.0",
                    "mlp.fc2": "ffn.layers.1",
                },
                table="attn.w_msa.relative_position_bias_table",
            )
            + _merging("stages.{i}.downsample", how="unfold")
            + _NORM_N,
            _pairs(("head.fc", "head")) + _PREPROCESSOR,
            prefix="backbone.",
            prefixes=("backbone.", ""),
        ),
        # mmaction2 1.x models/backbones/swin.py, class SwinTransformer3D: the final norm is numbered.
        Dialect(
            "mmaction2-3d",
            3,
            "patch_embed.proj.weight",
            _OFFICIAL_PATCH_3D + _OFFICIAL_BLOCKS + _NORM_N,
            _FC_CLS + _PREPROCESSOR,
            prefix="backbone.",
            prefixes=("backbone.", ""),
            requires=("layers.0.blocks.0.norm1.weight", "norm{n}.weight"),
            absent=("norm.weight",),
        ),
        # torchvision/models/video/swin_transformer.py
        Dialect(
            "torchvision-3d",
            3,
            "patch_embed.proj.weight",
            _OFFICIAL_PATCH_3D
            + _blocks("features.{i}.{j}", {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}, (2, 0))
            + _merging("features.{i}", (2, 1))
            + _NORM,
            _HEAD,
            requires=("features.0.0.attn.qkv.weight",),
        ),
        # facebookresearch/omnivore: one trunk, a head per kind of input.
        Dialect(
            "omnivore",
            3,
            "patch_embed.proj.weight",
            _OFFICIAL_PATCH_3D
            + _OFFICIAL_BLOCKS
            + _NORM
            + (
                Rule("depth_patch_embed.{rest}", None, why="patch embedding of depth images"),
                Rule("patch_embed.depth_{rest}", None, why="patch embedding of depth images"),
            ),
            (
                *_pairs(("heads.video.1", "head"), ("heads.1", "head")),
                Rule("heads.image.{rest}", None, why="classifier of images"),
                Rule("heads.rgbd.{rest}", None, why="classifier of RGB-D images"),
            ),
            prefix="trunk.",
            prefixes=("trunk.",),
            requires=("layers.0.blocks.0.norm1.weight",),
            note="Omnivore weights are licensed CC-BY-NC-4.0: not for commercial use",
        ),
        # SwinTransformer/Video-Swin-Transformer mmaction/models/backbones/swin_transformer.py
        Dialect(
            "official-3d",
            3,
            "patch_embed.proj.weight",
            _OFFICIAL_PATCH_3D + _OFFICIAL_BLOCKS + _NORM,
            _FC_CLS + _HEAD,
            prefix="backbone.",
            prefixes=("backbone.", ""),
            requires=("layers.0.blocks.0.norm1.weight",),
        ),
    )
}

#: Our own files. Told by their metadata, so never detected from keys; 2D and 3D alike.
NATIVE = Dialect("native", 0, "patch_embed.proj.weight", _OFFICIAL_PATCH_3D + _OFFICIAL_BLOCKS + _NORM, _HEAD)

#: timm up to 0.8 wrote the keys of microsoft-2d; its training files are told by their wrapper.
TIMM_OLD = replace(DIALECTS["microsoft-2d"], name="timm-2d")

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


def dialect_named(name: str) -> Dialect:
    """The dialect of that name; raises UsageError that lists the known ones."""
    if name == NATIVE.name:
        return NATIVE
    if name not in DIALECTS:
        raise UsageError(f"unknown dialect {name!r}", f"known: {', '.join([*DIALECTS, NATIVE.name])}")
    return DIALECTS[name]


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
            if rule.foreign.endswith("relative_position_index"):
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
    """Shape of the native parameter that a step makes."""
    shape = tuple(shapes[step.sources[0]])
    if step.how == "frame" and len(shape) == 4:
        return (*shape[:2], 1, *shape[2:])
    if step.how == "join":
        return (sum(shapes[s][0] for s in step.sources), *shape[1:])
    return shape


def unfold_to_official(channels: int) -> list[int]:
    """Order that turns nn.Unfold's 4C merged channels into the official ones: new[k] = old[order[k]].

    nn.Unfold is channel-major with (h, w) = (0,0), (0,1), (1,0), (1,1) inside; official merging is
    four blocks of C in the order (0,0), (1,0), (0,1), (1,1).
    """
    blocks = channels // 4
    return [c * 4 + place for place in (0, 2, 1, 3) for c in range(blocks)]


# ------------------------------------------------------------------------------------------------
# Configuration from shapes


def native_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every native parameter of a model and its shape, in the model's order."""
    c0, (pt, ph, pw) = config.embed_dim, config.patch
    shapes: dict[str, Shape] = {
        "patch_embed.proj.weight": (c0, 3, pt, ph, pw),
        "patch_embed.proj.bias": (c0,),
        "patch_embed.norm.weight": (c0,),
        "patch_embed.norm.bias": (c0,),
    }
    for i, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        c, hidden = config.stage_dim(i), int(config.stage_dim(i) * config.mlp_ratio)
        rows = math.prod(2 * w - 1 for w in config.stage_window(i))
        for j in range(depth):
            b = f"layers.{i}.blocks.{j}."
            shapes |= {
                b + "norm1.weight": (c,),
                b + "norm1.bias": (c,),
                b + "attn.relative_position_bias_table": (rows, heads),
                b + "attn.qkv.weight": (3 * c, c),
                b + "attn.qkv.bias": (3 * c,),
                b + "attn.proj.weight": (c, c),
                b + "attn.proj.bias": (c,),
                b + "norm2.weight": (c,),
                b + "norm2.bias": (c,),
                b + "mlp.fc1.weight": (hidden, c),
                b + "mlp.fc1.bias": (hidden,),
                b + "mlp.fc2.weight": (c, hidden),
                b + "mlp.fc2.bias": (c,),
            }
        if i < len(config.depths) - 1:
            d = f"layers.{i}.downsample."
            shapes |= {
                d + "norm.weight": (4 * c,),
                d + "norm.bias": (4 * c,),
                d + "reduction.weight": (2 * c, 4 * c),
            }
    shapes |= {"norm.weight": (config.num_features,), "norm.bias": (config.num_features,)}
    if config.num_classes:
        shapes |= {
            "head.weight": (config.num_classes, config.num_features),
            "head.bias": (config.num_classes,),
        }
    return shapes


def infer_config(
    shapes: Shapes, window_tokens: Mapping[int, int] | None = None, window: Window | None = None
) -> ModelConfig:
    """Geometry of a model from its native shapes.

    ``window_tokens`` are the window's tokens per stage, where the file has an index buffer;
    ``window`` is the user's word for it. Raises MismatchError where the shapes are no Swin's, or
    DialectError where several windows fit the bias tables.
    """
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        if match := re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\..*", name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    for i in range(len(blocks)):
        if blocks.get(i) != set(range(len(blocks.get(i, ())))):
            raise MismatchError(
                f"blocks of stage {i} are not numbered 0, 1, 2, ...: {sorted(blocks.get(i, ()))}"
            )
    depths = tuple(len(blocks[i]) for i in range(len(blocks)))
    try:
        patch_shape = shapes["patch_embed.proj.weight"]
        tables = [shapes[f"layers.{i}.blocks.0.{_TABLE}"] for i in range(len(depths))]
        hidden, dim = shapes["layers.0.blocks.0.mlp.fc1.weight"]
    except KeyError as error:
        raise MismatchError(f"the file has no {error.args[0]}, or what it is made from") from None
    except ValueError:
        raise MismatchError("layers.0.blocks.0.mlp.fc1.weight is not a matrix") from None
    if len(patch_shape) != 5 or any(len(t) != 2 for t in tables) or dim < 1:
        raise MismatchError(
            f"patch weight {patch_shape} or bias tables {tables} do not have the shapes of a Swin"
        )
    flat = patch_shape[2] == 1
    windows = [
        _window(rows, flat, (window_tokens or {}).get(i), window, i) for i, (rows, _) in enumerate(tables)
    ]
    largest = max(windows, key=math.prod)
    head = shapes.get("head.weight")
    try:
        return ModelConfig(
            embed_dim=patch_shape[0],
            depths=depths,
            num_heads=tuple(heads for _, heads in tables),
            window=largest,
            patch=(patch_shape[2], patch_shape[3], patch_shape[4]),
            num_classes=head[0] if head else 0,
            mlp_ratio=hidden / dim,
            stage_windows=None if len(set(windows)) == 1 else tuple(windows),
        )
    except UsageError as error:
        raise MismatchError(f"the shapes are no Swin's: {error.message}") from error


def _window(rows: int, flat: bool, tokens: int | None, given: Window | None, stage: int) -> Window:
    """The window whose bias table has that many rows (and that many tokens, where known)."""
    if given is not None:
        if math.prod(2 * w - 1 for w in given) == rows:
            return given
        raise DialectError(
            f"--window {','.join(map(str, given))} needs bias tables of "
            f"{math.prod(2 * w - 1 for w in given)} rows; stage {stage} has {rows}"
        )
    if not 0 < rows <= MAX_TABLE_ROWS:
        raise MismatchError(f"stage {stage} has a bias table of {rows} rows")
    odd = [n for n in range(1, rows + 1, 2) if rows % n == 0]
    fits = [
        ((d + 1) // 2, (h + 1) // 2, (rows // d // h + 1) // 2)
        for d in ([1] if flat else odd)
        for h in odd
        if rows % 2 and rows // d % h == 0
    ]
    if tokens is not None:
        fits = [f for f in fits if math.prod(f) == tokens]
    square = [f for f in fits if f[1] == f[2]]
    if tokens is None:
        # A spatial window of one token would make any odd table fit.
        square = [f for f in square if f[1] >= 2] or square[:1]
    choice = square or fits
    if len(choice) == 1:
        return choice[0]
    if not choice:
        raise MismatchError(
            f"no window has a bias table of {rows} rows"
            + (f" and {tokens} tokens" if tokens else "")
            + f" (stage {stage})"
        )
    raise DialectError(
        f"several windows fit a bias table of {rows} rows (stage {stage}): "
        + "; ".join(",".join(map(str, f)) for f in choice),
        "name the right one, for example --window " + ",".join(map(str, choice[0])),
    )
