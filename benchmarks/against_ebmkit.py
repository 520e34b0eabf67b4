"""Our contrastive divergence and recovery likelihood beside those of ebmkit 0.16.0, on the two moons.

    make compare        # puts ebmkit beside the environment, for this command alone, and runs
    python benchmarks/against_ebmkit.py [--seeds 0 1 2 3 4] [--iterations N] [--out FILE]

Both libraries train on the same 8,192 points, on one thread of one machine, and are judged by our MMD^2 and by
quadrature. Writes data/results/methods_ebmkit.json. A finished seed is kept under build/against_ebmkit. With
--iterations it is only tried, and what it writes stays under build.
"""

import argparse
import ast
import math
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import peers
import torch
from commit import git_commit
from torch import Tensor

from ebmlib import partition
from ebmlib.core import Energy, evaluating
from ebmlib.metrics import planar as metrics
from ebmlib.nets.mlp import MLP, TimeMLP
from ebmlib.objectives import contrastive
from ebmlib.page import results
from ebmlib.papers import recovery
from ebmlib.reservoir import Reservoir
from ebmlib.run import checkpoint, training
from ebmlib.samplers import langevin, reflected, ula
from ebmlib.targets import densities

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from book import dependencies

ROOT = Path(__file__).resolve().parents[1]
WANTED = peers.VERSIONS["ebmkit"]
MOONS = densities.by_name("two-moons")  # the law of ebm.datasets.two_moons(noise=0.1): noise .1, same shift and scale
FACTOR = 4.5 / MOONS.box  # our nets see the data's box with half side 4.5, as in the chapters
TRAIN, BATCH, SAMPLES, STEPS_AT_TEST = 8192, 256, 5000, 500
OURS_CD, OURS_DRL, THEIRS = 6000, 2500, 6000  # iterations; 6,000 are those of ebmkit's published table
TITLE = f"Beside another library: ebmkit {WANTED} on the two moons"
NOTE = (  # context only: another machine, another bandwidth, another sample
    "Its front page gives an MMD^2 of .0010 in 71 s for contrastive divergence and of .0157 in 53 s for recovery "
    "likelihood, by a protocol of its own and on another machine. They are context and no part of this comparison."
)
OUT = ROOT / "data" / "results" / "methods_ebmkit.json"
KEPT = ROOT / "build" / "against_ebmkit"
CELLS = 200  # a side, of every quadrature


class Trained(NamedTuple):
    """An energy of x (B, 2) in the data's units, samples by name (n, 2), CPU seconds of training."""

    energy: Energy
    samples: dict[str, Tensor]
    seconds: float


def fit(step, net, data: Tensor, rng: torch.Generator, iterations: int, state=()) -> tuple[torch.nn.Module, float]:
    """The running mean of the weights after training on shuffled batches of `data`, and CPU seconds."""
    ema = training.ema(net, max(0.0, 1 - 20 / iterations))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    options = {"net": net, "ema": ema, "optimizer": optimizer, "iterations": iterations, "state": state}
    begin = time.process_time()
    batches = training.Batches(data, BATCH, rng)
    training.fit(step, batches, warmup=iterations // 20, cosine=True, clip_norm=1.0, progress=False, **options)
    return ema.module.requires_grad_(False), time.process_time() - begin


def ours_cd(data: Tensor, seed: int, iterations: int = OURS_CD, K: int = 20, step_size: float = 0.006) -> Trained:
    """Persistent contrastive divergence: chains that are never restarted, mirrored at 1.5 times the data's box."""
    rng, wall, chain = training.seeded(seed), 1.5 * 4.5, ula(step_size, K)
    torch.manual_seed(seed)
    net = MLP(width=128, depth=2, gain=2.0)  # ebmkit's two hidden layers of 128
    uniform = lambda n, rng: wall * (2 * torch.rand(n, 2, generator=rng) - 1)
    pool = Reservoir(uniform, rng, capacity=SAMPLES, restart=0.0)

    def walk(net, x, schedule):
        with evaluating(net):
            return langevin(net, x, schedule, rng=rng, project=reflected(wall))[0]

    def step(x, done):
        x_neg = walk(net, pool.draw(len(x), rng), chain)
        pool.push(x_neg, rng)
        return contrastive(net(x), net(x_neg))

    net, seconds = fit(step, net, FACTOR * data, rng, iterations, [pool])
    noise, long = torch.randn(SAMPLES, 2, generator=rng), ula(step_size, STEPS_AT_TEST)
    ends = {"from noise": walk(net, FACTOR * noise, long), "from its chains": walk(net, pool.x, long)}
    return Trained(lambda x: net(FACTOR * x), {name: x / FACTOR for name, x in ends.items()}, seconds)


def ours_drl(data: Tensor, seed: int, iterations: int = OURS_DRL, K: int = 30, b2: float = 0.02) -> Trained:
    """Recovery likelihood with the settings of the chapter `drl_toy`, and its step for thin shapes: .06 diverges."""
    rng = training.seeded(seed)
    torch.manual_seed(seed)
    tables = recovery.noising(6, b2, scaled=False, c_power=0.4, weight_power=2.0)
    net = TimeMLP(width=64, multipliers=(1, 1, 1), gain=7.0, spectral=False)

    def step(x, done):
        y, x_next, t = tables.pairs(x, rng)
        with evaluating(net):
            target = recovery.conditional(recovery.levels(net.at, tables)(t), x_next, tables.precision[t])
            y_neg, _ = langevin(target, x_next, recovery.schedule(tables, t, K), rng=rng)
        E = recovery.levels(net.at, tables)(t)
        return contrastive(E(y), E(y_neg), weight=tables.weight[t])

    net, seconds = fit(step, net, FACTOR * data, rng, iterations)
    at_level, zero = recovery.levels(net.at, tables), torch.zeros(1, dtype=torch.long)
    start = torch.randn(SAMPLES, 2, generator=rng)
    samples = {"progressive": recovery.progressive(at_level, tables, start, K, noise=1.0, rng=rng) / FACTOR}
    return Trained(lambda x: at_level(zero)(tables.scale[0] * FACTOR * x), samples, seconds)


def their_fit(energy, loss, data: Tensor, iterations: int) -> float:
    """CPU seconds of training."""
    import ebm

    begin = time.process_time()
    ebm.Trainer(energy, loss, lr=1e-3, device="cpu").fit(data, steps=iterations, batch_size=BATCH, verbose=False)
    return time.process_time() - begin


def their_cd(data: Tensor, seed: int, iterations: int = THEIRS) -> Trained:
    """ebmkit's front page: two layers of 128, 60 steps of .01, a buffer of 8,192, Adam 1e-3; sampled by 500 steps."""
    import ebm

    torch.manual_seed(seed)
    energy = ebm.nets.MLPEnergy(dim=2, hidden=(128, 128))
    sampler, buffer = ebm.LangevinDynamics(step_size=1e-2, steps=60), ebm.ReplayBuffer(8192, (2,))
    seconds = their_fit(energy, ebm.ContrastiveDivergence(sampler, buffer=buffer), data, iterations)
    starts = {"from noise": torch.randn(SAMPLES, 2), "from its chains": buffer.data[:SAMPLES].clone()}
    samples = {name: sampler.sample(energy, x, steps=STEPS_AT_TEST).detach() for name, x in starts.items()}
    return Trained(energy, samples, seconds)


def their_drl(data: Tensor, seed: int, iterations: int = THEIRS) -> Trained:
    """ebmkit's recovery likelihood with its defaults (30 steps, step scale .1); the ladder is ours, it has no default.

    Seven noises, so six pairs as in our six levels, from 2, beyond the data's box, to .05, half the moons' own noise.
    """
    import ebm

    torch.manual_seed(seed)
    sigmas = ebm.geometric_sigmas(2.0, 0.05, 7)
    energy = ebm.nets.NoiseConditionalMLPEnergy(dim=2, hidden=(128, 128))
    seconds = their_fit(energy, ebm.DiffusionRecoveryLikelihood(sigmas), data, iterations)
    samples = {"progressive": ebm.drl_sample(energy, sigmas, SAMPLES, (2,))}
    return Trained(lambda x: energy(x, sigmas[-1]), samples, seconds)


OURS = {"ours, CD": ours_cd, "ours, DRL": ours_drl}
METHODS = {"ebmkit, CD": their_cd, "ebmkit, DRL": their_drl} | OURS


def judge(name: str, trained: Trained, seed: int, preset: str) -> list[results.Row]:
    """MMD^2 of the samples with two bandwidths, held-out log-likelihood by quadrature, and KL to the truth."""
    fresh = MOONS.sample(SAMPLES, training.seeded(seed + 1000))
    about = {"dataset": "two-moons", "preset": preset, "seed": seed, "device": results.hardware()}
    row = partial(results.Row, seconds=trained.seconds, **about)
    rows = [row(f"seconds of training, {name}", trained.seconds, unit="s", protocol="CPU time of one thread")]
    median = float(torch.pdist(fresh[:2000]).median())
    widths = {"a tenth of the box": 0.1 * MOONS.box, "median distance of data": median}
    for start, x in trained.samples.items():
        for words, bandwidth in widths.items():
            value, se = metrics.mmd(x, fresh, bandwidth)
            how = f"{start}; Gaussian kernel, bandwidth {words}"
            rows.append(row(f"MMD^2, {name}", value, se, len(x), protocol=how))
    box = 1.5 * MOONS.box
    log_z = float(partition.log_z(trained.energy, box, CELLS))
    log_p = lambda x: -trained.energy(x) - log_z
    with torch.no_grad():
        ll = log_p(fresh).double()
    how = f"quadrature on 1.5 times the box; truth {densities.mean_log_prob(MOONS, CELLS):.3f}"
    se = float(ll.std() / len(ll) ** 0.5)
    rows.append(row(f"held-out log-likelihood, {name}", float(ll.mean()), se, len(ll), "nats", protocol=how))
    kl = float(partition.kl(MOONS.log_prob, log_p, box, CELLS))
    return [*rows, row(f"KL to the truth, {name}", kl, unit="nats", protocol="quadrature on 1.5 times the box")]


def noise_floor(seed: int, preset: str) -> list[results.Row]:
    """Data against data: what no sampler can be told from."""
    other = MOONS.sample(SAMPLES, training.seeded(seed + 2000))
    rows = judge("data", Trained(MOONS.energy, {"fresh data": other}, 0.0), seed, preset)
    return [row for row in rows if row.name.startswith("MMD^2")]


def one_seed(seed: int, methods: dict[str, Callable[..., Trained]], preset: str, **options) -> list[results.Row]:
    """Every method on the same training points."""
    data, rows = MOONS.sample(TRAIN, training.seeded(seed)), noise_floor(seed, preset)
    for name, method in methods.items():
        trained = method(data, seed, **options)
        rows += judge(name, trained, seed, preset)
        print(f"seed {seed}, {name}: {trained.seconds:.0f} s", flush=True)
    return rows


def code_hash() -> str:
    """Eight hex digits over this script and the library's modules that it reaches, but for how pages show things."""
    code = ast.parse(Path(__file__).read_text())
    found = dependencies.parts(ROOT, "ebmlib", code, [], without=("ebmlib/page/",))
    return checkpoint.key_hash(found | {"script": ast.dump(code), "ebmkit": WANTED})[:8]


def kept(seed: int, code: str, options: dict[str, int]) -> list[results.Row]:
    """The rows of one seed, measured unless this script and the library have not changed since they were."""
    path = KEPT / f"seed-{seed}-{code}{''.join(f'-{n}' for n in options.values())}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        results.save(path, one_seed(seed, METHODS, "smoke" if options else "paper", **options))
    return results.load(path)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int, help="of every method, to try it")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if reason := peers.missing("ebmkit"):
        raise SystemExit(reason["ebmkit"])
    torch.set_num_threads(1)
    options = {"iterations": given.iterations} if given.iterations else {}
    commit, code = git_commit(ROOT), code_hash()
    rows = [row for seed in given.seeds for row in kept(seed, code, options)]
    if not all(math.isfinite(row.value) for row in rows):
        raise SystemExit(f"a method diverged: look at {KEPT.relative_to(ROOT)}")
    if code_hash() != code:
        raise SystemExit("the code has changed since the first seed started, so no rows are written; start again")
    meta = {"title": TITLE, "note": NOTE, "commit": commit, "command": "make compare", "seeds": given.seeds}
    meta["code"] = code  # the settings of every method are in it
    meta["versions"] = {"python": platform.python_version(), "torch": torch.__version__, "ebmkit": WANTED}
    meta["hardware"] = results.hardware()
    out = given.out or (KEPT / "tried.json" if options else OUT)
    results.save(out, results.with_means(rows), overwrite=True, **meta)
    print(results.as_text([row for row in results.mean_rows(rows) if "MMD" in row.name or "seconds" in row.name]))


if __name__ == "__main__":
    main()
