"""Which clips make a step, and getting them decoded ahead of it.

The order of an epoch and every clip's draw follow from (seed, epoch, position) alone: any number of ranks
and workers, and a run that was killed and resumed, see the same clips.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from vswin_cli.config import Augmentation
from vswin_cli.errors import DataError, VideoError
from vswin_cli.video.augment import draw_clip_in_worker
from vswin_cli.video.dataset import Item
from vswin_cli.video.workers import DecodePool

if TYPE_CHECKING:
    from vswin_cli.video.augment import TrainingClip

#: Other videos that are tried in place of one that cannot be read.
ATTEMPTS = 20


@dataclass(frozen=True)
class Plan:
    """How ``videos`` training videos are dealt to steps: ``per_rank`` clips in one forward of one of
    ``world`` ranks, ``accumulate`` forwards a step. The last step of an epoch may be smaller."""

    videos: int
    per_rank: int
    accumulate: int
    world: int
    seed: int

    @property
    def clips_per_step(self) -> int:
        """Clips of all ranks in one step."""
        return self.per_rank * self.accumulate * self.world

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which each video is used once."""
        return -(-self.videos // self.clips_per_step)

    def order(self, epoch: int) -> Sequence[int]:
        """The videos of an epoch, shuffled."""
        return _order(self.videos, self.seed, epoch)

    def size(self, step: int) -> int:
        """Clips of all ranks in a step of an epoch."""
        return min(self.clips_per_step, self.videos - step * self.clips_per_step)

    def forwards(self, epoch: int, step: int, rank: int) -> list[list[int]]:
        """The videos of each forward of a rank in a step; an empty list where there are too few."""
        first = step * self.clips_per_step
        whole = self.order(epoch)[first : first + self.clips_per_step]
        size = self.per_rank * self.world
        return [list(whole[i * size : (i + 1) * size][rank :: self.world]) for i in range(self.accumulate)]


@lru_cache(maxsize=4)
def _order(videos: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(videos))
    random.Random(f"vswin order {seed} {epoch}").shuffle(order)
    return tuple(order)


def seed_of(*parts: object) -> int:
    """A seed of 63 bits from anything with a stable text."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Sample:
    """A clip for one place of a forward. ``failed`` are the videos that could not be read in its place."""

    clip: TrainingClip
    item: Item
    failed: tuple[tuple[Item, VideoError], ...]


@dataclass
class _Place:
    """One place in the run that is being filled."""

    number: int  # of the video that the plan has there
    seed: int
    failed: list[tuple[Item, VideoError]] = field(default_factory=list)


class Feeder:
    """Decodes and augments a rank's clips in the order of the plan, ``ahead`` of them at once.

    A video that cannot be read is replaced by another, drawn from the same seed. Raises DataError where
    ATTEMPTS in a row cannot be read.
    """

    def __init__(
        self, pool: DecodePool, items: Sequence[Item], augmentation: Augmentation, plan: Plan, ahead: int
    ) -> None:
        self.pool, self.items, self.augmentation, self.plan, self.ahead = (
            pool,
            items,
            augmentation,
            plan,
            ahead,
        )
        #: Videos known to be unreadable: not tried again.
        self.bad: dict[int, VideoError] = {}

    def steps(
        self, epoch: int, step: int, last_epoch: int, rank: int
    ) -> Iterator[tuple[int, int, list[list[Sample]]]]:
        """(epoch, step, samples of each forward) from the given step to the end of the last epoch."""
        waiting: deque[tuple[_Place, Future[TrainingClip]]] = deque()
        places = self._places(epoch, step, last_epoch, rank)
        while epoch < last_epoch:
            while step < self.plan.steps_per_epoch:
                forwards = []
                for numbers in self.plan.forwards(epoch, step, rank):
                    samples = []
                    for _ in numbers:
                        for place in islice(places, self.ahead - len(waiting)):
                            waiting.append((place, self._submit(place)))
                        samples.append(self._finish(*waiting.popleft()))
                    forwards.append(samples)
                yield epoch, step, forwards
                del forwards
                step += 1
            epoch, step = epoch + 1, 0

    def _places(self, epoch: int, step: int, last_epoch: int, rank: int) -> Iterator[_Place]:
        while epoch < last_epoch:
            for later in range(step, self.plan.steps_per_epoch):
                for numbers in self.plan.forwards(epoch, later, rank):
                    for number in numbers:
                        yield _Place(number, seed_of("clip", self.plan.seed, epoch, number))
            epoch, step = epoch + 1, 0

    def _submit(self, place: _Place) -> Future[TrainingClip]:
        number = self._number(place)
        if number in self.bad:
            known: Future[TrainingClip] = Future()
            known.set_exception(self.bad[number])
            return known
        item = self.items[number]
        return self.pool.call(
            draw_clip_in_worker, str(item.path), self.augmentation, place.seed, name=str(item.path)
        )

    def _number(self, place: _Place) -> int:
        """The video to try: the plan's first, then others."""
        attempt = len(place.failed)
        return place.number if not attempt else seed_of(place.seed, attempt) % len(self.items)

    def _finish(self, place: _Place, job: Future[TrainingClip]) -> Sample:
        while True:
            number = self._number(place)
            try:
                clip = job.result()
            except VideoError as error:
                self.bad[number] = error
                place.failed.append((self.items[number], error))
                if len(place.failed) >= ATTEMPTS:
                    raise DataError(
                        f"{ATTEMPTS} training videos in a row cannot be read, the last one: {error.message}",
                        error.hint,
                    ) from error
                job = self._submit(place)
            else:
                return Sample(clip, self.items[number], tuple(place.failed))
