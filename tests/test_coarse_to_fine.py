"""Coarse-to-fine: the fade, the pyramid, the start's law in closed form, stage sampling with exact energies, fields."""

import math

import pytest
import torch
from problems import assert_mean, gaussian_chain
from scipy.optimize import brentq
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.nn import functional as F

from ebmlib.core import energy_and_grad, flat_sum
from ebmlib.papers import coarse_to_fine
from ebmlib.samplers import langevin, ula
from ebmlib.targets import fields


def refuse(x):
    raise AssertionError("this energy must not be evaluated")


def chain_of(step, rng=None):
    """Chains of K Langevin steps."""
    return lambda energy, x, K: langevin(energy, x, ula(step, K), rng=rng)[0]


# -- the fade --


def test_beta_rises_over_the_first_half_of_a_stage():
    assert [coarse_to_fine.fade(m, 1000) for m in (0, 100, 250, 500, 501, 1000, 5000)] == [0, 0.2, 0.5, 1, 1, 1, 1]


def test_a_stage_shows_its_images():
    assert coarse_to_fine.Stage(8, 50_000, 15, 256).iterations == 196  # 195.3 batches
    assert coarse_to_fine.Stage(8, 512, 15, 256).iterations == 2


def test_coarse_steps_shrink_with_beta():
    assert [coarse_to_fine.coarse_steps(15, beta) for beta in (0, 0.2, 0.52, 0.88, 1)] == [15, 12, 7, 2, 0]


# -- the pyramid --


def test_the_pyramid_pools(device, dtype, rng):
    x = torch.randn(3, 2, 16, 16, generator=rng(0), device=device, dtype=dtype)
    coarse, fine, middle = coarse_to_fine.pyramid(x, (4, 16, 8))
    assert torch.equal(fine, x)
    torch.testing.assert_close(middle, F.avg_pool2d(x, 2))
    torch.testing.assert_close(coarse, F.avg_pool2d(x, 4))
    signal = x[:, :, 0]
    torch.testing.assert_close(coarse_to_fine.pool(signal), F.avg_pool1d(signal, 2))


def test_upsampling_repeats_and_is_undone_by_pooling(device, dtype, rng):
    x = torch.randn(3, 2, 4, 8, generator=rng(0), device=device, dtype=dtype)
    torch.testing.assert_close(coarse_to_fine.upsample(x), F.interpolate(x, scale_factor=2, mode="nearest"))
    torch.testing.assert_close(coarse_to_fine.pool(coarse_to_fine.upsample(x)), x)


def test_what_cannot_be_halved_or_mixed_is_refused():
    with pytest.raises(ValueError, match=r"sizes \[5\] cannot be reached by halving; there are \[3, 6, 12\]"):
        coarse_to_fine.pyramid(torch.zeros(1, 1, 12, 12), (12, 5, 3))
    with pytest.raises(ValueError, match="even sides"):
        coarse_to_fine.pool(torch.zeros(1, 1, 5, 4))
    with pytest.raises(ValueError, match="how = 'cubic': allowed are 'linear', 'root'"):
        coarse_to_fine.mix(torch.zeros(1, 1, 2, 2), 0.5, how="cubic")


# -- where a stage's chains start --


@pytest.mark.parametrize("how", coarse_to_fine.MIXES)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_mixtures_mean_and_variance(how, beta, device, dtype, rng):
    """Pixels of Up(x) keep x's mean m and variance v; U(-1, 1) adds beta^2 / 3, independent in each of the 4 pixels."""
    n, m, s = 40_000, 0.7, 0.4
    coarse = m + s * torch.randn(n, 1, 1, 1, generator=rng(0), device=device, dtype=dtype)
    x = coarse_to_fine.mix(coarse, beta, rng(1), how).flatten(1)  # (n, 4)
    weight = 1 - beta if how == "linear" else math.sqrt(1 - beta**2)
    off = x - weight * m
    assert_mean(x, torch.full((4,), weight * m), 0.01)
    assert_mean(off**2, torch.full((4,), weight**2 * s**2 + beta**2 / 3), 0.01)
    assert_mean(off[:, :3] * off[:, 1:], torch.full((3,), weight**2 * s**2), 0.01)
    if beta == 1:
        assert float(x.min()) < -0.99
        assert float(x.max()) > 0.99


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_the_start_of_a_stage_in_closed_form(beta, device, dtype, rng):
    """On E = x^2 / (2 v), K (1 - beta) steps from noise have the mean and variance of a linear recursion."""
    v, K, n = 0.5, 10, 40_000
    noise = 0.3 + coarse_to_fine.uniform((n, 1, 1, 1), rng(0), device).to(dtype)
    generator = rng(1)
    chain = chain_of(0.05, generator)
    x = coarse_to_fine.stage_start(lambda x: flat_sum(x**2) / (2 * v), noise, K, chain, beta, rng=generator)
    mean, variance = gaussian_chain(ula(0.05, {0.0: 10, 0.4: 6}[beta]), v**0.5, 0.3, 1 / 3)
    x = x.flatten(1)
    assert_mean(x, torch.full((4,), (1 - beta) * mean), 0.01)
    truth = (1 - beta) ** 2 * variance + beta**2 / 3
    assert_mean((x - (1 - beta) * mean) ** 2, torch.full((4,), truth), 0.01)


def test_at_beta_one_the_start_is_noise_and_the_coarse_model_rests(device, rng):
    noise = torch.full((2000, 1, 2, 2), 5.0, device=device)
    x = coarse_to_fine.stage_start(refuse, noise, 15, chain_of(0.1), 1.0, rng=rng(0))
    assert x.shape == (2000, 1, 4, 4)
    assert float(x.abs().max()) <= 1
    assert_mean(x.flatten()[:, None], torch.zeros(1), 0.01)
    assert_mean(x.flatten()[:, None] ** 2, torch.tensor([1 / 3]), 0.01)


# -- stage sampling --


def test_climbing_with_exact_energies_returns_the_exact_law(device, dtype, rng):
    """A Gaussian field at 2, 4 and 8 pixels a side: after each stage all covariances are those of its own law."""
    law = fields.two_fields(8, slope=0.5, variance=0.3, amplitude=0.0).to(device)
    laws = [law.pooled().pooled(), law.pooled(), law]
    step = 0.3 * min(float(fields.mode_variance(one).min()) for one in laws)
    chain, seen = chain_of(step, rng(1)), []
    x = coarse_to_fine.uniform((2000, 1, 2, 2), rng(0), device).to(dtype)
    energies = [gaussian_energy(one, dtype) for one in laws]
    coarse_to_fine.climb(energies, x, (80, 80, 200), lambda *given: seen.append(chain(*given)) or seen[-1])
    for ends, one in zip(seen, laws, strict=True):
        power = fields.radial(fields.power(ends))  # (n, rings)
        v = fields.mode_variance(one).to(device)
        # A Langevin chain's own stationary variance is v / (1 - a / (2 v)).
        assert_mean(power, fields.radial(v / (1 - step / (2 * v))), 0.1, z=4.5)


def test_a_stage_starts_at_the_ends_of_the_one_before(device, dtype, rng):
    x = torch.randn(5, 1, 2, 2, generator=rng(0), device=device, dtype=dtype)
    square = lambda x: flat_sum(x**2)
    ends, _ = langevin(square, x, ula(0.1, 3), rng=rng(1))
    found = coarse_to_fine.climb([square, refuse], x, (3, 0), chain_of(0.1, rng(1)))
    assert torch.equal(found, coarse_to_fine.upsample(ends))


def gaussian_energy(law, dtype):
    precision = torch.linalg.inv(law.covariance).to(dtype)
    return lambda x: 0.5 * ((x.flatten(1) @ precision) * x.flatten(1)).sum(1)


# -- what short chains teach --


def test_the_short_run_curvature_against_brent_and_a_chain(device, rng):
    schedule = ula(0.02, 12)
    v = torch.tensor([0.1, 0.5, 3.0], dtype=torch.float64)
    begin = torch.tensor([1 / 3, 0.2, 1 / 3], dtype=torch.float64)
    w = coarse_to_fine.short_run_precision(v, begin, schedule)

    def miss(w, begin, v):
        keep = (1 - 0.02 * w) ** 2
        return keep**12 * begin + 0.04 * (1 - keep**12) / (1 - keep) - v  # a geometric sum

    truth = [brentq(miss, -49.0, 48.0, args=(float(b), float(t)), xtol=1e-12) for b, t in zip(begin, v)]
    torch.testing.assert_close(w, torch.tensor(truth, dtype=torch.float64), atol=1e-8, rtol=1e-8)
    assert w[2] < 0 < w[1] < w[0]  # the widest mode gets a hill for a valley
    w = w.to(device)
    x = begin.sqrt().to(device) * torch.randn(40_000, 3, generator=rng(0), device=device, dtype=torch.float64)
    x, _ = langevin(lambda x: 0.5 * (w * x**2).sum(1), x, schedule, rng=rng(1))
    assert_mean(x**2, v.to(device), 0.03)


def test_a_long_chain_teaches_the_truth_up_to_its_step():
    v = torch.tensor([0.1, 1.0], dtype=torch.float64)
    w = coarse_to_fine.short_run_precision(v, torch.full_like(v, 0.3), ula(0.02, 600))
    torch.testing.assert_close(v, 1 / (w * (1 - 0.01 * w)))
    with pytest.raises(ValueError, match="more variance than asked"):
        coarse_to_fine.short_run_precision(torch.tensor([0.01]), torch.tensor([0.3]), ula(0.1, 5))


# -- fields --


def referee(law):
    normals = MultivariateNormal(law.means.flatten(1), law.covariance)
    return MixtureSameFamily(Categorical(law.weights), normals)


def test_the_fields_density_and_score_against_torch(device):
    law = fields.two_fields(4, amplitude=0.3).to(device)
    x = (0.5 * torch.randn(20, 16, dtype=torch.float64)).to(device)
    value, grad = energy_and_grad(law.energy(), x.reshape(20, 1, 4, 4))
    truth, slope = energy_and_grad(lambda x: -referee(law).log_prob(x), x)
    torch.testing.assert_close(value, truth)
    torch.testing.assert_close(grad.flatten(1), slope)


def test_a_fields_samples_follow_it_and_pooled_ones_the_pooled_law(device, rng):
    law = fields.two_fields(8, variance=0.2, amplitude=0.5).to(device)
    x = law.sample(20_000, rng(0))
    for one in (law, law.pooled()):
        wave = one.means[0]
        moment = fields.mode_variance(one).to(device) + fields.power(wave[None, None])[0]
        assert_mean(fields.radial(fields.power(x)), fields.radial(moment), 0.1, z=4.5)
        side = (x[:, 0].double() * wave).sum((1, 2))[:, None] > 0
        assert_mean(side.double(), torch.tensor([0.7]), 0.01, z=4.5)
        expected = (0.4 * wave).mean(0)  # .7 - .3 of the mean +
        assert_mean(x[:, 0].double().mean(1), expected, 0.01, z=4.5)
        x = coarse_to_fine.pool(x)


def test_pooled_is_the_blocks_mean_of_the_covariance(device):
    law = fields.two_fields(8).to(device)
    c = law.covariance.reshape(4, 2, 4, 2, 4, 2, 4, 2).mean((1, 3, 5, 7)).reshape(16, 16)
    torch.testing.assert_close(law.pooled().covariance, c)
    torch.testing.assert_close(law.pooled().means, F.avg_pool2d(law.means[:, None], 2)[:, 0])


def test_the_spectrum_is_the_stated_power_law():
    law = fields.two_fields(16, slope=1.5, variance=0.15)
    v = fields.mode_variance(law)
    k = torch.tensor([*range(9), *range(-7, 0)], dtype=torch.float64)
    truth = (1 + k[:, None] ** 2 + k**2) ** -1.5
    torch.testing.assert_close(v, truth * (0.15 / truth.mean()))
    torch.testing.assert_close(law.covariance.diagonal(), torch.full((256,), 0.15, dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.eigvalsh(law.covariance), v.flatten().sort().values)


def test_rings_average_what_they_hold():
    values = fields.wavenumber(4)
    assert values[1, 2] == pytest.approx(math.sqrt(5))
    # |k| = 0; four of 1 and four of sqrt 2 (rounded to 1); 2, sqrt 5 and sqrt 8 (rounded to 2 or joined to it).
    truth = [0, (4 + 4 * 2**0.5) / 8, (2 * 2 + 4 * 5**0.5 + 8**0.5) / 7]
    torch.testing.assert_close(fields.radial(values), torch.tensor(truth, dtype=torch.float64))
