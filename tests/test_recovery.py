"""Diffusion recovery likelihood: the tables digit by digit, the pairs' law, Bayes, and the data law after sampling."""

import math

import numpy as np
import pytest
import torch
from problems import (
    DRL_T6,
    DRL_T6_C2,
    DRL_T6_DELTA,
    DRL_T6_WEIGHT,
    assert_mean,
    drl_gaussian_energies,
    drl_gaussian_level,
    drl_gaussian_samples,
    drl_noise,
    gaussian_posterior,
    quartic,
)
from torch.distributions import Categorical, MixtureSameFamily, Normal

from ebmlib.core import flat_sum
from ebmlib.papers.recovery import (
    band,
    by_level,
    chains_of,
    coarse_to_fine,
    conditional,
    inpaint,
    levels,
    merged,
    noising,
    progressive,
    schedule,
    split,
)
from ebmlib.samplers import hmc, langevin, mala

# -- tables --


@pytest.mark.parametrize("name", DRL_T6)
def test_the_level_table_of_the_release(name):
    tables = noising(6)
    values = tables.sigma**2 if name == "sigma2" else getattr(tables, name)
    np.testing.assert_allclose(values, DRL_T6[name], rtol=0, atol=5.1e-6)  # five digits as printed


def test_steps_scales_and_weights_of_the_release():
    tables = noising(6)
    c2 = tables.delta**2 / (2e-4 * tables.sigma[1:] ** 2)
    np.testing.assert_allclose(c2, DRL_T6_C2, rtol=0, atol=5.1e-3)
    np.testing.assert_allclose(tables.delta, DRL_T6_DELTA, rtol=0, atol=5.1e-5)
    torch.testing.assert_close(tables.energy_scale, tables.delta**2)
    # The loss is on the energy net / delta^2: on the raw net each level weighs sigma_1 / sigma_{t+1}.
    np.testing.assert_allclose(tables.weight / tables.energy_scale, DRL_T6_WEIGHT, rtol=0, atol=5.1e-5)
    torch.testing.assert_close(tables.scale[:-1], tables.a[1:-1])
    torch.testing.assert_close(tables.precision[:-1], 1 / tables.sigma[1:-1] ** 2)
    # "In 30 steps the pull to x_{t+1} realises only 0.3 % .. 23.7 % of its way."
    way = 1 - (1 - tables.delta**2 / 2 / tables.sigma[1:] ** 2) ** 30
    np.testing.assert_allclose([way[0], way[4]], [0.003, 0.237], atol=5e-4)


@pytest.mark.parametrize("T", [1, 2, 3, 6, 50, 501])
def test_noise_against_the_betas_one_by_one(T, device):
    tables, truth = noising(T, device=device), drl_noise(T)
    assert tables.T == T
    np.testing.assert_allclose(tables.sigma.cpu() ** 2, truth["sigma2"], rtol=2e-6)
    np.testing.assert_allclose(tables.a.cpu(), truth["a"], rtol=2e-6)
    np.testing.assert_allclose(tables.cum_a.cpu(), np.cumprod(truth["a"]), rtol=1e-6)
    np.testing.assert_allclose(tables.cum_sigma.cpu(), np.sqrt(1 - np.cumprod(truth["a"]) ** 2), rtol=1e-5)
    assert (tables.scale[-1], tables.precision[-1]) == (1, 0)  # the last level: not rescaled, and no quadratic term


def test_a_thousand_levels_take_every_beta():
    tables = noising(1000)
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(tables.sigma[1:] ** 2, betas, rtol=1e-6)
    assert tables.sigma[0] == 0  # x_0 is the data
    np.testing.assert_allclose(tables.a[1:], np.sqrt(1 - betas), rtol=1e-6)
    np.testing.assert_allclose(tables.precision, 1 / betas, rtol=1e-6)  # every level has its quadratic term
    torch.testing.assert_close(tables.scale, tables.a[1:])
    torch.testing.assert_close(tables.energy_scale, tables.sigma[1:] ** 2)
    np.testing.assert_allclose(tables.weight / tables.energy_scale, np.sqrt(betas[0] / betas), rtol=1e-5)
    assert float(tables.cum_a[-1]) == pytest.approx(math.sqrt(math.prod(1 - betas)), rel=1e-5)


@pytest.mark.parametrize("T", [1, 2, 6, 501])
def test_the_text_is_equations_15_to_17(T):
    tables = noising(T, 4e-8, "text")
    last = drl_noise(T)["sigma2"][-1]
    np.testing.assert_allclose(tables.sigma**2, last * np.arange(T + 1) / T, rtol=2e-6)
    np.testing.assert_allclose(tables.a**2 + tables.sigma**2, np.ones(T + 1), rtol=1e-6)
    np.testing.assert_allclose(tables.delta, 2e-4 * tables.sigma[1:], rtol=1e-6)  # delta = b sigma, b = .0002
    torch.testing.assert_close(tables.scale, tables.a[1:])
    torch.testing.assert_close(tables.precision, 1 / tables.sigma[1:] ** 2)
    assert tables.energy_scale.tolist() == [1.0] * T
    assert tables.weight.tolist() == [1.0] * T
    # Taken literally, 30 steps go 6e-7 of the way to x_{t+1}.
    assert float(30 * tables.delta[0] ** 2 / 2 / tables.sigma[1] ** 2) == pytest.approx(6e-7, rel=1e-4)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_weights_on_the_raw_net_are_a_power_of_the_release_s(power, scaled):
    tables = noising(6, scaled=scaled, weight_power=power)
    np.testing.assert_allclose(tables.weight / tables.energy_scale, np.array(DRL_T6_WEIGHT) ** power, atol=1e-4)
    torch.testing.assert_close(tables.energy_scale, tables.delta**2 if scaled else torch.ones(6))


@pytest.mark.parametrize("c_power", [0.0, 0.5, 1.0])
def test_the_steps_grow_with_a_power_of_the_noise(c_power):
    tables = noising(6, 0.01, c_power=c_power)
    growth = np.array(DRL_T6["cum_sigma"][:-1]) / DRL_T6["cum_sigma"][0]
    np.testing.assert_allclose(tables.delta**2, 0.01 * growth**c_power * DRL_T6["sigma2"][1:], rtol=1e-3)


@pytest.mark.parametrize("T", [0, -3, 502, 999, 1001, 2000, True, 6.0, "banana", None])
def test_other_numbers_of_levels_are_refused(T):
    with pytest.raises(ValueError, match=f"T = {T!r} levels: allowed are 1"):
        noising(T)


def test_other_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="variant = 'paper': allowed are 'code', 'text'"):
        noising(6, variant="paper")
    for b2 in (0.0, -1e-4, math.nan):
        with pytest.raises(ValueError, match=f"b2 = {b2!r}: the step constant must be positive"):
            noising(6, b2)


# -- pairs --


@pytest.mark.parametrize("draw", ["pairs", "coupled"])
@pytest.mark.parametrize(("T", "variant"), [(6, "code"), (3, "text"), (1, "code")])
def test_the_joint_law_of_pairs(T, variant, draw, device, dtype, rng):
    """Moments for x = 1.7, level by level; the noise xi of coupled pairs is N(0, I) and independent of x_{t+1}."""
    tables, x0, n = noising(T, variant=variant, device=device), 1.7, 40_000
    x = torch.full((n * T, 1), x0, device=device, dtype=dtype)
    y, x_next, t, *noise = getattr(tables, draw)(x, rng(0))
    counts = torch.bincount(t, minlength=T).double().cpu()
    assert len(counts) == T
    assert float(((counts - n) ** 2 / n).sum()) < T - 1 + 4.5 * math.sqrt(2 * max(T - 1, 0.5))  # chi-square, t uniform
    for level in range(T):
        a, cum_a, sigma = float(tables.a[level + 1]), float(tables.cum_a[level]), float(tables.cum_sigma[level])
        scale = 1.0 if variant == "code" and level == T - 1 else a
        here, there = y[t == level, 0], x_next[t == level, 0]
        far_mean, far_sigma = a * cum_a * x0, float(tables.cum_sigma[level + 1])
        dy, dx = here - scale * cum_a * x0, there - far_mean
        assert_mean(dx / far_sigma, 0.0, se=0.01)
        assert_mean((dx / far_sigma) ** 2, 1.0, se=0.01)
        for xi in (one[t == level, 0] for one in noise):
            assert_mean(xi**2, 1.0, se=0.01)
            assert_mean(xi * dx / far_sigma, 0.0, se=0.01)
            if sigma > 0:
                assert_mean(xi * dy / (scale * sigma), float(tables.sigma[level + 1]) / far_sigma, se=0.01)
        if sigma == 0:  # the text starts from the data as they are
            torch.testing.assert_close(dy, torch.zeros_like(dy), atol=1e-6, rtol=0)
            continue
        dy = dy / (scale * sigma)
        assert_mean(dy, 0.0, se=0.01)
        assert_mean(dy**2, 1.0, se=0.01)
        assert_mean(dy * dx / far_sigma, a * sigma / far_sigma, se=0.01)  # Cov(x_t, x_{t+1}) = a cum_sigma_t^2


def test_coupled_noise_leaves_the_gradient_and_takes_its_variance(device, rng):
    """Recovery likelihood's gradient in one weight, of E = w |y|^2 / 2 at T = 1000, with noise shared and not."""
    tables, v, n = noising(1000, device=device), 0.25, 200_000
    x = v**0.5 * torch.randn(n, 1, generator=rng(1), device=device)
    gradients = []
    for shared in (True, False):
        y, x_next, t, xi = tables.coupled(x, rng(2))
        xi = xi if shared else torch.randn(xi.shape, generator=rng(3), device=device)
        sigma = tables.sigma[t + 1][:, None]
        y_neg = x_next - sigma**2 * x_next / v + sigma * xi  # the normal approximation, w = 1 / v
        gradients.append(flat_sum(y**2 - y_neg**2) / 2 / sigma[:, 0] ** 2)
    ours, plain = gradients
    se = float((ours - plain).std()) / n**0.5
    assert abs(float((ours - plain).mean())) < 4.5 * se
    assert se < 0.1
    assert float(ours.var()) < float(plain.var()) / 4


# -- the conditional --


def test_the_conditional_is_bayes(device):
    """-log p(y) - log N(x_next; y, sigma^2) up to a constant, for a mixture and a different sigma in each row."""
    prior = MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7], device=device, dtype=torch.float64)),
        Normal(torch.tensor([-1.0, 2.0], device=device).double(), torch.tensor([0.5, 0.2], device=device).double()),
    )
    sigma = torch.tensor([0.1, 0.5, 2.0], device=device, dtype=torch.float64)
    x_next = torch.tensor([[-1.0], [0.4], [3.0]], device=device, dtype=torch.float64)
    energy = lambda y: -prior.log_prob(y[:, 0])
    target = conditional(energy, x_next, 1 / sigma**2)
    differences = []
    for y in torch.linspace(-3, 4, 50, dtype=torch.float64):
        at = y.expand(3, 1).to(device)
        bayes = -prior.log_prob(at[:, 0]) - Normal(at[:, 0], sigma).log_prob(x_next[:, 0])
        differences.append(target(at) - bayes)
    assert torch.stack(differences).std(0).max() < 1e-12
    assert torch.equal(conditional(energy, x_next, 0.0)(x_next), energy(x_next))


@pytest.mark.parametrize("kernel", [mala, hmc])
def test_chains_on_the_conditional_reach_the_gaussian_posterior(kernel, device, dtype, rng):
    """Every level of T = 6 at once: the precision differs from sample to sample and is 0 at the last."""
    tables, n, prior_mean, prior_std = noising(6, device=device), 8000, 0.5, 0.9
    t = torch.arange(6, device=device).repeat_interleave(n)
    x_next = 2 * torch.randn(6 * n, 2, generator=rng(2), device=device, dtype=dtype)
    energy = lambda y: flat_sum((y - prior_mean) ** 2) / (2 * prior_std**2)
    target = conditional(energy, x_next, tables.precision[t])
    stiffness = tables.precision[t] + 1 / prior_std**2
    step = (0.4 / stiffness) if kernel is mala else (1.2 / stiffness.sqrt())
    y, info = kernel(target, x_next, step.to(dtype), 50 if kernel is mala else 15, rng=rng(3))
    assert 0.5 < float(info.acceptance.mean()) < 0.97
    for level in range(6):
        here, there = y[t == level], x_next[t == level]
        mean, variance = prior_mean, prior_std**2
        if level < 5:
            mean, variance = gaussian_posterior(there, prior_mean, prior_std**2, float(tables.sigma[level + 1]))
        z = (here - mean) / math.sqrt(variance)
        assert_mean(z, [0.0, 0.0], se=0.015)
        assert_mean(z**2, [1.0, 1.0], se=0.02)


# -- chains --


def test_the_schedule_of_equation_17(device):
    tables = noising(6, device=device)
    t = torch.tensor([0, 5, 2], device=device)
    pairs = schedule(tables, t, 4, noise=0.99)
    assert len(pairs) == 4
    for a, b in pairs:
        np.testing.assert_allclose(a.cpu(), [DRL_T6_DELTA[k] ** 2 / 2 for k in (0, 5, 2)], rtol=0.02)
        np.testing.assert_allclose(b.cpu(), [0.99 * DRL_T6_DELTA[k] for k in (0, 5, 2)], rtol=0.01)
        torch.testing.assert_close(b**2, 0.99**2 * 2 * a)


def test_no_steps_is_the_normal_approximation(device, rng):
    """Equation 12: x = x_next + sigma^2 grad f(x_next) + sigma eps, f = -E, with eps the sampler's own noise."""
    tables = noising(1000, device=device)
    t = torch.tensor([0, 400, 999], device=device)
    x_next = torch.randn(3, 2, generator=rng(4), device=device, dtype=torch.float64)
    target = conditional(quartic, x_next, tables.precision[t])
    y, _ = langevin(target, x_next, schedule(tables, t, 0), rng=rng(5))
    eps = torch.randn(3, 2, generator=rng(5), device=device, dtype=torch.float64)
    sigma = tables.sigma[t + 1].double()[:, None]
    torch.testing.assert_close(y, x_next - sigma**2 * (x_next**3 + 0.5) + sigma * eps, atol=1e-7, rtol=1e-6)
    (_, quiet), (_, loud) = schedule(tables, t, 0, noise=0.5) + schedule(tables, t, 0)
    torch.testing.assert_close(quiet, 0.5 * loud)


def gaussian_at_level(tables, mean: float, variance: float):
    """The exact energies of y_t for Gaussian data, passed through `levels` as a net times its scale."""
    exact = drl_gaussian_energies(tables, mean, variance)
    return levels(lambda t: lambda y: tables.energy_scale[t] * exact(t)(y), tables)


PROGRESSIVE = {
    "released": dict(T=6, K=30, noise=0.99),
    "released, one level": dict(T=1, K=180, noise=0.99),
    "large steps": dict(T=6, K=5, b2=0.5, c_power=0.0, noise=1.0),
    # The text rescales the last level too, by .023: its chain is stable below b2 = .002 only.
    "text": dict(T=4, K=10, b2=1e-3, variant="text", noise=1.0),
    "normal approximation": dict(T=60, K=0, noise=1.0),
}


def test_sampling_and_its_tables_work_inside_inference_mode(rng, device):
    def run(mode):
        with torch.inference_mode(mode):
            tables = noising(6, device=device)
            x = torch.randn(3, 2, generator=rng(1), device=device)
            levels_of = levels(lambda t: lambda y: tables.cum_sigma[t] * (y**2).sum(1), tables)
            return progressive(levels_of, tables, x, 3, rng=rng(2))

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("name", PROGRESSIVE)
def test_progressive_sampling_of_gaussian_data_has_the_exact_moments(name, device, dtype, rng):
    """The chains do not mix in 30 steps; what they reach is known all the same, at every level."""
    choice = dict(PROGRESSIVE[name])
    K, noise = choice.pop("K"), choice.pop("noise")
    tables, mean, variance = noising(**choice, device=device), 0.6, 0.5**2
    laws = drl_gaussian_samples(tables, K, noise, mean, variance)
    assert max(v for _, v in laws) < 100  # no chain here is unstable
    x = torch.randn(10_000, 2, generator=rng(6), device=device, dtype=dtype)
    states, at_level = [], gaussian_at_level(tables, mean, variance)
    out = progressive(at_level, tables, x, K, noise=noise, rng=rng(7), callback=lambda t, x: states.append((t, x)))
    assert [t for t, _ in states] == list(reversed(range(tables.T)))
    assert torch.equal(out, states[-1][1])
    for k in {*range(0, tables.T, max(1, tables.T // 6)), tables.T - 1}:
        state, (m, v) = states[k][1], laws[k]
        assert_mean(state.flatten(), m, se=0.01 * math.sqrt(v))
        assert_mean((state.flatten() - m) ** 2, v, se=0.015 * v)


def test_a_move_goes_on_with_the_conditional_of_its_level(device, rng):
    """Hamiltonian chains after one bad Langevin step: the exact law where that step alone is far off."""
    tables, mean, variance, steps = noising(3, 0.5, c_power=0.0, device=device), 0.6, 0.5**2, []
    own = rng(8)

    def move(t, target, y):
        steps.append(t)
        stiffness = float(tables.precision[t]) + 1 / drl_gaussian_level(tables, t, mean, variance)[1]
        return hmc(target, y, 1.1 / stiffness**0.5, 20, rng=own)[0]

    x = torch.randn(20_000, 1, generator=rng(6), device=device)
    at_level = gaussian_at_level(tables, mean, variance)
    alone, moved = (progressive(at_level, tables, x, 1, noise=1.0, rng=rng(7), move=m) for m in (None, move))
    assert steps == [2, 1, 0]
    a, sigma = float(tables.cum_a[0]), float(tables.cum_sigma[0])
    want = a**2 * variance + sigma**2
    assert_mean((moved - a * mean) ** 2, want, se=0.015 * want)
    assert abs(float(((alone - a * mean) ** 2).mean()) / want - 1) > 0.3


def test_inpainting_two_correlated_pixels_has_the_exact_moments(device, rng):
    """Every state is linear in x0 and in independent noise, so the law of the last one is a matrix product away."""
    tables, rho, n, T = noising(3, 0.03, c_power=0.0, device=device), 0.9, 10_000, 3
    cov = torch.tensor([[1.0, rho], [rho, 1.0]], device=device) / 4
    inverse = [
        (s**2 * (a**2 * cov + c**2 * torch.eye(2, device=device))).inverse()
        for s, a, c in zip(tables.scale, tables.cum_a, tables.cum_sigma)
    ]
    at_level = lambda t: lambda y: 0.5 * torch.einsum("bi,ij,bj->b", y, inverse[int(t[0])], y)
    x0 = torch.randn(n, 2, generator=rng(6), device=device) @ torch.linalg.cholesky(cov).T
    known = torch.tensor([True, False], device=device)
    out = inpaint(at_level, tables, x0, known, 400, noise=1.0, rng=rng(7))
    assert torch.equal(out[:, 0], x0[:, 0])
    # Coefficients over x0's first pixel, the path's noise, the start and the noise of each level.
    basis = np.eye(1 + (T + 1) + 1 + T)
    numbers = (tables.a, tables.sigma, tables.scale, tables.precision)
    a, sigma, scale, precision = (value.double().cpu().numpy() for value in numbers)
    path = [float(tables.cum_a[0]) * basis[0] + float(tables.cum_sigma[0]) * basis[1]]
    for t in range(T):
        path.append(a[t + 1] * path[-1] + sigma[t + 1] * basis[2 + t])
    u = basis[T + 2]
    for t in reversed(range(T)):
        P = inverse[t].cpu().double().numpy()
        stiffness = P[1, 1] + precision[t]
        u = (precision[t] * u - P[1, 0] * scale[t] * path[t]) / stiffness + basis[T + 3 + t] / stiffness**0.5
        u = u / scale[t]
    variance = u[0] ** 2 / 4 + (u[1:] ** 2).sum()
    assert 0.4 < u[0] < rho  # neither ignored nor the exact regression on the known pixel
    assert_mean(out[:, 1] ** 2 / variance, 1.0, se=0.02)
    assert_mean(4 * out[:, 1] * x0[:, 0], u[0], se=0.015)


@pytest.mark.parametrize("choice", [dict(T=3, K=400, b2=0.03, c_power=0.0), dict(T=1000, K=0)], ids=["K=400", "T=1000"])
def test_progressive_sampling_returns_the_data_law(choice, device, dtype, rng):
    choice = dict(choice)
    K = choice.pop("K")
    tables, mean, variance = noising(**choice, device=device), 0.6, 0.5**2
    # Level 0 of the released schedule already carries its noise of .01; the last x_T is normal to 1e-4.
    x = torch.randn(4000, 2, generator=rng(8), device=device, dtype=dtype)
    x = progressive(gaussian_at_level(tables, mean, variance), tables, x, K, noise=1.0, rng=rng(9))
    assert_mean(x.flatten() / 0.5, mean / 0.5, se=0.012)
    assert_mean((x.flatten() - mean) ** 2 / variance, 1.0, se=0.017)


def test_means_by_level(device):
    values = torch.tensor([1.0, 2.0, 6.0, -1.0], device=device)
    t = torch.tensor([0, 2, 2, 0], device=device)
    means = by_level(values, t, 4)
    assert means[[0, 2]].tolist() == [0.0, 4.0]
    assert means[[1, 3]].isnan().all()


def test_levels_may_take_steps_of_their_own(rng):
    """A row of numbers is K[t] at level t, and a header's `doubled` levels take 2 K of them."""
    its = {"T": 3, "K": 2, "b2": 0.03, "variant": "code", "doubled": 1, "c_power": 0.5}
    tables, steps = chains_of(its)
    assert steps == [4, 2, 2]
    assert torch.equal(tables.delta, noising(3, 0.03, c_power=0.5).delta)
    asked = []
    at_level = lambda t: lambda y: asked.append(int(t[0])) or y.square().sum(1)
    progressive(at_level, tables, torch.randn(4, 2, generator=rng(1)), steps, rng=rng(2))
    assert [asked.count(t) for t in range(3)] == steps
    older = {name: its[name] for name in ("T", "K", "b2", "variant")}
    tables, steps = chains_of(older)
    assert steps == [2, 2, 2]
    assert torch.equal(tables.delta, noising(3, 0.03).delta)


# -- several scales --


def test_the_bands_are_an_orthonormal_transform(rng, dtype):
    x = torch.randn(5, 3, 8, 12, generator=rng(1), dtype=dtype)
    low, details = split(x)
    assert (low.shape, details.shape) == ((5, 3, 4, 6), (5, 9, 4, 6))
    torch.testing.assert_close(merged(low, details), x)
    torch.testing.assert_close(low.square().sum() + details.square().sum(), x.square().sum())
    torch.testing.assert_close(low[0, 1, 2, 3], x[0, 1, 4:6, 6:8].sum() / 2)
    rows, columns, diagonals = (part[0, 1, 2, 3] for part in details.chunk(3, 1))
    (a, b), (c, d) = x[0, 1, 4:6, 6:8]
    torch.testing.assert_close(
        torch.stack([rows, columns, diagonals]), torch.stack([a + b - c - d, a - b + c - d, a - b - c + d]) / 2
    )


def test_each_scale_is_given_the_next_smaller_image(rng):
    x = torch.randn(2, 1, 8, 8, generator=rng(1))
    given, z = band(x, 0, 3)
    assert given is None
    assert torch.equal(z, split(split(x)[0])[0])
    assert all(map(torch.equal, band(x, 1, 3), split(split(x)[0])))
    assert all(map(torch.equal, band(x, 2, 3), split(x)))


class Linear:
    """The exact marginal energies of a Gaussian band whose mean is c times what is given."""

    def __init__(self, tables, c, variance):
        self.tables, self.c, self.variance = tables, c, variance

    def at(self, t):
        a, sigma, scale = (table[t][:, None] for table in (self.tables.cum_a, self.tables.cum_sigma, self.tables.scale))

        def energy(x):
            x, c = x.flatten(1), torch.tensor(self.c)
            given, y = (x[:, :1], x[:, 1:]) if len(self.c) > 1 else (torch.zeros(len(x), 1), x)
            return ((y - scale * a * c * given) ** 2 / (2 * scale**2 * (a**2 * self.variance + sigma**2))).sum(1)

        return energy


def test_images_grown_from_small_ones_have_the_exact_covariance(rng):
    """2x2 pixels: a Gaussian sum, and differences that depend on it. Details that forgot the sum would miss c."""
    tables = noising(2, 0.01, scaled=False, c_power=0.0)
    c = [0.8, -0.5, 0.0]
    nets = [Linear(tables, [0.0], 1.0), Linear(tables, c, 0.5)]
    run = lambda at, z, whole: progressive(at, tables, z, 600, noise=1.0, rng=rng(3))
    start = torch.randn(8000, 1, 2, 2, generator=rng(2))
    low, details = split(coarse_to_fine(nets, tables, start, run))
    low, details = low.flatten(), details.flatten(1)
    assert_mean(low**2, 1.0, se=0.018)
    for j in range(3):
        assert_mean(low * details[:, j], c[j], se=0.02)
        assert_mean((details[:, j] - c[j] * low) ** 2 / 0.5, 1.0, se=0.018)


def test_a_scale_may_complete_given_images_and_show_how(rng):
    """`run` gets the bands of x, and `whole` makes pictures of its states."""
    x, seen = torch.randn(3, 2, 8, 8, generator=rng(1)), []

    def run(at_level, z, whole):
        seen.append(whole(z))
        return z

    out = coarse_to_fine([Linear(None, [0.0], 1.0)] * 3, noising(2), x, run)
    torch.testing.assert_close(out, x)
    assert [tuple(image.shape[1:]) for image in seen] == [(2, 2, 2), (2, 4, 4), (2, 8, 8)]
    torch.testing.assert_close(seen[1], split(x)[0])
