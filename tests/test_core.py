"""The convention: per-sample energies and gradients, frozen weights, evaluation without side effects."""

from functools import partial

import pytest
import torch
from problems import quartic
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ebmlib.core import energy_and_grad, evaluating, expand, flat_sum, frozen
from ebmlib.samplers import hmc, independence, langevin, mala, ula


def spectral_net(device, dtype) -> nn.Module:
    torch.manual_seed(0)
    hidden = spectral_norm(nn.Linear(2, 8))
    return nn.Sequential(hidden, nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0)).to(device, dtype)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 4, 4)])
def test_sums_and_factors_are_each_samples_own(shape, device, dtype, rng):
    x = torch.randn(shape, generator=rng(0), device=device, dtype=dtype)
    torch.testing.assert_close(flat_sum(x), torch.stack([row.sum() for row in x]))
    product = expand(torch.tensor([1.0, -2.0, 3.0], device=device, dtype=dtype), x) * x
    torch.testing.assert_close(product, torch.stack([x[0], -2 * x[1], 3 * x[2]]))
    assert expand(0.5, x) == 0.5


WRONG = [
    lambda x: x.sum(), lambda x: x.sum(1, keepdim=True), lambda x: x, lambda x: (x.sum(1), 0), lambda x: None,
    lambda x: 0.0, lambda x: x.detach().cpu().numpy().sum(1),
]  # fmt: skip


@pytest.mark.parametrize("bad", WRONG)
def test_an_energy_that_is_not_one_number_a_sample_is_refused(bad, device):
    x = torch.ones(4, 2, device=device)
    with pytest.raises(
        ValueError,
        match=r"must return a tensor of shape \(4,\), .* got (\((4, 1|4, 2|)\)|tuple|NoneType|float|ndarray)$",
    ):
        energy_and_grad(bad, x)


@pytest.mark.parametrize("bad", [
    lambda x: torch.zeros(len(x)), lambda x: x.detach().square().sum(1), lambda x: nn.Parameter(torch.ones(4)),
    lambda x: torch.from_numpy(x.detach().cpu().numpy().sum(1)),
])  # fmt: skip
@pytest.mark.parametrize("create_graph", [False, True])
def test_an_energy_without_a_gradient_in_x_is_refused(bad, create_graph, device):
    with pytest.raises(ValueError, match="the energy has no gradient in x"):
        energy_and_grad(bad, torch.ones(4, 2, device=device), create_graph)
    value, grad = energy_and_grad(lambda x: 3 + 0 * x.sum(1), torch.ones(4, 2, device=device))
    assert (value == 3).all()
    assert not grad.any()


@pytest.mark.parametrize("made", [False, True])
def test_gradients_are_taken_inside_inference_mode_and_of_tensors_made_there(made, device, dtype):
    with torch.inference_mode(made):
        x = torch.ones(4, 2, device=device, dtype=dtype) * 3
    want = energy_and_grad(quartic, torch.full((4, 2), 3.0, device=device, dtype=dtype))
    for run in (False, True):
        with torch.inference_mode(run):
            found = energy_and_grad(quartic, x)
        assert all(one.equal(other) for one, other in zip(found, want, strict=True))


normed = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1), nn.Flatten(0))


@pytest.mark.parametrize("held", [
    lambda net: net, lambda net: lambda x: net(x), lambda net: partial(lambda inner, x: inner(x), net),
    lambda net: net.forward, lambda net: lambda x: normed(x) / 2,
])  # fmt: skip
def test_an_energy_in_which_samples_of_a_batch_meet_is_refused(held):
    x, energy = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), held(normed)
    normed.train()
    uses = [
        lambda: langevin(energy, x, ula(0.1, 2)), lambda: mala(energy, x, 0.1, 2), lambda: hmc(energy, x, 0.1, 2),
        lambda: independence(energy, x), lambda: energy_and_grad(energy, x, create_graph=True),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(ValueError, match="BatchNorm1d in train mode, where the energy of a sample depends on"):
            use()
    with evaluating(normed):
        langevin(energy, x, ula(0.1, 2))


def test_gradient_is_the_formula_and_carries_nothing(device, dtype, rng):
    w = torch.tensor(1.5, device=device, dtype=dtype, requires_grad=True)
    x = torch.randn(50, 3, generator=rng(1), device=device, dtype=dtype)
    with torch.no_grad():  # a sampler may run inside
        value, grad = energy_and_grad(lambda x: w * quartic(x), x)
    torch.testing.assert_close(value, 1.5 * (x**4 / 4 + x / 2).sum(1))
    torch.testing.assert_close(grad, 1.5 * (x**3 + 0.5))
    assert not any(part.requires_grad for part in (value, grad, x))
    energy_and_grad(lambda x: w * quartic(x), x.requires_grad_())
    assert w.grad is None
    assert x.grad is None


def test_gradient_with_a_graph_reaches_weights_and_point(device, rng):
    w = torch.tensor(1.5, device=device, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, generator=rng(2), device=device, dtype=torch.float64, requires_grad=True)
    value, grad = energy_and_grad(lambda x: w * quartic(x), x, create_graph=True)
    to_w, to_x = torch.autograd.grad(grad.sum(), (w, x), retain_graph=True)
    torch.testing.assert_close(to_w, (x.detach() ** 3 + 0.5).sum())
    torch.testing.assert_close(to_x, 4.5 * x.detach() ** 2)
    (value_to_w,) = torch.autograd.grad(value.sum(), w)
    torch.testing.assert_close(value_to_w, quartic(x.detach()).sum())


def test_frozen_stops_the_weights_only_and_restores_every_flag(device, dtype):
    net = spectral_net(device, dtype)
    net[2].bias.requires_grad_(False)
    before = [p.requires_grad for p in net.parameters()]
    x = torch.ones(3, 2, device=device, dtype=dtype, requires_grad=True)
    with frozen(net) as same:
        assert same is net
        net(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == before
    with pytest.raises(KeyError), frozen(net):
        raise KeyError
    assert [p.requires_grad for p in net.parameters()] == before


def test_evaluating_has_no_side_effect(device, dtype):
    net = spectral_net(device, dtype)
    net.train()
    net[1].eval()  # a mixed state must come back as it was
    modes = [m.training for m in net.modules()]
    flags = [p.requires_grad for p in net.parameters()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.ones(3, 2, device=device, dtype=dtype)
    with evaluating(net):
        first, second = net(x), net(x)
        assert net[0].weight is net[0].weight  # the normalized weight is computed once
        with evaluating(net):
            assert torch.equal(net(x), first)
        assert not any(m.training for m in net.modules())
    assert torch.equal(first, second)
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags
    net(x)  # train mode does move the vectors: the test above means something
    assert any(not torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_evaluating_forgets_its_cached_weights(device, dtype):
    net = spectral_net(device, dtype).eval()
    x = torch.ones(3, 2, device=device, dtype=dtype)
    with evaluating(net):
        before = net(x)
    with torch.no_grad():
        net[2].weight.mul_(2)
        net[0].parametrizations.weight.original.add_(1.0)
    with evaluating(net):
        assert (net(x) - before).abs().min() > 1e-3
    with pytest.raises(KeyError), evaluating(net.train()):
        raise KeyError
    assert net.training
    net(x).sum().backward()  # weights take gradients again
    assert net[0].parametrizations.weight.original.grad.abs().sum() > 0
