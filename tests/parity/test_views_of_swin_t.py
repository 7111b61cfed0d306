"""Swin-T in full size, all 12 views of a video: probabilities against the reference model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests import clips
from tests.parity import writers
from tests.parity.reference import ReferenceSwin
from vswin_cli import Predictor
from vswin_cli.config import MEAN, STD, VARIANTS
from vswin_cli.engine.inference import average
from vswin_cli.video.views import prepare, views


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_12_views_agree_with_the_reference(tmp_path: Path) -> None:
    config = VARIANTS["T"]
    reference = ReferenceSwin(
        config.embed_dim, config.depths, config.num_heads, config.window, config.patch, 400
    )
    reference.fill(0)
    with torch.no_grad():  # telling logits, as a trained model's: a spread of several units
        reference.head.weight.mul_(0.8)
    weights = writers.save(writers.official_3d(reference), tmp_path / "swin_t.pth")
    clip = clips.write_clip(tmp_path / "clip.mp4", frames=150, size=(340, 256))
    predictor = Predictor(weights, device="cpu")
    prepared = prepare(clip, predictor.protocol)
    ours = predictor.view_scores(prepared)
    theirs = []
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        for view in views(prepared, predictor.protocol):
            x = torch.from_numpy(view).permute(3, 0, 1, 2)[None].float()
            theirs.append(reference((x - mean) / std).softmax(-1)[0].numpy())
    expected = np.stack(theirs)
    assert ours.shape == (12, 400)
    assert expected.max() > 0.05  # not all alike
    worst = float(np.abs(ours - expected).max())
    print(f"largest difference of a probability: {worst:.1e} (largest {expected.max():.2f})")
    assert worst <= 1e-5
    assert np.abs(average(ours) - expected.mean(0)).max() <= 1e-5
