"""Two-dimensional targets that are noisy curves: Swiss roll, two moons, pinwheel, rings."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ebmlib.core import LOG_2PI
from ebmlib.targets.planar import TAIL, Density, check_number, check_whole, in_blocks, is_finite


@dataclass(frozen=True)
class Curve(Density):
    """scale * (c(t) + noise * xi): a point of one of `arcs` equal plane arcs at a random t, and normal noise xi.

    A subclass has `_point`, `_range`, `_reach` (the largest distance from the center) and, unless t is uniform on its
    range, `_density_of_t` and `_draw_t`.
    """

    noise: float
    scale: float

    arcs = 1

    def __post_init__(self):
        check_number("noise", self.noise)
        check_number("scale", self.scale)

    @property
    def box(self) -> float:
        return self.scale * (self._reach + TAIL * self.noise)

    @property
    def narrowest(self) -> float:
        return self.scale * self.noise

    def nodes(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """The density as a mixture of Gaussians of std noise * scale: means (2, m) and log weights (m,)."""
        center, log_weight = _curve_nodes(self, dtype, device)
        return self.scale * center, log_weight

    def _blur(self, std: float) -> "Curve":
        return replace(self, noise=math.hypot(self.noise, std / self.scale))

    def _density_of_t(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 / (self._range[1] - self._range[0]))

    def _draw_t(self, n: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        low, high = self._range
        return low + (high - low) * torch.rand(n, generator=rng, device=device)

    def _log_density(self, x: Tensor) -> Tensor:
        std = self.narrowest
        mean, log_weight = self.nodes(x.dtype, x.device)
        log_weight = log_weight - LOG_2PI - 2 * math.log(std)

        def block(x: Tensor) -> Tensor:  # p(x) = int N(x; c(t), std^2 I) p(t) dt
            d2 = sum((z[:, None] - c).square() for z, c in zip((x / std).T, mean / std))  # (b, nodes)
            return torch.logsumexp(log_weight - 0.5 * d2, 1)

        return in_blocks(block, x, len(log_weight))

    def _draw(self, n: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        arc = torch.randint(self.arcs, (n,), generator=rng, device=device) if self.arcs > 1 else 0
        point = self._point(arc, self._draw_t(n, rng, device))
        return self.scale * (point.T + self.noise * torch.randn(n, 2, generator=rng, device=device))


@lru_cache(maxsize=16)
def _curve_nodes(curve: Curve, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes on the unscaled curve, (2, m), and their log weights, (m,).

    Each arc is cut into panels of equal length, 14 noise widths at most, with 24 nodes each: an error near 1e-9 for a
    Gaussian of that width. At least 3 panels per arc follow its bends and the density of t where the noise is wide.
    """
    node, weight = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(24))
    fine = torch.linspace(*curve._range, 4001, dtype=torch.float64)
    centers, weights = [], []
    for arc in range(curve.arcs):
        pieces = curve._point(arc, fine).diff(dim=1).square().sum(0).sqrt()
        length = np.concatenate(([0.0], pieces.cumsum(0).numpy()))
        panels = max(3, math.ceil(length[-1] / (14 * curve.noise)))
        edge = torch.as_tensor(np.interp(np.linspace(0, length[-1], panels + 1), length, fine.numpy()))
        half = edge.diff()[:, None] / 2
        t = (edge[:-1, None] + half * (node + 1)).flatten()
        centers.append(curve._point(arc, t))
        weights.append(curve._density_of_t(t) * (half * weight).flatten() / curve.arcs)
    return torch.cat(centers, 1).to(device, dtype), torch.cat(weights).log().to(device, dtype)


@dataclass(frozen=True)
class SwissRoll(Curve):
    """scale * ((t cos t, t sin t) + noise * xi), t = 1.5 pi (1 + 2u), u uniform on (0, 1), xi normal.

    The mean log-likelihood is -.58 nats by default.
    """

    noise: float = 0.5
    scale: float = 0.1

    name = "swiss-roll"
    _range = (1.5 * math.pi, 4.5 * math.pi)
    _reach = _range[1]

    def _point(self, arc: int | Tensor, t: Tensor) -> Tensor:
        return torch.stack((t * t.cos(), t * t.sin()))


@dataclass(frozen=True)
class TwoMoons(Curve):
    """scale * (+-(cos t - 1/2, sin t - 1/4) + noise * xi), t uniform on (0, pi): two half circles.

    With noise 0 it would be scikit-learn's make_moons, centered.
    """

    noise: float = 0.1
    scale: float = 1.0

    name = "two-moons"
    arcs = 2
    _range = (0.0, math.pi)
    _reach = 1.5

    def _point(self, arc: int | Tensor, t: Tensor) -> Tensor:
        return (1 - 2 * arc) * torch.stack((t.cos() - 0.5, t.sin() - 0.25))


@dataclass(frozen=True)
class Pinwheel(Curve):
    """scale * (r (cos f, sin f) + noise * xi), r ~ N(1, radial^2), f = 2 pi k / arms + rate e^r on arm k."""

    noise: float = 0.1
    scale: float = 2.0
    arms: int = 5
    radial: float = 0.3
    rate: float = 0.25

    name = "pinwheel"

    def __post_init__(self):
        super().__post_init__()
        check_whole("arms", self.arms, 1)
        check_number("radial", self.radial)
        check_number("rate", self.rate, zero=True)

    @property
    def arcs(self) -> int:
        return self.arms

    @property
    def box(self) -> float:  # the distance from the center is at most |r| plus the noise
        return self.scale * (1 + TAIL * math.hypot(self.radial, self.noise))

    @property
    def _range(self) -> tuple[float, float]:  # 4e-8 of the mass lies outside
        return 1 - 5.5 * self.radial, 1 + 5.5 * self.radial

    def _density_of_t(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * ((t - 1) / self.radial) ** 2) / (math.sqrt(2 * math.pi) * self.radial)

    def _draw_t(self, n: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        return 1 + self.radial * torch.randn(n, generator=rng, device=device)

    def _point(self, arc: int | Tensor, t: Tensor) -> Tensor:
        angle = 2 * math.pi * arc / self.arms + self.rate * t.exp()
        return t * torch.stack((angle.cos(), angle.sin()))


@dataclass(frozen=True)
class Rings(Density):
    """Concentric circles of equal mass (so the inner ones are denser), blurred by a Gaussian of std `noise`."""

    noise: float = 0.08
    radii: tuple[float, ...] = (0.75, 1.5, 2.25, 3.0)

    name = "rings"

    def __post_init__(self):
        check_number("noise", self.noise)
        if not isinstance(self.radii, tuple) or not self.radii or not all(is_finite(r) and r > 0 for r in self.radii):
            raise ValueError(f"radii must be a tuple of positive finite numbers, not {self.radii!r}")

    @property
    def box(self) -> float:
        return max(self.radii) + TAIL * self.noise

    @property
    def narrowest(self) -> float:
        return self.noise

    def nodes(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """The density as a mixture: means (2, m), evenly around each circle, and log weights (m,)."""
        center, log_weight = [], []
        for radius in self.radii:  # the trapezoidal rule on a circle converges exponentially
            m = math.ceil(1.5 * 2 * math.pi * radius / self.noise) + 24
            angle = torch.arange(m, dtype=dtype, device=device) * (2 * math.pi / m)
            center.append(radius * torch.stack((angle.cos(), angle.sin())))
            log_weight.append(torch.full((m,), -math.log(m * len(self.radii)), dtype=dtype, device=device))
        return torch.cat(center, 1), torch.cat(log_weight)

    def _blur(self, std: float) -> "Rings":
        return replace(self, noise=math.hypot(self.noise, std))

    def _log_density(self, x: Tensor) -> Tensor:
        # One circle: exp(-(r^2 + R^2) / 2 s^2) I_0(r R / s^2) / (2 pi s^2); i0e has e^(-r R / s^2) taken out.
        radius = torch.tensor(self.radii, dtype=x.dtype, device=x.device)
        r = torch.linalg.vector_norm(x, dim=1)[:, None]  # its gradient at the center is 0, as it must be
        bessel = torch.special.i0e(r * radius / self.noise**2).log()
        log_norm = LOG_2PI + 2 * math.log(self.noise) + math.log(len(self.radii))
        return torch.logsumexp(bessel - 0.5 * ((r - radius) / self.noise).square(), 1) - log_norm

    def _draw(self, n: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        k = torch.randint(len(self.radii), (n,), generator=rng, device=device)
        angle = 2 * math.pi * torch.rand(n, generator=rng, device=device)
        circle = torch.tensor(self.radii, device=device)[k] * torch.stack((angle.cos(), angle.sin()))
        return circle.T + self.noise * torch.randn(n, 2, generator=rng, device=device)
