"""What an evaluation costs beside the model: preparing views, feeding the model, scaling to two ranks.

    python benchmarks/evaluation.py [--rounds 3] [--videos 4] [--variant T]

Four figures, all taken in one go, sides interleaved, medians printed:
- prepare:    decoding and resizing for 12 views, against the bare decoding of the frames they need
- end to end: seconds per video of `vswin eval` (1 thread, 1 decoding process), against the model's own
              forwards on the same views
- scaling of two ranks (1 thread each) on views in memory and on encoded clips, against two processes that
  only multiply matrices
Needs two free cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import cv2
import numpy as np
import torch

from vswin_cli.checkpoints.files import save_native
from vswin_cli.config import PROTOCOLS, VARIANTS, ViewProtocol
from vswin_cli.engine.inference import ViewScorer
from vswin_cli.engine.load import load_model
from vswin_cli.model import VideoSwin
from vswin_cli.video.sampling import sample_clips
from vswin_cli.video.views import prepare, views

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 3  # short measurements of a round
LABELS = tuple(f"class {i}" for i in range(400))


def make_clip(path: Path, seed: int) -> None:
    """10 s of 340x256 at 30 fps: a photograph-like texture under a moving camera, with grain."""
    rng = np.random.default_rng(seed)
    octaves = [
        cv2.resize(rng.random((2**k, 2**k, 3)), (800, 600), interpolation=cv2.INTER_CUBIC) / k
        for k in range(2, 9)
    ]
    texture = np.clip(np.sum(octaves, axis=0) / 1.6 * 255, 0, 255)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        stream.options = {"crf": "23", "g": "250"}
        for i in range(300):
            x, y = 200 + 180 * np.sin(i / 45 + seed), 150 + 120 * np.cos(i / 60)
            picture = texture[int(y) : int(y) + 256, int(x) : int(x) + 340] + rng.normal(0, 4, (256, 340, 1))
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def bare_decoding(path: Path, protocol: ViewProtocol) -> float:
    """Seconds for decord alone to give the distinct frames that the views need."""
    import decord

    start = time.perf_counter()
    reader = decord.VideoReader(str(path), num_threads=1)
    needed = sorted({i for clip in sample_clips(protocol, len(reader), 30.0) for i in clip})
    for first in range(0, len(needed), 16):
        reader.get_batch(needed[first : first + 16]).asnumpy()
    return time.perf_counter() - start


def matmuls(seconds: float, barrier: Any, results: Any) -> None:
    """Multiply matrices for some seconds; report how many per second."""
    torch.set_num_threads(1)
    a = torch.randn(1024, 1024)
    a @ a
    barrier.wait()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ a
        count += 1
    results.put(count / (time.perf_counter() - start))


def forwards(weights: str, clip: str, count: int, barrier: Any, results: Any) -> None:
    """Score the views of one prepared video; report views per second."""
    torch.set_num_threads(1)
    protocol = PROTOCOLS["k400-4x3"]
    chosen = list(views(prepare(clip, protocol), protocol))[:count]
    scorer = ViewScorer(load_model(weights), 1)
    scorer.scores(chosen[:1])
    barrier.wait()
    start = time.perf_counter()
    scorer.scores(chosen)
    results.put(count / (time.perf_counter() - start))


def together(target: Any, processes: int, *arguments: Any) -> float:
    """Sum of the rates of several processes that start together."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=target, args=(*arguments, barrier, results)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    total = sum(results.get(timeout=300) for _ in workers)
    for worker in workers:
        worker.join()
    return float(total)


def evaluate(data: Path, weights: Path, out: Path, ranks: int, port: int) -> float:
    """Videos per second of `vswin eval`, summed over ranks, without start-up: from the rows' seconds."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(port)]
    subprocess.run(
        [
            sys.executable, *(launcher if ranks > 1 else []), "-m", "vswin_cli", "eval", "--data", str(data),
            "--weights", str(weights), "--out", str(out), "--device", "cpu", "--json",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    rate = 0.0
    for path in out.glob("rows-*.jsonl"):
        seconds = [json.loads(line)["seconds"] for line in path.read_text(encoding="utf-8").splitlines()]
        rate += (len(seconds) - 1) / sum(seconds[1:])  # the first waits for the decoder to start
    return rate


def show(name: str, values: list[float], bound: str) -> None:
    """One line of the report."""
    spread = f"(min {min(values):.3f}, max {max(values):.3f})"
    print(f"{name:44} median {statistics.median(values):.3f} {spread}, {bound}", flush=True)


def main() -> None:
    """Take all figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--videos", type=int, default=3, help="per rank")
    parser.add_argument("--variant", default="T")
    parser.add_argument("--memory-only", action="store_true", help="only prepare and scaling in memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    protocol = PROTOCOLS["k400-4x3"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = folder / "weights.safetensors"
        torch.manual_seed(0)
        model = VideoSwin(VARIANTS[options.variant]).eval()
        save_native(weights, model.state_dict(), model.config, labels=LABELS, protocol=protocol, source={})
        for i in range(2 * options.videos):
            place = folder / "data" / LABELS[i]
            place.mkdir(parents=True)
            make_clip(place / f"{i}.mp4", i)
        clips = sorted((folder / "data").rglob("*.mp4"))
        size = statistics.mean(c.stat().st_size for c in clips)
        print(f"torch {torch.__version__}, {os.cpu_count()} cores", end="; ")
        print(f"clips of 300 frames, 340x256, {size / 1e6:.2f} MB", flush=True)

        ratios = []
        for clip in clips * 4:
            bare = bare_decoding(clip, protocol)
            start = time.perf_counter()
            prepare(clip, protocol)
            ratios.append((time.perf_counter() - start) / bare)
        show("prepare 12 views / bare decoding", ratios, "goal at most 1.3")

        matrix, memory, encoded, whole = [], [], [], []
        for k in range(options.rounds):
            for _ in range(REPEATS):
                one, two = together(matmuls, 1, 5.0), together(matmuls, 2, 5.0)
                matrix.append(two / one)
                one_scores = together(forwards, 1, str(weights), str(clips[0]), 6)
                memory.append(together(forwards, 2, str(weights), str(clips[0]), 6) / one_scores)
            if options.memory_only:
                continue
            single = evaluate(folder / "data", weights, folder / f"one{k}", 1, 0)
            double = evaluate(folder / "data", weights, folder / f"two{k}", 2, 29800 + k)
            encoded.append(double / single)
            # Against the model alone in this process, on one thread, between the two runs' rounds.
            chosen = list(views(prepare(clips[0], protocol), protocol))
            scorer = ViewScorer(model, 1)
            start = time.perf_counter()
            scorer.scores(chosen)
            whole.append(1 / single / (time.perf_counter() - start))
        show("two processes / one, bare matmul", matrix, "what the machine gives")
        show("two ranks / one, views in memory", memory, "")
        shares = [m / x for m, x in zip(memory, matrix, strict=True)]
        show("share of the matmul scaling, in memory", shares, "goal at least 0.93")
        if options.memory_only:
            return
        show("two ranks / one, encoded clips", encoded, "")
        typical = statistics.median(matrix)
        shares = [e / typical for e in encoded]
        show("share of the matmul scaling, encoded", shares, "goal at least 0.93")
        show("end to end / the model's forwards", whole, "goal at most 1.1")


if __name__ == "__main__":
    main()
