"""The folder of a training run: what is in it, and how it survives being killed.

    config.json        everything that is needed to run again
    last.safetensors   the full state after some step: weights, optimizer, where in which epoch
    best.safetensors   the weights with the best validation Top-1, self-describing
    best_val.npy       their probabilities of the validation videos, (videos, classes), float32
    metrics.jsonl      a line per logged step and per validation
    unreadable.jsonl   training videos that could not be read
    curves.png         loss and accuracy
    lock               held while rank 0 runs

All but the .jsonl files are replaced atomically. A resumed run drops the lines after its state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor

from vswin_cli.checkpoints.files import TRAINING_KEY, atomic_file
from vswin_cli.engine.runlog import read_json, write_json
from vswin_cli.errors import OutputError

SCHEMA = 1


class RunDir:
    """A run's folder. A context manager: its lock is held inside.

    Raises OutputError: another process holds it; it holds a run already and ``resume`` is false.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder, self.resume = folder, resume
        self.config = folder / "config.json"
        self.last = folder / "last.safetensors"
        self.best = folder / "best.safetensors"
        self.metrics = folder / "metrics.jsonl"
        self.unreadable = folder / "unreadable.jsonl"
        self._lock = FileLock(folder / "lock")

    def __enter__(self) -> Self:
        if not self.resume and (self.config.exists() or self.last.exists() or self.best.exists()):
            raise OutputError(
                f"{self.folder} holds a training run already",
                "--resume goes on with it; or name another folder with --out",
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(
                f"{self.folder} is in use by another run",
                "wait for it, stop it, or name another folder with --out",
            ) from None
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be used ({error.strerror or error})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def read_config(self) -> dict[str, Any]:
        """The configuration of the run. Raises OutputError where there is none."""
        return read_run_config(self.folder)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Keep what is needed to run again."""
        write_json(self.config, {**config, "schema": SCHEMA})

    def append(self, path: Path, row: Mapping[str, Any]) -> None:
        """Add a line to one of the .jsonl files."""
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror or error})",
                "make room; then --resume goes on from the last saved state",
            ) from error

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """The whole lines of one of the .jsonl files."""
        return read_rows(path)

    def cut(self, path: Path, step: int) -> None:
        """Drop the lines of later steps: a resumed run writes them again."""
        rows = [row for row in read_rows(path) if row.get("step", 0) <= step]
        with atomic_file(path) as temporary:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            temporary.write_text(text, encoding="utf-8")

    def save_probabilities(self, probabilities: npt.NDArray[np.float32]) -> None:
        """The validation probabilities of the best weights."""
        with atomic_file(self.folder / "best_val.npy") as temporary, temporary.open("wb") as file:
            np.save(file, probabilities)


def read_run_config(folder: Path) -> dict[str, Any]:
    """The config.json of a run. Raises OutputError where there is none."""
    try:
        found = read_json(folder / "config.json")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be read ({error.strerror or error})", "check --out") from error
    if not isinstance(found, dict):
        raise OutputError(
            f"{folder} holds no training run to go on with (no readable config.json)",
            "start one without --resume",
        )
    if found.get("schema") != SCHEMA:
        raise OutputError(f"{folder} is the run of another version of vswin")
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a .jsonl file; a torn last line does not count."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        if isinstance(row, dict):
            rows.append(row)
    return rows


def save_state(
    path: Path,
    model: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Write weights, the optimizer's state and ``facts`` (plain JSON) as one file, atomically.

    ``names`` are the optimizer's parameters in its own order. Raises OutputError.
    """
    tensors = {f"model.{name}": tensor.detach().cpu() for name, tensor in model.items()}
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{key}.{names[number]}"] = torch.as_tensor(value).detach().cpu()
    with atomic_file(path) as temporary:
        try:
            save_file(
                {k: v.contiguous() for k, v in tensors.items()},
                temporary,
                {TRAINING_KEY: json.dumps(dict(facts))},
            )
        except safetensors.SafetensorError as error:
            raise OutputError(
                f"{path}: cannot be written ({error})", "make room; then --resume goes on"
            ) from error


def load_state(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> dict[str, Any]:
    """Put a saved state back, and give its facts. Raises OutputError where it does not fit."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {})[TRAINING_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        model.load_state_dict(weights, strict=True)
        numbers = {name: number for number, name in enumerate(names)}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, kind, name = key.split(".", 2)
                state.setdefault(numbers[name], {})[kind] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise OutputError(
            f"{path}: the saved state cannot be used ({str(error).splitlines()[0][:200]})",
            "start again in another folder with --out",
        ) from error
    return facts
