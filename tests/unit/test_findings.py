"""Bugs that were found once, each held by a test."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests import clips
from tests.parity import writers
from vswin_cli import Predictor, inflate, load_model
from vswin_cli.checkpoints.files import load_checkpoint, save_native
from vswin_cli.cli.app import app
from vswin_cli.config import ModelConfig, ViewProtocol
from vswin_cli.engine.device import peak_memory_mb, reset_peak_memory
from vswin_cli.engine.evaluate import rank_of
from vswin_cli.errors import (
    CheckpointError,
    DialectError,
    MismatchError,
    ModelOutputError,
    OutputError,
    UnreadableError,
)
from vswin_cli.model import DropPath, VideoSwin

CPU = torch.device("cpu")
TINY = ModelConfig(8, (2, 2), (1, 2), (2, 4, 4), (2, 4, 4), 5)
QUICK = ViewProtocol("k400-4x3", "segment-centers", 1, 1, frames=4, short_side=32, crop_size=32)


def native(path: Path, model: VideoSwin) -> Path:
    save_native(path, model.state_dict(), model.config, labels=None, protocol=QUICK, source={})
    return path


def test_nan_is_an_error_and_never_ranks_first(tmp_path: Path) -> None:
    model = VideoSwin(TINY)
    torch.nn.init.constant_(model.head.bias, float("nan"))
    weights = native(tmp_path / "nan.safetensors", model)
    clip = clips.write_clip(tmp_path / "clip.mp4", frames=8)
    with pytest.raises(ModelOutputError, match="not finite in fp32"):
        list(Predictor(weights, device="cpu").predict([clip]))
    done = CliRunner().invoke(
        app, ["predict", str(clip), "--weights", str(weights), "--json", "--device", "cpu"]
    )
    assert (done.exit_code, done.stdout) == (1, "")
    assert rank_of(np.array([np.nan, np.nan, 0.5], np.float32), 0) == 3
    assert rank_of(np.array([np.nan, 0.2, 0.5], np.float32), 2) == 1


def test_a_missing_video_does_not_stop_the_others(tmp_path: Path) -> None:
    weights = native(tmp_path / "w.safetensors", VideoSwin(TINY))
    clip = clips.write_clip(tmp_path / "clip.mp4", frames=8)
    arguments = ["predict", str(tmp_path / "none.mp4"), str(clip), "--weights", str(weights), "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 1
    lost, found = json.loads(done.stdout)["videos"]
    assert "does not exist" in lost["error"]
    assert len(found["top"]) == 5


def test_output_may_be_no_part_of_a_sharded_source(tmp_path: Path) -> None:
    state = writers.timm_2d(writers.small_2d(1))
    names = sorted(state)
    shards = {"a.safetensors": names[:50], "b.safetensors": names[50:]}
    for shard, keys in shards.items():
        save_file({k: state[k] for k in keys}, tmp_path / shard)
    index = {"weight_map": {k: s for s, keys in shards.items() for k in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for out in ("b.safetensors", "a.safetensors"):
        with pytest.raises(OutputError, match="source itself"):
            inflate(tmp_path, tmp_path / out, force=True)
    made = inflate(tmp_path, tmp_path / "out.safetensors")
    assert made.verification is not None
    assert made.verification.exact


def test_strided_and_tied_tensors_are_written(tmp_path: Path) -> None:
    state = writers.state_of(writers.microsoft_2d(writers.small_2d(1), 128))
    plain = load_model(writers.save({"model": state}, tmp_path / "plain.pth"))
    odd = dict(state)
    block = "layers.1.blocks.0."
    odd[block + "mlp.fc1.weight"] = state[block + "mlp.fc1.weight"].t().contiguous().t()
    larger = (
        torch.zeros(2, *state[block + "attn.qkv.weight"].shape).transpose(1, 2).contiguous().transpose(1, 2)
    )
    larger[1] = state[block + "attn.qkv.weight"]
    odd[block + "attn.qkv.weight"] = larger[1]
    odd[block + "norm1.weight"] = odd[block + "norm2.weight"]
    path = writers.save({"model": odd}, tmp_path / "odd.pth")
    out = tmp_path / "out.safetensors"
    inflate(path, out)
    again = load_model(out)
    for name in (block + "mlp.fc1.weight", block + "attn.qkv.weight"):
        assert torch.equal(again.state_dict()[name], plain.state_dict()[name])


def test_averaged_model_of_torch(tmp_path: Path) -> None:
    reference = writers.small_2d(1)
    state = writers.state_of(writers.microsoft_2d(reference, 128))
    averaged = {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in state.items()}
    for made in (averaged, {"model_ema": averaged}):
        checkpoint = load_checkpoint(writers.save(made, tmp_path / "avg.pth"))
        assert "AveragedModel" in checkpoint.report.dropped["n_averaged"]


def test_the_hint_for_unexpected_keys_works(tmp_path: Path) -> None:
    state = writers.state_of(writers.microsoft_2d(writers.small_2d(1), 128))
    path = writers.save(state | {"counter": torch.ones(2), "neck.a.b": torch.ones(2)}, tmp_path / "m.pth")
    with pytest.raises(MismatchError) as caught:
        load_checkpoint(path)
    patterns = str(caught.value.hint).replace("'", "").split("--ignore ")[1:]
    assert load_checkpoint(path, ignore=[p.strip() for p in patterns]).state


def test_absurd_tables_and_configs_are_refused_at_once(tmp_path: Path) -> None:
    state = dict(writers.timm_2d(writers.small_2d(1)))
    state["layers.0.blocks.0.attn.relative_position_bias_table"] = torch.zeros(2**40 + 1, 0)
    save_file(state, tmp_path / "rows.safetensors")
    with pytest.raises(MismatchError, match="rows"):
        load_checkpoint(tmp_path / "rows.safetensors")
    model = VideoSwin(TINY)
    good = TINY.to_json()
    for change in (
        {"mlp_ratio": 1e308},
        {"mlp_ratio": [4]},
        {"depths": [300_000, 2]},
        {"depths": [10**9, 2]},
        {"window": [2, 4, 10**400]},
        {"num_classes": "5"},
        {"embed_dim": "8"},
    ):
        metadata = {"vswin": json.dumps({"config": good | change})}
        save_file(
            {k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "m.safetensors", metadata
        )
        with pytest.raises((UnreadableError, MismatchError)):
            load_checkpoint(tmp_path / "m.safetensors")


def test_window_of_a_native_file_is_not_silently_ignored(tmp_path: Path) -> None:
    path = native(tmp_path / "w.safetensors", VideoSwin(TINY))
    with pytest.raises(DialectError, match="window"):
        load_model(path, window=(4, 4, 4))
    assert load_model(path, window=TINY.window).config.window == TINY.window


def test_small_floats_of_eight_bits_are_refused(tmp_path: Path) -> None:
    state = {k: v.to(torch.float8_e4m3fn) for k, v in writers.timm_2d(writers.small_2d(1)).items()}
    save_file(state, tmp_path / "f8.safetensors")
    with pytest.raises(MismatchError, match="float8"):
        load_checkpoint(tmp_path / "f8.safetensors")


def test_drop_path_is_per_sample_without_gradients_too() -> None:
    model = VideoSwin(TINY, drop_path=0.5).train()
    shapes = []
    for module in model.modules():
        if isinstance(module, DropPath):
            module.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape[0]))
    with torch.no_grad():
        model(torch.randn(2, 3, 4, 32, 32))
    assert set(shapes) == {2}


def test_hooks_keep_what_they_saw() -> None:
    """Blocks must not write into their input: a feature hook may have kept it."""
    model = VideoSwin(TINY).eval()
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in model.layers:
        for block in layer.blocks:
            block.register_forward_hook(lambda _, __, output: kept.append((output, output.clone())))
    with torch.inference_mode():
        model(torch.randn(1, 3, 4, 40, 52))
    assert len(kept) == 4
    for live, copy in kept:
        assert torch.equal(live, copy)


def test_hooks_inside_a_block_see_whole_tensors() -> None:
    model = VideoSwin(TINY).eval()
    x = torch.randn(1, 3, 8, 128, 128)
    with torch.inference_mode():
        expected = model(x)
        seen: dict[str, tuple[int, ...]] = {}
        for name, module in model.named_modules():
            if name.endswith((".attn", ".mlp", ".norm1")):
                module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.shape}))
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 12
    assert seen["layers.0.blocks.0.attn"] == seen["layers.0.blocks.1.mlp"] == (1, 4 * 32 * 32, 8)


@pytest.mark.parametrize("reference", ["~nosuchuser/x.pth", "a" * 300 + ".pth", "nul\0.pth"])
def test_impossible_paths_are_one_clear_error(reference: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_model(reference)


def test_names_that_are_no_text_do_not_break_the_output(tmp_path: Path) -> None:
    weights = native(tmp_path / "w.safetensors", VideoSwin(TINY))
    clip = clips.write_clip(tmp_path / "clip.mp4", frames=8)
    odd = os.fsencode(tmp_path) + b"/a\xff.mp4"
    Path(os.fsdecode(odd)).write_bytes(clip.read_bytes())
    done = CliRunner().invoke(app, ["predict", os.fsdecode(odd), "--weights", str(weights), "--json"])
    assert done.exit_code == 1
    assert "not valid Unicode" in json.loads(done.stdout)["videos"][0]["error"]
    table = CliRunner().invoke(app, ["predict", os.fsdecode(odd), "--weights", str(weights)])
    assert "not valid Unicode" in " ".join(table.stdout.split())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("variant", "window", "dtype", "legacy", "limit"),
    [
        ("B", 7, torch.float32, False, 2.2),
        ("B", 12, torch.float32, False, 2.2),
        ("L", 7, torch.float16, False, 2.2),
        ("B", 7, torch.float32, True, 3.2),
    ],
)
def test_memory_of_inflate_with_verify(
    variant: str, window: int, dtype: torch.dtype, legacy: bool, limit: float, tmp_path: Path
) -> None:
    """Peak resident memory over that before, for files above 200 MB."""
    from vswin_cli.config import VARIANTS

    config = replace(VARIANTS[variant], window=(1, window, window), patch=(1, 4, 4), num_classes=1000)
    torch.manual_seed(0)
    state = {k: v.to(dtype) for k, v in VideoSwin(config).state_dict().items()}
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, 0].clone()
    path = tmp_path / "big.pth"
    torch.save({"model": state}, path, _use_new_zipfile_serialization=not legacy)
    del state
    size = path.stat().st_size / 2**20
    assert size > 200
    code = (
        "import sys\n"
        "import torch, safetensors.torch, numpy\n"
        "from vswin_cli import inflate\n"
        "from vswin_cli.engine.device import peak_memory_mb\n"
        "import vswin_cli.engine.load\n"
        "cpu = torch.device('cpu')\n"
        "before = peak_memory_mb(cpu)\n"
        "inflate(sys.argv[1], sys.argv[2])\n"
        "print(peak_memory_mb(cpu) - before)\n"
    )
    import subprocess
    import sys

    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "out.safetensors")],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    ratio = float(done.stdout) / size
    print(f"{variant} window {window} {dtype} legacy={legacy}: {size:.0f} MB, {ratio:.2f} x")
    assert 0.1 < ratio < limit


@pytest.mark.huge
@pytest.mark.timeout(600)
def test_swin_l_at_384_runs_in_12_gb() -> None:
    from vswin_cli.config import VARIANTS

    model = VideoSwin(replace(VARIANTS["L"], window=(8, 12, 12))).eval()
    reset_peak_memory(CPU)
    with torch.inference_mode():
        for _ in range(2):
            assert model(torch.randn(1, 3, 32, 384, 384)).isfinite().all()
    peak = peak_memory_mb(CPU)
    print(f"peak {peak:.0f} MB")
    assert peak < 12 * 1024
    assert model.bias_cache.nbytes <= model.bias_cache.limit
