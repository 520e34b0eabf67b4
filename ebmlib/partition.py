"""Partition functions: exact by quadrature in two dimensions; in any, bracketed by annealed importance sampling.

A path is a list of energies from one whose log Z is known to the one in question; log Z here is that of its last energy
minus that of its first. Draw exactly from the first for a stochastic lower bound, from the last for an upper one.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ebmlib.core import Energy, checked
from ebmlib.samplers import Info, tune

Kernel = Callable[..., tuple[Tensor, Info]]  # kernel(energy, x, rng=rng), leaving exp(-energy) invariant


def grid(box: float, n: int, device: torch.device | str | None = None) -> Tensor:
    """Midpoints of n x n equal cells on [-box, box]^2 as (n * n, 2); y is the slow index, x the fast one."""
    line = (torch.arange(n, device=device, dtype=torch.float32) + 0.5) * (2 * box / n) - box
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


@torch.no_grad()
def on_grid(function: Callable[[Tensor], Tensor], box: float, n: int, chunk: int = 40_000, device=None) -> Tensor:
    """Values of a function (B, 2) -> (B,) on `grid(box, n)` as (n, n) in float64, evaluated in chunks."""
    values = [function(part) for part in grid(box, n, device).split(chunk)]
    return torch.cat(values).double().reshape(n, n)


def interpolate(values: Tensor, box: float, x: Tensor) -> Tensor:
    """Values (n, n) on `grid(box, n)` at points x (B, 2), by Keys' cubic convolution: (B,) in float64.

    Exact for quadratics, of third order elsewhere (Keys, 1981). The outermost cell and what lies beyond is extrapolated
    from the four last rows. ValueError for n below 4.
    """
    n = len(values)
    if values.shape != (n, n) or n < 4:
        raise ValueError(f"interpolate needs square values of at least 4 a side; got {tuple(values.shape)}")
    place = (x.double() + box) * (n / (2 * box)) - 0.5  # in cells; (B, 2), fast index first
    first = place.floor().long().clamp(1, n - 3) - 1
    t = (place - first - 1)[..., None]  # 0..1 between the middle two of four nodes
    weight = torch.cat(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], 2
    )  # (B, 2, 4), twice Keys' weights
    four = torch.arange(4, device=x.device)
    rows, columns = first[:, 1, None] + four, first[:, 0, None] + four
    patch = values[rows[:, :, None], columns[:, None, :]].double()  # (B, 4, 4)
    return torch.einsum("brc,br,bc->b", patch, weight[:, 1], weight[:, 0]) / 4


def touched(box: float, n: int, x: Tensor) -> Tensor:
    """Which nodes of `grid(box, n)` `interpolate` reads for points x (B, 2): (n, n) of bool."""
    first = ((x.double() + box) * (n / (2 * box)) - 0.5).floor().long().clamp(1, n - 3) - 1
    four = torch.arange(4, device=x.device)
    found = torch.zeros(n, n, dtype=torch.bool, device=x.device)
    rows, columns = (first[:, k, None] + four for k in (1, 0))
    found[rows[:, :, None], columns[:, None, :]] = True
    return found


def log_z(energy: Energy, box: float, n: int = 600, device=None) -> Tensor:
    """log of the integral of exp(-E) over [-box, box]^2 by the midpoint rule with n x n cells, in nats."""
    values = on_grid(energy, box, n, device=device)
    return torch.logsumexp(-values.flatten(), 0) + 2 * math.log(2 * box / n)


def kl(
    log_p: Callable[[Tensor], Tensor], log_q: Callable[[Tensor], Tensor], box: float, n: int = 600, device=None
) -> Tensor:
    """KL(p || q) in nats by the midpoint rule on [-box, box]^2, of two normalized log densities (B, 2) -> (B,).

    Cells where p vanishes count 0. p is divided by its mass on the grid, which must be within 1 % of 1 (ValueError).
    """
    lp, lq = on_grid(log_p, box, n, device=device), on_grid(log_q, box, n, device=device)
    p = lp.exp() * (2 * box / n) ** 2
    mass = p.sum()
    if abs(float(mass) - 1) > 0.01:
        raise ValueError(
            f"kl needs p's mass inside the box: box = {box:g} with n = {n} holds {float(mass):.3f}, not .99 to 1.01"
        )
    return torch.where(p > 0, p * (lp - lq), 0.0).sum() / mass - mass.log()


@torch.no_grad()
def draw(
    energy: Energy, count: int, box: float, n: int = 600, slack: float = 1.0, rng: torch.Generator | None = None
) -> Tensor:
    """Exact samples (count, 2) of exp(-E) cut to [-box, box]^2, by rejection, on the generator's device.

    A cell is drawn by its midpoint's mass, a uniform point of it is kept with probability exp(E_mid - E(x) - slack).
    RuntimeError where E falls more than `slack` nats below its cell's midpoint: the cells are too coarse.
    """
    device = None if rng is None else rng.device
    mass = torch.softmax(-on_grid(energy, box, n, device=device).flatten(), 0)
    middle, kept = grid(box, n, device), []
    while sum(map(len, kept)) < count:
        center = middle[torch.multinomial(mass, 4 * count, replacement=True, generator=rng)]
        x = center + (torch.rand(center.shape, generator=rng, device=device) - 0.5) * (2 * box / n)
        log_ratio = energy(center) - energy(x) - slack
        if bool((log_ratio > 0).any()):
            raise RuntimeError(f"draw found an energy {slack:g} nats below its cell's midpoint: n = {n} is too coarse")
        kept.append(x[torch.rand(len(x), generator=rng, device=device).log() < log_ratio])
    return torch.cat(kept)[:count]


class Estimate(NamedTuple):
    """log Z in nats, its standard error by the delta method, and the effective sample size; float64 scalars."""

    log_z: Tensor
    se: Tensor
    ess: Tensor


class Annealed(NamedTuple):
    """Log weights (B,) in nats, float64, and the mean acceptance at each energy between the ends of the path."""

    log_w: Tensor
    acceptance: Tensor


def geometric(first: Energy, last: Energy, betas: Sequence[float]) -> list[Energy]:
    """The path (1 - beta) E_first + beta E_last, one energy for each beta; betas rise from 0 to 1 (Neal, 2001)."""
    if len(betas) < 2 or betas[0] != 0 or betas[-1] != 1:
        raise ValueError(f"betas must run from 0 to 1 in at least two values; got {list(map(float, betas))}")
    between = [lambda x, beta=beta: (1 - beta) * first(x) + beta * last(x) for beta in map(float, betas[1:-1])]
    return [first, *between, last]


def ais(
    path: Sequence[Energy], x: Tensor, kernels: Kernel | Sequence[Kernel], *, rng: torch.Generator | None = None
) -> tuple[Tensor, Annealed]:
    """Annealed importance sampling: log w = sum_k E_k(x_k) - E_{k+1}(x_k), x_0 = x exact draws of exp(-E_0) (B, *S).

    x_k is x_{k-1} moved by the kernel of E_k: one for all, or one for each energy between the ends. If they leave their
    densities invariant, E[w] = Z_last / Z_first, mixed or not; the bias of another kernel (ULA) stays in E[w]. On the
    reversed path, with draws of the last density, it is reverse AIS: E[w] = Z_first / Z_last. Neal (2001), section 2.
    """
    if not callable(kernels) and len(kernels) != len(path) - 2:
        raise ValueError(f"ais needs one kernel for each of the {len(path) - 2} energies between; got {len(kernels)}")
    x, log_w, acceptance = x.detach(), 0.0, []
    for k, (old, new) in enumerate(pairwise(path)):
        if k > 0:
            x, info = (kernels if callable(kernels) else kernels[k - 1])(old, x, rng=rng)
            acceptance.append(info.acceptance.mean())
        with torch.no_grad():
            log_w = log_w + (checked(old, x) - checked(new, x)).double()
    return x, Annealed(log_w, torch.stack(acceptance) if acceptance else log_w.new_zeros(0))


def tuned(
    path: Sequence[Energy], x: Tensor, kernel: Kernel, step: float, K: int, *, rng: torch.Generator | None = None
) -> list[Kernel]:
    """Kernels of K steps for `ais`, each at the step that `tune` finds on pilot chains x that walk the path.

    Weigh other chains than the pilots: a step that depends on the chain that it moves leaves no density invariant.
    """
    kernels = []
    for energy in path[1:-1]:
        step, x = tune(kernel, energy, x, step, K=10, rng=rng)
        kernels.append(partial(kernel, step=step, K=K))
    return kernels


def estimate(log_w: Tensor) -> Estimate:
    """log of the mean of w (B,), se = sd(w) / (mean(w) sqrt(B)), ESS = (sum w)^2 / sum w^2 (Kong, 1992).

    The weights' mean is unbiased, its log is low by about se^2 / 2. Few weights that dominate make se itself too small.
    """
    return importance_chain(log_w[None])


def importance_chain(log_w: Tensor) -> Estimate:
    """Sum over levels of log mean_i w_{k,i}, log w_{k,i} = E_k(y_i) - E_{k+1}(y_i) (T, M), y_i ~ exp(-E_k) itself.

    Unlike AIS it needs samples of every level. The error is that of sum_k w_{k,i} / mean(w_k), since the levels' i-th
    samples may come from one chain; ess is the smallest of a level. Source: DRL, Eqs. 33 to 36, f = -E.
    """
    log_w = log_w.double()
    M = log_w.shape[1]
    log_mean = torch.logsumexp(log_w, 1) - math.log(M)
    relative = (log_w - log_mean[:, None]).exp()  # (T, M), each row's mean is 1
    ess = M / (relative**2).mean(1)
    return Estimate(log_mean.sum(), relative.sum(0).std() / M**0.5, ess.min())


def lower_bound(log_w: Tensor, delta: float) -> Tensor:
    """A number that exceeds log E[w] with probability at most delta, for independent w >= 0 of any variance (*, B).

    A gambler who bets the share s on w / E[w] > 1 holds prod_i (1 - s + s w_i / E[w]), of mean 1: above 1 / delta it is
    with probability at most delta (Markov). The bound is the z that would make the mean over s = 1, 1/2, .. that rich.
    Source: Waudby-Smith and Ramdas (2024), a fixed mixture of bets.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1; got {delta!r}")
    log_w, B = log_w.double(), log_w.shape[-1]
    share = 0.5 ** torch.arange(1 + math.ceil(math.log2(B)), dtype=torch.float64, device=log_w.device)
    log_stay, log_share = torch.log1p(-share)[:, None], share.log()[:, None]  # -inf at the share 1, as it should be
    high = log_w.amax(-1)  # no w / z is above 1 here: nothing is won
    low = high - B * math.log(2) - math.log(len(share) / delta)  # the largest w alone wins enough
    for _ in range(60):  # bisection down to float64's digits: wealth falls with z
        z = (low + high) / 2
        wealth = torch.logaddexp(log_stay, log_share + (log_w - z[..., None])[..., None, :]).sum(-1)  # (*, shares)
        rich = torch.logsumexp(wealth, -1) - math.log(len(share)) >= -math.log(delta)
        low, high = torch.where(rich, z, low), torch.where(rich, high, z)
    return low


def bracket(forward: Tensor, reverse: Tensor, delta: float = 0.05) -> tuple[Tensor, Tensor]:
    """(low, high) that holds log Z with probability 1 - delta at least, from log weights (B,) of AIS and reverse AIS.

    It needs exact starts at both ends and invariant kernels, and nothing of the weights' variance or of mixing: bad
    annealing makes it wide, not wrong. Stochastic bounds: Grosse et al. (2015); their confidence: `lower_bound`.
    """
    return lower_bound(forward, delta / 2), -lower_bound(reverse, delta / 2)


def bits_per_dim(log_density: Tensor, d: int, width: float) -> Tensor:
    """-log2 p(x) / d - log2(width): bits a dimension for x uniform in its cell, from log p(x) (B,) in nats.

    `width` is that of a cell in units of x: 2 / 256 for 256 levels on [-1, 1], which adds 7. The mean over uniform
    draws in the cells is at least the bits of the cells themselves, by Jensen's inequality (Theis et al., 2016).
    """
    if not width > 0:
        raise ValueError(f"bits_per_dim needs a positive width of the cells; got {width!r}")
    return -log_density / (d * math.log(2)) - math.log2(width)
