"""The writers: held to the golden checkpoints of the real libraries, in names, shapes and outputs."""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity import writers
from tests.parity.reference import ReferenceSwin, relative_index
from tests.parity.writers import WRITERS_2D, WRITERS_3D, small_2d, small_3d, state_of

GOLDEN = Path(__file__).parents[1] / "golden" / "dialects"
Make = Callable[[], ReferenceSwin]
Write = Callable[[ReferenceSwin], Any]

CASES: dict[str, tuple[str, str, Make, Write]] = {
    "timm": ("timm-2d.safetensors", "timm-2d", lambda: small_2d(0), writers.timm_2d),
    "huggingface-hub": (
        "huggingface-2d-hub.safetensors",
        "huggingface-2d",
        lambda: small_2d(0),
        writers.huggingface_2d,
    ),
    "huggingface-memory": (
        "huggingface-2d.safetensors",
        "huggingface-2d",
        lambda: small_2d(0),
        writers.huggingface_2d_memory,
    ),
    "torchvision-2d": ("torchvision-2d.pth", "torchvision-2d", lambda: small_2d(0), writers.torchvision_2d),
    "torchvision-3d": ("torchvision-3d.pth", "torchvision-3d", lambda: small_3d(0), writers.torchvision_3d),
    "mmaction2-3d": ("mmaction2-3d.pth", "mmaction2-3d", lambda: small_3d(0), writers.mmaction2_3d),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for one another's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read(file: str) -> Any:
    if file.endswith(".safetensors"):
        return load_file(GOLDEN / file)
    return torch.load(GOLDEN / file, weights_only=True)


def filled_from(write: Write, model: ReferenceSwin, golden: dict[str, Tensor]) -> ReferenceSwin:
    """Invert a writer: number every element, write, and put each golden element at its number."""
    sizes = [value.numel() for value in model.parameters()]
    assert sum(sizes) < 2**24
    numbers = torch.split(torch.arange(sum(sizes), dtype=torch.float32), sizes)
    for value, number in zip(model.parameters(), numbers, strict=True):
        value.copy_(number.view(value.shape))
    values = torch.full((sum(sizes),), float("nan"))
    for name, places in state_of(write(model)).items():
        if places.is_floating_point():
            values[places.flatten().long()] = golden[name].flatten()
    assert not values.isnan().any()
    for value, part in zip(model.parameters(), torch.split(values, sizes), strict=True):
        value.copy_(part.view(value.shape))
    return model


@pytest.mark.parametrize("case", CASES)
def test_writer_has_the_golden_names_shapes_and_buffers(case: str) -> None:
    file, _, make, write = CASES[case]
    golden, written = read(file), write(make())
    assert type(written) is type(golden) or set(written) == {"meta", "state_dict"}
    expected, got = state_of(golden), state_of(written)
    assert {k: (v.shape, v.dtype) for k, v in got.items()} == {
        k: (v.shape, v.dtype) for k, v in expected.items()
    }
    for name, value in expected.items():
        if name.endswith("relative_position_index"):
            assert torch.equal(got[name], value), name


@pytest.mark.parametrize("case", CASES)
def test_golden_weights_through_the_writer_give_the_golden_logits(case: str) -> None:
    file, outputs_name, make, write = CASES[case]
    outputs = load_file(GOLDEN / f"{outputs_name}.outputs.safetensors")
    model = filled_from(write, make(), state_of(read(file)))
    got = model(outputs["input"])
    assert (got - outputs["logits"]).abs().max() <= 1e-4 * outputs["logits"].abs().max()


def test_mmaction2_differs_from_official_in_one_name_only() -> None:
    model = small_3d(1)
    official, mmaction = state_of(writers.official_3d(model)), state_of(writers.mmaction2_3d(model))
    renamed = {"backbone.norm.weight", "backbone.norm.bias"}
    assert official.keys() - mmaction.keys() == renamed
    assert mmaction.keys() - official.keys() == {name.replace("norm", "norm3") for name in renamed}


def test_microsoft_buffers_match_the_published_geometry() -> None:
    """FACTS 1.a, at window 4 and 128 px: grids of 32, 16, 8 and 4, so that the last stage does not shift."""
    state = state_of(writers.microsoft_2d(small_2d(1), 128))
    masks = {name: tuple(value.shape) for name, value in state.items() if "attn_mask" in name}
    assert masks == {f"layers.{i}.blocks.1.attn_mask": (4 ** (3 - i), 16, 16) for i in range(3)}
    assert set(state["layers.0.blocks.1.attn_mask"].flatten().tolist()) == {-100.0, 0.0}
    assert torch.equal(state["layers.3.blocks.1.attn.relative_position_index"], relative_index((1, 4, 4)))


def test_stage_windows_give_each_stage_its_table() -> None:
    """FACTS 1.a and 1.b: SimMIM at 192 with window 12, and timm's S3."""
    for model, size, rows in (
        (writers.simmim_192_2d(1), 192, [529, 529, 529, 121]),
        (writers.s3_2d(1), 224, [169, 169, 729, 169]),
    ):
        state = state_of(writers.microsoft_2d(model, size))
        tables = [len(state[f"layers.{i}.blocks.0.attn.relative_position_bias_table"]) for i in range(4)]
        assert tables == rows
        indices = [len(state[f"layers.{i}.blocks.0.attn.relative_position_index"]) for i in range(4)]
        assert indices == [window[1] ** 2 for window in model.stage_windows]
        assert model(torch.zeros(1, 3, size, size)).isfinite().all()


def test_simmim_and_moby_keep_their_heads_to_themselves() -> None:
    simmim = state_of(writers.simmim_2d(small_2d(1), 128))
    assert {name.split(".")[0] for name in simmim} == {"encoder", "decoder"}
    moby = state_of(writers.moby_2d(small_2d(1), 128))
    key = "layers.2.blocks.1.mlp.fc1.weight"
    assert not torch.equal(moby[f"encoder.{key}"], moby[f"encoder_k.{key}"])
    assert not any("head." in name for name in (*simmim, *moby))


@pytest.mark.parametrize("name", [*WRITERS_2D, *WRITERS_3D])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_checkpoint_can_be_saved_and_read(name: str, legacy: bool, tmp_path: Path) -> None:
    if name in WRITERS_2D:
        checkpoint = WRITERS_2D[name](
            small_2d(1, merge="unfold" if name in writers.UNFOLD else "slices"), 128
        )
    else:
        checkpoint = WRITERS_3D[name](small_3d(1))
    path = writers.save(checkpoint, tmp_path / "file.pth", legacy=legacy)
    with writers.faked_modules():
        again = torch.load(path, weights_only=False)
    state, expected = state_of(again), state_of(checkpoint)
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(state[key], value)


def test_faked_classes_cannot_be_imported_afterwards(tmp_path: Path) -> None:
    """The files hold the libraries' own names, and without the libraries a plain unpickling fails."""
    for checkpoint, name in (
        (writers.microsoft_2d_training(small_2d(1), 128), b"yacs.config\nCfgNode\n"),
        (writers.mmaction2_3d_training(small_3d(1)), b"mmengine.logging.history_buffer\nHistoryBuffer\n"),
    ):
        path = writers.save(checkpoint, tmp_path / "file.pth")
        with zipfile.ZipFile(path) as archive:
            assert name in archive.read(f"{path.stem}/data.pkl")
        with pytest.raises(ModuleNotFoundError):
            torch.load(path, weights_only=False)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
    assert "yacs.config" not in sys.modules
    assert "mmengine" not in sys.modules


@pytest.mark.parametrize("name", writers.WRAPPERS)
def test_wrappers_only_prefix(name: str) -> None:
    plain = state_of(writers.microsoft_2d(small_2d(1), 128))
    wrapped = state_of(writers.WRAPPERS[name](plain))
    assert len(wrapped) == len(plain)
    assert all(new.endswith(old) and new != old for new, old in zip(wrapped, plain, strict=True))
