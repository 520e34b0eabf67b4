"""Training: what is resumed is what would have been, what is damaged is refused, and no run overwrites another.

The small run below has every kind of state at once: spectral norm, EMA, warm-up, a chain with its own generator,
torch's global generator, a transform, and a reservoir. As a script, this file is the process that gets killed.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ebmlib import core
from ebmlib.core import evaluating
from ebmlib.objectives import contrastive, denoising_score_matching
from ebmlib.run import training
from ebmlib.run.training import Batches, Diverged, Draws, History, fit, load, load_module, open_run, save, seeded
from ebmlib.samplers import langevin, ula

KEY = {"a": 1, "widths": [16, 16]}


class Reservoir:
    """State that lives outside the nets, as a replay buffer does."""

    def __init__(self):
        self.rows = torch.zeros(20, 2)

    def state_dict(self):
        return {"rows": self.rows}

    def load_state_dict(self, state):
        self.rows = state["rows"].clone()


def small_net(width=16, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(spectral_norm(nn.Linear(2, width)), nn.SiLU(), nn.Linear(width, 1))


def train(run, iterations=60, save_every=7, at=None, width=16, device="cpu", **options):
    """A short contrastive run; `at(iteration, loss)` may change the loss, kill the process or interrupt it."""
    net = small_net(width).to(device)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    data = torch.randn(50, 2, generator=seeded(5))
    rng, chain, reservoir, ema = seeded(6), seeded(7, device), Reservoir(), training.ema(net, 0.9)
    batches = Batches(data, 16, rng, lambda x, r: x + 0.1 * torch.randn(x.shape, generator=r).to(x.device), device)
    torch.manual_seed(8)
    done = [int(path.stem[5:]) for path in run.checkpoints()[-1:]] if run else []
    count, rates = (done or [0])[0], []

    def step(x, done):
        nonlocal count
        count += 1
        rates.append(optimizer.param_groups[0]["lr"])
        rows = torch.randint(20, (16,))  # from the global generator
        y = reservoir.rows[rows].to(device)
        for _ in range(3):
            g = torch.autograd.grad(net(y.requires_grad_()).sum(), y)[0]
            y = (y - 0.1 * g + 0.3 * torch.randn(y.shape, generator=chain, device=device)).detach()
        reservoir.rows[rows] = y.cpu()
        gap = net(x).mean() - net(y).mean()
        loss = gap + 0.1 * net(x).square().mean()
        loss = loss if at is None else at(count, loss)
        return loss, {"gap": gap, "level": torch.stack([gap, 2 * gap])}

    options = {"warmup": 20, "clip_norm": 1.0, "log_every": 5, "progress": False, "ema": ema, **options}
    parts = {"net": net, "optimizer": optimizer, "generators": [chain], "state": [reservoir]}
    history = fit(step, batches, **parts, iterations=iterations, run=run, save_every=save_every, **options)
    end = [*net.state_dict().values(), *ema.module.state_dict().values(), reservoir.rows, torch.rand(3)]
    end += [ema.n_averaged, next(batches), torch.rand(3, generator=rng), torch.rand(3, generator=chain, device=device)]
    end += [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    end += [torch.from_numpy(history[name]) for name in history.names()]
    return [value.cpu().clone() for value in end], history, rates


def sgd(step, net, batches=None, rate=0.1, **options):
    """The history of a training by plain gradient descent; normal batches of four points if none are given."""
    batches = batches or Draws(lambda n, rng: torch.randn(n, 2, generator=rng), 4, seeded(0))
    weights = [p for part in (net.values() if isinstance(net, dict) else [net]) for p in part.parameters()]
    return fit(step, batches, net=net, optimizer=torch.optim.SGD(weights, rate), progress=False, **options)


def same(one, two):
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def folders(root):
    """Every file and folder below `root`."""
    return sorted(str(path.relative_to(root)) for path in Path(root).rglob("*"))


@contextlib.contextmanager
def refused(kind, match=None, names=""):
    """Within: an error of this kind, in one line that names a file."""
    with pytest.raises(kind, match=match) as error:
        yield error
    assert "\n" not in str(error.value)
    assert str(names) in str(error.value)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def child():
    """Starts this file as a script and ends what is left of it."""
    started = []

    def start(folder, action, *rest):
        root = Path(__file__).resolve().parents[1]
        env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(folder), action, *map(str, rest)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


# Resume --------------------------------------------------------------------------------------------------------------


ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.parametrize(
    ("stop", "device"), [*((stop, "cpu") for stop in (7, 21, 28, 56)), pytest.param(21, "cuda", marks=ON_CUDA)]
)
def test_a_run_that_goes_on_from_a_checkpoint_is_bit_identical(tmp_path, stop, device):
    options = {"device": device, "deterministic": device == "cuda"}
    whole, history, rates = train(open_run("n", KEY, tmp_path / "whole"), **options)
    with open_run("n", KEY, tmp_path / "half") as first:
        train(first, iterations=stop, **options)
    halves, resumed, later = train(open_run("n", KEY, tmp_path / "half", resume=True), **options)
    assert same(whole, halves)
    assert rates[stop:] == later
    np.testing.assert_array_equal(history.step, [1, *range(5, 61, 5)])
    np.testing.assert_array_equal(resumed.step, history.step)
    assert (tmp_path / "half/log.csv").read_text() == (tmp_path / "whole/log.csv").read_text()


def test_resume_is_not_vacuous(tmp_path):
    """The same two halves with one generator left out differ, so the comparison above can fail."""
    whole, *_ = train(open_run("n", KEY, tmp_path / "whole"))
    with open_run("n", KEY, tmp_path / "half") as first:
        train(first, iterations=21)
    path = first.checkpoints()[-1]
    objects, meta = load(path)
    other_chain = {"generators": [seeded(99).get_state(), *objects["generators"][1:]]}
    for damage in (other_chain, {"batches": objects["batches"] | {"position": 0}}):
        save(path, objects | damage, meta)
        with open_run("n", KEY, tmp_path / "half", resume=True) as run:
            other, *_ = train(run, save_every=1000, iterations=59)  # writes step 59 only
        assert not same(whole[:5], other[:5])
        (tmp_path / "half/step-00000059.safetensors").unlink()
    save(path, objects, meta)
    assert same(whole, train(open_run("n", KEY, tmp_path / "half", resume=True))[0])


def test_resume_after_kill_9(tmp_path, child):
    """At seeded moments after the first checkpoint; checkpoints come so often that kills fall into writes."""
    pick = random.Random(11)
    waits = [pick.uniform(0.0, 0.25) for _ in range(2)]
    iterations, width = 300 + int(1000 * sum(waits)), 400  # the child makes fewer than 1000 a second
    whole, *_ = train(None, iterations, width=width)
    folder, landed = tmp_path / "run", 0
    for number, wait in enumerate(waits):
        process = child(folder, "train", iterations, width, int(number > 0))
        assert process.stdout.readline() == "first checkpoint\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        landed += process.wait() == -signal.SIGKILL
    assert landed == len(waits), "the run was over before a kill; make it longer"
    run = open_run("n", KEY, folder, resume=True)
    assert not list(folder.glob(".*.tmp"))
    for path in run.checkpoints():
        load(path)
    assert same(whole, train(run, iterations, save_every=3, width=width)[0])
    assert folders(tmp_path)[0] == "run"
    assert not (tmp_path / "run-2").exists()


def test_a_kill_between_the_last_checkpoint_and_its_log_leaves_no_old_log(tmp_path):
    with open_run("n", KEY, tmp_path / "run") as run:
        train(run)
    log = tmp_path / "run" / "log.csv"
    whole = log.read_text()
    log.write_text(whole[: len(whole) // 2])
    train(open_run("n", KEY, tmp_path / "run", resume=True))
    assert log.read_text() == whole


def test_ctrl_c_saves_the_iteration_and_the_same_process_goes_on(tmp_path):
    whole, *_ = train(None)

    def interrupt(iteration, loss):
        if iteration == 33:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    before = signal.getsignal(signal.SIGINT)
    run = open_run("n", KEY, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(run, save_every=1000, at=interrupt)
    assert [path.name for path in run.checkpoints()] == ["step-00000033.safetensors"]
    assert signal.getsignal(signal.SIGINT) is before
    again = open_run("n", KEY, tmp_path / "run", resume=True)  # `run` is still there, as in a notebook
    assert same(whole, train(again)[0])


def test_memory_that_does_not_suffice_says_what_to_lower(tmp_path):
    def hungry(iteration, loss):
        return loss if iteration < 10 else loss + torch.empty(2**58)[0]

    run = open_run("n", KEY, tmp_path / "run")
    with refused(training.OutOfMemory) as error:
        train(run, at=hungry)
    good = tmp_path / "run" / "step-00000007.safetensors"
    said = "out of memory at iteration 10: lower the batch size (now 16) first, then the width of the net; "
    assert str(error.value) == f"{said}the last good checkpoint is {good} (iteration 7)"
    assert error.value.checkpoint == good
    whole, *_ = train(None)
    assert same(whole, train(open_run("n", KEY, tmp_path / "run", resume=True))[0])


def test_tensorboard_has_every_logged_row_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with open_run("n", KEY, tmp_path / "run") as first:
        train(first, iterations=21)
    _, history, _ = train(open_run("n", KEY, tmp_path / "run", resume=True))
    board = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert sorted(board.Tags()["scalars"]) == ["gap", "level_0", "level_1", "loss"]
    for tag, values in (("loss", history.loss), ("level_1", history["level"][:, 1])):
        events = board.Scalars(tag)
        assert [event.step for event in events] == history.step.tolist()
        np.testing.assert_allclose([event.value for event in events], values, rtol=1e-6)


def test_a_disk_that_fills_under_tensorboard_costs_its_scalars_alone(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "flush", full)
    run = open_run("n", KEY, tmp_path / "run")
    with pytest.warns(UserWarning, match="no TensorBoard scalars after"):
        train(run, iterations=21)
    assert run.checkpoints()[-1].stem == "step-00000021"
    run.close()
    open_run("n", KEY, tmp_path / "run", resume=True).close()


@pytest.mark.parametrize("wanted", [False, True])
def test_what_repeats_bit_for_bit_and_what_is_fastest_hold_within_a_training_alone(wanted):
    switches = lambda: (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    before, seen = switches(), set()
    train(None, iterations=2, deterministic=wanted, at=lambda _, loss: seen.add(switches()) or loss)
    assert seen == {(wanted, not wanted)}
    assert switches() == before


def test_seconds_and_sums_add_up_over_resumes(tmp_path):
    def go(run, iterations):
        net = small_net()

        def step(x, done):
            time.sleep(0.02)
            sum(range(100_000))  # milliseconds of CPU time
            return net(x).square().mean(), {"work": 10**8 + 1, "probe": 0.5} if done < 0.45 else {"work": 1}

        return sgd(step, net, iterations=iterations, run=run, log_every=4, clock=True, save_every=5)

    whole, unit = go(None, 20), 10**8 + 1
    assert whole.total("work") == 9 * unit + 11
    assert whole.total("probe") == 4.5
    assert whole["work"].tolist() == [unit, 4 * unit, 8 * unit, 9 * unit + 3, 9 * unit + 7, 9 * unit + 11]
    assert np.isnan(whole["probe"][3:]).all()
    assert 0 < whole["cpu_seconds"][0] < whole["cpu_seconds"][-1] <= whole.total("cpu_seconds")
    with open_run("n", KEY, tmp_path / "run") as run:
        first = go(run, 10)
    began = time.perf_counter()
    with open_run("n", KEY, tmp_path / "run", resume=True) as run:
        second = go(run, 20)
    assert second.total("work") == first.total("work") + 10
    assert second["work"][:3].tolist() == first["work"].tolist()
    assert second.total("cpu_seconds") > first.total("cpu_seconds")
    assert first.seconds >= 10 * 0.02
    assert first.seconds + 10 * 0.02 <= second.seconds <= first.seconds + time.perf_counter() - began
    with pytest.raises(KeyError, match="no stat named 'loss' is a plain number"):
        whole.total("loss")


def test_a_checkpoint_of_another_net_or_run_is_not_resumed(tmp_path):
    with open_run("n", KEY, tmp_path / "run") as run:
        train(run, iterations=7)
    again = open_run("n", KEY, tmp_path / "run", resume=True)
    with refused(ValueError, r"of another net: its 0\.bias has shape \(16,\), not \(8,\)"):
        train(again, width=8)
    with pytest.raises(ValueError, match="1 of kind ema, here are 0"):
        train(open_run("n", KEY, tmp_path / "run", resume=True), ema=None)
    with pytest.raises(ValueError, match=r"its mean has decay 0\.9, not 0\.5"):
        train(open_run("n", KEY, tmp_path / "run", resume=True), ema=training.ema(small_net(), 0.5))


def sgd_of(rows, batch_size=4, rate=0.1, kind=torch.optim.SGD, **options):
    """A function of (run, iterations) that trains on these rows."""

    def go(run, iterations=20):
        net = small_net()
        batches = Batches(rows, batch_size, seeded(0))
        step = lambda x, done: (net(x).square().mean(), {})
        parts = {"net": net, "optimizer": kind(net.parameters(), rate)}
        return fit(step, batches, **parts, iterations=iterations, run=run, progress=False, **options)

    return go


OTHER = [  # what differs where a run goes on, and what the sentence must say
    ({"rate": 0.2}, r"lr = 0\.1, not 0\.2"),
    ({"kind": torch.optim.Adam}, "optimizer = 'SGD', not 'Adam'"),
    ({"kind": lambda weights, rate: torch.optim.SGD(weights, rate, momentum=0.9)}, r"momentum = 0, not 0\.9"),
    ({"batch_size": 5}, "batch_size = 4, not 5"),
    ({"warmup": 5}, "warmup = 10, not 5"),
    ({"clip_norm": 1.0}, r"clip_norm = None, not 1\.0"),
    ({"cosine": True}, "cosine over = None, not 20"),
    ({"rows": torch.zeros(30, 2)}, "not the data that the run began with"),
    ({"rows": torch.ones(31, 2)}, "order is of 30 rows, the data have 31"),
]


@pytest.mark.parametrize(("other", "said"), OTHER)
def test_another_training_does_not_go_on_with_a_run(tmp_path, other, said):
    own = {"rows": torch.ones(30, 2), "warmup": 10}
    with open_run("n", KEY, tmp_path / "run") as run:
        sgd_of(**own)(run, 10)
    with refused(ValueError, said):
        sgd_of(**own | other)(open_run("n", KEY, tmp_path / "run", resume=True))
    same_result = {"kind": lambda weights, rate: torch.optim.SGD(weights, rate, foreach=True)}
    sgd_of(**own | same_result)(open_run("n", KEY, tmp_path / "run", resume=True))


def test_checkpoints_that_do_not_say_how_they_were_trained_still_go_on(tmp_path):
    go = sgd_of(torch.ones(30, 2))
    with open_run("n", KEY, tmp_path / "run") as run:
        go(run, 10)
    (path,) = run.checkpoints()
    objects, meta = load(path)
    del objects["terms"], objects["batches"]["rows"], meta["notebook"]
    save(path, objects, meta)
    assert go(open_run("n", KEY, tmp_path / "run", resume=True)).step[-1] == 20


def test_a_resume_that_finds_nothing_says_what_the_nearest_run_has_instead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key = {"settings": {"lr": 0.1, "widths": (1, 2)}, "dataset": "here", "images_sha256": "aa"}
    for more in ({}, {"dataset": "there", "images_sha256": "cc"}):
        with open_run("n", key | more) as run:
            run.describe(net={"width": 3})
            run.save(1, {}, {})
    with open_run("n", key, resume=True) as run:
        said = rf"resume at \S+: {run.folder}"
    with refused(FileNotFoundError, rf"{said} has images_sha256 = 'aa', not 'bb'$"):
        open_run("n", key | {"images_sha256": "bb"}, resume=True)
    with refused(FileNotFoundError, rf"{said} has settings\.lr = 0\.1, not 0\.2$"):
        open_run("n", key | {"settings": {"lr": 0.2, "widths": (1, 2)}}, resume=True)
    with refused(FileNotFoundError, r"resume at \S+$"):
        open_run("another", key, resume=True)


# Stages --------------------------------------------------------------------------------------------------------------

STAGES = ("First: of two", "second", "third")


def staged(run, rng, computed, stop=None, names=STAGES):
    """Three trainings, each from what the one before left; `stop` is a (stage, iteration) where Ctrl-C comes."""
    weight = torch.ones(2)
    for name in names:

        def compute(stage, name=name, weight=weight):
            computed.append(name)
            net, chain = nn.Linear(2, 1), seeded(1)
            with torch.no_grad():
                net.weight.copy_(weight)

            def step(x, done):
                if stop == (name, round(20 * done)):
                    os.kill(os.getpid(), signal.SIGINT)
                y = x + torch.randn(x.shape, generator=chain)  # as a chain does
                return (net(y) - torch.rand(len(x), 1)).square().mean(), {"work": len(x)}

            draws = Draws(lambda n, rng: torch.randn(n, 2, generator=rng), 4, rng)
            options = {"iterations": 20, "save_every": 6, "generators": [chain], "warmup": 10, "progress": False}
            optimizer = torch.optim.Adam(net.parameters(), 0.1)
            history = fit(step, draws, net=net, optimizer=optimizer, run=stage, **options)
            weights = net.weight.detach()[0]
            return {"weights": [weights, weights.numpy()], "work": history.total("work"), "name": (name, None)}

        result = run.once(name, compute)
        assert result["name"] == (name, None)
        assert result["work"] == 80
        weight = result["weights"][0]
    return weight, torch.rand(3), torch.rand(3, generator=rng)


def staged_from(folder, resume=False, stop=None, **options):
    torch.manual_seed(0)
    rng, computed = seeded(2), []
    run = open_run("n", KEY, folder, resume, generators=[rng])
    try:
        return staged(run, rng, computed, stop, **options), computed
    finally:
        run.close()


def test_an_interrupted_run_of_stages_goes_on_bit_for_bit(tmp_path):
    whole, computed = staged_from(tmp_path / "whole")
    assert computed == list(STAGES)
    places = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.is_dir())
    assert places == ["first-of-two", "second", "third"]
    for stage, iteration, left in ((STAGES[0], 0, 3), (STAGES[1], 9, 2), (STAGES[2], 19, 1)):
        folder = tmp_path / f"{left}"
        with pytest.raises(KeyboardInterrupt):
            staged_from(folder, stop=(stage, iteration))
        assert not list(folder.glob("step-*")), "the run itself has no checkpoint, and is resumed for its stages"
        again, computed = staged_from(folder, resume=True)
        assert computed == list(STAGES[-left:])
        assert same(again, whole)
    again, computed = staged_from(tmp_path / "whole", resume=True)
    assert computed == []
    assert same(again, whole)


def test_a_stage_whose_folder_was_deleted_runs_again_and_so_do_those_after_it(tmp_path):
    whole, _ = staged_from(tmp_path / "run")
    kept = (tmp_path / "run" / "first-of-two" / "result.safetensors").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "run" / "second")
    with pytest.raises(KeyboardInterrupt):
        staged_from(tmp_path / "run", resume=True, stop=("second", 3))
    again, computed = staged_from(tmp_path / "run", resume=True)
    assert computed == ["second", "third"]
    assert same(again, whole)
    assert (tmp_path / "run" / "first-of-two" / "result.safetensors").stat().st_mtime_ns == kept
    _, computed = staged_from(tmp_path / "run", resume=True, names=("First: of two", "new", "second", "third"))
    assert computed == ["new", "second", "third"]
    (tmp_path / "run" / "first-of-two" / "result.safetensors").unlink()
    assert staged_from(tmp_path / "run", resume=True)[1] == list(STAGES)


def test_a_stage_interrupted_before_its_training_can_be_resumed_in_the_same_process(tmp_path):
    def interrupted(stage):
        raise KeyboardInterrupt

    run = open_run("n", KEY, tmp_path / "run")  # it stays open, as in a notebook's kernel
    with pytest.raises(KeyboardInterrupt):
        run.once("a", interrupted)
    again = open_run("n", KEY, tmp_path / "run", resume=True)
    assert again.once("a", lambda stage: 1) == 1
    again.close()


def test_stages_that_cannot_be_told_apart_or_are_damaged_are_refused(tmp_path):
    value = lambda: {"x": torch.ones(3, dtype=torch.bfloat16), "list": [1, None, "a"]}
    with open_run("n", KEY, tmp_path / "run") as run:
        assert_equal(run.once("A, b", lambda stage: value()), value())
        for name in ("A, b", "a-b", "..", "tensorboard"):
            with pytest.raises(ValueError, match="each needs a name of its own"):
                run.once(name, lambda stage: 1)
        (tmp_path / "run" / "mine").mkdir()
        (tmp_path / "run" / "mine" / "note.txt").write_text("keep")
        with pytest.raises(ValueError, match="mine is not a stage of this run"):
            run.once("mine", lambda stage: 1)
    path = tmp_path / "run" / "a-b" / "result.safetensors"
    whole = path.read_bytes()
    other = save(tmp_path / "other", {"result": 1}, {"stage": "A, b", "hash": ""}).read_bytes()
    for damaged in (whole[:-1], other):
        path.write_bytes(damaged)
        run = open_run("n", KEY, tmp_path / "run", resume=True)
        with run, refused(ValueError, "delete", names=path):
            run.once("A, b", lambda stage: pytest.fail("it would be lost"))
    path.write_bytes(whole)
    assert (tmp_path / "run" / "mine" / "note.txt").read_text() == "keep"


def test_an_error_leaves_a_stage_and_finish_ends_the_whole_run(tmp_path):
    def fail(folder, call):
        with pytest.raises(ZeroDivisionError), open_run("n", KEY, folder) as run:
            run.once("a", call)

    fail(tmp_path / "run", lambda stage: 1 / 0)
    assert (tmp_path / "run" / "a").exists()
    with open_run("n", KEY, tmp_path / "run", resume=True) as run:
        assert run.once("a", lambda stage: stage.once("within", lambda inner: [1.5])) == [1.5]
        assert run.once("b", lambda stage: {}) == {}
        run.finish()
    assert (tmp_path / "run" / "a" / "within" / "result.safetensors").exists()
    with pytest.raises(FileNotFoundError, match="no unfinished run"):
        open_run("n", KEY, tmp_path / "run", resume=True)
    with open_run("n", KEY, tmp_path / "run") as run:
        assert run.folder == tmp_path / "run-2"


def test_what_describes_a_run_is_in_its_headers_and_not_in_its_hash(tmp_path):
    with open_run("n", KEY, tmp_path / "run") as run:
        run.describe(net={"width": 16})
        run.once("a", lambda stage: stage.save(3, {"net": {"net": {}}}, {}) and 0)
        train(run, iterations=7)
        run.describe(net={"width": 16}, more=[1])
        with pytest.raises(ValueError, match="another net already"):
            run.describe(net={"width": 8})
    for path in (run.checkpoints()[-1], *(tmp_path / "run" / "a").glob("*.safetensors")):
        assert load(path)[1]["key"] == {**KEY, "net": {"width": 16}}
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["key"] == {**KEY, "net": {"width": 16}, "more": [1]}
    assert about["hash"] == open_run("n", KEY, tmp_path / "other").hash
    open_run("n", KEY, tmp_path / "run", resume=True).close()


# Divergence ----------------------------------------------------------------------------------------------------------


NAN, INF = float("nan"), float("inf")
BAD = [(-2e6, 5, None), (NAN, 5, None), (INF, 14, 7), (-2e6, 33, 28), (NAN, 33, 28), (NAN, 35, 28), (INF, 60, 56)]


@pytest.mark.parametrize(("value", "at", "good"), BAD)
def test_divergence_names_value_iteration_and_good_checkpoint(tmp_path, value, at, good):
    def poison(iteration, loss):
        return loss * 0 + value if iteration == at else loss

    run = open_run("n", KEY, tmp_path / "run")
    with refused(Diverged) as error:
        train(run, at=poison)
    text = str(error.value)
    assert f"at iteration {at}: loss is {value:.6g}" in text
    assert error.value.iteration == at
    assert error.value.history.step.tolist() == [1, *range(5, at, 5)]
    if good is None:
        assert text.endswith("there is no checkpoint yet")
        assert error.value.checkpoint is None
        assert not folders(tmp_path)
        return
    assert text.endswith(f"{run.checkpoints()[-1]} (iteration {good})")
    objects, meta = load(error.value.checkpoint)
    assert meta["iteration"] == good
    assert all(torch.isfinite(v).all() for v in [*objects["net"]["net"].values(), *objects["ema"]["net"].values()])


def test_weights_that_break_under_a_finite_loss_are_not_saved(tmp_path):
    net = small_net()

    def step(x, done):  # sqrt has an infinite slope at 0: the loss is finite, the gradient is not
        return sum((0 * p).square().sum().sqrt() for p in net.parameters()) + net(x).mean(), {}

    run = open_run("n", KEY, tmp_path / "run")
    with pytest.raises(Diverged, match=r"the weight 0\.bias is not finite; there is no checkpoint yet"):
        sgd(step, net, iterations=1, run=run)
    assert not folders(tmp_path)


def test_a_stat_is_bounded_only_if_it_is_named():
    def step(x, done):
        return net(x).square().mean(), {"gap": torch.tensor([0.0, float("nan") if len(seen) == 12 else 5.0])}

    seen = []
    net = small_net()
    draws = iter(lambda: seen.append(1) or torch.ones(4, 2), None)
    assert len(sgd(step, net, draws, 1e-3, iterations=20)) == 3
    for bound, said in ((6.0, r"iteration 12: gap is nan \(bound 6\)"), (4.0, r"iteration 1: gap is 5 \(bound 4\)")):
        seen.clear()
        with pytest.raises(Diverged, match=said):
            sgd(step, net, draws, 1e-3, iterations=20, bound={"gap": bound})


# The checkpoint file -------------------------------------------------------------------------------------------------


def everything():
    base = torch.arange(12.0)
    return {
        "net": {"w": base.view(3, 4), "again": base, "part": base[2:5]},
        "views": [base.view(3, 4).t(), base.bfloat16()],
        "optimizer": {0: {"step": torch.tensor(3.0)}, 1: {"none": None, "betas": (0.9, 0.999), "on": True}},
        "numbers": [1, 2.5, float("inf"), -0.0, 1e-300, "text \u00e9 \" ' \n", [], {}, ()],
        "arrays": [np.arange(3), np.zeros((2, 0)), np.array(1.5), np.float32(2.5)],
        "odd": [torch.empty(0, 3), torch.tensor(7, dtype=torch.int64), torch.tensor([True, False])],
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }


def assert_equal(one, two):
    one, two = (value.item() if isinstance(value, np.generic) else value for value in (one, two))
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert list(one) == list(two)
        assert_equal(list(one.values()), list(two.values()))
    elif isinstance(one, (list, tuple)):
        for a, b in zip(one, two, strict=True):
            assert_equal(a, b)
    elif isinstance(one, (torch.Tensor, np.ndarray)):
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        assert bool((one == two).all())
    else:
        assert one == two


def test_what_is_saved_comes_back_as_it_was(tmp_path):
    meta = {"iteration": 3, "key": {"T": 6, "name": "\u00fc"}}
    path = save(tmp_path / "x.safetensors", everything(), meta)
    objects, back = load(path)
    assert_equal(everything(), objects)
    assert back == meta
    assert folders(tmp_path) == ["x.safetensors"]
    with pytest.raises(TypeError, match="not Generator"):
        save(path, {"rng": seeded(0)})
    assert_equal(load(path)[0], objects)


def test_every_flipped_bit_and_every_truncation_is_refused(tmp_path):
    save(tmp_path / "other.safetensors", everything(), {"iteration": 1})
    other = (tmp_path / "other.safetensors").read_bytes()
    path = save(tmp_path / "x.safetensors", everything(), {"iteration": 2})
    whole, pick = path.read_bytes(), random.Random(0)
    damaged = [whole[:n] for n in (0, 1, 7, 8, 9, *range(10, len(whole), 101), len(whole) - 1)]
    damaged += [whole + b"\0", whole[:-1] + bytes([whole[-1] ^ 255])]
    for position in range(len(whole)):  # one seeded bit of every byte
        flipped = bytearray(whole)
        flipped[position] ^= 1 << pick.randrange(8)
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        with refused(ValueError, "is damaged or not a checkpoint of ebmlib", names=path):
            load(path)
    path.write_bytes(whole)
    assert_equal(load(path)[0], everything())
    assert (tmp_path / "other.safetensors").read_bytes() == other


def test_foreign_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "x.safetensors"
    torch.save({"w": torch.ones(2)}, path)
    foreign = [path.read_bytes(), b"hello\nworld\n", bytes(100), random.Random(0).randbytes(1000), b"\xff" * 8 + b"{}"]
    for metadata in (None, {"format": "pt"}, {"ebmlib": "{}", "sha256": "0"}):
        save_file({"w": torch.ones(2)}, path, metadata=metadata)
        foreign.append(path.read_bytes())
    for data in foreign:
        path.write_bytes(data)
        with refused(ValueError, "is damaged or not a checkpoint of ebmlib", names=path):
            load(path)
    with refused(FileNotFoundError, "cannot read checkpoint", names=tmp_path / "nowhere"):
        load(tmp_path / "nowhere")


def test_a_damaged_newest_checkpoint_is_passed_over_and_set_aside(tmp_path):
    whole, *_ = train(None)
    with open_run("n", KEY, tmp_path / "run") as run:
        train(run, iterations=33)
    older, newest = run.checkpoints()
    kept, newest_bytes = older.read_bytes(), newest.read_bytes()[:-100]
    newest.write_bytes(newest_bytes)
    resumed = open_run("n", KEY, tmp_path / "run", resume=True)
    with resumed, pytest.warns(UserWarning, match="is damaged") as said:
        again = train(resumed, save_every=30, keep=1)[0]
    (line,) = str(said[0].message).splitlines()
    assert len(said) == 1
    assert str(newest) in line
    assert line.endswith(f"the run goes on from {older}")
    assert same(whole, again)
    assert newest.with_name(newest.name + ".damaged").read_bytes() == newest_bytes
    assert [path.stem for path in run.checkpoints()] == ["step-00000060"], "it must not count as the newest"
    older.write_bytes(kept[:-1])
    (tmp_path / "run/step-00000060.safetensors").write_bytes(b"")
    with refused(ValueError, "is damaged", names=tmp_path / "run/step-00000060.safetensors"):
        train(open_run("n", KEY, tmp_path / "run", resume=True))
    assert len(run.checkpoints()) == 2, "where none is whole all stay"


def test_a_full_disk_leaves_the_last_checkpoint_and_no_fragment(tmp_path, child):
    """Once at the third checkpoint, once at the first: a file may then not grow beyond 4096 bytes."""
    out, errors = child(tmp_path, "full").communicate()
    assert errors == ""
    third, first = out.splitlines()
    assert third.startswith(f"cannot write {tmp_path / 'third/step-00000021.safetensors'}: ")
    assert first.startswith(f"cannot write {tmp_path / 'first/deep/step-00000007.safetensors'}: ")
    kept = [".lock", "log.csv", "run.json", "step-00000007.safetensors", "step-00000014.safetensors"]
    left = [path for path in folders(tmp_path) if "tensorboard" not in path]
    empty = ["first", "first/deep", "first/deep/.lock", "first/deep/run.json"]  # the next run begins here
    assert left == [*empty, "third", *("third/" + name for name in kept)]
    assert load(tmp_path / "third/step-00000014.safetensors")[1]["iteration"] == 14


# Weights of a net ----------------------------------------------------------------------------------------------------


def test_load_module_takes_the_running_mean_and_names_the_first_difference(tmp_path):
    with open_run("n", KEY, tmp_path / "run") as run:
        end, *_ = train(run)
    (path,), n = run.checkpoints()[-1:], len(small_net().state_dict())
    for ema, wanted in ((False, end[:n]), (True, end[n : 2 * n])):
        net = small_net(seed=1)
        meta = load_module(path, net, ema=ema, expect={"a": 1, "widths": (16, 16), "iteration": 60})
        assert same(list(net.state_dict().values()), wanted)
        assert meta["key"] == KEY
    x = torch.randn(5, 2, generator=seeded(0))
    net = small_net(seed=1)
    before = net(x)
    cases = [
        (nn.Sequential(net[0], nn.SiLU(), nn.Linear(16, 2)), r"its 2\.weight has shape \(1, 16\), not \(2, 16\)"),
        (nn.Sequential(net[0], nn.SiLU()), r"this net has no 2\.weight"),
        (nn.Sequential(net[0], nn.SiLU(), nn.Linear(16, 1), nn.Linear(1, 1)), r"it has no 3\.weight"),
    ]
    for other, message in cases:
        with refused(ValueError, message, names=path):
            load_module(path, other)
    with pytest.raises(ValueError, match="has a = 1, not 2"):
        load_module(path, net, expect={"a": 2})
    with pytest.raises(ValueError, match="no net named 'vae'; it holds: net"):
        load_module(path, net, name="vae")
    torch.testing.assert_close(net.eval()(x), before, rtol=1e-2, atol=1e-2)  # a refusal changes no weight


def test_bundled_weights_in_half_the_bytes(tmp_path):
    net = nn.Sequential(spectral_norm(nn.Linear(64, 64)), nn.BatchNorm1d(64))
    full = training.save_weights(tmp_path / "full.safetensors", net, {"T": 6})
    half = training.save_weights(tmp_path / "half.safetensors", net, {"T": 6}, dtype=torch.bfloat16)
    other = nn.Sequential(spectral_norm(nn.Linear(64, 64)), nn.BatchNorm1d(64))
    assert load_module(full, other, expect={"T": 6}) == {"T": 6}
    assert same(list(net.state_dict().values()), list(other.state_dict().values()))
    load_module(half, other)
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a.bfloat16().float(), b), name
        assert b.dtype == torch.float32
    assert same(list(net.buffers()), list(other.buffers()))
    saved = sum(2 * p.numel() for p in net.parameters())
    assert abs(full.stat().st_size - half.stat().st_size - saved) < 100


# Run folders ---------------------------------------------------------------------------------------------------------


def test_a_run_lives_where_its_key_says_and_is_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = open_run("drl", {"b": 2, "a": [1, None]})
    same_key = open_run("drl", {"a": (1, None), "b": 2})
    assert first.folder == same_key.folder == tmp_path / "runs/drl" / first.hash
    assert len(first.hash) == 12
    assert not folders(tmp_path), "a folder only appears with its first write"
    train(first, iterations=7)
    for suffix in ("-2", "-3"):
        run = open_run("drl", {"a": [1, None], "b": 2})
        train(run, iterations=7)
        run.finish()
        assert run.folder == tmp_path / f"runs/drl/{first.hash}{suffix}"
        assert json.loads((run.folder / "run.json").read_text())["finished"] is True
    other = open_run("drl", {"a": [1, None], "b": 3})
    assert other.folder.name == other.hash != first.hash
    about = json.loads((first.folder / "run.json").read_text())
    assert about["key"] == {"a": [1, None], "b": 2}
    assert about["finished"] is False
    with pytest.raises(TypeError, match="not JSON serializable"):
        open_run("drl", {"a": torch.ones(1)})


def test_a_second_process_gets_the_next_folder_and_the_lock_dies_with_the_first(tmp_path, child):
    process = child(tmp_path / "run", "hold")
    assert process.stdout.readline() == f"{tmp_path / 'run'}\n"
    with open_run("n", KEY, tmp_path / "run") as run:
        train(run, iterations=7)
    assert run.folder == tmp_path / "run-2"
    shutil.rmtree(run.folder)
    with refused(RuntimeError, f"run is in use by process {process.pid}$"):
        open_run("n", KEY, tmp_path / "run", resume=True)
    process.kill()
    process.wait()
    assert open_run("n", KEY, tmp_path / "run", resume=True).folder == tmp_path / "run"


def test_a_run_that_was_let_go_writes_nothing_once_another_has_gone_on_with_it(tmp_path):
    old = open_run("n", KEY, tmp_path / "run")
    train(old, iterations=7)
    old.close()
    old.describe(note="still mine")  # nobody was here
    old.close()
    other = open_run("n", KEY, tmp_path / "run", resume=True)
    train(other, iterations=14)
    other.finish()
    kept = {path: path.read_bytes() for path in other.folder.iterdir() if path.is_file() and path.name != ".lock"}
    for late in (lambda: old.describe(later=1), lambda: old.save(8, {"x": torch.ones(1)}, {}), old.finish):
        with pytest.raises(RuntimeError, match=r"run was taken over by another process$"):
            late()
    assert {path: path.read_bytes() for path in kept} == kept
    assert json.loads((other.folder / "run.json").read_text())["finished"] is True


def test_runs_that_start_together_get_a_folder_each(tmp_path):
    runs = [open_run("n", KEY, tmp_path / "run") for _ in range(12)]
    start = threading.Barrier(len(runs))

    def begin(run):
        start.wait()
        run.save(1, {"x": torch.ones(1)}, {})

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(begin, runs))
    wanted = {tmp_path / ("run" if i == 1 else f"run-{i}") for i in range(1, 13)}
    assert {run.folder for run in runs} == wanted
    assert all(len(run.checkpoints()) == 1 for run in runs)


def test_resume_takes_the_newest_unfinished_run_of_the_same_key(tmp_path):
    def start(key, finish=False):
        run = open_run("n", key, tmp_path / "run")
        train(run, iterations=7)
        run.finish() if finish else run.close()
        return run.folder.name

    names = [start(KEY), start(KEY), start({"a": 2}), start(KEY, finish=True)]
    assert names == ["run", "run-2", "run-3", "run-4"]
    resumed = open_run("n", KEY, tmp_path / "run", resume=True)
    assert resumed.folder.name == "run-2"
    train(resumed, iterations=14)
    resumed.finish()
    again = open_run("n", KEY, tmp_path / "run", resume=True)
    assert again.folder.name == "run"
    assert again.checkpoints()[-1].name == "step-00000007.safetensors"
    again.finish()
    before = folders(tmp_path)
    with refused(FileNotFoundError, "no unfinished run of these settings"):
        open_run("n", KEY, tmp_path / "run", resume=True)
    with pytest.raises(FileNotFoundError, match="no unfinished run"):
        open_run("n", KEY, tmp_path / "not/there", resume=True)
    assert folders(tmp_path) == before


def test_a_run_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    for bad in (tmp_path / "file", tmp_path / "file/run", Path("/proc/ebmlib/run")):
        with refused(OSError, "cannot write to the run folder", names=bad):
            open_run("n", KEY, bad)
    assert folders(tmp_path) == ["file"]


# Pieces --------------------------------------------------------------------------------------------------------------


def test_warm_up_rates_are_exact_and_given_back():
    *_, rates = train(None, iterations=30)
    assert rates == [1e-2 * min(1.0, i / 20) for i in range(1, 31)]
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 0.5}])
    options = {"net": nn.Linear(1, 1), "optimizer": optimizer, "iterations": 4, "progress": False}
    step, ones = lambda x, done: ((weight * x).sum(), {}), iter(lambda: torch.ones(2), None)
    fit(step, ones, warmup=8, **options)
    assert torch.equal(weight.detach(), torch.full((2,), -0.5 * (1 + 2 + 3 + 4) / 8))  # exact in binary
    assert optimizer.param_groups[0]["lr"] == 0.5
    fit(step, ones, clip_norm=0.5**0.5, **options)
    torch.testing.assert_close(weight.detach(), torch.full((2,), -0.625 - 4 * 0.5 * 0.5))  # (1, 1) clipped to (.5, .5)


def test_the_half_cosine_falls_to_zero_and_resumes(tmp_path):
    options = {"iterations": 30, "warmup": 4, "cosine": True}
    *_, rates = train(None, **options)
    wanted = [1e-2 * min(1.0, i / 4) * np.cos(np.pi * (i - 1) / 60) ** 2 for i in range(1, 31)]  # (1 + cos 2u) / 2
    np.testing.assert_allclose(rates, wanted, rtol=1e-12)

    def stop(iteration, loss):
        if iteration == 15:
            raise ZeroDivisionError
        return loss

    with pytest.raises(ZeroDivisionError):
        train(open_run("n", KEY, tmp_path / "run"), at=stop, **options)
    *_, later = train(open_run("n", KEY, tmp_path / "run", resume=True), **options)
    assert later == rates[14:]


def test_gradients_left_behind_by_the_step_do_not_count():
    net = nn.Linear(1, 1, bias=False)
    start = net.weight.item()

    def step(x, done):
        (100 * net.weight).sum().backward()
        return (net.weight * x).sum(), {}

    sgd(step, net, iter(lambda: torch.ones(1), None), 0.25, iterations=3)
    assert net.weight.item() == pytest.approx(start - 0.75, abs=1e-6)


def test_ema_against_the_closed_form():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    values = torch.randn(40, 2, 3, dtype=torch.float64)
    start, ema = net[0].weight.detach().clone(), training.ema(net, 0.9)
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    for i, value in enumerate(values):
        with torch.no_grad():
            net[0].weight.copy_(value)
            net[1].running_mean.fill_(i)
        ema.update_parameters(net)
    powers = 0.9 ** torch.arange(39, -1, -1, dtype=torch.float64)
    wanted = 0.9**40 * start + 0.1 * (powers[:, None, None] * values).sum(0)
    torch.testing.assert_close(ema.module[0].weight, wanted, rtol=1e-12, atol=0)
    assert torch.equal(net[0].weight, values[-1])
    assert ema.module[1].running_mean.tolist() == [39, 39]
    with pytest.raises(ValueError, match=r"decay is 1.0; it must lie in \[0, 1\)"):
        training.ema(net, 1.0)


def linear(**options):
    """A training of one layer on what it is given; the loss is the mean output."""
    net = nn.Linear(2, 1)
    return lambda step, batches, n=9: sgd(lambda x, _: step(net, x), net, batches, iterations=n, **options)


mean = lambda net, x: (net(x).mean(), {})


def test_batches_that_end_are_gone_through_again_and_named_where_they_end_for_good():
    x, seen = torch.arange(8.0).reshape(4, 2), []
    for batches in (torch.utils.data.DataLoader(x, 2), [x[:2], x[2:]]):
        linear()(lambda net, x: (seen.append(x), mean(net, x))[1], batches, 5)
    assert [int(part[0, 0]) for part in seen] == [0, 4, 0, 4, 0] * 2
    for batches, at in ((iter([torch.ones(2, 2)] * 3), 4), (iter(()), 1)):
        with pytest.raises(ValueError, match=f"the batches ended before iteration {at}: give an endless iterator"):
            linear()(mean, batches)


@pytest.mark.parametrize(
    ("step", "got"),
    [
        (lambda net, x: net(x).mean(), "got Tensor"),
        (lambda net, x: None, "got NoneType"),
        (lambda net, x: (net(x).mean(), 3.0), "got Tensor, float"),
        (lambda net, x: (net(x).mean(0).expand(2), {}), r"got a loss of shape \(2,\) with a gradient"),
        (lambda net, x: (net(x).mean().detach(), {}), r"got a loss of shape \(\) with no gradient"),
    ],
)
def test_a_step_that_gives_no_loss_is_refused_in_one_sentence(step, got):
    with pytest.raises(ValueError, match=rf"step must return \(loss, stats\).*({got})$"):
        linear()(step, None)


def test_the_mean_of_a_spectrally_normalized_net_has_the_norm_one(tmp_path):
    """Its vectors are copies of the trained net's, and along them the mean of wandering weights looks small."""
    torch.manual_seed(0)
    net = nn.Sequential(spectral_norm(nn.Linear(16, 16, bias=False)))
    start, rng = net[0].parametrizations.weight.original, torch.Generator().manual_seed(1)
    mean = training.ema(net, 0.9)

    def step(x, done):
        with torch.no_grad():
            start.copy_(torch.randn(16, 16, generator=rng))  # as far from the mean as weights can be
        return net(x).mean(), {}

    optimizer = torch.optim.SGD(net.parameters(), 1e-9)
    with open_run("n", KEY, tmp_path / "run") as run:
        fit(step, iter([torch.ones(2, 16)] * 20), net=net, ema=mean, optimizer=optimizer, iterations=20, run=run)
    stored = nn.Sequential(spectral_norm(nn.Linear(16, 16, bias=False)))
    load_module(run.checkpoints()[-1], stored)
    for found in (mean.module, stored.eval()):
        assert float(torch.linalg.matrix_norm(found[0].weight.detach(), 2)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("clip_norm", [0, 0.0, -1.0, float("nan")])
def test_a_clip_norm_that_stops_training_is_refused(clip_norm):
    with pytest.raises(ValueError, match=rf"clip_norm = {clip_norm}: allowed is None, which is off"):
        linear(clip_norm=clip_norm)(mean, None)


@pytest.mark.parametrize("score_matching", [False, True])
def test_an_energy_with_batch_norm_is_not_trained_though_chains_run_it_in_evaluation_mode(score_matching):
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1), nn.Flatten(0))

    def step(x, done):
        if score_matching:
            return denoising_score_matching(net, x, 0.1), {}
        with evaluating(net):
            y, _ = langevin(net, x, ula(0.1, 2))
        return contrastive(net(x), net(y))

    with pytest.raises(ValueError, match="the energy has BatchNorm1d in train mode"):
        sgd(step, net, iterations=2)
    assert not core.in_training
    sgd(lambda x, done: (net(x).square().mean(), {}), net, iterations=2)  # a judge may have it


@pytest.mark.parametrize("kind", ["float", "uint8", "memory-mapped"])
def test_batches_shuffle_each_epoch_without_repeats(tmp_path, kind):
    if kind == "memory-mapped":
        np.arange(23, dtype=np.int32).tofile(tmp_path / "x")
        x = torch.from_file(str(tmp_path / "x"), size=23, dtype=torch.int32)
    else:
        x = torch.arange(23, dtype=getattr(torch, kind.replace("float", "float32")))
    batches = Batches(x, 5, seeded(0), transform=lambda b, rng: b + 1)
    epochs = [torch.cat([next(batches) for _ in range(4)]) for _ in range(200)]
    for epoch in epochs:
        assert len(epoch.unique()) == 20
        assert epoch.dtype == x.dtype
        assert epoch.min() >= 1
        assert epoch.max() <= 23
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 200
    # each row is left out of 3 in 23 epochs: 200 epochs, binomial standard error, 23 rows looked at
    left_out = 200 - torch.bincount(torch.cat(epochs).long(), minlength=24)[1:]
    z = (left_out - 200 * 3 / 23) / (200 * 3 / 23 * 20 / 23) ** 0.5
    assert z.abs().max() < 4


def test_batches_resume_at_every_position():
    x = torch.arange(13)
    plain = Batches(x, 4, seeded(1))
    wanted = [next(plain).tolist() for _ in range(12)]
    for stop in range(10):
        first = Batches(x, 4, seeded(1))
        for _ in range(stop):
            next(first)
        rng = seeded(2)
        rng.set_state(first.rng.get_state())
        second = Batches(x, 4, rng)
        second.load_state_dict(first.state_dict())
        assert [next(second).tolist() for _ in range(12 - stop)] == wanted[stop:]
    with pytest.raises(ValueError, match=r"batch_size is 14; it must lie in 1\.\.13"):
        Batches(x, 14, seeded(0))
    with pytest.raises(ValueError, match="the saved order is of 13 rows, the data have 14"):
        Batches(torch.arange(14), 4, seeded(0)).load_state_dict(plain.state_dict())


def test_two_nets_and_a_history_of_levels(tmp_path):
    nets = {"encoder": nn.Linear(2, 2), "energy": nn.Linear(2, 1)}
    emas = {"energy": training.ema(nets["energy"], 0.5)}

    def step(x, done):
        loss = nets["energy"](nets["encoder"](x)).square().mean()
        return loss, {"level": torch.stack([loss, 2 * loss, torch.tensor(float("nan"))])}

    run = open_run("n", KEY, tmp_path / "run")
    history = sgd(step, nets, ema=emas, iterations=20, run=run, log_every=4)
    assert history.step.tolist() == [1, 4, 8, 12, 16, 20]
    assert history["level"].shape == (6, 3)
    np.testing.assert_array_equal(history["level"][:, 1], 2 * history.loss)
    again = History()
    again.load_state_dict(load(run.checkpoints()[-1])[0]["history"])
    np.testing.assert_array_equal(again["level"], history["level"])
    assert history.csv().splitlines()[0] == "step,loss,level_0,level_1,level_2"
    table = np.genfromtxt(run.folder / "log.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(np.float32(table["level_1"]), np.float32(history["level"][:, 1]))
    for name, ema in (("encoder", True), ("energy", False), ("energy", True)):
        net = nn.Linear(2, nets[name].out_features)
        load_module(run.checkpoints()[-1], net, name=name, ema=ema)
        source = emas[name].module if ema and name in emas else nets[name]
        assert same(list(net.parameters()), list(source.parameters()))


def test_progress_is_plain_text_that_is_cleared(capfd):
    train(None, iterations=20, progress=True, desc="level 3")
    out, errors = capfd.readouterr()
    assert out == ""
    assert "level 3" in errors
    assert "\n" not in errors
    assert errors.rsplit("\r", 2)[1].strip() == ""


def test_devices():
    assert training.pick_device("cpu") == training.pick_device(torch.device("cpu")) == torch.device("cpu")
    assert training.pick_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "banana", ""):
        with refused(ValueError, f"device {name!r} is not there; available: cpu"):
            training.pick_device(name)
    assert torch.equal(torch.rand(3, generator=seeded(5)), torch.rand(3, generator=torch.Generator().manual_seed(5)))


# The process that gets killed ----------------------------------------------------------------------------------------


def _child(folder, action, *rest):
    torch.set_num_threads(1)
    if action == "train":
        iterations, width, resume = map(int, rest)
        run, said = open_run("n", KEY, folder, resume=bool(resume)), []

        def speak(iteration, loss):
            if run.checkpoints() and not said:
                said.append(print("first checkpoint", flush=True))
            time.sleep(0.001)
            return loss

        train(run, iterations, save_every=3, width=width, at=speak)
    elif action == "hold":
        run = open_run("n", KEY, folder)
        run.save(7, {"x": torch.ones(1)}, {})
        print(run.folder, flush=True)
        sys.stdin.read()
    elif action == "full":
        for name, full_at in (("third", 20), ("first/deep", 1)):

            def fill(iteration, loss, full_at=full_at):
                if iteration == full_at:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
                return loss

            try:
                train(open_run("n", KEY, Path(folder, name)), at=fill)
            except OSError as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    _child(*sys.argv[1:])
