"""CF-EBM's growing energy net and its blocks: images (B, C, H, W) -> (B,)."""

import copy
import math
from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from ebmlib.nets.blocks import maybe_spectral


def _conv(inner: int, outer: int, spectral: bool, padding: str, stride: int = 1) -> nn.Module:
    return maybe_spectral(nn.Conv2d(inner, outer, 3, stride, padding=1, padding_mode=padding), spectral)


def _from_rgb(channels: int, outer: int, *options) -> nn.Module:
    """Image to features: swish of a 3x3 convolution, (B, channels, H, W) to (B, outer, H, W)."""
    return nn.Sequential(OrderedDict(conv=_conv(channels, outer, *options), swish=nn.SiLU()))


def _fade(inner: int, outer: int, *options) -> nn.Module:
    """What stands in for a new Primal while it is faded in: a 3x3 convolution and pooling (CF-EBM, section 3.2)."""
    return nn.Sequential(OrderedDict(conv=_conv(inner, outer, *options), pool=nn.AvgPool2d(2)))


class Primal(nn.Module):
    """Two 3x3 convolutions, the second with stride 2, and a shortcut, one convolution and pooling; sum / sqrt(2).

    (B, inner, H, W) to (B, outer, H/2, W/2); swish after each of the two. Source: CF-EBM, Appendix A.1; the
    shortcut's convolution and the sqrt(2) as in the released code.
    """

    def __init__(self, inner: int, outer: int, spectral: bool, padding: str):
        super().__init__()
        self.first = _conv(inner, outer, spectral, padding)
        self.second = _conv(outer, outer, spectral, padding, stride=2)
        self.shortcut = maybe_spectral(nn.Conv2d(inner, outer, 1), spectral)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.second(F.silu(self.first(x))))
        return (h + self.shortcut(F.avg_pool2d(x, 2))) / math.sqrt(2)  # a 1x1 convolution and a mean may be swapped


class GrowingNet(nn.Module):
    """CF-EBM's energy (Table 6): FromRGB, a Primal for each halving down to 4 x 4, two convolutions to 1 x 1, a number.

    x (B, channels, size, size) to (B,), size 4, 8, 16, ...; `width` is the paper's c. A grown net's bottom block is
    beta Primal + (1 - beta) Fade; `beta` is a plain attribute.
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
        self.fade: nn.Module | None = None
        self.from_rgb = _from_rgb(channels, self.features(size), *self.options)
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
        """A net for twice the size, at beta = 0: this one stays as it is.

        A copy, ready to train, with a new Primal, a new Fade and a new
        FromRGB, all random; everything else is copied bit for bit.
        """
        fine = copy.deepcopy(self)
        fine.size, fine.beta = 2 * self.size, 0.0
        fine._add_primal(fine.size)
        outer = self.features(fine.size)
        fine.fade = _fade(outer, self.features(self.size), *self.options)
        fine.from_rgb = _from_rgb(self.channels, outer, *self.options)
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
        shape = (self.channels, self.size, self.size)
        if x.shape[1:] != shape:
            raise ValueError(f"this net takes images of shape {shape}; got {tuple(x.shape[1:])}")
        h = self.from_rgb(x)
        for size in range(self.size.bit_length() - 1, 2, -1):
            h = self.expand(h) if 1 << size == self.size else self.primal[str(1 << size)](h)
        h = F.silu(self.last(F.silu(self.wide(h))))  # (B, features, 1, 1)
        return self.head(h.flatten(1)).squeeze(1)
