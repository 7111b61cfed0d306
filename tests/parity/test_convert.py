"""Every conversion against the independent writers: the same names, shapes and values, the same logits."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.parity import test_writers as golden
from tests.parity import writers
from tests.parity.reference import ReferenceSwin
from vswin_cli.checkpoints.dialects import DIALECTS, NATIVE
from vswin_cli.checkpoints.export import TARGETS
from vswin_cli.checkpoints.files import load_checkpoint, save_native
from vswin_cli.checkpoints.plan import Detection, entries, plan
from vswin_cli.config import PROTOCOLS, VARIANTS, ModelConfig
from vswin_cli.engine import convert as engine
from vswin_cli.engine.convert import convert
from vswin_cli.engine.load import inflate, load_model
from vswin_cli.errors import DialectError, MismatchError, OutputError, UsageError

GOLDEN = Path(__file__).parents[1] / "golden"
SIZE = 128
# What each library's own files hold, by the writers, which share nothing with the package.
ORACLES: dict[str, Callable[[ReferenceSwin], Any]] = {
    "official-3d": writers.official_3d,
    "mmaction2-3d": writers.mmaction2_3d,
    "torchvision-3d": writers.torchvision_3d,
    "microsoft-2d": lambda model: writers.microsoft_2d(model, SIZE),
    "timm-2d": writers.timm_2d,
    "huggingface-2d": lambda model: (
        writers.huggingface_2d(model) if model.num_classes else writers._hf_hub_body(model, False, "")
    ),
    "torchvision-2d": writers.torchvision_2d,
}
OF_2D = [t for t in ORACLES if t.endswith("2d")]
OF_3D = [t for t in ORACLES if t.endswith("3d")]
WRAPPER = {"official-3d": "state_dict", "mmaction2-3d": "state_dict", "microsoft-2d": "model"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only wait for one another's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def out_for(folder: Path, to: str) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / (f"{to}.pth" if to in WRAPPER else f"{to}.safetensors")


def read(path: Path) -> Any:
    """A written file by its library's own means; nothing but tensors and plain types may be in a .pth."""
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
        assert got[name].dtype == value.dtype, name
        assert torch.equal(got[name], value), name


def assert_written(path: Path, to: str, model: ReferenceSwin) -> None:
    """The file is what the independent writer makes of the same weights, wrapper and all."""
    made = read(path)
    if to == NATIVE.name:
        state = {k: v.detach() for k, v in model.state_dict().items()}
        assert_same(made, state)
        return
    if to in WRAPPER:
        assert set(made) == {WRAPPER[to]} | ({"meta"} if to == "mmaction2-3d" else set())
    assert_same(writers.state_of(made), writers.state_of(ORACLES[to](model)))


def straightened(model: ReferenceSwin) -> ReferenceSwin:
    """The model that merges by slices and gives what this one gives merging by nn.Unfold (FACTS 1.0)."""
    if model.merge == "slices":
        return model
    state = model.state_dict()
    for name, value in state.items():
        if "downsample" in name:
            rows = value.reshape(-1, value.shape[-1] // 4, 4)
            state[name] = rows.transpose(1, 2)[:, [0, 2, 1, 3]].reshape(value.shape)
    same = writers.small_2d(0, num_classes=model.num_classes)
    same.load_state_dict(state)
    return same


def assert_logits(path: Path, model: ReferenceSwin) -> None:
    x = torch.randn(1, 3, 1 if model.is_2d else 4, 64, 64, generator=torch.Generator().manual_seed(5))
    ours = load_model(path)
    with torch.no_grad():
        got = ours(x) if model.num_classes else ours.forward_features(x).mean(dim=(1, 2, 3))
        expected = model(x)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


# -------------------------------------------------- every reachable conversion


@pytest.mark.parametrize("name", writers.WRITERS_2D)
def test_every_2d_writer_to_every_2d_dialect(name: str, tmp_path: Path) -> None:
    reference = writers.small_2d(1, merge="unfold" if name in writers.UNFOLD else "slices")
    made = writers.WRITERS_2D[name](reference, SIZE)
    if name == "timm-ema":
        made = writers.timm_training_ema(writers.small_2d(2), SIZE, ema=reference)
    if name in writers.HEADLESS:
        head = {k: v for k, v in reference.state_dict().items() if not k.startswith("head.")}
        reference = writers.small_2d(1, num_classes=0)
        reference.load_state_dict(head)
    source = writers.save(made, tmp_path / "source.pth")
    model = straightened(reference)
    for to in [*OF_2D, "native"]:
        out = out_for(tmp_path / to, to)
        convert(source, out, to, verify=False)
        assert_written(out, to, model)
    assert_logits(out, model)


@pytest.mark.parametrize("name", writers.WRITERS_3D)
def test_every_3d_writer_to_every_3d_dialect(name: str, tmp_path: Path) -> None:
    model = writers.small_3d(1)
    source = writers.save(writers.WRITERS_3D[name](model), tmp_path / "source.pth")
    for to in [*OF_3D, "native"]:
        out = out_for(tmp_path, to)
        convert(source, out, to, verify=False)
        assert_written(out, to, model)
    assert_logits(out, model)


@pytest.mark.parametrize("case", golden.CASES)
def test_every_golden_file_to_every_dialect(case: str, tmp_path: Path) -> None:
    """The files that the libraries wrote themselves, with the logits that they gave."""
    file, outputs_name, make, write = golden.CASES[case]
    model = golden.filled_from(write, make(), writers.state_of(golden.read(file)))
    outputs = load_file(golden.GOLDEN / f"{outputs_name}.outputs.safetensors")
    x = outputs["input"]
    for to in [*(OF_2D if model.is_2d else OF_3D), "native"]:
        out = out_for(tmp_path / to, to)
        result = convert(golden.GOLDEN / file, out, to)
        assert_written(out, to, model)
        assert result.comparison is not None
        assert result.comparison.max_rel_diff <= 1e-6
        with torch.no_grad():
            logits = load_model(out)(x if x.ndim == 5 else x[:, :, None])
        assert (logits - outputs["logits"]).abs().max() <= 1e-4 * outputs["logits"].abs().max()


@pytest.mark.parametrize("name", json.loads((GOLDEN / "inflation/manifest.json").read_text("utf-8")))
def test_files_of_the_official_codes_are_written_again(name: str, tmp_path: Path) -> None:
    """microsoft's file comes out as it went in, with its indices; what the official 3D code made of it is
    what inflate writes for that code."""
    source = GOLDEN / f"inflation/{name}.swin2d.pth"
    convert(source, tmp_path / "timm.safetensors", "timm-2d", verify=False)
    convert(tmp_path / "timm.safetensors", tmp_path / "ms.pth", "microsoft-2d", verify=False)
    ours, theirs = (
        # The golden files' masks are placeholders; test_masks_follow_the_size compares masks.
        {k: v for k, v in read(path)["model"].items() if "attn_mask" not in k}
        for path in (tmp_path / "ms.pth", source)
    )
    assert_same(ours, theirs)

    window = json.loads((GOLDEN / "inflation/manifest.json").read_text("utf-8"))[name]["window_3d"]
    inflate(source, tmp_path / "o.pth", window=tuple(window), to="official-3d", verify=False)
    ours = {k.removeprefix("backbone."): v for k, v in read(tmp_path / "o.pth")["state_dict"].items()}
    indices = {k: ours.pop(k) for k in list(ours) if k.endswith("relative_position_index")}
    assert all(v.shape == (math.prod(window),) * 2 for v in indices.values())
    assert ours.pop("cls_head.fc_cls.weight").shape[0] == len(ours.pop("cls_head.fc_cls.bias"))
    golden_3d = load_file(GOLDEN / f"inflation/{name}.inflated.safetensors")
    assert set(ours) == set(golden_3d)
    for key, value in golden_3d.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-6 if "bicubic" in name else 0)


@pytest.mark.parametrize("name", [d.name for d in DIALECTS.values() if d.writable])
@pytest.mark.parametrize("variant", VARIANTS)
def test_names_of_full_size_models_go_there_and_back(name: str, variant: str) -> None:
    """On names alone: reading what is written gives every native parameter, once."""
    config = VARIANTS[variant]
    made = entries(config, DIALECTS[name], [0, 1, 2])
    again = plan({e.key: () for e in made}, Detection(DIALECTS[name], "", DIALECTS[name].prefix, ()))
    assert not again.unexpected
    assert not again.missing
    natives = [step.native for step in again.steps]
    assert sorted(natives) == sorted({e.native for e in made if e.native})
    assert len(natives) == sum(config.depths) * 13 + 3 * 3 + 8


def test_read_only_dialects_are_no_targets(tmp_path: Path) -> None:
    assert set(TARGETS) == {NATIVE.name, *ORACLES}
    source = writers.save(writers.timm_2d(writers.small_2d(1)), tmp_path / "timm.pth")
    for name in ("mmpretrain-2d", "omnivore"):
        with pytest.raises(UsageError, match="read only"):
            convert(source, tmp_path / "o.pth", name)
    with pytest.raises(UsageError, match="unknown dialect"):
        convert(source, tmp_path / "o.pth", "keras")


# -------------------------------------------------- dtypes and round trips


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("dims", ["2d", "3d"])
def test_round_trips_are_equal_in_every_bit(dims: str, dtype: str, tmp_path: Path) -> None:
    targets = OF_2D if dims == "2d" else OF_3D
    model = writers.small_2d(1) if dims == "2d" else writers.small_3d(1)
    first = writers.save(ORACLES[targets[0]](model), tmp_path / "first.pth")
    start = out_for(tmp_path, "native")
    convert(first, start, "native", dtype=dtype, verify=False)
    expected = load_checkpoint(start)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert {t.dtype for t in expected.state.values()} == {kind}
    assert_same(expected.state, {k: v.to(kind) for k, v in model.state_dict().items()})
    previous = start
    for step, to in enumerate([*targets, *reversed(targets), "native"]):
        out = out_for(tmp_path / str(step), to)
        convert(previous, out, to, verify=False)
        assert_same(load_checkpoint(out).state, expected.state)
        previous = out
    assert load_checkpoint(previous).config == expected.config


def test_fp16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    state = writers.timm_2d(writers.small_2d(1))
    state["head.fc.bias"][0] = 1e6
    source = writers.save(state, tmp_path / "timm.pth")
    with pytest.raises(MismatchError, match=r"head\.bias holds 1e\+06"):
        convert(source, tmp_path / "o.safetensors", "timm-2d", dtype="fp16")
    assert convert(source, tmp_path / "o.safetensors", "timm-2d", dtype="bf16").dtype == "bf16"


def test_lower_precision_is_reported_not_refused(tmp_path: Path) -> None:
    source = writers.save(writers.official_3d(writers.small_3d(1)), tmp_path / "source.pth")
    result = convert(source, tmp_path / "o.safetensors", "torchvision-3d", dtype="bf16")
    assert result.comparison is not None
    assert 1e-4 < result.comparison.max_rel_diff < 0.2
    assert {t.dtype for t in read(tmp_path / "o.safetensors").values()} == {torch.bfloat16, torch.int64}


# -------------------------------------------------- refusals and files


def test_dimensions_do_not_mix(tmp_path: Path) -> None:
    image = writers.save(writers.timm_2d(writers.small_2d(1)), tmp_path / "image.pth")
    video = writers.save(writers.official_3d(writers.small_3d(1)), tmp_path / "video.pth")
    for to in OF_3D:
        with pytest.raises(DialectError, match="image model") as caught:
            convert(image, out_for(tmp_path, to), to)
        assert f"vswin inflate {image} {out_for(tmp_path, to)} --to {to}" in str(caught.value.hint)
    for to in OF_2D:
        with pytest.raises(DialectError, match="video model"):
            convert(video, out_for(tmp_path, to), to)
    assert {p.name for p in tmp_path.iterdir()} == {"image.pth", "video.pth"}


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("official-3d", "o.safetensors", "which safetensors cannot hold"),
        ("mmaction2-3d", "o.safetensors", "which safetensors cannot hold"),
        ("official-3d", "o.onnx", "not in a .onnx"),
        ("torchvision-3d", "o", "says nothing"),
        ("native", "o.pth", "native files are safetensors"),
    ],
)
def test_suffix_sets_the_container(to: str, name: str, message: str, tmp_path: Path) -> None:
    source = writers.save(writers.torchvision_3d(writers.small_3d(1)), tmp_path / "source.pth")
    with pytest.raises(UsageError, match=message) as caught:
        convert(source, tmp_path / name, to)
    assert "o." in str(caught.value.hint)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("to", ["torchvision-3d", "timm-2d", "huggingface-2d", "torchvision-2d"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_flat_dialects_take_either_container(to: str, suffix: str, tmp_path: Path) -> None:
    model = writers.small_2d(1) if to.endswith("2d") else writers.small_3d(1)
    source = writers.save(ORACLES[to](model), tmp_path / "source.pth")
    out = tmp_path / f"o{suffix}"
    convert(source, out, to, verify=False)
    assert_written(out, to, model)


def test_nothing_is_overwritten_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = writers.save(writers.timm_2d(writers.small_2d(1)), tmp_path / "source.pth")
    out, beside = tmp_path / "model.safetensors", tmp_path / "config.json"
    beside.write_text("{}")
    with pytest.raises(OutputError, match=r"config\.json exists already"):
        convert(source, out, "huggingface-2d")
    beside.unlink()
    with pytest.raises(OutputError, match="the source itself"):
        convert(source, source, "timm-2d", force=True)

    def differ(*_: Any, **__: Any) -> None:
        raise MismatchError("the written file does not agree")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "compare", differ)
        with pytest.raises(MismatchError):
            convert(source, out, "huggingface-2d")
    assert [p.name for p in tmp_path.iterdir()] == ["source.pth"]
    convert(source, out, "huggingface-2d")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "source.pth"]
    before = out.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        convert(source, out, "huggingface-2d")
    convert(source, out, "huggingface-2d", force=True)
    assert out.read_bytes() == before


def test_verify_finds_a_wrong_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can tell: thirds of qkv in another order are another model."""
    source = writers.save(writers.timm_2d(writers.small_2d(1)), tmp_path / "source.pth")
    right = engine.write

    def swapped(state: Any, *rest: Any) -> Any:
        name = "layers.3.blocks.1.attn.qkv.weight"
        return right({**state, name: state[name].roll(1, 0)}, *rest)

    monkeypatch.setattr(engine, "write", swapped)
    with pytest.raises(MismatchError, match="does not agree"):
        convert(source, tmp_path / "o.safetensors", "huggingface-2d")
    assert not (tmp_path / "o.safetensors").exists()


# -------------------------------------------------- what stands beside the tensors


def test_masks_follow_the_size(tmp_path: Path) -> None:
    model = writers.small_2d(1)
    source = writers.save(writers.timm_2d(model), tmp_path / "source.pth")
    out = tmp_path / "o.pth"
    assert convert(source, out, "microsoft-2d").target.size == 128
    for size in (128, 256, 384):
        assert convert(source, out, "microsoft-2d", size=size, force=True).buffers == 8 + 3 + (size > 128)
        assert_same(read(out)["model"], writers.microsoft_2d(model, size)["model"])
    with pytest.raises(UsageError, match="must tile") as caught:
        convert(source, out, "microsoft-2d", size=160, force=True)
    assert "--size 128" in str(caught.value.hint)
    with pytest.raises(UsageError, match="smaller windows"):
        convert(source, out, "microsoft-2d", size=64, force=True)
    with pytest.raises(UsageError, match="means nothing"):
        convert(source, out, "timm-2d", size=128, force=True)


def test_windows_of_stages(tmp_path: Path) -> None:
    """microsoft's code makes 12, 12, 12, 6 of window 12 at 192 pixels; S3's windows it cannot have."""
    model = writers.simmim_192_2d(2)
    source = writers.save(writers.timm_2d(model), tmp_path / "simmim.pth")
    result = convert(source, tmp_path / "o.pth", "microsoft-2d", verify=False)
    assert result.target.size == 192
    assert not result.unheld
    assert_same(read(tmp_path / "o.pth")["model"], writers.microsoft_2d(model, 192)["model"])
    s3 = writers.save(writers.timm_2d(writers.s3_2d(2)), tmp_path / "s3.pth")
    for to in ("microsoft-2d", "torchvision-2d", "huggingface-2d"):
        result = convert(s3, out_for(tmp_path / to, to), to, verify=False)
        assert any("1x7x7, 1x7x7, 1x14x14, 1x7x7" in lost for lost in result.unheld)
        assert load_checkpoint(result.out).config == result.source.config
    assert not convert(s3, tmp_path / "again.safetensors", "timm-2d", verify=False).unheld


def test_what_a_dialect_cannot_hold_is_said(tmp_path: Path) -> None:
    names = [f"name {i}" for i in range(5)]
    model = writers.small_3d(1)
    config = ModelConfig(8, (2, 2, 2, 2), (1, 2, 4, 8), (4, 4, 4), num_classes=5)
    source = tmp_path / "source.safetensors"
    protocol = PROTOCOLS["mmaction2-4x3"]
    save_native(source, model.state_dict(), config, labels=names, protocol=protocol, source={"name": "x"})
    official = convert(source, tmp_path / "o.pth", "official-3d", verify=False)
    assert [lost.partition(":")[0] for lost in official.unheld] == ["labels", "protocol", "source"]
    assert "k400-4x3" in official.unheld[1]
    assert set(official.to_json()["not_held"]) == set(official.unheld)
    assert load_checkpoint(official.out).labels is None

    mmaction = convert(source, tmp_path / "m.pth", "mmaction2-3d", verify=False)
    assert [lost.partition(":")[0] for lost in mmaction.unheld] == ["protocol", "source"]
    assert load_checkpoint(mmaction.out).labels == tuple(names)

    native = convert(mmaction.out, tmp_path / "n.safetensors", "native", verify=False)
    again = load_checkpoint(native.out)
    assert not native.unheld
    assert again.labels == tuple(names)
    assert again.protocol == PROTOCOLS["k400-4x3"]
    assert again.source["dialect"] == "mmaction2-3d"
    assert again.source["sha256"] == mmaction.out_sha256
    copied = convert(source, tmp_path / "c.safetensors", "native", verify=False)
    assert not copied.unheld
    assert load_checkpoint(copied.out).protocol == protocol


def test_missing_head_is_said(tmp_path: Path) -> None:
    source = writers.save(writers.simmim_2d(writers.small_2d(1), SIZE), tmp_path / "simmim.pth")
    assert any("head" in x for x in convert(source, tmp_path / "tv.pth", "torchvision-2d").unheld)
    assert not convert(source, tmp_path / "timm.pth", "timm-2d").unheld


def test_inflate_writes_other_dialects(tmp_path: Path) -> None:
    source = writers.save(writers.timm_2d(writers.small_2d(1)), tmp_path / "source.pth")
    native = inflate(source, tmp_path / "n.safetensors", window=(2, 4, 4))
    assert native.to_json()["not_held"] == []
    for to in OF_3D:
        made = inflate(source, out_for(tmp_path, to), window=(2, 4, 4), to=to, verify=False)
        assert made.to_json()["to"] == to
        assert any("source" in lost for lost in made.unheld)
        convert(native.out, out_for(tmp_path / "converted", to), to, verify=False)
        assert_same(
            writers.state_of(read(made.out)), writers.state_of(read(out_for(tmp_path / "converted", to)))
        )
    with pytest.raises(UsageError, match="safetensors cannot hold"):
        inflate(source, tmp_path / "o.safetensors", to="official-3d")
    with pytest.raises(DialectError, match="video model"):
        inflate(source, tmp_path / "o.safetensors", to="timm-2d")


# -------------------------------------------------- transformers


def test_huggingface_files_describe_themselves(tmp_path: Path) -> None:
    source = golden.GOLDEN / "timm-2d.safetensors"
    out = tmp_path / "model.safetensors"
    convert(source, out, "huggingface-2d")
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    ours = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    theirs = json.loads((golden.GOLDEN / "huggingface-2d-hub.config.json").read_text(encoding="utf-8"))
    assert {k: v for k, v in theirs.items() if k in ours} == ours
    # What transformers fills in by itself, with the values that it would have.
    assert set(theirs) - set(ours) == {
        "attention_probs_dropout_prob", "drop_path_rate", "hidden_dropout_prob", "initializer_range",
        "num_layers", "out_features", "out_indices", "stage_names", "transformers_version",
    }  # fmt: skip


@pytest.mark.slow  # it imports transformers
@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed; pip install -c constraints.txt '.[test]' brings it",
)
@pytest.mark.parametrize("kind", ["classifier", "headless", "bf16", "bin"])
def test_transformers_loads_our_files(kind: str, tmp_path: Path) -> None:
    """No missing, no unexpected, no misshapen key; the reference's logits."""
    import transformers

    reference = writers.small_2d(3)
    made = writers.microsoft_2d(reference, SIZE)
    if kind == "headless":
        made = {"model": writers.without_head(made["model"])}
    source = writers.save(made, tmp_path / "source.pth")
    folder = tmp_path / "hub"
    folder.mkdir()
    out = folder / ("pytorch_model.bin" if kind == "bin" else "model.safetensors")
    convert(source, out, "huggingface-2d", dtype="bf16" if kind == "bf16" else None)
    load = transformers.SwinModel if kind == "headless" else transformers.SwinForImageClassification
    with torch.device("cpu"):
        model, info = load.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not any(info.values()), info
    x = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        if kind == "headless":
            got = model.eval()(x).last_hidden_state.flatten()
            expected = reference.forward_features(x).flatten()
        else:
            got, expected = model.eval().float()(x).logits, reference(x)
    assert (got - expected).abs().max() <= (0.2 if kind == "bf16" else 1e-4) * expected.abs().max()
    # And back: what transformers saves is what we wrote.
    if kind == "classifier":
        model.save_pretrained(tmp_path / "again")
        assert_same(load_file(tmp_path / "again/model.safetensors"), load_file(out))
        shutil.rmtree(tmp_path / "again")
