"""The gradient flow against the matrix exponential, quadrature, full Jacobians and finite differences."""

import math

import numpy as np
import pytest
import torch
from problems import assert_mean, quartic
from torch.distributions import MultivariateNormal
from torch.func import jacrev, vmap

from ebmlib import partition
from ebmlib.core import frozen, gaussian_energy
from ebmlib.nets.mlp import MLP
from ebmlib.objectives import kl_opt
from ebmlib.papers import flow
from ebmlib.samplers import decoupled, langevin

T = 0.7  # long enough that a wrong factor shows
TIGHT = 1e-9


@pytest.fixture
def quadratic(device):
    """E = (x - m) . A (x - m) / 2 with a saddle's A: its flow is linear. Returns (E, A, m)."""
    A = torch.tensor([[2.0, 0.6], [0.6, -1.1]], dtype=torch.float64, device=device)
    m = torch.tensor([0.4, -0.9], dtype=torch.float64, device=device)
    return (lambda x: 0.5 * ((x - m) @ A * (x - m)).sum(1)), A, m


@pytest.fixture
def net(device):
    """A small net in float64 with curvature of either sign, far from linear on the unit scale."""
    torch.manual_seed(3)
    net = MLP(2, 12, 3).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2.5)
    return net.to(device)


def points(n, seed, device, dim=2):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


# -- the ODE --


def test_the_flow_of_a_quadratic_is_the_matrix_exponential(quadratic, device):
    energy, A, m = quadratic
    x0 = points(20, 0, device)
    there = flow.transport(energy, x0, T, tol=TIGHT)
    expected = m + (x0 - m) @ torch.linalg.matrix_exp(-A * T)
    torch.testing.assert_close(there, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(flow.transport(energy, there, -T, tol=TIGHT), x0, rtol=0, atol=1e-7)
    assert not there.requires_grad


def test_the_law_of_a_quadratics_flow_and_its_log_density(quadratic, device, rng):
    energy, A, m = quadratic
    M = torch.linalg.matrix_exp(-A * T)
    law = MultivariateNormal(m - M @ m, M @ M.T)
    x = flow.transport(energy, torch.randn(20_000, 2, generator=rng(1), device=device, dtype=torch.float64), T)
    assert_mean(x, law.mean, se=0.02)
    off = x - law.mean
    assert_mean(off[:, :, None] * off[:, None, :], law.covariance_matrix, se=0.1)
    # Points far out in the law's tail, too.
    y = law.mean + 3 * points(30, 2, device)
    torch.testing.assert_close(flow.log_prob(energy, y, T, tol=TIGHT), law.log_prob(y), rtol=1e-7, atol=1e-7)


def test_the_tolerance_is_local_and_a_second_one_shows_by_how_much(device):
    """E = sum k x^2 / 2 with k = 30 and 1: at 1e-5 the log density misses by 100 times that, as 1e-6 makes visible."""
    k = torch.tensor([30.0, 1.0], device=device, dtype=torch.float64)
    energy = lambda x: 0.5 * (k * x**2).sum(1)
    law = torch.distributions.Normal(0.0, torch.exp(-0.2 * k))
    y = law.stddev * points(200, 8, device)
    loose, tight = (flow.log_prob(energy, y, 0.2, tol=tol) for tol in (1e-5, 1e-6))
    error = float((loose - law.log_prob(y).sum(1)).abs().max())
    seen = float((loose - tight).abs().max())
    assert error > 1e-3
    assert 0.5 * error < seen < 2 * error


def test_the_density_moves_along_the_path_as_it_is_read_backward(net, device):
    x0 = points(40, 4, device)
    x, change = flow.transport_density(net, x0, T, tol=TIGHT)
    torch.testing.assert_close(x, flow.transport(net, x0, T, tol=TIGHT), rtol=0, atol=1e-6)
    assert float(change.abs().max()) > 0.3, "the test needs a flow that changes the density"
    read = flow.log_prob(net, x, T, tol=TIGHT)
    torch.testing.assert_close(read, -gaussian_energy(x0) + change, rtol=0, atol=1e-6)


def test_the_density_of_a_net_integrates_to_one(net, device):
    net = net.float()
    log_p = lambda x: flow.log_prob(net, x, T, tol=1e-5, field=net.grad_laplacian)
    box, n = 9.0, 110
    mass = partition.on_grid(log_p, box, n, device=device).exp().sum() * (2 * box / n) ** 2
    assert float(mass) == pytest.approx(1, abs=5e-4)


def test_states_of_other_shapes_and_dtypes(quadratic, device):
    """One coordinate image-shaped energy in three dimensions, float32: E = sum k x_k^2 / 2, k = 1, 2, 3."""
    k = torch.tensor([1.0, 2.0, 3.0], device=device)
    energy = lambda x: 0.5 * (k * x.flatten(1) ** 2).sum(1)
    x = points(10, 5, device, 3).float().reshape(10, 1, 3)
    log_p = flow.log_prob(energy, x, 0.2)
    scale = torch.exp(-0.2 * k)
    truth = torch.distributions.Normal(0.0, scale).log_prob(x.flatten(1)).sum(1)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p, truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("t_end", "tol"), [(0.0, 1e-5), (math.nan, 1e-5), (0.2, 0.0)])
def test_an_end_time_or_tolerance_without_meaning_is_refused(quadratic, device, t_end, tol):
    with pytest.raises(ValueError, match="a flow needs a finite end time other than 0 and a positive tolerance; got"):
        flow.transport(quadratic[0], points(3, 0, device), t_end, tol=tol)


# -- curvature --


def test_the_laplacian_of_the_quartic_is_known(device):
    x = points(30, 6, device, 3)
    grad, lap = flow.laplacian(quartic, x)
    torch.testing.assert_close(grad, x**3 + 0.5)
    torch.testing.assert_close(lap, 3 * (x**2).sum(1))
    torch.testing.assert_close(flow.hessian(quartic, x), torch.diag_embed(3 * x**2))


def test_hutchinsons_estimate_is_unbiased(quadratic, device, rng):
    energy, A, _ = quadratic
    x = points(1, 7, device).expand(20_000, 2)
    probe = torch.randint(2, x.shape, generator=rng(8), device=device).double() * 2 - 1
    grad, estimate = flow.laplacian(energy, x, probe=probe)
    assert float(estimate.std()) > 1, "with these probes the estimate has spread: A is not diagonal"
    assert_mean(estimate, A.trace().item(), se=0.01)
    torch.testing.assert_close(grad, flow.laplacian(energy, x)[0])


@pytest.mark.parametrize("spectral", [False, True])
def test_the_nets_own_laplacian_is_autograds(spectral, device):
    """Values, and the gradient of a function of both in weights and points."""
    torch.manual_seed(9)
    net = MLP(3, 10, 4, spectral, gain=1.7).double().to(device).eval()
    results = []
    for field in (net.grad_laplacian, lambda x: flow.laplacian(net, x, create_graph=True)):
        x = points(15, 10, device, 3).requires_grad_(True)
        grad, lap = field(x)
        loss = (grad.sin() * torch.arange(3, device=device)).sum() + (lap**2).sum()
        inner = [p for name, p in net.named_parameters() if "weight" in name or name == "layers.0.bias"]
        results.append([grad.detach(), lap.detach(), *torch.autograd.grad(loss, [x, *inner])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


# -- gradients in the weights --


@torch.no_grad()
def directional(net, loss, direction, h=1e-5):
    """Central difference of loss() along `direction`, a list like the parameters."""
    start, values = [p.clone() for p in net.parameters()], []
    for sign in (1, -1):
        for p, at, v in zip(net.parameters(), start, direction, strict=True):
            p.copy_(at + sign * h * v)
        values.append(float(loss()))
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("fast", [True, False])
def test_the_likelihoods_gradient_against_finite_differences(net, device, fast):
    x = points(12, 11, device)
    field = net.grad_laplacian if fast else None
    torch.manual_seed(12)
    v = [torch.randn_like(p) for p in net.parameters()]
    loss = flow.log_prob(net, x, T, tol=1e-10, field=field, create_graph=True).mean()
    loss.backward()
    slope = sum((p.grad * d).sum() for p, d in zip(net.parameters(), v) if p.grad is not None)
    numeric = directional(net, lambda: flow.log_prob(net, x, T, tol=1e-10, field=net.grad_laplacian).mean(), v)
    assert abs(numeric) > 0.05
    assert float(slope) == pytest.approx(numeric, rel=1e-5)


def test_the_generator_loss_differentiates_through_the_sample_alone(net, device):
    """Eq. 11: the outer energy's weights stand still; the flow's move."""
    x0 = points(12, 13, device)
    kl_opt(net, flow.transport(net, x0, T, tol=1e-10, create_graph=True)).backward()
    torch.manual_seed(14)
    v = [torch.randn_like(p) for p in net.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(net.parameters(), v) if p.grad is not None)
    judge = MLP(2, 12, 3).double().to(device)
    judge.load_state_dict(net.state_dict())
    numeric = directional(net, lambda: judge(flow.transport(net, x0, T, tol=1e-10)).mean(), v)
    assert abs(numeric) > 0.05
    assert float(slope) == pytest.approx(numeric, rel=1e-5)


# -- Euler --


def steps(net, x, step, K):
    for _ in range(K):
        x = x - step * jacrev(lambda y: net(y[None])[0])(x)
    return x


def test_eulers_log_determinant_is_that_of_the_full_jacobian(net, device):
    x0, step, K = points(6, 17, device), 0.11, 5
    x, log_det = flow.euler(net, x0, step, K)
    torch.testing.assert_close(x, langevin(net, x0, decoupled(step, 0.0, K))[0])
    with frozen(net):
        jacobian = vmap(jacrev(lambda y: steps(net, y, step, K)))(x0)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)
    assert float(log_det.abs().min()) > 0.01


def test_euler_approaches_the_ode_with_order_one(net, device):
    x0 = points(30, 18, device)
    x, change = flow.transport_density(net, x0, T, tol=1e-10)
    counts = np.array([64, 128, 256, 512])
    errors = []
    for K in counts.tolist():
        x_K, log_det = flow.euler(net, x0, T / K, K)
        errors.append([float((x_K - x).norm()), float((log_det + change).norm())])
    slopes = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slopes == pytest.approx([-1, -1], abs=0.08)


def test_the_inverse_finds_the_start_where_the_bound_holds(net, device):
    x0 = points(50, 19, device)
    grid = partition.grid(4.0, 30, device).double()
    step, K = 0.9 / float(flow.contraction(net, grid, 1.0).max()), 6
    x, _ = flow.euler(net, x0, step, K)
    back = flow.euler_inverse(net, x, step, K, rounds=300)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-7)


def test_the_bound_of_a_quadratic_is_exact_and_sets_the_inverses_rate(quadratic, device):
    energy, A, _ = quadratic
    largest = float(torch.linalg.eigvalsh(A).abs().max())
    x0 = points(8, 20, device)
    torch.testing.assert_close(flow.contraction(energy, x0, 0.3), torch.full_like(x0[:, 0], 0.3 * largest))
    errors = {}
    for step in (0.8 / largest, 1.25 / largest):
        x, _ = flow.euler(energy, x0, step, 1)
        for rounds in (20, 40):
            back = flow.euler_inverse(energy, x, step, 1, rounds=rounds)
            errors[step, rounds] = float((back - x0).norm())
        rate = (errors[step, 40] / errors[step, 20]) ** (1 / 20)
        assert rate == pytest.approx(step * largest, rel=1e-2)  # above 1 it runs away
