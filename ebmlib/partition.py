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

from ebmlib.core import Energy, Rng, checked
from ebmlib.samplers import Info, tune

Kernel = Callable[..., tuple[Tensor, Info]]  # kernel(energy, x, rng=rng), leaving exp(-energy) invariant


def grid(box: float, n: int, device: torch.device | str | None = None) -> Tensor:
    """Midpoints of n x n equal cells on [-box, box]^2 as (n * n, 2); y is the slow index, x the fast one."""
    line = (torch.arange(n, device=device, dtype=torch.get_default_dtype()) + 0.5) * (2 * box / n) - box
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


@torch.no_grad()
def on_grid(function: Callable[[Tensor], Tensor], box: float, n: int, chunk: int = 40_000, device=None) -> Tensor:
    """Values of a function (B, 2) -> (B,) on `grid(box, n)` as (n, n) in float64, evaluated in chunks."""
    values = [function(part) for part in grid(box, n, device).split(chunk)]
    return torch.cat(values).double().reshape(n, n)


def _around(n: int, box: float, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The four rows and columns (B, 4) of `grid(box, n)` around x (B, 2), and x's place 0..1 between the inner two."""
    place = (x.double() + box) * (n / (2 * box)) - 0.5  # in cells; (B, 2), fast index first
    first = place.floor().long().clamp(1, n - 3) - 1
    nodes = first[..., None] + torch.arange(4, device=x.device)
    return nodes[:, 1], nodes[:, 0], (place - first - 1)[..., None]


def from_grid(values: Tensor, box: float, x: Tensor) -> Tensor:
    """Values (n, n) on `grid(box, n)` at points x (B, 2), interpolated: (B,).

    Keys' cubic convolution (1981) in float64: exact for quadratics, of third
    order elsewhere; the outermost cell and what lies beyond is extrapolated.
    """
    n, got = len(values), tuple(values.shape)
    if got != (n, n) or n < 4:
        raise ValueError(f"values must be (n, n) with n >= 4; got {got}")
    rows, columns, t = _around(n, box, x)
    inner = 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3
    weight = torch.cat([-t + 2 * t**2 - t**3, *inner, t**3 - t**2], 2)
    patch = values[rows[:, :, None], columns[:, None, :]].double()
    of_x, of_y = weight[:, 0], weight[:, 1]  # (B, 4), twice Keys' weights
    return torch.einsum("brc,br,bc->b", patch, of_y, of_x) / 4


def touched(box: float, n: int, x: Tensor) -> Tensor:
    """Which nodes of `grid(box, n)` `from_grid` reads for points x (B, 2): (n, n) of bool."""
    rows, columns, _ = _around(n, box, x)
    found = torch.zeros(n, n, dtype=torch.bool, device=x.device)
    found[rows[:, :, None], columns[:, None, :]] = True
    return found


def log_z(energy: Energy, box: float, n: int = 600, device=None) -> Tensor:
    """log of the integral of exp(-E) over [-box, box]^2, in nats.

    By the midpoint rule with n x n cells.
    """
    values = on_grid(energy, box, n, device=device)
    cell = 2 * math.log(2 * box / n)
    return torch.logsumexp(-values.flatten(), 0) + cell


def kl(
    log_p: Callable[[Tensor], Tensor], log_q: Callable[[Tensor], Tensor], box: float, n: int = 600, device=None
) -> Tensor:
    """KL(p || q) in nats by the midpoint rule on [-box, box]^2, of two normalized log densities (B, 2) -> (B,).

    p is divided by its mass on the grid, which must be within 1 % of 1 (ValueError).
    """
    lp, lq = on_grid(log_p, box, n, device=device), on_grid(log_q, box, n, device=device)
    p = lp.exp() * (2 * box / n) ** 2
    mass = p.sum()
    if abs(float(mass) - 1) > 0.01:
        held = f"box = {box:g} with n = {n} holds {float(mass):.3f}, not .99 to 1.01"
        raise ValueError(f"kl needs p's mass inside the box: {held}")
    return torch.where(p > 0, p * (lp - lq), 0.0).sum() / mass - mass.log()


@torch.no_grad()
def draw(
    energy: Energy, count: int, box: float, n: int = 600, slack: float = 1.0,
    rng: Rng = None
) -> Tensor:  # fmt: skip
    """Exact samples (count, 2) of exp(-E) cut to [-box, box]^2, by rejection.

    A cell is drawn by its midpoint's mass, a uniform point of it is kept with
    probability exp(E_mid - E(x) - slack). RuntimeError where E falls more than
    `slack` nats below its cell's midpoint. On the generator's device.
    """
    device = None if rng is None else rng.device
    values = on_grid(energy, box, n, device=device)
    mass = torch.softmax(-values.flatten(), 0)
    middle, kept = grid(box, n, device), []
    while sum(map(len, kept)) < count:
        cell = torch.multinomial(mass, 4 * count, True, generator=rng)
        center = middle[cell]
        shift = torch.rand(center.shape, generator=rng, device=device) - 0.5
        x = center + shift * (2 * box / n)
        log_ratio = energy(center) - energy(x) - slack
        if bool((log_ratio > 0).any()):
            below = f"{slack:g} nats below its cell's midpoint"
            raise RuntimeError(f"an energy is {below}: n = {n} is too coarse")
        uniform = torch.rand(len(x), generator=rng, device=device)
        kept.append(x[uniform.log() < log_ratio])
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
    if len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or any(b < a for a, b in pairwise(betas)):
        raise ValueError(f"betas must rise from 0 to 1 in at least two values; got {list(map(float, betas))}")
    between = [lambda x, beta=beta: (1 - beta) * first(x) + beta * last(x) for beta in map(float, betas[1:-1])]
    return [first, *between, last]


def ais(
    path: Sequence[Energy], x: Tensor, kernels: Kernel | Sequence[Kernel], *,
    rng: Rng = None
) -> tuple[Tensor, Annealed]:  # fmt: skip
    """Annealed importance sampling: log w = sum_k E_k(x_k) - E_{k+1}(x_k).

    x_0 = x (B, *S) are exact draws of exp(-E_0); x_k is x_{k-1} moved by the
    kernel of E_k, one for all or one for each energy between the ends. If
    kernels leave their densities invariant, E[w] = Z_last / Z_first, mixed or
    not. With draws of the last density on the reversed path it is reverse AIS.
    Source: Neal (2001), section 2.
    """
    between = len(path) - 2
    kernels = [kernels] * between if callable(kernels) else kernels
    if len(kernels) != between:
        wanted = f"one kernel for each of the {between} energies between"
        raise ValueError(f"ais needs {wanted}; got {len(kernels)}")
    x, log_w, acceptance = x.detach(), 0.0, []
    for k, (old, new) in enumerate(pairwise(path)):
        if k > 0:
            x, info = kernels[k - 1](old, x, rng=rng)
            acceptance.append(info.acceptance.mean())
        with torch.no_grad():
            log_w = log_w + (checked(old, x) - checked(new, x)).double()
    means = torch.stack(acceptance) if acceptance else log_w.new_zeros(0)
    return x, Annealed(log_w, means)


def tuned(path: Sequence[Energy], x: Tensor, kernel: Kernel, step: float, K: int, *, rng: Rng = None) -> list[Kernel]:
    """Kernels of K steps for `ais`, each at the step that `tune` finds on pilot chains x, which must not be weighed."""
    kernels = []
    for energy in path[1:-1]:
        step, x = tune(kernel, energy, x, step, K=10, rng=rng)
        kernels.append(partial(kernel, step=step, K=K))
    return kernels


def estimate(log_w: Tensor) -> Estimate:
    """log of the mean of w (B,), low by about se^2 / 2; se = sd(w) / (mean(w) sqrt(B)), ESS = (sum w)^2 / sum w^2."""
    return importance_chain(log_w[None])


def importance_chain(log_w: Tensor) -> Estimate:
    """Sum over levels of log mean_i w_{k,i}, from log_w (T, M).

    log w_{k,i} = E_k(y_i) - E_{k+1}(y_i) at samples y_i of exp(-E_k). The
    error is that of the sum over k of w_{k,i} / mean(w_k), since the levels'
    i-th samples may come from one chain; ess is the smallest of the levels'.
    The samples must be of exp(-E_k) itself: DRL's conditional chains give
    others, and then this is no bound. Source: DRL, Eqs. 33 to 36, f = -E.
    """
    log_w = log_w.double()
    M = log_w.shape[1]
    log_mean = torch.logsumexp(log_w, 1) - math.log(M)
    relative = (log_w - log_mean[:, None]).exp()  # the mean of each row is 1
    ess = M / (relative**2).mean(1)
    se = relative.sum(0).std() / M**0.5
    return Estimate(log_mean.sum(), se, ess.min())


def lower_bound(log_w: Tensor, delta: float) -> Tensor:
    """A number above log E[w] with probability at most delta.

    From log_w (*, B), for independent w >= 0 of any variance: Markov's
    inequality for the mean over s = 1, 1/2, .. of prod_i (1 - s + s w_i / z),
    which is 1 at z = E[w]. The bound is the z at which it is 1 / delta.
    Source: Waudby-Smith and Ramdas (2024), a fixed mixture of bets.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1; got {delta!r}")
    log_w, B = log_w.double(), log_w.shape[-1]
    powers = torch.arange(1 + math.ceil(math.log2(B)), device=log_w.device)
    share = 0.5 ** powers.double()
    stay = torch.log1p(-share)[:, None]  # -inf at the share 1
    log_share, count = share.log()[:, None], len(share)
    high = log_w.amax(-1)  # no w / z is above 1 here: nothing is won
    low = high - B * math.log(2) - math.log(count / delta)  # the largest wins
    for _ in range(60):  # bisection to float64's digits: wealth falls with z
        z = (low + high) / 2
        bets = log_share + (log_w - z[..., None])[..., None, :]
        wealth = torch.logaddexp(stay, bets).sum(-1)  # (*, shares)
        mean = torch.logsumexp(wealth, -1) - math.log(count)
        rich = mean >= -math.log(delta)
        low, high = torch.where(rich, z, low), torch.where(rich, high, z)
    return low


def bracket(forward: Tensor, reverse: Tensor, delta: float = 0.05) -> tuple[Tensor, Tensor]:
    """(low, high) that holds log Z with probability 1 - delta at least, from log weights (B,) of AIS and reverse AIS.

    It needs exact starts at both ends and invariant kernels; bad annealing makes it wide, not wrong (`lower_bound`).
    """
    return lower_bound(forward, delta / 2), -lower_bound(reverse, delta / 2)


def bits_per_dim(log_density: Tensor, d: int, width: float) -> Tensor:
    """-log2 p(x) / d - log2(width): bits a dimension for x uniform in its cell, from log p(x) (B,) in nats.

    `width` is a cell's in units of x, 2 / 256 for 256 levels on [-1, 1]. On average at least the bits of the cells
    themselves (Theis et al., 2016).
    """
    return -log_density / (d * math.log(2)) - math.log2(width)
