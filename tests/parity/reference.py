"""A plain, slow Swin in 2D and 3D, written from the facts alone, to check the real one against.

Nothing here is shared with the package under test. test_reference.py anchors it on the golden outputs of the
official code, so that what it says about other geometries can be trusted.
Sources: FACTS 1.0 (merge orders), 1.e (names), 1.i (inflation), 1.j (numeric semantics).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

Size3 = tuple[int, int, int]
Merge = Literal["slices", "unfold"]


def fit_window(size: Size3, window: Size3, shifted: bool) -> tuple[Size3, Size3]:
    """Window and shift for a map of this size: an axis that fits in one window does not shift (FACTS 1.j)."""
    used, shifts = [], []
    for length, extent in zip(size, window, strict=True):
        used.append(min(length, extent))
        shifts.append(extent // 2 if shifted and length > extent else 0)
    return (used[0], used[1], used[2]), (shifts[0], shifts[1], shifts[2])


def relative_index(window: Size3) -> Tensor:
    """(N, N) rows of the bias table, time slowest: (dt*(2Wh-1)+dh)*(2Ww-1)+dw (FACTS 1.e)."""
    depth, height, width = window
    tokens = [(t, y, x) for t in range(depth) for y in range(height) for x in range(width)]
    place = torch.tensor(tokens)
    delta = place[:, None, :] - place[None, :, :]
    dt, dh, dw = delta[..., 0] + depth - 1, delta[..., 1] + height - 1, delta[..., 2] + width - 1
    return (dt * (2 * height - 1) + dh) * (2 * width - 1) + dw


def partition(x: Tensor, window: Size3) -> Tensor:
    """(B, T, H, W, C) -> (B * windows, tokens, C)."""
    b, t, h, w, c = x.shape
    wt, wh, ww = window
    x = x.view(b, t // wt, wt, h // wh, wh, w // ww, ww, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, wt * wh * ww, c)


def unpartition(windows: Tensor, window: Size3, shape: Sequence[int]) -> Tensor:
    """The inverse of partition; shape is the padded (B, T, H, W)."""
    b, t, h, w = shape
    wt, wh, ww = window
    x = windows.view(b, t // wt, h // wh, w // ww, wt, wh, ww, -1)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, t, h, w, -1)


def shift_mask(size: Size3, window: Size3, shift: Size3) -> Tensor:
    """(windows, N, N) of 0 and -100: what the roll brought together stays apart (FACTS 1.j)."""
    region = torch.zeros(size, dtype=torch.long)
    for axis in range(3):
        place = torch.arange(size[axis])
        part = torch.zeros_like(place)
        if shift[axis]:
            part[place >= size[axis] - window[axis]] = 1
            part[place >= size[axis] - shift[axis]] = 2
        region = region * 3 + part.view([-1 if i == axis else 1 for i in range(3)])
    ids = partition(region[None, ..., None], window)[..., 0]
    return torch.where(ids[:, :, None] == ids[:, None, :], 0.0, -100.0)


class Attention(nn.Module):
    """Window attention with a relative position bias, softmax written out."""

    def __init__(self, dim: int, heads: int, window: Size3) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        rows = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, n, dim = x.shape
        per_head = dim // self.heads
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        bias = self.relative_position_bias_table[relative_index(self.window)[:n, :n]]
        outputs = []
        for head in range(self.heads):
            channels = slice(head * per_head, (head + 1) * per_head)
            scores = q[..., channels] @ k[..., channels].transpose(1, 2) * per_head**-0.5
            scores = scores + bias[:, :, head]
            if mask is not None:
                scores = scores + mask.repeat(windows // mask.shape[0], 1, 1)
            scores = (scores - scores.max(dim=-1, keepdim=True).values).exp()
            outputs.append(scores / scores.sum(dim=-1, keepdim=True) @ v[..., channels])
        return cast(Tensor, self.proj(torch.cat(outputs, dim=-1)))


class Mlp(nn.Module):
    """fc1, exact GELU, fc2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return cast(Tensor, self.fc2(x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))))


class Block(nn.Module):
    """One block: padded, shifted window attention, then the MLP, each with its residual."""

    def __init__(self, dim: int, heads: int, window: Size3, shifted: bool) -> None:
        super().__init__()
        self.window = window
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = Attention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim)

    def attend(self, x: Tensor) -> Tensor:
        b, t, h, w, _ = x.shape
        window, shift = fit_window((t, h, w), self.window, self.shifted)
        x = self.norm1(x)
        pad = [-length % extent for length, extent in zip((t, h, w), window, strict=True)]
        x = nn.functional.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
        padded = (x.shape[1], x.shape[2], x.shape[3])
        mask = None
        if any(shift):
            x = torch.roll(x, shifts=[-s for s in shift], dims=(1, 2, 3))
            mask = shift_mask(padded, window, shift)
        x = unpartition(self.attn(partition(x, window), mask), window, (b, *padded))
        if any(shift):
            x = torch.roll(x, shifts=list(shift), dims=(1, 2, 3))
        return x[:, :t, :h, :w]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return cast(Tensor, x + self.mlp(self.norm2(x)))


class Downsample(nn.Module):
    """Patch merging in order A (slices) or B (nn.Unfold) of FACTS 1.0."""

    def __init__(self, dim: int, merge: Merge) -> None:
        super().__init__()
        self.merge = merge
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        if self.merge == "slices":
            corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            x = torch.cat(corners, dim=-1)
        else:
            b, t, h, w, c = x.shape
            maps = x.permute(0, 1, 4, 2, 3).reshape(b * t, c, h, w)
            x = nn.Unfold(kernel_size=2, stride=2)(maps).transpose(1, 2).reshape(b, t, h // 2, w // 2, 4 * c)
        return cast(Tensor, self.reduction(self.norm(x)))


class Stage(nn.Module):
    """Blocks, every second one shifted, and at the end the merging (absent in the last stage)."""

    def __init__(self, dim: int, depth: int, heads: int, window: Size3, merge: Merge | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, window, j % 2 == 1) for j in range(depth))
        if merge is not None:
            self.downsample = Downsample(dim, merge)
        self.merges = merge is not None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.downsample(x)) if self.merges else x


class PatchEmbed(nn.Module):
    """The patch convolution and its norm."""

    def __init__(self, dim: int, patch: Size3) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv3d(3, dim, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        pad = [-length % extent for length, extent in zip(x.shape[2:], self.patch, strict=True)]
        x = self.proj(nn.functional.pad(x, (0, pad[2], 0, pad[1], 0, pad[0])))
        return cast(Tensor, self.norm(x.permute(0, 2, 3, 4, 1)))


class ReferenceSwin(nn.Module):
    """Swin with the official Video-Swin parameter names; a 2D one has a 1 first in window and patch."""

    def __init__(
        self,
        embed_dim: int = 8,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        window: Size3 = (1, 4, 4),
        patch: Size3 = (1, 4, 4),
        num_classes: int = 10,
        merge: Merge = "slices",
        stage_windows: Sequence[Size3] | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.depths = tuple(depths)
        self.num_heads = tuple(num_heads)
        self.window = window
        self.patch = patch
        self.num_classes = num_classes
        self.merge: Merge = merge
        self.stage_windows = tuple(stage_windows) if stage_windows else (window,) * len(self.depths)
        self.patch_embed = PatchEmbed(embed_dim, patch)
        last = len(self.depths) - 1
        self.layers = nn.ModuleList(
            Stage(embed_dim * 2**i, depth, num_heads[i], self.stage_windows[i], merge if i < last else None)
            for i, depth in enumerate(self.depths)
        )
        self.num_features = embed_dim * 2**last
        self.norm = nn.LayerNorm(self.num_features, eps=1e-5)
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes)
        self.eval().requires_grad_(False)

    @property
    def is_2d(self) -> bool:
        return self.patch[0] == 1 and self.window[0] == 1

    def fill(self, seed: int) -> ReferenceSwin:
        """Draw every parameter, biases, norms and bias tables too, large enough for any mistake to show."""
        generator = torch.Generator().manual_seed(seed)
        for name, value in self.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                value.copy_(1.0 + 0.3 * noise)
            elif name.endswith("bias"):
                value.copy_(0.3 * noise)
            elif name.endswith("relative_position_bias_table"):
                value.copy_(noise)
            else:
                value.copy_(noise * 1.5 / math.sqrt(value[0].numel()))
        return self

    def load_2d(self, state: Mapping[str, Tensor]) -> ReferenceSwin:
        """Take a plain 2D state dict (microsoft names, buffers left out)."""
        state = {
            k: v for k, v in state.items() if "relative_position_index" not in k and "attn_mask" not in k
        }
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].unsqueeze(2)
        self.load_state_dict(state)
        return self

    def plain(self) -> dict[str, Tensor]:
        """The parameters by official name; a 2D model's patch convolution is given as a 2D one."""
        state = {k: v.detach().clone() for k, v in self.state_dict().items()}
        if self.is_2d:
            state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].squeeze(2)
        return state

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) or (B, 3, T, H, W) -> (B, T', H', W', C) after the final norm."""
        if x.dim() == 4:
            x = x.unsqueeze(2)
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        return cast(Tensor, self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits: mean over time and space, then the head."""
        features = self.forward_features(x).mean(dim=(1, 2, 3))
        return cast(Tensor, self.head(features)) if self.num_classes else features


def inflate_like_official(
    sd2d: Mapping[str, Tensor],
    window3d: Size3,
    patch_frames: int = 2,
    spatial_window: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """What the official inflate_weights makes of a plain 2D state dict, without buffers and head (FACTS 1.i).

    spatial_window is the (height, width) window that tables are resized to; by default that of window3d.
    """
    height, width = spatial_window or window3d[1:]
    rows, columns = 2 * height - 1, 2 * width - 1
    inflated: dict[str, Tensor] = {}
    for name, value in sd2d.items():
        if "relative_position_index" in name or "attn_mask" in name or name.startswith("head."):
            continue
        if name == "patch_embed.proj.weight":
            value = value.unsqueeze(2).repeat(1, 1, patch_frames, 1, 1) / patch_frames
        elif name.endswith("relative_position_bias_table"):
            length, heads = value.shape
            side = math.isqrt(length)
            if length != rows * columns:
                image = value.permute(1, 0).reshape(1, heads, side, side)
                image = nn.functional.interpolate(image, size=(rows, columns), mode="bicubic")
                value = image.reshape(heads, rows * columns).permute(1, 0)
            value = value.repeat(2 * window3d[0] - 1, 1)
        inflated[name] = value.clone().contiguous()
    return inflated
