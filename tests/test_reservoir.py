"""The replay buffer: who is drawn and who is overwritten by exact laws, bytes and floats, a resume bit for bit."""

import math

import pytest
import torch
from problems import assert_mean
from torch import nn

from ebmlib.objectives import contrastive
from ebmlib.reservoir import Reservoir
from ebmlib.run import training
from ebmlib.samplers import langevin, ula


def numbered(n, rng=None):
    """Sample k is (k, -k): its place in the reservoir can be read from it."""
    return torch.arange(float(n))[:, None] * torch.tensor([1.0, -1.0])


def uniform(n, rng):
    return torch.rand(n, 3, generator=rng, device=rng.device)


def test_every_sample_is_drawn_equally_often(rng):
    n, size = 40_000, 8
    drawn = Reservoir(numbered, capacity=size, restart=0.0).draw(n, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn[:, 0].long(), minlength=size)
    assert float(((counts - n / size) ** 2 / (n / size)).sum()) < 24.3  # .999 quantile of chi-square, 7 degrees
    torch.testing.assert_close(drawn[:, 1], -drawn[:, 0])


def test_the_restart_share_is_fresh_noise(device, rng):
    """Kept samples are 2 or more, noise is below 1."""
    reservoir = Reservoir(uniform, rng(1), capacity=50, restart=0.2)
    reservoir.push(2 + torch.rand(50, 3, generator=rng(2), device=device))
    x = reservoir.draw(20_000, rng(3))
    fresh = (x < 1).all(1)
    assert bool(((x >= 2).all(1) | fresh).all())
    assert_mean(fresh.double(), 0.2, se=0.003)
    assert_mean(x[fresh].double(), [0.5] * 3, se=0.006)  # itself uniform
    assert bool((reservoir.draw(1000, rng(4), restart=0.0) >= 2).all())
    assert bool((reservoir.draw(1000, rng(4), restart=1.0) < 1).all())


def test_a_push_takes_different_places_at_random(device, rng):
    """Of capacity C, a sample outlives k pushes of n with probability (1 - n / C)^k."""
    capacity, n, pushes = 2000, 100, 12
    reservoir = Reservoir(uniform, rng(6), capacity=capacity)
    for k in range(pushes):
        reservoir.push(torch.full((n, 3), 10.0 + k, device=device), rng(7 + k))
        assert int((reservoir.x[:, 0] == 10 + k).sum()) == n
    kept = (reservoir.x < 1).all(1).double()
    # Places within one push exclude each other: the spread is below the binomial one that assert_mean uses.
    assert_mean(kept, (1 - n / capacity) ** pushes, se=0.0115)
    halves = kept.reshape(2, -1).mean(1)
    assert float((halves[0] - halves[1]).abs()) < 4 * math.sqrt(0.25 / 500)


def test_a_full_push_replaces_everything_and_keeps_no_graph(device, rng):
    reservoir = Reservoir(uniform, rng(8), capacity=6)
    new = torch.randn(6, 3, generator=rng(9), device=device, requires_grad=True)
    reservoir.push(2 * new, rng(10))
    assert not reservoir.x.requires_grad
    found, _ = reservoir.x[:, 0].sort()
    assert torch.equal(found, (2 * new.detach())[:, 0].sort().values)
    row = reservoir.draw(1, rng(11), restart=0.0)
    before = reservoir.x.clone()
    row += 1  # a draw is a copy
    assert torch.equal(reservoir.x, before)


def test_bytes_come_back_as_floats_within_half_a_step(device, rng):
    low, high = -1.0, 1.0
    noise = lambda n, rng: low + (high - low) * torch.rand(n, 1, 4, 4, generator=rng, device=rng.device)
    reservoir = Reservoir(noise, rng(13), capacity=4096, restart=0.0, stored="uint8", low=low, high=high)
    assert reservoir.x.dtype == torch.uint8
    x = noise(4096, rng(14))
    place = torch.randperm(4096, generator=rng(15), device=device)
    reservoir.push(x, rng(15))
    back = reservoir.draw(500, rng(16))
    assert back.dtype == torch.float32
    which = torch.randint(4096, (500,), generator=rng(16), device=device)
    truth = torch.empty_like(x)
    truth[place] = x
    off = (back - truth[which]).abs()
    assert 0.003 < float(off.max()) <= (high - low) / 510 + 1e-6
    assert_mean((back - truth[which]).flatten().double(), 0.0, se=3e-5)  # rounded, not cut: no drift
    # The pitfall: sums of bytes wrap around, sums of floats do not.
    assert float((back + back).max()) > 1.9
    assert int((reservoir.x + reservoir.x).max()) <= 255


def test_bytes_hold_the_ends_and_what_lies_beyond(device, rng):
    ends = torch.tensor([[0.0], [2.0], [2.5], [-9.0]], device=device)
    reservoir = Reservoir(lambda n, rng: ends, None, capacity=4, restart=0.0, stored="uint8", low=0.0, high=2.0)
    assert reservoir.x.flatten().tolist() == [0, 255, 255, 0]
    assert set(reservoir.draw(50, rng(0)).flatten().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bytes_refuse_what_is_not_finite(value, device, rng):
    reservoir = Reservoir(uniform, rng(0), capacity=5, stored="uint8")
    x = torch.rand(4, 3, generator=rng(1), device=device)
    x[2, 1] = value
    before = reservoir.x.clone()
    with pytest.raises(ValueError, match="1 of 4 samples for the reservoir are not finite"):
        reservoir.push(x)
    assert reservoir.x.equal(before)


@pytest.mark.parametrize("stored", ["float32", "uint8"])
def test_samples_come_back_in_the_type_of_the_noise(stored, rng, device):
    double = lambda n, r: torch.rand(n, 3, generator=r, device=device, dtype=torch.float64)
    for restart in (0.0, 0.5):
        reservoir = Reservoir(double, rng(0), capacity=5, stored=stored, restart=restart)
        assert reservoir.draw(4, rng(1)).dtype == torch.float64


def chained(run, iterations, stored="float32"):
    """A short contrastive run on chains from a reservoir; returns everything that it ends with."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0))
    rng = training.seeded(1)
    noise = lambda n, rng: 4 * torch.rand(n, 2, generator=rng) - 2
    reservoir = Reservoir(noise, rng, capacity=40, restart=0.1, stored=stored, low=-3.0, high=3.0)
    net.requires_grad_()

    def step(x, done):
        x_neg, _ = langevin(net, reservoir.draw(len(x), rng), ula(0.05, 3), rng=rng)
        reservoir.push(x_neg, rng)
        return contrastive(net(x), net(x_neg), l2=0.1)

    batches = training.Draws(lambda n, rng: torch.randn(n, 2, generator=rng), 16, rng)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    options = {"run": run, "state": [reservoir], "save_every": 5, "progress": False}
    training.fit(step, batches, net=net, optimizer=optimizer, iterations=iterations, **options)
    return [*net.parameters(), reservoir.x.clone(), torch.rand(3, generator=rng)]


@pytest.mark.parametrize("stored", ["float32", "uint8"])
def test_a_resumed_run_is_the_same_bit_for_bit(stored, tmp_path):
    whole = chained(None, 23, stored)
    first = training.open_run("reservoir", {}, tmp_path)
    chained(first, 12, stored)
    first.close()
    again = chained(training.open_run("reservoir", {}, tmp_path, resume=True), 23, stored)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert not torch.equal(whole[-2], chained(None, 12, stored)[-2])


def test_another_reservoirs_state_is_refused(rng):
    state = Reservoir(numbered, capacity=8).state_dict()
    fresh = Reservoir(lambda n, rng: 0 * numbered(n), capacity=8)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.x, numbered(8))
    for other in [{"capacity": 9}, {"capacity": 8, "stored": "uint8"}, {"capacity": 8, "high": 2.0}]:
        with pytest.raises(ValueError, match=r"the saved reservoir has shape, type and range"):
            Reservoir(numbered, **other).load_state_dict(state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"restart": 1.5}, "restart is a share from 0 to 1, not 1.5"),
        ({"stored": "int8"}, "stored = 'int8': allowed are 'float32', 'uint8'"),
        ({"noise": lambda n, rng: numbered(3)}, "noise must give as many samples as asked: 8, not 3"),
    ],
)
def test_bad_input_is_one_sentence(given, message):
    with pytest.raises(ValueError, match=message):
        Reservoir(**{"noise": numbered, "capacity": 8} | given)


@pytest.mark.parametrize("shape", [(4, 3), (9, 2)])
def test_a_push_of_another_shape_or_of_too_many_is_refused(shape):
    with pytest.raises(ValueError, match=r"samples of shape \(2,\), at most 8 at once; got "):
        Reservoir(numbered, capacity=8).push(torch.zeros(shape))
