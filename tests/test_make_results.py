"""`make results`: seeds, interrupted and finished runs, what is written and what is refused; papermill is a script."""

import hashlib
import importlib
import itertools
import json
import shutil
import subprocess
import sys
import time

import pytest

from ebmlib.page import results

STAND_IN = """
import json, os, sys, time
from dataclasses import asdict
from pathlib import Path

import torch

from ebmlib.page.results import MIME, Row
from ebmlib.run.folder import open_run

source, new = map(Path, sys.argv[1:3])
given = json.loads(sys.argv[sys.argv.index("-y") + 1])
with open("calls", "a") as file:
    file.write(json.dumps([source.stem, given]) + "\\n")
run = open_run(source.stem, {"seed": given["seed"]}, given["run_dir"], given["resume"])
run.save(1, {"x": torch.zeros(1)}, {})
ends = Path("ends").read_text()
if ends == "interrupted":
    sys.exit("killed")
if ends == "slow":
    time.sleep(600)
run.finish()
if ends == "late":
    sys.exit("killed")
if ends == "edit":
    Path("ebmlib/core.py").write_text("changed = True\\n")
about = {"seconds": 10.0, "dataset": given.get("dataset", "")}
about["protocol"] = " ".join([source.stem, *(str(given.get(key, "")) for key in ("T", "K", "objective", "iterations"))])
row = Row("KL", 1.0 + given["seed"], seed=given["seed"], preset=given["preset"], **about)
data = {MIME: [asdict(row)]}
cell = {"cell_type": "code", "metadata": {}, "source": "", "outputs": [{"output_type": "x", "data": data}]}
new.write_text(json.dumps({"cells": [cell], "metadata": {}}))
"""
CODE = {
    "ebmlib/core.py": '"""Says."""\n',
    "ebmlib/unused.py": "",
    "ebmlib/page/plots.py": "from ebmlib import unused\n",
    "data/set.txt": "data",
    "book/notebooks.toml": 'partition_toy.files = ["data/set.txt"]\ndrl_cifar.files = ["data/checkpoints/drl_*"]\n',
}
CELL = {"cell_type": "code", "metadata": {}, "source": ["from ebmlib import core\n", "from ebmlib.page import plots"]}
PROSE = {"cell_type": "markdown", "metadata": {}, "source": "# Title"}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The script on a small checkout of its own, with a stand-in for papermill that does as the file `ends` says."""
    module = importlib.import_module("results")
    for name, text in (CODE | {"stand_in.py": STAND_IN, "ends": "well"}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "OUT", tmp_path / "build" / "results")
    for file in module.PLAN:
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        module.Run(file, (), 0).source.write_text(json.dumps({"cells": [PROSE, CELL], "metadata": {}}))
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "ebmlib", "notebooks", "book")
    git(tmp_path, "commit", "-q", "-m", "Begin")
    # The small checkout's ebmlib is no library, so the script's folder must not be on the path.
    monkeypatch.setattr(module.runner, "PAPERMILL", (sys.executable, "-P", str(tmp_path / "stand_in.py")))
    return module


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run(bench, monkeypatch, *files, ends="well", options=()):
    (bench.ROOT / "ends").write_text(ends)
    monkeypatch.setattr(sys, "argv", ["results.py", *(["--only", *files] if files else []), *options])
    bench.main()


def calls(bench):
    return [json.loads(line) for line in (bench.ROOT / "calls").read_text().splitlines()]


def written(bench, file):
    return results.load(bench.ROOT / "data" / "results" / f"{file}.json")


def test_every_seed_of_the_plan_runs_once_and_means_are_there_only_for_several(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "OTHERS", 0.0)
    run(bench, monkeypatch, "self_adversarial_toy", "partition_toy")
    found = [(name, given.get("dataset"), given["seed"]) for name, given in calls(bench)]
    wanted = itertools.product(["self_adversarial_toy"], ("swiss-roll", "9-gaussians"), range(3))
    assert found == [*wanted, ("partition_toy", None, 0)]
    assert {(given["preset"], given["resume"]) for _, given in calls(bench)} == {("paper", False)}
    assert len({given["run_dir"] for _, given in calls(bench)}) == 7
    assert capsys.readouterr().out.count("more than the 0 that a seed may take") == 7
    rows, meta = written(bench, "self_adversarial_toy")
    assert [(row.value, row.seconds) for row in rows[:2]] == [(2.0, 10.0)] * 2  # seconds of a seed, not of all
    assert [row.seed for row in rows] == [[0, 1, 2], [0, 1, 2], 0, 1, 2, 0, 1, 2]
    assert meta["commit"] == git(bench.ROOT, "rev-parse", "--short=12", "HEAD")
    assert [row.seed for row in written(bench, "partition_toy")[0]] == [0]
    run(bench, monkeypatch, "partition_toy")
    assert len(calls(bench)) == 7, "a finished run is not run again"


def edit(bench, name, text):
    (bench.ROOT / name).parent.mkdir(parents=True, exist_ok=True)
    (bench.ROOT / name).write_text(text)


KEPT = {
    "a docstring": ("ebmlib/core.py", '"""Says more."""\n'),
    "a plot": ("ebmlib/page/plots.py", "from ebmlib import unused\nwidth = 8\n"),
    "what only a plot imports": ("ebmlib/unused.py", "x = 1\n"),
    "prose": ("notebooks/partition_toy.ipynb", json.dumps({"cells": [PROSE | {"source": "# Other"}, CELL]})),
    "rows": ("data/results/partition_toy.json", "{}"),
}
TELLING = {
    "the library": ("ebmlib/core.py", "x = 1\n"),
    "the notebook": ("notebooks/partition_toy.ipynb", json.dumps({"cells": [CELL | {"source": "import ebmlib.core"}]})),
    "data": ("data/set.txt", "other data"),
}


@pytest.mark.parametrize("what", [*KEPT, *TELLING])
def test_a_run_is_made_again_where_its_rows_may_change_and_only_then(bench, what):
    (before,) = bench.planned("partition_toy")
    edit(bench, *(KEPT | TELLING)[what])
    assert (bench.key_of(before) == before.key) == (what in KEPT)


def test_the_weights_that_a_run_writes_do_not_make_it_run_again(bench):
    (before,) = bench.planned("drl_cifar")
    edit(bench, "data/checkpoints/drl_fashion_mnist.safetensors", "weights")
    edit(bench, "data/checkpoints/drl_cifar_fashion_mnist_gpu.safetensors", "weights")
    assert bench.key_of(before) == before.key
    edit(bench, "data/checkpoints/drl_other.safetensors", "weights")
    assert bench.key_of(before) != before.key


@pytest.mark.slow
def test_one_notebook_may_have_a_second_file_with_a_title_and_a_note(bench, monkeypatch):
    run(bench, monkeypatch, "drl_cifar_ablations")
    rows, meta = written(bench, "drl_cifar_ablations")
    assert {name for name, _ in calls(bench)} == {"drl_cifar"}
    assert [(given["T"], given["K"]) for _, given in calls(bench)].count((6, 30)) == 2
    assert {given["preset"] for _, given in calls(bench)} == {"cpu"}
    single = [row for row in rows if isinstance(row.seed, int)]
    assert len(single) == len(calls(bench)) == 2 * len(set(meta["settings"].values())) == 18
    assert len(rows) == 27, "a mean over the two trainings of each setting"
    spent = [max(given["K"], 1) * given["iterations"] for _, given in calls(bench) if given["T"] < 1000]
    assert sorted(spent) == sorted(2 * [10_000, 30_000, 30_000, 30_000, 30_060, 50_000, 180_000])
    assert meta["title"]
    assert "Table 2" in meta["note"]


@pytest.fixture
def bundled(bench, monkeypatch):
    """The folders of weights that were to be bundled, and the files that they would become."""
    found = []

    def bundle(folder, name, to, **about):
        found.append((folder, to / name))
        (to / name).write_text(json.dumps(about))
        return to / name, {}

    monkeypatch.setattr(bench, "bundle", bundle)
    return found


def test_the_rows_of_a_bundled_net_name_its_file(bench, monkeypatch, bundled):
    """Those of `drl_cifar` are at preset cpu."""
    run(bench, monkeypatch, "drl_cifar")
    asked = [(name, given["preset"], given["dataset"]) for name, given in calls(bench)]
    assert asked == [("drl_cifar", "cpu", "fashion_mnist")]
    ((_, path),) = bundled
    rows, meta = written(bench, "drl_cifar")
    assert path == bench.ROOT / "data" / "checkpoints" / "drl_fashion_mnist"
    assert meta["checkpoint"] == path.name
    assert meta["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(path.read_text()) == {"preset": "cpu", "device": rows[0].device, "seconds": 10.0}


@pytest.mark.slow
def test_the_runs_of_a_gpu_ask_for_one_and_their_dry_run_does_not(bench, monkeypatch, bundled):
    run(bench, monkeypatch, options=["--gpu"])
    asked = [name for name, _ in calls(bench)]
    assert asked == ["drl_cifar", "drl_long_run", *["self_adversarial_images"] * 3]
    assert {(given["preset"], given["device"]) for _, given in calls(bench)} == {("gpu", "cuda")}
    rows, meta = written(bench, "self_adversarial_images_gpu")
    assert [row.seed for row in rows] == [[0, 1, 2], 0, 1, 2]
    assert meta["command"] == "make gpu"
    weights = [path.name for _, path in bundled]
    assert weights[:2] == ["drl_cifar_fashion_mnist_gpu", "drl_long_run_fashion_mnist_gpu"]
    assert weights[2:] == [f"self_adversarial_images_fashion_mnist_gpu{seed}" for seed in ("", "-1", "-2")]
    assert list(meta["checkpoints"]) == weights[2:]
    assert len({folder for folder, _ in bundled}) == 5
    assert {path.parent for _, path in bundled} == {bench.ROOT / "data" / "checkpoints"}
    shutil.rmtree(bench.ROOT / "data" / "results")
    run(bench, monkeypatch, options=["--gpu", "--dry-run"])
    dry = calls(bench)[len(asked) :]
    assert [(given["preset"], "device" in given) for _, given in dry] == [("smoke", False)] * 5
    assert not (bench.ROOT / "data" / "results").exists()
    assert {path.parent for _, path in bundled[5:]} == {bench.OUT / "dry"}


def test_without_the_switch_no_run_needs_a_gpu(bench, monkeypatch, bundled):
    monkeypatch.setattr(bench, "PLAN", {name: bench.PLAN[name] for name in ("drl_cifar_gpu", "partition_toy")})
    run(bench, monkeypatch, options=["--dry-run"])
    assert [(name, given["preset"]) for name, given in calls(bench)] == [("partition_toy", "smoke")]


def test_long_runs_are_a_queue_that_stops_in_time_and_goes_on(bench, monkeypatch, bundled, tmp_path, capsys):
    """With their folders outside the checkout."""
    entry = {"notebook": "drl_cifar", "preset": "long", "seeds": [0], "bundled": "weights"}
    plan = {name: entry for name in ("first", "second")}
    monkeypatch.setattr(bench, "PLAN", plan | {"partition_toy": bench.PLAN["partition_toy"]})
    monkeypatch.setattr(bench, "LONG", ["first", "second"])
    away, begin = tmp_path / "away", time.monotonic()
    with pytest.raises(SystemExit, match="first-0: stopped in time"):
        run(bench, monkeypatch, ends="slow", options=["--long", "--minutes", "0.3", "--runs", str(away)])
    assert time.monotonic() - begin < 60
    said = capsys.readouterr().out
    assert "left: first-0, 0 minutes so far" in said
    assert "left: second-0" in said
    run(bench, monkeypatch, "first", options=["--runs", str(away)])
    assert [given["resume"] for _, given in calls(bench)] == [False, True]
    assert len(list(away.glob("*.ipynb"))) == 1
    assert not (bench.ROOT / "build" / "results").exists()
    assert len(written(bench, "first")[0]) == 1
    assert [folder.is_dir() for folder, _ in bundled] == [True]


def test_the_hash_of_the_settings_knows_the_data_set(bench):
    runs = bench.planned("self_adversarial_toy")
    assert len({run.parameters for run in runs}) == len({bench.settings_hash(run) for run in runs}) == 2
    assert len({run.key for run in runs}) == 2


def test_an_interrupted_run_goes_on_and_its_time_is_counted(bench, monkeypatch):
    with pytest.raises(SystemExit, match=r"partition_toy-0 failed .*killed"):
        run(bench, monkeypatch, "partition_toy", ends="interrupted")
    (planned,) = bench.planned("partition_toy")
    planned.clock.write_text("900\n")  # as a run of that length would have left it
    run(bench, monkeypatch, "partition_toy")
    assert [given["resume"] for _, given in calls(bench)] == [False, True]
    assert 900 < written(bench, "partition_toy")[1]["seconds"]["partition_toy-0"] < 960
    assert [path.name for path in planned.folder.parent.iterdir()] == [planned.folder.name]


def test_a_run_killed_after_its_training_starts_anew_beside_it(bench, monkeypatch, capsys):
    """Its folder is marked as finished, so that it cannot be resumed, and no notebook holds its rows."""
    with pytest.raises(SystemExit, match=r"partition_toy-0 failed .*killed"):
        run(bench, monkeypatch, "partition_toy", ends="late")
    (planned,) = bench.planned("partition_toy")
    before = (planned.folder / "run.json").read_text()
    with pytest.raises(SystemExit, match="killed"):
        run(bench, monkeypatch, "partition_toy", ends="interrupted")
    said = capsys.readouterr().out
    assert f"{planned.folder.name} is finished, its notebook is not; starting anew beside it" in said
    run(bench, monkeypatch, "partition_toy")
    assert [given["resume"] for _, given in calls(bench)] == [False, False, True]
    names = sorted(path.name for path in planned.folder.parent.iterdir())
    assert names == [planned.folder.name, f"{planned.folder.name}-2"]
    assert (planned.folder / "run.json").read_text() == before
    assert len(written(bench, "partition_toy")[0]) == 1


def test_rows_of_changed_code_or_of_another_commit_are_not_written(bench, monkeypatch):
    with pytest.raises(SystemExit, match="partition_toy: the code or data have changed since its runs started"):
        run(bench, monkeypatch, "partition_toy", "ml_toy", ends="edit")
    assert not (bench.ROOT / "data" / "results").exists()
    assert [name for name, _ in calls(bench)] == ["partition_toy"], "the next one would run other code"
    (planned,) = bench.planned("partition_toy")
    bench.check_unchanged(planned, bench.git_commit(bench.ROOT))
    with pytest.raises(SystemExit, match="the commit has changed since its runs started"):
        bench.check_unchanged(planned, "another")
