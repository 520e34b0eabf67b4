"""The engine: a compiled or rounded chain is the plain chain within what is stated, and what cannot be says so once."""

import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from ebmlib import core, densities, engine, recovery
from ebmlib.core import evaluating
from ebmlib.nets.energies import MLP, TimeWideResNet
from ebmlib.samplers import hmc, langevin, mala, ula

ROOT = Path(__file__).resolve().parents[1]
T = torch.tensor([0, 1, 2, 3])


@pytest.fixture(autouse=True)
def plain_again():
    yield
    engine.use("plain")
    engine.backend = "inductor"
    torch._dynamo.reset()


class Graphs:
    """A backend that counts what it is given and runs it as it is."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        self.count += 1
        return aot_eager(graph, inputs)


def both(kernel, energy, x, mode, backend=None):
    """The ends of one chain, plain and by `mode`, with the same noise."""
    ends = []
    for way in ("plain", mode):
        engine.backend = backend or "inductor"
        engine.use(way)
        ends.append(kernel(energy, x, rng=torch.Generator().manual_seed(3)))
    (plain, info), (other, seen) = ends
    return plain, other, info, seen


def wide():
    torch.manual_seed(0)
    net = TimeWideResNet(1, width=8, multipliers=(1, 2), blocks=1)
    for weights in net.parameters():  # a new net is so flat that any chain would be equal
        torch.nn.init.normal_(weights, std=0.1)
    return net


def gentle(energy, x):
    """The energy with slopes near one: the net's own are so steep that a correction would reject every step."""
    slope = core.energy_and_grad(energy, x)[1].square().mean().sqrt()
    return lambda x: energy(x) / slope


def energies():
    """Nets, functions that make an energy once the net is frozen, and points."""
    torch.manual_seed(0)
    net, image = MLP(width=24, depth=2), wide()
    x, pixels = torch.randn(30, 2), torch.rand(4, 1, 8, 8)
    anchor = torch.randn(30, 2)
    return {
        "net": (net, lambda: net, x),
        "conditional": (net, lambda: recovery.conditional(net, anchor, torch.full((30,), 2.0)), x),
        "density": (net, lambda: densities.by_name("9-gaussians").energy, x),
        "image": (image, lambda: gentle(image.at(T), pixels), pixels),
    }


KERNELS = {
    "langevin": lambda energy, x, rng: langevin(energy, x, ula(0.01, 8), rng=rng),
    "mala": partial(mala, step=0.01, K=5),
    "hmc": partial(hmc, step=0.05, K=3),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["net", "conditional", "density", "image"])
def test_a_compiled_chain_is_the_plain_one(name, kernel):
    net, make, x = energies()[name]
    graphs = Graphs()
    with evaluating(net), warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, other, info, seen = both(KERNELS[kernel], make(), x, "compile", graphs)
    assert graphs.count > 0, "nothing was compiled"
    assert (plain - x).abs().max() > 0.05
    torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.energy, info.energy, rtol=1e-4, atol=1e-4)
    assert not other.requires_grad


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["net", "conditional", "image"])
def test_the_real_compiler_agrees_too(name):
    net, make, x = energies()[name]
    with evaluating(net), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plain, other, *_ = both(KERNELS["langevin"], make(), x, "compile")
    torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5)


def test_closures_made_anew_in_every_iteration_compile_once():
    net, graphs = MLP(width=24, depth=2), Graphs()
    engine.backend = graphs
    engine.use("compile")
    counts = []
    with evaluating(net):
        for seed in range(4):
            x = torch.randn(30, 2, generator=torch.Generator().manual_seed(seed))
            target = recovery.conditional(net, x, torch.full((30,), 2.0 + seed))
            langevin(target, x, ula(0.01, 3), rng=torch.Generator().manual_seed(0))
            counts.append(graphs.count)
    assert counts[0] > 0
    assert len(set(counts)) == 1


def test_bfloat16_rounds_the_net_and_not_the_state():
    net, make, x = energies()["net"]
    energy, x = make(), x.repeat(40, 1)
    with evaluating(net):
        _, exact = engine.energy_and_grad(energy, x)
        engine.use("bfloat16")
        value, grad = engine.energy_and_grad(energy, x)
        end, _ = langevin(energy, x, ula(0.01, 3), rng=torch.Generator().manual_seed(0))
    assert value.dtype == grad.dtype == end.dtype == torch.float32
    error = (grad - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03
    assert not torch.equal(end, end.bfloat16().float())


def test_what_cannot_be_compiled_runs_plainly_and_says_so_once():
    def energy(x):
        return (x**2).sum(1) * float(x.abs().max().detach() > -1)  # leaves the graph

    def refuse(graph, inputs):
        raise RuntimeError("no such\nbackend")

    x = torch.randn(5, 2)
    engine.backend = refuse
    engine.use("compile")
    with pytest.warns(UserWarning, match=r"the energy .*energy runs plainly, since it could not be compiled: ") as seen:
        end, _ = langevin(energy, x, ula(0.01, 5), rng=torch.Generator().manual_seed(0))
    assert len([w for w in seen if "runs plainly" in str(w.message)]) == 1
    assert "\n" not in str(seen[0].message)
    engine.use("plain")
    assert torch.equal(end, langevin(energy, x, ula(0.01, 5), rng=torch.Generator().manual_seed(0))[0])


def test_a_wrong_energy_says_what_is_wrong_with_it():
    engine.backend = Graphs()
    engine.use("compile")
    with pytest.raises(ValueError, match=r"an energy must return shape \(5,\)"):
        langevin(lambda x: (x**2).sum(), torch.randn(5, 2), ula(0.01, 2))


def test_a_graph_that_is_kept_never_goes_through_the_engine():
    net, x = MLP(width=8, depth=1), torch.randn(5, 2)
    engine.use("bfloat16")
    rounded, _ = langevin(net, x, ula(0.1, 1), rng=torch.Generator().manual_seed(0), differentiable=True)
    engine.use("plain")
    plain, _ = langevin(net, x, ula(0.1, 1), rng=torch.Generator().manual_seed(0), differentiable=True)
    assert torch.equal(rounded, plain)


@pytest.mark.parametrize("word", ["fast", "plain+compile", "compile,bfloat16", ""])
def test_an_unknown_engine_is_refused(word):
    with pytest.raises(ValueError, match="it must be plain, compile, bfloat16 or compile"):
        engine.use(word)


def test_the_switch_is_an_environment_variable():
    said = "from ebmlib import engine; print(sorted(engine._parts))"
    command, env = [sys.executable, "-c", said], {**os.environ, "PYTHONPATH": str(ROOT)}
    run = partial(subprocess.run, command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert run(env={**env, "EBMLIB_ENGINE": "compile+bfloat16"}).stdout == "['bfloat16', 'compile']\n"
    assert "the engine is 'quick'" in run(env={**env, "EBMLIB_ENGINE": "quick"}).stderr
