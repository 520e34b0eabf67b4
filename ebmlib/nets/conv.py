"""The self-adversarial paper's plain convolutional energy: images (B, C, H, W) -> (B,)."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


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
