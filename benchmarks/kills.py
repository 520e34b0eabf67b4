"""Kills training runs with signal 9 at random moments, resumes each, and counts those that end as if nothing had been.

    make kills          # 100 kills, writes data/benchmarks/kills.json
    python benchmarks/kills.py [--kills N] [--seed S] [--out FILE]

A run is persistent contrastive divergence in two dimensions, with a checkpoint every few iterations, so that kills fall
into writes, too. One run that nobody kills comes first. Every other one is killed at a moment drawn uniformly over its
length, resumed to the end, and its last checkpoint and log are compared with those of the first bit by bit.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import torch._dynamo  # what a first optimizer imports, seconds long: once, before the forks
from commit import git_commit
from safetensors import safe_open

from ebmlib.core import evaluating
from ebmlib.nets.mlp import MLP
from ebmlib.objectives import contrastive
from ebmlib.page import results
from ebmlib.reservoir import Reservoir
from ebmlib.run import checkpoint, training
from ebmlib.run.folder import open_run
from ebmlib.samplers import langevin, ula
from ebmlib.targets import densities

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "data" / "benchmarks" / "kills.json"
KEY = {"what": "persistent contrastive divergence, killed"}
ITERATIONS, SAVE_EVERY = 400, 5


def train(folder: Path, iterations: int = ITERATIONS) -> None:
    """The run in `folder`, from its newest checkpoint on."""
    torch.set_num_threads(1)
    target = densities.by_name("9-gaussians")
    torch.manual_seed(0)
    rng, chain = training.seeded(1), ula(0.002, 5)
    net = MLP(width=32, depth=2)
    pool = Reservoir(lambda n, rng: torch.randn(n, 2, generator=rng), rng, capacity=200, restart=0.05)

    def step(x, done):
        with evaluating(net):
            x_neg, _ = langevin(net, pool.draw(len(x), rng), chain, rng=rng)
        pool.push(x_neg, rng)
        return contrastive(net(x), net(x_neg))

    run = open_run("kills", KEY, folder, resume=any(folder.glob("step-*.safetensors")))
    parts = {"net": net, "ema": training.ema(net, 0.99), "optimizer": torch.optim.Adam(net.parameters(), 1e-3)}
    parts |= {"run": run, "state": [pool], "save_every": SAVE_EVERY}
    training.fit(step, training.Draws(target.sample, 32, rng), iterations=iterations, progress=False, **parts)


def quietly(folder: Path) -> None:
    """The run in `folder` without its complaints, which would be one of a hundred."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    train(folder)


def in_child(folder: Path, wait: float | None = None) -> int:
    """Exit status of the run in a process of its own, minus the signal that ended it; killed after `wait` seconds.

    The process is a fork, because importing torch a hundred times would take an hour.
    """
    child = multiprocessing.get_context("fork").Process(target=quietly, args=(folder,))
    child.start()
    if wait is not None:
        time.sleep(wait)
        child.kill()
    child.join()
    return child.exitcode


def fingerprint(folder: Path) -> tuple[str, bytes]:
    """The SHA-256 of the last checkpoint without its seconds, and the log."""
    objects, meta = checkpoint.load(sorted(folder.glob("step-*.safetensors"))[-1])
    timeless = checkpoint.save(folder / "timeless.safetensors", objects, {"iteration": meta["iteration"]})
    with safe_open(timeless, "pt") as file:
        return file.metadata()["sha256"], (folder / "log.csv").read_bytes()


def moment(folder: Path) -> str:
    """Where a kill fell, by what it left: a checkpoint half written, no checkpoint yet, or neither."""
    if list(folder.glob(".*.tmp")):
        return "while a file was being written"
    return "between writes" if list(folder.glob("step-*.safetensors")) else "before the first checkpoint"


def one_kill(folder: Path, wait: float) -> tuple[str | None, bool]:
    """(where the kill fell, whether the resumed run was able to end); None if the run was over before it."""
    if in_child(folder, wait) != -signal.SIGKILL:
        return None, False
    where = moment(folder) if folder.exists() else "before the folder was there"
    return where, in_child(folder) == 0


def count(kills: int, seed: int) -> tuple[Counter, int, int, float]:
    """(kills by where they fell, resumes that ended, those that are bit-identical, seconds of a whole run)."""
    pick, where, resumed, identical = random.Random(seed), Counter(), 0, 0
    with tempfile.TemporaryDirectory() as room:
        began = time.perf_counter()
        if in_child(Path(room) / "whole"):
            raise SystemExit("the run that nobody kills did not end")
        seconds, whole = time.perf_counter() - began, fingerprint(Path(room) / "whole")
        while where.total() < kills:
            folder = Path(room) / f"killed-{where.total()}"
            place, done = one_kill(folder, pick.uniform(0, seconds))
            if place is not None:
                where[place] += 1
                resumed += done
                same = done and fingerprint(folder) == whole
                identical += same
                if not same:
                    print(f"kill {where.total()}, {place}: {'another end' if done else 'no end'}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    return where, resumed, identical, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    began = time.perf_counter()
    where, resumed, identical, each = count(given.kills, given.seed)
    about = {"protocol": f"signal 9, {ITERATIONS} iterations, a checkpoint every {SAVE_EVERY}", "seed": given.seed}
    row = lambda name, value: results.Row(name, value, n=given.kills, device=results.hardware(), **about)
    rows = [row(f"kills {place}", n) for place, n in sorted(where.items())]
    rows += [row("resumes that ended", resumed), row("bit-identical ends", identical)]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    meta = {"command": "make kills", "seconds": round(time.perf_counter() - began), "seconds of a run": round(each, 1)}
    results.save(given.out, rows, overwrite=True, commit=git_commit(ROOT), **meta)
    print(results.as_text(rows))
    if identical < given.kills:
        raise SystemExit(f"{given.kills - identical} of {given.kills} runs did not end as the one that nobody killed")


if __name__ == "__main__":
    main()
