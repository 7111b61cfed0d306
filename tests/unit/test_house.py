"""The house rules: imports run downward, help is light, only the command line prints."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vswin_cli

PACKAGE = Path(vswin_cli.__file__).parent
ROOMS = {
    "errors": 0, "config": 0, "labels": 0,
    "checkpoints": 1, "video": 1, "model": 1,
    "engine": 2,
    "cli": 3,
    "__main__": 4, "__init__": 4,
}  # fmt: skip
ALLOWED_SIDEWAYS = {("config", "errors"), ("labels", "errors")}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downward(path: Path) -> None:
    relative = path.relative_to(PACKAGE).with_suffix("")
    here = relative.parts[0]
    for name in imports(path):
        if not name.startswith("vswin_cli"):
            continue
        there = room(name)
        if there in ("__init__", "__version__") or there == here:
            continue
        below = ROOMS[there] < ROOMS[here] or (here, there) in ALLOWED_SIDEWAYS
        assert below, f"{relative} ({here}) imports {name}"


def test_rooms_without_torch_or_typer() -> None:
    for path in FILES:
        relative = str(path.relative_to(PACKAGE))
        tops = {n.split(".")[0] for n in imports(path)}
        assert "click" not in tops, relative
        if relative != "__main__.py" and not relative.startswith("cli"):
            assert not tops & {"typer", "rich"}, relative
        if relative in (
            "errors.py",
            "config.py",
            "labels.py",
            "checkpoints/dialects.py",
            "checkpoints/plan.py",
            "checkpoints/geometry.py",
        ):
            assert not tops & {"torch", "numpy"}, relative


def test_only_the_command_line_prints_or_exits() -> None:
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "exit"), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "command",
    [[], ["inflate"], ["predict"], ["eval"], ["profile"], ["finetune"], ["zoo"], ["convert"], ["inspect"]],
    ids=str,
)
def test_help_is_light(command: list[str]) -> None:
    code = (
        "import sys, json\n"
        "from vswin_cli.__main__ import main\n"
        f"sys.argv = ['vswin', *{command!r}, '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'pandas', 'decord', 'av', 'cv2', 'safetensors', 'huggingface_hub', "
        "'kornia', 'matplotlib', 'httpx2'}\n"
        "sys.stderr.write(json.dumps(sorted(heavy & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert json.loads(done.stderr) == []


def test_import_is_light_and_public_names_exist() -> None:
    code = "import sys, vswin_cli; assert 'torch' not in sys.modules; print(vswin_cli.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == vswin_cli.__version__
    for name in vswin_cli.__all__:
        assert getattr(vswin_cli, name) is not None
    with pytest.raises(AttributeError):
        vswin_cli.no_such_name  # noqa: B018
