"""DRL's energy net for images with noise levels: (x, t) -> (B,)."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmlib.core import Energy
from ebmlib.nets.blocks import ResBlock, TimeEmbedding, leaky, maybe_spectral

HEADS = ("time", "dense")
PRECISIONS = ("float32", "bfloat16")
STEMS = {1: (3, 1, 1), 2: (4, 2, 1)}  # kernel, stride and padding of the first convolution


def cascade(channels: int, scales: int = 1, stem: int = 1, **shape: Any) -> nn.ModuleList:
    """Nets for `recovery.coarse_to_fine`, smallest images first; `shape` is `TimeWideResNet`'s.

    Each net after the first sees 4 * channels: an image and the details that double it. `stem` is that of the first.
    """
    details = (TimeWideResNet(4 * channels, **shape) for _ in range(scales - 1))
    return nn.ModuleList([TimeWideResNet(channels, stem=stem, **shape), *details])


class TimeWideResNet(nn.Module):
    """DRL's energy net (Table 4): 3x3 convolution, N blocks a resolution, average pooling, ReLU, spatial sum, a number.

    x (B, channels, H, W) and t (B,) to (B,). head "dense" is the paper's Dense 1; "time" is the released code's inner
    product with a dense layer of the time embedding. stem 2 halves the sides in the first convolution (4x4, stride 2),
    a deviation at a quarter of the cost. precision "bfloat16" autocasts the body in evaluation mode, where chains run:
    the loss is a small difference of large energies and stays in float32.
    """

    def __init__(
        self, channels: int = 3, width: int = 128, multipliers: Sequence[int] = (1, 2, 2, 2), blocks: int = 5,
        head: str = "time", spectral: bool = True, precision: str = "float32", stem: int = 1,
    ):  # fmt: skip
        super().__init__()
        for name, given, allowed in (
            ("precision", precision, PRECISIONS),
            ("head", head, HEADS),
            ("stem", stem, STEMS),
        ):
            if given not in allowed:
                raise ValueError(f"{name} = {given!r}: allowed are {', '.join(map(repr, allowed))}")
        self.precision, self.parts = getattr(torch, precision), stem * 2 ** (len(multipliers) - 1)
        embedding = 4 * width
        self.embed = TimeEmbedding(width, embedding, spectral)
        self.stem = maybe_spectral(nn.Conv2d(channels, width, *STEMS[stem]), spectral)
        self.stages = nn.ModuleList()
        for inner, outer in pairwise([width, *(width * m for m in multipliers)]):
            widths = pairwise([inner, *[outer] * blocks])
            self.stages.append(nn.ModuleList(ResBlock(i, o, embedding, 2, spectral) for i, o in widths))
        self.by_time = head == "time"
        self.head = maybe_spectral(nn.Linear(embedding, outer) if self.by_time else nn.Linear(outer, 1), spectral)

    def at(self, t: Tensor) -> Energy:
        """The energy x (B, channels, H, W) -> (B,) at fixed levels t (B,); what depends on t alone is computed once."""
        temb = self.embed(t)
        shifts = [[block.shift(temb) for block in stage] for stage in self.stages]
        weight = self.head(leaky(temb)) if self.by_time else None
        rounded = self.precision is torch.bfloat16 and not self.training

        def energy(x: Tensor) -> Tensor:
            if x.shape[-2] % self.parts or x.shape[-1] % self.parts:  # pooling would drop the last rows without a word
                raise ValueError(
                    f"images of {x.shape[-2]} x {x.shape[-1]}: both sides must be divisible by {self.parts}"
                )
            # Not `enabled=rounded`: a disabled autocast would switch off that of the engine.
            with torch.autocast(x.device.type, torch.bfloat16) if rounded else nullcontext():
                h = self.stem(x.contiguous(memory_format=torch.channels_last))
                for n, stage in enumerate(self.stages):
                    h = F.avg_pool2d(h, 2) if n else h
                    for block, shift in zip(stage, shifts[n], strict=True):
                        h = block(h, shift)
            # The sum runs in float32 at least: the energy differences that matter are small against it.
            h = F.relu(h).to(torch.promote_types(h.dtype, torch.float32)).sum((2, 3))  # (B, inner)
            return self.head(h).squeeze(1) if weight is None else (h * weight).sum(1)

        return energy

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.at(t)(x)
