"""A folder for the hub, and its upload to a stand-in of the hub on this machine."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.servers import Hub, closed_port, serving
from vswin_cli import load_model
from vswin_cli.checkpoints.files import load_checkpoint, save_native
from vswin_cli.config import PROTOCOLS, ModelConfig
from vswin_cli.engine.publish import check_folder, check_repo, write_folder
from vswin_cli.errors import OutputError, UsageError
from vswin_cli.model import VideoSwin

ROOT = Path(__file__).parents[2]
CONFIG = ModelConfig(8, (2, 2), (1, 2), (2, 4, 4), (2, 4, 4), 3)


class UploadHub(Hub):
    """Takes repositories and commits, too; every file as a part of its commit."""

    def do_POST(self) -> None:  # noqa: N802  (http.server's name)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, dict(self.headers)))
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.answer(401)
        if self.path == "/api/repos/create":
            name = json.loads(body)
            repo = f"{name.get('organization') or 'somebody'}/{name['name']}"
            self.server.repositories.setdefault(repo, {})
            return self.json({"url": f"{self.server.address}/{repo}"})
        if self.path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", self.path):
            paths = [entry["path"] for entry in json.loads(body)["files"]]
            files = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            return self.json({"files": files})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.repositories[found[1]][entry["value"]["path"]] = content
            address = f"{self.server.address}/{found[1]}/commit/{'0' * 40}"
            return self.json({"commitUrl": address, "commitOid": "0" * 40, "success": True})
        return self.answer(404)

    def json(self, data: Any) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(data).encode())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = VideoSwin(CONFIG)
    protocol = PROTOCOLS["k400-4x3"].override(frames=4, size=32)
    source = {
        "name": "swin_tiny_patch244_window877_kinetics400_1k.pth",
        "dialect": "official-3d",
        "sha256": "ab" * 32,
        "finetuned": {"recipe": "small", "val_top1": 91.5, "val_videos": 40, "val_views": "1x1"},
    }
    path = tmp_path / "mine.safetensors"
    labels = ("pan | left", "b", "[c](http://x)")
    save_native(path, model.state_dict(), CONFIG, labels=labels, protocol=protocol, source=source)
    return path


def test_the_folder(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "mine"
    write_folder(weights, folder)
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert (folder / "model.safetensors").read_bytes() == weights.read_bytes()
    assert load_checkpoint(folder).labels == load_checkpoint(weights).labels
    config = json.loads((folder / "config.json").read_text())
    assert ModelConfig.from_json(config["model"]) == CONFIG
    assert config["id2label"]["1"] == "b"
    card = (folder / "README.md").read_text()
    head = ["---", "library_name: vswin", "pipeline_tag: video-classification", "license: mit"]
    assert card.splitlines()[:4] == head
    for text in ("k400-4x3", "swin\\_tiny", "abab", "Top-1 91.5 % of 40", "MIT (files)", "pan \\| left"):
        assert text in card, text
    assert "[c](http" not in card  # a class name is text, not a link


def test_wrong_names_and_folders(weights: Path, tmp_path: Path) -> None:
    for name in ("mine", "a/b/c", "../x", "a/b c", "a/--", ""):
        with pytest.raises(UsageError):
            check_repo(name)
    check_repo("some-body/my.model_2")
    check_folder(tmp_path / "new", False)
    with pytest.raises(OutputError, match="is not empty"):
        check_folder(tmp_path, False)
    check_folder(tmp_path, True)
    with pytest.raises(OutputError, match="is a file"):
        check_folder(weights, False)


def test_the_folder_is_not_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vswin_cli.cli.publishing import _folder, check

    with pytest.raises(UsageError, match="is the output itself"):
        check(None, tmp_path / "run", tmp_path / "run", force=False)
    assert _folder(None, tmp_path / "lr0.001") == tmp_path / "lr0.001-hub"
    assert _folder(None, tmp_path / "a.safetensors") == tmp_path / "a-hub"
    monkeypatch.chdir(tmp_path)
    assert _folder(None, Path()) == tmp_path.with_name(f"{tmp_path.name}-hub")


def vswin(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vswin_cli", *map(str, arguments)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "HF_TOKEN"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def image(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = VideoSwin(ModelConfig(8, (2, 2), (1, 2), (1, 4, 4), (1, 4, 4), 3))
    state = dict(model.state_dict())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, 0]
    torch.save({"model": state}, tmp_path / "image.pth")
    return tmp_path / "image.pth"


def test_inflate_and_push(image: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "video.safetensors", str(tmp_path / "home")
    with serving(UploadHub) as hub:
        there = {"HF_ENDPOINT": hub.address, "HF_HOME": home}
        done = vswin("inflate", image, out, "--push", "me/mine", HF_TOKEN="hf_right", **there)
        assert done.returncode == 0, done.stderr
        assert f"{hub.address}/me/mine" in done.stderr
        files = hub.repositories["me/mine"]
        assert set(files) == {"model.safetensors", "config.json", "README.md"}
        assert files["model.safetensors"] == out.read_bytes()
        assert b"hf:me/mine" in files["README.md"]
        # And back.
        code = "import sys; from vswin_cli import load_model; print(load_model('hf:me/mine').config.window)"
        command = [sys.executable, "-c", code]
        back = subprocess.run(
            command, cwd=ROOT, env=os.environ | there, stdout=subprocess.PIPE, text=True, check=True
        )
        assert back.stdout.strip() == "(8, 4, 4)"
        refused = vswin("inflate", image, out, "--force", "--push", "me/mine", HF_TOKEN="hf_wrong", **there)
    assert refused.returncode == 1
    assert "hf auth login" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert out.exists()  # the work is not lost


def test_no_network(image: Path, tmp_path: Path) -> None:
    there = {"HF_ENDPOINT": closed_port(), "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_right"}
    done = vswin("inflate", image, tmp_path / "v.safetensors", "--push", "me/mine", **there)
    assert done.returncode == 1
    assert "cannot be uploaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_name_is_seen_before_the_work(image: Path, tmp_path: Path) -> None:
    done = vswin("inflate", image, tmp_path / "v.safetensors", "--push", "mine")
    assert done.returncode == 2
    assert "--push USER/NAME" in done.stderr
    assert not (tmp_path / "v.safetensors").exists()


def test_save_dir(image: Path, tmp_path: Path) -> None:
    done = vswin("inflate", image, tmp_path / "v.safetensors", "--save-dir", tmp_path / "hub")
    assert done.returncode == 0, done.stderr
    assert load_model(tmp_path / "hub").config.patch == (2, 4, 4)
    again = vswin("inflate", image, tmp_path / "w.safetensors", "--save-dir", tmp_path / "hub")
    assert again.returncode == 1
    assert "is not empty" in again.stderr
    assert not (tmp_path / "w.safetensors").exists()
