"""Building blocks of the energy nets. No normalization layers: an energy must not couple the samples of a batch."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


def maybe_spectral(layer: nn.Module, on: bool) -> nn.Module:
    """The layer with its weight divided by its largest singular value (Miyato et al., 2018) if `on`."""
    return spectral_norm(layer) if on else layer


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    """Transformer position embedding of level indices t (B,) as (B, dim), dim even (Ho et al., 2020)."""
    rates = torch.exp(torch.arange(dim // 2, device=t.device) * (-math.log(10_000) / (dim // 2 - 1)))
    angles = t.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


leaky = partial(F.leaky_relu, negative_slope=0.2)  # DRL's activation


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding, dense, leaky ReLU, dense: t (B,) to (B, out) (DRL, Table 4d)."""

    def __init__(self, dim: int, out: int, spectral: bool = True):
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"width = {dim}: the time embedding allows even widths of at least 4")
        self.dim = dim
        self.first = maybe_spectral(nn.Linear(dim, out), spectral)
        self.second = maybe_spectral(nn.Linear(out, out), spectral)

    def forward(self, t: Tensor) -> Tensor:
        return self.second(leaky(self.first(sinusoidal(t, self.dim).to(self.first.bias.dtype))))


class ChannelScale(nn.Module):
    """A learned factor a channel, 0 at the start, for the paper's second convolution at zero.

    Spectral normalization cannot divide a zero weight.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.reshape(1, -1, *[1] * (x.ndim - 2))


class ResBlock(nn.Module):
    """Two convolutions (dense layers for dim = 0) around a shortcut, the time added after the first (DRL, Table 4e).

    (B, inner, *S) and a shift (B, outer) to (B, outer, *S); the shortcut is linear where the widths differ.
    """

    def __init__(self, inner: int, outer: int, embedding: int, dim: int = 2, spectral: bool = True, act=leaky):
        super().__init__()
        self.act = act

        def layer(i: int, o: int, kernel: int = 3) -> nn.Module:
            plain = nn.Conv2d(i, o, kernel, padding=kernel // 2) if dim else nn.Linear(i, o)
            return maybe_spectral(plain, spectral)

        self.first, self.second = layer(inner, outer), layer(outer, outer)
        self.time = maybe_spectral(nn.Linear(embedding, outer), spectral)
        self.scale = ChannelScale(outer)
        self.shortcut = layer(inner, outer, 1) if inner != outer else nn.Identity()

    def shift(self, temb: Tensor) -> Tensor:
        """What the block adds for the time embedding temb (B, embedding): (B, outer). It does not depend on x."""
        return self.time(leaky(temb))

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        h = self.first(self.act(x))
        h = h + shift.reshape(*shift.shape, *[1] * (h.ndim - 2))
        return self.shortcut(x) + self.scale(self.second(self.act(h)))


def parameter_count(net: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def channels_last(net: nn.Module) -> nn.Module:
    """The net with convolution weights in channels-last layout, which is faster on the CPU and on tensor cores."""
    return net.to(memory_format=torch.channels_last)
