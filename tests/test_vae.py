"""The VAE's Gaussians against torch.distributions, its samples, and the ELBO against its closed form."""

import math

import pytest
import torch
from problems import assert_mean
from torch import distributions as D

from ebmlib.nets.vae import VAE, Normal
from ebmlib.objectives import elbo
from ebmlib.papers import latent


@pytest.fixture
def law(device, rng) -> Normal:
    mean, log_std = (torch.randn(6, 3, generator=rng(k), device=device, dtype=torch.float64) for k in (0, 1))
    return Normal(mean, log_std)


def test_log_prob_is_torchs(law, device, rng):
    x = torch.randn(6, 3, generator=rng(2), device=device, dtype=torch.float64)
    torch.testing.assert_close(law.log_prob(x), D.Normal(law.mean, law.log_std.exp()).log_prob(x).sum(1))


def test_elbo_is_the_formula(law, device, rng):
    """The KL is torch.distributions' own, beta weighs it alone, and the stats are those at beta = 1."""
    log_lik = torch.randn(6, generator=rng(3), device=device, dtype=torch.float64)
    one = torch.ones_like(law.mean)
    kl = D.kl_divergence(D.Normal(law.mean, law.log_std.exp()), D.Normal(0 * one, one)).sum(1)
    for beta in (0.0, 0.3, 1.0):
        loss, stats = elbo(log_lik, law.mean, law.log_std, beta=beta)
        torch.testing.assert_close(loss, (beta * kl - log_lik).mean())
        torch.testing.assert_close(stats["elbo"], (log_lik - kl).mean())
        torch.testing.assert_close(stats["kl"], kl.mean())
        torch.testing.assert_close(stats["log_lik"], log_lik.mean())
    with pytest.raises(ValueError, match=r"elbo takes log likelihoods \(B,\)"):
        elbo(log_lik[:3], law.mean, law.log_std)


def test_elbo_falls_short_of_the_evidence_by_the_posteriors_kl(device, rng):
    """x | z ~ N(w z, s^2): the bound's mean over draws of q is log p(x) - KL(q || p(z | x)), all closed forms."""
    w, s, x, n = 0.8, 0.5, 1.1, 60_000
    q = D.Normal(torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64))
    variance = 1 / (1 + w**2 / s**2)
    posterior = D.Normal(torch.tensor(variance * w * x / s**2, dtype=torch.float64), math.sqrt(variance))
    evidence = D.Normal(0.0, math.hypot(w, s)).log_prob(torch.tensor(x, dtype=torch.float64))
    mean = torch.full((n, 1), 0.7, device=device, dtype=torch.float64)
    log_std = torch.full_like(mean, math.log(0.6))
    z = Normal(mean, log_std).transform(torch.randn(n, 1, generator=rng(4), device=device, dtype=torch.float64))
    log_lik = Normal(w * z, torch.full_like(z, math.log(s))).log_prob(torch.full_like(z, x))
    each = torch.stack([elbo(part, mean[:1000], log_std[:1000])[0] for part in log_lik.split(1000)])
    assert_mean(-each, evidence - D.kl_divergence(q, posterior), se=0.01)


def test_samples_follow_the_density_that_iwae_finds(device, rng):
    """Mean of the weights exp(log p(x) - log r(x)) over x ~ r, for a wide Gaussian r, is 1: p is normalized.

    And x's second moment under p, found the same way, is that of the samples.
    """
    torch.manual_seed(2)
    vae = VAE(latents=1, width=16, depth=1).to(device)
    torch.nn.init.normal_(vae.decode.layers[-1].weight, std=0.15)
    wide = D.Normal(torch.zeros(2, device=device), 2.5)
    r = 2.5 * torch.randn(4000, 2, generator=rng(6), device=device)
    prior = lambda x: Normal(torch.zeros(len(x), 1, device=device), torch.zeros(len(x), 1, device=device))
    log_p = latent.iwae(prior, vae.decode, r, 200, rng(7))
    weight = (log_p - wide.log_prob(r).sum(1)).exp()
    assert_mean(weight, 1.0, se=0.05)
    with torch.no_grad():
        found = vae.sample(20_000, rng(8)).square().sum(1)
    assert_mean(weight * r.square().sum(1) - found.mean(), 0.0, se=0.1)


def test_spreads_start_at_one_whatever_the_input(device, rng):
    torch.manual_seed(3)
    vae = VAE(latents=3, width=16, depth=2).to(device)
    x = 100 * torch.randn(50, 2, generator=rng(9), device=device)
    law = vae.encode(x)
    torch.testing.assert_close(law.log_std, torch.zeros_like(law.log_std))
    assert float(law.mean.detach().std()) > 1  # the means do see the input
    torch.testing.assert_close(vae.decode(x[:, :1].expand(50, 3)).log_std, torch.zeros(50, 2, device=device))


def test_the_decoders_spread_is_bounded(device):
    vae = VAE(latents=2, width=8, depth=1).to(device)
    torch.nn.init.normal_(vae.decode.layers[-1].weight)
    law = vae.decode(1e6 * torch.ones(3, 2, device=device))
    assert 6 < float(law.log_std.detach().abs().max()) <= 7
