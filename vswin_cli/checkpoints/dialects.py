"""Every known Swin checkpoint dialect, as a table of rules over key names. Never imports torch.

A rule maps a foreign key pattern to a native one. Native names are the official ones
(``layers.0.blocks.1.attn.qkv.weight``). In a pattern ``{i}`` is a stage, ``{j}`` a block, ``{n}``
any number, ``{p}`` weight or bias, ``{rest}`` anything. A rule whose native side is None drops the
key on purpose and says why. The tables follow the sources that are named beside them; all key
lists were checked against files that those libraries wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from vswin_cli.errors import UsageError

_DERIVED = "buffer, derived from the window"


@dataclass(frozen=True)
class Rule:
    """One line of a dialect's table.

    stage: (a, b): the foreign stage number is a * i + b, for libraries that number layers otherwise
    how:   'copy'; 'frame' adds the time axis of a 2D patch weight; 'unfold' reorders the channels
           of nn.Unfold to those of the official merging; 'join' puts q, k and v together; 'last' copies
           the norm of the highest number
    part:  the place among the three of a 'join'
    why:   reason for a drop (native None)
    buffer: which of a block's buffers it is, if any
    """

    foreign: str
    native: str | None
    how: str = "copy"
    stage: tuple[int, int] = (1, 0)
    part: int = 0
    why: str = ""
    buffer: Literal["", "index", "mask"] = ""

    @cached_property
    def _foreign_regex(self) -> re.Pattern[str]:
        return _regex(self.foreign)

    @cached_property
    def _native_regex(self) -> re.Pattern[str]:
        return _regex(self.native or "")

    def match(self, key: str) -> dict[str, str] | None:
        """The pattern's fields, with the native stage number as ``i``; None where it does not match."""
        found = self._foreign_regex.fullmatch(key)
        if found is None:
            return None
        values = found.groupdict()
        if "i" in values:
            stage, rest = divmod(int(values["i"]) - self.stage[1], self.stage[0])
            if rest or stage < 0:
                return None
            values["i"] = str(stage)
        return values

    def write(self, values: Mapping[str, str]) -> str:
        """The foreign key for the fields of a native name: the inverse of :meth:`match`."""
        stage = {"i": self.stage[0] * int(values["i"]) + self.stage[1]} if "i" in values else {}
        return self.foreign.format(**{**values, **stage})

    def invert(self, native: str, last: int) -> str | None:
        """The foreign key that makes ``native``; None where the rule makes others.

        ``last`` is the model's last stage, after which numbered final norms are named.
        """
        found = self._native_regex.fullmatch(native) if self.native else None
        return None if found is None else self.write({"n": str(last), **found.groupdict()})


def _regex(pattern: str) -> re.Pattern[str]:
    """A regular expression for a rule's pattern, with a named group for each field."""
    kinds = {"i": r"(?P<i>[0-9]{1,4})", "j": r"(?P<j>[0-9]{1,4})", "n": r"(?P<n>[0-9]{1,4})"}
    kinds |= {"p": "(?P<p>weight|bias)", "rest": "(?P<rest>.*)"}
    parts = re.split(r"\{(\w+)\}", pattern)
    return re.compile("".join(kinds[p] if k % 2 else re.escape(p) for k, p in enumerate(parts)))


@dataclass(frozen=True)
class Dialect:
    """How one library names the parameters of a Swin.

    prefix:   what the library puts before backbone keys; the others in ``prefixes`` are read too
    patch:    backbone key of the patch embedding's weight, by which the backbone is found
    backbone: rules for keys under the prefix
    top:      rules for keys beside the backbone (heads, training state)
    requires, absent: backbone keys (patterns) that tell this dialect from others with the same patch key

    How we write it; where several rules make one native name, the first one is written:

    writable: whether we do
    wrapper:  name of the state dict inside a .pth; '' where the file is the state dict itself
    index:    how relative_position_index is stored, '' for not at all
    masks:    whether the attention masks of one image size are stored
    windows:  'one' for the whole model, 'fitted' to the image size, or one for 'each' stage
    bare:     prefix of a model without a classifier, where that is another
    head:     whether the library's model has a classifier in any case
    labels:   whether class names are kept with the weights
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
    writable: bool = True
    wrapper: str = ""
    index: Literal["", "square", "flat"] = ""
    masks: bool = False
    windows: Literal["one", "fitted", "each"] = "one"
    bare: str | None = None
    head: bool = True
    labels: bool = False


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
        Rule(f"{foreign}.{index}", None, stage=stage, why=_DERIVED, buffer="index"),
        Rule(f"{foreign}.attn_mask", None, stage=stage, why=_DERIVED, buffer="mask"),
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
            windows="each",
            head=False,
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
            wrapper="model",
            index="square",
            masks=True,
            windows="fitted",
            head=False,
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
            bare="",
            head=False,
            labels=True,
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
            index="flat",
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
            writable=False,
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
            wrapper="state_dict",
            index="square",
            labels=True,
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
            index="square",
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
            writable=False,
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
            wrapper="state_dict",
            index="square",
        ),
    )
}

#: Our own files. Told by their metadata, so never detected from keys; 2D and 3D alike.
NATIVE = Dialect(
    "native",
    0,
    "patch_embed.proj.weight",
    _OFFICIAL_PATCH_3D + _OFFICIAL_BLOCKS + _NORM,
    _HEAD,
    windows="each",
    head=False,
    labels=True,
)

#: timm up to 0.8 wrote the keys of microsoft-2d; its training files are told by their wrapper.
TIMM_OLD = replace(DIALECTS["microsoft-2d"], name="timm-2d")


def dialect_named(name: str) -> Dialect:
    """The dialect of that name; raises UsageError that lists the known ones."""
    if name == NATIVE.name:
        return NATIVE
    if name not in DIALECTS:
        raise UsageError(f"unknown dialect {name!r}", f"known: {', '.join([*DIALECTS, NATIVE.name])}")
    return DIALECTS[name]
