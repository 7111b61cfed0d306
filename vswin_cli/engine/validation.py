"""Accuracy on the validation set while a model is trained: the same path as predict and eval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vswin_cli.config import ViewProtocol
from vswin_cli.engine.device import default_view_batch
from vswin_cli.engine.distributed import Place, gather
from vswin_cli.engine.evaluate import rank_of
from vswin_cli.engine.inference import ViewScorer, average, prepared_ahead
from vswin_cli.errors import VideoError
from vswin_cli.model import VideoSwin
from vswin_cli.video.dataset import Item
from vswin_cli.video.views import views
from vswin_cli.video.workers import DecodePool


@dataclass(frozen=True)
class Validation:
    """Accuracy on the validation set; ``probabilities`` (videos, classes), NaN for videos that failed."""

    top1: float
    top5: float | None
    loss: float
    evaluated: int
    failed: dict[str, str]
    probabilities: npt.NDArray[np.float32]


def validate(
    model: VideoSwin,
    items: Sequence[Item],
    protocol: ViewProtocol,
    pool: DecodePool,
    ahead: int,
    here: Place,
) -> Validation:
    """Score the videos, every world-th of them on this rank, ``ahead`` decoded ahead of the model.

    The model must be in evaluation mode. Every rank gets the whole result.
    """
    parameter = next(model.parameters())
    scorer = ViewScorer(model, default_view_batch(parameter.device, protocol.views))
    mine = range(here.rank, len(items), here.world)
    scores: dict[int, npt.NDArray[np.float32]] = {}
    failed: dict[str, str] = {}
    for number, prepared in prepared_ahead(pool, [items[i].path for i in mine], protocol, ahead):
        if isinstance(prepared, VideoError):
            failed[items[mine[number]].id] = prepared.message
        else:
            scores[mine[number]] = average(scorer.scores(views(prepared, protocol)))
    for theirs, lost in gather((scores, failed), here):
        scores |= theirs
        failed |= lost
    classes = model.config.num_classes
    probabilities = np.full((len(items), classes), np.nan, np.float32)
    for i, row in scores.items():
        probabilities[i] = row
    good = sorted(scores)
    ranks = [rank_of(scores[i], items[i].label) for i in good]
    floor = float(np.finfo(np.float32).tiny)
    losses = [-math.log(max(float(scores[i][items[i].label]), floor)) for i in good]
    share = 100 / max(1, len(good))
    return Validation(
        top1=round(sum(r < 1 for r in ranks) * share, 6),
        top5=round(sum(r < 5 for r in ranks) * share, 6) if classes >= 5 else None,
        loss=math.fsum(losses) / max(1, len(good)),
        evaluated=len(good),
        failed=failed,
        probabilities=probabilities,
    )
