"""Memory stays flat over 2,000 videos, in the main process and its workers together."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests import clips
from vswin_cli import evaluate
from vswin_cli.checkpoints.files import save_native
from vswin_cli.config import ModelConfig, ViewProtocol
from vswin_cli.engine import evaluate as engine
from vswin_cli.model import VideoSwin


def resident_mb() -> float:
    """Resident memory of this process and its children."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(os.getpid()) in (fields["Pid"].strip(), fields["PPid"].strip()) and "VmRSS" in fields:
            total += int(fields["VmRSS"].split()[0])
    return total / 1024


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_2000_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = VideoSwin(ModelConfig(8, (2, 2), (1, 2), (2, 4, 4), (2, 4, 4), 2))
    protocol = ViewProtocol("k400-4x3", "segment-centers", 2, 3, frames=4, short_side=64, crop_size=64)
    weights = tmp_path / "w.safetensors"
    save_native(weights, model.state_dict(), model.config, labels=["a", "b"], protocol=protocol, source={})
    sources = [clips.write_clip(tmp_path / f"{n}.mp4", frames=n, size=(128, 96)) for n in (8, 16, 24)]
    for i in range(2000):
        folder = tmp_path / "data" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(sources[i % 3], folder / f"{i}.mp4")
    seen: list[float] = []
    row_of = engine.row_of

    def watched(*arguments: object) -> object:
        if len(seen) * 50 <= watched.count:  # type: ignore[attr-defined]
            seen.append(resident_mb())
        watched.count += 1  # type: ignore[attr-defined]
        return row_of(*arguments)  # type: ignore[arg-type]

    watched.count = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "row_of", watched)
    result = evaluate(tmp_path / "data", weights, out=tmp_path / "out", device="cpu")
    assert result.summary is not None
    assert result.summary["n_evaluated"] == 2000
    # Every 50 videos; workers are recycled, so compare the highest points.
    early, late = max(seen[2:5]), max(seen[5:])
    print(f"resident memory: {early:.0f} MB up to video 200, at most {late:.0f} MB afterwards")
    assert late - early < 50
