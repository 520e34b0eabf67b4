"""Energy nets: modules (B, *S) -> (B,), or (x, t) -> (B,) for a net with noise levels; low = likely."""

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmlib.core import Energy
from ebmlib.nets.blocks import ResBlock, TimeEmbedding, leaky, maybe_spectral

HEADS = ("time", "dense")
PRECISIONS = ("float32", "bfloat16")


class MLP(nn.Module):
    """Fully connected energy with `depth` hidden layers of `width` and swish: x (B, dim) to (B,).

    Coordinates are multiplied by `gain` first, as in `TimeMLP`. With `box`, each unit of the first layer turns at a
    random point of the box |x_i| <= box: PyTorch's small biases would have them all turn within 1 / gain of the origin.
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        depth: int = 3,
        spectral: bool = False,
        gain: float = 1.0,
        box: float | None = None,
    ):
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

    def grad_laplacian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """grad E (B, dim) and the Laplacian of E (B,) in one forward pass; differentiable in the weights and in x.

        Every layer carries h, dh/dx_i and h's Laplacian; h = s(z) gives s'(z) dz_i and s'' sum_i dz_i^2 + s' lap z.
        """
        count, dim = x.shape
        eye = self.gain * torch.eye(dim, dtype=x.dtype, device=x.device)
        value, slopes, lap = self.gain * x, eye[:, None].expand(dim, count, dim), torch.zeros_like(x)
        for k, layer in enumerate(self.layers):
            rows = F.linear(torch.cat([value[None], slopes, lap[None]]), layer.weight)  # (dim + 2, B, width)
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
        self,
        dim: int = 2,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 1,
        spectral: bool = True,
        gain: float = 1.0,
    ):
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


class TimeWideResNet(nn.Module):
    """DRL's energy net (Table 4): 3x3 convolution, N blocks a resolution, average pooling, ReLU, spatial sum, a number.

    x (B, channels, H, W) and t (B,) to (B,). head "dense" is the paper's Dense 1; "time" is the released code's inner
    product with a dense layer of the time embedding. precision "bfloat16" autocasts the body in evaluation mode, where
    chains run. The loss is a small difference of large energies and stays in float32: rounded, its gradient at DRL's
    level 0 points elsewhere. H and W must be divisible by 2^(len(multipliers) - 1).
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 5,
        head: str = "time",
        spectral: bool = True,
        precision: str = "float32",
    ):
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision = {precision!r}: allowed are {', '.join(map(repr, PRECISIONS))}")
        self.precision = getattr(torch, precision)
        if head not in HEADS:
            raise ValueError(f"head = {head!r}: allowed are {', '.join(map(repr, HEADS))}")
        embedding = 4 * width
        self.embed = TimeEmbedding(width, embedding, spectral)
        self.stem = maybe_spectral(nn.Conv2d(channels, width, 3, padding=1), spectral)
        stages, inner = [], width
        for m in multipliers:
            outer = width * m
            stages.append(
                nn.ModuleList(
                    ResBlock(inner if n == 0 else outer, outer, embedding, 2, spectral) for n in range(blocks)
                )
            )
            inner = outer
        self.stages = nn.ModuleList(stages)
        outputs = 1 if head == "dense" else inner
        self.head = maybe_spectral(nn.Linear(inner if head == "dense" else embedding, outputs), spectral)
        self.by_time = head == "time"

    def at(self, t: Tensor) -> Energy:
        """The energy x (B, channels, H, W) -> (B,) at fixed levels t (B,); what depends on t alone is computed once."""
        temb = self.embed(t)
        shifts = [[block.shift(temb) for block in stage] for stage in self.stages]
        weight = self.head(leaky(temb)) if self.by_time else None
        parts = 2 ** (len(self.stages) - 1)
        rounded = self.precision is torch.bfloat16 and not self.training

        def energy(x: Tensor) -> Tensor:
            if x.shape[-2] % parts or x.shape[-1] % parts:  # pooling would drop the last rows without a word
                raise ValueError(f"images of {x.shape[-2]} x {x.shape[-1]}: both sides must be divisible by {parts}")
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


class ConvNet(nn.Module):
    """The self-adversarial paper's plain net (Table 2): a 3x3 convolution, 4x4 convolutions of stride 2, a number.

    x (B, channels, size, size) to (B,). The widths are filters x multipliers: (1, 2, 2, 2) for MNIST and Fashion-MNIST
    and (1, 2, 4, 8) for CIFAR-10 at 32 pixels, (1, 2, 4, 8, 16) for CelebA at 64. Swish after every convolution; no
    normalization. ValueError for a size that the strides do not divide.
    """

    def __init__(self, channels: int = 1, size: int = 32, filters: int = 32, multipliers: Sequence[int] = (1, 2, 2, 2)):
        super().__init__()
        parts = 2 ** (len(multipliers) - 1)
        if size % parts:
            raise ValueError(f"size = {size}: {len(multipliers) - 1} strides of 2 need a multiple of {parts}")
        self.shape = (channels, size, size)
        widths = [filters * m for m in multipliers]
        strided = (nn.Conv2d(inner, outer, 4, 2, padding=1) for inner, outer in pairwise(widths))
        self.body = nn.ModuleList([nn.Conv2d(channels, widths[0], 3, padding=1), *strided])
        self.head = nn.Linear(widths[-1] * (size // parts) ** 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape:
            raise ValueError(f"this net takes images of shape {self.shape}; got {tuple(x.shape[1:])}")
        for layer in self.body:
            x = F.silu(layer(x))
        return self.head(x.flatten(1)).squeeze(1)


class FromRGB(nn.Module):
    """Image to features: swish of a 3x3 convolution, (B, channels, H, W) to (B, outer, H, W)."""

    def __init__(self, channels: int, outer: int, spectral: bool, padding: str):
        super().__init__()
        self.conv = maybe_spectral(nn.Conv2d(channels, outer, 3, padding=1, padding_mode=padding), spectral)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(x))


class Primal(nn.Module):
    """Two 3x3 convolutions, the second with stride 2, and a shortcut, one convolution and pooling; sum / sqrt(2).

    (B, inner, H, W) to (B, outer, H/2, W/2); swish after each of the two. Source: CF-EBM, Appendix A.1; the
    shortcut's convolution and the sqrt(2) as in the released code.
    """

    def __init__(self, inner: int, outer: int, spectral: bool, padding: str):
        super().__init__()
        self.first = maybe_spectral(nn.Conv2d(inner, outer, 3, padding=1, padding_mode=padding), spectral)
        self.second = maybe_spectral(nn.Conv2d(outer, outer, 3, 2, padding=1, padding_mode=padding), spectral)
        self.shortcut = maybe_spectral(nn.Conv2d(inner, outer, 1), spectral)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.second(F.silu(self.first(x))))
        return (h + self.shortcut(F.avg_pool2d(x, 2))) / math.sqrt(2)  # a 1x1 convolution and a mean may be swapped


class Fade(nn.Module):
    """What stands in for a new Primal while it is faded in: a 3x3 convolution and pooling (CF-EBM, section 3.2)."""

    def __init__(self, inner: int, outer: int, spectral: bool, padding: str):
        super().__init__()
        self.conv = maybe_spectral(nn.Conv2d(inner, outer, 3, padding=1, padding_mode=padding), spectral)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(x), 2)


class GrowingNet(nn.Module):
    """CF-EBM's energy (Table 6): FromRGB, a Primal for each halving down to 4 x 4, two convolutions to 1 x 1, a number.

    x (B, channels, size, size) to (B,), size 4, 8, 16, ...; features(r) = width min(4, 128 / r) at r pixels, width is
    the paper's c. A grown net's bottom block is beta Primal + (1 - beta) Fade; `beta` is a plain attribute.
    """

    def __init__(
        self, size: int = 8, channels: int = 3, width: int = 32, spectral: bool = True, padding: str = "zeros"
    ):
        super().__init__()
        if size < 4 or size & (size - 1):
            raise ValueError(f"size = {size}: a growing net allows 4, 8, 16, 32, ...")
        self.size, self.channels, self.width = size, channels, width
        self.options = (spectral, padding)
        self.beta = 1.0
        self.fade: Fade | None = None
        self.from_rgb = FromRGB(channels, self.features(size), *self.options)
        self.primal = nn.ModuleDict()  # the key is the resolution that comes in
        for n in range(size.bit_length() - 3):
            self._add_primal(8 << n)
        top = self.features(4)
        self.wide = maybe_spectral(nn.Conv2d(top, top, 3, padding=1, padding_mode=padding), spectral)
        self.last = maybe_spectral(nn.Conv2d(top, top, 4), spectral)
        self.head = maybe_spectral(nn.Linear(top, 1), spectral)

    def features(self, size: int) -> int:
        """Channels at a resolution (Table 6: 4c up to 32 pixels, 2c at 64, c at 128)."""
        return max(1, min(4 * self.width, 128 * self.width // size))

    def _add_primal(self, size: int) -> None:
        self.primal[str(size)] = Primal(self.features(size), self.features(size // 2), *self.options)

    def grow(self) -> "GrowingNet":
        """A net for twice the size: a copy with a new Primal, a new Fade and a new FromRGB, all random, at beta = 0.

        Everything else is copied bit for bit, and the new net is ready to train. This one stays as it is: it is the
        coarse sampler with its old FromRGB.
        """
        fine = copy.deepcopy(self)
        fine.size, fine.beta = 2 * self.size, 0.0
        fine._add_primal(fine.size)
        fine.fade = Fade(self.features(fine.size), self.features(self.size), *self.options)
        fine.from_rgb = FromRGB(self.channels, self.features(fine.size), *self.options)
        like = self.head.bias
        return fine.to(like.device, like.dtype).train().requires_grad_(True)

    def expand(self, h: Tensor) -> Tensor:
        """The bottom block: beta Primal(h) + (1 - beta) Fade(h) (section 3.2); what has no weight is not computed."""
        if self.fade is None or self.beta == 1:
            return self.primal[str(self.size)](h)
        if self.beta == 0:
            return self.fade(h)
        return self.beta * self.primal[str(self.size)](h) + (1 - self.beta) * self.fade(h)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (self.channels, self.size, self.size):
            shape = (self.channels, self.size, self.size)
            raise ValueError(f"this net takes images of shape {shape}; got {tuple(x.shape[1:])}")
        h = self.from_rgb(x)
        for size in range(self.size.bit_length() - 1, 2, -1):
            h = self.expand(h) if 1 << size == self.size else self.primal[str(1 << size)](h)
        h = F.silu(self.last(F.silu(self.wide(h))))  # (B, features, 1, 1)
        return self.head(h.flatten(1)).squeeze(1)


def parameter_count(net: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def channels_last(net: nn.Module) -> nn.Module:
    """The net with convolution weights in channels-last layout, which is faster on the CPU and on tensor cores."""
    return net.to(memory_format=torch.channels_last)
