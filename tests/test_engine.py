"""The engine: a compiled or rounded chain is the plain chain within what is stated, and what cannot be says so once."""

import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from tape import OnTape
from torch.utils._python_dispatch import TorchDispatchMode

from ebmlib import core, engine
from ebmlib.core import evaluating
from ebmlib.nets.mlp import MLP
from ebmlib.nets.wideresnet import TimeWideResNet
from ebmlib.papers import recovery
from ebmlib.samplers import decayed, hmc, langevin, mala, ula
from ebmlib.targets import densities

ROOT = Path(__file__).resolve().parents[1]
T = torch.tensor([0, 1, 2, 3])


@pytest.fixture(autouse=True)
def plain_again():
    yield
    engine.use("plain")
    engine.backend, engine.recorder = "inductor", engine.Recorder()
    engine._refused.clear()
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


@pytest.mark.parametrize("name", ["net", "conditional", "image"])
def test_bfloat16_rounds_the_net_and_not_the_state(name):
    net, make, x = energies()[name]
    with evaluating(net):
        energy = make()
        _, exact = engine.energy_and_grad(energy, x)
        engine.use("bfloat16")
        value, grad = engine.energy_and_grad(energy, x)
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


# The graph part is in the tape's place; where both round or both compile, they must do the same.
@pytest.mark.parametrize(
    ("mode", "like"),
    [
        ("compile+channels-last", "plain"),
        ("compile+channels-last+graph", "plain"),
        ("compile+bfloat16", "bfloat16"),
        ("bfloat16+graph", "bfloat16"),
    ],
)
def test_parts_work_together(mode, like):
    net, make, x = energies()["image"]
    engine.recorder, ends = OnTape(), []
    with evaluating(net), warnings.catch_warnings():
        warnings.simplefilter("error")
        energy = make()
        for way in (like, mode):
            engine.backend = Graphs()
            engine.use(way)
            ends.append(langevin(energy, x, ula(0.01, 8), rng=torch.Generator().manual_seed(3))[0])
    assert (ends[0] - x).abs().max() > 0.05
    assert engine.recorder.recorded == ("graph" in mode)
    assert (engine.backend.count > 0) == ("compile" in mode)
    near = 1e-5 if like == "plain" else 2e-3  # a fused sum is rounded elsewhere
    torch.testing.assert_close(ends[1], ends[0], rtol=near, atol=near)


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


def test_the_guard_above_sees_a_number_that_is_taken_out():
    with NoSync(), pytest.raises(AssertionError, match="_local_scalar_dense waits for the device"):
        langevin(lambda x: x.square().sum(1) * float(x.max() > -9), torch.zeros(4, 2), ula(0.01, 2))


def test_memory_that_was_short_once_refuses_no_later_chain():
    class Full(OnTape):
        full = True

        def record(self, *given):
            if self.full:
                self.full = False
                raise torch.OutOfMemoryError("out of memory")
            return super().record(*given)

    net, make, x = energies()["conditional"]
    with evaluating(net):
        with pytest.warns(UserWarning, match="^memory did not suffice to record a chain, which runs step by step$"):
            (plain, _), (other, _), tape = recorded(KERNELS["langevin"], make(), x, Full())
        assert torch.equal(plain, other)
        assert tape.recorded == 0
        langevin(make(), x, ula(0.01, 8))
    assert tape.recorded == 1


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
    with pytest.raises(ValueError, match="it must be plain, or some of compile, bfloat16, channels-last, graph joined"):
        engine.use(word)


def test_the_switch_is_an_environment_variable():
    said = "from ebmlib import engine; print(sorted(engine._parts))"
    command, env = [sys.executable, "-c", said], {**os.environ, "PYTHONPATH": str(ROOT)}
    run = partial(subprocess.run, command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert run(env={**env, "EBMLIB_ENGINE": "compile+bfloat16"}).stdout == "['bfloat16', 'compile']\n"
    assert "the engine is 'quick'" in run(env={**env, "EBMLIB_ENGINE": "quick"}).stderr


# Recorded steps ------------------------------------------------------------------------------------------------------


def recorded(kernel, energy, x, recorder=None):
    """The chain step by step and recorded, with the same noise: two pairs (end, info), and the recorder."""
    engine.recorder = recorder or OnTape()
    plain, other, info, seen = both(kernel, energy, x, "graph")
    return (plain, info), (other, seen), engine.recorder


SCHEDULES = {
    "constant": [(0.01, 0.1)] * 8,
    "falling noise": decayed(0.01, 0.2, 8),  # the last step has no noise
    "noise first": [(0, 0.1)] + [(0.01, 0.1)] * 7 + [(0.01, 0)],
    "one a sample": [(torch.linspace(0.005, 0.02, 30), torch.linspace(0.05, 0.2, 30))] * 6,
    "one a sample, falling": [(0.02 / k * torch.ones(30), torch.linspace(0.05, 0.2, 30) / k) for k in range(1, 8)],
    "two levels": [(0.01, 0.1)] * 6 + [(0.001, 0.03)] * 6,
    "short parts": [(0.01, 0.1)] * 3 + [(0.01, 0)] * 3 + [(0, 0.1)] * 6,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_recorded_chain_is_the_plain_one(name):
    net, make, x = energies()["conditional"]
    kernel = lambda energy, x, rng: langevin(
        energy, x, SCHEDULES[name], rng=rng, clip=2.0, project=lambda x: x.clamp(-2, 2)
    )
    with evaluating(net):
        (plain, info), (other, seen), tape = recorded(kernel, make(), x)
    assert tape.recorded > 0, "nothing was recorded"
    assert tape.played >= 6
    assert (plain - x).abs().max() > 0.05
    torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(seen, info, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", ["density", "image"])
@pytest.mark.parametrize("kernel", ["mala", "hmc"])
def test_corrected_chains_are_recorded_too(name, kernel):
    net, make, x = energies()[name]
    with evaluating(net):
        (plain, info), (other, seen), tape = recorded(partial(KERNELS[kernel], K=9), make(), x)
    assert (tape.recorded, tape.played) == (1, 9)
    torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(seen, info, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["langevin", "mala", "hmc"])
def test_a_callback_sees_every_state_of_a_recorded_chain(kernel):
    chains = {
        "langevin": lambda *given, **rest: langevin(*given, [(0, 0.1)] + [(0.01, 0.1)] * 7, **rest),
        "mala": partial(mala, step=0.01, K=8),
        "hmc": partial(hmc, step=0.05, K=8),
    }
    states, engine.recorder = {}, OnTape()
    for mode in ("plain", "graph"):
        engine.use(mode)
        states[mode] = []
        look = lambda k, x, found=states[mode]: found.append((k, x))
        energy, rng = densities.by_name("9-gaussians").energy, torch.Generator().manual_seed(3)
        chains[kernel](energy, torch.zeros(20, 2), rng=rng, callback=look)
    assert engine.recorder.played >= 7
    assert [k for k, _ in states["graph"]] == list(range(8))
    for (_, plain), (_, other) in zip(states["plain"], states["graph"]):
        torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-6)


def test_the_steps_that_keep_their_graph_are_not_recorded():
    net, make, x = energies()["net"]
    kernel = lambda energy, x, rng: langevin(energy, x, ula(0.01, 9), rng=rng, differentiable=2)
    (plain, _), (other, _), tape = recorded(kernel, make(), x)
    assert (tape.recorded, tape.played) == (1, 7)
    torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-6)
    gradients = [
        torch.autograd.grad(end.square().sum(), list(net.parameters()), allow_unused=True) for end in (plain, other)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_short_chains_and_noise_from_a_function_are_not_recorded():
    net, make, x = energies()["net"]
    for kernel in (
        lambda energy, x, rng: langevin(energy, x, ula(0.01, 3), rng=rng),
        lambda energy, x, rng: langevin(energy, x, ula(0.01, 9), rng=torch.ones_like),
        lambda energy, x, rng: mala(energy, x, 0.01, 3, rng=rng),
    ):
        with evaluating(net):
            (plain, _), (other, _), tape = recorded(kernel, make(), x)
        assert tape.recorded == 0
        assert torch.equal(plain, other)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_cannot_be_recorded_runs_step_by_step_and_says_so_once(kernel):
    class Refusing(OnTape):
        def record(self, step, device, rng):
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    def run():
        (plain, _), (other, _), _ = recorded(chain, make(), x, Refusing())
        return plain, other, chain(make(), x, rng=torch.Generator().manual_seed(3))[0]

    net, make, x = energies()["net"]
    chain = KERNELS[kernel] if kernel == "langevin" else partial(KERNELS[kernel], K=9)
    with evaluating(net), pytest.warns(UserWarning, match="runs step by step, since it could not be recorded") as seen:
        plain, other, again = run()
    assert len(seen) == 1
    assert "\n" not in str(seen[0].message)
    assert torch.equal(plain, other)
    assert torch.equal(plain, again)


def test_a_chain_goes_on_step_by_step_where_a_later_part_cannot_be_recorded():
    class Once(OnTape):
        def record(self, step, device, rng):
            if self.recorded:
                raise RuntimeError("no more")
            return super().record(step, device, rng)

    net, make, x = energies()["net"]
    kernel = lambda energy, x, rng: langevin(energy, x, [(0.01, 0.1)] * 6 + [(0.01, 0)] * 6, rng=rng)
    with evaluating(net), pytest.warns(UserWarning, match="could not be recorded: no more"):
        (plain, info), (other, seen), tape = recorded(kernel, make(), x, Once())
    assert (tape.recorded, tape.played) == (1, 6)
    torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(seen, info, rtol=1e-5, atol=1e-5)


def test_without_cuda_the_graph_part_says_once_that_it_does_nothing():
    x, engine.recorder = torch.randn(5, 2), engine.Recorder()
    engine.use("graph")
    chain = partial(langevin, densities.by_name("9-gaussians").energy, x, ula(0.01, 9))
    with pytest.warns(UserWarning, match="chains on the cpu run step by step: the engine's graph part needs") as seen:
        [chain() for _ in range(3)]
    assert len(seen) == 1


def test_a_wrong_energy_says_what_is_wrong_with_it_when_recorded_too():
    engine.recorder = OnTape()
    engine.use("graph")
    with pytest.raises(ValueError, match=r"an energy must return shape \(5,\)"):
        langevin(lambda x: (x**2).sum(), torch.randn(5, 2), ula(0.01, 9))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("mode", ["graph", "compile+graph"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["net", "conditional", "density", "image"])
def test_on_cuda_a_recorded_chain_draws_the_noise_of_the_plain_one(name, kernel, mode):
    torch.set_default_device("cuda")
    try:
        net, make, x = energies()[name]
        net, x = net.cuda(), x.cuda()
        ends = []
        for way in ("plain", mode, mode):  # twice: the second graph takes over the memory of the first
            engine.use(way)
            rng = torch.Generator("cuda").manual_seed(3)
            with evaluating(net):
                chain = (
                    partial(langevin, schedule=ula(0.01, 9)) if kernel == "langevin" else partial(KERNELS[kernel], K=9)
                )
                ends.append((chain(make(), x, rng=rng)[0], torch.rand(3, generator=rng)))
        for end, after in ends[1:]:
            torch.testing.assert_close(end, ends[0][0], rtol=1e-4, atol=1e-5)
            assert torch.equal(after, ends[0][1]), "the generator stands elsewhere"
    finally:
        torch.set_default_device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_an_energy_that_asks_the_host_runs_step_by_step():
    x, rng = torch.randn(5, 2, device="cuda"), torch.Generator("cuda").manual_seed(0)
    energy = lambda x: (x**2).sum(1) * float(x.abs().max().detach() > -1)
    plain, _ = langevin(energy, x, ula(0.01, 9), rng=rng)
    engine.use("graph")
    with pytest.warns(UserWarning, match="runs step by step"):
        other, _ = langevin(energy, x, ula(0.01, 9), rng=rng.manual_seed(0))
    torch.testing.assert_close(other, plain)
    assert torch.isfinite(torch.randn(3, device="cuda", generator=rng)).all(), "the generator draws on"
