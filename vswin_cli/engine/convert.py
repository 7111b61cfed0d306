"""A checkpoint of one dialect -> a file of another, and the proof that both are one model."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vswin_cli.checkpoints.dialects import NATIVE, dialect_named
from vswin_cli.checkpoints.export import Content, Target, cast, plan_target, unheld, write
from vswin_cli.checkpoints.files import Checkpoint, files_of, load_checkpoint, sha256_of
from vswin_cli.checkpoints.zoo import resolve
from vswin_cli.config import ModelConfig, ViewProtocol, Window
from vswin_cli.engine.device import DTYPES, dtype_name, prompt_memory
from vswin_cli.engine.load import features_of, guess_protocol, protocol_for
from vswin_cli.errors import DialectError, MismatchError, UsageError

#: Logits of source and result may differ by this share of the largest, where the dtype is the same.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Comparison:
    """Source and result on one seeded clip (B, 3, T, H, W): logits, or features where there is no head."""

    max_abs_diff: float
    max_rel_diff: float
    clip: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "max_abs_diff": self.max_abs_diff,
            "max_rel_diff": self.max_rel_diff,
            "clip": list(self.clip),
        }


@dataclass(frozen=True)
class Conversion:
    """What convert did.

    protocol: what a native file carries, or what the written file will be read with; None in 2D
    unheld:   what the target dialect cannot hold, in phrases
    """

    source: Checkpoint
    target: Target
    dtype: str
    protocol: ViewProtocol | None
    parameters: int
    buffers: int
    unheld: tuple[str, ...]
    comparison: Comparison | None
    out_bytes: int
    out_sha256: str

    @property
    def out(self) -> Path:
        """The file that was written."""
        return self.target.out

    def to_json(self) -> dict[str, Any]:
        """The JSON of `vswin convert --json`."""
        beside = self.target.config_json
        return {
            "source": {
                "path": str(self.source.path),
                "dialect": self.source.dialect,
                "evidence": list(self.source.evidence),
                "sha256": self.source.sha256,
                "bytes": self.source.nbytes,
            },
            "to": self.target.dialect.name,
            "config": self.source.config.to_json(),
            "dtype": self.dtype,
            "size": self.target.size or None,
            "report": self.source.report.to_json(),
            "written": {"parameters": self.parameters, "buffers": self.buffers},
            "not_held": list(self.unheld),
            "verify": None if self.comparison is None else self.comparison.to_json(),
            "out": str(self.out),
            "config_json": None if beside is None else str(beside),
            "bytes": self.out_bytes,
            "sha256": self.out_sha256,
            "note": self.source.note,
        }


def convert(
    src: str | Path,
    out: str | Path,
    to: str,
    *,
    dtype: str | None = None,
    size: int | None = None,
    dialect: str | None = None,
    window: Window | None = None,
    ignore: tuple[str, ...] = (),
    verify: bool = True,
    force: bool = False,
) -> Conversion:
    """Write a checkpoint of any dialect as ``to``, so that its library takes the file strictly.

    ``dtype`` is fp32, bf16 or fp16, by default that of the source; ``size`` is the image side in pixels
    that microsoft-2d's masks (and a Hugging Face config) are made for. With ``verify`` the written file
    is read back and both models are run on a seeded clip before it gets its name. Raises
    CheckpointError, UsageError, OutputError, and MismatchError where the two models differ.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", f"one of {', '.join(DTYPES)}")
    dialect_named(to)
    path, out = resolve(src), Path(out)
    sources = files_of(path)
    source = load_checkpoint(path, dialect=dialect, window=window, ignore=ignore)
    try:
        target = plan_target(out, to, source.config, size, force, sources)
    except DialectError as error:
        hint = error.hint and error.hint.replace("SRC OUT", shlex.join((str(path), str(out))))
        raise DialectError(f"{path}: {error.message}", hint) from error
    state: Mapping[str, Tensor] = source.state
    if dtype is not None:
        state = cast(state, DTYPES[dtype])
    content, read_as = _content(source, target)
    comparison: list[Comparison] = []

    def check(written: Path) -> None:
        comparison.append(compare(source, written, exact=state is source.state))

    parameters, buffers = write(state, content, target, check if verify else None)
    return Conversion(
        source,
        target,
        ", ".join(sorted({dtype_name(t.dtype) for t in state.values()})),
        content.protocol if target.dialect is NATIVE else read_as,
        parameters,
        buffers,
        unheld(target, content, read_as),
        comparison[0] if comparison else None,
        out.stat().st_size,
        sha256_of(out),
    )


def _content(source: Checkpoint, target: Target) -> tuple[Content, ViewProtocol | None]:
    """What goes beside the tensors, and the protocol that a file without one is read with."""
    known = source.source
    if target.dialect is NATIVE:
        known = {"name": source.path.name, "dialect": source.dialect, "sha256": source.sha256}
        known |= {"from": source.source} if source.source else {}
    config = source.config
    read_as = None if config.is_2d else protocol_for(config, target.dialect.name)
    content = Content(config, source.labels, guess_protocol(source), known, source.report.to_json())
    return content, read_as


def compare(source: Checkpoint, written: Path, exact: bool) -> Comparison:
    """Run the source and the file that was made from it on one clip.

    The clip is one window long and the smallest on which no spatial window shrinks, so that every row
    of every bias table counts. Raises MismatchError where ``exact`` results differ by more than TOLERANCE.
    """
    config = source.config
    # The file says its windows by its buffers, or by tables that fit one square window only.
    window = config.window if config.stage_windows is None else None
    result = load_checkpoint(written, window=window)
    if result.config != config:
        raise MismatchError(f"the written file was read back as {result.config}, not {config}")
    clip = seeded_clip(config)
    with torch.inference_mode(), prompt_memory():
        before = _logits(config, source.state, clip)
        after = _logits(config, result.state, clip)
    difference = float((after - before).abs().max())
    largest = float(before.abs().max())
    found = Comparison(difference, difference / largest if largest else math.inf, tuple(clip.shape))
    if exact and not found.max_rel_diff <= TOLERANCE:
        raise MismatchError(
            f"the written file does not agree with its source on a clip: largest difference "
            f"{found.max_rel_diff:.1e} of the largest output, {TOLERANCE:.0e} allowed",
            "nothing was written; --no-verify writes it all the same",
        )
    return found


def seeded_clip(config: ModelConfig) -> Tensor:
    """(1, 3, T, H, W) of random pixels that fills a window of every stage."""
    windows = [config.stage_window(i) for i in range(len(config.depths))]
    frames = max(w[0] for w in windows) * config.patch[0]
    height, width = (
        max(w[axis] * config.patch[axis] * 2**i for i, w in enumerate(windows)) for axis in (1, 2)
    )
    return torch.randn(1, 3, frames, height, width, generator=torch.Generator().manual_seed(0))


def _logits(config: ModelConfig, state: Mapping[str, Tensor], clip: Tensor) -> Tensor:
    """Logits (1, classes) in float32; pooled features (1, C) of a model without a head."""
    pooled = features_of(replace(config), dict(state), clip).mean(dim=(1, 2, 3))
    if not config.num_classes:
        return pooled
    return F.linear(pooled, state["head.weight"].float(), state["head.bias"].float())
