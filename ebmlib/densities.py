"""Two-dimensional targets with exact samples, log density and gradient: the referees of the toy chapters."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# A centered square that reaches TAIL standard deviations past the outermost point of a smooth target's skeleton
# leaves out at most 4 Phi(-5.2) = 4e-7 of the mass.
TAIL = 5.2
LOG_2PI = math.log(2 * math.pi)
BLOCK = 2**19  # points times nodes at once in a quadrature: bounds its memory


class Density:
    """A 2D target: `sample`, exact `log_prob` and `energy`, and `box`.

    `box` is the half side of the centered square that holds all but 1e-6 of the mass.
    `modes` (m, 2) and `mode_std` are None where the density has no separate modes.
    """

    name: str
    box: float
    modes: Tensor | None = None
    mode_std: float | None = None

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """n independent exact samples, (n, 2) float32 on the generator's device (the CPU if None)."""
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"the number of samples must be an integer of at least 1, not {n!r}")
        return self._draw(n, rng, torch.device("cpu") if rng is None else rng.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log density in nats: x (B, 2) -> (B,), in x's dtype and device, differentiable in x."""
        if x.ndim != 2 or x.shape[1] != 2 or not x.is_floating_point():
            raise ValueError(f"x must be a floating-point tensor of shape (B, 2), not {x.dtype} of {tuple(x.shape)}")
        return self._log_density(x)

    def blurred(self, std: float) -> "Density":
        """The law of x + std * xi, xi ~ N(0, I): the same kind of density, exact again."""
        _check_number("std", std, zero=True)
        return self._blur(std)

    def energy(self, x: Tensor) -> Tensor:
        """E(x) = -log p(x), (B, 2) -> (B,): normalized, so log Z = 0."""
        return -self.log_prob(x)


@dataclass(frozen=True)
class GaussianGrid(Density):
    """side x side equal isotropic Gaussians on a square lattice around `mean`; one Gaussian where side is 1."""

    side: int
    spacing: float
    std: float
    mean: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self):
        _check_whole("side", self.side, 1)
        _check_number("spacing", self.spacing)
        _check_number("std", self.std)
        if not isinstance(self.mean, tuple) or len(self.mean) != 2 or not all(map(_is_finite, self.mean)):
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

    def _blur(self, std: float) -> "GaussianGrid":
        return replace(self, std=math.hypot(self.std, std))

    def _axis(self, mean: float, dtype: torch.dtype, device) -> Tensor:
        offset = torch.arange(self.side, dtype=dtype, device=device) - (self.side - 1) / 2
        return mean + self.spacing * offset  # (side,)

    def _log_density(self, x: Tensor) -> Tensor:
        # A square lattice of equal Gaussians is the product of one mixture an axis.
        axes = [self._axis(m, x.dtype, x.device) for m in self.mean]
        z = [(x[:, d, None] - c) / self.std for d, c in enumerate(axes)]  # (B, side) each
        log_norm = 0.5 * LOG_2PI + math.log(self.std * self.side)
        return sum(torch.logsumexp(-0.5 * z_d.square(), 1) for z_d in z) - 2 * log_norm

    def _draw(self, n: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        cell = torch.randint(self.side, (n, 2), generator=rng, device=device)
        mean = torch.tensor(self.mean, device=device) + self.spacing * (cell - (self.side - 1) / 2)
        return mean + self.std * torch.randn(n, 2, generator=rng, device=device)


@dataclass(frozen=True)
class Curve(Density):
    """scale * (c(t) + noise * xi): a point of one of `arcs` equal plane arcs at a random t, and normal noise xi.

    A kind of curve states `_point`, and `_range` if t is uniform there, else `_law` and `_draw_t` too.
    """

    noise: float
    scale: float

    arcs = 1

    def __post_init__(self):
        _check_number("noise", self.noise)
        _check_number("scale", self.scale)

    @property
    def box(self) -> float:
        return self.scale * (self._reach() + TAIL * self.noise)

    def nodes(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """The density as a mixture of Gaussians of std noise * scale: means (2, m) and log weights (m,)."""
        center, log_weight = _curve_nodes(self, dtype, device)
        return self.scale * center, log_weight

    def _blur(self, std: float) -> "Curve":
        return replace(self, noise=math.hypot(self.noise, std / self.scale))

    def _law(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 / (self._range[1] - self._range[0]))

    def _draw_t(self, n: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        low, high = self._range
        return low + (high - low) * torch.rand(n, generator=rng, device=device)

    def _log_density(self, x: Tensor) -> Tensor:
        std = self.noise * self.scale
        mean, log_weight = self.nodes(x.dtype, x.device)
        log_weight = log_weight - LOG_2PI - 2 * math.log(std)

        def block(x: Tensor) -> Tensor:  # p(x) = int N(x; c(t), std^2 I) p(t) dt
            d2 = sum((z[:, None] - c).square() for z, c in zip((x / std).T, mean / std))  # (b, nodes)
            return torch.logsumexp(log_weight - 0.5 * d2, 1)

        return _in_blocks(block, x, len(log_weight))

    def _draw(self, n: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        arc = torch.randint(self.arcs, (n,), generator=rng, device=device) if self.arcs > 1 else 0
        point = self._point(arc, self._draw_t(n, rng, device))
        return self.scale * (point.T + self.noise * torch.randn(n, 2, generator=rng, device=device))


@lru_cache(maxsize=16)
def _curve_nodes(curve: Curve, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes on the unscaled curve, (2, m), and their log weights, (m,).

    Each arc is cut into panels of equal length, 14 noise widths at most, with 24 nodes each: an error near 1e-9 for a
    Gaussian of that width. At least 3 panels an arc follow its bends and the law of t where the noise is wide.
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
        weights.append(curve._law(t) * (half * weight).flatten() / curve.arcs)
    return torch.cat(centers, 1).to(device, dtype), torch.cat(weights).log().to(device, dtype)


def _in_blocks(log_density: Callable[[Tensor], Tensor], x: Tensor, nodes: int) -> Tensor:
    """log_density(x), block by block, so that points times nodes stay below BLOCK."""
    return torch.cat([log_density(part) for part in x.split(max(1, BLOCK // nodes))])


@dataclass(frozen=True)
class SwissRoll(Curve):
    """scale * ((t cos t, t sin t) + noise * xi), t = 1.5 pi (1 + 2u), u uniform on (0, 1), xi normal."""

    name = "swiss-roll"
    _range = (1.5 * math.pi, 4.5 * math.pi)

    def _reach(self) -> float:
        return self._range[1]

    def _point(self, arc: int | Tensor, t: Tensor) -> Tensor:
        return torch.stack((t * t.cos(), t * t.sin()))


@dataclass(frozen=True)
class TwoMoons(Curve):
    """scale * (+-(cos t - 1/2, sin t - 1/4) + noise * xi), t uniform on (0, pi): two half circles."""

    name = "two-moons"
    arcs = 2
    _range = (0.0, math.pi)

    def _reach(self) -> float:
        return 1.5

    def _point(self, arc: int | Tensor, t: Tensor) -> Tensor:
        return (1 - 2 * arc) * torch.stack((t.cos() - 0.5, t.sin() - 0.25))


@dataclass(frozen=True)
class Pinwheel(Curve):
    """scale * (r (cos f, sin f) + noise * xi), r ~ N(1, radial^2), f = 2 pi k / arms + rate e^r on arm k."""

    arms: int
    radial: float
    rate: float

    name = "pinwheel"

    def __post_init__(self):
        super().__post_init__()
        _check_whole("arms", self.arms, 1)
        _check_number("radial", self.radial)
        _check_number("rate", self.rate, zero=True)

    @property
    def arcs(self) -> int:
        return self.arms

    @property
    def box(self) -> float:  # the distance from the center is at most |r| plus the noise
        return self.scale * (1 + TAIL * math.hypot(self.radial, self.noise))

    @property
    def _range(self) -> tuple[float, float]:  # 4e-8 of the mass lies outside
        return 1 - 5.5 * self.radial, 1 + 5.5 * self.radial

    def _law(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * ((t - 1) / self.radial) ** 2) / (math.sqrt(2 * math.pi) * self.radial)

    def _draw_t(self, n: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        return 1 + self.radial * torch.randn(n, generator=rng, device=device)

    def _point(self, arc: int | Tensor, t: Tensor) -> Tensor:
        angle = 2 * math.pi * arc / self.arms + self.rate * t.exp()
        return t * torch.stack((angle.cos(), angle.sin()))


@dataclass(frozen=True)
class Rings(Density):
    """Concentric circles of the given radii, equally likely, blurred by a Gaussian of std `noise`."""

    noise: float
    radii: tuple[float, ...]

    name = "rings"

    def __post_init__(self):
        _check_number("noise", self.noise)
        if not isinstance(self.radii, tuple) or not self.radii or not all(_is_finite(r) and r > 0 for r in self.radii):
            raise ValueError(f"radii must be a tuple of positive finite numbers, not {self.radii!r}")

    @property
    def box(self) -> float:
        return max(self.radii) + TAIL * self.noise

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


@dataclass(frozen=True)
class Funnel(Density):
    """Neal's funnel in the plane: x_2 ~ N(0, spread^2), x_1 ~ N(0, width^2 e^(x_2)); then a blur of std `blur`.

    Neal (2003, section 8) has spread 3 and width 1.
    """

    spread: float
    width: float
    blur: float

    name = "funnel"

    def __post_init__(self):
        _check_number("spread", self.spread)
        _check_number("width", self.width)
        _check_number("blur", self.blur, zero=True)

    @property
    def box(self) -> float:
        # x_1 = width e^(spread u / 2) v is farthest on the circle u^2 + v^2 = TAIL^2 where spread v^2 = 2 u.
        u = (math.sqrt(1 + (self.spread * TAIL) ** 2) - 1) / self.spread
        x_1 = self.width * math.exp(self.spread * u / 2) * math.sqrt(TAIL**2 - u**2)
        return math.hypot(max(x_1, TAIL * self.spread), TAIL * self.blur)

    def _blur(self, std: float) -> "Funnel":
        return replace(self, blur=math.hypot(self.blur, std))

    def _log_density(self, x: Tensor) -> Tensor:
        # Given the blurred x_2, the sharp one is normal, so a Gauss-Hermite rule does its integral: one node if sharp.
        # 64 nodes know log p to 1e-6 down to -60; farther out p depends on v beyond their reach.
        node, weight = (torch.as_tensor(a, dtype=x.dtype, device=x.device) for a in _hermite(64 if self.blur else 1))
        total = math.hypot(self.spread, self.blur)
        std = self.spread * self.blur / total

        def block(x: Tensor) -> Tensor:
            sharp = (self.spread / total) ** 2 * x[:, 1, None] + std * node  # (b, nodes)
            variance = self.width**2 * sharp.exp() + self.blur**2
            inner = weight.log() - 0.5 * (variance.log() + x[:, 0, None].square() / variance)
            return torch.logsumexp(inner, 1) - 0.5 * (x[:, 1] / total).square() - LOG_2PI - math.log(total)

        return _in_blocks(block, x, len(node))

    def _draw(self, n: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        x_1, x_2 = torch.randn(2, n, generator=rng, device=device)
        x_2 = self.spread * x_2
        x = torch.stack((self.width * (x_2 / 2).exp() * x_1, x_2), 1)
        return x + self.blur * torch.randn(n, 2, generator=rng, device=device) if self.blur else x


@lru_cache(maxsize=2)
def _hermite(m: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (m,) of the mean over a standard normal."""
    node, weight = np.polynomial.hermite_e.hermegauss(m)
    return node, weight / weight.sum()


@dataclass(frozen=True)
class Checkerboard(Density):
    """The squares of one color of a cells x cells board on [-half, half]^2, filled evenly, blurred by edge * side.

    side = 2 half / cells; the blur is a Gaussian of that std. edge = 0 is the hard board: log_prob is -inf off it.
    """

    edge: float
    half: float
    cells: int

    name = "checkerboard"

    def __post_init__(self):
        _check_number("edge", self.edge, zero=True)
        _check_number("half", self.half)
        _check_whole("cells", self.cells, 2)

    @property
    def side(self) -> float:
        return 2 * self.half / self.cells

    @property
    def filled(self) -> int:
        return (self.cells**2 + 1) // 2

    @property
    def box(self) -> float:
        return self.half + TAIL * self.edge * self.side

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


def gaussian_grid(side: int = 5, spacing: float = 2.0, std: float = 0.08388) -> GaussianGrid:
    """The 25-Gaussians by default; std is fixed by a mean log-likelihood of -1.10 nats (the VAEBM paper)."""
    return GaussianGrid(side, spacing, std)


def swiss_roll(noise: float = 0.5, scale: float = 0.1) -> SwissRoll:
    """The Swiss roll; its mean log-likelihood is -.58 nats by default."""
    return SwissRoll(noise, scale)


def checkerboard(edge: float = 0.05, half: float = 2.0, cells: int = 4) -> Checkerboard:
    """The checkerboard with edges smoothed by a Gaussian of `edge` sides; edge = 0 is the hard one."""
    return Checkerboard(edge, half, cells)


def two_moons(noise: float = 0.1, scale: float = 1.0) -> TwoMoons:
    """Two interleaved half circles of radius `scale`, centered; with noise 0, scikit-learn's make_moons."""
    return TwoMoons(noise, scale)


def rings(noise: float = 0.08, radii: tuple[float, ...] = (0.75, 1.5, 2.25, 3.0)) -> Rings:
    """Four rings of equal mass, so the inner ones are denser."""
    return Rings(noise, radii)


def pinwheel(
    noise: float = 0.1, scale: float = 2.0, arms: int = 5, radial: float = 0.3, rate: float = 0.25
) -> Pinwheel:
    """Five arms of a spiral, strongest in the middle of their length."""
    return Pinwheel(noise, scale, arms, radial, rate)


def funnel(spread: float = 1.0, width: float = 0.2) -> Funnel:
    """Neal's funnel with spread 1 for his 3, and the width with which one square fits both of its directions."""
    return Funnel(spread, width, 0.0)


def by_name(name: str) -> Density:
    """The book's targets: 25-gaussians, 9-gaussians, swiss-roll, checkerboard, two-moons, rings, pinwheel, funnel."""
    makers = {
        "25-gaussians": gaussian_grid,
        "9-gaussians": lambda: gaussian_grid(3, 1.0, 0.16),
        "swiss-roll": swiss_roll,
        "checkerboard": checkerboard,
        "two-moons": two_moons,
        "rings": rings,
        "pinwheel": pinwheel,
        "funnel": funnel,
    }
    if name not in makers:
        raise ValueError(f"unknown density {name!r}; known are {', '.join(makers)}")
    return makers[name]()


def mean_log_prob(density: Density, n: int = 600) -> float:
    """E[log p] in nats (minus the entropy) by the midpoint rule on n x n points of the density's box, in float64."""
    _check_whole("n", n, 1)
    h = 2 * density.box / n
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) * h - density.box
    with torch.no_grad():
        p = density.log_prob(torch.cartesian_prod(axis, axis)).exp()
    return -float(torch.special.entr(p).sum() * h**2)  # entr(0) = 0: the hard board has p = 0


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_number(name: str, value: float, zero: bool = False) -> None:
    if not _is_finite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be a {'non-negative' if zero else 'positive'} finite number, not {value!r}")


def _check_whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
