"""A variational autoencoder with a Gaussian decoder whose mean and variance are learned (VAEBM, sections 2 and 5.4)."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmlib.core import LOG_2PI, Rng


class Normal(NamedTuple):
    """A Gaussian with independent entries: mean and log standard deviation, both (B, d)."""

    mean: Tensor
    log_std: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats at x (B, d): (B,)."""
        z = (x - self.mean) * (-self.log_std).exp()
        return -(0.5 * z.square() + self.log_std + 0.5 * LOG_2PI).sum(-1)

    def transform(self, eps: Tensor) -> Tensor:
        """mean + std eps: a draw where eps is standard normal."""
        return self.mean + self.log_std.exp() * eps


class GaussianMLP(nn.Module):
    """`depth` hidden layers of `width` with ReLU: (B, inner) to a Gaussian over (B, outer).

    A scaled tanh keeps log standard deviations within +-7. Hidden weights start as in He et al. (2015): with PyTorch's
    a narrow net hardly sees its input. Standard deviations start at 1: random ones would make the first loss 1e6.
    """

    def __init__(self, inner: int, outer: int, width: int = 256, depth: int = 4):
        super().__init__()
        widths = [inner, *[width] * depth, 2 * outer]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        for layer in self.layers[:-1]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        with torch.no_grad():
            self.layers[-1].weight[outer:] = 0
            self.layers[-1].bias[outer:] = 0

    def forward(self, x: Tensor) -> Normal:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        mean, raw = self.layers[-1](x).chunk(2, -1)
        return Normal(mean, 7 * torch.tanh(raw / 7))


class VAE(nn.Module):
    """Prior N(0, I) over z (B, latents), decoder p(x | z) and encoder q(z | x) for x (B, dim).

    `encode` and `decode` return Gaussians. Defaults are the 2D model of VAEBM, section 5.4.
    """

    def __init__(self, dim: int = 2, latents: int = 20, width: int = 256, depth: int = 4):
        super().__init__()
        self.dim, self.latents = dim, latents
        self.encode = GaussianMLP(dim, latents, width, depth)
        self.decode = GaussianMLP(latents, dim, width, depth)

    def sample(self, n: int, rng: Rng = None) -> Tensor:
        """n exact samples (n, dim) of p(x): z from the prior, then x with the decoder's noise (Eq. 8)."""
        device = next(self.parameters()).device
        eps = torch.randn(n, self.dim + self.latents, generator=rng, device=device)
        return self.decode(eps[:, self.dim :]).transform(eps[:, : self.dim])
