"""Videos -> their most probable classes."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vswin_cli.checkpoints.files import load_checkpoint
from vswin_cli.checkpoints.zoo import resolve
from vswin_cli.config import ViewProtocol, Window, protocol_named
from vswin_cli.engine.device import (
    choose_device,
    choose_dtype,
    default_view_batch,
    default_workers,
    dtype_name,
)
from vswin_cli.engine.distributed import place
from vswin_cli.engine.inference import ViewScorer, average, prepared_ahead, top_k
from vswin_cli.engine.load import attach_labels, build_model
from vswin_cli.errors import CheckpointError, DialectError, UsageError, VideoError
from vswin_cli.video.views import PreparedVideo, views
from vswin_cli.video.workers import DecodePool


@dataclass(frozen=True)
class Top:
    """One class of a prediction."""

    index: int
    label: str
    prob: float


@dataclass(frozen=True)
class VideoPrediction:
    """The answer for one video, or the error that it ended in.

    probabilities: (classes,) mean over views; None where the video failed
    frames:        frames that the video has (or that decode, in a partial read)
    """

    path: str
    top: tuple[Top, ...] = ()
    probabilities: npt.NDArray[np.float32] | None = None
    frames: int = 0
    fps: float = 0.0
    views: int = 0
    sampled_frames: tuple[tuple[int, ...], ...] = ()
    decoder: str = ""
    partial: bool = False
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    error: VideoError | None = None

    def to_json(self) -> dict[str, Any]:
        """One element of "videos" in `vswin predict --json` (keys of DESIGN.md)."""
        if self.error is not None:
            return {"path": self.path, "error": self.error.message, "hint": self.error.hint}
        return {
            "path": self.path,
            "frames": self.frames,
            "fps": self.fps,
            "views": self.views,
            "top": [{"index": t.index, "label": t.label, "prob": t.prob} for t in self.top],
            "sampled_frames": [list(clip) for clip in self.sampled_frames],
            "decoder": self.decoder,
            "partial": self.partial,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }


class Predictor:
    """A model with its labels and protocol, ready for videos.

    weights:  what --weights takes
    protocol: a name of PROTOCOLS or a ViewProtocol; None takes the checkpoint's
    workers:  processes that decode, by default as many as the device needs; each video has ``timeout``
              seconds in one of them

    ``source`` says where the weights come from: path, dialect, sha256, and a note (a licence, say).
    Raises CheckpointError for files that cannot classify videos.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        device: str = "auto",
        dtype: str = "fp32",
        protocol: str | ViewProtocol | None = None,
        views: str | None = None,
        frames: int | None = None,
        interval: int | None = None,
        size: int | None = None,
        dialect: str | None = None,
        window: Window | None = None,
        ignore: Sequence[str] = (),
        view_batch: int | None = None,
        workers: int | None = None,
        timeout: float = 60.0,
    ) -> None:
        if isinstance(protocol, str):
            protocol = protocol_named(protocol)
        if protocol is not None:
            protocol = protocol.override(views, frames, interval, size)
        chosen = choose_device(device)
        kind = choose_dtype(dtype, chosen)
        checkpoint = load_checkpoint(resolve(weights), dialect=dialect, window=window, ignore=ignore)
        config = checkpoint.config
        if config.is_2d:
            raise DialectError(
                f"{weights} is an image model (patch {config.patch[1]}x{config.patch[2]}, window "
                f"{config.window[1]}x{config.window[2]}); videos need a 3D one",
                f"inflate it first: vswin inflate {shlex.quote(str(weights))} video.safetensors",
            )
        if not config.num_classes:
            raise CheckpointError(
                f"{weights} has no classifier head, so it cannot name classes",
                "inflate with --head keep, or use a finetuned checkpoint",
            )
        self.model = build_model(checkpoint, chosen, kind)
        if protocol is None:
            assert self.model.protocol is not None  # only 2D models have none
            protocol = self.model.protocol.override(views, frames, interval, size)
        self.weights = str(weights)
        self.source = {
            "name": checkpoint.path.name,
            "dialect": checkpoint.dialect,
            "sha256": checkpoint.sha256,
            "note": checkpoint.note,
        }
        self.protocol = protocol
        self.labels = attach_labels(self.model)
        self.workers = workers or default_workers(chosen, place().local_world)
        self.timeout = timeout
        self.scorer = ViewScorer(self.model, view_batch or default_view_batch(chosen, protocol.views))
        self.view_batch = self.scorer.view_batch  # as asked for, before any halving

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self.scorer.device)

    @property
    def dtype(self) -> str:
        """The model's dtype, 'fp32' for example."""
        return dtype_name(self.scorer.dtype)

    def predict(self, videos: Iterable[str | Path], top: int = 5) -> Iterator[VideoPrediction]:
        """Predict each video, in order, as results come; a failing video yields its error.

        Videos are decoded ahead of the model, one more than there are workers, so memory does not
        grow with their number.
        """
        if top < 1:
            raise UsageError(f"top-k must be at least 1, not {top}")
        names = [str(v) for v in videos]
        with DecodePool(workers=self.workers, timeout=self.timeout) as pool:
            start = time.perf_counter()
            for number, prepared in prepared_ahead(pool, names, self.protocol, self.workers + 1):
                yield self._answer(names[number], prepared, top, start)
                start = time.perf_counter()

    def _answer(
        self, name: str, prepared: PreparedVideo | VideoError, top: int, start: float
    ) -> VideoPrediction:
        if isinstance(prepared, VideoError):
            return VideoPrediction(name, error=prepared)
        probabilities = average(self.view_scores(prepared))
        best = top_k(probabilities, top)
        return VideoPrediction(
            path=name,
            top=tuple(Top(i, self.labels[i], float(probabilities[i])) for i in best),
            probabilities=probabilities,
            frames=prepared.total,
            fps=prepared.fps,
            views=self.protocol.views,
            sampled_frames=prepared.sampled_frames,
            decoder=prepared.decoder,
            partial=prepared.partial,
            notes=prepared.notes,
            seconds=time.perf_counter() - start,
        )

    def view_scores(self, prepared: PreparedVideo) -> npt.NDArray[np.float32]:
        """Probabilities of each view of one prepared video, (views, classes); crops outer, clips inner."""
        return self.scorer.scores(views(prepared, self.protocol))
