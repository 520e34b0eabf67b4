"""Split R-hat and effective sample size against exact values of AR(1) chains and against arviz-stats."""

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from ebmlib.metrics.mixing import ess, split_rhat


def plain_noise(n: int, chains: int) -> np.ndarray:
    """Uniform numbers in [-1/2, 1/2) by a generator of one line, so that other programs can repeat them."""
    state, found = 12345, []
    for _ in range(n * chains):
        state = (1103515245 * state + 12345) % 2**31
        found.append(state / 2**31 - 0.5)
    return np.array(found).reshape(n, chains)


def ar1(phi: float, noise: np.ndarray) -> torch.Tensor:
    """x_k = phi x_{k-1} + noise_k for every chain, from 0."""
    return torch.tensor(lfilter([1.0], [1.0, -phi], noise, axis=0))


# phi, length: R-hat ("rank") and bulk ESS by arviz-stats 0.8.0, for four chains of these numbers
ARVIZ = [
    (0.9, 200, 1.1219991057066636, 24.60207255005241),
    (0.9, 101, 1.187723604477694, 19.419614265896875),
    (0.3, 200, 1.0070938281429889, 399.66035555106095),
    (0.3, 101, 1.0116143842898084, 204.4655813212706),
    (-0.5, 200, 1.003657067269635, 2322.471989593555),
    (-0.5, 101, 1.008802255983009, 1040.823996531185),
]


@pytest.mark.parametrize(("phi", "n", "rhat", "size"), ARVIZ)
def test_the_values_are_those_of_arviz(phi, n, rhat, size):
    """ESS to 5 % at phi = 0.9, where arviz leaves the last lags of chains out that have not mixed."""
    x = ar1(phi, plain_noise(n, 4))
    assert split_rhat(x) == pytest.approx(rhat, rel=1e-3)
    assert ess(x) == pytest.approx(size, rel=0.05 if phi == 0.9 else 1e-9)


def test_equal_values_share_their_rank_as_in_arviz():
    """Rounded values, one chain shifted: 1.2732945591346128 and 11.732 by arviz-stats 0.8.0."""
    x = ar1(0.3, plain_noise(200, 4)).mul(10).round() / 10 + torch.tensor([0, 0, 0.5, 0])
    assert split_rhat(x) == pytest.approx(1.2732945591346128, rel=1e-9)
    assert ess(x) == pytest.approx(11.732093965192064, rel=0.05)


@pytest.mark.parametrize("phi", [0.9, 0.5, 0.0, -0.4])
def test_the_effective_sample_size_of_ar1_is_exact(phi):
    """n chains (1 - phi) / (1 + phi) independent draws: 400 in 16 chains of 500 for phi = 0.9, say."""
    noise = np.random.default_rng(3).normal(size=(2200, 16))
    x = ar1(phi, noise)[200:]
    exact = x.numel() * (1 - phi) / (1 + phi)
    assert ess(x) == pytest.approx(exact, rel=0.1)
    assert 0.999 < split_rhat(x) < 1.01


def test_chains_that_disagree_in_place_trend_or_spread_are_seen():
    noise = torch.tensor(np.random.default_rng(4).normal(size=(400, 4)))
    apart, trend, wide = noise.clone(), noise.clone(), noise.clone()
    apart[:, 0] += 1.0
    trend += torch.linspace(0, 2, 400)[:, None]  # every chain alike: only halves show it
    wide[:, 0] *= 3.0
    assert split_rhat(noise) < 1.01
    assert min(map(split_rhat, (apart, trend, wide))) > 1.05
    assert ess(apart) < 0.05 * ess(noise)


def test_a_change_of_scale_that_keeps_the_order_changes_nothing():
    x = ar1(0.5, np.random.default_rng(5).normal(size=(300, 4)))
    assert ess(x.exp() ** 3) == pytest.approx(ess(x), rel=1e-9)


@pytest.mark.parametrize("x", [torch.zeros(3, 2), torch.zeros(9), torch.tensor([[1.0], [2.0], [torch.nan], [3.0]])])
def test_chains_that_are_too_short_or_not_finite_are_refused(x):
    for measure in (split_rhat, ess):
        with pytest.raises(ValueError, match=r"x must be \(n, B\), finite, with n >= 4 draws a chain; got"):
            measure(x)
