"""A reference -> a checked, ready model; and inflation with its proof on a static clip."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vswin_cli.checkpoints.dialects import dialect_named
from vswin_cli.checkpoints.export import Content, check_suffix, plan_target, unheld, write
from vswin_cli.checkpoints.files import (
    Checkpoint,
    Report,
    check_writable,
    files_of,
    load_checkpoint,
    sha256_of,
)
from vswin_cli.checkpoints.inflate import BiasInit, PatchInit, inflate_state, inflated_config
from vswin_cli.checkpoints.zoo import resolve
from vswin_cli.config import PROTOCOLS, ModelConfig, ViewProtocol, Window
from vswin_cli.engine.device import DTYPES, prompt_memory
from vswin_cli.errors import DialectError, MismatchError, UsageError
from vswin_cli.labels import labels_for
from vswin_cli.model import Block, PatchEmbed, PatchMerging, VideoSwin

#: An inflated network and its source may differ by this share of the largest feature.
STATIC_TOLERANCE = 1e-5


def guess_protocol(checkpoint: Checkpoint) -> ViewProtocol | None:
    """The views that a checkpoint was published with; None for a 2D model.

    Its own metadata first; else :func:`protocol_for`.
    """
    if checkpoint.config.is_2d:
        return None
    return checkpoint.protocol or protocol_for(checkpoint.config, checkpoint.dialect)


def protocol_for(config: ModelConfig, dialect: str = "official-3d") -> ViewProtocol:
    """The protocol of a 3D geometry: torchvision's own for its dialect; else one uniform clip for window
    (16, 7, 7) with 174 classes (Something-Something v2), the official 4x3 for the rest; 384 pixels where
    the window is 12 wide."""
    if dialect == "torchvision-3d":
        return PROTOCOLS["torchvision-12x1"]
    ssv2 = config.window == (16, 7, 7) and config.num_classes == 174
    protocol = PROTOCOLS["ssv2-1x3" if ssv2 else "k400-4x3"]
    return protocol.override(size=384) if config.window[1:] == (12, 12) else protocol


def load_model(
    ref: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    *,
    dialect: str | None = None,
    window: Window | None = None,
    ignore: Sequence[str] = (),
) -> VideoSwin:
    """A VideoSwin in eval mode from a checkpoint of any dialect, 2D or 3D.

    ``ref`` is what --weights takes; ``dtype`` is float32 unless it says otherwise ('bf16' or a
    torch.dtype). The model carries ``config``, ``labels`` and ``protocol`` (None for a 2D model).
    Raises CheckpointError.
    """
    checkpoint = load_checkpoint(resolve(ref), dialect=dialect, window=window, ignore=ignore)
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise UsageError(f"unknown dtype {dtype!r}", f"one of {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    return build_model(checkpoint, torch.device(device), dtype or torch.float32)


def build_model(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> VideoSwin:
    """The checkpoint's model on ``device``; its tensors are copies, free of the file."""
    state = {k: v.to(device=device, dtype=dtype, copy=True) for k, v in checkpoint.state.items()}
    model = _assemble(checkpoint.config, state)
    model.labels = checkpoint.labels
    model.protocol = guess_protocol(checkpoint)
    return model


def _assemble(config: ModelConfig, state: dict[str, Tensor], **options: Any) -> VideoSwin:
    """A model whose parameters are the given tensors themselves."""
    with torch.device("meta"):
        model = VideoSwin(config, **options)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


# ------------------------------------------------------------------------------------------------
# Inflation


@dataclass(frozen=True)
class Verification:
    """The static-clip proof: an image through the 2D model against the same image as a still video.

    ``exact`` says whether geometry promises equality; where not, ``reason`` says why.
    """

    max_abs_diff: float
    max_rel_diff: float
    max_feature: float
    clip: tuple[int, ...]
    exact: bool
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "max_abs_diff": self.max_abs_diff,
            "max_rel_diff": self.max_rel_diff,
            "max_feature": self.max_feature,
            "clip": list(self.clip),
            "exact": self.exact,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Inflation:
    """What inflate did."""

    source: Checkpoint
    config: ModelConfig
    labels: tuple[str, ...] | None
    protocol: ViewProtocol
    report: Report
    verification: Verification | None
    out: Path
    out_bytes: int
    out_sha256: str
    to: str
    unheld: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON of `vswin inflate --json` (keys of DESIGN.md)."""
        return {
            "source": {
                "path": str(self.source.path),
                "dialect": self.source.dialect,
                "evidence": list(self.source.evidence),
                "sha256": self.source.sha256,
                "bytes": self.source.nbytes,
            },
            "config": self.config.to_json(),
            "labels": len(self.labels) if self.labels else None,
            "protocol": self.protocol.to_json(),
            "report": self.report.to_json(),
            "verify": None if self.verification is None else self.verification.to_json(),
            "out": str(self.out),
            "bytes": self.out_bytes,
            "sha256": self.out_sha256,
            "to": self.to,
            "not_held": list(self.unheld),
            "note": self.source.note,
        }


def inflate(
    src: str | Path,
    out: str | Path,
    *,
    window: Window | None = None,
    patch_frames: int = 2,
    patch_init: PatchInit = "inflate",
    bias_init: BiasInit = "duplicate",
    head: Literal["keep", "drop"] = "keep",
    dialect: str | None = None,
    ignore: Sequence[str] = (),
    verify: bool = True,
    force: bool = False,
    to: str = "native",
) -> Inflation:
    """Write the 3D model that a 2D checkpoint inflates to (paper, section 2.4).

    ``window`` is in tokens (frames, height, width) of the 3D model; ``to`` is the dialect of the file.
    Raises CheckpointError (a 3D file among them), OutputError, and MismatchError where the proof fails.
    """
    path, out = resolve(src), Path(out)
    check_writable(out, force, files_of(path))
    check_suffix(out, dialect_named(to))
    if patch_frames < 1 or (window is not None and min(window) < 1):
        raise UsageError("window and patch frames are at least 1")
    source = load_checkpoint(path, dialect=dialect, ignore=ignore)
    if not source.config.is_2d:
        raise DialectError(
            f"{path} is a video model already ({source.dialect}, patch {_x(source.config.patch)}, "
            f"window {_x(source.config.window)}); inflate takes an image model",
            f"use it as it is: vswin predict VIDEO --weights {shlex.quote(str(path))}",
        )
    target = inflated_config(source.config, window, patch_frames)
    if head == "drop":
        target = replace(target, num_classes=0)
    destination = plan_target(out, to, target, None, force)
    state, changed = inflate_state(
        source.state,
        source.config,
        target,
        patch_init=patch_init,
        bias_init=bias_init,
        keep_head=head == "keep",
    )
    report = _merge_reports(source, changed, head)
    verification = None
    if verify:
        verification = verify_inflation(source, state, target, bias_init)
        if verification.exact and not verification.max_rel_diff <= STATIC_TOLERANCE:
            raise MismatchError(
                f"the inflated model does not agree with its source on a static clip: largest difference "
                f"{verification.max_rel_diff:.1e} of the largest feature, {STATIC_TOLERANCE:.0e} allowed",
                "nothing was written; --no-verify writes it all the same",
            )
    labels = source.labels if target.num_classes else None
    protocol = protocol_for(target)
    origin = {
        "name": path.name,
        "dialect": source.dialect,
        "sha256": source.sha256,
        "inflated": {"patch_init": patch_init, "bias_init": bias_init, "head": head},
    }
    content = Content(target, labels, protocol, origin, report.to_json())
    write(state, content, destination)
    return Inflation(
        source,
        target,
        labels,
        protocol,
        report,
        verification,
        out,
        out.stat().st_size,
        sha256_of(out),
        to,
        unheld(destination, content, protocol_for(target, to)),
    )


def _x(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))


def _merge_reports(source: Checkpoint, changed: dict[str, str], head: str) -> Report:
    """Fold what inflation did, in native names, into the report of the file's own keys."""
    # Names differ between dialects only in spelling; what inflation changed is reported by native name.
    both = {"patch_embed.proj.weight"} | {n for n in changed if n.endswith("bias_table")}
    report = Report(dropped=dict(source.report.dropped), transformed=dict(source.report.transformed))
    for step_name, sources in source.origins.items():
        for key in sources:
            if step_name in both:
                before = report.transformed.get(key)
                report.transformed[key] = f"{before}; {changed[step_name]}" if before else changed[step_name]
            elif step_name.startswith("head.") and head == "drop":
                report.transformed.pop(key, None)
                report.dropped[key] = "classifier, dropped as asked"
            elif key not in report.transformed:
                report.loaded.append(key)
    return report


def verify_inflation(
    source: Checkpoint, state: dict[str, Tensor], target: ModelConfig, bias_init: BiasInit
) -> Verification:
    """Compare the 2D model on an image with the 3D model on that image held still.

    The clip has 2*Wd*patch frames, so that temporal shifts and masks run; its side is the smallest
    at which no spatial window shrinks. Both models use the given tensors, not copies.
    """
    config = source.config
    stages = [config.stage_window(i) for i in range(len(config.depths))]
    side = max(
        max(w[1], t[1]) * config.patch[1] * 2**i
        for i, (w, t) in enumerate(
            zip(stages, [target.stage_window(i) for i in range(len(stages))], strict=True)
        )
    )
    reason = None
    if bias_init != "duplicate":
        reason = "bias-init 'center' sets frames apart, so a static clip is not attended like an image"
    elif any(w[1:] != target.window[1:] for w in stages):
        reason = f"the spatial window changes ({', '.join(sorted({_x(w[1:]) for w in stages}))} -> " + (
            f"{_x(target.window[1:])}), so tokens see other neighbours"
        )
    elif config.patch[1] != config.patch[2] or target.window[1] != target.window[2]:
        reason = "patch or window is not square"
    elif state["patch_embed.proj.weight"].dtype != torch.float32 and math.log2(target.patch[0]) % 1:
        reason = "the patch weight divided by its frames is rounded to the file's dtype"
    frames = 2 * target.window[0] * target.patch[0]
    image = torch.randn(1, 3, 1, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), prompt_memory():
        still = features_of(config, source.state, image)[:, 0]
        moving = features_of(target, state, image.expand(-1, -1, frames, -1, -1))
        largest = float(still.abs().max())
        difference = float((moving - still[:, None]).abs().max())
    return Verification(
        difference,
        difference / largest if largest else math.inf,
        largest,
        (1, 3, frames, side, side),
        reason is None,
        reason,
    )


def features_of(config: ModelConfig, state: Mapping[str, Tensor], clip: Tensor) -> Tensor:
    """Features (1, T', H', W', C) of a clip (1, 3, T, H, W), in float32.

    Each part of the model gets its weights when it runs and gives them back, so that a float16 file is
    never held as float32 in whole; float32 tensors are used as they are.
    """
    with torch.device("meta"):
        model = VideoSwin(replace(config, num_classes=0), cache_bytes=0).eval()

    def lend(part: torch.nn.Module, _inputs: Any, name: str = "") -> None:
        own = {k: state[f"{name}.{k}"].float() for k, _ in part.named_parameters()}
        part.load_state_dict(own, assign=True)

    def take_back(part: torch.nn.Module, _inputs: Any, _output: Any) -> None:
        part.to_empty(device="meta")

    for name, part in model.named_modules():
        if isinstance(part, Block | PatchEmbed | PatchMerging) or name == "norm":
            part.register_forward_pre_hook(partial(lend, name=name))
            part.register_forward_hook(take_back)
    return model.forward_features(clip)


def attach_labels(model: VideoSwin) -> tuple[str, ...]:
    """The model's class names; numbered where the file has none and none are known for that many."""
    known = model.labels or labels_for(model.config.num_classes)
    return known or tuple(f"class {i}" for i in range(model.config.num_classes))
