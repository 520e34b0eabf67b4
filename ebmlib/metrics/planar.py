"""The judge of models in the plane: KL to the truth, held-out log-likelihood, MMD and modes.

KL and log-likelihood judge a density, MMD and modes judge samples: a method may pass one half and fail the other.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ebmlib.core import Energy
from ebmlib.partition import on_grid
from ebmlib.targets.planar import Density

TEMPERATURES = torch.logspace(-3, 3, 121).tolist()  # among which the best one is looked for
LogDensity = Callable[[Tensor], Tensor]


class Score(NamedTuple):
    """One number: its name, value, standard error, number of samples, unit and protocol, as in `results.Row`."""

    name: str
    value: float
    se: float | None = None
    n: int | None = None
    unit: str = ""
    protocol: str = ""


class Normalized(NamedTuple):
    """exp(-E) / Z on [-box, box]^2: E, its `values` (n, n) on `partition.grid(box, n)` in float64, log Z in nats."""

    energy: Energy
    box: float
    values: Tensor
    log_z: float

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B, 2) -> (B,)."""
        return -self.energy(x) - self.log_z


def normalized(energy: Energy, density: Density, n: int = 600, reach: float = 1.5, device=None) -> Normalized:
    """The energy with its log Z by the midpoint rule on n x n cells of `reach` times the density's box.

    log Z at `reach` 3 minus that at 1.5 says how much mass the energy hides where no data are.
    """
    box = reach * density.box
    values = on_grid(energy, box, n, device=device)
    return Normalized(energy, box, values, float(torch.logsumexp(-values.flatten(), 0)) + 2 * math.log(2 * box / n))


def divergences(density: Density, model: Normalized, temperatures: Sequence[float] = (1.0,)) -> list[float]:
    """KL(p || exp(-E / temperature) / Z) in nats for each temperature, by the midpoint rule on the model's grid.

    p is divided by its mass on the grid, which must be within 1 % of 1 (ValueError). Cells where p vanishes count 0.
    """
    n = len(model.values)
    log_p = on_grid(density.log_prob, model.box, n, device=model.values.device).flatten()
    mass = float(log_p.exp().sum()) * (2 * model.box / n) ** 2
    if abs(mass - 1) > 0.01:
        few = f"{n} x {n} cells are too few for {density.name}"
        raise ValueError(f"{few}: its mass on them is {mass:.3f}, not .99 to 1.01")
    log_p = log_p.log_softmax(0)  # of the mass of a cell
    log_q = ((-model.values.flatten() / temperature).log_softmax(0) for temperature in temperatures)
    return [float(torch.where(log_p > -torch.inf, log_p.exp() * (log_p - q), 0.0).sum()) for q in log_q]


def judge(
    density: Density, model: Normalized | LogDensity, held_out: Tensor, samples: Tensor | None = None,
    pairs: int | None = None,
) -> list[Score]:  # fmt: skip
    """The scores of a model of the plane: of its density and, if samples (n, 2) are given, of those.

    model: from `normalized`, or an exact log density (B, 2) -> (B,). held_out: fresh data (m, 2).
    See `judge_density` and `judge_samples`, which give a half each.
    """
    scores = judge_density(density, model, held_out)
    return scores if samples is None else scores + judge_samples(density, samples, held_out, pairs)


@torch.no_grad()
def judge_density(density: Density, model: Normalized | LogDensity, held_out: Tensor) -> list[Score]:
    """KL to the truth, also at the best temperature, and mean log-likelihood of the data held_out (m, 2).

    Where the model is an exact log density, the KL is the mean of log p - log q over the held-out data.
    """
    if isinstance(model, Normalized):
        how = f"quadrature, {len(model.values)} x {len(model.values)} on {model.box / density.box:g} times the box"
        kl, *others = divergences(density, model, [1.0, *TEMPERATURES])
        scores = [Score("KL to the truth", kl, unit="nats", protocol=how)]
        scores.append(Score("KL at the best temperature", min(others), unit="nats", protocol=how))
        log_q = model.log_prob(held_out).double()
    else:
        log_q = model(held_out).double()
        scores = [_mean("KL to the truth", density.log_prob(held_out).double() - log_q, "held-out data")]
    return [*scores, _mean("held-out log-likelihood", log_q)]


def _mean(name: str, values: Tensor, protocol: str = "") -> Score:
    return Score(name, float(values.mean()), float(values.std() / len(values) ** 0.5), len(values), "nats", protocol)


def judge_samples(density: Density, samples: Tensor, held_out: Tensor, pairs: int | None = None) -> list[Score]:
    """MMD^2 to the data held_out (m, 2) and, where the density has modes, how many are covered and the share near one.

    The MMD takes the first `pairs` samples (None: all) and as many held-out points.
    """
    n = min(len(samples), len(held_out), pairs or len(samples))
    value, se = mmd(samples[:n], held_out[:n], bandwidth(density))
    scores = [Score("MMD^2 of samples", value, se, n, protocol="Gaussian kernel, bandwidth a tenth of the box")]
    if density.modes is not None:
        found = mode_coverage(samples, density.modes.to(samples.device), density.mode_std)
        about = {"n": len(samples), "protocol": "within 3 std"}
        scores.append(Score("modes covered", found.modes, unit=f"of {len(density.modes)}", **about))
        scores.append(Score("share of samples near a mode", found.quality, **about))
    return scores


def bandwidth(density: Density) -> float:
    """The bandwidth of this book's MMDs: a tenth of the half side of the density's box."""
    return 0.1 * density.box


def mmd_floor(density: Density, n: int, rng: torch.Generator | None = None, pairs: int = 10) -> float:
    """Root mean square of MMD^2 between two sets of n exact samples, over `pairs` of them: a perfect model's."""
    drawn = [[density.sample(n, rng) for _ in range(2)] for _ in range(pairs)]
    return float(torch.tensor([mmd(*pair, bandwidth(density))[0] for pair in drawn]).square().mean().sqrt())


def mmd(x: Tensor, y: Tensor, bandwidth: float) -> tuple[float, float | None]:
    """Unbiased MMD^2 of x (n, d) and y (m, d) under exp(-|x - y|^2 / (2 bandwidth^2)), with its standard error.

    Gretton et al. (2012), Eq. 3; it can be negative. The error holds under x ~ y too, where the leading term vanishes:
    the jackknife's variance 4 var/n less its noise; None where that estimate is not positive. Float64, memory n + m;
    ValueError for fewer than 4 samples and for samples that are not finite.
    """
    shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 4:
        raise ValueError(f"mmd needs samples (n, d) and (m, d), 4 or more each, got {shapes}.")
    if not 0 < bandwidth < float("inf"):
        raise ValueError(f"mmd's bandwidth must be positive and finite, got {bandwidth}.")
    if lost := sum(int((~part.isfinite()).any(1).sum()) for part in (x, y)):
        raise ValueError(f"mmd's samples must be finite; {lost} of {len(x) + len(y)} are not.")
    n, m = len(x), len(y)
    x, y = x.detach().double(), y.detach().double()
    (xx, _, xx_noise), (yy, _, yy_noise) = _kernel(x, x, bandwidth, own=True), _kernel(y, y, bandwidth, own=True)
    xy, yx, xy_noise = _kernel(x, y, bandwidth)
    value = xx.mean() + yy.mean() - 2 * xy.mean()
    # The variance is 4 zeta_x/n + 4 zeta_y/m + 2 v_xx/n^2 + 2 v_yy/m^2 + 4 v_xy/(nm): v is the variance of k less its
    # means, zeta_x that of E k(x, x') - E k(x, y) over x; seen through finite means it is zeta_x + v_xx/n + v_xy/m.
    variance = 4 * (xx - xy).var() / n + 4 * (yy - yx).var() / m
    variance -= 2 * xx_noise / n**2 + 2 * yy_noise / m**2 + 4 * xy_noise / (n * m)
    return value.item(), math.sqrt(variance) if variance > 0 else None


def _kernel(x: Tensor, y: Tensor, bandwidth: float, own: bool = False, rows: int = 1024) -> tuple[Tensor, ...]:
    """Means of k(x_i, y_j) over j and over i, and the variance of k less both means; own: x is y, i = j left out."""
    n, m = len(x), len(y) - own
    over_j, over_i, squares = [], torch.zeros(len(y), dtype=x.dtype, device=x.device), x.new_zeros(())
    for start in range(0, n, rows):
        part = x[start : start + rows]
        k = torch.exp(torch.cdist(part, y, compute_mode="donot_use_mm_for_euclid_dist").square() / (-2 * bandwidth**2))
        if own:
            k[torch.arange(len(part)), torch.arange(start, start + len(part))] = 0
        over_j.append(k.sum(1) / m)
        over_i += k.sum(0)
        squares += k.square().sum()
    over_j, over_i = torch.cat(over_j), over_i / (n - own)
    # E (k - a_i - b_j + c)^2 = E k^2 - E a^2 - E b^2 + c^2
    noise = squares / (n * m) - over_j.square().mean() - over_i.square().mean() + over_j.mean().square()
    return over_j, over_i, noise.clamp(min=0)


class Coverage(NamedTuple):
    """modes: how many are covered; quality: the share of samples that lie near any mode."""

    modes: int
    quality: float


def mode_coverage(x: Tensor, modes: Tensor, std: float) -> Coverage:
    """How many of the modes (m, d) the samples x (n, d) cover, and the share within 3 std of their nearest mode.

    A mode is covered when a quarter of its fair share n / m is near it. NaN is near nothing. The exact mixture has
    quality 1 - exp(-9 / 2) = .9889 in 2D.
    """
    distance, nearest = torch.cdist(x.detach(), modes.to(x), compute_mode="donot_use_mm_for_euclid_dist").min(1)
    near = distance <= 3 * std
    counts = torch.bincount(nearest[near], minlength=len(modes))
    return Coverage(int((counts >= len(x) / len(modes) / 4).sum()), near.double().mean().item())
