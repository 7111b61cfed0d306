"""Which process this is (torchrun's environment variables), and what training ranks say to each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from vswin_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


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


@contextmanager
def process_group(here: Place, device: torch.device) -> Iterator[None]:
    """Join the ranks of a training run (NCCL on CUDA, gloo elsewhere); nothing for one process."""
    if here.world == 1:
        yield
        return
    import torch.distributed

    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def sum_over_ranks(values: torch.Tensor, here: Place) -> torch.Tensor:
    """The sum of a tensor of all ranks, the same on each."""
    if here.world > 1:
        import torch.distributed

        torch.distributed.all_reduce(values)
    return values


def gather(value: T, here: Place) -> list[T]:
    """The value of each rank, in order of rank, on every rank. Only what we made ourselves: it is pickled."""
    if here.world == 1:
        return [value]
    import torch.distributed

    values: list[T] = [value] * here.world
    torch.distributed.all_gather_object(values, value)
    return values
