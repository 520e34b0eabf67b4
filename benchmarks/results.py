"""Runs the long rows that the book commits, one seed a process, into data/results/<notebook>.json.

    python benchmarks/results.py [--only drl_toy ml_toy] [--jobs 1]
    python benchmarks/results.py --gpu [--minutes 9] [--dry-run]      # or: make gpu ARGS="--minutes 9"

The preset is `paper`, and `cpu` where the paper's scale needs a GPU. With --gpu the runs of preset `gpu` take the place
of all others; --minutes stops a call in time, and the next one goes on; --dry-run takes preset `smoke`, on any machine,
and writes under build/results alone. A finished run is kept under build/results and
not run again while its notebook and the library are the same; an interrupted one goes on from its checkpoint. A file
is written when every run of its notebook is there, and not at all where the code has changed since they started.
Several of these may run side by side, each with notebooks of its own.
"""

import argparse
import functools
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from ebmlib.page import results
from ebmlib.run import checkpoint
from ebmlib.settings import resolve

sys.path.insert(0, str(Path(__file__).resolve().parent))
from export import bundle

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "results"
PLAN = {  # notebook: the parameters of its runs, and their seeds
    "ml_toy": [({"dataset": "two-moons"}, (0, 1, 2))],
    "drl_toy": [
        ({"dataset": "checkerboard"}, (0, 1, 2)),
        ({"dataset": "swiss-roll", "b2": 0.02}, (0, 1, 2)),  # the board's steps diverge on both of these
        ({"dataset": "25-gaussians", "b2": 0.02, "iterations": 2000}, (0, 1, 2)),
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
    "self_adversarial_images": [({"dataset": "fashion_mnist"}, (0, 1, 2))],
    "drl_cifar": [({"dataset": "fashion_mnist"}, (0,))],
    "drl_long_run": [({"dataset": "fashion_mnist"}, (0,))],
    "drl_cifar_gpu": [({"dataset": "fashion_mnist", "flip": False}, (0,))],  # its shoes all point to the left
    "drl_long_run_gpu": [({"dataset": "fashion_mnist", "flip": False}, (0,))],
    "self_adversarial_images_gpu": [({"dataset": "fashion_mnist"}, (0, 1, 2))],
    "self_adversarial_images_long": [  # the paper's constant rate: see the chapter for what a falling one does
        ({"dataset": "fashion_mnist", "iterations": 3000, "cosine": False}, (0, 1, 2))
    ],
    "drl_cifar_ablations": [  # 512 samples: a thousand levels of 2,048 would take longer than the training
        # The preset's mean over a thousand iterations would still hold a third of the untrained weights.
        ({"dataset": "fashion_mnist", "samples": 512, "ema": 0.99, "T": T, "K": K, "iterations": count} | more, (0,))
        for T, K, count, more in (
            (6, 10, 1000, {}),
            (6, 30, 1000, {}),
            (6, 50, 1000, {}),
            (1000, 0, 6000, {}),
            (1000, 0, 6000, {"objective": "dsm"}),
            (1, 180, 1000, {}),
        )
    ],
}
NOTEBOOKS = {  # of files that are not called after their notebook
    "drl_cifar_ablations": "drl_cifar",
    "drl_cifar_gpu": "drl_cifar",
    "drl_long_run_gpu": "drl_long_run",
    "self_adversarial_images_gpu": "self_adversarial_images",
    "self_adversarial_images_long": "self_adversarial_images",
}
ON_CPU = (
    "self_adversarial_images",
    "self_adversarial_images_long",
    "drl_cifar",
    "drl_long_run",
    "drl_cifar_ablations",
)
PRESETS = dict.fromkeys(ON_CPU, "cpu")  # others: paper
GPU = [name for name in PLAN if name.endswith("_gpu")]
PRESETS |= dict.fromkeys(GPU, "gpu")
BUNDLED = {  # their weights come with the book, under these names
    "drl_cifar": "drl_fashion_mnist",
    "drl_long_run": "drl_long_run_fashion_mnist",
    "drl_cifar_gpu": "drl_cifar_fashion_mnist_gpu",
    "drl_long_run_gpu": "drl_long_run_fashion_mnist_gpu",
    "self_adversarial_images_gpu": "self_adversarial_images_fashion_mnist_gpu",  # and -1, -2 for its other seeds
}
NOTES = {  # what the results page says of a file that is not called after its notebook
    "drl_cifar_ablations": {
        "title": "Levels, steps and objectives of recovery likelihood on images",
        "note": "Table 2 of the paper, small: `drl_cifar` at preset `cpu` on Fashion-MNIST at 16 pixels, one training "
        "seed, three sampling seeds. T = 1 and T = 6 trained for 1,000 iterations. T = 1000 draws no chains, so an "
        "iteration costs a small part; it trained for 6,000, with the same energy and independent pairs as T = 6. "
        "Of 512 samples KID can be taken, FID and the inception score of the paper cannot.",
    },
    "self_adversarial_images_long": {
        "title": "The self-adversarial paper's three rows, twice as long",
        "note": "`self_adversarial_images` at preset `cpu` with 3,000 iterations in place of 1,500, and with the "
        "paper's constant rate in place of one that falls to 0.",
    },
    "drl_cifar_gpu": {
        "title": "Recovery likelihood on images, on a GPU",
        "note": "`drl_cifar` at preset `gpu` on Fashion-MNIST.",
    },
    "drl_long_run_gpu": {
        "title": "Long chains at a thousand levels, on a GPU",
        "note": "`drl_long_run` at preset `gpu` on Fashion-MNIST.",
    },
    "self_adversarial_images_gpu": {
        "title": "The self-adversarial paper's three rows, on a GPU",
        "note": "`self_adversarial_images` at preset `gpu`: the paper's net and chains, with fewer iterations.",
    },
}
PAPERMILL = (sys.executable, "-m", "papermill")
LIMIT = 3600.0  # seconds that a seed may take
HEARTBEAT = 10.0  # seconds between two notes of the time that a run has taken so far


@dataclass(frozen=True)
class Run:
    """One notebook with one set of parameters and one seed; `code` is the hash of what it runs.

    `notebook` names the file of its rows, which is the notebook's own name nearly everywhere.
    """

    notebook: str
    parameters: tuple[tuple[str, object], ...]
    seed: int
    code: str
    dry: bool = False

    @property
    def source(self) -> Path:
        return source(self.notebook)

    @property
    def preset(self) -> str:
        return "smoke" if self.dry else PRESETS.get(self.notebook, "paper")

    @property
    def name(self) -> str:
        return "-".join(
            [self.notebook + "_dry" * self.dry, *(str(value) for _, value in self.parameters), str(self.seed)]
        )

    @property
    def executed(self) -> Path:
        return OUT / f"{self.name}-{self.code}.ipynb"

    @property
    def folder(self) -> Path:
        """Where its checkpoints go; a run that starts anew gets -2, -3, ... from `checkpoint.open_run`."""
        return OUT / "runs" / self.executed.stem


def source(name: str) -> Path:
    """The notebook behind a file of rows."""
    return ROOT / "notebooks" / f"{NOTEBOOKS.get(name, name)}.ipynb"


def planned(notebook: str, dry: bool = False) -> list[Run]:
    """The runs of a notebook, with its code as it is now."""
    code = code_hash(notebook)
    return [Run(notebook, tuple(given.items()), seed, code, dry) for given, seeds in PLAN[notebook] for seed in seeds]


def code_hash(notebook: str) -> str:
    """Eight hex digits over the notebook and the library's modules."""
    files = [source(notebook), *sorted((ROOT / "ebmlib").rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def settings_hash(run: Run) -> str:
    """Twelve hex digits over the resolved settings of a run and its data set."""
    given = {"preset": run.preset, **dict(run.parameters)}
    config, _ = resolve.resolved(resolve.classes()[run.source.stem], given)
    return checkpoint.key_hash({"settings": asdict(config), "dataset": given.get("dataset")})


def interrupted(run: Run) -> bool:
    """Whether there is something to go on with; says so where a run finished and its notebook did not."""
    twin = re.compile(re.escape(run.folder.name) + r"(-\d+)?")
    finished = []
    for path in sorted(run.folder.parent.glob(f"{run.folder.name}*/run.json")):
        if twin.fullmatch(path.parent.name):
            if json.loads(path.read_text())["finished"]:
                finished.append(path.parent.name)
            elif any(path.parent.glob("step-*")):
                return True
    if finished:
        print(f"{run.name}: {finished[-1]} is finished, its notebook is not; starting anew beside it", flush=True)
    return False


def execute(run: Run, deadline: float = math.inf) -> list[results.Row]:
    """The rows of one run, executed unless they are there; SystemExit at the `deadline` of time.monotonic()."""
    if not run.executed.exists():
        check_unchanged(run.notebook, run.code)  # else it would be kept under the hash of other code
        resume, new = interrupted(run), run.executed.with_suffix(".new.ipynb")
        command = [*PAPERMILL, "-k", "python3", "--no-progress-bar", str(run.source), str(new)]
        command += ["-r", "preset", run.preset, "-p", "seed", str(run.seed), "-r", "run_dir", str(run.folder)]
        command += ["-p", "resume", str(resume)]
        if run.preset == "gpu":
            command += ["-p", "device", "cuda"]  # else a machine without one would begin on its processor
        for name, value in run.parameters:
            command += ["-p", name, str(value)]
        print(f"{run.name}: {'going on' if resume else 'running'}", flush=True)
        earlier = seconds_before(run) if resume else 0.0
        finish(run, command, earlier, deadline)
        clock(run).write_text(f"{earlier + duration(new)}\n")
        new.replace(run.executed)
    spent = seconds(run)
    print(f"{run.name}: done in {spent / 60:.0f} minutes", flush=True)
    if spent > LIMIT:
        print(f"{run.name}: that is more than the {LIMIT / 60:.0f} minutes that a seed may take", flush=True)
    others = [path for path in (ROOT / "data" / "results").glob("*.json") if path.stem != run.notebook]
    shown = [row for path in others for row in results.load(path)[0]]  # a page shows rows of other runs, too
    return [row for row in results.read(run.executed) if row.preset == run.preset and row not in shown]


def finish(run: Run, command: Sequence[str], earlier: float, deadline: float = math.inf) -> None:
    """Wait for the command, and note the time so far, which a killed run would take with it.

    At the deadline the command and its kernel are killed; the run goes on from its checkpoint the next time.
    """
    begin, environment = time.monotonic(), os.environ | {"OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **streams)
    while process.returncode is None:
        try:
            errors = process.communicate(timeout=min(HEARTBEAT, max(0.1, deadline - time.monotonic())))[1]
        except subprocess.TimeoutExpired:
            clock(run).write_text(f"{earlier + time.monotonic() - begin}\n")
            if time.monotonic() >= deadline:
                os.killpg(process.pid, signal.SIGKILL)  # a checkpoint is whole or not there
                process.wait()
                raise SystemExit(f"{run.name}: stopped in time; the same command goes on from its checkpoint") from None
    if process.returncode:
        raise SystemExit(f"{run.name} failed: {(errors.strip().splitlines() or ['it said nothing'])[-1]}")


def clock(run: Run) -> Path:
    """The file that holds the seconds of a run, over all its parts where it was interrupted."""
    return run.executed.with_suffix(".seconds")


def seconds_before(run: Run) -> float:
    return float(clock(run).read_text()) if clock(run).exists() else 0.0


def seconds(run: Run) -> float:
    """Wall seconds of a finished run."""
    return seconds_before(run) or duration(run.executed)


def duration(executed: Path) -> float:
    return float(json.loads(executed.read_text())["metadata"]["papermill"]["duration"])


def git_commit() -> str:
    """The last commit that changed more than rows, with -dirty where the tree had changes beside rows."""
    ask = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    rest = ["--", ".", ":!data/results"]  # one notebook's rows may be committed while another's runs go on
    commit = ask(["git", "log", "-1", "--format=%h", "--abbrev=12", *rest]).stdout.strip()
    return commit + "-dirty" * bool(ask(["git", "status", "--porcelain", "--untracked-files=no", *rest]).stdout)


def check_unchanged(notebook: str, code: str, commit: str | None = None) -> None:
    """One sentence where the code or the commit is not what it was when the runs started."""
    if code_hash(notebook) != code or commit not in (None, git_commit()):
        what = "the code has" if code_hash(notebook) != code else "the commit has"
        raise SystemExit(f"{notebook}: {what} changed since its runs started, so no rows are written; start again")


def write(notebook: str, runs: Sequence[Run], rows: Sequence[results.Row], commit: str) -> None:
    """The file of a notebook: means over seeds, then the rows, and how they were made; the weights to be bundled."""
    check_unchanged(notebook, runs[0].code, commit)
    command = "make gpu" if notebook in GPU else "make results"
    meta = {"commit": commit, "command": command, "settings": {run.name: settings_hash(run) for run in runs}}
    meta["seconds"] = {run.name: round(seconds(run)) for run in runs}
    meta |= NOTES.get(notebook, {})
    path = (OUT / "dry" if runs[0].dry else ROOT / "data" / "results") / f"{notebook}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if notebook in BUNDLED:
        folder = OUT / "dry" if runs[0].dry else ROOT / "data" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        about = {"preset": rows[0].preset, "device": rows[0].device, "seconds": rows[0].seconds}
        names = [BUNDLED[notebook] + f"-{run.seed}" * (run.seed > 0) for run in runs]
        files = [bundle(finished_folder(run), name, folder, **about)[0] for run, name in zip(runs, names)]
        hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        if len(runs) == 1:
            meta |= {"checkpoint": files[0].name, "sha256": hashes[0]}
        else:
            meta["checkpoints"] = {file.name: sha256 for file, sha256 in zip(files, hashes)}
    results.save(path, results.with_means(rows), overwrite=True, **meta)
    print(f"wrote {path.relative_to(ROOT)}", flush=True)


def finished_folder(run: Run) -> Path:
    """Where the run that finished kept its checkpoints: the last of its folder and those beside it."""
    twin = re.compile(re.escape(run.folder.name) + r"(-(\d+))?")
    found = [(int(name[2] or 1), path) for path in run.folder.parent.iterdir() if (name := twin.fullmatch(path.name))]
    return max(found)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PLAN, nargs="+", metavar="NOTEBOOK", help="some of them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    parser.add_argument("--gpu", action="store_true", help="the runs that need a GPU in place of all others")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many; the next call goes on")
    parser.add_argument("--dry-run", action="store_true", help="preset smoke, nothing outside build/results")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    chosen = options.only or [name for name in PLAN if (name in GPU) == options.gpu]
    commit, plan = git_commit(), {notebook: planned(notebook, options.dry_run) for notebook in chosen}
    run = functools.partial(execute, deadline=time.monotonic() + 60 * options.minutes)
    for notebook, runs in plan.items():
        with ThreadPoolExecutor(options.jobs) as pool:
            rows = [row for found in pool.map(run, runs) for row in found]
        write(notebook, runs, rows, commit)


if __name__ == "__main__":
    main()
