"""The cells of methods_toy in this process: its rules, its ranks, and VAEBM's two trainings on one budget."""

import math
from functools import partial

import cells
import pytest
import torch

from ebmlib.page import results
from ebmlib.papers import latent, recovery
from ebmlib.run import training
from ebmlib.settings.toys import MethodsToy
from ebmlib.targets import densities

pytestmark = pytest.mark.usefixtures("in_process")
run_cells = partial(cells.run_cells, "methods_toy", preset="smoke", device="cpu")
VAEBM = "VAEBM, Metropolis and jumps"


def state(net: torch.nn.Module) -> dict:
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_vaebm_spends_its_two_shares_and_holds_its_autoencoder_fixed(monkeypatch):
    space, loop = run_cells(".once(")
    space["METHODS"] = {VAEBM: space["METHODS"][VAEBM]}
    space["targets"] = {"two-moons": space["targets"]["two-moons"]}
    fit, nets, before, after = training.fit, [], [], []

    def watched(*given, net, **options):
        nets.append(net)
        before.append([state(one) for one in nets])
        history = fit(*given, net=net, **options)
        after.append([state(one) for one in nets])
        return history

    monkeypatch.setattr(training, "fit", watched)
    exec(loop, space)
    assert cells.same(before[1][0], after[1][0]), "the autoencoder, while the energy is trained"
    assert not cells.same(before[1][1], after[1][1])

    cfg, kept = space["cfg"], space["finished"][f"{VAEBM} on two-moons"]
    assert not kept["seen"]
    assert cells.same(kept["nets"][0], after[1][0])
    looks = cfg.jumps + 1 + cfg.vaebm_K + 1  # of every chain: each sampler's start, and each of its proposals
    charges = 2, 2 * looks + 3  # encoder and decoder; looks through decoder and energy, the decoder, two energies
    budgets = cfg.vae_share * cfg.budget, (1 - cfg.vae_share) * cfg.budget
    iterations = [round(part / charge / cfg.batch) for part, charge in zip(budgets, charges)]
    assert kept["iterations"] == iterations[1]
    assert kept["evaluations"] == cfg.batch * sum(n * charge for n, charge in zip(iterations, charges))
    assert kept["evaluations"] == pytest.approx(cfg.budget, rel=0.05)


def test_without_an_energy_the_product_is_the_autoencoder():
    space, _ = run_cells(".once(", posterior=300)
    (load,) = [source for source in cells.code_cells("methods_toy") if "def load(" in source]
    exec(load, space)
    cfg = space["cfg"]
    density = space["targets"]["two-moons"]
    recipe = space["fresh"](VAEBM, density)
    space["optimize"](recipe.first, density)
    vae, energy = recipe.first.net, recipe.net
    torch.nn.init.zeros_(energy.layers[-1].weight)
    kept = {"nets": [vae.state_dict(), energy.state_dict()], "pool": torch.empty(0)}
    space["finished"] = {f"{VAEBM} on two-moons": kept}
    model, samples = space["load"](VAEBM, "two-moons")
    x, factor = density.sample(500, torch.Generator().manual_seed(1)), cfg.span / density.box
    exact = latent.iwae(vae.encode, vae.decode, factor * x, 2000) + 2 * math.log(factor)
    gap = model.log_prob(x) - exact
    assert abs(float(gap.mean())) < 0.05  # the mass beyond the square, the interpolation, the noise of two estimates
    assert float(gap.std()) < 0.1
    assert model.values.shape == (cfg.cells, cfg.cells)
    # All jumps are accepted, so the chains' ends are draws of the autoencoder: two means of its law agree.
    drawn = vae.sample(20_000, torch.Generator().manual_seed(2)) / factor
    z = (samples.mean(0) - drawn.mean(0)) / (drawn.std(0) * (1 / len(samples) + 1 / len(drawn)) ** 0.5)
    assert z.abs().max() < 4


class Bowl(torch.nn.Module):
    """|x|^2 / (2 std^2); std = inf is a flat energy."""

    def __init__(self, std: float):
        super().__init__()
        self.std = std

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x / self.std).square().sum(1) / 2


def test_chains_keep_to_the_walls_and_metropolis_takes_their_floor_away():
    space, _ = run_cells(".once(")
    walk, a, std = space["walk"], space["cfg"].step, 0.1
    for metropolis, variance in ((False, std**2 / (1 - a / (2 * std**2))), (True, std**2)):
        rng = torch.Generator().manual_seed(3)
        ends = walk(Bowl(std), std * torch.randn(20_000, 2, generator=rng), rng, metropolis, K=60)
        z = (ends.var() / variance - 1) / (2 / ends.numel()) ** 0.5
        assert abs(z) < 4, metropolis
        ends = walk(Bowl(math.inf), space["uniform"](20_000, rng), rng, metropolis, K=60)
        assert ends.abs().max() <= space["wall"]
        z = (ends.var() / (space["wall"] ** 2 / 3) - 1) / (0.8 / ends.numel()) ** 0.5  # a uniform's kurtosis is 1.8
        assert abs(z) < 4, metropolis


def test_every_plain_step_is_below_the_floor_of_every_target():
    cfg = MethodsToy()
    tables = recovery.noising(6, cfg.b2, scaled=False, c_power=cfg.c_power)
    for name in cfg.TARGETS:
        density = densities.by_name(name)
        s = cfg.span / density.box * density.narrowest
        assert 2 * cfg.step < s**2
        for t in range(tables.T):  # the conditional density of y is narrower than the noise that was added
            level = density.blurred(float(tables.cum_sigma[t] / tables.cum_a[t]) * density.box / cfg.span)
            width = float(tables.scale[t] * tables.cum_a[t]) * cfg.span / density.box * level.narrowest
            precision = width**-2 + float(tables.precision[t])
            assert float(tables.delta[t]) ** 2 < 1 / precision, (name, t)


def test_a_method_that_lost_a_seed_has_no_rank_and_no_mean():
    space, _ = run_cells(".once(")
    for source in cells.code_cells("methods_toy"):
        if source.startswith("KL, MMD, LOST") or "def ranked(" in source or "def scored(" in source:
            exec(source, space)
    row = partial(results.Row, dataset="toy")
    rows = [
        row(f"KL to the truth, {m}", kl, 0.01) for m, kl in (("short-run", 0.02), ("persistent", 0.3), ("VAEBM", 0.31))
    ]
    lost = ("short-run", 0.2), ("persistent", 0.0), ("VAEBM", 0.0)
    rows += [row(f"diverged, {m}", share, seed=[0, 1, 2, 3, 4]) for m, share in lost]
    rows += [row(f"held-out log-likelihood, {m}", -1.0, 0.01) for m, _ in lost]
    found = space["by_method"]("toy", rows)
    assert space["ranked"](found) == [("persistent", "1"), ("VAEBM", "1="), ("short-run", "")]
    assert space["finished_seeds"](found["short-run"]) == (4, 5)
    assert space["scored"](None, None, torch.tensor([[0.0, math.nan]]), None) == []


def test_a_flow_that_spends_several_budgets_is_stopped():
    space, _ = run_cells(".once(", ode_passes=1)
    kept = space["train"]("flow, likelihood", space["targets"]["two-moons"], None)
    assert "share of the budget" in kept["seen"]


def test_a_flow_may_have_the_span_of_the_energies():
    """Its solver still chooses the evaluations, so that they need not be those that it was given."""
    space, _ = run_cells(".once(", span=1.8)
    kept = space["train"]("flow, EBM objective", space["targets"]["two-moons"], None)
    assert kept["evaluations"] > 0
    assert not kept["seen"]
