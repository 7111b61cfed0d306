"""Native parameters -> a file of another library: its names, wrapper and buffers.

The names are those that the reading tables give, backwards (plan.entries). The library's own model
takes the result with ``load_state_dict(strict=True)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from vswin_cli.checkpoints.dialects import DIALECTS, NATIVE, Dialect, dialect_named
from vswin_cli.checkpoints.plan import entries
from vswin_cli.checkpoints.saving import Check, atomic_file, check_writable, save_native, separate
from vswin_cli.config import ModelConfig, ViewProtocol, Window
from vswin_cli.errors import DialectError, MismatchError, OutputError, UsageError
from vswin_cli.labels import labels_for

#: Dialects that we write.
TARGETS = (NATIVE.name, *(d.name for d in DIALECTS.values() if d.writable))
PICKLED = (".pth", ".pt", ".bin")
MASKED = -100.0  # what microsoft's attn_mask holds between tokens that are no neighbours


@dataclass(frozen=True)
class Content:
    """What goes into a file beside the tensors, as far as its dialect holds it.

    source, report: where the weights come from; kept in native files
    """

    config: ModelConfig
    labels: Sequence[str] | None = None
    protocol: ViewProtocol | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Target:
    """Where and how a file is to be written; made by :func:`plan_target`, which checks it.

    size: image side in pixels, which masks (and a Hugging Face config) are made for; 0 where unused
    """

    out: Path
    dialect: Dialect
    size: int

    @property
    def config_json(self) -> Path | None:
        """The file that stands beside the weights of a Hugging Face model."""
        return self.out.with_name("config.json") if self.dialect.name == "huggingface-2d" else None


def plan_target(
    out: Path, to: str, config: ModelConfig, size: int | None, force: bool, sources: Sequence[Path] = ()
) -> Target:
    """Check all that can be known before tensors are touched.

    Raises UsageError (a dialect that is not written, a suffix that does not fit it, a size that the
    model cannot have), DialectError (a model that the dialect cannot describe) or OutputError.
    """
    dialect = dialect_named(to)
    if to not in TARGETS:
        raise UsageError(f"{to} is read only", f"vswin writes {', '.join(TARGETS)}")
    if dialect.dim == 2 and not config.is_2d:
        raise DialectError(
            f"a video model cannot be written as {to}, which is for image models",
            f"one of {', '.join(t for t in TARGETS if dialect_named(t).dim != 2)}",
        )
    if dialect.dim == 3 and config.is_2d:
        raise DialectError(
            f"an image model cannot be written as {to}, which is for video models",
            f"inflate it: vswin inflate SRC OUT --to {to}",
        )
    check_suffix(out, dialect)
    target = Target(out, dialect, _size(dialect, config, size))
    for path in filter(None, (out, target.config_json)):
        check_writable(path, force, sources)
    return target


def check_suffix(out: Path, dialect: Dialect) -> None:
    """The suffix sets the container. Raises UsageError where the dialect cannot be written into it."""
    suffix = out.suffix.lower()
    if dialect is NATIVE and suffix != ".safetensors":
        raise UsageError(
            f"{out}: native files are safetensors", f"name it {out.with_suffix('.safetensors').name}"
        )
    if dialect.wrapper and suffix not in PICKLED:
        raise UsageError(
            f"{out}: {dialect.name} keeps its weights under {dialect.wrapper!r} in a .pth, "
            + (
                "which safetensors cannot hold"
                if suffix == ".safetensors"
                else f"not in a {suffix or 'file without a suffix'}"
            ),
            f"name it {out.with_suffix('.pth').name}",
        )
    if suffix not in (*PICKLED, ".safetensors"):
        raise UsageError(
            f"{out}: the suffix says how the file is written, and {suffix or 'none'} says nothing",
            f"{out.with_suffix('.safetensors').name} or {out.with_suffix('.pth').name}",
        )


def _size(dialect: Dialect, config: ModelConfig, size: int | None) -> int:
    """The image side for dialects that depend on one: by default 32 x window, or the one at which
    microsoft's code fits each stage the window that the model has."""
    if not dialect.masks and dialect.name != "huggingface-2d":
        if size is not None:
            raise UsageError(f"--size means nothing to {dialect.name}", "it is for microsoft-2d's masks")
        return 0
    stages = range(len(config.depths))
    windows = [config.stage_window(i) for i in stages]
    if config.patch[1] != config.patch[2] or any(w[1] != w[2] for w in windows):
        raise DialectError(f"{dialect.name} has no patches or windows that are not square")
    scale = config.patch[1] * 2 ** (len(windows) - 1)
    sides = [scale * max(w[1] for w in windows), scale * windows[-1][1]]
    if size is None:
        size = next((s for s in sides if _fitted(config, s) == windows), sides[0])
    elif dialect.masks and _fitted(config, sides[0]) == windows != _fitted(config, size):
        raise UsageError(
            f"{dialect.name} models of {size} pixels have smaller windows than this one",
            f"--size {sides[0]} or more",
        )
    if size < 1 or size % scale or (dialect.masks and any(_rest(config, size))):
        raise UsageError(
            f"{dialect.name} models cannot have a size of {size}: windows must tile the image in each stage",
            f"--size {sides[0]} or --size {2 * sides[0]}, for example",
        )
    return size


def _grid(config: ModelConfig, size: int, stage: int) -> int:
    """Tokens along a side in a stage."""
    return size // (config.patch[1] << stage)


def _fitted(config: ModelConfig, size: int) -> list[Window]:
    """The windows that microsoft's code gives the stages: none is larger than its image."""
    largest = max(config.stage_window(i)[1] for i in range(len(config.depths)))
    sides = [min(largest, _grid(config, size, i)) for i in range(len(config.depths))]
    return [(1, side, side) for side in sides]


def _rest(config: ModelConfig, size: int) -> list[int]:
    """Tokens of each stage that its windows leave over."""
    return [
        grid % min(grid, config.stage_window(i)[1])
        for i, grid in enumerate(_grid(config, size, i) for i in range(len(config.depths)))
    ]


def unheld(target: Target, content: Content, read_as: ViewProtocol | None) -> tuple[str, ...]:
    """What the file will not say, or its library will not take, in phrases for people.

    ``read_as`` is the protocol that the file will be read with, having none of its own.
    """
    dialect, config = target.dialect, content.config
    lost = []
    if content.labels and not dialect.labels and tuple(content.labels) != labels_for(config.num_classes):
        lost.append(f"labels: the names of the {config.num_classes} classes")
    if dialect is not NATIVE:
        if content.protocol not in (None, read_as):
            assert content.protocol is not None
            then = f"; predict and eval will take {read_as.name}" if read_as else ""
            lost.append(f"protocol: {content.protocol.name} ({content.protocol.describe()}){then}")
        if content.source:
            lost.append("source: where the weights come from")
    stages = [config.stage_window(i) for i in range(len(config.depths))]
    fits = dialect.windows == "each" or (
        dialect.windows == "fitted" and stages == _fitted(config, target.size)
    )
    if len(set(stages)) > 1 and not fits:
        lost.append(
            f"windows: {', '.join('x'.join(map(str, w)) for w in stages)} in the stages; "
            f"the library's models have one window, so only vswin reads this file"
        )
    if dialect.head and not config.num_classes:
        lost.append("head: there is none, so the library's model takes the file with strict=False only")
    return tuple(lost)


# ------------------------------------------------------------------------------------------------
# Tensors


def cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The parameters in another dtype; those that have it already are the given ones.

    Raises MismatchError where a finite number becomes infinite.
    """
    made = {}
    for name, tensor in state.items():
        made[name] = tensor.to(dtype)
        if dtype is torch.float16 and tensor.dtype is not dtype:
            worst = float(torch.where(tensor.isfinite(), tensor, 0).abs().max())
            if worst > torch.finfo(dtype).max:
                raise MismatchError(f"{name} holds {worst:.3g}, more than fp16 can", "--dtype bf16 can")
    return made


def dialect_state(state: Mapping[str, Tensor], config: ModelConfig, target: Target) -> dict[str, Tensor]:
    """Native parameters -> the dialect's tensors, buffers among them; parts of the given ones, not copies."""
    dialect, size = target.dialect, target.size
    masks = {i: _mask(config, i, size) for i in range(len(config.depths))} if dialect.masks else {}
    indices: dict[Window, Tensor] = {}
    made: dict[str, Tensor] = {}
    dtype = state["patch_embed.proj.weight"].dtype
    for entry in entries(config, dialect, [i for i, mask in masks.items() if mask is not None]):
        if entry.what == "index":
            window = config.stage_window(entry.stage)
            if window not in indices:
                indices[window] = relative_position_index(window)
            index = indices[window]
            made[entry.key] = index.flatten() if dialect.index == "flat" else index
        elif entry.what == "mask":
            mask = masks[entry.stage]
            assert mask is not None
            made[entry.key] = mask.to(dtype)
        elif entry.what == "third":
            made[entry.key] = state[entry.native].chunk(3)[entry.third]
        elif entry.what == "flat frame":
            made[entry.key] = state[entry.native].squeeze(2)
        else:
            made[entry.key] = state[entry.native]
    return made


def relative_position_index(window: Window) -> Tensor:
    """Row of the bias table for each pair of a window's tokens: (N, N) int64, time slowest."""
    sides = torch.tensor(window)
    place = torch.cartesian_prod(*(torch.arange(w) for w in window))
    offset = place[:, None] - place[None] + sides - 1
    rows = 2 * sides - 1
    return (offset * torch.stack([rows[1] * rows[2], rows[2], torch.tensor(1)])).sum(-1)


def _mask(config: ModelConfig, stage: int, size: int) -> Tensor | None:
    """microsoft's attn_mask: (windows, N, N), 0 or -100; None for a stage that does not shift.

    The shifted image is cut along each axis at -window and at -window//2 (models/swin_transformer.py);
    tokens see only those of their own piece.
    """
    grid, window = _grid(config, size, stage), config.stage_window(stage)[1]
    if grid <= window or window < 2:
        return None
    line = torch.arange(grid)
    piece = (line >= grid - window).long() + (line >= grid - window // 2)
    pieces = piece[:, None] * 3 + piece
    tokens = pieces.unfold(0, window, window).unfold(1, window, window).reshape(-1, window * window)
    return torch.where(tokens[:, :, None] == tokens[:, None, :], 0.0, MASKED)


# ------------------------------------------------------------------------------------------------
# Files


def write(
    state: Mapping[str, Tensor], content: Content, target: Target, check: Check | None = None
) -> tuple[int, int]:
    """Write the file, and a config.json where the dialect has one: (parameters, buffers) in it.

    Atomic. ``check`` is given the written file before it gets its name; where it raises, nothing is left.
    Raises OutputError.
    """
    out = target.out
    if target.dialect is NATIVE:
        save_native(
            out,
            state,
            content.config,
            labels=content.labels,
            protocol=content.protocol,
            source=content.source,
            report=content.report,
            check=check,
        )
        return len(state), 0
    tensors = separate(dialect_state(state, content.config, target))
    with ExitStack() as stack:
        if target.config_json is not None:
            beside = stack.enter_context(atomic_file(target.config_json))
            described = huggingface_config(content, target.size, state["patch_embed.proj.weight"].dtype)
            beside.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary = stack.enter_context(atomic_file(out))
        try:
            if out.suffix.lower() == ".safetensors":
                save_file(tensors, temporary, {"format": "pt"})
            else:
                torch.save(_wrapped(tensors, content, target.dialect), temporary)
        except (safetensors.SafetensorError, RuntimeError) as error:
            # A full disk arrives as the libraries' own error types.
            raise OutputError(f"{out}: cannot be written ({str(error).splitlines()[0]})") from error
        buffers = sum(n.endswith(("relative_position_index", "attn_mask")) for n in tensors)
        parameters = len(tensors) - buffers
        del tensors
        if check is not None:
            check(temporary)
    return parameters, buffers


def _wrapped(tensors: dict[str, Tensor], content: Content, dialect: Dialect) -> dict[str, Any]:
    """What goes into a .pth: plain dictionaries, strings and tensors only."""
    if not dialect.wrapper:
        return dict(tensors)
    wrapped: dict[str, Any] = {dialect.wrapper: tensors}
    if dialect.name == "mmaction2-3d":
        # mmengine keeps what it knows of the data set under dataset_meta.
        known = {"dataset_meta": {"classes": list(content.labels)}} if content.labels else {}
        wrapped = {"meta": known, **wrapped}
    return wrapped


def huggingface_config(content: Content, size: int, dtype: torch.dtype) -> dict[str, Any]:
    """config.json for transformers' SwinForImageClassification, or SwinModel where there is no head."""
    config = content.config
    described: dict[str, Any] = {
        "architectures": ["SwinForImageClassification" if config.num_classes else "SwinModel"],
        "model_type": "swin",
        "image_size": size,
        "patch_size": config.patch[1],
        "num_channels": 3,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window[1],
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_absolute_embeddings": False,
        "encoder_stride": config.patch[1] * 2 ** (len(config.depths) - 1),
        "hidden_size": config.num_features,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if config.num_classes:
        names = content.labels or [f"LABEL_{i}" for i in range(config.num_classes)]
        described["id2label"] = {str(i): name for i, name in enumerate(names)}
        described["label2id"] = {name: i for i, name in enumerate(names)}
    return described
