"""Video Swin Transformer in one file; the 2D Swin is the case of one frame.

Source: "Video Swin Transformer" (Liu et al., CVPR 2022), sections 3.1-3.3, and the official code,
mmaction/models/backbones/swin_transformer.py, whose numbers this file reproduces in all sizes,
oddities included. Parameter names are the official ones.

How it is made fast:

- Tokens stay (B, L, C) through a stage. Cyclic shift, padding and window partition are one
  precomputed gather, and their inverse another; no roll, no permuted copies.
- Windows are ordered so that those with the same attention mask are neighbours (there are at most
  eight kinds: first or last window along each axis). Each kind is one scaled_dot_product_attention
  with a (1, heads, N, N) bias, so a mask per window is never built.
- Bias + mask are cached between forwards without gradients (:class:`BiasCache`).
- Training on a CPU keeps no attention matrix (:class:`_LeanAttention`).
- Patch embedding and merging are a reshape and a linear layer.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from vswin_cli.config import ModelConfig, ViewProtocol, Window
from vswin_cli.errors import ModelInputError

Size = tuple[int, int, int]  # tokens (or pixels) along time, height, width

MASKED = -100.0  # added to the attention of tokens that are no neighbours; official value
CACHE_BYTES = 512 * 2**20  # default bound of the bias cache of one model
CPU_CHUNK_ROWS = 4096  # rows of one step on a CPU, so that its intermediates stay in the cache
CHECKPOINT_ROWS = 2**13  # rows of the MLP that gradient checkpointing computes anew at a time
CPU_CHUNK_SCORES = 2**20  # the same in the backward pass of attention: scores (window, head, query, key)


# ------------------------------------------------------------------------------------------------
# Geometry: which token sits in which window


def fit_window(size: Size, window: Window, shifted: bool) -> tuple[Window, Window]:
    """Window and shift for a grid of ``size`` tokens (official get_window_size).

    Along an axis that is not longer than the window, the window shrinks to it and nothing shifts.
    """
    fitted = tuple(min(s, w) for s, w in zip(size, window, strict=True))
    shift = tuple(w // 2 if shifted and s > w else 0 for s, w in zip(size, window, strict=True))
    return fitted, shift  # type: ignore[return-value]


def relative_position_index(window: Window) -> Tensor:
    """Row of the bias table for each pair of tokens of a window: (N, N) int64, N = D*H*W.

    Time is the slowest axis of the table, which has (2D-1)(2H-1)(2W-1) rows.
    """
    grid = torch.stack(torch.meshgrid(*(torch.arange(w) for w in window), indexing="ij")).flatten(1)
    offset = grid[:, :, None] - grid[:, None, :]
    index = torch.zeros_like(offset[0])
    for axis, w in enumerate(window):
        index = index * (2 * w - 1) + offset[axis] + (w - 1)
    return index


@dataclass(frozen=True)
class Run:
    """Neighbouring windows first..end of a layout that share a mask.

    kind:   bit set of the axes along which the windows are the last ones
    region: (N,) region of each token; None where all tokens see each other
    """

    first: int
    end: int
    kind: int
    region: Tensor | None

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """(N, N) additive mask: 0 within a region, -100 across; None for no mask."""
        if self.region is None:
            return None
        apart = self.region[:, None] != self.region[None, :]
        return torch.zeros(apart.shape, dtype=dtype, device=apart.device).masked_fill_(apart, MASKED)


@dataclass(frozen=True)
class Layout:
    """How B grids of L tokens are cut into windows of N tokens, in order of their mask.

    gather:  (B*windows*N,) row of the flattened (B*L, C) tokens for each window slot;
             B*L, a row of zeros, where the window reaches into the padding
    inverse: (B*L,) window slot of each token
    runs:    one for each kind of mask that occurs
    """

    window: Window
    shift: Window
    gather: Tensor
    inverse: Tensor
    runs: tuple[Run, ...]
    padded: bool

    @classmethod
    def build(cls, batch: int, size: Size, window: Window, shift: Window, device: torch.device) -> Layout:
        """Compute the layout on the CPU and move it to ``device``."""
        depth, height, width = (math.ceil(s / w) * w for s, w in zip(size, window, strict=True))
        padded = (depth, height, width)
        length = math.prod(size)
        # Row of the token that lands at each place of the padded, shifted grid.
        rows = torch.full(padded, -1, dtype=torch.long)
        rows[: size[0], : size[1], : size[2]] = torch.arange(length).view(size)
        rows = torch.roll(rows, tuple(-s for s in shift), (0, 1, 2))
        regions, kinds = cls._regions(padded, window, shift)

        order = torch.argsort(kinds, stable=True)
        slots = _to_windows(rows, window)[order]  # (windows, N)
        region = _to_windows(regions, window)[order]
        gather, runs, first = [], [], 0
        for kind, count in zip(*torch.unique(kinds, return_counts=True), strict=True):
            n = int(count)
            part = slots[first : first + n]
            for b in range(batch):
                gather.append(torch.where(part < 0, batch * length, part + b * length).flatten())
            cut = region[first].to(device) if kind else None
            runs.append(Run(batch * first, batch * (first + n), int(kind), cut))
            first += n
        flat = torch.cat(gather)
        inverse = torch.empty(batch * length + 1, dtype=torch.long)
        inverse[flat] = torch.arange(flat.numel())
        return cls(
            window=window,
            shift=shift,
            gather=flat.to(device),
            inverse=inverse[:-1].to(device),
            runs=tuple(runs),
            padded=padded != size,
        )

    @staticmethod
    def _regions(padded: Size, window: Window, shift: Window) -> tuple[Tensor, Tensor]:
        """Region id of each token of the shifted grid, and the kind of mask of each window.

        The official compute_mask cuts each axis at -window and -shift. Only an axis's last window
        holds two regions, so the set of axes along which a window is last tells its mask.
        """
        regions = torch.zeros(padded, dtype=torch.long)
        kinds = torch.zeros(tuple(p // w for p, w in zip(padded, window, strict=True)), dtype=torch.long)
        for axis in range(3):
            p, w, s = padded[axis], window[axis], shift[axis]
            line = torch.zeros(p, dtype=torch.long)
            last = torch.zeros(p // w, dtype=torch.long)
            if s:
                line[p - w : p - s] = 1
                line[p - s :] = 2
                last[-1] = 1
            shape = [1, 1, 1]
            shape[axis] = -1
            regions = regions * 3 + line.view(shape)
            kinds = kinds * 2 + last.view(shape)
        return regions, kinds.flatten()

    @property
    def tokens(self) -> int:
        """N, tokens per window."""
        return math.prod(self.window)

    @property
    def nbytes(self) -> int:
        """Bytes of the index tensors."""
        return (self.gather.numel() + self.inverse.numel()) * 8


def _to_windows(grid: Tensor, window: Window) -> Tensor:
    """(D, H, W) -> (windows, N), windows and their tokens in raster order."""
    d, h, w = (g // n for g, n in zip(grid.shape, window, strict=True))
    blocks = grid.view(d, window[0], h, window[1], w, window[2])
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(d * h * w, math.prod(window))


class BiasCache:
    """Layouts and attention biases of one model, bounded in bytes, safe to keep while weights change.

    Biases are derived from the bias tables. The cache keeps a copy of the tables that it was
    filled from and compares it with the model's once per forward, so whatever changed them
    (an optimizer, load_state_dict, ``.data``, a NumPy view, ``.to``), a stale bias is never used.
    When full, biases of other input sizes make room; what still does not fit is computed anew
    each time. The cache is neither copied nor pickled with the model.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.nbytes = 0
        self._entries: dict[Hashable, tuple[Hashable, int, Any]] = {}
        self._geometry: Hashable = None
        self._tables: Tensor | None = None
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: dict[int, Any]) -> BiasCache:
        return BiasCache(self.limit)

    def __reduce__(self) -> tuple[type[BiasCache], tuple[int]]:
        return BiasCache, (self.limit,)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._tables = None
            self.nbytes = 0

    def begin(self, geometry: Hashable) -> None:
        """Name the geometry of the forward that begins: what belongs to others may be dropped for it."""
        self._geometry = geometry

    def refresh(self, tables: Sequence[Tensor]) -> None:
        """Drop everything if the tables have changed."""
        current = torch.cat([t.detach().flatten() for t in tables])
        with self._lock:
            known = self._tables
            if (
                known is None
                or known.shape != current.shape
                or known.dtype != current.dtype
                or known.device != current.device
                or not torch.equal(known, current)
            ):
                self.clear()
                self._tables = current

    def get(self, key: Hashable) -> Any:
        """The value stored under ``key``, or None."""
        entry = self._entries.get(key)
        return None if entry is None else entry[2]

    def put(self, key: Hashable, nbytes: int, value: Any) -> None:
        """Keep ``value`` if it fits, at the cost of other geometries but never of the current one."""
        with self._lock:
            if key in self._entries:
                return
            if self.nbytes + nbytes > self.limit:
                for old in [k for k, e in self._entries.items() if e[0] != self._geometry]:
                    self.nbytes -= self._entries.pop(old)[1]
            if self.nbytes + nbytes <= self.limit:
                self._entries[key] = (self._geometry, nbytes, value)
                self.nbytes += nbytes


@contextmanager
def _plain_cpu() -> Iterator[None]:
    """Where index tensors are made: on the CPU whatever the caller's default device, and outside of
    inference mode, whose tensors could not be saved for a later backward pass."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield


@dataclass(frozen=True)
class _Pass:
    """What every block of one forward shares: batch, whether biases are cached, the cache."""

    batch: int
    geometry: Hashable
    cache: BiasCache
    cached: bool

    def layout(self, size: Size, window: Window, shift: Window, device: torch.device) -> Layout:
        key = ("layout", self.batch, size, window, shift, device)
        layout: Layout | None = self.cache.get(key)
        if layout is None:
            with _plain_cpu():
                layout = Layout.build(self.batch, size, window, shift, device)
            self.cache.put(key, layout.nbytes, layout)
        return layout

    def index(self, window: Window, tokens: int, device: torch.device) -> Tensor:
        key = ("index", window, tokens, device)
        index: Tensor | None = self.cache.get(key)
        if index is None:
            with _plain_cpu():
                # [:N, :N] is what the official code does where the window has shrunk: exact in
                # time, a slice of the wrong rows in height and width. Kept for parity.
                index = relative_position_index(window)[:tokens, :tokens].flatten().to(device)
            self.cache.put(key, index.numel() * 8, index)
        return index


# ------------------------------------------------------------------------------------------------
# Layers


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch per sample and scale the rest up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> the same shape."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * x.new_empty(shape).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def _by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply what works token by token to (B, L, C); without gradients on a CPU, some rows at a time."""
    rows = x.view(-1, x.shape[-1])
    if torch.is_grad_enabled() or x.device.type != "cpu":
        out = function(rows)
    else:
        out = torch.cat([function(part) for part in torch.split(rows, CPU_CHUNK_ROWS)])
    return out.view(*x.shape[:-1], -1)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


def _attention(qkv: Tensor, bias: Tensor) -> Tensor:
    """qkv (windows, N, 3, heads, C/heads), bias (1, heads, N, N) -> (windows, N, C)."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


class _LeanAttention(torch.autograd.Function):
    """:func:`_attention` for training on a CPU, where no fused kernel has a gradient of the bias.

    Without it PyTorch keeps several tensors of (windows, heads, N, N). This keeps the input only;
    the backward pass computes attention anew, some windows at a time, in the processor's caches.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(qkv, bias)
        return _attention(qkv, bias.detach())  # detached: the fused kernel

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        qkv, bias = ctx.saved_tensors
        wide = torch.promote_types(qkv.dtype, torch.float32)  # half precision is for what is kept
        scale = qkv.shape[-1] ** -0.5
        grad = grad.unflatten(2, qkv.shape[3:])
        grad_qkv, grad_bias = torch.empty_like(qkv), torch.zeros_like(bias, dtype=wide)
        step = max(1, CPU_CHUNK_SCORES // bias.numel())
        for first in range(0, len(qkv), step):
            some = slice(first, first + step)
            q, k, v = qkv[some].permute(2, 0, 3, 1, 4).to(wide).contiguous().unbind(0)
            g = grad[some].transpose(1, 2).to(wide).contiguous()
            q = q * scale
            p = (q @ k.mT).add_(bias).softmax(-1)
            # With p = softmax(s) and d = dL/dp: dL/ds = p * d - p * sum(p * d).
            s = (g @ v.mT).mul_(p)
            s.addcmul_(p, s.sum(-1, keepdim=True), value=-1)
            grad_bias += s.sum(0, keepdim=True)
            out = grad_qkv[some].permute(2, 0, 3, 1, 4)
            out[0] = (s @ k).mul_(scale)
            out[1] = s.mT @ q
            out[2] = p.mT @ g
        return grad_qkv, grad_bias


class WindowAttention(nn.Module):
    """Multi-head self-attention within 3D windows, with relative position bias (paper, eq. 3)."""

    def __init__(self, dim: int, heads: int, window: Window) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        rows = math.prod(2 * w - 1 for w in window)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, layout: Layout, state: _Pass) -> Tensor:
        """Normalised tokens (B, L, C) -> attended tokens (B, L, C), before the residual."""
        batch, length, dim = x.shape
        rows = x.reshape(batch * length, dim)
        if layout.padded:
            # Padding is zero after norm1 and is attended to, as in the official code.
            rows = torch.cat([rows, rows.new_zeros(1, dim)])
        n = layout.tokens
        attended = torch.cat(
            [
                self.attend(
                    rows.index_select(0, layout.gather[run.first * n : run.end * n]), run, layout, state
                )
                for run in layout.runs
            ]
        )
        # proj works token by token: undo the partition first, and spare the padding.
        out: Tensor = self.proj(attended.index_select(0, layout.inverse))
        return out.view(batch, length, dim)

    def attend(self, windows: Tensor, run: Run, layout: Layout, state: _Pass) -> Tensor:
        """Attention within some windows of a run, (windows*N, C) -> the same shape, before proj."""
        n, dim = layout.tokens, windows.shape[1]
        qkv = self.qkv(windows).view(-1, n, 3, self.heads, dim // self.heads)
        bias = self._bias(run, layout, state, qkv.dtype)
        lean = torch.is_grad_enabled() and qkv.device.type == "cpu"
        out: Tensor = _LeanAttention.apply(qkv, bias) if lean else _attention(qkv, bias)  # type: ignore[no-untyped-call]
        return out.view(-1, dim)

    def _bias(self, run: Run, layout: Layout, state: _Pass, dtype: torch.dtype) -> Tensor:
        """Relative position bias + mask of a run: (1, heads, N, N)."""
        # The mask of a kind follows from window and shift, whatever the size of the grid. The key
        # holds the module itself, not its id, which another module could be given later.
        key = (self, layout.window, layout.shift, run.kind, dtype)
        known: Tensor | None = state.cache.get(key) if state.cached else None
        if known is not None:
            return known
        table, n = self.relative_position_bias_table, layout.tokens
        index = state.index(self.window, n, table.device)
        # Heads first, then the rows: the result is contiguous, with no copy of its size on the way.
        bias = table.t().index_select(1, index).view(1, self.heads, n, n)
        mask = run.mask(table.dtype)
        bias = (bias if mask is None else bias.add_(mask)).to(dtype)
        if state.cached:
            state.cache.put(key, bias.numel() * bias.element_size(), bias)
        return bias


def _forget(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``function(*inputs)``, computed anew in the backward pass instead of kept for it."""
    out: Tensor = checkpoint(function, *inputs, use_reentrant=False)
    return out


class Block(nn.Module):
    """Pre-norm transformer block; every second one shifts its windows by half (paper, eq. 2)."""

    def __init__(
        self, dim: int, heads: int, window: Window, shifted: bool, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.window = window
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.grad_checkpointing = False

    def forward(self, x: Tensor, size: Size, state: _Pass) -> Tensor:
        """(B, L, C) -> (B, L, C) for a grid of ``size`` tokens."""
        window, shift = fit_window(size, self.window, self.shifted)
        layout = state.layout(size, window, shift, x.device)
        plain = self.training or torch.is_grad_enabled() or x.device.type != "cpu"
        if not plain and not self._is_watched():
            return self._forward_in_steps(x, layout, state)
        if self.grad_checkpointing and torch.is_grad_enabled():
            x = x + self.drop_path(_forget(self._attention, x, layout, state))
            # The MLP has the widest tensors; by parts, they do not exist whole in the backward pass either.
            parts = [_forget(self._mlp, rows) for rows in x.flatten(0, 1).split(CHECKPOINT_ROWS)]
            mlp = torch.cat(parts).view_as(x)
        else:
            x = x + self.drop_path(self._attention(x, layout, state))
            mlp = self._mlp(x)
        out: Tensor = x + self.drop_path(mlp)
        return out

    def _attention(self, x: Tensor, layout: Layout, state: _Pass) -> Tensor:
        out: Tensor = self.attn(self.norm1(x), layout, state)
        return out

    def _mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.norm2(x))
        return out

    def _is_watched(self) -> bool:
        """Whether a hook inside the block waits for whole tensors (feature extraction, profilers)."""
        inner = (m for m in self.modules() if m is not self)
        return any(m._forward_hooks or m._forward_pre_hooks for m in inner)

    def _forward_in_steps(self, x: Tensor, layout: Layout, state: _Pass) -> Tensor:
        """The same without gradients on a CPU: a few windows at a time, whose intermediates stay in the
        processor's caches. Every token is in one window, so nothing of the grid's size is needed beside
        the result. The input is left as it is: a hook may have kept it."""
        batch, length, dim = x.shape
        rows = x.reshape(batch * length, dim)
        out = torch.empty_like(rows)
        n = layout.tokens
        step = max(1, CPU_CHUNK_ROWS // n)
        for run in layout.runs:
            for first in range(run.first, run.end, step):
                place = layout.gather[first * n : min(first + step, run.end) * n]
                padding = place == batch * length if layout.padded else None
                part = rows.index_select(0, place if padding is None else place.masked_fill(padding, 0))
                normed = self.norm1(part)
                if padding is not None:
                    normed.masked_fill_(padding[:, None], 0.0)
                part = part + self.attn.proj(self.attn.attend(normed, run, layout, state))
                if padding is not None:
                    part, place = part[~padding], place[~padding]
                out.index_copy_(0, place, part)
        for start in range(0, len(out), CPU_CHUNK_ROWS):
            part = out[start : start + CPU_CHUNK_ROWS]
            part += self.mlp(self.norm2(part))
        return out.view(batch, length, dim)


class PatchMerging(nn.Module):
    """Concatenate 2x2 neighbours in space, normalise, reduce to 2C channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, size: Size) -> tuple[Tensor, Size]:
        """(B, D*H*W, C) -> (B, D*ceil(H/2)*ceil(W/2), 2C) and its size; odd edges are zero-padded."""
        batch, (d, h, w), dim = x.shape[0], size, x.shape[2]
        x = x.view(batch, d, h, w, dim)
        if h % 2 or w % 2:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        size = (d, (h + 1) // 2, (w + 1) // 2)
        x = x.view(batch, d, size[1], 2, size[2], 2, dim)
        # Channel blocks in the order (h, w) = (0,0), (1,0), (0,1), (1,1): width outside, height inside.
        x = x.permute(0, 1, 2, 4, 5, 3, 6).reshape(batch, math.prod(size), 4 * dim)
        return _by_rows(lambda rows: self.reduction(self.norm(rows)), x), size


class Stage(nn.Module):
    """Blocks of one resolution, then patch merging (except after the last stage)."""

    def __init__(self, config: ModelConfig, index: int, drop_path: Sequence[float]) -> None:
        super().__init__()
        dim, heads = config.stage_dim(index), config.num_heads[index]
        self.blocks = nn.ModuleList(
            Block(dim, heads, config.stage_window(index), bool(i % 2), config.mlp_ratio, rate)
            for i, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(dim) if index < len(config.depths) - 1 else None

    def forward(self, x: Tensor, size: Size, state: _Pass) -> tuple[Tensor, Size]:
        """(B, L, C) -> the next stage's tokens and their size."""
        for block in self.blocks:
            x = block(x, size, state)
        return (x, size) if self.downsample is None else self.downsample(x, size)


class PatchEmbed(nn.Module):
    """Non-overlapping patches as a linear layer; ``proj`` keeps the convolution's name and shape."""

    def __init__(self, patch: Size, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv3d(3, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """(B, 3, T, H, W) -> (B, L, C) and the grid (T', H', W'); edges are zero-padded to patches."""
        t, h, w = self.patch
        missing = [-n % p for n, p in zip(x.shape[2:], self.patch, strict=True)]
        if any(missing):
            x = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))
        batch, channels = x.shape[:2]
        size = (x.shape[2] // t, x.shape[3] // h, x.shape[4] // w)
        x = x.view(batch, channels, size[0], t, size[1], h, size[2], w)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, math.prod(size), channels * t * h * w)
        weight, bias = self.proj.weight.flatten(1), self.proj.bias
        return _by_rows(lambda rows: self.norm(F.linear(rows, weight, bias)), x), size


# ------------------------------------------------------------------------------------------------
# The model


class VideoSwin(nn.Module):
    """Swin Transformer over clips (B, 3, T, H, W) of normalised float RGB; logits (B, classes).

    ``labels`` and ``protocol`` travel with the weights and are for the caller; the model does not
    use them. Raises ModelInputError for a clip of the wrong rank or channels.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        drop_path: float = 0.0,
        head_dropout: float = 0.0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        super().__init__()
        self.config = config
        self.labels: tuple[str, ...] | None = None
        self.protocol: ViewProtocol | None = None
        self.bias_cache = BiasCache(cache_bytes)
        self.patch_embed = PatchEmbed(config.patch, config.embed_dim)
        # Rates rise linearly over all blocks, from 0 in the first to drop_path in the last.
        total = sum(config.depths)
        rates = iter([drop_path * i / max(1, total - 1) for i in range(total)])
        self.layers = nn.ModuleList(
            Stage(config, i, list(itertools.islice(rates, depth))) for i, depth in enumerate(config.depths)
        )
        self.norm = nn.LayerNorm(config.num_features)
        self.dropout = nn.Dropout(head_dropout)
        self.head: nn.Module = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.reset_head(config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> logits (B, classes), or pooled features where there is no head."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> features after the final norm, (B, T', H', W', C)."""
        if x.ndim != 5 or x.shape[1] != 3 or 0 in x.shape:
            raise ModelInputError(
                f"a clip has shape (batch, 3, frames, height, width), this one {tuple(x.shape)}",
                "an image is a clip of one frame: image[:, :, None]",
            )
        geometry = (tuple(x.shape), x.device)
        # With gradients the bias must be part of the graph; meta tensors have no values to compare;
        # a compiler cannot trace the comparison.
        cached = self.bias_cache.limit > 0 and not (
            torch.is_grad_enabled() or x.device.type == "meta" or torch.compiler.is_compiling()
        )
        self.bias_cache.begin(geometry)
        if cached:
            self.bias_cache.refresh(self.bias_tables())
        state = _Pass(x.shape[0], geometry, self.bias_cache, cached)
        x, size = self.patch_embed(x)
        for layer in self.layers:
            x, size = layer(x, size, state)
        features: Tensor = self.norm(x)
        return features.view(x.shape[0], *size, x.shape[-1])

    def forward_head(self, features: Tensor) -> Tensor:
        """Features (B, T', H', W', C) -> mean over tokens, dropout, logits (B, classes)."""
        logits: Tensor = self.head(self.dropout(features.mean((1, 2, 3))))
        return logits

    def reset_head(self, num_classes: int, labels: Sequence[str] | None = None) -> None:
        """Replace the classifier by a new one (official init: normal, std 0.01); 0 removes it."""
        reference = self.norm.weight
        self.head = nn.Identity()
        if num_classes:
            head = nn.Linear(
                self.config.num_features, num_classes, device=reference.device, dtype=reference.dtype
            )
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
            self.head = head
        self.config = replace(self.config, num_classes=num_classes)
        self.labels = None if labels is None else tuple(labels)

    def bias_tables(self) -> list[Tensor]:
        """All relative position bias tables, first block first."""
        return [m.relative_position_bias_table for m in self.modules() if isinstance(m, WindowAttention)]

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """Trade time for memory in training: keep little more than block inputs, and recompute the rest."""
        for module in self.modules():
            if isinstance(module, Block):
                module.grad_checkpointing = enabled

    def no_weight_decay(self) -> set[str]:
        """Parameters that official recipes do not decay: all norms and the bias tables."""
        return {
            name
            for name, _ in self.named_parameters()
            if "norm" in name or "relative_position_bias_table" in name
        }
