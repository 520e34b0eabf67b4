"""The self-adversarial paper's plain convolutional energy: images (B, C, H, W) -> (B,)."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNet(nn.Module):
    """The self-adversarial paper's net (Table 2) for images, to (B,).

    A 3x3 convolution and 4x4 convolutions of stride 2, all with swish, and a
    dense layer, for x (B, channels, size, size). Widths are filters x
    multipliers: (1, 2, 2, 2) for MNIST and Fashion-MNIST, (1, 2, 4, 8) for
    CIFAR-10, (1, 2, 4, 8, 16) for CelebA at 64 pixels.
    """

    def __init__(
        self, channels: int = 1, size: int = 32, filters: int = 32,
        multipliers: Sequence[int] = (1, 2, 2, 2)
    ):  # fmt: skip
        super().__init__()
        strides = len(multipliers) - 1
        if size % 2**strides:
            needed = f"{strides} strides of 2 need a multiple of {2**strides}"
            raise ValueError(f"size = {size}: {needed}")
        self.shape = (channels, size, size)
        widths = [filters * m for m in multipliers]
        first = nn.Conv2d(channels, widths[0], 3, padding=1)
        strided = (nn.Conv2d(i, o, 4, 2, 1) for i, o in pairwise(widths))
        self.body = nn.ModuleList([first, *strided])
        self.head = nn.Linear(widths[-1] * (size // 2**strides) ** 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        got = tuple(x.shape[1:])
        if got != self.shape:
            raise ValueError(f"this net takes images {self.shape}; got {got}")
        for layer in self.body:
            x = F.silu(layer(x))
        return self.head(x.flatten(1)).squeeze(1)
