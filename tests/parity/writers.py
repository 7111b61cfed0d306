"""Checkpoints as each library writes them, made from a ReferenceSwin's weights.

Each writer returns the Python object to give to `save` (or, for a flat dict of tensors, to safetensors).
Names and shapes are those of FACTS 1.a to 1.h; where those are silent, of the library's public source.
Nothing here is shared with the package under test.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.parity.reference import Merge, ReferenceSwin, Size3, fit_window, relative_index, shift_mask

State = dict[str, Tensor]
Rename = tuple[tuple[str, str], ...]


# -------------------------------------------------- models


def small_2d(
    seed: int,
    *,
    window: int = 4,
    stage_windows: tuple[int, ...] | None = None,
    embed_dim: int = 8,
    depths: tuple[int, ...] = (2, 2, 2, 2),
    num_heads: tuple[int, ...] = (1, 2, 4, 8),
    patch: int = 4,
    num_classes: int = 10,
    merge: Merge = "slices",
) -> ReferenceSwin:
    """A small 2D model with telling random weights."""
    per_stage: list[Size3] | None = [(1, side, side) for side in stage_windows] if stage_windows else None
    return ReferenceSwin(
        embed_dim, depths, num_heads, (1, window, window), (1, patch, patch), num_classes, merge, per_stage
    ).fill(seed)


def small_3d(
    seed: int,
    *,
    window: Size3 = (4, 4, 4),
    embed_dim: int = 8,
    depths: tuple[int, ...] = (2, 2, 2, 2),
    num_heads: tuple[int, ...] = (1, 2, 4, 8),
    patch: Size3 = (2, 4, 4),
    num_classes: int = 5,
) -> ReferenceSwin:
    """A small 3D model with telling random weights."""
    return ReferenceSwin(embed_dim, depths, num_heads, window, patch, num_classes).fill(seed)


def simmim_192_2d(seed: int, **overrides: Any) -> ReferenceSwin:
    """SimMIM fine-tuned at 192 px with window 12: 6x6 tokens, a 121-row table in the last stage (1.a)."""
    return small_2d(seed, stage_windows=(12, 12, 12, 6), window=12, **overrides)


def s3_2d(seed: int, **overrides: Any) -> ReferenceSwin:
    """The per-stage windows of timm's S3 models, for 224 px (FACTS 1.b)."""
    return small_2d(seed, stage_windows=(7, 7, 14, 7), window=7, **overrides)


# -------------------------------------------------- shared parts


def rename(state: Mapping[str, Tensor], rules: Rename) -> State:
    """Apply the regular expressions, one after another, to every name."""
    renamed: State = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        assert name not in renamed
        renamed[name] = value
    return renamed


def prefixed(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def without_head(state: Mapping[str, Tensor]) -> State:
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def with_index(model: ReferenceSwin, state: State, flat: bool = False) -> State:
    """Add each block's relative_position_index buffer after its bias table."""
    grown: State = {}
    for name, value in state.items():
        grown[name] = value
        if name.endswith("relative_position_bias_table"):
            index = relative_index(model.stage_windows[int(name.split(".")[1])])
            grown[name.replace("bias_table", "index")] = index.flatten() if flat else index
    return grown


def with_attn_mask(model: ReferenceSwin, state: State, size: int, attribute: str = "attn_mask") -> State:
    """Add the attn_mask buffers of a model built for this image size, in its shifted blocks (FACTS 1.a)."""
    grown = dict(state)
    for i, depth in enumerate(model.depths):
        side = size // model.patch[1] // 2**i
        for j in range(1, depth, 2):
            window, shift = fit_window((1, side, side), model.stage_windows[i], True)
            if any(shift):
                grown[f"layers.{i}.blocks.{j}.{attribute}"] = shift_mask((1, side, side), window, shift)
    return grown


def random_state(state: Mapping[str, Tensor], seed: int) -> State:
    """Other weights of the same names and shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value.clone()
        for name, value in state.items()
    }


def adamw_state(state: Mapping[str, Tensor], seed: int = 0) -> dict[str, Any]:
    """An optimizer's state dict: as in torch, tensors by parameter number, and one group."""
    moments = random_state({k: v for k, v in state.items() if v.is_floating_point()}, seed)
    group = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.05,
        "params": list(range(len(moments))),
    }
    return {
        "state": {
            i: {"step": torch.tensor(7.0), "exp_avg": value, "exp_avg_sq": value.abs()}
            for i, value in enumerate(moments.values())
        },
        "param_groups": [group],
    }


class CfgNode(dict[str, Any]):
    """Pickles exactly as a yacs.config.CfgNode does: a dict subclass with a state and items."""

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        super().__init__({k: CfgNode(v) if isinstance(v, dict) else v for k, v in (items or {}).items()})
        self.__dict__["__immutable__"] = True
        self.__dict__["__deprecated_keys__"] = set()
        self.__dict__["__renamed_keys__"] = {}
        self.__dict__["__new_allowed__"] = False


class HistoryBuffer:
    """Pickles exactly as a mmengine.logging.history_buffer.HistoryBuffer does: numpy arrays in its state."""

    def __init__(self, values: list[float]) -> None:
        self.max_length = 1000000
        self._log_history = np.array(values)
        self._count_history = np.array([1] * len(values))


_FAKED: dict[type, str] = {CfgNode: "yacs.config", HistoryBuffer: "mmengine.logging.history_buffer"}


@contextlib.contextmanager
def faked_modules() -> Iterator[None]:
    """While inside, pickle writes the stand-ins under their libraries' names."""
    saved_names = {cls: cls.__module__ for cls in _FAKED}
    saved_modules = dict(sys.modules)
    for cls, module in _FAKED.items():
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules[".".join(parts[:end])] = types.ModuleType(".".join(parts[:end]))
        setattr(sys.modules[module], cls.__name__, cls)
        cls.__module__ = module
    try:
        yield
    finally:
        for cls, module in saved_names.items():
            cls.__module__ = module
        for module in _FAKED.values():
            parts = module.split(".")
            for end in range(1, len(parts) + 1):
                name = ".".join(parts[:end])
                if name in saved_modules:
                    sys.modules[name] = saved_modules[name]
                else:
                    sys.modules.pop(name, None)


def save(checkpoint: object, path: Path, *, legacy: bool = False) -> Path:
    """torch.save with the stand-in classes in place; legacy is the format before zip."""
    with faked_modules():
        torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    return path


def yacs_config(model: ReferenceSwin, size: int) -> CfgNode:
    swin = {
        "EMBED_DIM": model.embed_dim,
        "DEPTHS": list(model.depths),
        "WINDOW_SIZE": model.window[1],
        "APE": False,
    }
    return CfgNode(
        {
            "AMP_OPT_LEVEL": "O1",
            "DATA": {"IMG_SIZE": size, "BATCH_SIZE": 128},
            "MODEL": {"TYPE": "swin", "NUM_CLASSES": model.num_classes, "SWIN": swin},
        }
    )


# -------------------------------------------------- microsoft 2D and its relatives (FACTS 1.a)


def microsoft_state(model: ReferenceSwin, size: int) -> State:
    return with_attn_mask(model, with_index(model, model.plain()), size)


def microsoft_2d(model: ReferenceSwin, size: int) -> dict[str, Any]:
    """A released file: {'model': ...}."""
    return {"model": microsoft_state(model, size)}


def microsoft_2d_training(model: ReferenceSwin, size: int) -> dict[str, Any]:
    """A training checkpoint, with its yacs config and numpy scalars."""
    state = microsoft_state(model, size)
    return {
        "model": state,
        "optimizer": adamw_state(model.plain()),
        "lr_scheduler": {"base_values": [1e-3], "metric": None, "t_in_epochs": False, "noise_seed": 42},
        "max_accuracy": np.float64(81.2),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "epoch": np.int64(299),
        "config": yacs_config(model, size),
    }


def microsoft_2d_ape(model: ReferenceSwin, size: int) -> dict[str, Any]:
    """With an absolute position embedding, which no released model has and which nothing here can use."""
    tokens = (size // model.patch[1]) ** 2
    embedding = torch.randn(1, tokens, model.embed_dim, generator=torch.Generator().manual_seed(1))
    return {"model": {"absolute_pos_embed": embedding, **microsoft_state(model, size)}}


def simmim_2d(model: ReferenceSwin, size: int) -> dict[str, Any]:
    """SimMIM pretraining: everything under encoder., a mask token, a decoder, no head."""
    encoder = without_head(microsoft_state(model, size))
    generator = torch.Generator().manual_seed(2)
    pixels, width = 32**2 * 3, model.num_features
    state: State = {
        "encoder.mask_token": torch.randn(1, 1, model.embed_dim, generator=generator),
        **prefixed(encoder, "encoder."),
        "decoder.0.weight": torch.randn(pixels, width, 1, 1, generator=generator),
        "decoder.0.bias": torch.randn(pixels, generator=generator),
    }
    return {
        "model": state,
        "optimizer": adamw_state({"encoder.norm.weight": encoder["norm.weight"]}),
        "lr_scheduler": {"base_values": [1e-3]},
        "max_accuracy": 0.0,
        "epoch": 99,
        "config": yacs_config(model, size),
    }


def _moby_mlp(prefix: str, width: int, seed: int, inner: int = 16, out: int = 8) -> State:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    hidden = prefix + "linear_hidden."
    return {
        hidden + "1.weight": draw(inner, width),
        hidden + "1.bias": draw(inner),
        hidden + "2.weight": draw(inner),
        hidden + "2.bias": draw(inner),
        hidden + "2.running_mean": draw(inner),
        hidden + "2.running_var": draw(inner).abs(),
        hidden + "2.num_batches_tracked": torch.tensor(100),
        prefix + "linear_out.weight": draw(out, inner),
        prefix + "linear_out.bias": draw(out),
    }


def moby_2d(model: ReferenceSwin, size: int) -> dict[str, Any]:
    """MoBY: encoder beside a momentum encoder_k with OTHER weights, projectors, queues; no head."""
    encoder = without_head(microsoft_state(model, size))
    generator = torch.Generator().manual_seed(3)
    state: State = {
        "queue1": torch.randn(8, 32, generator=generator),
        "queue2": torch.randn(8, 32, generator=generator),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
        **prefixed(encoder, "encoder."),
        **prefixed(random_state(encoder, 4), "encoder_k."),
        **_moby_mlp("projector.", model.num_features, 5),
        **_moby_mlp("projector_k.", model.num_features, 6),
        **_moby_mlp("predictor.", 8, 7),
    }
    return {
        "model": state,
        "optimizer": adamw_state({"encoder.norm.weight": encoder["norm.weight"]}),
        "lr_scheduler": {"base_values": [1e-3]},
        "max_accuracy": 0.0,
        "epoch": 299,
        "config": yacs_config(model, size),
        "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 12}},
    }


# -------------------------------------------------- timm (FACTS 1.b)


def timm_2d(model: ReferenceSwin, size: int = 0) -> State:
    """timm >= 0.9: merging at the start of the next stage, head.fc, no buffers."""
    downsample = (r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample")
    moved = {re.sub(*downsample, name): value for name, value in model.plain().items()}
    return rename(moved, ((r"^head\.", "head.fc."),))


def timm_2d_old(model: ReferenceSwin, size: int) -> State:
    """timm <= 0.8, flat: the microsoft layout with its buffers."""
    return microsoft_state(model, size)


def _timm_training(model: ReferenceSwin, state: State) -> dict[str, Any]:
    return {
        "epoch": 299,
        "arch": "swin_tiny_patch4_window7_224",
        "state_dict": state,
        "optimizer": adamw_state({"norm.weight": state["norm.weight"]}),
        "version": 2,
        "args": argparse.Namespace(model="swin_tiny_patch4_window7_224", lr=1e-3, mean=None, num_classes=10),
        "amp_scaler": {"scale": 65536.0},
        "metric": np.float64(81.2),
    }


def timm_2d_old_wrapped(model: ReferenceSwin, size: int) -> dict[str, Any]:
    """timm <= 0.8's train.py: wrapped, with its argparse.Namespace."""
    return _timm_training(model, timm_2d_old(model, size))


def timm_training_ema(model: ReferenceSwin, size: int, ema: ReferenceSwin | None = None) -> dict[str, Any]:
    """timm >= 0.9's train.py: state_dict is the model, state_dict_ema its average, with other weights."""
    state = timm_2d(model)
    average = timm_2d(ema) if ema is not None else random_state(state, 8)
    return {**_timm_training(model, state), "state_dict_ema": average}


# -------------------------------------------------- Hugging Face (FACTS 1.c)


def _split_qkv(state: Mapping[str, Tensor], names: tuple[str, str, str]) -> State:
    split: State = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for third, part in zip(names, value.chunk(3, dim=0), strict=True):
                split[name.replace("attn.qkv", third)] = part.clone()
        else:
            split[name] = value
    return split


_HF_BODY: Rename = (
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^patch_embed\.norm", "embeddings.norm"),
    (r"^layers\.", "encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"^norm\.", "layernorm."),
)
_HF_HUB: Rename = (
    *_HF_BODY,
    (r"attn\.relative_position", "attention.self.relative_position"),
    (r"attn\.proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)
_HF_MEMORY: Rename = (
    *_HF_BODY,
    (r"attn\.relative_position", "attention.relative_position_bias.relative_position"),
    (r"attn\.proj", "attention.o_proj"),
)


def _huggingface(
    model: ReferenceSwin, rules: Rename, qkv: tuple[str, str, str], index: bool, prefix: str
) -> State:
    state = without_head(model.plain())
    if index:
        state = with_index(model, state)
    return prefixed(rename(_split_qkv(state, qkv), rules), prefix)


def _hf_hub_body(model: ReferenceSwin, index: bool, prefix: str) -> State:
    names = ("attention.self.query", "attention.self.key", "attention.self.value")
    return _huggingface(model, _HF_HUB, names, index, prefix)


def _classifier(model: ReferenceSwin) -> State:
    return rename(
        {k: v for k, v in model.plain().items() if k.startswith("head.")}, ((r"^head\.", "classifier."),)
    )


def huggingface_2d(model: ReferenceSwin, size: int = 0, index: bool = False) -> State:
    """SwinForImageClassification as hub repositories hold it; older files have the index buffers too."""
    return {**_hf_hub_body(model, index, "swin."), **_classifier(model)}


def huggingface_2d_indexed(model: ReferenceSwin, size: int = 0) -> State:
    return huggingface_2d(model, size, index=True)


def huggingface_2d_model(model: ReferenceSwin, size: int = 0) -> State:
    """SwinModel: no swin. prefix (so its blocks begin with encoder., like SimMIM's), no classifier."""
    return _hf_hub_body(model, True, "")


def huggingface_2d_masked(model: ReferenceSwin, size: int = 0) -> State:
    """SwinForMaskedImageModeling: a mask token and a decoder, no classifier."""
    generator = torch.Generator().manual_seed(9)
    return {
        "swin.embeddings.mask_token": torch.randn(1, 1, model.embed_dim, generator=generator),
        **_hf_hub_body(model, True, "swin."),
        "decoder.0.weight": torch.randn(32**2 * 3, model.num_features, 1, 1, generator=generator),
        "decoder.0.bias": torch.randn(32**2 * 3, generator=generator),
    }


def huggingface_2d_memory(model: ReferenceSwin, size: int = 0) -> State:
    """The names of transformers 5 in memory."""
    names = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
    return {**_huggingface(model, _HF_MEMORY, names, False, "swin."), **_classifier(model)}


# -------------------------------------------------- torchvision (FACTS 1.d, 1.g)


def _torchvision(state: Mapping[str, Tensor], first: int) -> State:
    """Stages at features.first, first+2, ..., with the merging of each stage in the place after it."""
    renamed: State = {}
    for name, value in state.items():
        found = re.match(r"layers\.(\d)\.(blocks|downsample)\.(.*)", name)
        if found:
            place = first + 2 * int(found[1])
            name = (
                f"features.{place}.{found[3]}" if found[2] == "blocks" else f"features.{place + 1}.{found[3]}"
            )
            name = name.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
        renamed[name] = value
    return renamed


def torchvision_2d(model: ReferenceSwin, size: int = 0) -> State:
    """swin_t/s/b: the index buffers are flat."""
    state = _torchvision(with_index(model, model.plain(), flat=True), first=1)
    return OrderedDict(
        rename(state, ((r"^patch_embed\.proj", "features.0.0"), (r"^patch_embed\.norm", "features.0.2")))
    )


def torchvision_3d(model: ReferenceSwin) -> State:
    """swin3d_t/s/b: patch_embed keeps its name, the index buffers are square."""
    return OrderedDict(_torchvision(with_index(model, model.plain()), first=0))


# -------------------------------------------------- mmpretrain / mmcls / mmdet 2D (FACTS 1.0, 1.h)


def mmpretrain_2d(model: ReferenceSwin, size: int = 0) -> dict[str, Any]:
    """Order B: the model's own merging must be nn.Unfold, so that its weights are in that order already."""
    assert model.merge == "unfold"
    rules: Rename = (
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^layers\.", "stages."),
        (r"\.attn\.", ".attn.w_msa."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"^norm\.", f"norm{len(model.depths) - 1}."),
    )
    plain = model.plain()
    state = prefixed(rename(with_index(model, without_head(plain)), rules), "backbone.")
    for kind in ("weight", "bias"):
        state[f"head.fc.{kind}"] = plain[f"head.{kind}"]
    return {
        "meta": {
            "mmengine_version": "0.10.7",
            "epoch": 300,
            "iter": 375300,
            "cfg": "model = dict()",
            "seed": 0,
        },
        "state_dict": OrderedDict(state),
        "message_hub": {
            "log_scalars": OrderedDict(
                {"train/loss": HistoryBuffer([6.9, 2.5]), "train/lr": HistoryBuffer([1e-3])}
            ),
            "runtime_info": OrderedDict({"epoch": 299, "experiment": "swin"}),
            "resumed_keys": OrderedDict({"train/loss": True}),
        },
    }


def mmpretrain_2d_released(model: ReferenceSwin, size: int = 0) -> dict[str, Any]:
    """A published file: meta and state_dict only."""
    checkpoint = mmpretrain_2d(model, size)
    return {"meta": {}, "state_dict": checkpoint["state_dict"]}


# -------------------------------------------------- Video-Swin and mmaction2 (FACTS 1.e, 1.f)


def official_state(model: ReferenceSwin) -> State:
    state = prefixed(without_head(with_index(model, model.plain())), "backbone.")
    for kind in ("weight", "bias"):
        state[f"cls_head.fc_cls.{kind}"] = model.plain()[f"head.{kind}"]
    return state


def official_3d(model: ReferenceSwin, meta: bool = False) -> dict[str, Any]:
    """The official repository's file; released ones have no meta, training ones have it and the optimizer."""
    checkpoint: dict[str, Any] = {"state_dict": OrderedDict(official_state(model))}
    if meta:
        checkpoint["meta"] = {
            "mmaction_version": "0.15.0",
            "config": "model = dict()",
            "epoch": 30,
            "iter": 112500,
        }
        checkpoint["optimizer"] = adamw_state({"norm": model.plain()["norm.weight"]})
        checkpoint["amp"] = {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 12}}
    return checkpoint


def official_3d_meta(model: ReferenceSwin) -> dict[str, Any]:
    return official_3d(model, meta=True)


def mmaction2_3d(model: ReferenceSwin, data_preprocessor: bool = False) -> dict[str, Any]:
    """mmaction2 1.x: as official, but the final norm is norm3."""
    last = len(model.depths) - 1
    state = rename(official_state(model), ((r"^backbone\.norm\.", f"backbone.norm{last}."),))
    if data_preprocessor:
        mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
        preprocessing = {
            "data_preprocessor.mean": mean.view(-1, 1, 1, 1),
            "data_preprocessor.std": std.view(-1, 1, 1, 1),
        }
        state = {**preprocessing, **state}
    return {"meta": {"epoch": 30, "mmaction2_version": "1.0.0"}, "state_dict": OrderedDict(state)}


def mmaction2_3d_preprocessor(model: ReferenceSwin) -> dict[str, Any]:
    return mmaction2_3d(model, data_preprocessor=True)


def mmaction2_3d_training(model: ReferenceSwin) -> dict[str, Any]:
    """A training checkpoint: message_hub with HistoryBuffer objects, optimizer, a differing EMA."""
    checkpoint = mmaction2_3d(model)
    ema = {"steps": torch.tensor(9), **prefixed(random_state(checkpoint["state_dict"], 10), "module.")}
    return {
        **checkpoint,
        "message_hub": {
            "log_scalars": {"train/loss": HistoryBuffer([5.9, 1.5])},
            "runtime_info": {},
            "resumed_keys": {},
        },
        "optimizer": adamw_state({"norm": model.plain()["norm.weight"]}),
        "param_schedulers": [{"last_step": 30, "_last_value": [np.float64(1e-6)]}],
        "ema_state_dict": ema,
    }


def mmaction2_3d_multi(model: ReferenceSwin) -> dict[str, Any]:
    """out_indices (0, 1, 2, 3): one norm for every stage, of which the last is the model's final norm."""
    checkpoint = mmaction2_3d(model)
    generator = torch.Generator().manual_seed(11)
    for i in range(len(model.depths) - 1):
        for kind in ("weight", "bias"):
            width = model.embed_dim * 2**i
            checkpoint["state_dict"][f"backbone.norm{i}.{kind}"] = torch.randn(width, generator=generator)
    return checkpoint


# -------------------------------------------------- Omnivore (FACTS 1.h; its public model source)


def omnivore(model: ReferenceSwin, nested: bool = False, depth: bool = True) -> dict[str, Any]:
    """trunk and heads; the video head is the model's head.

    Released trunks also hold a depth_patch_embed for RGB-D input (1 channel, its own norm), unused by video.
    heads is one flat state dict of a ModuleDict; nested gives one dict for each head instead.
    """
    plain = model.plain()
    trunk = with_index(model, without_head(plain))
    generator = torch.Generator().manual_seed(12)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if depth:
        trunk["depth_patch_embed.proj.weight"] = draw(model.embed_dim, 1, *model.patch)
        trunk["depth_patch_embed.proj.bias"] = draw(model.embed_dim)
        trunk["depth_patch_embed.norm.weight"] = draw(model.embed_dim)
        trunk["depth_patch_embed.norm.bias"] = draw(model.embed_dim)
    width = model.num_features
    heads: dict[str, State] = {
        "image": {"weight": draw(1000, width), "bias": draw(1000)},
        "rgbd": {"weight": draw(19, width), "bias": draw(19)},
        "video": {"1.weight": plain["head.weight"], "1.bias": plain["head.bias"]},
    }
    flat = {f"{head}.{name}": value for head, state in heads.items() for name, value in state.items()}
    return {"trunk": OrderedDict(trunk), "heads": heads if nested else OrderedDict(flat)}


def omnivore_nested(model: ReferenceSwin) -> dict[str, Any]:
    return omnivore(model, nested=True)


def omnivore_no_depth(model: ReferenceSwin) -> dict[str, Any]:
    return omnivore(model, depth=False)


def omnivore_epic(model: ReferenceSwin) -> dict[str, Any]:
    """The EPIC-KITCHENS file: no depth part, and heads is one Sequential: 1.weight, 1.bias."""
    plain = model.plain()
    heads = {"1.weight": plain["head.weight"], "1.bias": plain["head.bias"]}
    return {"trunk": OrderedDict(with_index(model, without_head(plain))), "heads": OrderedDict(heads)}


# -------------------------------------------------- Swin V2: to be refused (FACTS 1.a, 1.c, 1.d)


def _as_v2(state: Mapping[str, Tensor], attention: str, table: str, mlp: str) -> State:
    """Replace the bias table of every block by what V2 has instead."""
    changed: State = {}
    for name, value in state.items():
        if name.endswith(table):
            block, heads = name[: -len(table)], value.shape[1]
            changed[f"{block}{attention}logit_scale"] = torch.ones(heads, 1, 1)
            changed[f"{block}{attention}{mlp}.0.weight"] = torch.ones(512, 2)
            changed[f"{block}{attention}{mlp}.0.bias"] = torch.ones(512)
            changed[f"{block}{attention}{mlp}.2.weight"] = torch.ones(heads, 512)
        else:
            changed[name] = value
    return changed


def microsoft_v2(model: ReferenceSwin, size: int) -> dict[str, Any]:
    return {"model": _as_v2(microsoft_state(model, size), "", "relative_position_bias_table", "cpb_mlp")}


def torchvision_v2(model: ReferenceSwin, size: int = 0) -> State:
    return _as_v2(torchvision_2d(model), "", "relative_position_bias_table", "cpb_mlp")


def huggingface_v2(model: ReferenceSwin, size: int = 0) -> State:
    return _as_v2(huggingface_2d(model), "", "relative_position_bias_table", "continuous_position_bias_mlp")


# -------------------------------------------------- wrappers around a flat state dict (FACTS 1.h)


def ddp(state: Mapping[str, Tensor]) -> State:
    return prefixed(state, "module.")


def compiled(state: Mapping[str, Tensor]) -> State:
    return prefixed(state, "_orig_mod.")


def ddp_of_compiled(state: Mapping[str, Tensor]) -> State:
    return prefixed(state, "module._orig_mod.")


def compiled_of_ddp(state: Mapping[str, Tensor]) -> State:
    return prefixed(state, "_orig_mod.module.")


def lightning(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "epoch": 4,
        "global_step": 1000,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": OrderedDict(prefixed(state, "model.")),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 1e-3},
    }


def lightning_compiled(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return lightning(compiled(state))


def state_of(checkpoint: Mapping[str, Any]) -> State:
    """The flat state dict inside what a writer returned."""
    for key in ("model", "state_dict"):
        if isinstance(checkpoint.get(key), Mapping):
            return dict(checkpoint[key])
    return dict(checkpoint)


Writer2D = Callable[[ReferenceSwin, int], Any]
Writer3D = Callable[[ReferenceSwin], Any]

WRITERS_2D: dict[str, Writer2D] = {
    "microsoft": microsoft_2d,
    "microsoft-training": microsoft_2d_training,
    "simmim": simmim_2d,
    "moby": moby_2d,
    "timm": timm_2d,
    "timm-old": timm_2d_old,
    "timm-old-wrapped": timm_2d_old_wrapped,
    "timm-ema": timm_training_ema,
    "huggingface": huggingface_2d,
    "huggingface-indexed": huggingface_2d_indexed,
    "huggingface-model": huggingface_2d_model,
    "huggingface-masked": huggingface_2d_masked,
    "huggingface-memory": huggingface_2d_memory,
    "torchvision": torchvision_2d,
    "mmpretrain": mmpretrain_2d,
    "mmpretrain-released": mmpretrain_2d_released,
}
WRITERS_3D: dict[str, Writer3D] = {
    "official": official_3d,
    "official-meta": official_3d_meta,
    "mmaction2": mmaction2_3d,
    "mmaction2-preprocessor": mmaction2_3d_preprocessor,
    "mmaction2-training": mmaction2_3d_training,
    "mmaction2-multi": mmaction2_3d_multi,
    "torchvision-3d": torchvision_3d,
    "omnivore": omnivore,
    "omnivore-nested": omnivore_nested,
    "omnivore-no-depth": omnivore_no_depth,
    "omnivore-epic": omnivore_epic,
}
REFUSED_2D: dict[str, Writer2D] = {
    "microsoft-ape": microsoft_2d_ape,
    "microsoft-v2": microsoft_v2,
    "torchvision-v2": torchvision_v2,
    "huggingface-v2": huggingface_v2,
}
HEADLESS = frozenset({"simmim", "moby", "huggingface-model", "huggingface-masked"})
UNFOLD = frozenset({"mmpretrain", "mmpretrain-released"})
WRAPPERS: dict[str, Callable[[Mapping[str, Tensor]], Any]] = {
    "ddp": ddp,
    "compiled": compiled,
    "ddp-of-compiled": ddp_of_compiled,
    "compiled-of-ddp": compiled_of_ddp,
    "lightning": lightning,
    "lightning-compiled": lightning_compiled,
}
