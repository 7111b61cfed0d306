"""README tells the truth: its Python runs, its commands and options exist, its tables are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vswin_cli.checkpoints.dialects import DIALECTS
from vswin_cli.cli.app import app
from vswin_cli.config import PROTOCOLS, RECIPES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HELP = {
    command: CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    for command in ("inflate", "predict", "eval", "profile", "finetune", "convert", "inspect", "zoo")
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that README names, as the current one."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import paste

    paste.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_block_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "clip.mp4 class" in capsys.readouterr().out
    assert (folder / "video.safetensors").exists()


def test_console_commands_run(folder: Path) -> None:
    commands = re.findall(r"```console\n\$ vswin (.*)\n", README)
    assert len(commands) == 6
    for command in commands:
        quick = {"predict": ["--views", "1x1"], "finetune": ["--max-steps", "1"]}
        done = CliRunner().invoke(app, [*command.split(), *quick.get(command.split()[0], [])])
        assert done.exit_code == 0, done.output


def test_options_in_the_text_exist() -> None:
    everywhere = "".join(HELP.values()) + "--version --help"
    everywhere += (
        "--nproc-per-node --nnodes --node-rank --master-addr --nodes --ntasks-per-node --gpus-per-node"
    )
    for option in sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))):
        assert option in everywhere, option


def test_tables_are_complete() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", README, re.MULTILINE)) == set(PROTOCOLS) | set(RECIPES)
    assert len(DIALECTS) == 9
    assert "nine dialects" in README


def test_contributing_draws_the_house_as_it_stands() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in (ROOT / "vswin_cli").rglob("*.py"):
        if path.name != "__init__.py" and path.parent.name != "cli":
            assert path.name in text, path.name
    for name in re.findall(r"\b(\w+\.py)\b", text):
        assert list(ROOT.rglob(name)), name


def test_nothing_names_a_machine() -> None:
    named = re.compile(r"/(root|home|work)/|pypi\.|https?://[^ ]*simple")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.txt"), ROOT / ".ci/run"]:
        assert not named.search(path.read_text(encoding="utf-8")), path
