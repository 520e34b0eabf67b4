"""The cells of methods_toy in this process: VAEBM's two trainings on one budget, its density, and resuming."""

import math
from functools import partial
from pathlib import Path

import cells
import pytest
import torch

from ebmlib.papers import latent

ROOT = Path(__file__).resolve().parents[1]


pytestmark = pytest.mark.usefixtures("in_process")
run_cells = partial(cells.run_cells, "methods_toy", preset="smoke", device="cpu")


def same(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_vaebm_spends_its_two_shares_and_holds_its_autoencoder_fixed():
    space, _ = run_cells("folder.checkpoints()")
    cfg, density = space["cfg"], space["targets"]["two-moons"]
    kept = space["train"]("VAEBM", density)
    assert kept["seen"] == ""
    looks = cfg.jumps + 1 + cfg.vaebm_K + 1  # of every chain: each sampler's start, and each of its proposals
    charges = 2, 2 * looks + 3  # encoder and decoder; looks through decoder and energy, the decoder, two energies
    budgets = cfg.vae_share * cfg.budget, (1 - cfg.vae_share) * cfg.budget
    iterations = [round(part / charge / cfg.batch) for part, charge in zip(budgets, charges)]
    assert kept["iterations"] == iterations[1]
    assert kept["evaluations"] == cfg.batch * sum(n * charge for n, charge in zip(iterations, charges))
    assert kept["evaluations"] == pytest.approx(cfg.budget, rel=0.05)
    # The first training alone, from the same seed, ends with the very weights that the second one left.
    alone = space["fresh"]("VAEBM", density)
    space["spent"][0] = 0
    space["optimize"](alone.first, density)
    vae, energy = kept["nets"]
    assert same(vae, alone.first.net.state_dict())
    assert not same(energy, alone.net.state_dict())


def test_without_an_energy_the_product_is_the_autoencoder():
    space, load = run_cells("def load(")
    exec(load, space)
    space["cfg"] = cfg = space["settings"].start("methods_toy", {"preset": "smoke", "posterior": 300}).config
    density = space["targets"]["two-moons"]
    recipe = space["fresh"]("VAEBM", density)
    space["spent"][0] = 0
    space["optimize"](recipe.first, density)
    vae, energy = recipe.first.net, recipe.net
    torch.nn.init.zeros_(energy.layers[-1].weight)
    kept = {"nets": [vae.state_dict(), energy.state_dict()], "pool": torch.empty(0)}
    space["finished"] = {"VAEBM on two-moons": kept}
    log_p, E, samples = space["load"]("VAEBM", "two-moons")
    x, factor = density.sample(500, torch.Generator().manual_seed(1)), cfg.span / density.box
    exact = latent.iwae(vae.encode, vae.decode, factor * x, 2000) + 2 * math.log(factor)
    gap = log_p(x) - exact
    assert abs(float(gap.mean())) < 0.05  # the mass beyond the square, the interpolation, the noise of two estimates
    assert float(gap.std()) < 0.1
    assert E.shape == (cfg.cells**2,)
    # All jumps are accepted, so the chains' ends are draws of the autoencoder: two means of its law agree.
    drawn = vae.sample(20_000, torch.Generator().manual_seed(2)) / factor
    z = (samples.mean(0) - drawn.mean(0)) / (drawn.std(0) * (1 / len(samples) + 1 / len(drawn)) ** 0.5)
    assert z.abs().max() < 4


def test_an_interrupted_run_goes_on_with_the_next_method():
    space, loop = run_cells("folder.checkpoints()")
    space["METHODS"] = {name: space["METHODS"][name] for name in ("score matching", "VAEBM", "CD, persistent")}
    exec(loop, space)
    whole = space["finished"]
    space["folder"].save(3, {key: whole[key] for key in list(whole)[:1]}, {}, keep=1)
    exec(loop, space)
    again = space["finished"]
    assert again is not whole
    assert list(again) == list(whole)
    for key, kept in whole.items():
        for one, other in zip(kept["nets"], again[key]["nets"], strict=True):
            assert same(one, other), key
        assert torch.equal(kept["pool"], again[key]["pool"])
        assert kept["evaluations"] == again[key]["evaluations"]
