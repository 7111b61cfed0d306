"""What a file is and what it can be used for. Nothing in it is executed."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vswin_cli.checkpoints.export import TARGETS
from vswin_cli.checkpoints.files import (
    TRAINING_KEY,
    Checkpoint,
    RawFile,
    read_file,
    sha256_of,
    translate,
)
from vswin_cli.checkpoints.zoo import resolve
from vswin_cli.config import ViewProtocol, Window
from vswin_cli.engine.device import dtype_name
from vswin_cli.engine.load import guess_protocol

FEW = 5  # labels that are shown


@dataclass(frozen=True)
class Inspection:
    """A file of weights, or the state of a training run (``training``; then there is no checkpoint).

    tensors:  how many the file holds, buffers and training state among them
    dtypes:   dtype -> number of tensors
    uses:     what the file is good for, in phrases
    then:     the command to type next
    """

    path: Path
    nbytes: int
    sha256: str
    tensors: int
    dtypes: dict[str, int]
    checkpoint: Checkpoint | None
    protocol: ViewProtocol | None
    training: dict[str, Any] | None
    uses: tuple[str, ...]
    then: str

    @property
    def parameters(self) -> int:
        """Numbers that the model learns; 0 for a training state."""
        return sum(t.numel() for t in self.checkpoint.state.values()) if self.checkpoint else 0

    def to_json(self) -> dict[str, Any]:
        """The JSON of `vswin inspect --json`."""
        made: dict[str, Any] = {
            "path": str(self.path),
            "kind": "training state" if self.checkpoint is None else "checkpoint",
            "bytes": self.nbytes,
            "sha256": self.sha256,
            "tensors": self.tensors,
            "dtypes": self.dtypes,
            "uses": list(self.uses),
            "next": self.then,
        }
        if self.checkpoint is None:
            return {**made, "training": self.training}
        held, config = self.checkpoint, self.checkpoint.config
        return {
            **made,
            "dialect": held.dialect,
            "evidence": list(held.evidence),
            "config": config.to_json(),
            "parameters": self.parameters,
            "classes": config.num_classes,
            "labels": list(held.labels[:FEW]) if held.labels else None,
            "protocol": None if self.protocol is None else self.protocol.to_json(),
            "report": self.counts(),
            "source": held.source,
            "note": held.note,
        }

    def counts(self) -> dict[str, int]:
        """What became of the file's keys."""
        if self.checkpoint is None:
            return {}
        report = self.checkpoint.report
        return {
            "loaded": len(report.loaded),
            "transformed": len(report.transformed),
            "dropped": len(report.dropped),
        }


def inspect(
    ref: str | Path,
    *,
    dialect: str | None = None,
    window: Window | None = None,
    ignore: Sequence[str] = (),
) -> Inspection:
    """Read a file and say what it is. Raises CheckpointError for what no command could use."""
    raw = read_file(resolve(ref))
    quoted = shlex.quote(str(ref))
    dtypes = dict(Counter(dtype_name(t.dtype) for t in raw.state.values()).most_common())
    if TRAINING_KEY in raw.metadata:
        folder = shlex.quote(str(raw.path.parent))
        return Inspection(
            path=raw.path,
            nbytes=raw.nbytes,
            sha256=sha256_of(raw.path),
            tensors=len(raw.state),
            dtypes=dtypes,
            checkpoint=None,
            protocol=None,
            training=_facts(raw),
            uses=("going on with its training run; its best weights are in best.safetensors beside it",),
            then=f"vswin finetune --resume --out {folder}",
        )
    checkpoint = translate(raw, dialect=dialect, window=window, ignore=ignore)
    uses, then = _uses(checkpoint, quoted)
    return Inspection(
        path=raw.path,
        nbytes=raw.nbytes,
        sha256=checkpoint.sha256,
        tensors=len(raw.state),
        dtypes=dtypes,
        checkpoint=checkpoint,
        protocol=guess_protocol(checkpoint),
        training=None,
        uses=uses,
        then=then,
    )


def _uses(checkpoint: Checkpoint, ref: str) -> tuple[tuple[str, ...], str]:
    flat = checkpoint.config.is_2d
    others = [t for t in TARGETS if not t.endswith("3d" if flat else "2d") and t != checkpoint.dialect]
    convert = f"convert to {', '.join(others)}"
    if flat:
        uses = ("inflate to a video model", "finetune on videos (inflated on the way)", convert)
        return uses, f"vswin inflate {ref} video.safetensors"
    if not checkpoint.config.num_classes:
        return ("finetune on videos", convert), f"vswin finetune --data DATA --weights {ref} --out RUN"
    return ("predict", "eval", "finetune", convert), f"vswin predict VIDEO --weights {ref}"


def _facts(raw: RawFile) -> dict[str, Any]:
    """The plain numbers and words that a training state says about itself."""
    try:
        facts = json.loads(raw.metadata[TRAINING_KEY])
    except (ValueError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    return {k: v for k, v in facts.items() if isinstance(v, str | int | float | bool)}
