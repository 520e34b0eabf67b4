"""The 2D targets: density, samples and gradient against quadrature, referees and each other."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from problems import MEAN_LOG_PROB, cell_masses, checkerboard_log_prob, separated_modes_mean_log_prob
from scipy.integrate import quad
from scipy.special import ndtri
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from ebmlib.targets import densities

SMOOTH = {
    "gaussian": densities.gaussian(0.7, (1.0, -2.0)),
    "25-gaussians": densities.GaussianGrid(),
    "9-gaussians": densities.GaussianGrid(3, 1.0, 0.16),
    "4-gaussians": densities.GaussianGrid(2, 1.5, 0.6),
    "swiss-roll": densities.SwissRoll(),
    "wide-roll": densities.SwissRoll(noise=1.5, scale=0.2),
    "thin-roll": densities.SwissRoll(noise=0.3),
    "checkerboard": densities.Checkerboard(),
    "soft-board": densities.Checkerboard(edge=0.6, half=1.0, cells=3),
    "two-moons": densities.TwoMoons(),
    "wide-moons": densities.TwoMoons(noise=0.4, scale=2.0),
    "rings": densities.Rings(),
    "one-ring": densities.Rings(noise=0.6, radii=(0.8,)),
    "pinwheel": densities.Pinwheel(noise=0.2),
    "three-arms": densities.Pinwheel(noise=0.3, scale=1.0, arms=3, radial=0.15, rate=0.6),
    "funnel": densities.Funnel(),
    "blurred-funnel": densities.Funnel(spread=1.2).blurred(0.3),
}
HARD = {"hard-board": densities.Checkerboard(edge=0.0), "hard-3x3": densities.Checkerboard(edge=0.0, cells=3)}
smooth = pytest.mark.parametrize("density", SMOOTH.values(), ids=SMOOTH.keys())
every = pytest.mark.parametrize("density", [*SMOOTH.values(), *HARD.values()], ids=[*SMOOTH, *HARD])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spread(density, n: int, seed: int, reach: float = 1.5) -> torch.Tensor:
    """Points in float64: half where the mass is, half anywhere in `reach` times the box."""
    rng = generator(seed)
    anywhere = reach * density.box * (2 * torch.rand(n // 2, 2, generator=rng, dtype=torch.float64) - 1)
    return torch.cat((density.sample(n - n // 2, rng).double(), anywhere))


def points(density) -> int:
    """Points a side: 288 fall evenly into the squares of every board, in the box and in 1.5 times the box.

    The sharp funnel's neck needs more.
    """
    return 768 if isinstance(density, densities.Funnel) and density.blur == 0 else 288


def mass(density, reach: float) -> float:
    n = points(density)
    half = reach * density.box
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) * 2 * half / n - half
    return float(density.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (2 * half / n) ** 2)


@every
def test_density_integrates_to_one_and_the_box_holds_it(density):
    # A thin roll's standard deviation of .03 is 2 to 3 grid steps: the midpoint rule is still exact to 1e-7.
    tolerance = 1e-7
    assert abs(mass(density, 1.5 if density in HARD.values() else 1.2) - 1) < tolerance
    assert 1 - 1e-6 < mass(density, 1.0) < 1 + tolerance


@smooth
def test_the_curvature_at_samples_is_that_of_the_narrowest_width_at_most(density):
    if density.narrowest == 0:
        assert density == densities.Funnel()  # its neck narrows without end
        return
    x = density.sample(3000, generator(5)).double().requires_grad_()
    (grad,) = torch.autograd.grad(density.energy(x).sum(), x, create_graph=True)
    hessian = torch.stack([torch.autograd.grad(g, x, retain_graph=True)[0] for g in grad.sum(0)], 1)
    steepest = float(torch.linalg.eigvalsh(hessian).max())
    assert 0.7 < steepest * density.narrowest**2 < 1 + 1e-6
    assert density.blurred(0.3).narrowest == pytest.approx(math.hypot(density.narrowest, 0.3))


def assert_follows(x: torch.Tensor, density) -> None:
    """Chi-square test of samples x (n, 2) in float64 against the density's mass in 24 x 24 cells of its box."""
    n, bins = len(x), 24  # 24 bins align with the squares of both hard boards
    expected = n * cell_masses(density, bins)
    cell = ((x + density.box) / (2 * density.box) * bins).floor().long()
    inside = ((cell >= 0) & (cell < bins)).all(1)
    counts = torch.bincount(cell[inside, 0] * bins + cell[inside, 1], minlength=bins**2).reshape(bins, bins)
    big = expected >= 5  # the rest is pooled into one cell
    expected = torch.cat((expected[big], (n - expected[big].sum())[None].clamp(min=0)))
    counts = torch.cat((counts[big], (n - counts[big].sum())[None]))
    if expected[-1] < 1:  # a pool too small for a chi-square cell
        assert counts[-1] <= 7  # Poisson(1) exceeds 7 once in 100,000
        expected, counts = expected[:-1], counts[:-1]
    dof = len(expected) - 1
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert dof > 50
    assert abs(chi2 - dof) < 4 * math.sqrt(2 * dof)


@every
def test_samples_follow_the_density(density):
    assert_follows(density.sample(40_000, generator(1)).double(), density)


@every
@pytest.mark.parametrize("std", [0.1, 0.6])
def test_blurred_is_the_convolution_with_a_gaussian(density, std):
    wide, n = density.blurred(std), points(density)
    assert wide.name == density.name
    assert 1 - 1e-6 < mass(wide, 1.0) < 1 + 1e-7  # its box grows with it
    half = 1.2 * density.box if density not in HARD.values() else density.box
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) * 2 * half / n - half
    p = density.log_prob(torch.cartesian_prod(axis, axis)).exp().reshape(n, n) * (2 * half / n) ** 2
    x = spread(wide, 200, seed=10, reach=0.8)
    kernel = [Normal(axis, std).log_prob(x[:, d, None]).exp() for d in (0, 1)]  # (200, n) each
    truth = torch.einsum("ni,ij,nj->n", kernel[0], p, kernel[1])
    # The midpoint rule is exact for smooth densities; with jumps it errs by (step / std)^2 / 24.
    rtol, atol = (2e-3, 2e-5) if density in HARD.values() else (1e-6, 1e-8)
    torch.testing.assert_close(wide.log_prob(x).exp(), truth, rtol=rtol, atol=atol)


@every
def test_blurred_is_the_law_of_noisy_samples(density):
    x = density.sample(40_000, generator(11)).double()
    noise = torch.randn(x.shape, generator=generator(12), dtype=torch.float64)
    assert_follows(x + 0.3 * noise, density.blurred(0.3))
    assert density.blurred(0.0) == density


@smooth
def test_gradient_and_curvature_match_finite_differences(density):
    x = spread(density, 12, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(density.energy, x)
    assert torch.autograd.gradgradcheck(density.energy, x, atol=1e-4)


@pytest.mark.parametrize("name", MEAN_LOG_PROB)
def test_mean_log_likelihood_is_the_stated_truth(name):
    density, n = densities.by_name(name), 100_000
    truth = densities.mean_log_prob(density)
    assert round(truth, 2) == MEAN_LOG_PROB[name]
    log_p = density.log_prob(density.sample(n, generator(3)).double())
    standard_error = float(log_p.std()) / math.sqrt(n)
    assert standard_error < 0.004
    assert abs(float(log_p.mean()) - truth) < 4 * standard_error


def test_mean_log_prob_against_closed_forms():
    mean_log_prob = densities.mean_log_prob
    exact = separated_modes_mean_log_prob(25, 0.08388)
    assert mean_log_prob(densities.GaussianGrid()) == pytest.approx(exact, abs=1e-5)
    # The box of a Gaussian leaves out 4e-7 of the mass, where -log p is near 16.
    assert mean_log_prob(densities.gaussian(0.7)) == pytest.approx(separated_modes_mean_log_prob(1, 0.7), abs=1e-5)
    assert mean_log_prob(densities.Checkerboard(edge=0)) == pytest.approx(-math.log(8), abs=1e-9)
    assert mean_log_prob(densities.Checkerboard(edge=0, cells=3)) == pytest.approx(-math.log(5 * 16 / 9), abs=1e-9)


@pytest.mark.parametrize("name", ["gaussian", "25-gaussians", "9-gaussians", "4-gaussians"])
def test_gaussians_against_torch_distributions(name):
    density = SMOOTH[name]
    modes = density.modes.double()
    components = Independent(Normal(modes, torch.full_like(modes, density.mode_std)), 1)
    referee = MixtureSameFamily(Categorical(torch.ones(len(modes), dtype=torch.float64)), components)
    x = spread(density, 400, seed=4, reach=3.0)
    torch.testing.assert_close(density.log_prob(x), referee.log_prob(x), rtol=1e-10, atol=1e-10)


def at(angle) -> np.ndarray:
    return np.array([math.cos(angle), math.sin(angle)])


def roll(u: float) -> list[np.ndarray]:
    t = 1.5 * math.pi * (1 + 2 * u)
    return [t * at(t)]


def moons(u: float) -> list[np.ndarray]:
    """scikit-learn's make_moons without noise, centered: the outer half circle and the inner one."""
    t, center = math.pi * u, np.array([0.5, 0.25])
    return [at(t) - center, np.array([1, 0.5]) - at(t) - center]


def arms(u: float, count: int = 5, radial: float = 0.3, rate: float = 0.25) -> list[np.ndarray]:
    r = 1 + radial * ndtri(u)
    return [r * at(f) for f in 2 * math.pi * np.arange(count) / count + rate * np.exp(r)]


def circles(u: float, radii: tuple[float, ...] = (0.75, 1.5, 2.25, 3.0)) -> list[np.ndarray]:
    return [r * at(2 * math.pi * u) for r in radii]


CURVES = {  # the density, its curves at u in (0, 1), their scale and the standard deviation around them
    "swiss-roll": (SMOOTH["swiss-roll"], roll, 0.1, 0.05),
    "wide-roll": (SMOOTH["wide-roll"], roll, 0.2, 0.3),
    "thin-roll": (SMOOTH["thin-roll"], roll, 0.1, 0.03),
    "two-moons": (densities.by_name("two-moons"), moons, 1.0, 0.1),
    "wide-moons": (SMOOTH["wide-moons"], moons, 2.0, 0.8),
    "pinwheel": (densities.by_name("pinwheel"), arms, 2.0, 0.2),
    "three-arms": (SMOOTH["three-arms"], partial(arms, count=3, radial=0.15, rate=0.6), 1.0, 0.3),
    "rings": (densities.by_name("rings"), circles, 1.0, 0.08),
    "one-ring": (SMOOTH["one-ring"], partial(circles, radii=(0.8,)), 1.0, 0.6),
}


@pytest.mark.parametrize("name", CURVES)
def test_curves_against_adaptive_quadrature(name):
    density, curve, scale, std = CURVES[name]
    x = density.sample(30, generator(5)).double()

    def integrand(u: float, point: np.ndarray) -> float:
        d2 = [((point - scale * c) ** 2).sum() for c in curve(u)]
        return np.mean(np.exp(-np.array(d2) / (2 * std**2))) / (2 * math.pi * std**2)

    breaks = np.linspace(0, 1, 41)[1:-1]
    truth = [math.log(quad(partial(integrand, point=p), 0, 1, points=breaks, limit=400)[0]) for p in x.numpy()]
    np.testing.assert_allclose(density.log_prob(x), truth, atol=1e-5)


def test_the_playgrounds_mixture_of_rings_is_the_density():
    density = densities.Rings(0.2, (0.5, 2.0))
    mean, log_weight = density.nodes(torch.float64, torch.device("cpu"))
    x = spread(density, 200, seed=13)
    log_p = Independent(Normal(mean.T, torch.full_like(mean.T, 0.2)), 1).log_prob(x[:, None]) + log_weight
    torch.testing.assert_close(torch.logsumexp(log_p, 1), density.log_prob(x), rtol=0, atol=1e-9)


def test_rings_have_no_pull_at_their_center():
    density = densities.Rings(0.2, (0.5, 2.0))
    (gradient,) = torch.autograd.grad(density.energy(x := torch.zeros(1, 2, requires_grad=True)).sum(), x)
    assert gradient.abs().max() == 0


def test_funnel_against_its_two_normals():
    density = densities.Funnel(spread=1.3, width=0.4)
    x = spread(density, 400, seed=14)
    zero, spread_2 = x.new_zeros(()), x.new_tensor(1.3)
    truth = Normal(zero, spread_2).log_prob(x[:, 1]) + Normal(zero, 0.4 * (x[:, 1] / 2).exp()).log_prob(x[:, 0])
    torch.testing.assert_close(density.log_prob(x), truth, rtol=1e-10, atol=1e-10)
    # -E[log p] = log(2 pi e spread width): the mean of log of e^(x_2 / 2) is 0.
    truth = -math.log(2 * math.pi * math.e * 0.7 * 0.5)
    # The box leaves out 4e-7 of the mass, where -log p is near 16.
    assert densities.mean_log_prob(densities.Funnel(0.7, 0.5)) == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize("blur", [0.05, 0.5, 3.0])
def test_blurred_funnel_against_a_sum_over_its_sharp_height(blur):
    density = densities.Funnel(spread=1.3, width=0.4).blurred(blur)
    x = spread(density, 60, seed=15, reach=0.7)
    v = torch.linspace(-15, 18, 20_001, dtype=torch.float64)  # the trapezoidal rule is exact here
    zero, noise = v.new_zeros(()), v.new_tensor(blur)
    width = (0.4**2 * v.exp() + noise**2).sqrt()
    log_p = Normal(zero, 1.3).log_prob(v) + Normal(v, noise).log_prob(x[:, 1:]) + Normal(zero, width).log_prob(x[:, :1])
    truth = torch.logsumexp(log_p, 1) + math.log(33 / 20_000)
    seen = truth > -60
    assert seen.sum() > 40
    torch.testing.assert_close(density.log_prob(x)[seen], truth[seen], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("edge", "half", "cells"), [(0.05, 2.0, 4), (0.2, 1.0, 3), (0.6, 1.0, 2), (0.01, 4.0, 8)])
def test_checkerboard_against_its_squares(edge, half, cells):
    density = densities.Checkerboard(edge, half, cells)
    x = spread(density, 400, seed=6, reach=4.0)
    truth = checkerboard_log_prob(x.numpy(), edge, half, cells)
    np.testing.assert_allclose(density.log_prob(x), truth, rtol=1e-9, atol=1e-9)


def test_checkerboard_pulls_back_from_any_distance():
    density = densities.Checkerboard()
    distance = torch.tensor([10.0, 100.0, 1e4, 1e6])
    # The squares of the top row with their right sides at 1 and those of the second row at 2: from the right, the
    # nearest filled side is at 2 (std .05), and the pull is (x - 2) / std^2.
    x = torch.stack((distance, torch.full_like(distance, 0.5)), 1).requires_grad_()
    energy = density.energy(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    assert torch.isfinite(energy).all()
    torch.testing.assert_close(gradient[:, 0], (distance - 2) / 0.05**2, rtol=2e-3, atol=0)
    assert (gradient[:, 1].abs() < 1e-2).all()


def test_hard_board_is_flat_on_and_infinite_off():
    density = densities.Checkerboard(edge=0)
    x = torch.tensor([[-1.5, -1.5], [0.5, 0.5], [1.5, 1.9], [0.5, -0.5], [2.1, 1.5], [-3.0, 0.0]], requires_grad=True)
    log_p = density.log_prob(x)
    assert log_p.tolist() == pytest.approx([-math.log(8)] * 3 + [-math.inf] * 3)
    assert density.energy(x)[3:].tolist() == [math.inf] * 3
    (gradient,) = torch.autograd.grad(log_p[:3].sum(), x)
    assert (gradient == 0).all()


@every
def test_dtype_is_the_callers(density):
    x = density.sample(4000, generator(8))
    assert x.dtype == torch.float32
    single, double = density.log_prob(x), density.log_prob(x.double())
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert float((single - double).abs().max()) < 1e-4
    assert torch.equal(density.energy(x), -single)


@every
def test_generator_decides_the_samples(density):
    state = torch.get_rng_state()
    rng = generator(9)
    first, second = density.sample(64, rng), density.sample(64, rng)
    assert torch.equal(torch.cat((first, second)), torch.cat([density.sample(64, r) for r in [generator(9)] * 2]))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    density.sample(64)
    assert not torch.equal(torch.get_rng_state(), state)  # and used only where none is given


def test_names_lead_to_the_books_densities():
    for name in (*MEAN_LOG_PROB, "two-moons", "rings", "pinwheel", "funnel"):
        assert densities.by_name(name).name == name


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: densities.by_name("moons"), r"unknown density 'moons'; known are 25-gaussians, .*funnel"),
        (lambda: densities.gaussian(std=0), "std must be a positive finite number, not 0"),
        (lambda: densities.gaussian(mean=1.0), "mean .* not 1.0"),
        (lambda: densities.GaussianGrid(side=0), "side must be an integer of at least 1, not 0"),
        (lambda: densities.SwissRoll(noise="much"), "noise .* not 'much'"),
        (lambda: densities.Checkerboard(edge=-0.1), "edge must be a non-negative finite number, not -0.1"),
        (lambda: densities.Rings(radii=(1.0, -1.0)), "radii .* not .1.0, -1.0."),
        (lambda: densities.Funnel(width=math.nan), "width .* not nan"),
        (lambda: densities.gaussian().log_prob(torch.zeros(2)), r"shape .B, 2., not torch.float32 of .2,."),
        (lambda: densities.gaussian().energy(torch.zeros(3, 2, dtype=torch.long)), "floating-point .* torch.int64"),
        (lambda: densities.gaussian().blurred(-0.1), "std .* not -0.1"),
    ],
)
def test_bad_arguments_get_one_sentence(call, named):
    with pytest.raises(ValueError, match=named):
        call()
