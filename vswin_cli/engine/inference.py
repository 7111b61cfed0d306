"""THE path from view tensors to probabilities; whatever predicts or measures goes through it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vswin_cli.config import MEAN, STD
from vswin_cli.engine.device import default_view_batch, is_out_of_memory
from vswin_cli.model import VideoSwin

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

    def __init__(self, model: VideoSwin, view_batch: int | None = None) -> None:
        parameter = next(model.parameters())
        self.model = model
        self.device, self.dtype = parameter.device, parameter.dtype
        self.view_batch = view_batch or default_view_batch(self.device)
        self.halvings = 0

    def scores(self, views: Iterable[View]) -> npt.NDArray[np.float32]:
        """Softmax probabilities of each view, (views, classes), float32."""
        pending = iter(views)
        rows: list[Tensor] = []
        while batch := list(islice(pending, self.view_batch)):
            rows.extend(self._forward(batch))
        return torch.cat(rows).numpy()

    def _forward(self, batch: list[View]) -> Iterator[Tensor]:
        try:
            with torch.inference_mode():
                logits = self.model(to_clips(batch, self.device, self.dtype))
                result = logits.float().softmax(-1).cpu()
        except Exception as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            result = None  # Retry outside of the handler: the exception holds on to the memory.
        if result is not None:
            yield result
            return
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.view_batch = max(1, len(batch) // 2)
        self.halvings += 1
        yield from self._forward(batch[: self.view_batch])
        yield from self._forward(batch[self.view_batch :])


def average(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean over views of their probabilities, in float32: (views, classes) -> (classes,)."""
    mean: npt.NDArray[np.float32] = scores.mean(axis=0, dtype=np.float32)
    return mean


def top_k(probabilities: npt.NDArray[np.float32], k: int) -> list[int]:
    """The k most probable classes, best first; of equals the smaller index."""
    return [int(i) for i in np.argsort(-probabilities, kind="stable")[:k]]
