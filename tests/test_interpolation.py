"""Interpolation: the ways between two noises, chains that share them, and the closed form of Gaussian data."""

import math

import pytest
import torch
from problems import assert_mean, drl_gaussian_energies, drl_gaussian_map, drl_gaussian_samples
from scipy.spatial import geometric_slerp

from ebmlib.core import flat_sum
from ebmlib.papers.recovery import WAYS, between, interpolate, noising, path_length, progressive, shared
from ebmlib.samplers import langevin, langevin_step, ula

S = torch.linspace(0, 1, 9)


def pair(rng, *shape, device=None, dtype=None, seed=0):
    return tuple(torch.randn(*shape, generator=rng(seed + k), device=device, dtype=dtype) for k in (0, 1))


def gaussian(tables):
    return drl_gaussian_energies(tables, 0.6, 0.25)


# -- the ways --


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("real", [torch.float32, torch.float64])
def test_the_ends_are_exact(way, real, device, rng):
    ends = pair(rng, 50, 3, 4, device=device, dtype=real)
    path = between(*ends, S, way)
    assert path.shape == (9, 50, 3, 4)
    assert path.dtype == real
    assert torch.equal(path[0], ends[0])
    assert torch.equal(path[-1], ends[1])


@pytest.mark.parametrize("d", [1, 2, 300])
def test_the_arc_of_independent_noise_is_normal_in_any_dimension(d, device, dtype, rng):
    """Mean, variance, fourth moment, and the covariance with both ends, at every s."""
    eps0, eps1 = pair(rng, 120_000 // d, d, device=device, dtype=dtype)
    path = between(eps0, eps1, S)
    for s, x in zip(S.tolist(), path):
        x, start, end = x.flatten(), eps0.flatten(), eps1.flatten()
        assert_mean(x, 0.0, se=0.004)
        assert_mean(x**2, 1.0, se=0.006)
        assert_mean(x**4, 3.0, se=0.04)
        assert_mean(x * start, math.cos(math.pi * s / 2), se=0.006)
        assert_mean(x * end, math.sin(math.pi * s / 2), se=0.006)
        assert_mean(flat_sum(x.reshape(-1, d) ** 2) ** 2 / d**2, 1 + 2 / d, se=0.03)  # the length's, too: chi-square


def test_the_measured_angle_is_normal_in_many_dimensions_and_not_in_two(device, dtype, rng):
    (x,) = between(*pair(rng, 40, 3000, device=device, dtype=dtype), torch.tensor([0.5]), "angle")
    assert_mean(x.flatten() ** 2, 1.0, se=0.006)
    # Independent ends of lengths r, q at an angle w: |x|^2 = (r^2 + q^2 + 2 r q cos w) / (4 cos^2(w / 2)) at s = 1/2,
    # which is r^2 where r = q, and has no mean in two dimensions: near w = pi it grows like 1 / (pi - w)^2.
    (x,) = between(*pair(rng, 40_000, 2, device=device, dtype=dtype), torch.tensor([0.5]), "angle")
    assert float((x.norm(dim=1) > 6).double().mean()) > 1e-2  # 1.5e-8 of a normal law


def test_the_measured_angle_against_scipy(device, dtype, rng):
    ends = [v / v.norm(dim=1, keepdim=True) for v in pair(rng, 20, 5, device=device, dtype=torch.float64)]
    path = between(*ends, S, "angle")
    for k in range(20):
        truth = geometric_slerp(ends[0][k].cpu().numpy(), ends[1][k].cpu().numpy(), S.double().numpy())
        torch.testing.assert_close(path[:, k].cpu(), torch.tensor(truth), atol=1e-12, rtol=0)


@pytest.mark.parametrize("real", [torch.float32, torch.float64])
def test_parallel_inputs_give_the_line_and_nearly_parallel_ones_come_near(real, device, rng):
    x, other = pair(rng, 6, 40, device=device, dtype=real)
    same = between(x, 2 * x, S, "angle")
    torch.testing.assert_close(same, between(x, 2 * x, S, "line"))
    near = between(x, x + 1e-4 * other, S, "angle")
    torch.testing.assert_close(near, between(x, x + 1e-4 * other, S, "line"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("real", [torch.float32, torch.float64])
def test_opposite_inputs_and_zeros_have_no_way_and_say_so(real, device, rng):
    x, y = pair(rng, 3, 40, device=device, dtype=real)
    y = torch.stack([-2 * x[0], torch.zeros_like(x[1]), y[2]])
    path = between(x, y, torch.tensor([0.25, 0.5]), "angle")
    assert path[:, :2].isnan().all()
    assert path[:, 2].isfinite().all()


BAD = [
    ((S, "slerp"), "way = 'slerp': allowed are 'arc', 'angle', 'line'"),
    *(((torch.tensor(s),), r"s must be \(n,\) within \[0, 1\]") for s in ([1.5], [math.nan], 0.5, [])),
]


@pytest.mark.parametrize(("given", "says"), BAD)
def test_bad_input_gets_one_sentence(given, says):
    for ends, take in (((torch.zeros(2, 3),) * 2, between), ((torch.Generator(), torch.Generator()), shared)):
        with pytest.raises(ValueError, match=says):
            take(*ends, *given)


def test_ends_of_two_shapes_and_one_generator_for_both_are_refused(rng):
    with pytest.raises(ValueError, match=r"the ends differ in shape: \(2, 3\) and \(2, 4\)"):
        between(torch.zeros(2, 3), torch.zeros(2, 4), S)
    with pytest.raises(ValueError, match="a generator each"):
        shared(*[rng(0)] * 2, S)


# -- noise that is given --


def test_a_function_in_place_of_the_generator_gives_the_noise(device, dtype, rng):
    energy = lambda x: flat_sum(x**4) / 4
    x, _ = pair(rng, 7, 3, device=device, dtype=dtype)
    source = rng(5)
    given = lambda x: torch.randn(x.shape, generator=source, dtype=x.dtype, device=x.device)
    mine, _ = langevin(energy, x, ula(0.01, 4), rng=given)
    drawn, _ = langevin(energy, x, ula(0.01, 4), rng=rng(5))
    assert torch.equal(mine, drawn)
    y, _ = langevin_step(energy, x, 0.0, 2.0, rng=torch.ones_like)
    assert torch.equal(y, x + 2)


def test_noise_of_another_shape_is_refused_instead_of_spread(device):
    with pytest.raises(ValueError, match=r"the noise given has the shape \(1, 3\), the chain \(7, 3\)"):
        langevin(lambda x: flat_sum(x**2), torch.zeros(7, 3, device=device), ula(0.01, 1), rng=lambda x: x[:1])


# -- whole runs --


def ordinary(at_level, tables, shape, K, rng, **kw):
    x = torch.randn(shape, generator=rng, device=rng.device)
    return progressive(at_level, tables, x, K, rng=rng, **kw)


@pytest.mark.parametrize("way", WAYS)
def test_the_ends_of_a_path_are_two_ordinary_runs_bit_for_bit(way, device, rng):
    tables = noising(6, 0.02, scaled=False, c_power=0.0, device=device)
    at_level = gaussian(tables)
    path = interpolate(at_level, tables, (4, 1, 6, 6), 5, S, rng(1), rng(2), way=way, noise=0.9)
    assert path.shape == (9, 4, 1, 6, 6)
    for end, seed in ((path[0], 1), (path[-1], 2)):
        assert torch.equal(end, ordinary(at_level, tables, (4, 1, 6, 6), 5, rng(seed), noise=0.9))


@pytest.mark.parametrize("way", WAYS)
def test_the_path_of_gaussian_data_is_the_closed_form(way, device, rng):
    """x_0 is an affine map of all the noise, and each noise lies between those of the two runs."""
    tables, K, shape = noising(6, 0.05, scaled=False, c_power=0.0, device=device), 7, (3, 50)
    path = interpolate(gaussian(tables), tables, shape, K, S, rng(1), rng(2), way=way, noise=0.95)
    shift, start, factors = drl_gaussian_map(tables, K, 0.95, 0.6, 0.25)
    sources = rng(1), rng(2)
    draw = lambda: between(*(torch.randn(shape, generator=g, device=device) for g in sources), S, way).double()
    truth = shift + start * draw()
    for factor in factors:
        truth = truth + factor * draw()
    assert len(factors) == 6 * K
    torch.testing.assert_close(path.double(), truth, atol=2e-5, rtol=1e-4)
    # The map itself against the moments that another recursion finds.
    mean, variance = drl_gaussian_samples(tables, K, 0.95, 0.6, 0.25)[-1]
    assert shift == pytest.approx(mean, abs=1e-9)
    assert start**2 + sum(f**2 for f in factors) == pytest.approx(variance, rel=1e-9)


def test_on_the_arc_every_point_is_a_sample_and_on_the_line_the_middle_is_not(device, rng):
    tables, K, middle = noising(6, 0.05, scaled=False, c_power=0.0, device=device), 7, torch.tensor([0.3, 0.5])
    mean, variance = drl_gaussian_samples(tables, K, 0.99, 0.6, 0.25)[-1]
    for way, share in (("arc", (1.0, 1.0)), ("angle", (1.0, 1.0)), ("line", (0.58, 0.5))):
        path = interpolate(gaussian(tables), tables, (100, 400), K, middle, rng(1), rng(2), way=way)
        for x, kept in zip(path, share):
            assert_mean(x.flatten(), mean, se=0.01)
            assert_mean((x.flatten() - mean) ** 2 / variance, kept, se=0.02)


def test_fresh_noise_leaves_the_start_on_the_way_and_draws_every_step(device, rng):
    """The covariance of a point with the run at s = 0 is that of its start alone; shared, it is the whole cosine."""
    tables, K = noising(6, 0.05, scaled=False, c_power=0.0, device=device), 7
    shape, at = (100, 400), torch.tensor([0.5])
    shift, start, factors = drl_gaussian_map(tables, K, 0.99, 0.6, 0.25)
    variance = start**2 + sum(f**2 for f in factors)
    zero = ordinary(gaussian(tables), tables, shape, K, rng(1)) - shift
    for fresh, truth in ((None, 1.0), (rng(3), start**2 / variance)):
        (x,) = interpolate(gaussian(tables), tables, shape, K, at, rng(1), rng(2), fresh=fresh)
        assert_mean(((x - shift) * zero).flatten() / variance, math.sqrt(0.5) * truth, se=0.01)
        assert_mean((x - shift).flatten() ** 2 / variance, 1.0, se=0.01)


# -- the length of a path --


def test_the_length_of_a_path_over_the_distance_of_its_ends(device, rng):
    ends = torch.eye(6, dtype=torch.float64, device=device)[:2].reshape(2, 1, 2, 3)
    ends = ends.repeat(1, 3, 1, 1) * torch.tensor([1.0, 2.0, 5.0], device=device).reshape(3, 1, 1)
    ones = torch.ones(3, dtype=torch.float64, device=device)
    torch.testing.assert_close(path_length(between(*ends, S, "line")), ones)
    chords = 8 * 2 * math.sin(math.pi / 32) / math.sqrt(2)
    torch.testing.assert_close(path_length(between(*ends, S)), chords * ones)
    walk = torch.randn(9, 200, 1000, generator=rng(0), device=device)
    assert_mean(path_length(walk), 8.0, se=0.02)
