"""The losses against their formulas in float64, an exact likelihood's gradient and exact nearest-neighbor laws."""

import math

import numpy as np
import pytest
import torch
from problems import assert_mean, nearest_log_distance
from scipy.special import digamma
from scipy.stats import norm
from torch import nn

from ebmlib.core import flat_sum
from ebmlib.nets.mlp import MLP
from ebmlib.objectives import contrastive, denoising_score_matching, entropy_nn, kl_opt
from ebmlib.samplers import langevin_step
from ebmlib.targets import densities


def quadratic(w, x):
    return w * (x**2).sum(1)


@pytest.mark.parametrize("l2", [0.0, 0.7])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_is_the_formula(l2, weighted, device, rng):
    w = torch.tensor(1.3, device=device, dtype=torch.float64, requires_grad=True)
    pos = torch.randn(7, 3, generator=rng(0), device=device, dtype=torch.float64)
    neg = 2 * torch.randn(7, 3, generator=rng(1), device=device, dtype=torch.float64)
    weight = torch.rand(7, generator=rng(2), device=device, dtype=torch.float64) if weighted else 1.0
    loss, stats = contrastive(quadratic(w, pos), quadratic(w, neg), weight=weight, l2=l2)
    p, n = (pos**2).sum(1), (neg**2).sum(1)
    torch.testing.assert_close(loss, 1.3 * (weight * (p - n)).mean() + l2 * 1.3**2 * (p**2 + n**2).mean())
    (grad,) = torch.autograd.grad(loss, w)
    torch.testing.assert_close(grad, (weight * (p - n)).mean() + 2 * l2 * 1.3 * (p**2 + n**2).mean())
    torch.testing.assert_close(stats["pos"], 1.3 * p.mean())
    torch.testing.assert_close(stats["neg"], 1.3 * n.mean())
    torch.testing.assert_close(stats["gap"], 1.3 * (n - p).mean())
    assert float(stats["gap"]) > 0  # samples lie further out than data, and are less likely
    assert not any(value.requires_grad for value in stats.values())


def test_gradient_is_the_likelihoods(device):
    """E = w x^2 is N(0, 1 / (2 w)): with its own samples the loss has the gradient of -mean log p(x+)."""
    w = torch.tensor(0.8, device=device, dtype=torch.float64, requires_grad=True)
    n = 200_000
    levels = (np.arange(n) + 0.5) / n  # midpoint quantiles stand for the model's samples
    neg = torch.as_tensor(norm.ppf(levels, scale=math.sqrt(1 / 1.6)), device=device)[:, None]
    pos = torch.tensor([[0.3], [-1.2], [2.0]], device=device, dtype=torch.float64)
    loss, _ = contrastive(quadratic(w, pos), quadratic(w, neg))
    likelihood = -torch.distributions.Normal(0, (0.5 / w).sqrt()).log_prob(pos).mean()
    (ours,), (truth,) = torch.autograd.grad(loss, w), torch.autograd.grad(likelihood, w)
    assert float(ours) == pytest.approx(float(truth), abs=1e-4)


# -- the KL term of improved contrastive divergence: its energy half --


class Parabola(nn.Module):
    """E(x) = w |x|^2 / 2: every gradient of a chain on it has a formula."""

    def __init__(self, w, device):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, device=device, dtype=torch.float64))

    def forward(self, x):
        return 0.5 * self.w * (x**2).sum(1)


def test_kl_gradient_comes_through_the_sample_only(device, rng):
    w, a, b = 0.8, 0.3, 0.5
    energy = Parabola(w, device)
    x0 = torch.randn(50, 3, generator=rng(3), device=device, dtype=torch.float64)
    x, _ = langevin_step(energy, x0, a, b, rng=rng(4), differentiable=True)
    loss = kl_opt(energy, x)
    assert energy.w.requires_grad
    loss.backward()
    end = x.detach()  # (1 - a w) x0 + b xi, so that d x / d w = -a x0 and d E / d x = w x
    torch.testing.assert_close(loss.detach(), (0.5 * w * (end**2).sum(1)).mean())
    torch.testing.assert_close(energy.w.grad, (-a * w * x0 * end).sum(1).mean())


def test_kl_leaves_the_vectors_of_spectral_norm_as_they_were(device, rng):
    net = MLP(width=8, depth=1, spectral=True).to(device).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    kl_opt(net, torch.randn(5, 2, generator=rng(7), device=device, requires_grad=True))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


X = torch.zeros(4, 2)
BAD = {
    "contrastive takes energies": lambda: contrastive(X[:, 0], X[:, :1]),
    "kl_opt needs samples with a graph": lambda: kl_opt(nn.Linear(2, 1), X),
    "an energy must return a tensor of shape": lambda: kl_opt(nn.Linear(2, 1), X.clone().requires_grad_()),
    r"that is not empty; got \(4, 2\) and \(4, 1\)": lambda: entropy_nn(X, X[:, :1]),
    r"that is not empty; got \(4, 2\) and \(0, 2\)": lambda: entropy_nn(X, X[:0]),
    "every sigma must be positive; got 0.0": lambda: denoising_score_matching(flat_sum, X, 0.0),
    "every sigma must be positive; got tensor": lambda: denoising_score_matching(flat_sum, X, torch.arange(4)),
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_input_is_refused(sentence):
    with pytest.raises(ValueError, match=sentence):
        BAD[sentence]()


# -- its entropy half --


@pytest.mark.parametrize("d", [1, 2, 5])
def test_entropy_of_a_uniform_ball_is_exact(d, device, rng):
    """From the center of a unit ball, (distance to the nearest of M)^d is Beta(1, M): mean log in closed form."""
    M, runs = 7, 1500
    direction = torch.randn(runs, M, d, generator=rng(9), device=device, dtype=torch.float64)
    radius = torch.rand(runs, M, 1, generator=rng(10), device=device, dtype=torch.float64) ** (1 / d)
    reference = radius * direction / direction.norm(dim=2, keepdim=True)
    center = torch.zeros(1, d, device=device, dtype=torch.float64)
    logs = torch.stack([entropy_nn(center, points) for points in reference])
    assert_mean(logs, (digamma(1) - digamma(M + 1)) / d, se=0.05)


def test_entropy_of_a_gaussian_and_its_bias(device, rng):
    """The Kozachenko-Leonenko estimate for a 2D Gaussian is too low by a known amount, the less the larger M."""
    s, M, runs = 0.6, 100, 300
    x = s * torch.randn(runs, 20, 2, generator=rng(11), device=device, dtype=torch.float64)
    reference = s * torch.randn(runs, M, 2, generator=rng(12), device=device, dtype=torch.float64)
    logs = torch.stack([entropy_nn(a, b) for a, b in zip(x, reference)])
    assert_mean(logs, nearest_log_distance(s, M), se=0.01)
    constant = lambda M: math.log(math.pi) + digamma(M + 1) - digamma(1)
    entropy = math.log(2 * math.pi * math.e * s**2)
    bias = [2 * nearest_log_distance(s, M) + constant(M) - entropy for M in (100, 1000)]
    assert -0.05 < bias[0] < 2 * bias[1] < 0


def test_entropy_gradient_is_the_formula(device, rng):
    x = torch.randn(6, 1, 3, generator=rng(13), device=device, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(9, 1, 3, generator=rng(14), device=device, dtype=torch.float64, requires_grad=True)
    value = entropy_nn(x, reference)
    distance = (x[:, None] - reference).flatten(2).norm(dim=2)
    torch.testing.assert_close(value, distance.min(1).values.log().mean())
    value.backward()
    away = (x - reference[distance.argmin(1)]).detach()
    torch.testing.assert_close(x.grad, away / (away**2).sum((1, 2), keepdim=True) / len(x))
    assert reference.grad is None


def scale_gradient(d: int, floor: float, rng) -> tuple[torch.Tensor, torch.Tensor]:
    """Of 300 batches of 50 normal samples against M = 100: d entropy_nn / d log s, and |gradient of each sample|^2."""
    shares, squares = [], []
    for _ in range(300):
        x = torch.randn(50, d, generator=rng, device=rng.device, dtype=torch.float64).requires_grad_(True)
        reference = torch.randn(100, d, generator=rng, device=rng.device, dtype=torch.float64)
        (grad,) = torch.autograd.grad(entropy_nn(x, reference, floor), x)
        shares.append((grad * x.detach()).sum())
        squares.append((50 * grad).square().sum(1))
    return torch.stack(shares), torch.cat(squares)


@pytest.mark.parametrize(("d", "share"), [(8, 0.722), (64, 0.568)])
def test_the_entropy_gradient_is_a_share_of_the_exact_one(d, share, rng):
    """Scaling N(0, s^2 I) raises entropy / d by d log s; the reference stays, so that less than this is felt."""
    felt, squares = scale_gradient(d, 1e-4, rng(20))
    assert_mean(felt, share, se=0.005)
    assert float(squares.max() / squares.mean()) < 50


def test_the_entropy_gradient_in_two_dimensions_is_as_heavy_tailed_as_its_floor_allows(rng):
    """The chance of a distance below r goes as r^2 and the squared gradient as 1 / r^2: its mean as log(1 / floor)."""
    means = [float(scale_gradient(2, floor, rng(21))[1].mean()) for floor in (0.1, 0.01, 0.001)]
    assert means[1] > 1.5 * means[0]
    assert means[2] > 1.2 * means[1]
    _, squares = scale_gradient(2, 1e-4, rng(21))
    assert float(squares.max() / squares.mean()) > 300


def test_entropy_of_a_met_reference_is_finite(device):
    """Three points: one on its reference, one closer than the floor, one apart. Only the last one is pushed."""
    points = [[1.0, 2.0], [5.0, 5.0 + 1e-6], [9.0, 9.5]]
    x = torch.tensor(points, device=device, dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[1.0, 2.0], [5.0, 5.0], [9.0, 9.0]], device=device, dtype=torch.float64)
    value = entropy_nn(x, reference)
    value.backward()
    assert value.item() == pytest.approx((2 * math.log(1e-4) + math.log(0.5)) / 3)
    assert x.grad.tolist() == [[0, 0], [0, 0], [0, pytest.approx(2 / 3)]]


# -- denoising score matching --


def dsm_terms(w, x, sigma, generator):
    """The objective's own numbers on E = w |x|^2 / 2 from the same noise, written out: (B,) values and d / d w."""
    n = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    noisy = x + sigma * n
    miss = sigma * w * noisy - n
    return 0.5 * (miss**2).sum(1), (miss * sigma * noisy).sum(1)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_denoising_gradient_is_the_formula(several, weighted, device, rng):
    energy = Parabola(0.7, device)
    x = 1.4 * torch.randn(11, 3, generator=rng(15), device=device, dtype=torch.float64)
    level = 0.2 + torch.rand(11, generator=rng(16), device=device, dtype=torch.float64) if several else 0.6
    weight = torch.rand(11, generator=rng(17), device=device, dtype=torch.float64) if weighted else 1.0
    of_images = lambda x: energy(x.flatten(1))
    loss = denoising_score_matching(of_images, x.reshape(11, 1, 3, 1), level, rng(18), weight=weight)
    loss.backward()
    value, slope = dsm_terms(0.7, x, level[:, None] if several else level, rng(18))
    torch.testing.assert_close(loss.detach(), (weight * value).mean())
    torch.testing.assert_close(energy.w.grad, (weight * slope).mean())


@pytest.mark.parametrize("sigma", [0.3, 1.1])
def test_denoising_optimum_of_a_gaussian(sigma, device, rng):
    """Data N(0, s^2 I): the loss is quadratic in the precision w, least at that of the blurred law, with a known value.

    mean of 1/2 |sigma w x~ - n|^2 = d/2 (sigma^2 w^2 v - 2 sigma^2 w + 1) with v = s^2 + sigma^2.
    """
    s, d, n = 0.8, 3, 200_000
    x = s * torch.randn(n, d, generator=rng(19), device=device, dtype=torch.float64)
    v = s**2 + sigma**2
    for w in (1 / v, 0.4):
        value, slope = dsm_terms(w, x, sigma, rng(20))
        energy = Parabola(w, device)
        loss = denoising_score_matching(energy, x, sigma, rng(20))
        loss.backward()
        torch.testing.assert_close((loss.detach(), energy.w.grad), (value.mean(), slope.mean()))
        assert_mean(value, d / 2 * (sigma**2 * w**2 * v - 2 * sigma**2 * w + 1), se=0.02)
        assert_mean(slope, d * (sigma**2 * w * v - sigma**2), se=0.02)
    assert d / 2 * (1 - sigma**2 / v) == pytest.approx(d / 2 * s**2 / v)  # the value at the optimum, 1 / v


def test_denoising_is_least_at_the_blurred_law(device, rng):
    """On a mixture no parameter is a Gaussian's: the exact blurred energy beats the sharp one and one blurred more."""
    target, sigma = densities.GaussianGrid(2, 1.2, 0.3), 0.4
    x = target.sample(20_000, rng(21)).double()
    laws = [target.blurred(std) for std in (0.0, sigma, 2 * sigma)]
    sharp, exact, blunt = (denoising_score_matching(law.energy, x, sigma, rng(22)).item() for law in laws)
    assert exact < sharp - 0.01
    assert exact < blunt - 0.01
    n = torch.randn(x.shape, generator=rng(22), device=device, dtype=x.dtype)  # the floor: E|n|^2 - E|sigma score|^2
    noisy = (x + sigma * n).requires_grad_(True)
    (score,) = torch.autograd.grad(laws[1].log_prob(noisy).sum(), noisy)
    assert_mean(0.5 * ((-sigma * score - n) ** 2 - (1 - (sigma * score) ** 2)).sum(1), 0.0, se=0.02)
