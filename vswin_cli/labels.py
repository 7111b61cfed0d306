"""Class names that ship with the package: Kinetics-400/600/700/710 and Something-Something v2."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files


@cache
def label_sets() -> dict[str, tuple[str, ...]]:
    """Data set name -> class names in index order (mmaction's label maps, FACTS 3.4)."""
    text = files("vswin_cli").joinpath("data/labels.json").read_text(encoding="utf-8")
    return {name: tuple(labels) for name, labels in json.loads(text).items()}


def labels_for(num_classes: int) -> tuple[str, ...] | None:
    """The class names of the one shipped data set with that many classes; None where none or several fit."""
    fits = [labels for labels in label_sets().values() if len(labels) == num_classes]
    return fits[0] if len(fits) == 1 else None
