"""Two-dimensional targets with exact samples, log density and gradient: the referees of the toy chapters."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ebmlib.core import LOG_2PI
from ebmlib.targets.curves import Curve, Pinwheel, Rings, SwissRoll, TwoMoons  # noqa: F401 (all targets from here)
from ebmlib.targets.planar import TAIL, Density, check_number, check_whole, in_blocks, is_finite


@dataclass(frozen=True)
class GaussianGrid(Density):
    """side x side equal isotropic Gaussians on a square lattice around `mean`; one Gaussian where side is 1.

    By default the 25-Gaussians; std is fixed by a mean log-likelihood of -1.10 nats (the VAEBM paper).
    """

    side: int = 5
    spacing: float = 2.0
    std: float = 0.08388
    mean: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        check_whole("side", self.side, 1)
        check_number("spacing", self.spacing)
        check_number("std", self.std)
        if not isinstance(self.mean, tuple) or len(self.mean) != 2 or not all(map(is_finite, self.mean)):
            raise ValueError(f"mean must be a tuple of two finite numbers, not {self.mean!r}")

    @property
    def name(self) -> str:
        return "gaussian" if self.side == 1 else f"{self.side**2}-gaussians"

    @property
    def box(self) -> float:
        return self.spacing * (self.side - 1) / 2 + max(map(abs, self.mean)) + TAIL * self.std

    @property
    def modes(self) -> Tensor:
        return torch.cartesian_prod(*(self._axis(m, torch.float32, "cpu") for m in self.mean))

    @property
    def mode_std(self) -> float:
        return self.std

    narrowest = mode_std

    def _blur(self, std: float) -> "GaussianGrid":
        return replace(self, std=math.hypot(self.std, std))

    def _axis(self, mean: float, dtype: torch.dtype, device) -> Tensor:
        offset = torch.arange(self.side, dtype=dtype, device=device) - (self.side - 1) / 2
        return mean + self.spacing * offset  # (side,)

    def _log_density(self, x: Tensor) -> Tensor:
        # A square lattice of equal Gaussians is the product of one mixture per axis.
        axes = [self._axis(m, x.dtype, x.device) for m in self.mean]
        z = [(x[:, d, None] - c) / self.std for d, c in enumerate(axes)]  # (B, side) each
        log_norm = 0.5 * LOG_2PI + math.log(self.std * self.side)
        return sum(torch.logsumexp(-0.5 * z_d.square(), 1) for z_d in z) - 2 * log_norm

    def _draw(self, n: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        cell = torch.randint(self.side, (n, 2), generator=rng, device=device)
        mean = torch.tensor(self.mean, device=device) + self.spacing * (cell - (self.side - 1) / 2)
        return mean + self.std * torch.randn(n, 2, generator=rng, device=device)


@dataclass(frozen=True)
class Funnel(Density):
    """Neal's funnel in the plane: x_2 ~ N(0, spread^2), x_1 ~ N(0, width^2 e^(x_2)); then a blur of std `blur`.

    Neal (2003, section 8) has spread 3 and width 1; here one square fits both directions.
    """

    spread: float = 1.0
    width: float = 0.2
    blur: float = 0.0

    name = "funnel"

    def __post_init__(self):
        check_number("spread", self.spread)
        check_number("width", self.width)
        check_number("blur", self.blur, zero=True)

    @property
    def box(self) -> float:
        # x_1 = width e^(spread u / 2) v is farthest on the circle u^2 + v^2 = TAIL^2 where spread v^2 = 2 u.
        u = (math.sqrt(1 + (self.spread * TAIL) ** 2) - 1) / self.spread
        x_1 = self.width * math.exp(self.spread * u / 2) * math.sqrt(TAIL**2 - u**2)
        return math.hypot(max(x_1, TAIL * self.spread), TAIL * self.blur)

    @property
    def narrowest(self) -> float:
        return self.blur  # the sharp funnel's neck narrows without end

    def _blur(self, std: float) -> "Funnel":
        return replace(self, blur=math.hypot(self.blur, std))

    def _log_density(self, x: Tensor) -> Tensor:
        # Given the blurred x_2, the sharp one is normal, so a Gauss-Hermite rule does its integral: one node if sharp.
        # 64 nodes know log p to 1e-6 down to -60; farther out p depends on v beyond their reach.
        node, weight = _hermite_on(x.device, x.dtype, 64 if self.blur else 1)
        total = math.hypot(self.spread, self.blur)
        std = self.spread * self.blur / total

        def block(x: Tensor) -> Tensor:
            sharp = (self.spread / total) ** 2 * x[:, 1, None] + std * node  # (b, nodes)
            variance = self.width**2 * sharp.exp() + self.blur**2
            inner = weight.log() - 0.5 * (variance.log() + x[:, 0, None].square() / variance)
            return torch.logsumexp(inner, 1) - 0.5 * (x[:, 1] / total).square() - LOG_2PI - math.log(total)

        return in_blocks(block, x, len(node))

    def _draw(self, n: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        x_1, x_2 = torch.randn(2, n, generator=rng, device=device)
        x_2 = self.spread * x_2
        x = torch.stack((self.width * (x_2 / 2).exp() * x_1, x_2), 1)
        return x + self.blur * torch.randn(n, 2, generator=rng, device=device) if self.blur else x


def hermite(m: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (m,) of the mean over a standard normal."""
    node, weight = np.polynomial.hermite_e.hermegauss(m)
    return node, weight / weight.sum()


@lru_cache
def _hermite_on(device: torch.device, dtype: torch.dtype, m: int) -> list[Tensor]:
    # Copied to a device once: a chain needs them at every step.
    return [torch.as_tensor(values, dtype=dtype, device=device) for values in hermite(m)]


@dataclass(frozen=True)
class Checkerboard(Density):
    """The squares of one color of a cells x cells board on [-half, half]^2, filled evenly, blurred by edge * side.

    side = 2 half / cells; the blur is a Gaussian of that std. edge = 0 is the hard board: log_prob is -inf off it.
    """

    edge: float = 0.05
    half: float = 2.0
    cells: int = 4

    name = "checkerboard"

    def __post_init__(self):
        check_number("edge", self.edge, zero=True)
        check_number("half", self.half)
        check_whole("cells", self.cells, 2)

    @property
    def side(self) -> float:
        return 2 * self.half / self.cells

    @property
    def filled(self) -> int:
        return (self.cells**2 + 1) // 2

    @property
    def box(self) -> float:
        return self.half + TAIL * self.narrowest

    @property
    def narrowest(self) -> float:
        return self.edge * self.side

    def _blur(self, std: float) -> "Checkerboard":
        return replace(self, edge=math.hypot(self.edge, std / self.side))

    def _log_density(self, x: Tensor) -> Tensor:
        log_norm = math.log(self.filled) + 2 * math.log(self.side)
        u = (x + self.half) / self.side  # square (i, j) is (i, i + 1) x (j, j + 1)
        if self.edge == 0:
            cell = u.floor()
            on = ((cell >= 0) & (cell < self.cells)).all(1) & (cell.sum(1) % 2 == 0)
            flat = 0 * x.sum(1) - log_norm  # keeps the graph: the gradient is 0, not missing
            return torch.where(on, flat, -torch.inf)
        # (i, j) is filled where i and j are both even or both odd, so p is a sum of two products.
        center = torch.arange(self.cells, dtype=x.dtype, device=x.device) + 0.5
        log_cell = _log_blurred_cell(u[:, :, None] - center, self.edge)  # (B, 2, cells)
        even, odd = (torch.logsumexp(log_cell[:, :, k::2], 2).sum(1) for k in (0, 1))
        return torch.logaddexp(even, odd) - log_norm

    def _draw(self, n: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        # Counting squares row by row, every second one is filled; in even boards odd rows start one later.
        k = 2 * torch.randint(self.filled, (n,), generator=rng, device=device)
        row = k // self.cells
        column = k % self.cells + (row % 2 if self.cells % 2 == 0 else 0)
        u = torch.stack((row, column), 1) + torch.rand(n, 2, generator=rng, device=device)
        if self.edge > 0:
            u = u + self.edge * torch.randn(n, 2, generator=rng, device=device)
        return u * self.side - self.half


def _log_blurred_cell(d: Tensor, edge: float) -> Tensor:
    """log(Phi((1/2 - d) / edge) - Phi((-1/2 - d) / edge)): a unit cell blurred by `edge`, d from its center.

    Even in d, so |d| will do. Outside the cell exp(-a^2 / 2) is taken out of both terms: finite values and gradients at
    any distance (the gradient of torch's log_ndtr loses its digits beyond some 100 std).
    """
    distance, root = d.abs(), math.sqrt(2)
    a, b = (distance - 0.5) / edge, (distance + 0.5) / edge  # to the near and to the far side
    erfc, erfcx = torch.special.erfc, torch.special.erfcx
    inner, outer = a.clamp(max=0), a.clamp(min=0)  # `where` needs finite gradients in the branch not taken, too
    inside = torch.log(0.5 * (erfc(inner / root) - erfc(b / root)))
    far = torch.exp(-distance / edge**2) * erfcx(b / root)  # (b^2 - a^2) / 2 = |d| / edge^2
    outside = torch.log(0.5 * (erfcx(outer / root) - far)) - 0.5 * outer.square()
    return torch.where(a < 0, inside, outside)


def gaussian(std: float = 1.0, mean: tuple[float, float] = (0.0, 0.0)) -> GaussianGrid:
    """One isotropic Gaussian."""
    return GaussianGrid(1, 1.0, std, mean)


def by_name(name: str) -> Density:
    """The book's targets: 25-gaussians, 9-gaussians, swiss-roll, checkerboard, two-moons, rings, pinwheel, funnel."""
    makers = {kind.name: kind for kind in (SwissRoll, Checkerboard, TwoMoons, Rings, Pinwheel, Funnel)}
    makers = {"25-gaussians": GaussianGrid, "9-gaussians": lambda: GaussianGrid(3, 1.0, 0.16), **makers}
    if name not in makers:
        raise ValueError(f"unknown density {name!r}; known are {', '.join(makers)}")
    return makers[name]()


def mean_log_prob(density: Density, n: int = 600) -> float:
    """E[log p] in nats (minus the entropy) by the midpoint rule on n x n points of the density's box, in float64."""
    h = 2 * density.box / n
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) * h - density.box
    with torch.no_grad():
        p = density.log_prob(torch.cartesian_prod(axis, axis)).exp()
    return -float(torch.special.entr(p).sum() * h**2)  # entr(0) = 0: the hard board has p = 0
