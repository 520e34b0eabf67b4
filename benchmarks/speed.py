"""Seconds a Langevin step beside the bare gradient, a naive loop, torchebm and ebmkit; and what training DRL costs.

    make bench                          # one CPU thread, into data/benchmarks/cpu.json (a quarter of an hour)
    make bench ARGS="--device cuda"     # the same on a GPU, into data/benchmarks/cuda.json
    make bench ARGS="--dry-run"         # tiny sizes, a minute or two, into build/speed: its numbers mean nothing
    make bench ARGS="--resume"          # go on with an interrupted run of this commit on this machine

All contenders of a case evaluate one energy, with the same step and noise, from the same x; one whose single step ends
elsewhere is not timed. Contenders take turns, and a ratio is taken within one round, so that a slow moment of the
machine meets everyone. Weights are frozen, with spectral normalization folded into them: only the naive loop has
weights that take gradients, as people write it.
"""

import argparse
import copy
import gc
import itertools
import json
import multiprocessing
import os
import platform
import random
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import peers
import torch
from commit import git_commit
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import DeviceType
from torch.nn.utils import parametrize
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ebmlib import data, engine, files
from ebmlib.core import Energy, evaluating
from ebmlib.nets.blocks import ChannelScale, channels_last, parameter_count
from ebmlib.nets.conv import ConvNet
from ebmlib.nets.mlp import MLP
from ebmlib.nets.wideresnet import TimeWideResNet
from ebmlib.objectives import contrastive
from ebmlib.page import results
from ebmlib.papers import recovery
from ebmlib.run import training
from ebmlib.samplers import decoupled, langevin, ula
from ebmlib.settings.drl import DRLImages
from ebmlib.settings.resolve import resolved

ROOT = Path(__file__).resolve().parents[1]
COMPILED = {"compiled": "compile+channels-last", "compiled, reduce-overhead": "compile:reduce-overhead+channels-last"}
OURS = ("langevin", *COMPILED)
MAY_FAIL = (*COMPILED, "torchebm, fused kernel")  # need a compiler: without one, a reason
SLICE, MOST_STEPS = 0.1, 200  # seconds that one contender's turn should last, and steps that it may have at most
ROUNDS, TINY_ROUNDS = (7, 41), 3  # at least and at most
ENGINES = {"cpu": ("plain",), "cuda": ("plain", *COMPILED.values())}  # that training is timed with
PROFILED = 8  # operations that a profile names
LEVEL = 3  # of DRL's six: a chain with a quadratic term, in the middle of the ladder
BATCHES, LENGTHS, SIDES = (1, 10, 100, 1000, 10_000), (1, 10, 100, 1000), (16, 32, 64)
# Dense bf16 rates of tensor cores in FLOP/s; where a data sheet prints the rate with sparsity, the half of it.
RATES = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12}
RATE_SOURCE = "NVIDIA's data sheet of the card, dense bf16"


class Refused(ValueError):
    """A contender computes something else than the others."""


class Problem(NamedTuple):
    """An energy, the same with weights that take gradients, a start x (B, *S), a chain's pair (a, b)."""

    energy: Energy
    trainable: Energy
    x: Tensor
    a: float
    b: float
    weights: int


class Case(NamedTuple):
    """One net with one batch, and about how many seconds its rounds may take together."""

    key: str
    title: str
    build: Callable[[torch.device], Problem]
    budget: float = 25.0


Run = Callable[[Tensor, int, float], Tensor]  # (x, K, b) -> x after K steps with noise b


def pair(net: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The net frozen, and a copy whose weights take gradients, both in evaluation mode and with plain weights."""
    net.eval()
    for module in list(net.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return net.requires_grad_(False), copy.deepcopy(net).requires_grad_(True)


def mlp(device: torch.device, batch: int, width: int = 256) -> Problem:
    """The self-adversarial paper's 2D net (Appendix A.1): five layers, 256 wide, swish; exact Langevin of step .01."""
    torch.manual_seed(0)
    net, x = MLP(2, width, 4).to(device), torch.randn(batch, 2).to(device)
    count = parameter_count(net)
    return Problem(*pair(net), x, *ula(0.01, 1)[0], count)


def convnet(device: torch.device, batch: int, filters: int = 64) -> Problem:
    """The self-adversarial paper's ConvNet for CIFAR-10 (Table 2, nf = 64) and its noisy chain (A.2: .05 and .1)."""
    torch.manual_seed(0)
    net = ConvNet(3, 32, filters, (1, 2, 4, 8)).to(device)
    count, x = parameter_count(net), torch.randn(batch, 3, 32, 32).to(device)
    return Problem(*pair(net), x, 0.05, 0.1, count)


def drl_settings(preset: str, device: torch.device, **changes: Any) -> DRLImages:
    """The settings of drl_cifar at a preset, the body in bfloat16 on a GPU alone: a CPU would only be slower in it."""
    settings, _ = resolved(DRLImages, {"preset": preset})
    return replace(settings, precision="bfloat16" if device.type == "cuda" else "float32", **changes)


def drl_net(cfg: DRLImages) -> TimeWideResNet:
    shape = {"width": cfg.width, "multipliers": cfg.multipliers, "blocks": cfg.blocks, "head": cfg.head}
    return TimeWideResNet(3, **shape, spectral=cfg.spectral, precision=cfg.precision)


def wideresnet(device: torch.device, batch: int, preset: str, size: int = 32) -> Problem:
    """DRL's conditional energy at one level, as training and sampling meet it, with that level's step and noise."""
    torch.manual_seed(0)
    cfg = drl_settings(preset, device)
    net = channels_last(drl_net(cfg).to(device))
    for module in net.modules():
        if isinstance(module, ChannelScale):  # 0 in a new net: the check of the contenders would not see the branches
            module.factor.data.fill_(0.1)
    count, (frozen, trainable) = parameter_count(net), pair(net)
    tables = recovery.noising(cfg.T, cfg.b2, cfg.variant, device=device)
    x, t = torch.randn(batch, 3, size, size).to(device), torch.full((batch,), LEVEL, device=device)
    condition = partial(recovery.conditional, x_next=x, precision=tables.precision[t])
    in_a_loop = lambda y: trainable(y, t) / tables.energy_scale[t]  # what depends on the level alone, at every step
    delta = float(tables.delta[LEVEL])
    energy = condition(recovery.levels(frozen.at, tables)(t))
    return Problem(energy, condition(in_a_loop), x, delta**2 / 2, delta, count)


def cases(device: torch.device, tiny: bool) -> list[Case]:
    """The issue's cases; on a GPU the WideResNet of the paper's width, too. Tiny ones have the same keys."""
    count = lambda n: n if not tiny else min(n, 8)
    width, filters = (256, 64) if not tiny else (16, 4)
    net, sizes = f"2D MLP, 4 hidden layers of {width}", (100, 1000, 10_000)
    found = [Case(f"mlp-{n}", f"{net}, batch {count(n):,}", partial(mlp, batch=count(n), width=width)) for n in sizes]
    build = partial(convnet, batch=count(64), filters=filters)
    found.append(Case("convnet-64", f"ConvNet of Table 2 (nf = {filters}) at 32 px, batch {count(64)}", build, 40.0))
    for preset in ("gpu", "paper") if device.type == "cuda" and not tiny else ("smoke",) if tiny else ("gpu",):
        cfg = drl_settings(preset, device)
        title = f"DRL's WideResNet, preset {preset} (width {cfg.width}, {cfg.blocks} blocks), at 32 px"
        for n in (64, 256):
            key = f"wideresnet-{n}" + "-paper" * (preset == "paper")
            build = partial(wideresnet, batch=count(n), preset=preset)
            found.append(Case(key, f"{title}, batch {count(n)}", build, 80.0))
    return found


def bare(problem: Problem) -> Run:
    """One forward and the input's gradient, K times, at one x; the single update behind them is for the check."""

    def run(x: Tensor, K: int, b: float) -> Tensor:
        for _ in range(K):
            point = x.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(problem.energy(point).sum(), point)
        return x - problem.a * grad

    return run


def ours(problem: Problem) -> Run:
    """`langevin`, with its Info: energies and gradient norms of the last step."""
    return lambda x, K, b: langevin(problem.energy, x, decoupled(problem.a, b, K))[0]


def switched(problem: Problem, mode: str) -> Run:
    """`langevin` with the library's own switch on `mode`, compiled for this batch alone."""
    torch._dynamo.reset()  # else the second batch would get code for batches of any size
    plain = ours(problem)

    def run(x: Tensor, K: int, b: float) -> Tensor:
        engine.use(mode)
        try:
            with warnings.catch_warnings():  # the plain path would be another contender
                warnings.filterwarnings("error", message=".*runs plainly")
                return plain(x, K, b)
        finally:
            engine.use("plain")

    run(problem.x, 4, problem.b)  # a CUDA graph is warmed up, recorded and replayed: what is checked is replayed
    return run


def naive(problem: Problem) -> Run:
    """As in many a notebook: backward() through everything, so the weights' gradients are computed and pile up."""

    def run(x: Tensor, K: int, b: float) -> Tensor:
        for _ in range(K):
            x = x.detach().requires_grad_(True)
            problem.trainable(x).sum().backward()
            with torch.no_grad():
                x = x - problem.a * x.grad + b * torch.randn_like(x)
        return x

    return run


def ebmkit(problem: Problem) -> Run:
    """Its LangevinDynamics: x - step grad + noise_scale randn; it takes any function, so it gets the frozen energy."""
    import ebm

    sampler = lambda b: ebm.LangevinDynamics(step_size=problem.a, noise_scale=b)
    return lambda x, K, b: sampler(b).sample(problem.energy, x, steps=K)


def torchebm_model(problem: Problem) -> nn.Module:
    """Its BaseModel around the frozen energy: a function inside, no submodule, for it walks over modules each step."""
    from torchebm.core import BaseModel

    class Model(BaseModel):
        def forward(self, x: Tensor) -> Tensor:
            return problem.energy(x)

    return Model(device=problem.x.device)


def torchebm(problem: Problem) -> Run:
    """Its LangevinDynamics, Euler-Maruyama: x - step grad + noise_scale sqrt(2 step) randn; zero needs a scheduler."""
    from torchebm.core import ConstantScheduler
    from torchebm.samplers import LangevinDynamics

    model, device = torchebm_model(problem), problem.x.device
    scale = lambda b: ConstantScheduler(b / (2 * problem.a) ** 0.5)
    sampler = lambda b: LangevinDynamics(model, step_size=problem.a, noise_scale=scale(b), device=device)
    return lambda x, K, b: sampler(b).sample(x=x, n_steps=K)


def torchebm_fused(problem: Problem) -> Run:
    """Its fused CUDA kernel for noise and update, behind its gradient; the check gives it our noise."""
    from torchebm.cuda.fused_langevin import fused_langevin_step

    model = torchebm_model(problem)

    def run(x: Tensor, K: int, b: float) -> Tensor:
        scale = b / (2 * problem.a) ** 0.5
        noise = {"noise": torch.randn_like(x)} if K == 1 else {}  # the check takes single steps
        for _ in range(K):
            x = fused_langevin_step(x, model.gradient(x), problem.a, scale, **noise)
        return x

    return run


def contenders(device: torch.device) -> dict[str, Callable[[Problem], Run]]:
    """Everyone in the order of a round; two more on a GPU."""
    fast = {name: partial(switched, mode=mode) for name, mode in COMPILED.items()}
    everyone = {"bare": bare, "langevin": ours, "compiled": fast.pop("compiled"), "naive": naive}
    everyone |= {"torchebm": torchebm, "ebmkit": ebmkit}
    return everyone | fast | {"torchebm, fused kernel": torchebm_fused} if device.type == "cuda" else everyone


def check(name: str, run: Run, problem: Problem, tolerance: float = 0.05) -> None:
    """Refuse who ends one step elsewhere: without noise, then with the noise of one seed (the bare cost has none)."""
    x, a = problem.x, problem.a
    point = x.detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(problem.energy(point).sum(), point)
    for b in (0.0,) if name == "bare" else (0.0, problem.b):
        torch.manual_seed(1)
        got = run(x, 1, b)
        torch.manual_seed(1)
        want = x - a * grad + (b * torch.randn_like(x) if b else 0.0)
        if got.shape != x.shape or got.requires_grad:
            raise Refused(f"{name} returns shape {tuple(got.shape)}, requires_grad {got.requires_grad}")
        moved, rounding = float((want - x).abs().max()), 4 * torch.finfo(x.dtype).eps * float(x.abs().max())
        apart = float((got - want).abs().max())
        if not apart <= tolerance * moved + rounding:
            raise Refused(f"{name} ends a step with noise {b:.3g} {apart:.3g} away, after a way of {moved:.3g}")


def interleaved(
    runs: Mapping[Any, Callable[[], Any]], rounds: int,
    wait: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, list[float]]:  # fmt: skip
    """Seconds of each run, round after round, in a new order every time; `wait` blocks until the device is done."""
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    names, draw = list(runs), random.Random(0)
    gc.collect()
    gc.disable()  # a collection would fall on whoever allocates next
    try:
        for _ in range(rounds):
            for name in names:
                wait()
                begin = clock()
                runs[name]()
                wait()
                seconds[name].append(clock() - begin)
            draw.shuffle(names)
    finally:
        gc.enable()
    return seconds


def spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def against(seconds: Mapping[Any, list[float]], name: Any) -> dict[Any, dict[str, float]]:
    """How many times the seconds of each other one, both taken from the same round."""
    others = {other: taken for other, taken in seconds.items() if other != name}
    return {str(other): spread(own / its for own, its in zip(seconds[name], others[other])) for other in others}


def waiting(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def why(error: Exception) -> str:
    """An error in one line, without the paths of this machine."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return re.sub(r"(/[^\s/'\":,()]+){2,}", "...", f"{type(error).__name__}: {first}")[:200]


def ready(case: Case, device: torch.device, left_out: Mapping[str, str]) -> tuple[Problem, dict[str, Run], dict]:
    """The problem, who takes part, and why others do not: a missing compiler, another result."""
    problem, runs, reasons = case.build(device), {}, dict(left_out)
    for name, make in contenders(device).items():
        try:
            if name not in left_out:
                run = make(problem)
                check(name, run, problem)
                runs[name] = run
        except Refused as error:
            reasons[name] = f"refused: {error}"
        except Exception as error:
            if name not in MAY_FAIL:
                raise
            reasons[name] = why(error)
    return problem, runs, reasons


def measure(case: Case, device: torch.device, left_out: Mapping[str, str], tiny: bool) -> list[dict[str, Any]]:
    """A row for each contender: its rounds, their spread, and its ratios to every other one."""
    problem, runs, reasons = ready(case, device, left_out)
    wait, x = waiting(device), problem.x
    single = interleaved({0: lambda: runs["bare"](x, 1, problem.b)}, 2, wait)[0][-1]
    K = 2 if tiny else max(1, min(MOST_STEPS, round(SLICE / single)))
    most = int(case.budget / (K * single * len(runs)))
    rounds = TINY_ROUNDS if tiny else max(ROUNDS[0], min(ROUNDS[1], most))
    turns = {name: partial(run, x, K, problem.b) for name, run in runs.items()}
    seconds = {name: [t / K for t in taken] for name, taken in interleaved(turns, rounds, wait).items()}
    about = {"case": case.key, "title": case.title, "weights": problem.weights, "batch": len(x), "K": K}
    rows = []
    for name in contenders(device):
        row = about | {"contender": name, "ours": name in OURS, "not_measured": reasons.get(name, "")}
        if name in seconds:
            row |= {"rounds": seconds[name], "seconds": spread(seconds[name]), "against": against(seconds, name)}
        rows.append(row)
    return rows


def growth(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """How seconds of `langevin` grow with batch, K and resolution; the sizes of a series take turns, too."""
    small, preset, one, images = (16, "smoke", 10, 2) if tiny else (256, "gpu", 100, 16)
    batches, lengths, sides = (BATCHES[:3], LENGTHS[:2], SIDES[:2]) if tiny else (BATCHES, LENGTHS, SIDES)
    chain = lambda problem, K: partial(ours(problem), problem.x, K, problem.b)
    one, net = mlp(device, one, small), f"2D MLP, 4 hidden layers of {small}"
    series = {
        ("batch", "step", net): ({n: chain(mlp(device, n, small), 10) for n in batches}, 10),
        ("K", "chain", f"{net}, batch {len(one.x):,}"): ({K: chain(one, K) for K in lengths}, 1),
        ("resolution", "step", f"DRL's WideResNet, preset {preset}, batch {images}"): (
            {side: chain(wideresnet(device, images, preset, side), 1) for side in sides}, 1
        ),
    }  # fmt: skip
    rows = []
    for (kind, per, title), (runs, steps) in series.items():
        for run in runs.values():
            run()  # the first call of a size chooses its kernels
        turns = interleaved(runs, 3 if tiny else 7, waiting(device))
        seconds, first = {n: [t / steps for t in taken] for n, taken in turns.items()}, str(next(iter(runs)))
        for n, taken in seconds.items():
            times = against(seconds, n).get(first, spread([1.0]))
            rows.append({"kind": kind, "title": title, "per": per, "x": n, "seconds": spread(taken), "times": times})
    return rows


def drl_step(net: TimeWideResNet, tables: recovery.Noising, K: int, rng: torch.Generator | None):
    """The step of drl_cifar, without what it only logs."""
    at_level = recovery.levels(net.at, tables)

    def step(x: Tensor, done: float = 0.0) -> tuple[Tensor, Mapping[str, Tensor]]:
        y, x_next, t = tables.pairs(x, rng)
        with evaluating(net):
            target = recovery.conditional(at_level(t), x_next, tables.precision[t])
            y_neg, _ = langevin(target, x_next, recovery.schedule(tables, t, K), rng=rng)
        E = at_level(t)
        return contrastive(E(y), E(y_neg), weight=tables.weight[t])

    return step


def flops(cfg: DRLImages) -> int:
    """Floating-point operations of one training iteration, counted on tensors without contents."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        net, tables = drl_net(cfg), recovery.noising(cfg.T, cfg.b2, cfg.variant)
        x = torch.randn(cfg.batch, 3, cfg.size, cfg.size)
        drl_step(net, tables, cfg.K, None)(x)[0].backward()
    return counter.get_total_flops()


def resident(key: str) -> int | None:
    """Bytes of this process in memory: VmRSS now, VmHWM at most (getrusage counts the parent's). None without /proc."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{key}:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    return 1024 * int(found[1]) if found else None


def where_time_goes(run: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """The operations that take most of `run`, by their own time on the device, and how busy they keep a GPU."""
    cuda, wait = device.type == "cuda", waiting(device)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=kinds) as seen:
        begin = time.perf_counter()
        run()
        wait()
        wall = time.perf_counter() - begin
    kind, own = (DeviceType.CUDA, "self_device_time_total") if cuda else (DeviceType.CPU, "self_cpu_time_total")
    found = {event.key: getattr(event, own) for event in seen.key_averages() if event.device_type == kind}
    total = sum(found.values())  # microseconds
    first = sorted(found, key=found.get, reverse=True)[:PROFILED]
    top = [{"operation": name[:80], "share": found[name] / total} for name in first]
    return {"operations": top, "busy": total / 1e6 / wall if cuda else None}  # a CPU is busy with Python, too


def train(preset: str, mode: str, device_name: str, iterations: int, skipped: int) -> dict[str, Any]:
    """DRL's training as drl_cifar runs it, on random images; the first `skipped` iterations are not counted."""
    engine.use(mode)
    device = torch.device(device_name)
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    cfg, wait, rng = drl_settings(preset, device), waiting(device), training.seeded(0, device)
    net = channels_last(drl_net(cfg).to(device))
    tables = recovery.noising(cfg.T, cfg.b2, cfg.variant, device=device)
    images = torch.randint(256, (4 * cfg.batch, 3, cfg.size, cfg.size), dtype=torch.uint8)
    batches, moments = training.Batches(images, cfg.batch, rng, lambda x, _: data.to_float(x), device), []
    parts = {"net": net, "ema": training.ema(net, cfg.ema), "generators": [rng]}
    parts["optimizer"] = torch.optim.Adam(net.parameters(), cfg.lr, betas=(cfg.beta1, 0.999))
    options = {"warmup": cfg.warmup, "clip_norm": cfg.clip_norm, "progress": False}
    before = resident("VmRSS")
    step = drl_step(net, tables, cfg.K, rng)

    def stamped(x: Tensor, done: float) -> tuple[Tensor, Mapping[str, Tensor]]:
        wait()
        moments.append(time.perf_counter())
        return step(x, done)

    training.fit(stamped, batches, iterations=skipped + iterations, **parts, **options)
    wait()
    moments.append(time.perf_counter())
    if device.type == "cuda":
        memory, means = torch.cuda.max_memory_allocated(device), "torch.cuda.max_memory_allocated, weights included"
    else:
        memory = None if before is None else resident("VmHWM") - before
        means = "the most resident memory of a new process, less what it had before its first iteration"
    seconds, x = [later - earlier for earlier, later in itertools.pairwise(moments)][skipped:], next(batches)
    about = {name: getattr(cfg, name) for name in ("width", "blocks", "T", "K", "size", "batch", "precision")}
    about |= {"preset": preset, "engine": mode, "iterations": iterations, "weights": parameter_count(net)}
    about |= {"seconds": spread(seconds), "per_second": spread(1 / s for s in seconds), "flops": flops(cfg)}
    about["profile"] = where_time_goes(lambda: step(x)[0].backward(), device)
    return about | {"memory": memory, "memory_is": means if memory else "not measured: this system has no /proc"}


def share(row: Mapping[str, Any], device: torch.device, card: str) -> dict[str, Any]:
    """The part of the card's dense bf16 rate that training reaches, or why there is none."""
    rate = next((rate for name, rate in RATES.items() if name in card), None)
    if device.type != "cuda" or rate is None:
        reason = f"no published rate of {card!r} is in the table" if device.type == "cuda" else "a share is a GPU's"
        return {"rate": None, "share": None, "share_is": f"not measured: {reason}"}
    part = {key: value * row["flops"] / rate for key, value in row["per_second"].items()}
    return {"rate": rate, "share": part, "share_is": f"of {rate:.3g} FLOP/s, {RATE_SOURCE}"}


def trainings(device: torch.device, tiny: bool) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """By name: DRL T6 at the largest presets that the device trains in minutes, by each of its engines."""
    presets = ("smoke",) if tiny else ("gpu", "paper") if device.type == "cuda" else ("cpu",)
    pairs = itertools.product(presets, ENGINES[device.type])
    return {f"training {preset} {mode}": partial(timed, preset, mode, device, tiny) for preset, mode in pairs}


def timed(preset: str, mode: str, device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """The row of one training in a new process, where nothing else was allocated before.

    Where an engine other than the plain one cannot do it, the reason stands in its place.
    """
    iterations, skipped = (2, 1) if tiny else (15, 3)
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(train, preset, mode, str(device), iterations, skipped).result()
    except Exception as error:
        if mode == "plain":
            raise
        return [{"preset": preset, "engine": mode, "share": None, "share_is": "", "not_measured": why(error)}]
    return [row | share(row, device, results.hardware(device))]


class Parts:
    """What each part of a run gave, kept on the disk until the run is whole, so that an interrupted one can go on."""

    def __init__(self, path: Path, about: Mapping[str, Any], resume: bool):
        self.path, self.about = path, dict(about)
        found = json.loads(path.read_text(encoding="utf-8")) if resume and path.is_file() else {}
        if found and found["about"] != self.about:
            differ = sorted(key for key in self.about if found["about"].get(key) != self.about[key])
            raise SystemExit(f"the interrupted run had another {', '.join(differ)}: run without --resume")
        self.done: dict[str, Any] = found.get("done", {})

    @property
    def seconds(self) -> float:
        """Of all parts, those of interrupted calls among them."""
        return sum(part["seconds"] for part in self.done.values())

    def take(self, name: str, run: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        if name not in self.done:
            begin = time.perf_counter()
            self.done[name] = {"rows": run(), "seconds": time.perf_counter() - begin}
            write(self.path, {"about": self.about, "done": self.done})
        return self.done[name]["rows"]


def write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(path) as draft:
        draft.write_text(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, into build/speed; missing peers are named")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled contenders out, and say so")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="these cases alone, without growth and training")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run of this commit")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    known = [case.key for case in cases(torch.device(given.device), given.dry_run)]
    if unknown := sorted(set(given.only or ()) - set(known)):
        raise SystemExit(f"no case is called {', '.join(unknown)}; there are {', '.join(known)}")
    return given


def target(given: argparse.Namespace) -> Path:
    """The file to write: that which is committed for a whole run alone."""
    whole = not (given.dry_run or given.only or given.no_compile)
    return given.out or ROOT / ("data/benchmarks" if whole else "build/speed") / f"{given.device}.json"


def meta(given: argparse.Namespace, device: torch.device, left_out: Mapping[str, str]) -> dict[str, Any]:
    """What the numbers were taken with; the commit, before anything else may change it."""
    arguments = " ".join(re.sub(r"--(out[ =]\S+|resume)", "", " ".join(sys.argv[1:])).split())
    command = "make bench" + f' ARGS="{arguments}"' * bool(arguments)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: version for name, version in peers.VERSIONS.items() if name not in left_out}
    about = {"command": command, "commit": git_commit(ROOT), "device": given.device, "dry_run": given.dry_run}
    return about | {"versions": versions, "hardware": results.hardware(device), "threads": torch.get_num_threads()}


def main() -> None:
    given = options()
    device, left_out = torch.device(given.device), peers.missing(*peers.VERSIONS)
    if left_out and not given.dry_run:
        raise SystemExit("; ".join(left_out.values()))
    if given.no_compile:
        left_out |= dict.fromkeys(COMPILED, "left out with --no-compile")
    torch.set_num_threads(1)
    engine.use("plain")  # whatever the environment says: the switch has contenders of its own
    torch.backends.cudnn.benchmark = True  # for everyone, as training.fit sets it
    about, content = meta(given, device, left_out), {"rows": [], "growth": [], "training": []}
    unfinished = given.out or ROOT / "build" / "speed" / f"{given.device}.json"
    parts = Parts(unfinished.with_suffix(".parts"), about, given.resume)
    if not given.only:  # first: its process should find a quiet machine
        for name, run in trainings(device, given.dry_run).items():
            content["training"] += parts.take(name, run)
        content["growth"] = parts.take("growth", partial(growth, device, given.dry_run))
    for case in cases(device, given.dry_run):
        if given.only is None or case.key in given.only:
            content["rows"] += parts.take(case.key, partial(measure, case, device, left_out, given.dry_run))
            say(content["rows"], case, parts.seconds)
    write(target(given), {"meta": about | {"seconds": round(parts.seconds)}, **content})
    parts.path.unlink()
    print(f"written: {os.path.relpath(target(given), ROOT)}")
    if refused := [row for row in content["rows"] if row["not_measured"].startswith("refused")]:
        raise SystemExit("\n".join(f"{row['title']}: {row['not_measured']}" for row in refused))


def say(rows: list[dict[str, Any]], case: Case, seconds: float) -> None:
    print(f"{case.title} (after {seconds:.0f} s)", flush=True)
    for row in (row for row in rows if row["case"] == case.key):
        if row["not_measured"]:
            print(f"  {row['contender']:24} not measured: {row['not_measured']}", flush=True)
        else:
            ratio = row["against"].get("bare", {"median": 1.0})["median"]
            print(f"  {row['contender']:24} {row['seconds']['median']:.3e} s a step, {ratio:.2f} x bare", flush=True)


if __name__ == "__main__":
    main()
