"""The judge of 2D models: against Gaussians in closed form, scikit-learn, and many repetitions for standard errors."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel

from ebmlib import partition
from ebmlib.metrics import planar
from ebmlib.targets import densities


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


TRUTH, WIDE = densities.gaussian(0.5), densities.gaussian(0.8, (0.3, -0.2))


def gaussian_kl(p, q) -> float:
    """KL(N(m, s^2 I) || N(m', s'^2 I)) in the plane: log s'^2/s^2 + s^2/s'^2 - 1 + |m - m'|^2 / 2 s'^2."""
    ratio, shift = (p.std / q.std) ** 2, sum((a - b) ** 2 for a, b in zip(p.mean, q.mean))
    return ratio - 1 - math.log(ratio) + shift / (2 * q.std**2)


def test_divergence_and_log_z_of_gaussians():
    model = planar.normalized(lambda x: WIDE.energy(x) + 3, TRUTH, reach=2.5)  # a box that holds both
    assert model.box == 2.5 * TRUTH.box
    assert model.log_z == pytest.approx(-3, abs=1e-4)
    assert planar.divergences(TRUTH, model) == pytest.approx([gaussian_kl(TRUTH, WIDE)], abs=1e-4)
    x = normal(50, 2)
    torch.testing.assert_close(model.log_prob(x), WIDE.log_prob(x), atol=1e-4, rtol=0)


NAMES = ("25-gaussians", "9-gaussians", "swiss-roll", "checkerboard", "two-moons", "rings", "pinwheel", "funnel")


@pytest.mark.parametrize("name", NAMES)
def test_the_least_number_of_cells_that_settings_allow_holds_every_density(name):
    density = densities.by_name(name)
    for reach in (1.0, 1.5):
        model = planar.normalized(lambda x: 0 * x[:, 0], density, 100, reach)
        assert planar.divergences(density, model)[0] > 0


def test_divergences_follow_the_temperature():
    steep = planar.normalized(lambda x: 4 * TRUTH.energy(x), TRUTH)  # right at temperature 4
    found = planar.divergences(TRUTH, steep, [1.0, 2.0, 4.0])
    exact = [gaussian_kl(TRUTH, densities.gaussian(0.5 * (tau / 4) ** 0.5)) for tau in (1.0, 2.0, 4.0)]
    assert found == pytest.approx(exact, abs=1e-4)
    (kl, best, _) = planar.judge(TRUTH, steep, normal(10, 2))
    assert (kl.value, best.value) == pytest.approx((exact[0], 0), abs=1e-3)  # 4 lies .3 % off the temperatures tried


@pytest.mark.parametrize("name", ["two-moons", "25-gaussians", "checkerboard"])
def test_divergence_is_that_of_the_partition_module(name):
    truth, model = densities.by_name(name), densities.by_name(name).blurred(0.3)
    found = planar.divergences(truth, planar.normalized(model.energy, truth, 400))[0]
    box = 1.5 * truth.box
    log_z = partition.log_z(model.energy, box, 400)
    exact = partition.kl(truth.log_prob, lambda x: model.log_prob(x) - log_z, box, 400)
    assert found == pytest.approx(float(exact), rel=1e-5)


def test_a_hard_board_counts_no_cell_without_mass():
    board = densities.Checkerboard(edge=0.0)
    model = planar.normalized(lambda x: 0 * x[:, 0], board, 240)
    exact = math.log(36 / 8)  # 36 cells, 8 of them filled
    assert planar.divergences(board, model)[0] == pytest.approx(exact, abs=1e-9)


def test_mass_that_hides_outside_shows_in_the_larger_box():
    energy = lambda x: TRUTH.energy(x).minimum(TRUTH.energy(x - torch.tensor([2.25 * TRUTH.box, 0.0])))
    near, far = (planar.normalized(energy, TRUTH, reach=reach).log_z for reach in (1.5, 3))
    assert (near, far) == pytest.approx((0, math.log(2)), abs=1e-3)


def test_cells_that_miss_the_target_are_refused():
    grid = densities.GaussianGrid()
    with pytest.raises(ValueError, match="60 x 60 cells are too few for 25-gaussians"):
        planar.divergences(grid, planar.normalized(grid.energy, grid, 60))


def test_the_judge_of_energies_and_of_exact_densities():
    held_out = TRUTH.sample(40_000, generator(1))
    energy = planar.normalized(WIDE.energy, TRUTH, reach=2.5)
    by_energy = {score.name: score for score in planar.judge(TRUTH, energy, held_out)}
    by_density = {score.name: score for score in planar.judge(TRUTH, WIDE.log_prob, held_out)}
    kl, ll = by_density["KL to the truth"], by_density["held-out log-likelihood"]
    exact = gaussian_kl(TRUTH, WIDE)
    assert by_energy["KL to the truth"].value == pytest.approx(exact, abs=1e-4)
    assert abs(kl.value - exact) < 4 * kl.se
    entropy = 1 + math.log(2 * math.pi * 0.25)
    assert abs(ll.value + entropy + exact) < 4 * ll.se
    assert by_energy["held-out log-likelihood"].value == pytest.approx(ll.value, abs=1e-4)
    spread = WIDE.log_prob(held_out).double().std().item()
    assert (ll.se, ll.n) == (pytest.approx(spread / 200, rel=1e-6), 40_000)


def test_the_judge_of_samples_is_fair_to_exact_ones():
    grid = densities.GaussianGrid()
    held_out, x = grid.sample(3000, generator(1)), grid.sample(4000, generator(2))
    scores = {score.name: score for score in planar.judge(grid, grid.log_prob, held_out, x, pairs=2000)}
    found = scores["MMD^2 of samples"]
    assert found.value == planar.mmd(x[:2000], held_out[:2000], 0.1 * grid.box)[0]
    assert found.n == 2000
    assert abs(found.value) < 4 * planar.mmd_floor(grid, 2000, generator(3))
    assert scores["modes covered"][1:] == (25, None, 4000, "of 25", "within 3 std")
    near = 1 - math.exp(-4.5)
    assert abs(scores["share of samples near a mode"].value - near) < 4 * math.sqrt(near * (1 - near) / 4000)
    assert [score.name for score in planar.judge_samples(densities.TwoMoons(), x, held_out)] == ["MMD^2 of samples"]


def test_the_noise_floor_falls_as_one_over_n():
    small, large = (planar.mmd_floor(TRUTH, n, generator(n), pairs=60) for n in (100, 400))
    assert 2.8 < small / large < 5.7  # 4, known to about 13 %


def test_mmd_of_few_points_by_hand():
    x = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    y = torch.tensor([[0.0], [0.0], [3.0], [3.0], [3.0]])
    k = lambda a, b: math.exp(-((a - b) ** 2) / (2 * 1.5**2))
    a, b = x.flatten().tolist(), y.flatten().tolist()
    xx = sum(k(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j) / 12
    yy = sum(k(p, q) for i, p in enumerate(b) for j, q in enumerate(b) if i != j) / 20
    xy = sum(k(p, q) for p in a for q in b) / 20
    assert planar.mmd(x, y, 1.5)[0] == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_mmd_agrees_with_scikit_learn_in_both_orders():
    x, y, bandwidth = normal(1500, 2, seed=1), normal(1100, 2, seed=2) * 1.2, 0.7
    xx, yy, xy = (rbf_kernel(*p, gamma=1 / (2 * bandwidth**2)) for p in ((x, x), (y, y), (x, y)))
    off = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    value, se = planar.mmd(x, y, bandwidth)
    assert value == pytest.approx(off(xx) + off(yy) - 2 * xy.mean(), rel=1e-9)
    assert planar.mmd(y, x, bandwidth) == pytest.approx((value, se), rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.15, 0.6])
def test_mmd_is_unbiased_and_its_error_honest(shift):
    n, m, bandwidth, runs = 120, 90, 0.8, 400
    # E k over N(0, I) and N(shift e1, I) is bandwidth^2 / wide * exp(-shift^2 / (2 wide)) in 2D
    wide = bandwidth**2 + 2
    exact = 2 * bandwidth**2 / wide * (1 - math.exp(-(shift**2) / (2 * wide)))
    offset = torch.tensor([shift, 0.0])
    pairs = ((normal(n, 2, seed=2 * s), normal(m, 2, seed=2 * s + 1) + offset) for s in range(runs))
    found = np.array([planar.mmd(x, y, bandwidth) for x, y in pairs], dtype=float)
    found = np.nan_to_num(found)  # no error where the estimate of its square is not positive: as small as can be
    spread = found[:, 0].std(ddof=1)
    assert abs(found[:, 0].mean() - exact) < 4 * spread / math.sqrt(runs)
    assert 0.85 < np.sqrt((found[:, 1] ** 2).mean()) / spread < 1.18  # 400 runs know the spread to 3.5 %, tails aside


def test_mmd_refuses_what_has_no_meaning():
    for width in (0, math.inf, math.nan):
        with pytest.raises(ValueError, match="bandwidth must be positive and finite"):
            planar.mmd(normal(5, 2), normal(5, 2), width)
    for x, y in ((normal(5, 2), normal(5, 3)), (normal(3, 2), normal(5, 2)), (normal(5), normal(5))):
        with pytest.raises(ValueError, match="mmd needs samples"):
            planar.mmd(x, y, 1.0)
    with pytest.raises(ValueError, match="must be finite; 2 of 10 are not"):
        planar.mmd(normal(5, 2), torch.cat([normal(3, 2), torch.tensor([[math.nan, 0], [0, -math.inf]])]), 1.0)


def test_an_error_that_cannot_be_estimated_is_not_0():
    found = [planar.mmd(normal(40, 2, seed=2 * s), normal(40, 2, seed=2 * s + 1), 1.0)[1] for s in range(30)]
    assert None in found
    assert min(se for se in found if se is not None) > 0


def test_mode_coverage_by_hand():
    modes = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    near = [[0.0, 2.9], [0.1, 0.0], [0.0, 0.0], [0.0, 1.0], [10.0, -3.0]]
    x = torch.tensor([*near, [10.0, 3.1], [math.nan, 0.0], *[[5.0, 5.0]] * 5])
    assert planar.mode_coverage(x, modes, 1.0) == (2, 5 / 12)  # one of twelve is a quarter of a third
    assert planar.mode_coverage(torch.cat([x, x[-1:]]), modes, 1.0) == (1, 5 / 13)
    assert planar.mode_coverage(x, modes, 3.2 / 3) == (2, 6 / 12)


def test_lost_modes_are_missed():
    grid = densities.GaussianGrid()
    lost = grid.sample(20_000, generator(2))
    lost = lost[lost[:, 0] < 1]  # the three left columns
    assert planar.mode_coverage(lost, grid.modes, grid.mode_std).modes == 15
