"""Two processes train as one: the same weights to the last digits, one set of files, and errors that all hear of.

The net below has all that could go wrong: spectral norm in train mode, levels, a chain whose last step keeps its graph,
a term on the weights themselves, and samples that are coupled through a reservoir. As a script, this file is one of
the processes.
"""

import copy
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

import ebmlib
from ebmlib.core import evaluating
from ebmlib.nets.mlp import MLP, TimeMLP
from ebmlib.objectives import contrastive, entropy_nn, kl_opt
from ebmlib.papers import recovery
from ebmlib.reservoir import Reservoir
from ebmlib.run import parallel
from ebmlib.run.training import Batches, Diverged, Draws, Ema, fit, load, open_run, seeded
from ebmlib.samplers import langevin, langevin_step, ula

PROCESSES = 2
ITERATIONS, HALF = 8, 3
WHOLE = {"iterations": ITERATIONS, "save_every": HALF}


def train(folder, *, batch=8, seed=0, resume=False, at=None, **options):
    """A run of two nets in float64; returns all that it changed. `at(iteration, loss)` may change the loss."""
    torch.manual_seed(seed)
    nets = nn.ModuleDict({"levels": TimeMLP(width=8, multipliers=(1,), spectral=True), "flat": MLP(width=8, depth=2)})
    nets.double()
    start = [p.detach().clone() for p in nets.parameters()]
    rng = seeded(seed + 1)
    tables = recovery.noising(6, b2=0.02, scaled=False)
    pool = Reservoir(lambda n, rng: torch.randn(n, 2, generator=rng), rng, capacity=40, restart=0.2)
    optimizer, ema, count = torch.optim.Adam(nets.parameters(), 1e-2), Ema(nets, 0.5), 0
    at_level = recovery.levels(nets["levels"].at, tables)

    def step(x):
        nonlocal count
        count += 1
        y, x_next, t = tables.pairs(x, rng)
        with evaluating(nets):
            target = recovery.conditional(at_level(t), x_next, tables.precision[t])
            y_neg, _ = langevin(target, x_next, recovery.schedule(tables, t, 3), rng=rng)
            z, _ = langevin(nets["flat"], pool.draw(len(x), rng).double(), ula(0.05, 2), rng=rng)
        E = at_level(t)
        loss, stats = contrastive(E(y), E(y_neg), weight=tables.weight[t])
        z, _ = langevin_step(nets["flat"], z, 0.05, 0.1, rng=rng, differentiable=True)
        near = entropy_nn(z, pool.draw(5, rng, restart=0.0).double())
        pool.push(z, rng)
        loss = loss + contrastive(nets["flat"](x), nets["flat"](z.detach()), l2=0.1)[0]
        loss = loss + kl_opt(nets["flat"], z) - 0.3 * near
        loss = loss + 0.01 * sum(p.square().sum() for p in nets.parameters())  # the weights themselves
        return (loss if at is None else at(count, loss)), stats

    data = torch.randn(24, 2, generator=seeded(9), dtype=torch.float64)
    run = None if folder is None else open_run("n", {"batch": batch}, folder, resume)
    options = {"progress": False, "log_every": 1, "clip_norm": 1.0, **WHOLE, **options}
    batches = Batches(data, batch, rng)
    history = fit(step, batches, net=nets, ema=ema, optimizer=optimizer, run=run, state=[pool], **options)
    end = [*nets.parameters(), *nets.buffers(), *ema.module.parameters(), pool.x]
    end += [torch.from_numpy(history.loss), torch.from_numpy(history["gap"]), torch.rand(2, generator=rng)]
    return start, [value.detach().double().clone() for value in end]


def apart(one, two):
    assert len(one) == len(two)
    return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))


# What the processes do -----------------------------------------------------------------------------------------------


def interrupted(folder, number):
    """Ctrl-C reaches one process only, in iteration 4."""

    def at(iteration, loss):
        if iteration == 4 and number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    try:
        train(folder, at=at, save_every=100)
    except KeyboardInterrupt:
        names = [path.name for path in folder.iterdir()]
        return sorted(name for name in names if name != "tensorboard")  # which the first writes later


def refused(kind, call):
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def only_the_first_fails():
    raise OSError(f"process {parallel.rank()} has no room")


def one_sum(inner):
    """A loss whose net is called in a copy that was made while training; its gradient is lost, its value is not."""
    net = MLP(width=4, depth=1).double()
    seen = []

    def step(x):
        seen.append((inner(net)(x) - net(x)).abs().max().detach())
        return net(x).mean(), {}

    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    draws = Draws(lambda n, rng: torch.randn(n, 2, generator=rng, dtype=torch.float64), 4, seeded(2))
    fit(step, draws, net=net, optimizer=optimizer, iterations=2, progress=False)
    return float(max(seen))


def never_called():
    """A training whose net no process calls in parts."""
    weight = nn.Parameter(torch.ones(2))
    net = nn.ParameterList([weight])
    draws = Draws(lambda n, rng: torch.randn(n, 2, generator=rng), 4, seeded(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(
            lambda x: ((x * weight).mean(), {}),
            draws,
            net=net,
            optimizer=torch.optim.SGD([weight], 0.1),
            iterations=1,
            progress=False,
        )
    return [str(warning.message) for warning in caught]


def everything(root, number):
    """What one of the processes saw, in the order in which all of them do it."""
    nan = lambda iteration, loss: loss * (float("nan") if iteration == 6 else 1.0)
    seen = {"whole": train(root / "whole")[1]}
    seen["goes on"] = train(root / "one", resume=True)[1]  # begun by a single process
    train(root / "half", iterations=HALF)
    seen["odd"] = refused(ValueError, lambda: train(root / "odd", batch=7))
    seen["seeds"] = refused(RuntimeError, lambda: train(root / "seeds", seed=number))
    seen["relayed"] = refused(OSError, lambda: parallel.once(only_the_first_fails))
    seen["diverged"] = refused(Diverged, lambda: train(root / "nan", at=nan))
    seen["interrupted"] = interrupted(root / "interrupted", number)
    seen["copied"] = one_sum(copy.deepcopy)
    seen["warned"] = never_called()
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


def test_two_processes_end_with_the_weights_of_one(together):
    _, (first, second) = together
    start, alone = train(None)
    assert apart(first["whole"], second["whole"]) == 0
    assert apart(first["whole"], alone) < 1e-10
    moved = [float((a - b).abs().max()) for a, b in zip(start, alone)]
    assert min(moved) > 1e-4  # every weight went a long way, next to that


def test_other_draws_end_far_away():
    """So the comparison above can fail."""
    assert apart(train(None)[1], train(None, batch=6)[1]) > 1e-3


def test_a_run_goes_on_with_another_number_of_processes(together):
    root, (first, second) = together
    alone = train(None)[1]
    assert apart(first["goes on"], second["goes on"]) == 0
    assert apart(first["goes on"], alone) < 1e-10
    assert apart(train(root / "half", resume=True)[1], alone) < 1e-10  # begun by two, ended by one


def test_one_process_writes(together, tmp_path):
    root, _ = together
    train(tmp_path / "alone")
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert sorted(path.name for path in (root / "whole").iterdir()) == names
    assert not [path for path in root.rglob("*-2*")]  # a second writer would have taken the next free name
    objects, meta = load(root / "whole" / f"step-{ITERATIONS:08d}.safetensors")
    assert meta["iteration"] == ITERATIONS
    assert len(objects["history"]["loss"]) == ITERATIONS


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_written(together):
    root, seen = together
    assert {each["odd"] for each in seen} == {"2 processes cannot share a batch of 7: choose one that they divide"}
    assert not (root / "odd").exists()


def test_processes_of_different_seeds_are_refused(together):
    root, seen = together
    assert {each["seeds"] for each in seen} == {
        "the processes must agree in the weights and generators that training starts from; unlike the first are: 1"
    }
    assert not (root / "seeds").exists()


def test_all_hear_of_an_error_of_the_first(together):
    _, seen = together
    assert [each["relayed"] for each in seen] == ["process 0 has no room"] * PROCESSES


def test_all_stop_at_the_same_iteration(together):
    root, (first, second) = together
    good = root / "nan" / "step-00000003.safetensors"
    assert first["diverged"] == second["diverged"]
    assert "iteration 6: loss is nan" in first["diverged"]
    assert str(good) in first["diverged"]
    assert first["interrupted"] == second["interrupted"]
    assert "step-00000004.safetensors" in first["interrupted"]


def test_a_copy_made_while_training_is_a_net_of_its_own(together):
    _, seen = together
    assert max(each["copied"] for each in seen) < 1e-12


def test_a_training_that_nothing_is_divided_in_says_so(together):
    _, seen = together
    assert [each["warned"] for each in seen] == [
        ["training called none of its nets: each process did all the work"]
    ] * PROCESSES


if __name__ == "__main__":
    folder, number = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder / 'store'}", rank=number, world_size=PROCESSES)
    torch.save(everything(folder, number), folder / f"seen-{number}.pt")
    distributed.destroy_process_group()
