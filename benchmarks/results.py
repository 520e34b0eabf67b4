"""Runs the long rows that the book commits, one seed a process, into data/results/<name>.json, as plan.toml says.

    python benchmarks/results.py [--only drl_toy ml_toy] [--jobs 1]
    python benchmarks/results.py --long [--minutes 150] [--runs ~/ebm-runs]      # the queue of runs of hours
    python benchmarks/results.py --gpu [--minutes 9] [--dry-run]      # or: make gpu ARGS="--minutes 9"

A finished run is kept under build/results, or in the folder that --runs or EBM_RUNS names, and not run again while
nothing has changed that its rows follow from; an interrupted one goes on from its checkpoint. A file is written when
every run of its notebook is there, and not at all where something has changed since they started. Several of these may
run side by side, each with notebooks of its own; all give way to other work on the machine.
"""

import argparse
import ast
import functools
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from commit import PLAN, git_commit
from export import bundle

from ebmlib.page import results
from ebmlib.run import checkpoint
from ebmlib.settings import resolve

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from book import dependencies, runner
from book.project import Project

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(os.environ.get("EBM_RUNS") or ROOT / "build" / "results").expanduser().absolute()
GPU = [name for name, entry in PLAN.items() if entry.get("preset") == "gpu"]
LONG = [name for name, entry in PLAN.items() if entry.get("preset") == "long"]  # in the order of the plan
LIMIT = {"long": 12 * 3600.0, "cpu": 5400.0}  # seconds that a seed may take, by preset
OTHERS = 3600.0


@dataclass(frozen=True)
class Run:
    """One notebook with one set of parameters and one seed, for the file of rows `file`."""

    file: str
    parameters: tuple[tuple[str, object], ...]
    seed: int
    dry: bool = False
    key: str = ""  # as `key_of` had it when the run was planned

    @property
    def source(self) -> Path:
        return ROOT / "notebooks" / f"{PLAN[self.file].get('notebook', self.file)}.ipynb"

    @property
    def preset(self) -> str:
        return "smoke" if self.dry else PLAN[self.file].get("preset", "paper")

    @property
    def name(self) -> str:
        return "-".join([self.file + "_dry" * self.dry, *(str(value) for _, value in self.parameters), str(self.seed)])

    @property
    def executed(self) -> Path:
        return OUT / f"{self.name}-{self.key}.ipynb"

    @property
    def folder(self) -> Path:
        """Where its checkpoints go; a run that starts anew gets -2, -3, ... appended."""
        return OUT / "runs" / self.executed.stem

    @property
    def clock(self) -> Path:
        """The file of the run's seconds, over all its parts where it was interrupted."""
        return self.executed.with_suffix(".seconds")

    @property
    def seconds(self) -> float:
        return float(self.clock.read_text()) if self.clock.exists() else 0.0


def planned(file: str, dry: bool = False) -> list[Run]:
    """The runs of a file of rows, with their keys as they are now."""
    entry = PLAN[file]
    given = [tuple((entry.get("common", {}) | own).items()) for own in entry.get("runs", [{}])]
    keys = {parameters: key_of(Run(file, parameters, 0, dry)) for parameters in given}
    return [Run(file, parameters, seed, dry, keys[parameters]) for parameters in given for seed in entry["seeds"]]


def key_of(run: Run) -> str:
    """Eight hex digits over what the rows of a run follow from, so that a change of it makes them again.

    These are the notebook's code, the library's modules that it reaches, its resolved settings, and the data that it
    reads, but for the checkpoints that runs of this notebook write and for how pages show things.
    """
    name = run.source.stem
    own = [entry for file, entry in PLAN.items() if entry.get("notebook", file) == name and "bundled" in entry]
    without = ("ebmlib/page/", "ebmlib/settings/", *(f"data/checkpoints/{entry['bundled']}" for entry in own))
    code, table = dependencies.notebook_code(run.source), Project(ROOT).table()
    found = dependencies.parts(ROOT, "ebmlib", code, table.get(name, {}).get("files", []), without)
    found |= {"the notebook": ast.dump(code), "the settings": settings_hash(run), "a row": ", ".join(results.COLUMNS)}
    return checkpoint.key_hash(found)[:8]


def settings_hash(run: Run) -> str:
    """Twelve hex digits over the resolved settings of a run and its data set."""
    given = {"preset": run.preset, **dict(run.parameters)}
    config, _ = resolve.resolved(resolve.classes()[run.source.stem], given)
    return checkpoint.key_hash({"settings": asdict(config), "dataset": given.get("dataset")})


def check_unchanged(run: Run, commit: str | None = None) -> None:
    """SystemExit where the run's key or the commit is not what it was when the runs started."""
    changed = key_of(run) != run.key
    if changed or commit not in (None, git_commit(ROOT)):
        what = "the code or data have" if changed else "the commit has"
        raise SystemExit(f"{run.file}: {what} changed since its runs started, so no rows are written; start again")


def interrupted(run: Run) -> bool:
    """Whether there is something to go on with; says so where a run finished and its notebook did not."""
    finished = {folder: json.loads((folder / "run.json").read_text())["finished"] for folder in folders(run)}
    going = any(not done and any(folder.rglob("*.safetensors")) for folder, done in finished.items())
    if any(finished.values()) and not going:
        name = [folder.name for folder, done in finished.items() if done][-1]
        print(f"{run.name}: {name} is finished, its notebook is not; starting anew beside it", flush=True)
    return going


def folders(run: Run) -> list[Path]:
    """The folders of a run's checkpoints, in the order in which they were begun."""
    twin = re.compile(re.escape(run.folder.name) + r"(?:-(\d+))?")
    beside = {path.parent: twin.fullmatch(path.parent.name) for path in run.folder.parent.glob("*/run.json")}
    return sorted((path for path, name in beside.items() if name), key=lambda path: int(beside[path][1] or 1))


def execute(run: Run, deadline: float = math.inf) -> list[results.Row]:
    """The rows of one run, executed unless they are there; SystemExit at the `deadline` of time.monotonic()."""
    if not run.executed.exists():
        check_unchanged(run)  # else it would be kept under the key of other code
        resume, new = interrupted(run), run.executed.with_suffix(".new.ipynb")
        given = {"preset": run.preset, "seed": run.seed, "run_dir": str(run.folder), "resume": resume}
        if run.preset == "gpu":
            given["device"] = "cuda"  # else a machine without one would begin on its processor
        print(f"{run.name}: {'going on' if resume else 'running'}", flush=True)
        earlier = run.seconds if resume else 0.0
        note = lambda seconds: run.clock.write_text(f"{earlier + seconds}\n")  # a kill takes no more than the last part
        limits = {"limit": max(0.0, deadline - time.monotonic()), "beat": note}
        ended = runner.run(ROOT, run.source, new, given | dict(run.parameters), new.with_suffix(".log"), **limits)
        note(ended.seconds)
        if ended.late:
            raise SystemExit(f"{run.name}: stopped in time; the same command goes on from its checkpoint")
        if ended.error:
            raise SystemExit(f"{run.name} failed {ended.error}")
        new.replace(run.executed)
    limit = LIMIT.get(run.preset, OTHERS)
    slow = f", more than the {limit / 60:.0f} that a seed may take" if run.seconds > limit else ""
    print(f"{run.name}: done in {run.seconds / 60:.0f} minutes{slow}", flush=True)
    return results.read(run.executed)


def write(runs: Sequence[Run], rows: Sequence[results.Row], commit: str) -> None:
    """A file of rows: means over seeds, then the rows, and how they were made; the weights to be bundled."""
    file, dry = runs[0].file, runs[0].dry
    for run in runs:
        check_unchanged(run, commit)
    command = "make gpu" if file in GPU else "make results"
    meta = {"commit": commit, "command": command, "settings": {run.name: settings_hash(run) for run in runs}}
    meta["seconds"] = {run.name: round(run.seconds) for run in runs}
    meta |= {key: PLAN[file][key] for key in ("title", "note") if key in PLAN[file]}
    path = (OUT / "dry" if dry else ROOT / "data" / "results") / f"{file}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if name := PLAN[file].get("bundled"):
        folder = OUT / "dry" if dry else ROOT / "data" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        about = {"preset": rows[0].preset, "device": rows[0].device, "seconds": rows[0].seconds}
        names = [name + f"-{run.seed}" * (run.seed > 0) for run in runs]
        files = [bundle(folders(run)[-1], own, folder, **about)[0] for run, own in zip(runs, names)]
        hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        one = {"checkpoint": files[0].name, "sha256": hashes[files[0].name]}
        meta |= one if len(runs) == 1 else {"checkpoints": hashes}
    results.save(path, results.with_means(rows), overwrite=True, **meta)
    print(f"wrote {path.relative_to(ROOT)}", flush=True)


def main() -> None:
    global OUT
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PLAN, nargs="+", metavar="NAME", help="some of them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    parser.add_argument("--gpu", action="store_true", help="the runs that need a GPU in place of all others")
    parser.add_argument("--long", action="store_true", help="the runs of hours in place of all others")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many; the next call goes on")
    parser.add_argument("--runs", type=Path, default=OUT, help="folder of executed notebooks and checkpoints")
    parser.add_argument("--dry-run", action="store_true", help="preset smoke, nothing outside build/results")
    options = parser.parse_args()
    OUT = options.runs.expanduser().absolute()
    OUT.mkdir(parents=True, exist_ok=True)
    kind = GPU if options.gpu else LONG if options.long else [name for name in PLAN if name not in GPU + LONG]
    chosen = options.only or kind
    commit, plan = git_commit(ROOT), [planned(name, options.dry_run) for name in chosen]
    run = functools.partial(execute, deadline=time.monotonic() + 60 * options.minutes)
    try:
        for runs in plan:
            with ThreadPoolExecutor(options.jobs) as pool:
                rows = [row for found in pool.map(run, runs) for row in found]
            write(runs, rows, commit)
    finally:
        for left in (run for runs in plan for run in runs if not run.executed.exists()):
            print(f"left: {left.name}, {left.seconds / 60:.0f} minutes so far", flush=True)


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(10)  # hours of training: whoever works on this machine goes first
    main()
