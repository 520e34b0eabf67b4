"""Every sampler against exact moments: the one update with its bias, MALA and HMC without any, leapfrog, tune."""

import math
import warnings
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from problems import assert_mean, gaussian_chain, quartic, quartic_moment, stationary_variance
from torch.distributions import Normal

from ebmlib import samplers
from ebmlib.core import flat_sum
from ebmlib.samplers import hmc, independence, langevin, langevin_step, leapfrog, mala, tune

CORRECTED = partial(mala, step=0.3, K=60), partial(hmc, step=0.6, K=60)


def gaussian(s: float, center: float = 0.0):
    return lambda x: flat_sum((x - center) ** 2) / (2 * s**2)


def assert_gaussian(x: torch.Tensor, mean: float, variance: float) -> None:
    """x (N,) are independent draws of this mean and variance, with a standard error of 1.5 % of the variance."""
    if variance == 0:
        torch.testing.assert_close(x, torch.full_like(x, mean))
        return
    assert_mean(x, mean, math.sqrt(variance) * 0.015)
    assert_mean((x - mean) ** 2, variance, variance * 0.015)


# -- schedules --


def test_schedules_are_the_pairs_they_name():
    assert samplers.ula(0.02, 3) == [(0.02, 0.2)] * 3
    assert samplers.decoupled(10.0, 0.005, 2) == [(10.0, 0.005)] * 2
    decayed = samplers.decayed(1.0, 0.015, 4)
    assert [a for a, _ in decayed] == [1.0] * 4
    np.testing.assert_allclose([b for _, b in decayed], [0.015, 0.010, 0.005, 0.0], atol=1e-17)
    assert samplers.decayed(1.0, 0.015, 1) == [(1.0, 0.015)]
    assert samplers.annealed([1.0, 2.0], [3.0, 4.0], 2) == [(1.0, 3.0), (1.0, 3.0), (2.0, 4.0), (2.0, 4.0)]


def test_temperature_of_the_published_recipes():
    assert samplers.temperature(*samplers.ula(0.3, 1)[0]) == pytest.approx(1)
    # The table of recipes: (a, b) and its temperature.
    for a, b, published in [(10, 0.005, 1.3e-6), (1, 0.01, 5e-5), (100, 0.001, 5e-9), (0.5, 2e-2**0.5, 2e-2)]:
        assert samplers.temperature(a, b) == pytest.approx(published, rel=0.05)


def test_no_energy_gives_ula_less_variance_than_its_floor_and_the_check_says_where_that_is_too_much():
    a, s = 0.02, 0.21
    curvatures = 1 / s**2, 0.99 / a, 1 / a, 1.01 / a, 1.9 / a
    assert min(stationary_variance(a, math.sqrt(2 * a), w**-0.5) for w in curvatures) == pytest.approx(2 * a)
    assert 2 * a < s**2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samplers.check_floor(samplers.ula(a, 3), s)
        samplers.check_floor([(a, 2 * s), (a, 0.5 * s)], s)  # the last step is the one that counts
    for wide in (samplers.ula(s**2 / 2, 3), [(a, 0.0), (a, 1.01 * s)]):
        with pytest.warns(UserWarning, match=r"as narrow as 0\.21: no energy"):
            samplers.check_floor(wide, s)


# -- the one update: exact mean and variance on a Gaussian --


@pytest.mark.parametrize(("s", "step"), [(0.7, 0.2), (0.7, 1.5), (2.5, 0.6), (0.2, 1.0)])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_stationary_variance_is_biased_by_the_formula(s, step, temperature, device, dtype, rng):
    a = step * s**2
    b = math.sqrt(2 * temperature * a)
    K = math.ceil(math.log(1e-4) / math.log(abs(1 - step))) if step != 1 else 1
    x = torch.full((20_000, 2), 3 * s, device=device, dtype=dtype)
    x, info = langevin(gaussian(s), x, samplers.decoupled(a, b, K), rng=rng(1))
    truth = stationary_variance(a, b, s)
    assert truth == pytest.approx(temperature * s**2 / (1 - step / 2))  # the same formula, solved for the bias
    assert_gaussian(x.flatten(), 0.0, truth)
    assert bool((info.acceptance == 1).all())


SCHEDULES = {
    "one step": samplers.ula(0.147, 1),
    "seven steps": samplers.ula(0.147, 7),
    "decayed": samplers.decayed(0.2, 0.5, 6),
    "annealed": samplers.annealed([0.4, 0.1], [0.6, 0.05], 3),
    "noise first": [(0.0, 0.3), (0.2, 0.3), (0.2, 0.0)],
    "noise alone": [(0.0, 0.7)] * 2,
    "descent": samplers.decoupled(0.3, 0.0, 5),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_moves_mean_and_variance_exactly(name, device, dtype, rng):
    s, center, schedule = 0.8, -0.5, SCHEDULES[name]
    x = 1.0 + 0.4 * torch.randn(20_000, 2, generator=rng(3), device=device, dtype=dtype)
    x, _ = langevin(gaussian(s, center), x, schedule, rng=rng(4))
    assert_gaussian(x.flatten(), *gaussian_chain(schedule, s, 1.0, 0.16, center))


def test_descent_is_exact(device, dtype):
    x = torch.tensor([[1.0, -2.0], [0.5, 4.0]], device=device, dtype=dtype)
    out, info = langevin(gaussian(2.0), x, samplers.decoupled(0.5, 0.0, 3))
    torch.testing.assert_close(out, (1 - 0.5 / 4) ** 3 * x)
    last = (1 - 0.5 / 4) ** 2 * x  # where the last gradient was taken
    torch.testing.assert_close(info.energy, (last**2).sum(1) / 8)
    torch.testing.assert_close(info.grad_norm, last.norm(dim=1) / 4)


def test_each_sample_may_have_its_own_step_and_noise(device, dtype, rng):
    s, n = 0.7, 20_000
    pairs = [(0.1, 0.3), (0.3, 0.9), (0.0, 0.5), (0.2, 0.0)]
    a, b = (torch.tensor(v, device=device, dtype=dtype).repeat_interleave(n) for v in zip(*pairs))
    x = torch.full((4 * n, 1, 2), 1.5, device=device, dtype=dtype)
    x, _ = langevin(gaussian(s), x, [(a, b)] * 4, rng=rng(5))
    for group, pair in zip(x.split(n), pairs):
        assert_gaussian(group.flatten(), *gaussian_chain([pair] * 4, s, 1.5, 0.0))


def test_a_noise_step_takes_no_gradient(device, dtype, rng):
    calls = []
    energy = lambda x: calls.append(len(x)) or gaussian(1.0)(x)
    x = torch.zeros(3, 2, device=device, dtype=dtype)
    _, info = langevin_step(energy, x, 0.0, 0.1, rng=rng(6))
    assert calls == []
    assert bool(info.energy.isnan().all())
    assert bool(info.grad_norm.isnan().all())
    _, info = langevin(energy, x, [(0.0, 0.1), (0.2, 0.1), (0.2, 0.0)], rng=rng(6))
    assert calls == [3, 3]
    assert bool(info.energy.isfinite().all())


def test_clip_bounds_each_entry_of_the_gradient(device, dtype):
    x = torch.tensor([[3.0, -0.5], [-9.0, 0.0]], device=device, dtype=dtype)
    out, info = langevin_step(gaussian(1.0), x, 0.1, 0.0, clip=1.0)
    torch.testing.assert_close(out, x - 0.1 * x.clamp(-1, 1))
    torch.testing.assert_close(info.grad_norm, x.norm(dim=1))  # of the gradient as the energy gave it


def test_project_comes_last_at_every_step(device, dtype, rng):
    box = partial(torch.clamp, min=-0.5, max=0.5)
    x = torch.zeros(500, 2, device=device, dtype=dtype)
    free, _ = langevin_step(gaussian(1.0), x, 0.1, 1.0, rng=rng(7))
    held, _ = langevin_step(gaussian(1.0), x, 0.1, 1.0, rng=rng(7), project=box)
    assert free.abs().max() > 1
    assert torch.equal(held, free.clamp(-0.5, 0.5))
    seen = {}
    langevin(gaussian(1.0), x, [(0.1, 1.0)] * 3, rng=rng(7), project=box, callback=seen.__setitem__)
    assert [float(seen[k].abs().max()) for k in range(3)] == [0.5] * 3


def test_reflected_folds_the_line_into_the_box():
    """On the way from -2.5 to 2.5 the image in |x| <= .5 runs there and back, with slope 1 or -1."""
    x = torch.tensor([[-2.25, -1.5, -1.0, -0.75], [-0.5, 0.25, 0.5, 0.75], [1.0, 1.5, 1.75, 2.5]])
    folded = [[-0.25, 0.5, 0.0, -0.25], [-0.5, 0.25, 0.5, 0.25], [0.0, -0.5, -0.25, 0.5]]
    assert samplers.reflected(0.5)(x).tolist() == folded


def test_reflected_chains_on_a_flat_energy_are_uniform_in_the_box(device, dtype, rng):
    box, n = 1.3, 20_000
    x = torch.full((n, 2), box, device=device, dtype=dtype)
    x, _ = langevin(lambda x: 0 * x.sum(1), x, samplers.ula(2.0, 20), rng=rng(40), project=samplers.reflected(box))
    assert float(x.abs().max()) <= box * (1 + 1e-6)
    assert_mean(x, [0.0] * 2, se=0.01)
    assert_mean(x**2, [box**2 / 3] * 2, se=0.01)
    assert_mean(x[:, 0] * x[:, 1], 0.0, se=0.01)


def test_a_chain_is_its_steps_and_its_generator(device, dtype, rng):
    x0 = torch.ones(4, 3, device=device, dtype=dtype)
    schedule = [(0.1, 0.2), (0.0, 0.5), (0.3, 0.0)]
    state = torch.get_rng_state()
    chain, _ = langevin(gaussian(0.7), x0, schedule, rng=rng(8))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    x, generator = x0, rng(8)
    for a, b in schedule:
        x, _ = langevin_step(gaussian(0.7), x, a, b, rng=generator)
    assert torch.equal(x, chain)
    assert torch.equal(x0, torch.ones_like(x0))  # the start is not changed in place
    assert torch.equal(langevin(gaussian(0.7), x0, [])[0], x0)


# -- gradients through a step --


def test_differentiable_step_is_the_formula(device, rng):
    w = torch.tensor(1.5, device=device, dtype=torch.float64, requires_grad=True)
    x = torch.randn(6, 3, generator=rng(9), device=device, dtype=torch.float64, requires_grad=True)
    weighted = lambda x: w * quartic(x)
    a, b = 0.1, 0.4
    out, info = langevin_step(weighted, x, a, b, rng=rng(10), differentiable=True)
    noise = torch.randn(x.shape, generator=rng(10), device=device, dtype=torch.float64)
    torch.testing.assert_close(out, x - a * 1.5 * (x**3 + 0.5) + b * noise)
    to_w, to_x = torch.autograd.grad(out.sum(), (w, x))
    torch.testing.assert_close(to_w, -a * (x.detach() ** 3 + 0.5).sum())
    torch.testing.assert_close(to_x, 1 - a * 1.5 * 3 * x.detach() ** 2)
    assert not any(field.requires_grad for field in info)
    # A point without a graph still leads to the weights: the last step of a truncated chain.
    out, _ = langevin_step(weighted, x.detach(), a, b, rng=rng(10), differentiable=True)
    (alone,) = torch.autograd.grad(out.sum(), w)
    torch.testing.assert_close(alone, to_w)


@pytest.mark.parametrize("kept", [1, 2, 5, True])
def test_a_chain_keeps_the_graph_of_its_last_steps(kept, device, rng):
    """On E = w |x|^2 / 2 a step is x' = (1 - a w) x + b xi, so dx'/dw = (1 - a w) dx/dw - a x: an exact recursion."""
    w = torch.tensor(0.8, device=device, dtype=torch.float64, requires_grad=True)
    schedule = [(0.3, 0.2), (0.1, 0.0), (0.2, 0.5), (0.0, 0.4), (0.25, 0.1)]
    start = torch.randn(40, 3, generator=rng(20), device=device, dtype=torch.float64)
    x, info = langevin(lambda x: 0.5 * w * (x**2).sum(1), start, schedule, rng=rng(21), differentiable=kept)
    end, slope, generator = start, torch.zeros_like(start), rng(21)
    for k, (a, b) in enumerate(schedule):
        counts = k >= len(schedule) - (len(schedule) if kept is True else kept)
        slope = (1 - a * 0.8) * slope - a * end if counts else slope
        end = (1 - a * 0.8) * end + b * (samplers.noise_like(end, generator) if b else 0)
    torch.testing.assert_close(x, end)
    torch.testing.assert_close(torch.autograd.grad(x.pow(2).sum(), w)[0], (2 * end * slope).sum())
    assert not any(field.requires_grad for field in info)


def small_net(device):
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1), torch.nn.Flatten(0)
    return torch.nn.Sequential(*layers).to(device)


class Saved:
    """A tensor that autograd keeps for a backward pass, for as long as it keeps it."""

    def __init__(self, tensor):
        self.tensor = tensor


def saved_tensors(K, kept, device, recompute=False):
    """(most saved tensors alive at once in a chain of K steps, those alive at its end, whether x has a graph)."""
    net, alive, most = small_net(device), weakref.WeakSet(), 0

    def pack(tensor):
        nonlocal most
        saved = Saved(tensor)
        alive.add(saved)
        most = max(most, len(alive))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        start = torch.zeros(4, 3, device=device)
        x, _ = langevin(net, start, samplers.ula(0.1, K), differentiable=kept, recompute=recompute)
        return most, len(alive), x.requires_grad


def test_what_a_chain_keeps_grows_with_the_steps_that_keep_their_graph_and_not_with_K(device):
    most, at_end, _ = saved_tensors(2, False, device)
    assert most > 0
    assert at_end == 0, "a step's graph outlives it"
    assert saved_tensors(30, False, device) == (most, 0, False)
    short, one, graph = saved_tensors(2, 1, device)
    assert graph
    assert one > 0
    assert saved_tensors(30, 1, device) == (short, one, True)
    assert [saved_tensors(30, kept, device)[1] for kept in (2, 5, True)] == [2 * one, 5 * one, 30 * one]


def test_a_chain_that_is_run_again_has_the_same_gradient_and_keeps_its_states_alone(device):
    def ends(kept, recompute, b=0.3):
        net, rng = small_net(device), torch.Generator(device).manual_seed(1)
        start = torch.randn(4, 3, generator=rng, device=device)
        given = {"rng": rng, "differentiable": kept, "recompute": recompute, "clip": 0.2}
        x, info = langevin(net, start, samplers.decoupled(0.4, b, 7), **given)
        x.square().sum().backward()
        weights = [p.grad for p in net.parameters() if p.grad is not None]
        return [x.detach(), info.energy, info.grad_norm, torch.rand(3, generator=rng, device=device), *weights]

    for kept in (True, 3):
        for b in (0.3, 0.0):
            plain, again = ends(kept, False, b), ends(kept, True, b)
            assert all(torch.equal(p, q) for p, q in zip(plain, again, strict=True))
            assert max(grad.abs().max() for grad in plain[4:]) > 0.01
    per_step = [saved_tensors(30, True, device, recompute)[1] / 30 for recompute in (False, True)]
    assert per_step[1] <= 2  # the state and its noise
    assert per_step[0] > 5 * per_step[1]
    assert saved_tensors(30, False, device, True) == saved_tensors(30, False, device)


def test_no_leapfrog_step_and_more_differentiable_ones_than_there_are_are_refused():
    x = torch.zeros(2, 2)
    for kept in (4, -1):
        with pytest.raises(ValueError, match=f"differentiable = {kept} steps; the schedule has 3"):
            langevin(quartic, x, samplers.ula(0.1, 3), differentiable=kept)
    with pytest.raises(ValueError, match="L = 0: allowed is a finite number above 0"):
        hmc(quartic, x, 0.1, 1, L=0)


@pytest.mark.parametrize(
    ("use", "named"),
    [
        (lambda x: samplers.ula(-1.0, 3), "step = -1.0"),
        (lambda x: samplers.ula(0.1, -3), "K = -3"),
        (lambda x: samplers.decoupled(0.1, math.nan, 3), "noise = nan"),
        (lambda x: samplers.decayed(0.1, 0.1, -1), "K = -1"),
        (lambda x: langevin(quartic, x, [(0.1, 0.1), (math.inf, 0.0)]), "a = inf"),
        (lambda x: langevin(quartic, x, samplers.decoupled(0.1, 0.0, 3), clip=-1), "clip = -1"),
        (lambda x: langevin_step(quartic, x, 0.1, -0.1), "b = -0.1"),
        (lambda x: langevin_step(quartic, x, 0.1, 0.1, clip=0), "clip = 0"),
        (lambda x: samplers.mala(quartic, x, math.nan, 3), "step = nan"),
        (lambda x: samplers.mala(quartic, x, 0.1, -3), "K = -3"),
        (lambda x: hmc(quartic, x, 0.0, 3), "step = 0.0"),
        (lambda x: samplers.independence(quartic, x, -1), "K = -1"),
        (lambda x: langevin(quartic, x.long(), samplers.ula(0.1, 3)), "starts from a tensor of floats"),
        (lambda x: hmc(quartic, x.tolist(), 0.1, 3), "starts from a tensor of floats"),
    ],
)
def test_numbers_that_make_no_chain_are_refused_by_name(use, named):
    with pytest.raises(ValueError, match=named):
        use(torch.zeros(2, 2))


def test_a_schedule_may_be_made_on_the_way(rng):
    pairs = [(0.01, 0.1), (0.1, 0.2)]
    runs = (langevin(quartic, torch.ones(3, 2), s, rng=rng(0))[0] for s in (pairs, (pair for pair in pairs)))
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    "sampler", [partial(langevin, schedule=[(0.1, 0.3)]), partial(langevin_step, a=0.1, b=0.3), *CORRECTED]
)
def test_samplers_return_no_graph_and_leave_no_weight_gradients(sampler, device, dtype, rng):
    w = torch.tensor(1.5, device=device, dtype=dtype, requires_grad=True)
    x = torch.ones(4, 2, device=device, dtype=dtype, requires_grad=True)
    out, info = sampler(lambda x: w * quartic(x), x, rng=rng(13))
    assert not out.requires_grad
    assert not any(field.requires_grad for field in info)
    assert w.grad is None
    assert x.grad is None
    torch.testing.assert_close(x.detach(), torch.ones_like(x))


# -- MALA and HMC --

EXACT = {
    "mala": partial(mala, step=0.35, K=40),
    "hmc": partial(hmc, step=0.7, K=40),
    "hmc 5": partial(hmc, step=0.55, L=5, K=25),
}


@pytest.mark.parametrize("name", EXACT)
def test_corrected_chains_are_exact_at_a_large_step(name, device, dtype, rng):
    x = torch.full((20_000, 2), 1.0, device=device, dtype=dtype)
    x, info = EXACT[name](quartic, x, rng=rng(14))
    moments = [quartic_moment(k) for k in (1, 2, 3)]
    assert_mean(torch.stack([(x**k).mean(1) for k in (1, 2, 3)], 1), moments, se=0.012)
    assert 0.3 < float(info.acceptance.mean()) < 0.95  # the correction had work to do
    assert_mean(quartic(x), 2 * (quartic_moment(4) / 4 + quartic_moment(1) / 2), se=0.012)
    torch.testing.assert_close(info.energy, quartic(x))
    torch.testing.assert_close(info.grad_norm, (x**3 + 0.5).norm(dim=1))


@pytest.mark.parametrize("kernel", [mala, hmc])
def test_each_chain_may_have_its_own_step(kernel, device, dtype, rng):
    steps = (0.1, 0.4) if kernel is mala else (0.3, 0.8)
    step = torch.tensor(steps, device=device, dtype=dtype).repeat_interleave(10_000)
    x = torch.zeros(20_000, 2, device=device, dtype=dtype)
    x, info = kernel(quartic, x, step, 60, rng=rng(15))
    moments = [quartic_moment(1), quartic_moment(2)]
    for half in x.chunk(2):
        assert_mean(torch.stack([half.mean(1), (half**2).mean(1)], 1), moments, se=0.012)
    small, large = info.acceptance.chunk(2)
    assert small.mean() > large.mean() + 0.05


def test_mala_accepts_with_the_ratio_of_torch_distributions(device, rng):
    n, step = 400, 0.4
    x = torch.randn(n, 2, generator=rng(17), device=device, dtype=torch.float64)
    drift = lambda x: x - step * (x**3 + 0.5)
    density = lambda new, old: Normal(drift(old), math.sqrt(2 * step)).log_prob(new).sum(1)
    noise = torch.randn(x.shape, generator=rng(18), device=device, dtype=torch.float64)
    proposal = drift(x) + math.sqrt(2 * step) * noise
    log_ratio = quartic(x) - quartic(proposal) + density(x, proposal) - density(proposal, x)
    out, info = mala(quartic, x, step, 1, rng=rng(18))
    torch.testing.assert_close(info.acceptance, log_ratio.clamp(max=0).exp())
    moved = (out != x).all(1)
    torch.testing.assert_close(out[moved], proposal[moved])
    assert torch.equal(out[~moved], x[~moved])
    expected = float(info.acceptance.sum())
    assert abs(float(moved.sum()) - expected) < 4 * float((info.acceptance * (1 - info.acceptance)).sum().sqrt())


def test_hmc_accepts_with_the_error_of_the_hamiltonian(device, rng):
    n, step = 400, 0.9
    x = torch.randn(n, 2, generator=rng(19), device=device, dtype=torch.float64)
    p = torch.randn(x.shape, generator=rng(20), device=device, dtype=torch.float64)
    half = p - step / 2 * (x**3 + 0.5)
    middle = x + step * half
    half = half - step * (middle**3 + 0.5)
    new = middle + step * half
    end = half - step / 2 * (new**3 + 0.5)
    hamiltonian = lambda x, p: quartic(x) + (p**2).sum(1) / 2
    out, info = hmc(quartic, x, step, 1, rng=rng(20))
    torch.testing.assert_close(info.acceptance, (hamiltonian(x, p) - hamiltonian(new, end)).clamp(max=0).exp())
    moved = (out != x).all(1)
    torch.testing.assert_close(out[moved], new[moved])
    assert 50 < int(moved.sum()) < n


@pytest.mark.parametrize("kernel", CORRECTED)
@pytest.mark.parametrize("outside", [math.nan, math.inf])
def test_an_undefined_energy_is_a_rejection(kernel, outside, device, dtype, rng):
    """With E = x^2 / 2 left of 0 and no number right of it, the target is the half-normal law."""
    wall = torch.tensor(outside, device=device, dtype=dtype)
    energy = lambda x: flat_sum(torch.where(x < 0, x**2 / 2, wall))
    x = torch.full((20_000, 1), -1.0, device=device, dtype=dtype)
    x, info = kernel(energy, x, rng=rng(21))
    assert bool((x < 0).all())
    assert bool(info.energy.isfinite().all())
    assert 0.3 < float(info.acceptance.mean()) < 0.95
    assert_mean(x[:, 0], -math.sqrt(2 / math.pi), se=0.01)
    assert_mean(x[:, 0] ** 2, 1.0, se=0.015)


@pytest.mark.parametrize("kernel", [mala, hmc])
def test_corrected_chains_report_every_state(kernel, device, dtype, rng):
    seen, x = {}, torch.zeros(5, 2, device=device, dtype=dtype)
    out, _ = kernel(quartic, x, 0.2, 3, rng=rng(22), callback=seen.__setitem__)
    assert list(seen) == [0, 1, 2]
    assert torch.equal(seen[2], out)


# -- leapfrog --


def test_leapfrog_is_reversible(device, rng):
    x = torch.randn(50, 3, generator=rng(23), device=device, dtype=torch.float64)
    p = torch.randn(50, 3, generator=rng(24), device=device, dtype=torch.float64)
    step = torch.linspace(0.05, 0.3, 50, device=device, dtype=torch.float64)  # each sample its own
    far, q, value, grad = leapfrog(quartic, x, p, x**3 + 0.5, step, 7)
    assert (far - x).abs().max() > 1
    torch.testing.assert_close(value, quartic(far))
    torch.testing.assert_close(grad, far**3 + 0.5)
    back, r, _, _ = leapfrog(quartic, far, -q, grad, step, 7)
    torch.testing.assert_close(back, x, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(-r, p, atol=1e-11, rtol=1e-11)


def test_leapfrog_is_of_second_order_against_the_harmonic_oscillator(device):
    s, time = 0.7, 1.2
    x0 = torch.tensor([[1.0, -0.4]], device=device, dtype=torch.float64)
    p0 = torch.tensor([[0.3, 0.8]], device=device, dtype=torch.float64)
    angle = time / s  # E = x^2 / (2 s^2) with unit mass turns at 1 / s
    exact = x0 * math.cos(angle) + p0 * s * math.sin(angle), p0 * math.cos(angle) - x0 / s * math.sin(angle)
    counts = np.array([8, 16, 32, 64, 128])
    errors = []
    for L in counts:
        x, p, *_ = leapfrog(gaussian(s), x0, p0, x0 / s**2, time / int(L), int(L))
        errors.append([float((x - exact[0]).norm()), float((p - exact[1]).norm())])
    slopes = np.polyfit(np.log(time / counts), np.log(errors), 1)[0]
    np.testing.assert_allclose(slopes, 2, atol=0.05)


def test_leapfrog_keeps_volume(device):
    x, p = torch.eye(2, device=device, dtype=torch.float64).split(1, 1)  # (x, p) = (1, 0) and (0, 1): a linear map
    x, p, *_ = leapfrog(gaussian(0.6), x, p, x / 0.6**2, 0.5, 3)
    assert float(torch.linalg.det(torch.cat([x, p], 1))) == pytest.approx(1, abs=1e-12)


# -- tune --


@pytest.mark.parametrize("kernel", [mala, hmc, partial(hmc, L=5)])
@pytest.mark.parametrize("start", [1e-3, 30.0])
def test_tune_ends_in_the_window_from_either_side(kernel, start, device, dtype, rng):
    scale = torch.tensor([0.3, 1.0, 2.0], device=device, dtype=dtype)
    energy = lambda x: (x**2 / (2 * scale**2)).sum(1)
    x = scale * torch.randn(1000, 3, generator=rng(25), device=device, dtype=dtype)
    step, x = tune(kernel, energy, x, start, rng=rng(26))
    _, info = kernel(energy, x, step, 100, rng=rng(27))
    assert 0.58 < float(info.acceptance.mean()) < 0.92  # an independent run; the estimate's own error is below .01
    assert_mean((x / scale) ** 2, [1.0] * 3, se=0.06)  # the chains that tuned it stayed on target


def test_tune_halves_its_stride_into_a_narrow_window(device, dtype, rng):
    x = torch.randn(2000, 4, generator=rng(28), device=device, dtype=dtype)
    step, _ = tune(mala, gaussian(1.0), x, 0.01, low=0.74, high=0.77, rng=rng(29))
    _, info = mala(gaussian(1.0), x, step, 50, rng=rng(30))
    assert 0.72 < float(info.acceptance.mean()) < 0.79


def test_tune_says_what_it_saw_when_it_fails(device, rng):
    x = torch.zeros(100, 2, device=device)
    with pytest.raises(RuntimeError, match=r"acceptance in \[0.6, 0.9\]; last: 8 with 1.00"):
        tune(mala, lambda x: 0 * x.sum(1), x, 1.0, rounds=3, rng=rng(31))  # flat: every step is accepted


# -- jumps that forget where they start --


def test_independence_is_exact_and_forgets_its_start(device, dtype, rng):
    """On N(c, s^2) from a far start: exact moments after a few jumps, where a local chain would still be on its way."""
    s, center, n = 0.8, 0.5, 20_000
    start = torch.full((n, 1), 6.0, device=device, dtype=dtype)
    x, info = independence(gaussian(s, center), start, 40, rng=rng(60))
    assert_gaussian(x[:, 0], center, s**2)
    torch.testing.assert_close(info.energy, gaussian(s, center)(x))


def test_independence_accepts_as_often_as_two_normals_overlap(device, rng):
    """From exact draws of exp(-E) the mean acceptance is E min(1, w(y) / w(x)), here by quadrature."""
    s, n = 0.7, 40_000
    points, log_w = np.linspace(-7, 7, 801), lambda x: 0.5 * x**2 - 0.5 * x**2 / s**2
    p = np.exp(-0.5 * points**2 / s**2) / np.exp(-0.5 * points**2 / s**2).sum()
    q = np.exp(-0.5 * points**2) / np.exp(-0.5 * points**2).sum()
    exact = p @ np.minimum(1, np.exp(log_w(points)[None, :] - log_w(points)[:, None])) @ q
    start = s * torch.randn(n, 1, generator=rng(61), device=device, dtype=torch.float64)
    _, info = independence(gaussian(s), start, rng=rng(62))
    assert_mean(info.acceptance, exact, se=0.005)
    always, info = independence(gaussian(1.0), start, rng=rng(63))  # its own law: every jump is taken
    torch.testing.assert_close(info.acceptance, torch.ones_like(info.acceptance))
    assert torch.equal(always, torch.randn(n, 1, generator=rng(63), device=device, dtype=torch.float64))
