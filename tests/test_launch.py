"""A notebook trained by real processes: torchrun and accelerate with two on the CPU, a kill among them, one goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from ebmlib.run import launch, training
from ebmlib.run.training import load

with_accelerate = pytest.mark.skipif(
    find_spec("accelerate") is None, reason="needs accelerate: pip install 'ebmlib[launch]'"
)

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
# On a CPU, accelerate starts several processes only as for several GPUs; `device` then keeps them on the CPU.
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes")

PARAMETERS = """
device: str = None
run_dir: str = None
resume: bool = False
iterations: int = 16
pause: float = 0.0
"""
TRAINING = """
import time
import torch
from ebmlib.run import training

run = training.open_run("n", {}, run_dir, resume)
torch.manual_seed(0)
net, rng = torch.nn.Linear(2, 1), training.seeded(0)
draws = training.Draws(lambda n, rng: torch.randn(n, 2, generator=rng), 4, rng)


def step(x, done):
    time.sleep(pause)
    return (net(x) - 1).square().mean(), {"rows": len(x)}


print("a cell prints")
optimizer = torch.optim.Adam(net.parameters(), 0.1)
options = {"iterations": iterations, "save_every": 4, "log_every": 4}
training.fit(step, draws, net=net, optimizer=optimizer, run=run, **options)
"""


@pytest.fixture
def start(root, tmp_path):
    """Starts `ebmlib.run.launch` on a small notebook in some processes, and stops what is left of them."""
    started, path = [], tmp_path / "small.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, TRAINING, "raise AssertionError('too far')")]
    cells[0].metadata["tags"] = ["parameters"]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), path)

    def launched(processes, folder, *options, launcher=TORCHRUN):
        before = [*launcher, str(processes)] * (processes > 1)
        command = [sys.executable, *before, "-m", "ebmlib.run.launch", path, "-p", "device", "cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = map(str, [*command, "-p", "run_dir", folder, *options])
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes))
        return started[-1]

    yield launched
    for process in started:  # torchrun stops its processes: they are in sessions of their own
        if process.poll() is None:
            process.terminate()
        process.communicate()


def done(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


def newest(folder):
    return max(folder.glob("step-*"))


@with_accelerate
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_train_a_notebook(start, tmp_path, launcher):
    out = done(start(2, tmp_path / "two", launcher=launcher))
    objects, meta = load(newest(tmp_path / "two"))
    assert meta["iteration"] == 16
    assert objects["history"]["totals"]["rows"] == 16 * 2, "each has half of the batch"
    assert out.count("a cell prints") == 1
    assert f"Trained on 2 processes: {newest(tmp_path / 'two')}" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.ipynb", "two"]  # a second writer takes two-2


@with_accelerate
@pytest.mark.slow
def test_killed_among_two_and_resumed_by_one(start, tmp_path):
    killed = start(2, tmp_path / "two", "-p", "pause", "0.3")
    until = time.monotonic() + 300
    while not list((tmp_path / "two").glob("step-*")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(json.loads((tmp_path / "two" / "run.json").read_text())["process"], signal.SIGKILL)
    killed.communicate(timeout=300)
    assert killed.returncode != 0
    reached = load(newest(tmp_path / "two"))[1]["iteration"]
    assert reached < 16, "the run was over before the kill; make it longer"
    done(start(1, tmp_path / "two", "-p", "resume", "True"))
    objects, meta = load(newest(tmp_path / "two"))
    assert meta["iteration"] == 16
    assert objects["history"]["totals"]["rows"] == 2 * reached + 4 * (16 - reached)


def test_the_cells_are_papermills(root):
    path = root / "notebooks" / "drl_cifar.ipynb"
    options = ["-p", "T", "3", "-p", "dataset", "None", "-r", "run_dir", "7", "-y", "multipliers: [1, 2]"]
    cells, about = launch.prepared([str(path), *options])
    given = {"multipliers": [1, 2], "T": 3, "dataset": None, "run_dir": "7"}
    wanted = parameterize_notebook(load_notebook_node(str(path)), given)
    assert cells == [cell.source for cell in wanted.cells if cell.cell_type == "code"]
    assert about["parameters"] == given


def stopped(call):
    with pytest.raises(SystemExit) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mistakes_are_one_sentence(root, monkeypatch):
    toy = str(root / "notebooks" / "langevin_toy.ipynb")
    assert "nowhere.ipynb" in stopped(lambda: launch.main(["nowhere.ipynb"]))
    assert "--paramters" in stopped(lambda: launch.main([toy, "--paramters", "T", "6"]))
    assert launch.prepared([toy, "-p", "K"])[1]["parameters"] == {"K": "--"}  # which the notebook refuses
    assert "every process takes a GPU" in stopped(lambda: launch.main([toy, "-p", "device", "cuda:1"]))
    monkeypatch.setitem(sys.modules, "accelerate", None)  # as if it were not installed
    assert "needs accelerate" in stopped(lambda: launch.main([toy]))


CELLS = """
import torch
from ebmlib.run import training

def trained(folder):
    net = torch.nn.Linear(1, 1)
    options = {"net": net, "optimizer": torch.optim.SGD(net.parameters(), 0.1), "iterations": 2, "progress": False}
    draws = training.Draws(lambda n, rng: torch.randn(n, 1, generator=rng), 4, training.seeded(0))
    return training.fit(lambda x, done: (net(x).mean(), {}), draws, run=folder, **options).loss
"""


def test_cells_run_until_the_first_training_that_has_a_run(tmp_path):
    fit, backend = training.fit, os.environ.get("MPLBACKEND")
    cells = [CELLS, "trained(None)", f"folder = training.open_run('n', {{}}, {str(tmp_path / 'run')!r})"]
    run = launch.trained([*cells, "trained(folder)", "raise AssertionError('too far')"], "n")
    assert load(run.checkpoints()[-1])[1]["iteration"] == 2
    run.close()
    training.open_run("n", {}, tmp_path / "run", resume=True).close()  # it is not finished: the notebook may go on
    assert "trains nothing" in stopped(lambda: launch.trained(cells, "n.ipynb"))
    assert training.fit is fit
    assert os.environ.get("MPLBACKEND") == backend, "whatever is started later would draw no figures"


def test_each_launch_trains_the_next_stage(tmp_path):
    stages = [f"folder.once({name!r}, trained)" for name in ("first", "second")]
    for resume, name in ((False, "first"), (True, "second")):
        cells = [CELLS, f"folder = training.open_run('n', {{}}, {str(tmp_path / 'run')!r}, {resume})", *stages]
        run = launch.trained(cells, "n")
        assert run.folder.name == name
        run.close()
    assert (tmp_path / "run" / "first" / "result.safetensors").exists()
