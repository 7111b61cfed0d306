"""Zoo, default weights and downloads on the command line; the hub's library against a stand-in hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from tests import clips
from tests.parity import writers
from tests.servers import Given, Hub, Web, closed_port, serving
from vswin_cli.checkpoints import zoo
from vswin_cli.checkpoints.files import load_checkpoint
from vswin_cli.cli import weights as bringing
from vswin_cli.cli.app import app

ROOT = Path(__file__).parents[2]
TINY = "swin_tiny_patch244_window877_kinetics400_1k.pth"
VIEWS = ("--views", "1x1", "--frames", "4", "--size", "32", "--workers", "1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in the official layout, of 400 classes."""
    model = writers.small_3d(1, num_classes=400, depths=(1, 1), num_heads=(1, 2))
    return writers.save(writers.official_3d(model), tmp_path_factory.mktemp("made") / "m.pth")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=12, size=(64, 48))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSWIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VSWIN_WEIGHTS", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(zoo, "hub_cache", dict)
    return tmp_path / "cache"


@pytest.fixture
def filled(cache: Path, checkpoint: Path) -> Path:
    """A cache into which the default weights were put by hand."""
    (cache / "zoo").mkdir(parents=True)
    shutil.copy(checkpoint, cache / "zoo" / TINY)
    return cache


def vswin(*arguments: object, code: int = 0, **env: str) -> Result:
    done = CliRunner().invoke(
        app, [str(a) for a in arguments], catch_exceptions=False, env={"COLUMNS": "200", **env}
    )
    assert done.exit_code == code, done.stderr
    return done


def process(*arguments: object, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-m", "vswin_cli", *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", timeout=100,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"} | env,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


# ------------------------------------------------------------------------------------------------
# vswin zoo


def test_table_filter_and_card(filled: Path) -> None:
    everything = json.loads(vswin("zoo", "--json").stdout)
    assert everything["cache"] == str(filled)
    rows = {row["name"]: row for row in everything["checkpoints"]}
    assert len(rows) == 74
    assert rows["swin-t-k400"]["cached"] == str(filled / "zoo" / TINY)
    assert rows["swin-t-k400"]["cached_bytes"] == (filled / "zoo" / TINY).stat().st_size
    assert rows["swin-s-k400"]["cached"] is None
    assert rows["swin-l-k400-mmaction2"]["top1"] == 83.46
    some = json.loads(vswin("zoo", "MMACTION2 kinetics-700", "--json").stdout)["checkpoints"]
    assert [row["name"] for row in some] == ["swin-l-k700-mmaction2"]
    table = vswin("zoo", "official")
    assert "swin-b-ssv2" in table.stdout
    assert "swin-b-22k-2d" not in table.stdout
    assert "7 checkpoints, 1 downloaded" in table.stderr
    card = vswin("zoo", "swin-t-k400")
    assert "Top-1 78.8 %, Top-5 93.6 % by k400-4x3" in card.stdout
    assert str(filled / "zoo" / TINY) in card.stdout.replace("\n", "")
    assert "next: vswin predict VIDEO --weights swin-t-k400" in card.stderr
    assert "vswin inflate swin-b-22k-2d" in vswin("zoo", "swin-b-22k-2d").stderr
    assert json.loads(vswin("zoo", "swin-s-omnivore", "--json").stdout)["licence"] == "CC-BY-NC-4.0"
    assert "built in" in vswin("zoo", "camera-motion").stdout
    wrong = vswin("zoo", "swin-t-k4oo", code=1).stderr
    assert "nothing in the zoo matches 'swin-t-k4oo'" in wrong
    assert "did you mean swin-t-k400?" in wrong


def test_rm(filled: Path) -> None:
    assert "--rm takes the one name" in vswin("zoo", "text", "--rm", "swin-t-k400", code=2).stderr
    done = json.loads(vswin("zoo", "--rm", "swin-t-k400", "--json").stdout)
    assert done["removed"] == "swin-t-k400"
    assert done["freed_bytes"] > 10_000
    assert not (filled / "zoo" / TINY).exists()
    assert "not in the cache" in vswin("zoo", "--rm", "swin-t-k400", code=1).stderr
    assert "did you mean" in vswin("zoo", "--rm", "swin-t-k40", code=1).stderr


def test_the_zoo_needs_no_torch(filled: Path) -> None:
    code = (
        "import sys; from vswin_cli.__main__ import main\n"
        "sys.argv = ['vswin', 'zoo', '--json']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(filled / "no hub")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert len(json.loads(done.stdout)["checkpoints"]) == 74


# ------------------------------------------------------------------------------------------------
# --weights


def test_default_weights_and_those_of_the_environment(filled: Path, clip: Path, checkpoint: Path) -> None:
    assert "weights swin-t-k400, protocol k400-4x3" in vswin("predict", clip, *VIEWS).stdout
    other = json.loads(vswin("predict", clip, *VIEWS, "--json", VSWIN_WEIGHTS=str(checkpoint)).stdout)
    assert other["weights"] == str(checkpoint)
    wrong = vswin("predict", clip, "-w", "camera-motio", code=1, VSWIN_WEIGHTS=str(checkpoint)).stderr
    assert "did you mean camera-motion?" in wrong
    assert "swin-t-k400" in vswin("predict", "--help").stdout
    assert "VSWIN_WEIGHTS" in vswin("eval", "--help").stdout


def test_eval_shows_the_published_accuracy(filled: Path, clip: Path, tmp_path: Path) -> None:
    for name in ("abseiling", "zumba"):
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(clip, tmp_path / "data" / name / "clip.mp4")
    common = ("eval", "--data", tmp_path / "data", "--out", tmp_path / "out", *VIEWS)
    done = vswin(*common, "--json")
    published = json.loads(done.stdout)["published"]
    assert (published["top1"], published["top5"], published["name"]) == (78.8, 93.6, "swin-t-k400")
    assert "weights swin-t-k400" in done.stderr
    table = vswin(*common).stdout
    assert "published: swin-t-k400 on Kinetics-400 by k400-4x3" in table
    assert "78.80" in table
    # The same weights under another name are the same run, but nothing is published of that name.
    shutil.copy(filled / "zoo" / TINY, tmp_path / "mine.pth")
    again = vswin(*common, "--weights", tmp_path / "mine.pth", "--json")
    assert "2 videos done before" in again.stderr
    assert json.loads(again.stdout)["published"] is None
    assert "published:" not in vswin(*common, "--weights", tmp_path / "mine.pth").stdout
    (tmp_path / "data/abseiling").rename(tmp_path / "data/juggling cats")
    assert "juggling cats" in vswin(*common[:3], *VIEWS, code=1).stderr


def test_weights_from_a_url(
    cache: Path, clip: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "PLAIN_SECONDS", 0.2)
    body = checkpoint.read_bytes()
    with serving() as web:
        web.files["/some/swin.pth"] = Given(body, delay=0.6 * 1000 / len(body), cut=[len(body) // 2])
        url = f"{web.address}/some/swin.pth"
        refused = vswin("predict", clip, *VIEWS, "--weights", url, code=1).stderr
        assert "--insecure" in refused
        assert web.asked == []
        done = vswin("predict", clip, *VIEWS, "--weights", url, "--insecure", "--json")
        assert json.loads(done.stdout)["weights"] == url
        first, *lines = done.stderr.splitlines()
        assert first == f"downloading swin.pth ({len(body) / 1e6:,.1f} MB)"
        assert lines
        assert all("MB/s, ETA 0:00:0" in line and "%" in line for line in lines)
        assert len(web.asked) == 2
        assert vswin("predict", clip, *VIEWS, "--weights", url, "--json").stderr == ""
        assert (
            vswin("profile", "--weights", url, "--no-latency", "--frames", "4", "--size", "32").stderr == ""
        )
        assert len(web.asked) == 2
        (kept,) = (cache / "url").glob("*/swin.pth")
        kept.write_bytes(body + b"!")
        assert "changed since its first use" in vswin("predict", clip, "-w", url, code=1).stderr
        vswin("zoo", "--rm", url)
        assert not kept.exists()


def test_no_network(cache: Path, clip: Path) -> None:
    done = process("predict", clip, code=1, NO_PROXY="", HTTPS_PROXY=closed_port(), https_proxy=closed_port())
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {TINY}: cannot be downloaded from https://github.com/SwinTransformer/")
    assert hint.startswith(f"hint: put the file at {cache / 'zoo' / TINY} by hand, or")
    assert hint.endswith("--weights camera-motion")
    assert done.stdout == ""


# ------------------------------------------------------------------------------------------------
# The hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Web, dict[str, str]]]:
    """A stand-in hub, and the environment that leads to it."""
    image = tmp_path / "model.safetensors"
    save_file(writers.timm_2d(writers.small_2d(1, depths=(1, 1), num_heads=(1, 2))), image)
    state = writers.huggingface_2d(writers.small_2d(2, depths=(1, 1), num_heads=(1, 2)))
    half = sorted(state)[: len(state) // 2]
    shards = {"model-1.safetensors": set(half), "model-2.safetensors": set(state) - set(half)}
    files = {"config.json": json.dumps({"id2label": {str(i): f"thing {i}" for i in range(10)}}).encode()}
    for name, keys in shards.items():
        save_file({key: state[key].contiguous() for key in keys}, tmp_path / name)
        files[name] = (tmp_path / name).read_bytes()
    index = {"weight_map": {key: name for name, keys in shards.items() for key in keys}}
    with serving(Hub) as web:
        web.repositories = {
            "timm/swin_tiny_patch4_window7_224.ms_in1k": {
                "README.md": b"card", "model.safetensors": image.read_bytes(), "config.json": b"{}"
            },
            "me/shards": {**files, "model.safetensors.index.json": json.dumps(index).encode()},
            "me/two": {"a.pth": b"a", "sub/b.pth": b"b"} | {"c.pth": b"c"},
            "me/gated": {"model.safetensors": b"x"},
        }  # fmt: skip
        yield web, {
            "HF_ENDPOINT": web.address, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*",
            "HF_TOKEN": "hf_word", "VSWIN_CACHE": str(tmp_path / "cache"), "COLUMNS": "200",
        }  # fmt: skip


TRY = """
import json, sys
from vswin_cli.checkpoints.zoo import cached, remove, resolve
from vswin_cli.errors import VswinError
seen = []
def act(text):
    verb, _, rest = text.partition(" ")
    if verb == "resolve":
        return str(resolve(rest, progress=lambda now: seen.append(now.name)))
    if verb == "cached":
        return {name: str(c.path) for name, c in cached().items() if name != "camera-motion"}
    return remove(rest)
answers = []
for text in sys.argv[1:]:
    try:
        answers.append(act(text))
    except VswinError as error:
        answers.append([type(error).__name__, error.message, error.hint])
print(json.dumps({"answers": answers, "seen": seen}))
"""


def asking(env: dict[str, str], *actions: str) -> dict[str, Any]:
    """What a fresh process answers: the hub's library reads its environment once, when it is imported."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TRY, *actions], capture_output=True, text=True, timeout=100,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return dict(json.loads(done.stdout))


def test_inflate_from_the_hub(hub: tuple[Web, dict[str, str]], tmp_path: Path) -> None:
    web, env = hub
    out = tmp_path / "video.safetensors"
    done = process("inflate", "swin-t-1k-2d-timm", out, "--no-verify", "--json", **env)
    data = json.loads(done.stdout)
    assert data["source"]["dialect"] == "timm-2d"
    assert data["source"]["path"].startswith(env["HF_HOME"])
    assert "downloading hf:timm/swin_tiny_patch4_window7_224.ms_in1k/model.safetensors (" in done.stderr
    assert out.exists()
    fetches = [headers for path, headers in web.asked if path.endswith("model.safetensors")]
    assert fetches
    assert all(headers.get("authorization") == "Bearer hf_word" for headers in fetches)


def test_the_hub_with_and_without_a_network(hub: tuple[Web, dict[str, str]]) -> None:
    web, env = hub
    timm = "timm/swin_tiny_patch4_window7_224.ms_in1k"
    answer = asking(
        env,
        f"resolve hf:{timm}", f"resolve hf:{timm}@v1/model.safetensors", "resolve swin-t-1k-2d-timm",
        f"resolve hf:{timm}/none.pth", "resolve hf:me/two", "resolve hf:me/two/sub/b.pth",
        "resolve hf:me/gated", "resolve hf:me/unknown", f"resolve hf:{timm}@v9", "cached",
        "resolve hf:me/shards",
    )  # fmt: skip
    one, two, three, none, several, below, gated, unknown, revision, here, shards = answer["answers"]
    assert one == two == three
    assert Path(one).read_bytes() == web.repositories[timm]["model.safetensors"]
    assert Path(one).with_name("config.json").exists()
    assert f"hf:{timm}/model.safetensors" in answer["seen"]
    assert none[:2] == ["DownloadError", f"hf:{timm}: no file none.pth in it"]
    assert "model.safetensors" in none[2]
    assert several[1:] == ["hf:me/two: 2 checkpoints in it: a.pth, c.pth", "name the file: hf:me/two/a.pth"]
    assert Path(below).read_bytes() == b"b"
    assert "accepted its terms" in gated[1]
    assert "hf auth login" in gated[2]
    assert "no such repository" in unknown[1]
    assert f"hf:{timm}@v9: no such revision" in revision[1]
    assert here == {"swin-t-1k-2d-timm": str(Path(one).parent)}
    assert {p.name for p in Path(shards).parent.iterdir()} == set(web.repositories["me/shards"])
    read = load_checkpoint(Path(shards))
    assert read.labels is not None
    assert read.labels[9] == "thing 9"

    away = env | {"HF_ENDPOINT": closed_port()}
    answer = asking(
        away,
        f"resolve hf:{timm}", "resolve hf:me/two/sub/b.pth", "resolve hf:me/two/a.pth", "resolve hf:me/new",
        "remove swin-t-1k-2d-timm", "cached", "remove swin-t-1k-2d-timm", "resolve swin-t-1k-2d-timm",
    )  # fmt: skip
    again, still, other, new, freed, here, nothing, gone = answer["answers"]
    assert (again, still) == (one, below)
    for error in (other, new, gone):
        assert error[0] == "DownloadError"
        assert f"cannot be downloaded from {away['HF_ENDPOINT']}/" in error[1]
        assert "give its path to --weights, or use" in error[2]
        assert "\n" not in error[1]
    assert freed >= len(web.repositories[timm]["model.safetensors"])
    assert here == {}
    assert "not in the hub's cache" in nothing[1]
