"""A notebook's settings trained by real processes: torchrun with two on the CPU, next to one, a kill among them."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from ebmlib.run import launch, training
from ebmlib.run.training import load

with_accelerate = pytest.mark.skipif(
    find_spec("accelerate") is None, reason="needs accelerate: pip install 'ebmlib[launch]'"
)

TOLERANCE = 1e-5
CIFAR = ("drl_cifar", "-p", "dataset", "fashion_mnist", "-p", "iterations", "16")  # a checkpoint every fourth

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
# On a CPU, accelerate starts several processes only as for several GPUs; `device` then keeps them on the CPU.
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes")


@pytest.fixture
def start(root):
    """Starts `ebmlib.run.launch` on a notebook at smoke in some processes, and stops what is left of them."""
    started = []

    def launched(processes, folder, name, *options, launcher=TORCHRUN):
        before = [*launcher, str(processes)] * (processes > 1)
        notebook = root / "notebooks" / f"{name}.ipynb"
        command = [sys.executable, *before, "-m", "ebmlib.run.launch", notebook, "-p", "preset", "smoke"]
        command += ["-p", "device", "cpu", "-p", "run_dir", folder, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(map(str, command), cwd=root, env=environment, **pipes))
        return started[-1]

    yield launched
    for process in started:
        end(process)


def end(process):
    """Stop torchrun, which stops its processes: they are in sessions of their own."""
    if process.poll() is None:
        process.terminate()
    process.communicate()


def done(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out, err


def newest(folder):
    return max(folder.glob("step-*"))


def apart(one, two, kind="ema"):
    """The largest difference between the weights of two checkpoints. Spectral norm's vectors are no weights: they turn
    freely where singular values are close, with the last digit as with anything else.
    """
    (a, meta), (b, other) = load(one), load(two)
    assert meta["iteration"] == other["iteration"]
    nets = [(a[kind][name], b[kind][name]) for name in a[kind]]
    weights = [(x[name], y[name]) for x, y in nets for name in x if not name.endswith(("._u", "._v"))]
    return max(float((x.double() - y.double()).abs().max()) for x, y in weights)


@with_accelerate
@pytest.mark.slow
def test_two_processes_train_the_reservoir_notebook_as_one(start, tmp_path):
    done(start(1, tmp_path / "one", "improved_cd_toy"))
    out, _ = done(start(2, tmp_path / "two", "improved_cd_toy", launcher=ACCELERATE))
    one, two = newest(tmp_path / "one"), newest(tmp_path / "two")
    assert apart(one, two) < TOLERANCE
    assert apart(one, two, "net") < TOLERANCE
    pools = [load(path)[0]["state"][0]["x"] for path in (one, two)]
    assert torch.allclose(*pools, rtol=0, atol=TOLERANCE)
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert files[0] == files[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]  # a second writer takes two-2
    assert out.count("setting | paper's text") == 1  # one process prints
    assert f"Trained on 2 processes: {two}" in out


@with_accelerate
@pytest.mark.slow
def test_killed_among_two_and_resumed_by_one(start, tmp_path):
    done(start(1, tmp_path / "one", *CIFAR))
    killed = start(2, tmp_path / "two", *CIFAR)
    until = time.monotonic() + 300
    while not list((tmp_path / "two").glob("step-*")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(int((tmp_path / "two" / ".lock").read_text()), signal.SIGKILL)
    killed.communicate(timeout=300)
    assert killed.returncode != 0
    assert load(newest(tmp_path / "two"))[1]["iteration"] < 16, "the run was over before the kill; make it longer"
    done(start(1, tmp_path / "two", *CIFAR, "-p", "resume", "True"))
    one, two = newest(tmp_path / "one"), newest(tmp_path / "two")
    assert 0 < apart(one, two) < TOLERANCE  # 0: one and the same run
    (alone, _), (both, _) = load(one), load(two)
    assert all(torch.equal(*states) for states in zip(alone["generators"], both["generators"], strict=True))
    # Adam makes a step of noise where a gradient cancels (the biases here), so the losses say more than the weights.
    losses = torch.from_numpy(alone["history"]["loss"]), torch.from_numpy(both["history"]["loss"])
    assert torch.allclose(*losses, rtol=1e-3, atol=0)
    assert len(losses[0]) == 2  # iterations 1 and 10


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
    assert stopped(lambda: launch.main([toy, "-p", "device", "cuda:1"])).startswith("device = 'cuda:1': every process")
    monkeypatch.setitem(sys.modules, "accelerate", None)  # as if it were not installed
    assert stopped(lambda: launch.main([toy])) == "ebmlib.run.launch needs accelerate: pip install 'ebmlib[launch]'"


TRAINING = """
import torch
from ebmlib.run import training
net = torch.nn.Linear(1, 1)
options = {"net": net, "optimizer": torch.optim.SGD(net.parameters(), 0.1), "iterations": 2, "progress": False}
draws = training.Draws(lambda n, rng: torch.randn(n, 1, generator=rng), 4, training.seeded(0))
"""
FIT = "def step(x):\n    return net(x).mean(), {}\ntraining.fit(step, draws, run=folder, **options)"


def test_cells_run_until_the_first_training_that_has_a_run(tmp_path):
    fit, backend = training.fit, os.environ.get("MPLBACKEND")
    cells = [TRAINING, "folder = None", FIT, f"folder = training.open_run('n', {{}}, {str(tmp_path / 'run')!r})"]
    run = launch.trained([*cells, FIT, "raise AssertionError('too far')"], "n")
    assert load(run.checkpoints()[-1])[1]["iteration"] == 2
    run.close()
    training.open_run("n", {}, tmp_path / "run", resume=True).close()  # it is not finished: the notebook may go on
    assert stopped(lambda: launch.trained(cells, "n.ipynb")).startswith(
        "n.ipynb trains nothing that a checkpoint keeps"
    )
    assert training.fit is fit
    assert os.environ.get("MPLBACKEND") == backend, "whatever is started later would draw no figures"
