"""The cells of methods_toy in this process: VAEBM's two trainings on one budget, and its density."""

import math
from functools import partial

import cells
import pytest
import torch

from ebmlib.papers import latent
from ebmlib.run import training

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
