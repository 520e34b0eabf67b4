"""Two processes train one net: own rows and random numbers, averaged gradients, one set of files, errors that all see.

Equality with one process is statistical; where data and the chains' noise are given, it is exact to rounding. As a
script, this file is one of the processes.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

import ebmlib
from ebmlib.core import evaluating
from ebmlib.nets.mlp import MLP
from ebmlib.objectives import contrastive
from ebmlib.reservoir import Reservoir
from ebmlib.run import parallel, training
from ebmlib.run.training import Batches, Diverged, Draws, fit, load, open_run, seeded
from ebmlib.samplers import langevin, langevin_step, ula

PROCESSES = 2
ITERATIONS, HALF = 8, 3


def train(folder, *, batch=8, seed=0, resume=False, at=None, **options):
    """A contrastive run in float64; what it saw and left. `at(done, loss)` may change the loss."""
    torch.manual_seed(seed)
    net, rng, rows = MLP(width=8, depth=2).double(), seeded(seed + 1), []
    pool = Reservoir(lambda n, rng: torch.randn(n, 2, generator=rng), rng, capacity=40, restart=0.2)

    def step(x, done):
        with evaluating(net):
            y, _ = langevin(net, pool.draw(len(x), rng).double(), ula(0.05, 3), rng=rng)
        pool.push(y, rng)
        rows.append(x)
        loss, stats = contrastive(net(x), net(y), l2=0.1)
        return (loss if at is None else at(done, loss)), {**stats, "rows": len(x)}

    data = torch.randn(24, 2, generator=seeded(9), dtype=torch.float64)
    run = None if folder is None else open_run("n", {"batch": batch}, folder, resume)
    mean, optimizer = training.ema(net, 0.5), torch.optim.Adam(net.parameters(), 1e-2)
    options = {"progress": False, "log_every": 1, "iterations": ITERATIONS, "save_every": HALF, **options}
    history = fit(
        step, Batches(data, batch, rng), net=net, ema=mean, optimizer=optimizer, run=run, state=[pool], **options
    )
    weights = [value.detach().clone() for value in (*net.parameters(), *mean.module.parameters())]
    return {"weights": weights, "rows": rows, "after": torch.rand(2, generator=rng), "count": history.total("rows")}


def moved_once(rows=slice(None), share=1):
    """The weights after one step of SGD on given data and noise: the gradient, times the rate."""
    torch.manual_seed(0)
    net, given = MLP(width=8, depth=2, spectral=True).double(), seeded(3)
    x, y, *noise = (torch.randn(8, 2, generator=given, dtype=torch.float64)[rows] for _ in range(5))
    start = [p.detach().clone() for p in net.parameters()]

    def step(x, done):
        chain = y
        with evaluating(net):
            for xi in noise:
                chain = langevin_step(net, chain, 0.05, 0.0)[0] + 0.3 * xi
        return contrastive(net(x), net(chain), l2=0.1)

    assert len(x) == 8 // share
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    fit(step, iter([x]), net=net, optimizer=optimizer, iterations=1, progress=False)
    return [a - p.detach() for a, p in zip(start, net.parameters(), strict=True)]


def same(one, two):
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# What the processes do -----------------------------------------------------------------------------------------------


def interrupted(folder, number):
    """Ctrl-C reaches one process only, in iteration 4."""

    def at(done, loss):
        if done == 3 / ITERATIONS and number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    try:
        train(folder, at=at, save_every=100)
    except KeyboardInterrupt:
        return sorted(path.name for path in folder.glob("step-*"))


def refused(kind, call):
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def only_the_first_fails():
    raise OSError(f"process {parallel.rank()} has no room")


def stages(folder, resume):
    """Two stages; which of them were computed, and what they gave."""
    computed, rng = [], seeded(5)
    run = open_run("n", {}, folder, resume, generators=[rng])

    def compute(stage):
        computed.append(stage.folder.name)
        draws = Draws(lambda n, rng: torch.randn(n, 2, generator=rng, dtype=torch.float64), 4, rng)
        torch.manual_seed(0)
        net = MLP(width=4, depth=1).double()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        step = lambda x, done: ((net(x) - 1).square().mean(), {})
        fit(step, draws, net=net, optimizer=optimizer, iterations=3, run=stage, progress=False)
        return {"weights": net.state_dict(), "rank": parallel.rank()}

    found = [run.once(name, compute) for name in ("first", "second")]
    run.close()
    return computed, list(found[1]["weights"].values()), found[1]["rank"], torch.rand(3, generator=rng)


def shared_file(path):
    """What each process reads from a file that the first one to come makes."""
    with parallel.in_turn():
        if not path.exists():
            path.write_text(str(parallel.rank()))
        return path.read_text()


def everything(root, number):
    """What one of the processes saw, in the order in which all of them do it."""
    nan = lambda done, loss: loss * (float("nan") if done == 5 / ITERATIONS and number == 1 else 1.0)
    seen = {"gradient": moved_once(slice(number * 4, number * 4 + 4), PROCESSES)}
    seen["whole"] = train(root / "whole")
    seen["goes on"] = train(root / "one", resume=True)  # begun by a single process
    train(root / "half", iterations=HALF)
    seen["odd"] = refused(ValueError, lambda: train(root / "odd", batch=7))
    seen["seeds"] = refused(RuntimeError, lambda: train(root / "seeds", seed=number))
    seen["relayed"] = refused(OSError, lambda: parallel.once(only_the_first_fails))
    seen["diverged"] = refused(Diverged, lambda: train(root / "nan", at=nan))
    seen["interrupted"] = interrupted(root / "interrupted", number)
    seen["stages"] = [stages(root / "stages", resume) for resume in (False, True)]
    seen["turn"] = shared_file(root / "turn")
    return seen


# The tests -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """(folder, what each process saw) of one start of all of them."""
    root = tmp_path_factory.mktemp("together")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train(root / "one", iterations=HALF)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(PROCESSES)}
    environment["PYTHONPATH"] = str(Path(ebmlib.__file__).parents[1])
    started = [
        subprocess.Popen([sys.executable, __file__, str(root)], env={**environment, "RANK": str(number)})
        for number in range(PROCESSES)
    ]
    try:
        codes = [process.wait(500) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * PROCESSES
    yield root, [torch.load(root / f"seen-{number}.pt", weights_only=True) for number in range(PROCESSES)]
    torch.set_num_threads(before)


def test_the_mean_gradient_is_that_of_the_joined_batch(together):
    _, (first, second) = together
    joined = moved_once()
    assert same(first["gradient"], second["gradient"])
    assert min(float(value.abs().max()) for value in joined) > 1e-4
    for one, both in zip(joined, first["gradient"], strict=True):
        torch.testing.assert_close(both, one, rtol=1e-12, atol=1e-14)


def test_processes_draw_their_own_rows_and_hold_the_same_weights(together):
    _, (first, second) = together
    for what in ("whole", "goes on"):
        one, two = first[what], second[what]
        assert same(one["weights"], two["weights"])
        assert [len(x) for x in one["rows"]] == [4] * len(one["rows"])
        assert not any(torch.equal(x, y) for x, y in zip(one["rows"], two["rows"], strict=True))
        assert torch.equal(one["after"], two["after"])  # one generator again, that of the first
    assert not same(first["whole"]["weights"], train(None)["weights"])  # another draw of the same training
    assert first["whole"]["count"] == 4 * ITERATIONS


def test_a_run_goes_on_with_another_number_of_processes(together):
    root, (first, _) = together
    assert len(first["goes on"]["rows"]) == ITERATIONS - HALF
    assert first["goes on"]["count"] == 8 * HALF + 4 * (ITERATIONS - HALF)
    begun, _ = load(root / "half" / f"step-{HALF:08d}.safetensors")
    alone = train(root / "half", resume=True)  # begun by two, ended by one
    assert [len(x) for x in alone["rows"]] == [8] * (ITERATIONS - HALF)
    whole, _ = load(root / "whole" / f"step-{2 * HALF:08d}.safetensors")
    assert not torch.equal(begun["generators"][0], whole["generators"][0])


def test_one_process_writes(together, tmp_path):
    root, _ = together
    train(tmp_path / "alone")
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert sorted(path.name for path in (root / "whole").iterdir()) == names
    assert not [path for path in root.rglob("*-2*")]  # a second writer would have taken the next free name
    objects, meta = load(root / "whole" / f"step-{ITERATIONS:08d}.safetensors")
    assert meta["iteration"] == ITERATIONS
    assert len(objects["history"]["loss"]) == ITERATIONS


def test_what_cannot_be_shared_is_refused_before_anything_is_written(together):
    root, seen = together
    assert {each["odd"] for each in seen} == {"2 processes cannot share a batch of 7: choose one that they divide"}
    (different,) = {each["seeds"] for each in seen}
    assert "the weights that training starts from; unlike the first are: 1" in different
    assert not (root / "odd").exists()
    assert not (root / "seeds").exists()


def test_an_error_of_the_first_is_raised_by_all(together):
    _, seen = together
    assert [each["relayed"] for each in seen] == ["process 0 has no room"] * PROCESSES


def test_all_stop_at_the_same_iteration(together):
    root, (first, second) = together
    assert first["diverged"] == second["diverged"]
    assert "iteration 6: loss is nan" in first["diverged"]
    assert str(root / "nan" / "step-00000003.safetensors") in first["diverged"]
    assert first["interrupted"] == second["interrupted"] == ["step-00000004.safetensors"]


def test_a_stage_is_computed_by_all_stored_by_one_and_read_for_all(together):
    _, (first, second) = together
    (computed, weights, rank, after), again = first["stages"]
    assert computed == ["first", "second"]
    assert rank == 0
    for other in (again, *second["stages"]):
        assert same(weights, other[1])
        assert other[2] == 0
        assert torch.equal(after, other[3])
    assert again[0] == second["stages"][1][0] == []


def test_what_is_downloaded_is_downloaded_once(together):
    _, seen = together
    assert [each["turn"] for each in seen] == ["0"] * PROCESSES


if __name__ == "__main__":
    folder, number = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder / 'store'}", rank=number, world_size=PROCESSES)
    torch.save(everything(folder, number), folder / f"seen-{number}.pt")
    distributed.destroy_process_group()
