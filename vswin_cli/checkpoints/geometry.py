"""The geometry of a Swin and the shapes of its parameters, one from the other. Never imports torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from vswin_cli.config import ModelConfig, Window
from vswin_cli.errors import DialectError, MismatchError, UsageError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

MAX_TABLE_ROWS = 10**6  # window (8,12,12) has 7,935


def native_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every native parameter of a model and its shape, in the model's order."""
    c0, (pt, ph, pw) = config.embed_dim, config.patch
    shapes: dict[str, Shape] = {
        "patch_embed.proj.weight": (c0, 3, pt, ph, pw),
        "patch_embed.proj.bias": (c0,),
        "patch_embed.norm.weight": (c0,),
        "patch_embed.norm.bias": (c0,),
    }
    for i, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        c, hidden = config.stage_dim(i), int(config.stage_dim(i) * config.mlp_ratio)
        rows = math.prod(2 * w - 1 for w in config.stage_window(i))
        for j in range(depth):
            b = f"layers.{i}.blocks.{j}."
            shapes |= {
                b + "norm1.weight": (c,),
                b + "norm1.bias": (c,),
                b + "attn.relative_position_bias_table": (rows, heads),
                b + "attn.qkv.weight": (3 * c, c),
                b + "attn.qkv.bias": (3 * c,),
                b + "attn.proj.weight": (c, c),
                b + "attn.proj.bias": (c,),
                b + "norm2.weight": (c,),
                b + "norm2.bias": (c,),
                b + "mlp.fc1.weight": (hidden, c),
                b + "mlp.fc1.bias": (hidden,),
                b + "mlp.fc2.weight": (c, hidden),
                b + "mlp.fc2.bias": (c,),
            }
        if i < len(config.depths) - 1:
            d = f"layers.{i}.downsample."
            shapes |= {
                d + "norm.weight": (4 * c,),
                d + "norm.bias": (4 * c,),
                d + "reduction.weight": (2 * c, 4 * c),
            }
    shapes |= {"norm.weight": (config.num_features,), "norm.bias": (config.num_features,)}
    if config.num_classes:
        shapes |= {
            "head.weight": (config.num_classes, config.num_features),
            "head.bias": (config.num_classes,),
        }
    return shapes


def infer_config(
    shapes: Shapes, window_tokens: Mapping[int, int] | None = None, window: Window | None = None
) -> ModelConfig:
    """Geometry of a model from its native shapes.

    ``window_tokens`` are the window's tokens per stage, where the file has an index buffer;
    ``window`` is the user's word for it. Raises MismatchError where the shapes are no Swin's, or
    DialectError where several windows fit the bias tables.
    """
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        if match := re.fullmatch(r"layers\.([0-9]{1,4})\.blocks\.([0-9]{1,4})\..*", name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    for i in range(len(blocks)):
        if blocks.get(i) != set(range(len(blocks.get(i, ())))):
            raise MismatchError(
                f"blocks of stage {i} are not numbered 0, 1, 2, ...: {sorted(blocks.get(i, ()))}"
            )
    depths = tuple(len(blocks[i]) for i in range(len(blocks)))
    try:
        patch_shape = shapes["patch_embed.proj.weight"]
        tables = [
            shapes[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(len(depths))
        ]
        hidden, dim = shapes["layers.0.blocks.0.mlp.fc1.weight"]
    except KeyError as error:
        raise MismatchError(f"the file has no {error.args[0]}, or what it is made from") from None
    except ValueError:
        raise MismatchError("layers.0.blocks.0.mlp.fc1.weight is not a matrix") from None
    if len(patch_shape) != 5 or any(len(t) != 2 for t in tables) or dim < 1:
        raise MismatchError(
            f"patch weight {patch_shape} or bias tables {tables} do not have the shapes of a Swin"
        )
    flat = patch_shape[2] == 1
    windows = [
        _window(rows, flat, (window_tokens or {}).get(i), window, i) for i, (rows, _) in enumerate(tables)
    ]
    largest = max(windows, key=math.prod)
    head = shapes.get("head.weight")
    try:
        return ModelConfig(
            embed_dim=patch_shape[0],
            depths=depths,
            num_heads=tuple(heads for _, heads in tables),
            window=largest,
            patch=(patch_shape[2], patch_shape[3], patch_shape[4]),
            num_classes=head[0] if head else 0,
            mlp_ratio=hidden / dim,
            stage_windows=None if len(set(windows)) == 1 else tuple(windows),
        )
    except UsageError as error:
        raise MismatchError(f"the shapes are no Swin's: {error.message}") from error


def _window(rows: int, flat: bool, tokens: int | None, given: Window | None, stage: int) -> Window:
    """The window whose bias table has that many rows (and that many tokens, where known)."""
    if given is not None:
        if math.prod(2 * w - 1 for w in given) == rows:
            return given
        raise DialectError(
            f"--window {','.join(map(str, given))} needs bias tables of "
            f"{math.prod(2 * w - 1 for w in given)} rows; stage {stage} has {rows}"
        )
    if not 0 < rows <= MAX_TABLE_ROWS:
        raise MismatchError(f"stage {stage} has a bias table of {rows} rows")
    odd = [n for n in range(1, rows + 1, 2) if rows % n == 0]
    fits = [
        ((d + 1) // 2, (h + 1) // 2, (rows // d // h + 1) // 2)
        for d in ([1] if flat else odd)
        for h in odd
        if rows % 2 and rows // d % h == 0
    ]
    if tokens is not None:
        fits = [f for f in fits if math.prod(f) == tokens]
    square = [f for f in fits if f[1] == f[2]]
    if tokens is None:
        # A spatial window of one token would make any odd table fit.
        square = [f for f in square if f[1] >= 2] or square[:1]
    choice = square or fits
    if len(choice) == 1:
        return choice[0]
    if not choice:
        raise MismatchError(
            f"no window has a bias table of {rows} rows"
            + (f" and {tokens} tokens" if tokens else "")
            + f" (stage {stage})"
        )
    raise DialectError(
        f"several windows fit a bias table of {rows} rows (stage {stage}): "
        + "; ".join(",".join(map(str, f)) for f in choice),
        "name the right one, for example --window " + ",".join(map(str, choice[0])),
    )
