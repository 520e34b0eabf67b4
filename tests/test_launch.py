"""A notebook's settings trained by real processes: torchrun with two on the CPU, next to one, a kill among them."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ebmlib.training import load

pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'ebmlib[launch]'")

TOLERANCE = 1e-5
# A checkpoint every sixth iteration; a running mean that follows the weights, so that it has a difference to show.
CIFAR = ("drl_cifar", "-p", "dataset", "fashion_mnist", "-p", "iterations", "24", "-p", "ema", "0.5")


@pytest.fixture
def start(root):
    """Starts `ebmlib.launch` on a notebook at smoke in some processes; what is left at the end is killed with them."""
    started = []

    def launched(processes, folder, name, *options):
        before = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] * (processes > 1)
        notebook = root / "notebooks" / f"{name}.ipynb"
        command = [sys.executable, *before, "-m", "ebmlib.launch", notebook, "-p", "preset", "smoke"]
        command += ["-p", "device", "cpu", "-p", "run_dir", folder, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(map(str, command), cwd=root, env=environment, start_new_session=True, **pipes))
        return started[-1]

    yield launched
    for process in started:
        end(process)


def end(process):
    """Kill -9 for torchrun and its processes, all of them in the session that it leads."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def done(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out, err


def newest(folder):
    return max(folder.glob("step-*"))


def apart(one, two, kind="ema"):
    """The largest difference between the weights of two checkpoints."""
    (a, meta), (b, other) = load(one), load(two)
    assert meta["iteration"] == other["iteration"]
    nets = [(a[kind][name], b[kind][name]) for name in a[kind]]
    return max(float((x[name].double() - y[name].double()).abs().max()) for x, y in nets for name in x)


def test_two_processes_train_the_reservoir_notebook_as_one(start, tmp_path):
    done(start(1, tmp_path / "one", "improved_cd_toy"))
    out, _ = done(start(2, tmp_path / "two", "improved_cd_toy"))
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


def test_killed_among_two_and_resumed_by_one(start, tmp_path):
    done(start(1, tmp_path / "one", *CIFAR))
    killed = start(2, tmp_path / "two", *CIFAR)
    until = time.monotonic() + 300
    while not list((tmp_path / "two").glob("step-*")):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    end(killed)
    assert load(newest(tmp_path / "two"))[1]["iteration"] < 24, "the run was over before the kill; make it longer"
    done(start(1, tmp_path / "two", *CIFAR, "-p", "resume", "True"))
    one, two = newest(tmp_path / "one"), newest(tmp_path / "two")
    assert 0 < apart(one, two) < TOLERANCE  # not one and the same run
    before, after = (load(path)[0]["ema"]["net"] for path in sorted((tmp_path / "one").glob("step-*")))
    moved = max(float((after[name] - value).abs().max()) for name, value in before.items())
    assert moved > 3 * TOLERANCE  # within the last quarter


def test_a_batch_that_does_not_divide_is_one_sentence(start, tmp_path):
    process = start(2, tmp_path / "odd", "drl_toy", "-p", "batch", "7")
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "ValueError: 2 processes cannot share a batch of 7: choose one that they divide" in err
    assert not (tmp_path / "odd").exists()
