"""VAEBM's two spaces: a linear decoder's closed forms, the Jacobian between them, and IWAE against exact marginals."""

import math
from typing import NamedTuple

import pytest
import torch
from problems import assert_mean
from torch import Tensor
from torch.distributions import MultivariateNormal

from ebmlib.nets.vae import VAE, Normal
from ebmlib.papers import latent
from ebmlib.samplers import langevin_step, mala


class Linear(NamedTuple):
    """p(x | z) = N(A z + c, s^2 I), and everything that follows from it in closed form."""

    A: Tensor  # (dim, latents)
    c: Tensor
    s: float

    def decode(self, z: Tensor) -> Normal:
        mean = z @ self.A.T + self.c
        return Normal(mean, torch.full_like(mean, math.log(self.s)))

    def marginal(self) -> MultivariateNormal:
        eye = torch.eye(len(self.c), dtype=self.c.dtype, device=self.c.device)
        return MultivariateNormal(self.c, self.A @ self.A.T + self.s**2 * eye)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        eye = torch.eye(self.A.shape[1], dtype=self.c.dtype, device=self.c.device)
        covariance = torch.linalg.inv(eye + self.A.T @ self.A / self.s**2)
        return MultivariateNormal((x - self.c) @ self.A @ covariance / self.s**2, covariance)

    def model(self, H: Tensor, m: Tensor) -> MultivariateNormal:
        """The law of x under p(x) exp(-(x - m)' H (x - m) / 2): a product of two Gaussians."""
        old = self.marginal()
        covariance = torch.linalg.inv(old.precision_matrix + H)
        return MultivariateNormal(covariance @ (old.precision_matrix @ self.c + H @ m), covariance)


@pytest.fixture
def linear(device) -> Linear:
    A = torch.tensor([[0.9, -0.4, 0.2], [0.1, 0.7, -0.5]], dtype=torch.float64, device=device)
    return Linear(A, torch.tensor([0.3, -0.8], dtype=torch.float64, device=device), 0.35)


@pytest.fixture
def quadratic(device):
    """H, m and E(x) = (x - m)' H (x - m) / 2."""
    H = torch.tensor([[2.0, 0.6], [0.6, 1.2]], dtype=torch.float64, device=device)
    m = torch.tensor([-0.5, 0.4], dtype=torch.float64, device=device)
    return H, m, lambda x: 0.5 * torch.einsum("bi,ij,bj->b", x - m, H, x - m)


@pytest.fixture
def vae(device) -> VAE:
    """A random net whose decoder's mean and spread both depend on z."""
    torch.manual_seed(0)
    net = VAE(latents=3, width=16, depth=2).double().to(device)
    torch.nn.init.normal_(net.decode.layers[-1].weight, std=0.5)  # a new one's spreads are 1 everywhere
    return net


def test_pack_and_split_are_inverse(device, rng):
    x, z = (torch.randn(5, *shape, generator=rng(0), device=device) for shape in [(3, 2, 2), (4,)])
    state = latent.pack(x, z)
    part, rest = latent.split(state, (3, 2, 2))
    assert torch.equal(part, x)
    assert torch.equal(rest, z)
    with pytest.raises(ValueError, match="leaves no latents beside x"):
        latent.split(state, (16,))


def test_pull_undoes_push(vae, device, rng):
    eps = torch.randn(50, 5, generator=rng(1), device=device, dtype=torch.float64)
    x, z = latent.push(vae.decode, eps)
    torch.testing.assert_close(z, eps[:, 2:])
    torch.testing.assert_close(latent.pull(vae.decode, x, z), eps)


def test_the_jacobian_is_that_of_the_full_map(vae, device, rng):
    eps = torch.randn(6, 5, generator=rng(2), device=device, dtype=torch.float64)
    whole = lambda e: latent.pack(*latent.push(vae.decode, e[None]))[0]
    exact = torch.stack([torch.linalg.slogdet(torch.autograd.functional.jacobian(whole, e))[1] for e in eps])
    torch.testing.assert_close(latent.log_jacobian(vae.decode, eps[:, 2:]), exact)
    assert exact.std() > 0.1  # the decoder's spread does depend on z


def test_both_spaces_hold_one_law(vae, quadratic, device, rng):
    """Appendix B: -log densities at a point and at its image differ by log |det dT / d eps|, and by nothing else."""
    eps = torch.randn(40, 5, generator=rng(3), device=device, dtype=torch.float64)
    state = latent.pack(*latent.push(vae.decode, eps))
    here, there = latent.in_noise(quadratic[2], vae.decode)(eps), latent.in_data(quadratic[2], vae.decode)(state)
    torch.testing.assert_close(there - here, latent.log_jacobian(vae.decode, eps[:, 2:]))


def test_the_target_in_noise_is_a_gaussian_of_known_precision(linear, quadratic, device, rng):
    """x = M eps + c with M = (s I, A), so the target's precision is I + M' H M."""
    H, m, energy = quadratic
    M = torch.cat([linear.s * torch.eye(2, device=device, dtype=torch.float64), linear.A], 1)
    precision = torch.eye(5, device=device, dtype=torch.float64) + M.T @ H @ M
    law = MultivariateNormal(torch.linalg.solve(precision, M.T @ H @ (m - linear.c)), precision_matrix=precision)
    eps = torch.randn(30, 5, generator=rng(4), device=device, dtype=torch.float64)
    gap = latent.in_noise(energy, linear.decode)(eps) + law.log_prob(eps)
    torch.testing.assert_close(gap, gap[:1].expand(30))
    # The constant is -log Z of p_VAE(x) exp(-E(x)): a Gaussian integral of its own.
    total = torch.linalg.inv(linear.marginal().precision_matrix + H)
    old, off = linear.marginal(), m - linear.c
    outer = torch.linalg.inv(old.covariance_matrix + torch.linalg.inv(H))
    log_z = 0.5 * (torch.logdet(total) - torch.logdet(old.covariance_matrix) - off @ outer @ off)
    torch.testing.assert_close(-gap[0], log_z)


def test_the_posterior_of_a_linear_decoder(linear, quadratic, device, rng):
    """The energy sees x alone: given x, z has the VAE's own posterior, whatever E is."""
    x = torch.randn(1, 2, generator=rng(5), device=device, dtype=torch.float64).expand(20, 2)
    z = torch.randn(20, 3, generator=rng(6), device=device, dtype=torch.float64)
    for energy in (quadratic[2], lambda x: torch.zeros_like(x[:, 0])):
        gap = latent.in_data(energy, linear.decode)(latent.pack(x, z)) + linear.posterior(x[0]).log_prob(z)
        torch.testing.assert_close(gap, gap[:1].expand(20))
    # With E = 0 what is left is the marginal, to the last constant.
    torch.testing.assert_close(-gap[0], linear.marginal().log_prob(x[0]))


@pytest.mark.parametrize("space", ["in_noise", "in_data"])
def test_chains_in_both_spaces_settle_at_one_law(space, linear, quadratic, device, rng):
    """MALA leaves its target invariant: exact draws stay draws of the product Gaussian, in either space."""
    H, m, energy = quadratic
    law, n = linear.model(H, m), 3000
    x = law.mean + torch.randn(n, 2, generator=rng(7), device=device, dtype=torch.float64) @ law.scale_tril.T
    posterior = linear.posterior(x)
    z = torch.randn(n, 3, generator=rng(8), device=device, dtype=torch.float64)
    root = torch.linalg.cholesky(posterior.covariance_matrix[0])
    start = latent.pack(x, posterior.loc + z @ root.T)  # exact draws: the chains must leave them so
    start = latent.pull(linear.decode, *latent.split(start, (2,))) if space == "in_noise" else start
    target = getattr(latent, space)(energy, linear.decode)
    end, info = mala(target, start, 0.25 if space == "in_noise" else 0.03, 60, rng=rng(9))
    x = latent.push(linear.decode, end)[0] if space == "in_noise" else end[:, :2]
    assert 0.3 < float(info.acceptance.mean()) < 0.99
    assert float((end - start).norm(dim=1).mean()) > 0.5  # and they have moved
    assert_mean(x, law.mean, se=0.02)
    assert_mean((x - law.mean) ** 2, law.covariance_matrix.diagonal(), se=0.02)
    assert_mean((x - law.mean).prod(1, keepdim=True), law.covariance_matrix[0, 1:], se=0.02)


def test_a_step_in_noise_is_a_step_in_data_scaled_by_the_variance(device, rng):
    """Appendix B.1: with c = mu + s e, a step of size a on e moves c as a step of size s^2 a does, noise included."""
    s, a, b = 0.3, 0.07, 0.2
    decode = lambda z: Normal(0.5 + 0 * z, torch.full_like(z, math.log(s)))  # one x, one z that it does not see
    eps = torch.tensor([[0.4, -1.1], [2.0, 0.3]], dtype=torch.float64, device=device)
    energy = lambda x: (x**4).sum(1)
    moved, _ = langevin_step(latent.in_noise(energy, decode, (1,)), eps, a, b, rng=rng(9))
    noise = torch.randn(2, 2, generator=rng(9), dtype=torch.float64, device=device)
    x, z = latent.push(decode, eps, (1,))
    point = latent.pack(x, z).requires_grad_(True)
    (grad,) = torch.autograd.grad(latent.in_data(energy, decode, (1,))(point).sum(), point)
    by_hand = x - s**2 * a * grad[:, :1] + s * b * noise[:, :1]
    torch.testing.assert_close(latent.push(decode, moved, (1,))[0], by_hand)


def exact_encoder(linear: Linear, shift: float = 0.0, widen: float = 1.0):
    """The exact posterior of a decoder with one latent, or one beside it."""

    def encode(x: Tensor) -> Normal:
        law = linear.posterior(x)
        return Normal(law.mean + shift, law.stddev.log() + math.log(widen))

    return encode


def test_iwae_with_the_exact_posterior_is_exact_for_one_draw(linear, device, rng):
    one = linear._replace(A=linear.A[:, :1])
    x = torch.randn(9, 2, generator=rng(10), device=device, dtype=torch.float64)
    for n in (1, 7):
        found = latent.iwae(exact_encoder(one), one.decode, x, n, rng(11), block=20)
        torch.testing.assert_close(found, one.marginal().log_prob(x))


def test_importance_weights_average_to_the_marginal(linear, device, rng):
    """With a wrong encoder every weight is random, and the mean of the weights is still p(x)."""
    one = linear._replace(A=linear.A[:, :1])
    x = torch.tensor([[0.5, -1.0]], device=device, dtype=torch.float64)
    wrong = exact_encoder(one, shift=0.1, widen=1.5)
    log_w = latent.importance(wrong, one.decode, x, rng(12), 40_000)
    assert_mean((log_w - one.marginal().log_prob(x)).exp(), 1.0, se=0.01)
    elbo = latent.iwae(wrong, one.decode, x.expand(2000, 2), 1, rng(13)).mean()
    tight = latent.iwae(wrong, one.decode, x.expand(2000, 2), 20, rng(14), block=6000).mean()
    assert elbo < tight - 0.02
    assert tight < one.marginal().log_prob(x) + 0.01
    q, exact = wrong(x), one.posterior(x)
    posterior = torch.distributions.Normal(exact.loc, exact.covariance_matrix[..., 0].sqrt())
    gap = torch.distributions.kl_divergence(torch.distributions.Normal(q.mean, q.log_std.exp()), posterior)
    assert_mean(log_w, one.marginal().log_prob(x)[0] - gap.sum(), se=0.01)  # n = 1 is the ELBO
