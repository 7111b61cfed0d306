"""Training: a checkpoint and labelled videos -> a finetuned model (paper, section 4.1; official configs)."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vswin_cli.checkpoints.files import save_native
from vswin_cli.config import TrainRecipe, ViewProtocol
from vswin_cli.engine.batches import Feeder, Plan, Sample, seed_of
from vswin_cli.engine.curves import draw_curves
from vswin_cli.engine.device import (
    choose_device,
    default_workers,
    device_of_rank,
)
from vswin_cli.engine.distributed import Place, gather, place, process_group, sum_over_ranks
from vswin_cli.engine.inference import to_clips
from vswin_cli.engine.optimize import (
    Group,
    freeze,
    lr_factor,
    make_optimizer,
    parameter_groups,
    set_lr,
)
from vswin_cli.engine.rundir import RunDir, load_state, read_rows, save_state
from vswin_cli.engine.settings import (
    Settings,
    new_settings,
    protocol_of_recipe,
    read_class_names,
    refuse_flips,
    resolve_recipe,
    settings_of_run,
)
from vswin_cli.engine.start import Start, start_from_nothing, start_from_weights, training_model
from vswin_cli.engine.validation import Validation, validate
from vswin_cli.errors import DataError, ModelOutputError, UsageError, VideoError, VswinError
from vswin_cli.video.dataset import Item, Splits, find_splits
from vswin_cli.video.workers import DecodePool

#: A training set may hold this share of videos that cannot be read.
UNREADABLE_SHARE = 0.05
SAVE_SECONDS = 600.0  # between two saved states within an epoch
SAVE_BEFORE_VALIDATION = 30.0  # seconds of training that are worth it
STOP_SECONDS = 25  # a rank that is told to end, and cannot, waits for another one that is gone
LOGS_PER_EPOCH = 50
#: Training workers import torch, so they are replaced less often than those that only decode.
TASKS_PER_WORKER = 5000
DRY_BATCHES = 2


@dataclass(frozen=True)
class RunInfo:
    """What a run is going to do, before it does it."""

    out: Path
    start: Start
    splits: Splits
    recipe: TrainRecipe
    groups: tuple[Group, ...]
    plan: Plan
    protocol: ViewProtocol
    val_protocol: ViewProtocol
    keeps_head: bool
    device: str
    amp: str
    workers: int
    done_steps: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TrainProgress:
    """Where a run stands. ``epoch`` counts from 0, with its fraction; rates are of this launch."""

    epoch: float
    epochs: int
    step: int
    steps: int
    loss: float
    lr: float
    clips_per_second: float
    eta_seconds: float
    val_top1: float | None
    unreadable: int
    phase: str = "training"


@dataclass
class TrainState:
    """All that changes in a run beside weights and optimizer. Saved with them.

    epoch, step: where to go on; ``window`` sums loss, hits and clips since the last logged step. Random
    numbers need no state: each step's generator is seeded with (seed, epoch, step, rank).
    """

    epoch: int = 0
    step: int = 0
    done: int = 0
    best_top1: float | None = None
    best_loss: float = math.inf
    best_epoch: int = 0
    last_top1: float | None = None
    val_failed: int = 0
    window: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finetuned:
    """The result of a launch. ``complete`` is false where it was stopped before the last epoch."""

    out: Path
    best: Path
    complete: bool
    epochs: float
    steps: int
    best_top1: float | None
    best_epoch: int
    last_top1: float | None
    val_failed: int
    unreadable: dict[str, str]
    classes: int
    seconds: float
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "out": str(self.out), "best": str(self.best)}


def finetune(
    data: str | Path | None = None,
    weights: str | Path | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    max_steps: int | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    started: Callable[[RunInfo], None] | None = None,
    **settings: Any,
) -> Finetuned:
    """Train on ``data`` (train/ and val/, or two lists) from ``weights``, or go on with the run in ``out``.

    ``settings`` are the other fields of Settings; a resumed run takes them from its folder and refuses ones
    that differ. ``max_steps`` ends this launch early, with its state saved. Raises UsageError, DataError,
    CheckpointError, OutputError, and ModelOutputError where the loss is not finite.
    """
    given = {
        **settings,
        "data": None if data is None else str(data),
        "weights": None if weights is None else str(weights),
    }
    given = {k: v for k, v in given.items() if v is not None}
    if max_steps is not None and max_steps < 1:
        raise UsageError(f"--max-steps must be at least 1, not {max_steps}")
    folder, here = Path(out), place()
    asked = settings_of_run(folder, given) if resume else new_settings(given)
    device = choose_device(device_of_rank(asked.device, here.local_rank, here.local_world))
    with ExitStack() as stack:
        stack.enter_context(process_group(here, device))
        run = RunDir(folder, resume)
        refused: VswinError | None = None
        if here.is_first:
            try:
                stack.enter_context(run)
            except VswinError as error:
                refused = error
        # The folder is ours before any rank goes on; if it is not, no rank waits for another.
        for refusal in filter(None, gather(refused, here)):
            raise refusal
        trainer = Trainer(asked, run, here, device, resume)
        return trainer.fit(progress, started, max_steps)


class Trainer:
    """One rank of a run."""

    def __init__(self, asked: Settings, run: RunDir, here: Place, device: torch.device, resume: bool) -> None:
        self.asked, self.run, self.here, self.device, self.resume = asked, run, here, device, resume
        stored = run.read_config() if resume else {}
        start = _start(asked)
        names = read_class_names(asked.labels)
        self.splits = find_splits(
            Path(asked.data),
            _path(asked.train_list),
            _path(asked.val_list),
            names=names,
            known=start.labels,
            skip_missing=asked.skip_missing,
        )
        self.start, self.keeps_head = start, self.splits.same_classes and bool(start.state)
        self.recipe = resolve_recipe(asked, start, stored.get("clips_per_step"), here.world)
        refuse_flips(self.splits.labels, self.recipe, asked.force_flip)
        self.protocol = protocol_of_recipe(self.recipe, asked.views)
        try:
            self.val_protocol = self.protocol.override(views=asked.val_views)
        except UsageError as error:
            hint = (error.hint or "for example --val-views 1x1").replace("--views", "--val-views")
            raise UsageError(error.message.replace("--views", "--val-views"), hint) from error
        recipe, train = self.recipe, self.splits.train.items
        self.plan = Plan(len(train), recipe.batch_size, recipe.accumulate, here.world, asked.seed)
        self.model = training_model(start, self.splits.labels, self.keeps_head, recipe, asked.seed)
        self.model.to(device)
        self.model.set_grad_checkpointing(asked.grad_checkpointing)
        self.groups = parameter_groups(self.model, recipe, recipe.lr)
        self.names = [name for group in self.groups for name in group.parameters]
        self.optimizer = make_optimizer(self.model, self.groups, recipe)
        self.state = TrainState()
        self.parallel: nn.parallel.DistributedDataParallel | None = None
        self.frozen: int | None = None
        self.workers = asked.workers or default_workers(device, here.local_world)
        self.config = {
            "settings": asdict(asked),
            "recipe": recipe.to_json(),
            "clips_per_step": self.plan.clips_per_step,
            "labels": list(self.splits.labels),
            "model": self.model.config.to_json(),
            "start": dict(start.source),
            "train_sha256": _digest(train),
            "val_sha256": _digest(self.splits.val.items),
            "versions": {n: metadata.version(n) for n in ("torch", "numpy", "kornia")},
        }
        if resume:
            self._restore(stored)

    def _restore(self, stored: Mapping[str, Any]) -> None:
        others = {"labels": "classes", "model": "model", "start": "starting weights"}
        for name in ("train_sha256", "val_sha256", *others):
            if stored.get(name) != json.loads(json.dumps(self.config[name])):
                what = others.get(name, f"{name[:-7]} videos")
                raise DataError(
                    f"the run in {self.run.folder} had other {what} than there are now",
                    "put the data back as it was, or start another run with another --out",
                )
        if self.run.last.exists():
            facts = load_state(self.run.last, self.model, self.optimizer, self.names)
            try:
                self.state = TrainState(**facts)
            except TypeError as error:
                raise UsageError(f"{self.run.last}: the state of another version of vswin") from error
        if self._too_many_unreadable():  # the run stopped at that; it goes on because they were repaired
            self.state.unreadable = {}
        if self.here.is_first:
            self.run.cut(self.run.metrics, self.state.done)
            self.run.cut(self.run.unreadable, self.state.done)

    # ---------------------------------------------------------------------------------- the loop

    def fit(
        self,
        progress: Callable[[TrainProgress], None] | None,
        started: Callable[[RunInfo], None] | None,
        max_steps: int | None,
    ) -> Finetuned:
        """Train to the end, or as far as ``max_steps`` and signals let it."""
        begin = time.monotonic()
        state, plan = self.state, self.plan
        total = plan.steps_per_epoch * self.recipe.epochs
        first = state.done
        speed = _Speed()
        with DecodePool(self.workers, self.asked.timeout, tasks_per_worker=TASKS_PER_WORKER) as pool:
            if started is not None and self.here.is_first:
                started(self._info())
            if state.done < total:
                self._dry_run(pool)
            if self.here.is_first and not self.resume:
                self.run.write_config(self.config)
            ahead = 2 * self.recipe.batch_size + self.workers
            items = self.splits.train.items
            feeder = Feeder(pool, items, self.recipe.augmentation, plan, ahead)
            # What could not be read before a resume is not tried again: the same clips as without it.
            known = {i: self.state.unreadable.get(item.id) for i, item in enumerate(items)}
            feeder.bad |= {i: VideoError(text) for i, text in known.items() if text is not None}
            saved = time.monotonic()
            with _stop_requests(self.here) as stop:
                if state.step == plan.steps_per_epoch:  # stopped between an epoch and its validation
                    self._freeze_for(state.epoch)
                    self._end_epoch(pool)
                    self._save()
                for epoch, step, forwards in feeder.steps(
                    state.epoch, state.step, self.recipe.epochs, self.here.rank
                ):
                    self._freeze_for(epoch)
                    factor = lr_factor(state.done, total, self.recipe.warmup_epochs * plan.steps_per_epoch)
                    set_lr(self.optimizer, self.groups, factor)
                    loss = self._step(epoch, step, forwards)
                    del forwards
                    state.done += 1
                    state.epoch, state.step = epoch, step + 1
                    self._log(factor)
                    speed.tick(plan.size(step))
                    if progress is not None and self.here.is_first:
                        progress(self._progress(loss, factor, speed, total))
                    ended = state.step == plan.steps_per_epoch
                    enough = max_steps is not None and state.done - first >= max_steps
                    asked_to_stop = self._agree(stop.is_set())
                    every = self.asked.save_every
                    waited = time.monotonic() - saved
                    if ended and not asked_to_stop:
                        if every or waited > SAVE_BEFORE_VALIDATION:
                            self._save()
                        if progress is not None and self.here.is_first:
                            progress(replace(self._progress(loss, factor, speed, total), phase="validation"))
                        self._end_epoch(pool)
                        speed.pause()
                    due = state.done % every == 0 if every else waited > SAVE_SECONDS
                    if ended or enough or asked_to_stop or due:
                        self._save()
                        saved = time.monotonic()
                    if asked_to_stop or (enough and state.done < total):
                        break
        return Finetuned(
            out=self.run.folder,
            best=self.run.best,
            complete=state.done >= total and state.epoch == self.recipe.epochs,
            epochs=state.done / plan.steps_per_epoch,
            steps=state.done,
            best_top1=state.best_top1,
            best_epoch=state.best_epoch,
            last_top1=state.last_top1,
            val_failed=state.val_failed,
            unreadable=dict(state.unreadable),
            classes=len(self.splits.labels),
            seconds=time.monotonic() - begin,
            interrupted=stop.is_set(),
        )

    def _agree(self, here: bool) -> bool:
        """Whether any rank says so: all ranks must do the same."""
        if self.here.world == 1:
            return here
        return bool(sum_over_ranks(torch.tensor([float(here)], device=self.device), self.here).item())

    def _freeze_for(self, epoch: int) -> None:
        """Freeze what the recipe freezes in this epoch; DistributedDataParallel must know what trains."""
        until = self.recipe.unfreeze_epoch
        thawed = until is not None and epoch >= until
        frozen = -1 if thawed else self.recipe.frozen_stages(len(self.model.config.depths))
        if frozen != self.frozen:
            freeze(self.model, frozen)
            self.frozen = frozen
            self.optimizer.zero_grad(set_to_none=True)
            if self.here.world > 1:
                self.parallel = nn.parallel.DistributedDataParallel(self.model)

    def _step(self, epoch: int, step: int, forwards: Sequence[Sequence[Sample]]) -> float:
        """One update; the mean loss over the clips of all ranks. Raises before it if that is not finite."""
        here, count = self.here, self.plan.size(step)
        torch.manual_seed(seed_of("step", self.asked.seed, epoch, step, here.rank))
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(4, dtype=torch.float64)
        suspects: list[str] = []
        for number, samples in enumerate(forwards):
            last = number == len(forwards) - 1
            if not samples and here.world == 1:
                continue
            # Gradients are summed over the ranks once, with the last forward of the step.
            with nullcontext() if last or self.parallel is None else self.parallel.no_sync():
                losses, hits = self._losses(samples)
                # DistributedDataParallel divides by the ranks; the loss is a mean over all clips of the step.
                (losses.sum() * (here.world / count)).backward()
            if samples:
                sums += torch.tensor([float(losses.detach().sum()), float(hits), len(samples), 0.0])
                finite = losses.detach().isfinite().tolist()
                suspects += [s.item.id for s, good in zip(samples, finite, strict=True) if not good]
        failed = {item.id: error.message for f in forwards for s in f for item, error in s.failed}
        failed = {k: v for k, v in failed.items() if k not in self.state.unreadable}
        sums[3] = len(failed)
        sums = sum_over_ranks(sums.to(self.device, torch.float32), here).double().cpu()
        if sums[3]:
            self._count_unreadable(failed)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        loss = float(sums[0]) / count
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            self._stop_at_nonfinite(loss, float(norm), suspects, forwards)
        self.optimizer.step()
        for i in range(3):
            self.state.window[i] += float(sums[i])
        return loss

    def _losses(self, samples: Sequence[Sample]) -> tuple[Tensor, int]:
        """Loss of each clip (B,) and how many are right."""
        forward = self.parallel or self.model
        if not samples:
            # This rank has no clip left in the epoch's last step, but its gradients are waited for.
            side, frames = self.recipe.augmentation.size, self.recipe.augmentation.frames
            empty = torch.zeros(1, 3, frames, side, side, device=self.device)
            return forward(empty).float().sum()[None] * 0.0, 0
        clips = to_clips([s.clip.frames for s in samples], self.device, torch.float32)
        labels = torch.tensor([s.item.label for s in samples], device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.asked.amp == "bf16"):
            logits = forward(clips)
        logits = logits.float()
        losses = F.cross_entropy(
            logits, labels, label_smoothing=self.recipe.label_smoothing, reduction="none"
        )
        return losses, int((logits.detach().argmax(1) == labels).sum())

    def _stop_at_nonfinite(
        self, loss: float, norm: float, suspects: list[str], forwards: Sequence[Sequence[Sample]]
    ) -> None:
        """Save what was good until now, and raise ModelOutputError with the videos of the batch."""
        mine = suspects or [s.item.id for f in forwards for s in f]
        everyone = [i for ids in gather(mine, self.here) for i in ids]
        self._save()
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradients is {norm}"
        raise ModelOutputError(
            f"{what} in step {self.state.done + 1}; training stopped before the update. Videos of the batch: "
            + ", ".join(everyone[:8])
            + (f" and {len(everyone) - 8} more" if len(everyone) > 8 else ""),
            f"the last good state is in {self.run.folder}; try a smaller --lr or --clip-grad, or --amp off, "
            "in a new run",
        )

    def _count_unreadable(self, mine: Mapping[str, str]) -> None:
        """Add the videos that could not be read on any rank. Raises DataError where they are too many."""
        new = {k: v for found in gather(dict(mine), self.here) for k, v in found.items()}
        new = {k: v for k, v in new.items() if k not in self.state.unreadable}
        self.state.unreadable |= new
        if self.here.is_first:
            for name, message in new.items():
                row = {"step": self.state.done + 1, "id": name, "error": message}
                self.run.append(self.run.unreadable, row)
        count, total = len(self.state.unreadable), len(self.splits.train.items)
        if self._too_many_unreadable():
            self._save()
            first = "; ".join(list(self.state.unreadable.values())[:3])
            raise DataError(
                f"{count} of {total} training videos cannot be read, more than "
                f"{UNREADABLE_SHARE:.0%}: {first}",
                f"all are listed in {self.run.unreadable}; put good files in their places, then --resume",
            )

    def _too_many_unreadable(self) -> bool:
        return len(self.state.unreadable) > UNREADABLE_SHARE * len(self.splits.train.items)

    def _log(self, factor: float) -> None:
        """A line in metrics.jsonl, some fifty times an epoch."""
        state, per_epoch = self.state, self.plan.steps_per_epoch
        every = max(1, per_epoch // LOGS_PER_EPOCH)
        if state.done % every and state.step != per_epoch:
            return
        total, hits, clips = state.window
        state.window = [0.0, 0.0, 0.0]
        if self.here.is_first:
            row = {
                "step": state.done,
                "epoch": round(state.done / per_epoch, 6),
                "loss": total / clips,
                "top1": 100 * hits / clips,
                "lr": self.recipe.lr * factor,
            }
            self.run.append(self.run.metrics, row)

    def _progress(self, loss: float, factor: float, speed: _Speed, total: int) -> TrainProgress:
        state, per_epoch = self.state, self.plan.steps_per_epoch
        left = (total - state.done) * len(self.splits.train.items) / per_epoch
        return TrainProgress(
            epoch=state.done / per_epoch,
            epochs=self.recipe.epochs,
            step=state.done,
            steps=total,
            loss=loss,
            lr=self.recipe.lr * factor,
            clips_per_second=speed.rate,
            eta_seconds=left / speed.rate if speed.rate else math.inf,
            val_top1=state.last_top1,
            unreadable=len(state.unreadable),
        )

    # ---------------------------------------------------------------------------------- validation

    def _dry_run(self, pool: DecodePool) -> None:
        """Validate two batches before the first step, so that what is broken fails now."""
        items = self.splits.val.items
        count = min(len(items), DRY_BATCHES * self.recipe.batch_size * self.here.world)
        chosen = [items[i * len(items) // count] for i in range(count)]  # from all over the set
        result = self._validate(pool, chosen)
        if not result.evaluated:
            raise DataError(
                f"none of the first {count} validation videos can be read: "
                + "; ".join(list(result.failed.values())[:3]),
                "repair or replace the validation set",
            )

    def _validate(self, pool: DecodePool, items: Sequence[Item]) -> Validation:
        self.model.eval()
        result = validate(self.model, items, self.val_protocol, pool, self.workers + 1, self.here)
        freeze(self.model, -1 if self.frozen is None else self.frozen)  # back to training
        return result

    def _end_epoch(self, pool: DecodePool) -> None:
        """Validate, and keep the weights if they are the best so far."""
        state, items = self.state, self.splits.val.items
        result = self._validate(pool, items)
        if not result.evaluated:
            raise DataError("no validation video can be read any more", "check the disk; then --resume")
        state.epoch, state.step = state.epoch + 1, 0
        state.last_top1, state.val_failed = result.top1, len(result.failed)
        better = state.best_top1 is None or (result.top1, -result.loss) > (state.best_top1, -state.best_loss)
        if better:
            state.best_top1, state.best_loss, state.best_epoch = result.top1, result.loss, state.epoch
        if not self.here.is_first:
            return
        row = {
            "step": state.done,
            "epoch": state.epoch,
            "val_top1": result.top1,
            "val_top5": result.top5,
            "val_loss": result.loss,
            "val_evaluated": result.evaluated,
            "val_failed": len(result.failed),
            "val_views": f"{self.val_protocol.clips}x{self.val_protocol.crops}",
            "best": better,
        }
        self.run.append(self.run.metrics, row)
        if better:
            self._save_best(result)
        draw_curves(self.run.folder / "curves.png", read_rows(self.run.metrics))

    def _save_best(self, result: Validation) -> None:
        save_native(
            self.run.best,
            self.model.state_dict(),
            self.model.config,
            labels=self.splits.labels,
            protocol=self.protocol,
            source={
                **self.start.source,
                "finetuned": {
                    "recipe": self.recipe.name,
                    "epoch": self.state.epoch,
                    "val_top1": result.top1,
                    "val_views": f"{self.val_protocol.clips}x{self.val_protocol.crops}",
                    "val_videos": result.evaluated,
                    "seed": self.asked.seed,
                },
            },
        )
        self.run.save_probabilities(result.probabilities)

    def _save(self) -> None:
        if self.here.is_first:
            save_state(self.run.last, self.model.state_dict(), self.optimizer, self.names, asdict(self.state))

    def _info(self) -> RunInfo:
        dataset_notes = [f"train: {n}" for n in self.splits.train.notes]
        dataset_notes += [f"val: {n}" for n in self.splits.val.notes]
        return RunInfo(
            out=self.run.folder,
            start=self.start,
            splits=self.splits,
            recipe=self.recipe,
            groups=tuple(self.groups),
            plan=self.plan,
            protocol=self.protocol,
            val_protocol=self.val_protocol,
            keeps_head=self.keeps_head,
            device=str(self.device),
            amp=self.asked.amp,
            workers=self.workers,
            done_steps=self.state.done,
            notes=(*self.start.notes, *self.splits.notes, *dataset_notes),
        )


class _Speed:
    """Clips per second, smoothed over some twenty steps; pauses do not count."""

    def __init__(self) -> None:
        self.rate = 0.0
        self._last: float | None = None

    def tick(self, clips: int) -> None:
        now = time.monotonic()
        if self._last is not None:
            rate = clips / max(1e-9, now - self._last)
            self.rate = rate if not self.rate else 0.95 * self.rate + 0.05 * rate
        self._last = now

    def pause(self) -> None:
        self._last = None


@contextmanager
def _stop_requests(here: Place) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, so that a step is finished and the state saved; the
    second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(_number: int, _frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        if here.world > 1 and hasattr(signal, "alarm"):
            signal.alarm(STOP_SECONDS)

    old = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        if here.world > 1 and hasattr(signal, "alarm"):
            signal.alarm(0)
        for number, handler in old.items():
            signal.signal(number, handler)


def _start(asked: Settings) -> Start:
    if asked.weights is not None:
        if asked.variant is not None or asked.config is not None:
            raise UsageError("--variant and --config are for random weights; leave them out with --weights")
        return start_from_weights(asked.weights, asked.window, dialect=asked.dialect, ignore=asked.ignore)
    return start_from_nothing(asked.variant, _path(asked.config), asked.window)


def _digest(items: Sequence[Item]) -> str:
    return hashlib.sha256("".join(f"{i.id}\t{i.label}\n" for i in items).encode()).hexdigest()


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
