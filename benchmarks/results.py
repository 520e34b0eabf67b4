"""Runs the long rows that the book commits: preset `paper`, one seed a process, into data/results/<notebook>.json.

    python benchmarks/results.py [--only drl_toy] [--jobs 1]

A finished run is kept under build/results and not run again while its notebook and the library are the same; an
interrupted one goes on from its checkpoint. A file is written when every run of its notebook is there.
"""

import argparse
import functools
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ebmlib import results, settings

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "results"
PLAN = {  # notebook: the parameters of its runs, and their seeds
    "ml_toy": [({"dataset": "two-moons"}, (0, 1, 2))],
    "drl_toy": [
        ({"dataset": "checkerboard"}, (0, 1, 2)),
        ({"dataset": "25-gaussians", "b2": 0.02, "iterations": 2000}, (0,)),
    ],
    "improved_cd_toy": [({"dataset": "25-gaussians", "step": step}, tuple(range(10))) for step in (0.012, 0.006)],
    "vaebm_toy": [({"dataset": "25-gaussians"}, (0, 1, 2, 3, 4))],
    "self_adversarial_toy": [
        ({"dataset": "swiss-roll"}, (0, 1, 2)),
        ({"dataset": "9-gaussians"}, (0, 1, 2)),
    ],
    "methods_toy": [({}, (0, 1, 2, 3, 4))],  # all four targets in a run; an interrupted one goes on method by method
    "coarse_to_fine_toy": [({}, tuple(range(5)))],
    "partition_toy": [({}, (0,))],  # one run holds all 20 repetitions of every bracket
}
PRESET = "paper"


@dataclass(frozen=True)
class Run:
    """One notebook with one set of parameters and one seed."""

    notebook: str
    parameters: tuple[tuple[str, object], ...]
    seed: int

    @property
    def source(self) -> Path:
        return ROOT / "notebooks" / f"{self.notebook}.ipynb"

    @property
    def name(self) -> str:
        return "-".join([self.notebook, *(str(value) for _, value in self.parameters), str(self.seed)])

    @property
    def executed(self) -> Path:
        return OUT / f"{self.name}-{code_hash(self.source)}.ipynb"


@functools.cache  # an edit while runs go on does not rename them
def code_hash(notebook: Path) -> str:
    """Eight hex digits over the notebook and the library's modules."""
    files = [notebook, *sorted((ROOT / "ebmlib").rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def settings_hash(run: Run) -> str:
    """Twelve hex digits over the resolved settings of a run."""
    config = settings.start(run.notebook, {"preset": PRESET, **dict(run.parameters)}).config
    return hashlib.sha256(repr(config).encode()).hexdigest()[:12]


def execute(run: Run) -> list[results.Row]:
    """The rows of one run, executed unless they are there."""
    if not run.executed.exists():
        folder = OUT / "runs" / run.executed.stem
        new = run.executed.with_suffix(".new.ipynb")
        command = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", str(run.source), str(new)]
        command += ["-r", "preset", PRESET, "-p", "seed", str(run.seed), "-r", "run_dir", str(folder)]
        command += ["-p", "resume", str(any(folder.glob("step-*")))]
        for name, value in run.parameters:
            command += ["-p", name, str(value)]
        print(f"{run.name}: running", flush=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{run.name} failed: {done.stderr.strip().splitlines()[-1]}")
        new.replace(run.executed)
    print(f"{run.name}: done", flush=True)
    return results.read(run.executed)


def git_commit() -> str:
    """The commit that the rows were made at, with -dirty where the tree had changes beside earlier rows."""
    ask = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    commit = ask(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
    status = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!data/results"]
    return commit + "-dirty" * bool(ask(status).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PLAN, help="one notebook")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    commit = git_commit()
    for notebook in [options.only] if options.only else PLAN:
        runs = [Run(notebook, tuple(given.items()), seed) for given, seeds in PLAN[notebook] for seed in seeds]
        with ThreadPoolExecutor(options.jobs) as pool:
            rows = [row for found in pool.map(execute, runs) for row in found]
        meta = {"commit": commit, "command": "make results"}
        meta["settings"] = {run.name: settings_hash(run) for run in runs}
        path = ROOT / "data" / "results" / f"{notebook}.json"
        path.parent.mkdir(exist_ok=True)
        results.save(path, [*results.mean_rows(rows), *rows], overwrite=True, **meta)
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
