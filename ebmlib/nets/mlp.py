"""Fully connected energies: x (B, dim) -> (B,), or (x, t) -> (B,) for a net with noise levels."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmlib.core import Energy
from ebmlib.nets.blocks import ResBlock, TimeEmbedding, maybe_spectral


class MLP(nn.Module):
    """Fully connected energy with `depth` hidden layers of `width` and swish: x (B, dim) to (B,).

    Coordinates are multiplied by `gain` first, as in `TimeMLP`. With `box`, each unit of the first layer turns at a
    random point of the box |x_i| <= box: PyTorch's small biases would have them all turn within 1 / gain of the origin.
    """

    def __init__(
        self, dim: int = 2, width: int = 128, depth: int = 3,
        spectral: bool = False, gain: float = 1.0, box: float | None = None,
    ):  # fmt: skip
        super().__init__()
        self.gain = gain
        widths = [dim, *[width] * depth, 1]
        self.layers = nn.ModuleList(maybe_spectral(nn.Linear(i, o), spectral) for i, o in pairwise(widths))
        if box is not None:
            weight, bias = self.layers[0].weight.detach(), self.layers[0].bias
            points = box * (2 * torch.rand(weight.shape) - 1)  # (width, dim), one for each unit
            with torch.no_grad():
                bias.copy_(-gain * (weight * points).sum(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.gain * x
        for layer in self.layers[:-1]:
            x = F.silu(layer(x))
        return self.layers[-1](x).squeeze(1)

    @classmethod
    def spread(cls, box: float, steep: float, **options) -> "MLP":
        """A net of these options whose first layer starts `steep` times as steep and turns all over |x_i| <= box."""
        net = cls(**options)
        weight, bias = net.layers[0].weight, net.layers[0].bias
        with torch.no_grad():
            weight.mul_(steep)
            bias.copy_(-(weight * box * (2 * torch.rand(weight.shape) - 1)).sum(1))
        return net

    def grad_laplacian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """grad E (B, dim) and the Laplacian of E (B,) in one forward pass.

        Every layer carries h, dh/dx_i and h's Laplacian; h = s(z) gives
        s'(z) dz_i and s'' sum_i dz_i^2 + s' lap z. Differentiable.
        """
        count, dim = x.shape
        eye = self.gain * torch.eye(dim, dtype=x.dtype, device=x.device)
        value, lap = self.gain * x, torch.zeros_like(x)
        slopes = eye[:, None].expand(dim, count, dim)
        for k, layer in enumerate(self.layers):
            carried = torch.cat([value[None], slopes, lap[None]])
            rows = F.linear(carried, layer.weight)  # (dim + 2, B, width)
            z, slopes, lap = rows[0] + layer.bias, rows[1:-1], rows[-1]
            if k == len(self.layers) - 1:
                break
            s = z.sigmoid()
            first = s * (1 + z * (1 - s))
            second = s * (1 - s) * (2 + z * (1 - 2 * s))
            lap = second * slopes.square().sum(0) + first * lap
            value, slopes = z * s, first * slopes
        return slopes.squeeze(2).T, lap.squeeze(1)


class TimeMLP(nn.Module):
    """The 2D twin of DRL's net: dense residual blocks of widths width x multipliers, x (B, dim) and t (B,) to (B,).

    Coordinates are multiplied by `gain` first: a net learns edges that are narrow against its input range slowly.
    """

    def __init__(
        self, dim: int = 2, width: int = 128, multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 1, spectral: bool = True, gain: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.gain = gain
        self.embed = TimeEmbedding(width, width, spectral)
        self.stem = maybe_spectral(nn.Linear(dim, width), spectral)
        widths = [width, *(width * m for m in multipliers for _ in range(blocks))]
        self.body = nn.ModuleList(ResBlock(i, o, width, 0, spectral, F.silu) for i, o in pairwise(widths))
        self.head = maybe_spectral(nn.Linear(widths[-1], 1), spectral)

    def at(self, t: Tensor) -> Energy:
        """The energy x (B, dim) -> (B,) at fixed levels t (B,); what depends on t alone is computed once."""
        temb = self.embed(t)
        shifts = [block.shift(temb) for block in self.body]

        def energy(x: Tensor) -> Tensor:
            h = self.stem(self.gain * x)
            for block, shift in zip(self.body, shifts):
                h = block(h, shift)
            return self.head(F.silu(h)).squeeze(1)

        return energy

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.at(t)(x)
