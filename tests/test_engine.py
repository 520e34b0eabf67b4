"""The engine: a compiled or rounded chain is the plain chain within what is stated, and what cannot be says so once."""

import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ebmlib import core, engine
from ebmlib.core import evaluating
from ebmlib.nets.mlp import MLP
from ebmlib.nets.wideresnet import TimeWideResNet
from ebmlib.papers import flow, recovery
from ebmlib.samplers import decayed, hmc, langevin, leapfrog, mala, ula
from ebmlib.targets import densities

ROOT = Path(__file__).resolve().parents[1]
T = torch.tensor([0, 1, 2, 3])


@pytest.fixture(autouse=True)
def plain_again():
    yield
    engine.use("plain")
    engine.backend = "inductor"
    torch._dynamo.reset()


class Graphs:
    """A backend that counts what it is given and runs it as it is; with a mode it returns the same memory each time."""

    def __init__(self):
        self.count, self.modes = 0, set()

    def __call__(self, graph, inputs, mode=None):
        from torch._dynamo.backends.debugging import aot_eager

        self.count += 1
        self.modes.add(mode)
        run = aot_eager(graph, inputs)
        return run if mode is None else in_static_memory(run)


def in_static_memory(run):
    """What a CUDA graph does: every call writes its results where those of the call before lie."""
    static = []

    def call(*given):
        found = run(*given)
        if not static:
            static.extend(torch.empty_like(one) for one in found)
        for place, one in zip(static, found, strict=True):
            place.copy_(one)
        return static

    return call


def both(kernel, energy, x, mode, backend=None, like="plain"):
    """The ends of one chain, by `like` and by `mode`, with the same noise."""
    ends = []
    for way in (like, mode):
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
        "image": (image, lambda: gentle(image.at(T.to(next(image.parameters()).device)), pixels), pixels),
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
    net, graphs, counts = MLP(width=24, depth=2), Graphs(), []
    engine.backend = graphs
    engine.use("compile")
    with evaluating(net):
        for seed in range(4):
            x = torch.randn(30, 2, generator=torch.Generator().manual_seed(seed))
            target = recovery.conditional(net, x, torch.full((30,), 2.0 + seed))
            langevin(target, x, ula(0.01, 3), rng=torch.Generator().manual_seed(0))
            counts.append(graphs.count)
    assert counts[0] > 0
    assert len(set(counts)) == 1


@pytest.mark.parametrize("name", ["net", "conditional", "image"])
def test_bfloat16_rounds_the_net_and_not_the_state(name):
    net, make, x = energies()[name]
    with evaluating(net):
        energy = make()
        _, exact = core.energy_and_grad(energy, x)
        engine.use("bfloat16")
        value, grad = core.energy_and_grad(energy, x)
        end, _ = langevin(energy, x, ula(0.01, 3), rng=torch.Generator().manual_seed(0))
    assert value.dtype == grad.dtype == end.dtype == torch.float32
    error = (grad - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03
    assert not torch.equal(end, end.bfloat16().float())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["net", "image"])
def test_a_rounded_chain_stays_near_the_plain_one(name, kernel):
    net, make, x = energies()[name]
    with evaluating(net):
        plain, other, info, seen = both(KERNELS[kernel], make(), x, "bfloat16")
    moved = (plain - x).flatten(1).norm(dim=1)
    apart = (other - plain).flatten(1).norm(dim=1)
    assert 0 < apart.median() < 0.02 * moved.median()
    torch.testing.assert_close(seen.acceptance, info.acceptance, rtol=0, atol=0.05)


@pytest.mark.parametrize(("mode", "like"), [("compile+channels-last", "plain"), ("compile+bfloat16", "bfloat16")])
def test_parts_work_together(mode, like):
    (net, make, x), graphs = energies()["image"], Graphs()
    with evaluating(net), warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other, *_ = both(KERNELS["langevin"], make(), x, mode, graphs, like)
    assert (one - x).abs().max() > 0.05
    assert graphs.count > 0
    near = 1e-5 if like == "plain" else 2e-3  # a fused sum is rounded elsewhere
    torch.testing.assert_close(other, one, rtol=near, atol=near)


@pytest.mark.parametrize("name", ["net", "density"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_results_in_static_memory_are_copied(kernel, name):
    """A corrected chain keeps the gradient of its last state while the next one is computed."""
    net, make, x = energies()[name]
    graphs = Graphs()
    with evaluating(net), warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, other, info, seen = both(KERNELS[kernel], make(), x, "compile:reduce-overhead", graphs)
        first = core.energy_and_grad(make(), x)
        kept = [part.clone() for part in first]
        core.energy_and_grad(make(), x + 1)
    assert graphs.modes == {"reduce-overhead"}, "the mode comes to the compiler"
    assert all(torch.equal(*pair) for pair in zip(first, kept))
    torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen, info, rtol=1e-4, atol=1e-4)


def test_every_mode_is_one_of_torchs():
    assert set(engine.MODES[1:]) <= set(torch._inductor.list_mode_options())
    for mode in engine.MODES:
        engine.use(f"compile:{mode}+bfloat16")


def test_everything_that_takes_gradients_goes_through_the_one_door():
    """Flows and objectives with the mark of a way of their own; a kept graph is computed plainly."""
    seen = []
    x, energy = torch.randn(6, 2), densities.by_name("9-gaussians").energy
    core.way = lambda energy, x: seen.append(len(x)) or core.by_autograd(energy, x)
    for run in (partial(flow.transport, energy, x), partial(leapfrog, energy, x, x, x, 0.1, 2)):
        seen.clear()
        run()
        assert set(seen) == {6}
    seen.clear()
    core.energy_and_grad(energy, x, create_graph=True)
    assert seen == []


class NoSync(TorchDispatchMode):
    """Refuses what would make a host wait for its device: a number taken out of a tensor, a copy to elsewhere."""

    names = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item", "_to_cpu", "masked_select", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert not any(name == word for word in self.names), f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


CHAINS = KERNELS | {
    "per-sample steps": lambda energy, x, rng: langevin(energy, x, [(torch.full((len(x),), 0.01), 0.1)] * 3, rng=rng),
    "clip and clamp": lambda energy, x, rng: langevin(
        energy, x, decayed(0.01, 0.2, 3), rng=rng, clip=1.0, project=lambda x: x.clamp(-2, 2)
    ),
}


@pytest.mark.parametrize("name", ["net", "conditional", "density", "image"])
@pytest.mark.parametrize("kernel", CHAINS)
def test_no_chain_asks_its_device_for_a_number(name, kernel):
    net, make, x = energies()[name]
    with evaluating(net):
        energy = make()
        with NoSync():
            CHAINS[kernel](energy, x, rng=torch.Generator().manual_seed(0))


def test_energies_of_one_line_that_close_over_others_are_told_apart():
    wrap = lambda energy: recovery.conditional(energy, torch.zeros(3, 2), 1.0)
    net, density = MLP(width=8, depth=1), densities.by_name("9-gaussians").energy
    assert engine._key(wrap(net)) == engine._key(wrap(MLP(width=8, depth=1)))
    given = [net, density, wrap(net), wrap(density)]
    assert len({engine._key(energy) for energy in (*given, *(partial(min, energy) for energy in given))}) == 8


@pytest.mark.parametrize("kernel", KERNELS)
def test_channels_last_is_another_layout_of_the_same_chain(kernel):
    net, make, x = energies()["image"]
    x, layouts = x.expand(-1, 1, -1, -1).repeat(1, 3, 1, 1), []
    energy = lambda y: layouts.append(y.is_contiguous(memory_format=torch.channels_last)) or inner(y[:, :1])
    with evaluating(net):
        inner = make()
        plain, other, info, seen = both(KERNELS[kernel], energy, x, "channels-last")
    assert layouts == [False] * (len(layouts) // 2) + [True] * (len(layouts) // 2)
    assert (plain - x).abs().max() > 0.05
    torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen, info, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_compiled_runs_plainly_and_says_so_once():
    def energy(x):
        return (x**2).sum(1) * float(x.abs().max().detach() > -1)  # leaves the graph

    def refuse(graph, inputs):
        raise RuntimeError("no such\nbackend")

    x = torch.randn(5, 2)
    with pytest.warns(UserWarning, match=r"the energy .*energy runs plainly, since it could not be compiled: ") as seen:
        plain, end, *_ = both(partial(langevin, schedule=ula(0.01, 5)), energy, x, "compile", refuse)
    assert len([w for w in seen if "runs plainly" in str(w.message)]) == 1
    assert "\n" not in str(seen[0].message)
    assert torch.equal(end, plain)


def test_a_wrong_energy_says_what_is_wrong_with_it():
    engine.backend = Graphs()
    engine.use("compile")
    wrong = {"return a tensor of shape": lambda x: (x**2).sum(), "no gradient in x": lambda x: x.new_ones(len(x))}
    for says, energy in wrong.items():
        with pytest.raises(ValueError, match=says):
            langevin(energy, torch.randn(5, 2), ula(0.01, 2))


def test_a_graph_that_is_kept_never_goes_through_the_engine():
    kept = partial(langevin, schedule=ula(0.1, 1), differentiable=True)
    plain, rounded, *_ = both(kept, MLP(width=8, depth=1), torch.randn(5, 2), "bfloat16")
    assert torch.equal(rounded, plain)


@pytest.mark.parametrize(
    "word", ["fast", "plain+compile", "compile,bfloat16", "", "compile:fast", "compile+compile:default"]
)
def test_an_unknown_engine_is_refused_and_leaves_the_old_one(word):
    engine.use("bfloat16")
    with pytest.raises(ValueError, match="allowed is plain, or some of compile, compile:default"):
        engine.use(word)
    assert engine._parts == {"bfloat16"}


def test_the_switch_is_an_environment_variable():
    """For a notebook that imports a sampler and never the engine."""
    said = "from ebmlib import core, samplers; import ebmlib.engine as e; print(sorted(e._parts), core.way.__name__)"
    command, env = [sys.executable, "-c", said], {**os.environ, "PYTHONPATH": str(ROOT)}
    run = partial(subprocess.run, command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert run(env={**env, "EBMLIB_ENGINE": "compile+bfloat16"}).stdout == "['bfloat16', 'compile'] _chosen\n"
    assert "the engine is 'quick'" in run(env={**env, "EBMLIB_ENGINE": "quick"}).stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["net", "conditional", "density", "image"])
def test_on_cuda_a_chain_by_cuda_graphs_is_the_plain_one(name, kernel):
    torch.set_default_device("cuda")
    try:
        net, make, x = energies()[name]
        net, x = net.cuda(), x.cuda()
        ends = []
        for way in ("plain", *["compile:reduce-overhead"] * 3):  # warmed up, recorded, replayed
            engine.use(way)
            rng = torch.Generator("cuda").manual_seed(3)
            with evaluating(net):
                ends.append((KERNELS[kernel](make(), x, rng=rng)[0], torch.rand(3, generator=rng, device="cuda")))
        for end, after in ends[1:]:
            torch.testing.assert_close(end, ends[0][0], rtol=1e-4, atol=1e-5)
            assert torch.equal(after, ends[0][1]), "another number of draws from the generator"
    finally:
        torch.set_default_device("cpu")
