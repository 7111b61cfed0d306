"""Writing files: never over another by accident, never half of one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from vswin_cli.config import ModelConfig, ViewProtocol
from vswin_cli.errors import OutputError

METADATA_KEY = "vswin"

#: Looks at a written file before it is put in place.
Check = Callable[[Path], None]


def check_writable(path: Path, force: bool, sources: Sequence[Path] = ()) -> None:
    """Raise OutputError where ``path`` may not be written: exists, is a source, has no folder."""
    try:
        path.exists()
    except OSError as error:
        raise OutputError(f"{path}: cannot be a file ({error.strerror})") from error
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise OutputError(f"{path} is the source itself", "name another output file")
    if path.is_dir():
        raise OutputError(f"{path} is a folder", f"name a file in it: {path / 'model.safetensors'}")
    if path.exists() and not force:
        raise OutputError(f"{path} exists already", "add --force to overwrite it")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} is not a folder", f"mkdir -p {path.parent}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary file in the same folder, and put it in place of ``path`` if all goes well."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp gives 0600; a new file should have what open() would have given it.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_native(
    path: Path,
    state: Mapping[str, Tensor],
    config: ModelConfig,
    *,
    labels: Sequence[str] | None,
    protocol: ViewProtocol | None,
    source: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
    check: Check | None = None,
) -> None:
    """Write a native checkpoint: safetensors, official names, everything about it in the metadata.

    Atomic; raises OutputError. Callers ask check_writable first, before they compute. ``check`` is given
    the written file before it gets its name; where it raises, nothing is left.
    """
    from vswin_cli import __version__

    described = {
        "config": config.to_json(),
        "labels": None if labels is None else list(labels),
        "protocol": None if protocol is None else protocol.to_json(),
        "source": dict(source),
        "report": None if report is None else dict(report),
        "vswin": __version__,
    }
    metadata = {METADATA_KEY: json.dumps(described, sort_keys=True), "format": "pt"}
    with atomic_file(path) as temporary:
        try:
            save_file(separate(state), temporary, metadata)
        except safetensors.SafetensorError as error:
            # A full disk arrives as the library's own error type.
            raise OutputError(f"{path}: cannot be written ({error})") from error
        if check is not None:
            check(temporary)


def separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, no two of which share memory (safetensors refuses those)."""
    seen: set[int] = set()
    made = {}
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        shared = place in seen or not whole
        made[name] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
        seen.add(place)
    return made
