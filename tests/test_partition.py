"""Partition functions: quadrature and annealed importance sampling against closed forms, bounds against their rates."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import assert_mean, cell_masses, drl_gaussian_level, gaussian_kl
from scipy.integrate import quad
from scipy.special import gamma
from scipy.stats import chi2

from ebmlib.papers.recovery import noising
from ebmlib.partition import (
    ais,
    bits_per_dim,
    bracket,
    draw,
    estimate,
    from_grid,
    geometric,
    grid,
    importance_chain,
    kl,
    log_z,
    lower_bound,
    on_grid,
    touched,
    tuned,
)
from ebmlib.samplers import Info, hmc, langevin, mala, ula
from ebmlib.targets import densities


def test_the_grid_is_the_midpoints_with_x_fast(device):
    points = grid(1.0, 4, device)
    assert points[:4, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert points[:4, 1].tolist() == [-0.75] * 4
    assert points[::4, 1].tolist() == [-0.75, -0.25, 0.25, 0.75]
    values = on_grid(lambda x: 10 * x[:, 1] + x[:, 0], 1.0, 4, device=device)
    assert values[2, 0] == 10 * 0.25 - 0.75  # rows are y
    assert values.dtype == torch.float64


def test_chunks_do_not_change_the_values(device):
    seen = []
    energy = lambda x: seen.append(len(x)) or (x**2).sum(1)
    small = on_grid(energy, 2.0, 30, chunk=77, device=device)
    assert max(seen) == 77
    assert sum(seen) == 900
    assert torch.equal(small, on_grid(energy, 2.0, 30, device=device))


@pytest.mark.parametrize("name", ["25-gaussians", "9-gaussians", "swiss-roll", "checkerboard"])
def test_log_z_of_normalized_densities_is_zero(name, device):
    density = densities.by_name(name)
    n = 300
    assert float(log_z(density.energy, density.box, n, device)) == pytest.approx(0, abs=2e-6)
    shifted = lambda x: density.energy(x).double() - 1000  # no overflow
    assert float(log_z(shifted, density.box, n, device)) == pytest.approx(1000, abs=2e-6)


def test_log_z_against_closed_forms(device):
    gaussian = lambda x: (x**2).sum(1) / (2 * 0.7**2)
    assert float(log_z(gaussian, 5.0, 200, device)) == pytest.approx(math.log(2 * math.pi * 0.7**2), abs=1e-6)
    quartic = lambda x: (x**4).sum(1) / 4
    truth = 2 * math.log(4**0.25 * gamma(0.25) / 2)
    assert float(log_z(quartic, 5.0, 400, device)) == pytest.approx(truth, abs=1e-6)
    # A box that cuts the mass loses just that: erf(1 / sqrt 2) on each axis.
    cut = float(log_z(gaussian, 0.7, 400, device)) - math.log(2 * math.pi * 0.7**2)
    assert cut == pytest.approx(2 * math.log(math.erf(1 / math.sqrt(2))), abs=1e-5)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.7), (-1.0, 1.6)])
def test_kl_between_gaussians(mean, std, device):
    p, q = densities.gaussian(0.8, (0.3, -0.2)), densities.gaussian(std, (mean, mean))
    truth = gaussian_kl(0.3, 0.8, mean, std) + gaussian_kl(-0.2, 0.8, mean, std)
    assert float(kl(p.log_prob, q.log_prob, 8.0, 300, device)) == pytest.approx(truth, abs=2e-5)
    back = gaussian_kl(mean, std, 0.3, 0.8) + gaussian_kl(mean, std, -0.2, 0.8)
    assert float(kl(q.log_prob, p.log_prob, 10.0, 300, device)) == pytest.approx(back, abs=1e-4)


def test_kl_where_p_vanishes(device):
    """The hard board is uniform on 8 unit squares of [-2, 2]^2, so E[x^2] = 4 / 3 on each axis."""
    board, q = densities.Checkerboard(edge=0.0), densities.gaussian(1.5)
    truth = -math.log(8) + math.log(2 * math.pi * 1.5**2) + 2 * (4 / 3) / (2 * 1.5**2)
    assert float(kl(board.log_prob, q.log_prob, 4.0, 320, device)) == pytest.approx(truth, abs=1e-4)
    assert float(kl(board.log_prob, board.log_prob, 4.0, 320, device)) == pytest.approx(0, abs=1e-6)
    assert float(kl(q.log_prob, board.log_prob, 9.0, 320, device)) == math.inf  # q has mass where the board has none


def test_kl_renormalizes_a_mass_that_is_almost_one(device):
    p, q = densities.gaussian(0.8), densities.gaussian(1.1)
    slightly = lambda x: p.log_prob(x) + 0.005
    truth = 2 * gaussian_kl(0, 0.8, 0, 1.1)
    assert float(kl(slightly, q.log_prob, 6.0, 300, device)) == pytest.approx(truth, abs=2e-5)


# -- exact draws --


@pytest.mark.parametrize("name", ["checkerboard", "9-gaussians"])
def test_draws_follow_the_cell_masses(name, device, rng):
    density, bins, count = densities.by_name(name), 12, 20_000
    x = draw(lambda x: density.energy(x) + 3.3, count, density.box, 400, rng=rng(5))
    edges = np.linspace(-density.box, density.box, bins + 1)
    found = np.histogram2d(*x.cpu().T.numpy(), bins=[edges, edges])[0]
    assert len(x) == found.sum() == count
    wanted = count * cell_masses(density, bins).numpy()
    some = wanted > 5
    score = ((found - wanted)[some] ** 2 / wanted[some]).sum()
    assert 1e-4 < chi2.sf(score, some.sum() - 1) < 1 - 1e-4


def test_draws_are_exact_inside_a_cell_too(rng):
    """Four cells for a Gaussian: all the shape is the rejection's."""
    density = densities.gaussian(1.0)
    x = draw(density.energy, 20_000, 1.0, 2, slack=0.3, rng=rng(6))
    cut = quad(lambda t: t**2 * math.exp(-(t**2) / 2), -1, 1)[0] / quad(lambda t: math.exp(-(t**2) / 2), -1, 1)[0]
    assert_mean(x**2, torch.tensor([cut, cut]), 0.003)
    assert_mean(x, torch.zeros(2), 0.005)


# -- annealed importance sampling --


def normal_energy(mean: float, std: float, level: float):
    """Energy of N(mean, std^2 I) plus a level, and its log Z in d dimensions."""
    return (
        lambda x: ((x - mean) ** 2).sum(1) / (2 * std**2) + level,
        lambda d: d / 2 * math.log(2 * math.pi * std**2) - level,
    )


FIRST, LAST = (0.0, 1.2, 0.4), (0.6, 0.9, -1.7)  # mean, std, level
BETAS = (0.0, 0.1, 0.25, 0.5, 1.0)


def between(beta: float) -> tuple[float, float]:
    """Mean and std of exp(-(1 - beta) E_first - beta E_last)."""
    w = (1 - beta) / FIRST[1] ** 2, beta / LAST[1] ** 2
    return (w[0] * FIRST[0] + w[1] * LAST[0]) / sum(w), sum(w) ** -0.5


def normals(law, n, d, rng, dtype):
    noise = torch.randn(n, d, generator=rng, device=rng.device, dtype=dtype)
    return law[0] + law[1] * noise


def gaussian_ais(kernels, n, d, rng, dtype, reverse=False):
    """Log weights along BETAS, and the true log Z ratio of their direction."""
    (first, z_first), (last, z_last) = normal_energy(*FIRST), normal_energy(*LAST)
    path, truth = geometric(first, last, BETAS), z_last(d) - z_first(d)
    if reverse:
        path, truth = path[::-1], -truth
    _, info = ais(path, normals(LAST if reverse else FIRST, n, d, rng, dtype), kernels, rng=rng)
    return info, truth


def test_a_geometric_path_of_gaussians(device, dtype, rng):
    path = geometric(normal_energy(*FIRST)[0], normal_energy(*LAST)[0], BETAS)
    x, origin = normals(FIRST, 100, 3, rng(0), dtype), torch.zeros(100, 3, device=device, dtype=dtype)
    for beta, energy in zip(BETAS, path, strict=True):
        mean, std = between(beta)
        truth = normal_energy(mean, std, 0.0)[0]
        torch.testing.assert_close(energy(x) - energy(origin), truth(x) - truth(origin))
    middle = (1 - BETAS[2]) * path[0](x) + BETAS[2] * path[-1](x)  # the levels are mixed, too
    torch.testing.assert_close(path[2](x), middle)


@pytest.mark.parametrize("kernel", [partial(mala, step=0.1, K=1), partial(hmc, step=0.4, K=1)], ids=["mala", "hmc"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("d", [1, 3])
def test_weights_are_unbiased_in_both_directions(d, reverse, kernel, dtype, rng):
    """One step a level is far from mixing: E[w] = Z_last / Z_first all the same."""
    info, truth = gaussian_ais(kernel, 60_000, d, rng(d), dtype, reverse)
    assert info.log_w.dtype == torch.float64
    assert_mean((info.log_w - truth).exp(), 1.0, 0.02)
    assert info.acceptance.shape == (len(BETAS) - 2,)
    assert 0.3 < float(info.acceptance.min()) < float(info.acceptance.max()) < 1


def test_with_perfect_kernels_the_mean_log_weight_is_low_by_the_divergences(dtype, rng):
    """E[log w] = log Z - sum KL(p_k, p_{k+1}) forward; reverse, -E[log w] = log Z + sum KL(p_{k+1}, p_k)."""

    def redraw(law):
        return lambda energy, x, rng: (normals(law, *x.shape, rng, x.dtype), Info(*x.new_ones(3, len(x))))

    laws, d = [between(beta) for beta in BETAS], 3
    kernels = [redraw(law) for law in laws[1:-1]]
    steps = list(pairwise(laws))
    for reverse, loss in (
        (False, sum(gaussian_kl(*p, *q) for p, q in steps)),
        (True, sum(gaussian_kl(*q, *p) for p, q in steps)),
    ):
        info, truth = gaussian_ais(kernels[::-1] if reverse else kernels, 40_000, d, rng(3), dtype, reverse)
        assert_mean(info.log_w, truth - d * loss, 0.02)


def test_a_kernel_that_is_not_exact_biases_the_weights_as_quadrature_says(dtype, rng):
    """E[w] for ULA on a path of three energies is a double integral; it is not Z_last / Z_first."""
    (first, z_first), (last, z_last) = normal_energy(0.0, 1.0, 0.4), normal_energy(0.0, 0.5, -1.7)
    middle = geometric(first, last, (0, 0.5, 1))[1]  # of variance 1 / (1 / 2 + 2)
    step, n = 0.4, 1000
    x = torch.linspace(-9, 9, n, dtype=torch.float64)[:, None]
    moved = x - step * x * 2.5
    move = torch.exp(-((x.T - moved) ** 2) / (4 * step)) / math.sqrt(4 * math.pi * step)  # (from, to)
    begin, end = torch.exp(-middle(x) - z_first(1)), torch.exp(middle(x) - last(x))
    value = float(begin @ move @ end) * (18 / (n - 1)) ** 2
    bias = math.log(value) - (z_last(1) - z_first(1))
    start = normals((0.0, 1.0), 100_000, 1, rng(4), dtype)
    kernel = lambda energy, x, rng: langevin(energy, x, ula(step, 1), rng=rng)
    _, info = ais([first, middle, last], start, kernel, rng=rng(5))
    assert_mean((info.log_w - math.log(value)).exp(), 1.0, 0.01)
    assert abs(bias) > 0.05  # ten times what the test above resolves


def test_without_levels_it_is_importance_sampling(dtype, rng):
    (first, _), (last, _) = normal_energy(*FIRST), normal_energy(*LAST)
    x = normals(FIRST, 50, 2, rng(0), dtype)
    after, info = ais([first, last], x, [])
    torch.testing.assert_close(info.log_w, (first(x) - last(x)).double())
    assert torch.equal(after, x)


def test_the_last_samples_with_their_weights_follow_the_last_density(dtype, rng):
    (first, _), (last, _) = normal_energy(*FIRST), normal_energy(*LAST)
    start = normals(FIRST, 60_000, 1, rng(7), dtype)
    x, info = ais(geometric(first, last, BETAS), start, partial(mala, step=0.1, K=2), rng=rng(8))
    weight = torch.softmax(info.log_w, 0) * len(x)
    assert_mean(weight * (x[:, 0] - LAST[0]).double(), 0.0, 0.01)
    assert_mean(weight * ((x[:, 0] - LAST[0]) ** 2 - LAST[1] ** 2).double(), 0.0, 0.01)


def test_tuned_kernels_keep_the_window_on_other_chains(dtype, rng):
    path = geometric(normal_energy(*FIRST)[0], normal_energy(*LAST)[0], BETAS)
    kernels = tuned(path, normals(FIRST, 500, 2, rng(1), dtype), mala, 50.0, 3, rng=rng(2))
    info, truth = gaussian_ais(kernels, 20_000, 2, rng(3), dtype)
    assert 0.55 < float(info.acceptance.min()) < float(info.acceptance.max()) < 0.95
    assert_mean((info.log_w - truth).exp(), 1.0, 0.02)
    assert [kernel.keywords["K"] for kernel in kernels] == [3] * 3


# -- the estimate and its error --


def test_the_estimate_of_a_few_weights_by_hand():
    log_w = torch.tensor([0, math.log(2), math.log(3)], dtype=torch.float64) + 1000  # no overflow
    log_z, se, ess = estimate(log_w)
    assert float(log_z) == pytest.approx(1000 + math.log(2), abs=1e-6)
    assert float(ess) == pytest.approx(36 / 14, rel=1e-4)  # (1 + 2 + 3)^2 / (1 + 4 + 9)
    assert float(se) == pytest.approx(1 / 2 / math.sqrt(3), rel=1e-4)  # the weights' std is 1, their mean 2
    assert [float(v) for v in estimate(torch.full((7,), -3.0))] == pytest.approx([-3, 0, 7])
    assert float(estimate(torch.tensor([0.0, -800.0, -900.0])).ess) == pytest.approx(1)


def test_the_effective_sample_size_of_lognormal_weights(rng):
    """E[w]^2 / E[w^2] = exp(-s^2)."""
    log_w = 0.7 * torch.randn(200_000, generator=rng(0), device=rng(0).device, dtype=torch.float64)
    assert float(estimate(log_w).ess) / 200_000 == pytest.approx(math.exp(-0.49), rel=0.02)


def test_the_standard_error_is_the_spread_over_runs(dtype, rng):
    runs, n, d = 400, 300, 2
    info, truth = gaussian_ais(partial(mala, step=0.1, K=1), runs * n, d, rng(11), dtype)
    log_z, se, _ = map(torch.stack, zip(*map(estimate, info.log_w.split(n))))
    error = log_z - truth
    score = error / se
    assert 0.9 < float(score.std()) < 1.15  # its own error is 3.5 %
    assert_mean(error + se**2 / 2, 0.0, 0.01)  # the log is low by se^2 / 2 (DRL, Eq. 38)
    assert float((score.abs() < 1.96).double().mean()) == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / runs) ** 0.5)


def drl_levels(d: int):
    """Energies of y_T .. y_0 for data N(0.3, 0.5^2 I) at T = 6, each level with its own constant, and their laws."""
    tables = noising(6)
    laws = [drl_gaussian_level(tables, t, 0.3, 0.25) for t in reversed(range(6))]
    laws = [(0.0, 1.0), *((m, v**0.5) for m, v in laws)]
    pairs = [normal_energy(m, s, 0.7 * k) for k, (m, s) in enumerate(laws)]
    return [e for e, _ in pairs], pairs[-1][1](d) - pairs[0][1](d), laws


@pytest.mark.parametrize("shared", [False, True], ids=["independent levels", "one chain through all levels"])
def test_the_importance_chain_of_recovery_likelihood(shared, dtype, rng):
    """Unbiased up to se^2 / 2, and its error counts that a chain's samples depend on each other."""
    d, M, runs = 2, 500, 200
    energies, truth, laws = drl_levels(d)
    found = []
    for run in range(runs):
        seeds = [run if shared else 1000 * k + run for k in range(len(laws) - 1)]
        x = [normals(law, M, d, rng(seed), dtype) for law, seed in zip(laws, seeds)]
        log_w = torch.stack([energies[k](x[k]) - energies[k + 1](x[k]) for k in range(len(x))])
        found.append(importance_chain(log_w))
    log_z, se, ess = map(torch.stack, zip(*found))
    assert 0.85 < float(((log_z - truth) / se).std()) < 1.2  # its own error is 5 %
    assert_mean(log_z - truth, 0.0, 0.02)
    assert float(se.mean()) < 0.15
    assert float(ess[-1]) == pytest.approx(min(float(estimate(row).ess) for row in log_w))


def test_bounds_from_samples_of_one_distribution_cross(rng):
    """Cauchy-Schwarz: log E_q e^D >= -log E_q e^-D for every q; for Gaussian D by its variance, by less in few samples.

    So a lower bound down the levels and an upper one up, both from a sampler's q, say nothing about log Z.
    """
    levels, spread, r = 5, 0.8, rng(31)
    shape = {"generator": r, "device": r.device, "dtype": torch.float64}
    gaps = {}
    for n in (4, 64, 4096):
        D = 3.0 + spread * torch.randn(40, levels, n, **shape)
        gaps[n] = torch.stack([importance_chain(d).log_z + importance_chain(-d).log_z for d in D])
        assert bool((gaps[n] > 0).all())
    assert float(gaps[4].mean()) < float(gaps[64].mean()) < levels * spread**2
    assert_mean(gaps[4096], levels * spread**2, se=0.02)


def test_the_importance_chain_is_too_low_where_levels_are_far_apart(device, rng):
    """16 dimensions as narrow as a gray value's cell under noise of 0.01, exact samples: its error bar is no error."""
    tables, runs, n, d, r = noising(1000, device=device), 50, 1000, 16, rng(32)
    cell = (2 / 256) ** 2 / 12
    v0, v1 = (tables.cum_a[:2] ** 2 * cell + tables.cum_sigma[:2] ** 2) * tables.scale[:2] ** 2
    square = (v1 * torch.randn(runs, n, d, generator=r, device=device, dtype=torch.float64) ** 2).sum(2)
    found = [importance_chain((y / (2 * v1) - y / (2 * v0))[None]) for y in square]
    error = torch.stack([one.log_z for one in found]) - d / 2 * (v0 / v1).log()
    assert -25 < float(error.mean()) < -5
    assert max(float(one.se) for one in found) < 1.01


# -- bounds that hold with a stated probability --


def numpy_wealth(log_w: np.ndarray, z: float) -> float:
    shares = [0.5**k for k in range(1 + math.ceil(math.log2(len(log_w))))]
    return float(np.mean([np.prod(1 - s + s * np.exp(log_w - z)) for s in shares]))


def test_the_bound_is_where_the_gambler_holds_one_over_delta(rng):
    log_w = torch.randn(40, generator=rng(0), device=rng(0).device)
    for delta in (0.01, 0.3):
        z = float(lower_bound(log_w, delta))
        assert numpy_wealth(log_w.double().cpu().numpy(), z) == pytest.approx(1 / delta, rel=1e-6)
        assert float(lower_bound(log_w.double() - 700, delta)) == pytest.approx(z - 700, abs=1e-6)
    # One weight: Markov's inequality itself.
    assert float(lower_bound(torch.tensor([2.0]), 0.1)) == pytest.approx(2 - math.log(10), abs=1e-6)
    assert float(lower_bound(torch.tensor([-math.inf, 0.0, 1.0]), 0.1)) < 1


@pytest.mark.parametrize("law", ["lognormal 0.3", "lognormal 2", "rare", "two values"])
def test_the_bound_exceeds_the_truth_no_more_often_than_it_says(law, rng):
    runs, n, delta, r = 500, 64, 0.2, rng(17)
    draw_ = partial(torch.rand, runs, n, generator=r, device=r.device, dtype=torch.float64)
    if law.startswith("lognormal"):
        s = float(law.split()[1])
        log_w = s * torch.randn(runs, n, generator=r, device=r.device, dtype=torch.float64) - s**2 / 2
    elif law == "rare":  # 20 with probability 1 / 20
        log_w = torch.where(draw_() < 0.05, math.log(20), -math.inf)
    else:
        log_w = torch.where(draw_() < 0.5, math.log(1.5), math.log(0.5))
    bounds = lower_bound(log_w, delta)
    wrong = float((bounds > 0).double().mean())
    assert wrong <= delta + 3 * (delta * (1 - delta) / runs) ** 0.5
    if law in ("lognormal 0.3", "two values"):
        assert wrong > 0.005  # and it is not so careful as to say nothing
        assert float(bounds.median()) > -0.25


def test_the_bound_closes_in_with_the_number_of_weights(rng):
    """Within three standard errors of the truth for tame weights, at delta = .025."""
    for n in (200, 2000, 20_000):
        log_w = 0.5 * torch.randn(n, generator=rng(n), device=rng(0).device, dtype=torch.float64) - 0.125
        found = estimate(log_w)
        gap = float((found.log_z - lower_bound(log_w, 0.025)) / found.se)
        assert 1.96 < gap < 4.5


def test_forward_lies_below_reverse_above_and_brackets_hold_at_their_rate(dtype, rng):
    """Few chains, few levels, five dimensions: the bounds are far apart on average, and brackets keep their promise."""
    runs, n, d, kernel, delta = 600, 8, 5, partial(mala, step=0.1, K=1), 0.1
    forward, truth = gaussian_ais(kernel, runs * n, d, rng(21), dtype)
    reverse, _ = gaussian_ais(kernel, runs * n, d, rng(22), dtype, reverse=True)
    low = torch.stack([estimate(part).log_z for part in forward.log_w.split(n)])
    high = torch.stack([-estimate(part).log_z for part in reverse.log_w.split(n)])
    for values, sign in ((low, -1), (high, 1)):
        assert sign * float((values - truth).mean()) > 4.5 * float(values.std()) / runs**0.5
    a, b = bracket(forward.log_w.reshape(runs, n), reverse.log_w.reshape(runs, n), delta)
    inside = float(((a <= truth) & (truth <= b)).double().mean())
    assert inside > 1 - delta - 3 * (delta * (1 - delta) / runs) ** 0.5
    assert float((b - a).median()) < 8
    assert torch.equal(a[0], lower_bound(forward.log_w[:n], 0.05))
    assert torch.equal(b[0], -lower_bound(reverse.log_w[:n], 0.05))


def test_a_missed_mode_makes_the_estimate_sure_and_wrong_and_the_bracket_wide(rng):
    """A base that sees one of 25 modes: forward AIS loses log 25, and its own error does not know."""
    density, std = densities.by_name("25-gaussians"), 0.15
    base = densities.gaussian(std).energy
    path = geometric(base, density.energy, [k / 8 for k in range(9)])
    kernel = partial(mala, step=0.002, K=1)
    device = rng(0).device
    _, forward = ais(path, std * torch.randn(400, 2, generator=rng(1), device=device), kernel, rng=rng(2))
    _, reverse = ais(path[::-1], density.sample(400, rng(3)), kernel, rng=rng(4))
    log_z, se, _ = estimate(forward.log_w)
    assert float(log_z) == pytest.approx(-math.log(25), abs=0.1)
    assert float(se) < 0.05
    low, high = bracket(forward.log_w, reverse.log_w)
    assert float(low) < 0 < float(high)


@pytest.mark.parametrize("name", ["9-gaussians", "checkerboard"])
def test_quadrature_is_the_referee_on_the_2d_densities(name, device, rng):
    density = densities.by_name(name)
    energy = lambda x: density.energy(x) - 2.5 + 0.3 * x[:, 0]  # tilted: no closed form
    truth, std = log_z(energy, 1.2 * density.box, 400, device), 0.6 * density.box
    base = densities.gaussian(std).energy
    path = geometric(base, energy, [(k / 12) ** 3 for k in range(13)])
    normal = lambda n, seed: std * torch.randn(n, 2, generator=rng(seed), device=device)
    kernels = tuned(path, normal(100, 0), mala, 0.1, 1, rng=rng(1))
    _, forward = ais(path, normal(1500, 2), kernels, rng=rng(3))
    x = draw(energy, 1500, 1.2 * density.box, 600, slack=3.0, rng=rng(4))
    _, reverse = ais(path[::-1], x, kernels[::-1], rng=rng(5))
    low, high = bracket(forward.log_w, reverse.log_w, 1e-3)
    assert low < truth < high
    assert high - low < 1.5
    found = estimate(forward.log_w)
    assert float(found.se) < 0.1
    assert abs(float(found.log_z + found.se**2 / 2 - truth)) < 4.5 * float(found.se)


WIDE, NARROW = densities.gaussian(1.0), densities.gaussian(0.02, (0.01, 0.01))
BAD = {
    "a box too small": (lambda: kl(WIDE.log_prob, WIDE.log_prob, 2.0, 300), r"box = 2 with n = 300 holds 0\.911"),
    "a grid too coarse": (lambda: kl(NARROW.log_prob, WIDE.log_prob, 5.0, 100), "box = 5 with n = 100 holds"),
    "betas": (lambda: geometric(len, len, [0, 0.5]), "betas must rise from 0 to 1"),
    "falling betas": (lambda: geometric(len, len, [0, 0.6, 0.5, 1]), r"betas must rise .* got \[0.0, 0.6, 0.5, 1.0\]"),
    "kernels": (lambda: ais([len] * 4, torch.ones(2, 2), [len]), "each of the 2 energies between; got 1"),
    "delta": (lambda: lower_bound(torch.ones(3), 1.0), "delta must lie between 0 and 1; got 1.0"),
    "nodes": (lambda: from_grid(torch.zeros(3, 3), 2.0, torch.zeros(1, 2)), r"n >= 4; got \(3, 3\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, sentence = BAD[name]
    with pytest.raises(ValueError, match=sentence):
        call()


def test_draw_refuses_cells_that_are_too_coarse(rng):
    with pytest.raises(RuntimeError, match="1 nats below its cell's midpoint: n = 2"):
        draw(densities.gaussian(0.1).energy, 1000, 1.0, 2, rng=rng(0))


# -- values between the grid's points --


def test_interpolation_is_exact_for_quadratics_and_of_third_order(device, rng):
    x = 1.9 * (2 * torch.rand(500, 2, generator=rng(70), device=device, dtype=torch.float64) - 1)
    quadratic = lambda x: 1 + 0.3 * x[:, 0] - 2 * x[:, 1] + 0.7 * x[:, 0] ** 2 - x[:, 0] * x[:, 1] + 0.2 * x[:, 1] ** 2
    values = on_grid(quadratic, 2.0, 12, device=device)
    found = from_grid(values, 2.0, x)
    torch.testing.assert_close(found, quadratic(x), atol=2e-5, rtol=0)  # the grid itself is float32
    wave = lambda x: torch.sin(2 * x[:, 0]) * torch.cos(3 * x[:, 1])
    inner = 0.8 * x
    errors = []
    for n in (20, 40):
        found = from_grid(on_grid(wave, 2.0, n, device=device), 2.0, inner)
        errors.append(float((found - wave(inner)).abs().max()))
    assert errors[0] / errors[1] > 6  # 2^3


def test_touched_nodes_are_those_that_the_interpolation_reads(device, rng):
    x = 2 * torch.rand(5, 2, generator=rng(71), device=device) - 1
    read = touched(2.0, 16, x)
    values = torch.zeros(16, 16, device=device).requires_grad_(True)
    noise = from_grid(values, 2.0, x).sum()
    (grad,) = torch.autograd.grad(noise, values)
    assert bool((grad[~read] == 0).all())
    assert bool((grad[read] != 0).all())


# -- bits per dimension --


def test_bits_of_a_wide_gaussian_on_256_levels(device, rng):
    """The cells' exact bits, from the normal CDF, and the density's at uniform points of the cells: equal but for the
    curvature within a cell. The constant is 7 for cells 2 / 256 wide.
    """
    law, d, n = torch.distributions.Normal(torch.tensor(0.1).double(), torch.tensor(0.2).double()), 3, 40_000
    pixel = ((law.sample((n, d)) + 1) * 128).floor().clamp(0, 255)
    u = torch.rand(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = bits_per_dim(law.log_prob((pixel + u) / 128 - 1).sum(1), d, 2 / 256)
    edges = law.cdf(torch.arange(257, dtype=torch.float64) / 128 - 1)
    exact = -(edges[1:] - edges[:-1]).log2()[pixel.long()].mean(1)
    assert_mean(found - exact, 0.0, se=1e-4)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * 0.2**2) + 7
    assert_mean(found, entropy, se=0.01)
    assert float(bits_per_dim(torch.zeros(1), 5, 2 / 256)) == 7.0  # the uniform density on cells' own scale
    assert float(bits_per_dim(torch.tensor([-4 * math.log(2.0)]), 4, 1.0)) == pytest.approx(1.0)


def test_bits_of_a_density_narrower_than_a_cell_are_bounded_from_above():
    """All mass in one cell has 0 bits; the mean over the cell's points is larger, as Jensen has it."""
    law = torch.distributions.Normal(torch.tensor(0.5 / 128).double(), torch.tensor(0.05 / 128).double())
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert float(bits_per_dim(law.log_prob(u / 128), 1, 2 / 256).mean()) > 1
