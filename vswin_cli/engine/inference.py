"""THE path from view tensors to probabilities; whatever predicts or measures goes through it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vswin_cli.config import MEAN, STD, ViewProtocol
from vswin_cli.engine.device import dtype_name, is_out_of_memory
from vswin_cli.errors import ModelOutputError, VideoError
from vswin_cli.model import VideoSwin
from vswin_cli.video.views import PreparedVideo
from vswin_cli.video.workers import DecodePool

View = npt.NDArray[np.uint8]  # (T, H, W, 3) RGB


def to_clips(views: Sequence[View], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Views of uint8 RGB -> one batch (B, 3, T, H, W), normalised in float32 on the device."""
    batch = torch.stack([torch.from_numpy(v) for v in views]).to(device)
    batch = batch.permute(0, 4, 1, 2, 3).to(torch.float32)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1, 1) for v in (MEAN, STD))
    return batch.sub_(mean).div_(std).to(dtype)


class ViewScorer:
    """Runs a model over views in batches that fit the device.

    view_batch: views in one forward; halved when memory runs out, and ``halvings`` counts that
    """

    def __init__(self, model: VideoSwin, view_batch: int) -> None:
        parameter = next(model.parameters())
        self.model = model
        self.device, self.dtype = parameter.device, parameter.dtype
        self.view_batch = view_batch
        self.halvings = 0

    def scores(self, views: Iterable[View]) -> npt.NDArray[np.float32]:
        """Softmax probabilities of each view, (views, classes), float32. Raises ModelOutputError."""
        pending = iter(views)
        waiting: list[View] = []
        rows: list[Tensor] = []
        while True:
            waiting.extend(islice(pending, max(0, self.view_batch - len(waiting))))
            if not waiting:
                return torch.cat(rows).numpy()
            batch = waiting[: self.view_batch]
            result = self._forward(batch)
            if result is None:
                self._halve(len(batch))
            else:
                rows.append(result)
                waiting = waiting[len(batch) :]

    def _forward(self, batch: list[View]) -> Tensor | None:
        """Probabilities of a batch, or None where memory ran out and a smaller batch can be tried."""
        try:
            with torch.inference_mode():
                logits = self.model(to_clips(batch, self.device, self.dtype))
                probabilities: Tensor = logits.float().softmax(-1).cpu()
        except Exception as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            return None  # The next try comes outside of the handler: the exception holds on to memory.
        if not probabilities.isfinite().all():
            name = dtype_name(self.dtype)
            raise ModelOutputError(
                f"the model's output is not finite in {name}",
                "the weights hold NaN or infinity"
                if name == "fp32"
                else "use --dtype bf16 or fp32, which hold larger numbers; if that does not help, "
                "the weights hold NaN or infinity",
            )
        return probabilities

    def _halve(self, failed: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.view_batch = failed // 2
        self.halvings += 1


def average(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean over views of their probabilities, in float32: (views, classes) -> (classes,)."""
    mean: npt.NDArray[np.float32] = scores.mean(axis=0, dtype=np.float32)
    return mean


def top_k(probabilities: npt.NDArray[np.float32], k: int) -> list[int]:
    """The k most probable classes, best first; of equals the smaller index."""
    return [int(i) for i in np.argsort(-probabilities, kind="stable")[:k]]


def prepared_ahead(
    pool: DecodePool, videos: Iterable[str | Path], protocol: ViewProtocol, ahead: int
) -> Iterator[tuple[int, PreparedVideo | VideoError]]:
    """Decode videos ahead of the model, at most ``ahead`` waiting or at work: (number, result or error).

    Results come in the order of ``videos``; memory is bounded by ``ahead``, not by their number.
    """
    waiting: deque[tuple[int, Future[PreparedVideo]]] = deque()
    numbered = enumerate(videos)
    while True:
        for number, video in islice(numbered, ahead - len(waiting)):
            waiting.append((number, pool.submit(video, protocol)))
        if not waiting:
            return
        number, job = waiting.popleft()
        try:
            result: PreparedVideo | VideoError = job.result()
        except VideoError as error:
            result = error
        del job  # its future holds on to the frames
        yield number, result
        del result
