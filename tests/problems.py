"""Exact answers that the tests hold the library to."""

import math

import numpy as np
import torch
from scipy.integrate import quad
from scipy.special import log_ndtr, logsumexp, roots_legendre
from scipy.stats import ncx2

# Mean log-likelihood in nats of the 2D targets under themselves, to two decimals.
MEAN_LOG_PROB = {"25-gaussians": -1.10, "9-gaussians": -1.36, "swiss-roll": -0.58}


def separated_modes_mean_log_prob(modes: int, std: float) -> float:
    """E[log p] of equal isotropic 2D Gaussians that do not overlap: -(log m + log(2 pi e s^2))."""
    return -math.log(modes) - math.log(2 * math.pi * math.e * std**2)


def cell_masses(density, bins: int, order: int = 16) -> torch.Tensor:
    """Mass of each of bins x bins squares of the density's box, by a product Gauss-Legendre rule, float64."""
    node, weight = roots_legendre(order)
    width = 2 * density.box / bins
    left = -density.box + width * np.arange(bins)
    axis = torch.as_tensor(left[:, None] + width * (node + 1) / 2).flatten()  # (bins * order,)
    p = density.log_prob(torch.cartesian_prod(axis, axis)).exp().reshape(bins, order, bins, order)
    w = torch.as_tensor(weight * width / 2)
    return torch.einsum("iajb,a,b->ij", p, w, w)


def checkerboard_log_prob(x: np.ndarray, edge: float, half: float, cells: int) -> np.ndarray:
    """The blurred board as a sum over its filled squares of products of normal CDF differences, in log space."""
    side = 2 * half / cells
    terms = []
    for i in range(cells):
        for j in range(cells):
            if (i + j) % 2 == 0:
                d = np.abs(x - (np.array([i, j]) + 0.5) * side + half)  # (B, 2)
                high, low = (log_ndtr((s * side / 2 - d) / (edge * side)) for s in (1, -1))
                terms.append((high + np.log1p(-np.exp(low - high))).sum(1))
    return logsumexp(terms, axis=0) - math.log(len(terms)) - 2 * math.log(side)


# -- Chains on N(0, s^2): every Langevin step is linear there, so mean and variance follow exact recursions. --


def stationary_variance(a: float, b: float, s: float) -> float:
    """Variance that the update x - a x / s^2 + b xi settles at: b^2 / (2a/s^2 - a^2/s^4), for 0 < a < 2 s^2."""
    return b**2 / (2 * a / s**2 - a**2 / s**4)


def gaussian_chain(schedule, s: float, mean: float, variance: float, center: float = 0.0) -> tuple[float, float]:
    """Mean and variance after a schedule of pairs (a, b) on N(center, s^2), from a law of this mean and variance."""
    for a, b in schedule:
        keep = 1 - a / s**2
        mean, variance = center + keep * (mean - center), keep**2 * variance + b**2
    return mean, variance


def assert_mean(values: torch.Tensor, truth, se: float, z: float = 4.5) -> None:
    """The mean of N independent values (N, *) is `truth` (*) to z standard errors, each of them at most `se`."""
    values = values.detach().double().cpu()
    truth = torch.as_tensor(truth, dtype=torch.float64)
    error = values.std(0) / math.sqrt(len(values))
    assert float(error.max()) <= se, f"the standard error {float(error.max()):.3g} is above {se:.3g}"
    score = (values.mean(0) - truth) / error
    worst = float(score.abs().max())
    assert worst < z, f"mean {values.mean(0).tolist()}, truth {truth.tolist()}: {worst:.1f} standard errors"


# -- A skewed, light-tailed one-dimensional target whose moments quadrature knows. --


def quartic(x: torch.Tensor) -> torch.Tensor:
    """Energy (B, d) -> (B,): the sum over coordinates of x^4 / 4 + x / 2."""
    return (x**4 / 4 + x / 2).sum(1)


def quartic_moment(power: int) -> float:
    """E[x^power] of one coordinate of exp(-quartic)."""
    weight = lambda x, k: x**k * math.exp(-(x**4) / 4 - x / 2)
    return quad(weight, -8, 8, args=(power,))[0] / quad(weight, -8, 8, args=(0,))[0]


# -- Diffusion recovery likelihood: the released code's T = 6 on CIFAR-10, recomputed, to the digits printed. --

DRL_T6 = {
    "a": (0.99995, 0.94617, 0.85629, 0.77480, 0.70092, 0.63396, 0.02278),
    "sigma": (0.01000, 0.32368, 0.51650, 0.63221, 0.71324, 0.77337, 0.99974),
    "sigma2": (1e-4, 0.10477, 0.26677, 0.39969, 0.50871, 0.59810, 0.99948),
    "cum_a": (0.99995, 0.94612, 0.81015, 0.62770, 0.43997, 0.27892, 0.00635),
    "cum_sigma": (0.01000, 0.32382, 0.58622, 0.77845, 0.89801, 0.96031, 0.99998),
}
DRL_T6_C2 = (1, 32.38, 58.62, 77.85, 89.80, 96.03)
DRL_T6_DELTA = (0.0046, 0.0416, 0.0685, 0.0890, 0.1036, 0.1386)
DRL_T6_WEIGHT = (1, 0.6267, 0.5120, 0.4538, 0.4185, 0.3238)


def drl_noise(T: int) -> dict[str, list[float]]:
    """sigma^2 and a of the noise steps 0..T, from the betas one by one: 2 <= T <= 501, or T = 1."""
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    stride = 1000 // (2 * (T - 1)) if T > 1 else None
    edges = [*(k * stride for k in range(T)), 999] if T > 1 else [0, 999]
    a2, start = [], 0
    for edge in edges:
        a2.append(math.prod(1 - beta for beta in betas[start : edge + 1]))
        start = edge + 1
    return {"sigma2": [1 - v for v in a2], "a": [math.sqrt(v) for v in a2]}


def gaussian_posterior(x_next, mean: float, variance: float, noise: float):
    """Mean and variance of y given x_next = y + noise xi, for y ~ N(mean, variance)."""
    gain = variance / (variance + noise**2)
    return mean + gain * (x_next - mean), gain * noise**2


def gaussian_kl(mean_p: float, std_p: float, mean_q: float, std_q: float) -> float:
    """KL of one-dimensional Gaussians in nats."""
    return math.log(std_q / std_p) + (std_p**2 + (mean_p - mean_q) ** 2) / (2 * std_q**2) - 0.5


def drl_gaussian_level(tables, t: int, mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance of y_t = scale x_t for data N(mean, variance)."""
    scale, a, sigma = (float(table[t]) for table in (tables.scale, tables.cum_a, tables.cum_sigma))
    return scale * a * mean, scale**2 * (a**2 * variance + sigma**2)


def drl_gaussian_energies(tables, mean: float, variance: float):
    """t (B,) to the exact energy of y_t for data N(mean, variance), up to a constant."""
    laws = [drl_gaussian_level(tables, t, mean, variance) for t in range(tables.T)]
    m, v = torch.tensor(laws, dtype=torch.float64, device=tables.a.device).T
    return lambda t: lambda y: ((y.flatten(1) - m[t, None]) ** 2).sum(1) / (2 * v[t])


def drl_gaussian_samples(tables, K: int, noise: float, mean: float, variance: float) -> list[tuple[float, float]]:
    """Mean and variance of x_t, t = T - 1 .. 0, in progressive sampling with the exact energies of Gaussian data.

    A chain is linear in its start x_{t+1}, the center of its quadratic term too: y = gain x_{t+1} + shift + noise.
    """
    law, laws = (0.0, 1.0), []
    for t in reversed(range(tables.T)):
        m, v = drl_gaussian_level(tables, t, mean, variance)
        if K:
            a, b = float(tables.delta[t]) ** 2 / 2, noise * float(tables.delta[t])
        else:
            a, b = float(tables.sigma[t + 1]) ** 2, noise * float(tables.sigma[t + 1])
        pull = float(tables.precision[t])
        gain, shift, spread = 1.0, 0.0, 0.0
        for _ in range(max(K, 1)):
            keep = 1 - a / v - a * pull
            gain, shift, spread = keep * gain + a * pull, keep * shift + a * m / v, keep**2 * spread + b**2
        scale = float(tables.scale[t])
        law = (gain * law[0] + shift) / scale, (gain**2 * law[1] + spread) / scale**2
        laws.append(law)
    return laws


def drl_gaussian_map(tables, K: int, noise: float, mean: float, variance: float):
    """x_0 as a function of the noise: (shift, factor of x_T, factors of the K noises of levels T - 1 .. 0 in order).

    x_0 = shift + factor x_T + sum_k factors[k] eps_k, coordinate by coordinate, for exact energies of Gaussian data.
    """
    shift, start, factors = 0.0, 1.0, []
    for t in reversed(range(tables.T)):
        m, v = drl_gaussian_level(tables, t, mean, variance)
        a, b, pull = float(tables.delta[t]) ** 2 / 2, noise * float(tables.delta[t]), float(tables.precision[t])
        center = [shift, start, *factors, *[0.0] * K]  # of the level's quadratic term, in units of each noise
        y = list(center)
        for k in range(K):
            y = [value - a * (value / v + pull * (value - at)) for value, at in zip(y, center)]
            y[0] += a * m / v
            y[2 + len(factors) + k] += b
        shift, start, *factors = (value / float(tables.scale[t]) for value in y)
    return shift, start, factors


# -- Improved contrastive divergence: the nearest of M independent points. --


def nearest_log_distance(s: float, M: int) -> float:
    """E log min_j |x - r_j| for x and M points r_j from N(0, s^2 I) in 2D, by quadrature.

    A point of |x|^2 = 2 s^2 v, v exponential, has its nearest beyond r with probability (1 - F(r))^M, where F is a
    noncentral chi-square law; E log r is t0 plus the integral of P(log r > t) above any t0 that log r never reaches.
    """
    v, weight = np.polynomial.laguerre.laggauss(40)
    t = np.linspace(-10, 2.5, 501)
    beyond = (1 - ncx2.cdf(np.exp(2 * t)[:, None], 2, 2 * v)) ** M @ weight  # (t,)
    return math.log(s) + t[0] + np.trapezoid(beyond, t)
