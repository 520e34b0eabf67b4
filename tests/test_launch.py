"""A notebook run by real processes: torchrun and accelerate with two on the CPU, a kill among them, one goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import nbformat
import pytest
import torch

from ebmlib.run import parallel
from ebmlib.run.training import load

with_accelerate = pytest.mark.skipif(find_spec("accelerate") is None, reason="needs accelerate")

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", "2")
# On a CPU, accelerate starts several processes only as for several GPUs; `device` then keeps them on the CPU.
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--no_python", "--num_processes", "2")

PARAMETERS = """
preset: str = "smoke"
device: str = "cpu"
run_dir: str = None
resume: bool = False
pause: float = 0.0
"""
TRAINING = """
import time
import torch
from ebmlib.run import training
from ebmlib.run.job import start
from ebmlib.settings.toys import MLToy

job = start(MLToy, {"preset": preset, "device": device, "run_dir": run_dir, "resume": resume})
torch.manual_seed(job.seed)
net = torch.nn.Linear(2, 1)
draws = training.Draws(lambda n, rng: torch.randn(n, 2, generator=rng), 4, job.rng)


def step(x, done):
    time.sleep(pause)
    return (net(x) - 1).square().mean(), {"rows": len(x)}


optimizer = torch.optim.Adam(net.parameters(), 0.1)
options = {"iterations": 16, "save_every": 4, "log_every": 4}
training.fit(step, draws, net=net, optimizer=optimizer, run=job.run, **options)
job.show([job.row("mean weight", net.weight.mean().item())])
"""


@pytest.fixture
def start(root, tmp_path):
    """Starts papermill on a small notebook, in two processes by a launcher, and stops what is left of them."""
    started, path = [], tmp_path / "small.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, TRAINING)]
    cells[0].metadata["tags"] = ["parameters"]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), path)

    def launched(launcher, *options):
        run = [sys.executable, "-m", "papermill", "small.ipynb", "out-$RANK.ipynb", "-p", "run_dir", "run", *options]
        command = [sys.executable, *launcher, "sh", "-c", " ".join(run)]
        environment = {"RANK": "0", **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = command if launcher else command[1:]
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


def newest(folder):
    return load(max(folder.glob("step-*")))


@with_accelerate
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_run_a_notebook(start, tmp_path, launcher):
    done(start(launcher))
    objects, meta = newest(tmp_path / "run")
    assert meta["iteration"] == 16
    assert objects["history"]["totals"]["rows"] == 16 * 2, "each has half of the batch"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is True
    names = ["out-0.ipynb", "out-1.ipynb", "run", "small.ipynb"]  # a second writer takes run-2
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@with_accelerate
@pytest.mark.slow
def test_killed_among_two_and_resumed_by_one(start, tmp_path):
    killed = start(TORCHRUN, "-p", "pause", "0.3")
    until = time.monotonic() + 300
    while not list((tmp_path / "run").glob("step-*")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(json.loads((tmp_path / "run" / "run.json").read_text())["process"], signal.SIGKILL)
    killed.communicate(timeout=300)
    assert killed.returncode != 0
    reached = newest(tmp_path / "run")[1]["iteration"]
    assert reached < 16, "the run was over before the kill; make it longer"
    done(start((), "-p", "resume", "True"))
    objects, meta = newest(tmp_path / "run")
    assert meta["iteration"] == 16
    assert objects["history"]["totals"]["rows"] == 2 * reached + 4 * (16 - reached)


def test_a_gpu_is_not_chosen_by_number_where_each_process_takes_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="device = 'cuda:1': every process takes a GPU of its own"):
        parallel.join(torch.device("cuda:1"))
