"""vswin finetune: train a model on labelled videos."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from vswin_cli.cli import options, output, publishing
from vswin_cli.cli.weights import bring

if TYPE_CHECKING:
    from vswin_cli.engine.finetune import Finetuned, RunInfo, TrainProgress

PLAIN_SECONDS = 30  # between two progress lines where stderr is no terminal


def finetune(
    out: Annotated[Path, typer.Option(help="Folder of the run: state, best weights, metrics.")],
    data: Annotated[
        Optional[Path], typer.Option(help="Folder with train/ and val/ in it, or the one of the lists.")
    ] = None,
    weights: options.Weights = None,
    variant: Annotated[Optional[str], typer.Option(help="Random weights: T, S, B or L.")] = None,
    config: Annotated[
        Optional[Path], typer.Option(help="Random weights: JSON with embed_dim, depths, num_heads, window.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    recipe: Annotated[Optional[str], typer.Option(help="k400 (default), ssv2 or small.")] = None,
    train_list: Annotated[
        Optional[Path], typer.Option(help="List of the training videos, in a format that eval reads.")
    ] = None,
    val_list: Annotated[Optional[Path], typer.Option(help="List of the validation videos.")] = None,
    labels: Annotated[
        Optional[Path], typer.Option(help="Class names, one a line, for lists that only number them.")
    ] = None,
    skip_missing: Annotated[
        Optional[bool], typer.Option("--skip-missing", help="Leave out listed videos that are not there.")
    ] = None,
    epochs: Annotated[Optional[int], typer.Option(min=1)] = None,
    batch_size: Annotated[
        Optional[int], typer.Option(min=1, help="Clips in one forward of one process.")
    ] = None,
    accumulate: Annotated[Optional[int], typer.Option(min=1, help="Forwards per step.")] = None,
    lr: Annotated[
        Optional[float],
        typer.Option(help="Peak of the head, as it is. Default: the recipe's, scaled with the batch."),
    ] = None,
    backbone_lr_mult: Annotated[
        Optional[float], typer.Option(help="Backbone's learning rate in units of the head's.")
    ] = None,
    weight_decay: Annotated[Optional[float], typer.Option()] = None,
    warmup_epochs: Annotated[Optional[float], typer.Option()] = None,
    drop_path: Annotated[Optional[float], typer.Option(help="Stochastic depth of the last block.")] = None,
    head_dropout: Annotated[Optional[float], typer.Option()] = None,
    label_smoothing: Annotated[Optional[float], typer.Option()] = None,
    clip_grad: Annotated[Optional[float], typer.Option(help="Largest norm of the gradients.")] = None,
    frames: options.Frames = None,
    interval: options.Interval = None,
    size: options.Size = None,
    crop_area: Annotated[
        Optional[float], typer.Option(help="Least share of the frame in a random crop; 1 crops the centre.")
    ] = None,
    flip: Annotated[Optional[float], typer.Option(help="Probability of mirroring a clip.")] = None,
    force_flip: Annotated[
        Optional[bool], typer.Option("--force-flip", help="Mirror although class names speak of sides.")
    ] = None,
    freeze: Annotated[Optional[str], typer.Option(help="none, backbone or stages:N.")] = None,
    unfreeze_epoch: Annotated[
        Optional[int], typer.Option(min=0, help="First epoch that trains everything.")
    ] = None,
    amp: Annotated[Optional[str], typer.Option(help="bf16 or off (default).")] = None,
    grad_checkpointing: Annotated[
        Optional[bool], typer.Option("--grad-checkpointing", help="Less memory, more time.")
    ] = None,
    window: options.Window = None,
    dialect: options.Dialect = None,
    ignore: options.Ignore = None,
    views: options.Views = None,
    val_views: Annotated[
        Optional[str], typer.Option(metavar="CxK", help="Views of the validation. Default: 1x1.")
    ] = None,
    seed: Annotated[
        Optional[int], typer.Option(help="Of weights, order and augmentation. Default: 0.")
    ] = None,
    save_every: Annotated[
        Optional[int], typer.Option(min=1, help="Steps between saved states. Default: 10 minutes.")
    ] = None,
    max_steps: Annotated[
        Optional[int], typer.Option(min=1, help="Stop after so many steps; --resume goes on.")
    ] = None,
    device: Annotated[Optional[str], typer.Option(help="auto (default), cpu, cuda, cuda:1 or mps.")] = None,
    workers: options.Workers = None,
    timeout: Annotated[
        Optional[float], typer.Option(min=0.1, help="Seconds that decoding one video may take.")
    ] = None,
    push: publishing.Push = None,
    save_dir: publishing.SaveDir = None,
    insecure: options.Insecure = False,
    json: options.Json = False,
) -> None:
    """Train on your videos from 2D or 3D weights, by the paper's recipe. Survives being killed: --resume."""
    settings: dict[str, Any] = {
        "variant": variant,
        "config": _text(config),
        "train_list": _text(train_list),
        "val_list": _text(val_list),
        "labels": _text(labels),
        "skip_missing": skip_missing,
        "recipe": recipe,
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "lr": lr,
        "backbone_lr_mult": backbone_lr_mult,
        "weight_decay": weight_decay,
        "warmup_epochs": warmup_epochs,
        "drop_path": drop_path,
        "head_dropout": head_dropout,
        "label_smoothing": label_smoothing,
        "clip_grad": clip_grad,
        "frames": frames,
        "interval": interval,
        "size": size,
        "crop_area": crop_area,
        "flip": flip,
        "force_flip": force_flip,
        "freeze": freeze,
        "unfreeze_epoch": unfreeze_epoch,
        "amp": amp,
        "grad_checkpointing": grad_checkpointing,
        "window": options.parse_window(window),
        "dialect": dialect,
        "ignore": tuple(ignore) if ignore else None,
        "views": views,
        "val_views": val_views,
        "seed": seed,
        "save_every": save_every,
        "device": device,
        "workers": workers,
        "timeout": timeout,
    }
    publishing.check(push, save_dir, out, force=False)
    bring(weights, insecure)
    from vswin_cli.engine.finetune import finetune as run

    line = _ProgressLine()
    try:
        result = run(
            data,
            weights,
            out=out,
            resume=resume,
            max_steps=max_steps,
            progress=line.show,
            started=_announce,
            **settings,
        )
    except KeyboardInterrupt:
        line.end()
        if (out / "config.json").exists():
            output.say(f"go on from the last saved state: vswin finetune --out {out} --resume")
        raise
    finally:
        line.end()
    from vswin_cli.engine.distributed import place

    if place().is_first:
        if not json:
            _show(result)
        hub = publishing.publish(result.best, push, save_dir, out) if result.complete else {}
        if json:
            output.print_json({**result.to_json(), **({"hub": hub} if hub else {})})
    if result.interrupted:
        raise typer.Exit(130)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _announce(info: RunInfo) -> None:
    """What the run is going to do: on stderr, as talk."""
    console = output.err()
    splits, recipe, clip = info.splits, info.recipe, info.recipe.augmentation
    start = info.start.source
    how = {True: "kept", False: "new"}[info.keeps_head]
    spread = "spread over the video" if clip.sampling == "uniform" else f"every {clip.interval}"
    rows = [
        ("start", f"{start['name']} ({start['dialect']}), classifier {how}"),
        ("train", f"{splits.train.root} ({splits.train.layout}), {len(splits.train.items)} videos"),
        ("val", f"{splits.val.root} ({splits.val.layout}), {len(splits.val.items)} videos"),
        ("classes", f"{len(splits.labels)}: {', '.join(splits.labels)[:80]}"),
        (
            "recipe",
            f"{recipe.name}: {recipe.epochs} epochs of {info.plan.steps_per_epoch} steps, "
            f"{info.plan.clips_per_step} clips a step "
            f"({info.plan.per_rank} x {info.plan.accumulate} forwards x {info.plan.world} processes), "
            f"drop path {recipe.drop_path:g}, freeze {recipe.freeze}"
            + (f" until epoch {recipe.unfreeze_epoch}" if recipe.unfreeze_epoch is not None else ""),
        ),
        (
            "clips",
            f"{clip.frames} frames {spread}, {clip.size} px, crop area {clip.crop_area:g}..1, "
            f"flip {clip.flip:g}"
            + (f", RandAugment {clip.rand_augment}" if clip.rand_augment else "")
            + (f", erasing {clip.erase:g}" if clip.erase else ""),
        ),
        ("validation", info.val_protocol.describe()),
        ("tested with", f"{info.protocol.name}: {info.protocol.describe()}"),
        (
            "runs on",
            f"{info.device}, bf16 autocast {info.amp}, {info.workers} workers; results in {info.out}",
        ),
    ]
    console.print(output.table(("finetune", ""), rows))
    console.print(
        output.table(
            ("parameters", "tensors", "numbers", "peak lr", "weight decay"),
            [
                (g.name, str(len(g.parameters)), f"{g.numbers:,}", f"{g.lr:.3g}", f"{g.weight_decay:g}")
                for g in info.groups
            ],
            "01111",
        )
    )
    for note in info.notes:
        output.say(f"note: {note}")
    if info.done_steps:
        output.say(f"going on after step {info.done_steps}")


class _ProgressLine:
    """One line on stderr: rewritten in a terminal, every 30 s elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.shown = time.monotonic() - PLAIN_SECONDS
        self.val: float | None = None

    def show(self, now: TrainProgress) -> None:
        new = now.val_top1 != self.val
        if not self.live and not new and time.monotonic() - self.shown < PLAIN_SECONDS:
            return
        self.shown, self.val = time.monotonic(), now.val_top1
        parts = [
            f"epoch {now.epoch:.2f}/{now.epochs}",
            f"step {now.step}/{now.steps}",
            f"loss {now.loss:.4f}",
            f"lr {now.lr:.2e}",
            f"{now.clips_per_second:.1f} clips/s",
            f"ETA {output.clock(now.eta_seconds)}",
        ]
        if now.val_top1 is not None:
            parts.append(f"val Top-1 {now.val_top1:.2f}")
        if now.unreadable:
            parts.append(f"{now.unreadable} unreadable")
        if now.phase != "training":
            parts.append(now.phase)
        output.progress(", ".join(parts), self.live)

    def end(self) -> None:
        output.end_progress()


def _show(result: Finetuned) -> None:
    console = output.out()
    rows = [
        ("epochs", f"{result.epochs:.2f}"),
        ("steps", str(result.steps)),
        (
            "best validation Top-1",
            "-" if result.best_top1 is None else f"{result.best_top1:.2f} % after epoch {result.best_epoch}",
        ),
        ("last validation Top-1", "-" if result.last_top1 is None else f"{result.last_top1:.2f} %"),
        ("unreadable videos", f"{len(result.unreadable)} for training, {result.val_failed} for validation"),
        ("time", output.clock(result.seconds)),
        ("results", str(result.out)),
    ]
    console.print(output.table(("trained" if result.complete else "stopped", ""), rows))
    if result.complete:
        console.print(f"next: vswin predict VIDEO --weights {result.best}", markup=False, soft_wrap=True)
    else:
        console.print(f"next: vswin finetune --out {result.out} --resume", markup=False, soft_wrap=True)
