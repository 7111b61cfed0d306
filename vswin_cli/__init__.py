"""vswin: Video Swin Transformers on the command line and in Python.

Public names are loaded on first use, so that ``import vswin_cli`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_model": "vswin_cli.engine.load",
    "inflate": "vswin_cli.engine.load",
    "Predictor": "vswin_cli.engine.predict",
    "evaluate": "vswin_cli.engine.evaluate",
    "profile": "vswin_cli.engine.profiling",
    "finetune": "vswin_cli.engine.finetune",
}
__all__ = ["Predictor", "__version__", "evaluate", "finetune", "inflate", "load_model", "profile"]

if TYPE_CHECKING:
    from vswin_cli.engine.evaluate import evaluate as evaluate
    from vswin_cli.engine.finetune import finetune as finetune
    from vswin_cli.engine.load import inflate as inflate
    from vswin_cli.engine.load import load_model as load_model
    from vswin_cli.engine.predict import Predictor as Predictor
    from vswin_cli.engine.profiling import profile as profile


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
