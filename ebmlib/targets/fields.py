"""Random fields whose density is known at every resolution: mixtures of Gaussian fields on a torus."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmlib.core import LOG_2PI, Energy, Rng


@dataclass(frozen=True)
class Field:
    """A mixture of Gaussian fields with one covariance: weights (M,), means (M, n, n), covariance (n^2, n^2), float64.

    Samples are (B, 1, n, n) in float32. Average pooling is linear, so `pooled` is again such a mixture, exactly.
    """

    weights: Tensor
    means: Tensor
    covariance: Tensor

    @property
    def size(self) -> int:
        """Pixels per side."""
        return self.means.shape[-1]

    def sample(self, n: int, rng: Rng = None) -> Tensor:
        """n exact samples (n, 1, size, size), float32."""
        factor = torch.linalg.cholesky(self.covariance)
        draws = {"generator": rng, "dtype": factor.dtype, "device": factor.device}
        which = torch.multinomial(self.weights, n, replacement=True, generator=rng)
        x = self.means[which].flatten(1) + torch.randn(n, len(factor), **draws) @ factor.T
        return x.reshape(n, 1, self.size, self.size).float()

    def energy(self) -> Energy:
        """-log p: (B, 1, size, size) to (B,), normalized; computed in float64 and returned in x's type."""
        factor = torch.linalg.cholesky(self.covariance)
        inverse = torch.linalg.inv(factor)  # whitens: |inverse (x - mean)|^2 is the Mahalanobis distance
        constant = 0.5 * len(factor) * LOG_2PI + factor.diagonal().log().sum()
        centers = self.means.flatten(1) @ inverse.T  # (M, d)

        def energy(x: Tensor) -> Tensor:
            white = x.flatten(1).to(inverse) @ inverse.T
            squares = (white[:, None] - centers).square().sum(2)  # (B, M)
            return (constant - torch.logsumexp(self.weights.log() - 0.5 * squares, 1)).to(x)

        return energy

    def pooled(self) -> "Field":
        """The field after average pooling of 2 x 2 pixels."""
        half = self.size // 2
        pair = torch.eye(half).to(self.means).repeat_interleave(2, 1) / 2
        matrix = torch.kron(pair, pair)  # (half^2, size^2)
        means = (self.means.flatten(1) @ matrix.T).reshape(-1, half, half)
        return Field(self.weights, means, matrix @ self.covariance @ matrix.T)

    def to(self, device: torch.device | str) -> "Field":
        """The same field on another device."""
        return Field(self.weights.to(device), self.means.to(device), self.covariance.to(device))


def wavenumber(n: int) -> Tensor:
    """|k| of the n x n Fourier modes, as torch.fft.fft2 orders them: (n, n), float64."""
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    return (k[:, None] ** 2 + k**2).sqrt()


def power(x: Tensor) -> Tensor:
    """Squared modulus of the orthonormal Fourier modes: (B, 1, n, n) to (B, n, n)."""
    return torch.fft.fft2(x[:, 0].double(), norm="ortho").abs() ** 2


def radial(values: Tensor) -> Tensor:
    """Mean of values (..., n, n) over rings of modes, |k| rounded to 0, 1, .., n / 2: (..., n / 2 + 1).

    The corners, where |k| is larger, join the last ring.
    """
    n = values.shape[-1]
    ring = wavenumber(n).round().clamp(max=n // 2).long().flatten().to(values.device)
    total = values.new_zeros(*values.shape[:-2], n // 2 + 1).index_add(-1, ring, values.flatten(-2))
    return total / torch.bincount(ring).to(values)


def mode_variance(field: Field) -> Tensor:
    """Variance of each Fourier mode of one component, (n, n): eigenvalues of a covariance that shifts leave alone."""
    row = field.covariance[0].reshape(field.size, field.size)  # between pixel (0, 0) and the others
    return torch.fft.fft2(row).real


def two_fields(
    n: int = 16, slope: float = 1.5, variance: float = 0.15, amplitude: float = 0.4, weight: float = 0.7
) -> Field:
    """Two smooth fields on an n x n torus: means +- amplitude cos(2 pi column / n), spectrum (1 + |k|^2)^(-slope).

    `variance` is a pixel's within a component, `weight` belongs to the mean +. In the Fourier basis the density is a
    product: one direction is a mixture of two normals, every other one is normal.
    """
    spectrum = (1 + wavenumber(n) ** 2) ** -slope
    spectrum = spectrum * (variance / spectrum.mean())
    row = torch.fft.ifft2(spectrum).real  # covariance between pixel (0, 0) and the others
    where = torch.arange(n)
    shift = (where[:, None] - where) % n
    covariance = row[shift[:, None, :, None], shift[None, :, None, :]].reshape(n * n, n * n)
    wave = (amplitude * torch.cos(2 * math.pi * where.double() / n)).expand(n, n)
    weights = torch.tensor([weight, 1 - weight], dtype=torch.float64)
    return Field(weights, torch.stack([wave, -wave]), covariance)
