"""Which process this is: torchrun's environment variables, and nothing more."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vswin_cli.errors import UsageError


@dataclass(frozen=True)
class Place:
    """This process among those of one launch: rank of world; local_rank of local_world on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_first(self) -> bool:
        """Rank 0 merges, prints and sets the exit code."""
        return self.rank == 0


def place() -> Place:
    """Read RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE as torchrun sets them; one process without.

    Raises UsageError where they are set but make no sense.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return Place()
    defaults = ("0", "1", "0", "1")
    values = [os.environ.get(name, default) for name, default in zip(names, defaults, strict=True)]
    if not all(v.isdecimal() for v in values):
        raise UsageError(
            "RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE are "
            + ", ".join(map(repr, values))
            + ", numbers expected",
            "start several processes with torchrun, or unset these variables",
        )
    found = Place(*map(int, values))
    if found.rank >= found.world:
        raise UsageError(f"RANK {found.rank} is not below WORLD_SIZE {found.world}")
    return found
