"""The zoo's table, and what a reference resolves to."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.servers import Given, serving
from vswin_cli.checkpoints import zoo
from vswin_cli.checkpoints.dialects import DIALECTS
from vswin_cli.checkpoints.download import record_of
from vswin_cli.checkpoints.hub import choose
from vswin_cli.checkpoints.published import CAMERA_MOTION, DEFAULT, PUBLISHED, Published
from vswin_cli.checkpoints.zoo import cached, named, place_of, place_of_url, published_as, remove, resolve
from vswin_cli.config import PROTOCOLS
from vswin_cli.errors import CheckpointError, DownloadError
from vswin_cli.labels import label_sets

BODY = b"a checkpoint" * 1000
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSWIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(zoo, "hub_cache", dict)
    return tmp_path / "cache"


@pytest.mark.parametrize("entry", PUBLISHED.values(), ids=lambda entry: entry.name)
def test_every_row_makes_sense(entry: Published) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.name)
    assert entry.dialect in {*DIALECTS, "native"}
    assert sum(x is not None for x in (entry.url, entry.hub, entry.built_in)) == 1
    if entry.url:
        assert re.fullmatch(r"https://[\w./-]+", entry.url)
        assert entry.file
    if entry.hub:
        assert re.fullmatch(r"[\w-]+/[\w.-]+", entry.hub)
    assert re.fullmatch(r"|[0-9a-f]{8}|[0-9a-f]{64}", entry.sha256)
    assert entry.protocol is None or entry.protocol in PROTOCOLS
    assert entry.name.endswith("-2d") or "-2d-" in entry.name or not entry.dialect.endswith("-2d")
    for accuracy in (entry.top1, entry.top5):
        assert accuracy is None or 50 < accuracy < 100
    assert entry.licence
    if "omnivore" in entry.name:
        assert "NC" in entry.licence
        assert "not for commercial" in entry.note


def test_the_table_as_a_whole() -> None:
    assert Counter(e.dialect for e in PUBLISHED.values()) == {
        "native": 1, "official-3d": 7, "mmaction2-3d": 6, "torchvision-3d": 4, "omnivore": 6,
        "microsoft-2d": 18, "timm-2d": 19, "huggingface-2d": 10, "torchvision-2d": 3,
    }  # fmt: skip
    files = [e.file for e in PUBLISHED.values() if e.file]
    assert len(files) == len(set(files))  # they lie in one folder
    sizes = {len(labels) for labels in label_sets().values()}
    videos = [e for e in PUBLISHED.values() if not e.dialect.endswith("-2d") and e is not CAMERA_MOTION]
    assert {e.classes for e in videos} - {None} <= sizes
    default = PUBLISHED[DEFAULT]
    assert (default.top1, default.top5, default.protocol) == (78.8, 93.6, "k400-4x3")
    large = PUBLISHED["swin-l-k400-mmaction2"]
    assert large.sha256 == "78ad8b11"
    assert large.url is not None
    assert large.url.endswith("kinetics400-rgb_20220930-78ad8b11.pth")
    for name in ("swin-b-k400-22k", "swin-b-22k-2d", "camera-motion"):
        assert name in PUBLISHED


def test_paths_and_names(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("no.pth", "a/b", "a\\b", "model.safetensors.index.json", "./x"):
        assert resolve(text) == Path(text)
    assert resolve(Path("swin-t-k400")) == Path("swin-t-k400")
    (tmp_path / "swin-t-k400").mkdir()
    assert resolve("swin-t-k400") == Path("swin-t-k400")
    assert resolve("camera-motion").name == "camera_motion.safetensors"
    assert resolve("~/w.pth") == Path.home() / "w.pth"
    with pytest.raises(CheckpointError, match="neither a file nor a known name") as caught:
        resolve("swin-t-k4000")
    assert caught.value.hint == "did you mean swin-t-k400?"
    with pytest.raises(CheckpointError) as caught:
        resolve("zzz")
    assert "vswin zoo" in (caught.value.hint or "")
    with pytest.raises(CheckpointError, match="cannot be a path"):
        resolve("x" * 5000)


@pytest.mark.parametrize(
    "text", ["hf:", "hf:one", "hf:a/b/../../c", "hf:a/b@", "hf:a /b", "hf:../b", "hf:a/b@x/", "hf:a/b@\udcff"]
)
def test_hub_references_of_the_wrong_form(cache: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match="not of the form hf:user/repo"):
        resolve(text)


@pytest.mark.parametrize(
    "text",
    [
        "ftp://a.b/w.pth",
        "file:///etc/passwd",
        "s3://bucket/w.pth",
        "https://",
        "https://[::1/w.pth",
        "https://a.b/\udcff.pth",
        "https://a.b:port/w.pth",
    ],
)
def test_urls_of_the_wrong_kind(cache: Path, text: str) -> None:
    with pytest.raises(DownloadError, match=r"only https|names no server|not a URL"):
        resolve(text)


def test_repositories_that_cannot_be(cache: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be a repository"):
        resolve("hf:-a/b")


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VSWIN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert zoo.cache_folder() == tmp_path / "vswin"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert zoo.cache_folder() == Path.home() / ".cache/vswin"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VSWIN_CACHE", "here")
    assert zoo.cache_folder() == tmp_path / "here"


def test_a_name_is_downloaded_found_and_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as web:
        web.files["/swin.pth"] = Given(BODY)
        entry = Published(
            "swin-x", "official-3d", "Kinetics-400", 400, "MIT", url=f"{web.address}/swin.pth", sha256=SHA[:8]
        )
        monkeypatch.setitem(PUBLISHED, "swin-x", entry)
        with pytest.raises(DownloadError, match="http is not safe"):
            resolve("swin-x")
        path = resolve("swin-x", insecure=True)
        assert path == cache / "zoo/swin.pth" == place_of(named("swin-x"))
        assert path.read_bytes() == BODY
        assert resolve("swin-x") == path  # what is here needs no network
        assert len(web.asked) == 1
        assert {n: c.nbytes for n, c in cached().items() if n != "camera-motion"} == {"swin-x": len(BODY)}
        assert remove("swin-x") == len(BODY)
        assert record_of(path).exists()
        assert "swin-x" not in cached()
        with pytest.raises(CheckpointError, match="is not in the cache"):
            remove("swin-x")
        web.files["/swin.pth"] = Given(BODY + b"!")
        with pytest.raises(DownloadError, match=r"not the one of its first use|not the published file"):
            resolve("swin-x", insecure=True)


def test_urls_have_places_of_their_own(cache: Path) -> None:
    with serving() as web:
        web.files["/a/w.pth"] = Given(BODY)
        web.files["/b/w.pth"] = Given(BODY + b"!")
        one, two = (resolve(f"{web.address}/{folder}/w.pth", insecure=True) for folder in "ab")
        assert one != two
        assert one.name == two.name == "w.pth"
        assert two.read_bytes() == BODY + b"!"
        assert one == place_of_url(f"{web.address}/a/w.pth#there")
        assert remove(f"{web.address}/a/w.pth") == len(BODY)
        assert not one.exists()
        assert two.exists()


def test_the_model_of_the_package_stays(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="part of vswin"):
        remove("camera-motion")
    with pytest.raises(CheckpointError, match="neither a file nor a known name"):
        remove("../../etc/passwd")


def test_published_accuracy_is_found_by_name_and_hash() -> None:
    tiny = "swin_tiny_patch244_window877_kinetics400_1k.pth"
    assert published_as(tiny, "0" * 64) == PUBLISHED["swin-t-k400"]  # no SHA-256 is published
    torchvision = PUBLISHED["swin-t-k400-torchvision"]
    assert published_as("swin3d_t-7615ae03.pth", torchvision.sha256) == torchvision
    assert published_as("swin3d_t-7615ae03.pth", "0" * 64) is None
    assert published_as("model.safetensors", "0" * 64) is None


def test_which_file_of_a_repository() -> None:
    assert choose(["README.md", "model.safetensors", "pytorch_model.bin"], "hf:a/b") == "model.safetensors"
    shards = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    assert choose(shards, "hf:a/b") == "model.safetensors.index.json"
    assert choose(["swin.pth", "sub/other.pth", "config.json"], "hf:a/b") == "swin.pth"
    for names in ([], ["a.pth", "b.pth"]):
        with pytest.raises(DownloadError, match=f"{len(names)} checkpoints") as caught:
            choose(names, "hf:a/b")
        assert (caught.value.hint or "").startswith("name the file: hf:a/b/")
