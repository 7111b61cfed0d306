"""Make a checkpoint to train from: a small Video Swin whose first layers see motion before any training.

With the usual random numbers such a model stays at chance for thousands of clips, because a direction of
motion is in no single weight: it takes products of filters. So the patch embedding begins as waves that
travel through space and time, in pairs a quarter of a period apart, and the first MLP as the sum of the
pair's magnitudes: the motion energy of Adelson and Bergen (1985). All of it is then trained as usual.

Run: python examples/camera_motion/start.py start.safetensors
"""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from vswin_cli.checkpoints.files import save_native
from vswin_cli.config import ModelConfig
from vswin_cli.model import Block, Stage, VideoSwin

CONFIG = ModelConfig(
    embed_dim=40,
    depths=(2, 2, 2, 1),
    num_heads=(2, 4, 8, 8),
    window=(4, 4, 4),
    patch=(4, 8, 8),
    num_classes=9,
)


def waves(count: int, patch: tuple[int, int, int]) -> Tensor:
    """(count, 3, T, H, W): pairs of waves under a Gaussian; four directions, moving, still, moving back."""
    t, h, w = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in patch)
    t, y, x = t[:, None, None], h[:, None] / patch[1], w / patch[2]
    window = torch.exp(-0.5 * ((x / 0.38) ** 2 + (y / 0.38) ** 2))
    rows = []
    angles = (0.0, math.pi / 2, math.pi / 4, 3 * math.pi / 4)
    kinds = itertools.cycle(itertools.product((1.0, 1.7), (-1, 1, 0), angles))
    for cycles, way, angle in itertools.islice(kinds, (count + 1) // 2):
        along = x * math.cos(angle) + y * math.sin(angle)
        phase = 2 * math.pi * (cycles * along + 0.8 * way * t / patch[0])
        for wave in (torch.cos(phase), torch.sin(phase)):
            row = wave * window
            row = row - row.mean()
            rows.append(row / row.norm())
    return torch.stack(rows[:count])[:, None].expand(-1, 3, -1, -1, -1) / 3


@torch.no_grad()
def start(config: ModelConfig = CONFIG, steepness: float = 1.5) -> VideoSwin:
    """A model that turns waves into motion energy, and is random after that."""
    model = VideoSwin(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "head":
            # 0.02 is made for hundreds of channels; here it would leave the GELUs next to linear.
            gain = 0.3 if name.endswith(("attn.proj", "mlp.fc2")) else 1.0
            nn.init.normal_(module.weight, std=gain * module.in_features**-0.5)
    model.patch_embed.proj.weight.copy_(waves(config.embed_dim, config.patch))
    assert model.patch_embed.proj.bias is not None
    nn.init.zeros_(model.patch_embed.proj.bias)
    stage = model.layers[0]
    assert isinstance(stage, Stage)
    block, dim = stage.blocks[0], config.embed_dim
    assert isinstance(block, Block)
    block.attn.proj.weight.mul_(0.1)
    first, second, one = block.mlp.fc1.weight, block.mlp.fc2.weight, torch.eye(dim)
    # Two hidden units for each wave: gelu(x) + gelu(-x) is about |x|, gelu(x) - gelu(-x) is x.
    first[: 2 * dim] = steepness * torch.cat([one, -one])
    pair = torch.zeros(dim, dim)
    for i in range(0, dim - 1, 2):
        pair[i, i : i + 2] = 1
    second[:, : 2 * dim] = torch.cat([pair - 0.8 * one, pair + 0.8 * one], 1) / steepness
    second[:, 2 * dim :] *= 0.3
    return model


def main(path: Path) -> None:
    """Write the checkpoint."""
    torch.manual_seed(0)
    model = start()
    save_native(
        path,
        model.state_dict(),
        model.config,
        labels=None,
        protocol=None,
        source={"made by": Path(__file__).name},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "start.safetensors"))
