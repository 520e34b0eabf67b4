"""One training loop for all papers: warm-up, EMA, a guard against divergence, checkpoints that resume bit for bit."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ebmlib import core
from ebmlib.run import parallel
from ebmlib.run.checkpoint import digest, load, load_module, load_weights, save, save_weights  # noqa: F401 (for notebooks)
from ebmlib.run.folder import Run, open_run  # noqa: F401
from ebmlib.run.history import Board, History, Stats, Watch

CHECK_EVERY = 10  # iterations between two looks at the loss; each look waits for the device
Step = Callable[[Any, float], tuple[Tensor, Stats]]
Device = str | torch.device | None


class Stopped(RuntimeError):
    """A training ended at `iteration`; `checkpoint` is the last good one or None, `history` what was logged before."""

    def __init__(self, message: str, iteration: int, checkpoint: Any, history: History):
        super().__init__(message)
        self.iteration, self.checkpoint, self.history = iteration, checkpoint, history


class Diverged(Stopped):
    """The loss, a watched stat or the weights left their bounds."""


class OutOfMemory(Stopped):
    """The device's memory did not suffice."""


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The named device; None is cuda if there is one, else cpu. ValueError that lists what there is otherwise."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there = ["cpu", *(["cuda"] if cuda else []), *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]
    name = str(name) if name is not None else ("cuda" if cuda else "cpu")
    if name not in there:
        raise ValueError(f"device {name!r} is not there; available: {', '.join(there)}")
    return torch.device(name)


def seeded(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A new generator on `device` with this seed."""
    return torch.Generator(device).manual_seed(seed)


class Batches(Iterator):
    """Endless batches of `x` (N, *S) in shuffled epochs; the last N mod batch_size of an epoch are left out.

    `transform(batch, rng)` runs after the batch is on `device`. The order is drawn from `rng`, which `fit` saves, too.
    Several processes share batch_size. ValueError if there are fewer than batch_size rows.
    """

    def __init__(
        self, x: Tensor, batch_size: int, rng: torch.Generator, transform: Callable | None = None, device: Device = None
    ):
        if not 1 <= batch_size <= len(x):
            raise ValueError(f"batch_size is {batch_size}; it must lie in 1..{len(x)}, the number of rows")
        self.x, self.batch_size, self.rng, self.transform = x, parallel.share(batch_size), rng, transform
        self.rows = digest({"x": x[:: max(1, len(x) // 1000)]})  # of about a thousand rows: enough to tell data apart
        self.device = x.device if device is None else torch.device(device)
        self.order: Tensor | None = None
        self.position = 0

    def __next__(self) -> Tensor:
        if self.order is None or self.position + self.batch_size > len(self.order):
            order = torch.randperm(len(self.x), generator=self.rng, device=self.rng.device)
            self.order, self.position = order.to(self.x.device), 0
        chosen = self.order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        batch = self.x[chosen].to(self.device)
        return batch if self.transform is None else self.transform(batch, self.rng)

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "position": self.position, "rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        order = state["order"]
        if order is not None and len(order) != len(self.x):
            raise ValueError(f"the saved order is of {len(order)} rows, the data have {len(self.x)}")
        if state.get("rows", self.rows) != self.rows:
            raise ValueError("the saved order is of other rows: these are not the data that the run began with")
        self.order = None if order is None else order.to(self.x.device)
        self.position = state["position"]


class Draws(Iterator):
    """Endless fresh batches sample(batch_size, rng) on `device`; several processes share batch_size."""

    def __init__(self, sample: Callable[..., Tensor], batch_size: int, rng: torch.Generator, device: Device = None):
        self.sample, self.batch_size, self.rng, self.device = sample, parallel.share(batch_size), rng, device

    def __next__(self) -> Tensor:
        x = self.sample(self.batch_size, self.rng)
        return x if self.device is None else x.to(self.device)


def ema(net: nn.Module, decay: float) -> AveragedModel:
    """The running mean of a net's parameters, m <- decay m + (1 - decay) p from the initial ones; buffers are copied.

    `fit` updates it; at its end and in checkpoints, spectral norms are the mean's own. `.module`, in eval mode and
    without gradients, is the net with these weights. `decay` lies in [0, 1) and is saved with the mean.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; it must lie in [0, 1)")
    mean = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay)).eval().requires_grad_(False)
    mean.decay = decay
    mean.update_parameters(net)  # the first is a copy
    return mean


class _Training(contextlib.AbstractContextManager):
    """Everything that changes while training, and so everything that a checkpoint holds."""

    def __init__(self, net: Any, mean: Any, optimizer: Any, batches: Any, generators: Any, state: Any, run: Run | None):
        self.nets = dict(net) if isinstance(net, Mapping) else {"net": net}
        self.emas = {} if mean is None else dict(mean) if isinstance(mean, Mapping) else {"net": mean}
        if unknown := self.emas.keys() - self.nets.keys():
            raise ValueError(f"ema names {', '.join(unknown)}; the nets are: {', '.join(self.nets)}")
        self.optimizer, self.state, self.run, self.history = optimizer, list(state), run, History()
        self.given, self.batches = batches, batches if hasattr(batches, "__next__") else iter(batches)
        rng = getattr(batches, "rng", None)
        self.generators = [*generators, *([] if rng is None or any(rng is other for other in generators) else [rng])]
        self.board, self.good = Board(0), None  # the last good checkpoint
        self.terms = _terms(optimizer, batches)
        self.norms = set().union(*map(core.norms, self.nets.values())) - core.in_training
        core.in_training |= self.norms  # in no energy, which chains run in evaluation mode

    def __exit__(self, kind: type | None, *_: Any) -> None:
        self.board.close()
        core.in_training -= self.norms
        if kind is not None and self.run is not None:
            self.run.close()  # the same process may resume it

    def objects(self) -> dict[str, Any]:
        return {
            "net": {name: module.state_dict() for name, module in self.nets.items()},
            "ema": {name: mean.module.state_dict() for name, mean in self.emas.items()},
            "averages": {name: [mean.decay, mean.n_averaged] for name, mean in self.emas.items()},
            "optimizer": self.optimizer.state_dict(),
            "terms": self.terms,
            **parallel.random_state(self.generators),
            "batches": self.batches.state_dict() if hasattr(self.batches, "state_dict") else None,
            "state": [part.state_dict() for part in self.state],
            "history": self.history.state_dict(),
        }

    def resume(self) -> int:
        """Go on from the run's newest checkpoint, if there is one; returns the iterations that are behind."""
        start = 0
        if self.run is not None and (newest := self.run.newest()):
            self.good = newest[0]
            start = self._restore(*newest)
            self.run.write_text("log.csv", self.history.csv())  # a kill may have come between it and the checkpoint
        parallel.agree("the weights that training starts from", [value for _, value in self._weights()])
        self.board.written, self.began = start, time.perf_counter() - self.history.seconds
        return start

    def _restore(self, path: Any, objects: Mapping[str, Any], meta: Mapping[str, Any]) -> int:
        for name, value in objects.get("terms", {}).items():
            if name in self.terms and self.terms[name] != value:
                raise ValueError(f"{path} is of another run: it has {name} = {value!r}, not {self.terms[name]!r}")
        own = {"net": self.nets, "ema": self.emas, "generators": self.generators, "state": self.state}
        for kind, parts in own.items():
            saved = objects[kind]
            if list(saved) != list(parts) if isinstance(parts, dict) else len(saved) != len(parts):
                raise ValueError(f"{path} is of another run: it has {len(saved)} of kind {kind}, here are {len(parts)}")
        for name, module in self.nets.items():
            load_weights(module, objects["net"][name], path)
        for name, mean in self.emas.items():
            decay, n_averaged = objects["averages"][name]
            if decay != mean.decay:
                raise ValueError(f"{path} is of another run: its mean has decay {decay}, not {mean.decay}")
            load_weights(mean.module, objects["ema"][name], path)
            mean.n_averaged.copy_(n_averaged)
        self.optimizer.load_state_dict(objects["optimizer"])
        if objects["batches"] is not None and parallel.rank() == 0:  # the others begin an epoch of their own
            self.batches.load_state_dict(objects["batches"])
        for part, saved in zip(self.state, objects["state"], strict=True):
            part.load_state_dict(saved)
        self.history.load_state_dict(objects["history"])
        self.history.seconds = meta["seconds"]
        parallel.set_random_state(objects, self.generators)
        return meta["iteration"]

    def _weights(self) -> list[tuple[str, Tensor]]:
        """The nets' parameters and their means, with names."""
        modules = (*self.nets.values(), *(mean.module for mean in self.emas.values()))
        return [pair for module in modules for pair in module.named_parameters()]

    def advance(self, step: Step, iteration: int, done: float, clip_norm: float | None) -> tuple[Tensor, Stats]:
        """One iteration; OutOfMemory says what to lower."""
        batch = None
        try:
            batch = self._next(iteration)
            loss, stats = _loss(step(batch, done))
            self.optimizer.zero_grad(set_to_none=True)  # after the step: what a chain left behind does not count
            loss.backward()
            parallel.mean_gradients(self.optimizer)
            if clip_norm is not None:
                weights = [p for group in self.optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(weights, clip_norm)
            self.optimizer.step()
            for name, mean in self.emas.items():
                mean.update_parameters(self.nets[name])
            return loss, stats
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            rows = f" (now {len(batch)})" if isinstance(batch, Tensor) else ""
            advice = f"lower the batch size{rows} first, then the width of the net"
            raise self._stopped(OutOfMemory, f"out of memory at iteration {iteration}: {advice}", iteration) from error

    def _next(self, iteration: int) -> Any:
        """The next batch; what ends is gone through again, as a DataLoader at the end of each epoch."""
        for _ in range(2):
            with contextlib.suppress(StopIteration):
                return next(self.batches)
            self.batches = iter(self.given)
        again = "give an endless iterator, or batches that can be gone through again"
        raise ValueError(f"the batches ended before iteration {iteration}: {again}")

    def look(self, iteration: int, watch: Watch, due: bool, keep: int) -> None:
        """Check what was seen, before each checkpoint and every CHECK_EVERY iterations, and write the checkpoint."""
        if due or iteration % CHECK_EVERY == 0:
            bad = next((found for found in parallel.gathered(watch.check()) if found), None)  # all stop, or none
            if due and bad is None:
                parallel.agree(f"the weights at iteration {iteration}", [value for _, value in self._weights()])
                broken = (name for name, value in self._weights() if not torch.isfinite(value).all())
                bad = next(((iteration, f"the weight {name} is not finite") for name in broken), None)
            if bad is not None:
                raise self._stopped(Diverged, f"training diverged at iteration {bad[0]}: {bad[1]}", bad[0])
        self.history.seconds = time.perf_counter() - self.began
        for mean in self.emas.values() if due else ():
            core.renormalize(mean.module)
        if due and self.run is not None:
            self.good = self.run.save(iteration, self.objects(), {"seconds": self.history.seconds}, keep)
            self.run.write_text("log.csv", self.history.csv())
            if parallel.rank() == 0:
                self.board.write(self.history, self.good.parent)

    def _stopped(self, kind: type[Stopped], what: str, iteration: int) -> Stopped:
        there = "there is no checkpoint yet"
        if self.good is not None:
            there = f"the last good checkpoint is {self.good} (iteration {int(self.good.stem[5:])})"
        return kind(f"{what}; {there}", iteration, self.good, self.history)


def _terms(optimizer: Any, batches: Any) -> dict[str, Any]:
    """What must be the same where a training goes on: the optimizer with its options and rates, and the batch size."""
    computing = ("params", "foreach", "fused", "capturable", "differentiable")  # these do not change what is computed
    terms = {"optimizer": type(optimizer).__name__, "batch_size": getattr(batches, "batch_size", 0) * parallel.size()}
    for i, group in enumerate(optimizer.param_groups):
        terms |= {f"{k} of group {i}" if i else k: v for k, v in group.items() if k not in computing}
    return terms


def _loss(given: Any) -> tuple[Tensor, Stats]:
    """What a step returned; ValueError unless it is (loss, stats) with one number that has a gradient."""
    match given:
        case Tensor() as loss, Mapping() if loss.numel() == 1 and loss.requires_grad:
            return given
        case Tensor() as loss, Mapping():
            got = f"a loss of shape {tuple(loss.shape)} with {'a' if loss.requires_grad else 'no'} gradient"
        case _:
            got = ", ".join(type(part).__name__ for part in (given if isinstance(given, tuple) else [given]))
    raise ValueError(f"step must return (loss, stats): one number with a gradient, and a mapping; got {got}")


@contextlib.contextmanager
def _rates(optimizer: Any, warmup: int, cosine: bool, iterations: int) -> Iterator[LambdaLR | None]:
    """Within: a scheduler that multiplies the rates of iteration i = 1, 2, .. by min(1, i / warmup) and a half cosine.

    With neither, rates are left alone: a scheduler that `step` calls and `state` holds may set them.
    """

    def factor(behind: int) -> float:
        rise = min(1.0, (behind + 1) / warmup) if warmup else 1.0
        return rise * 0.5 * (1 + math.cos(math.pi * behind / iterations)) if cosine else rise

    if not warmup and not cosine:
        yield None
        return
    scheduler = LambdaLR(optimizer, factor)
    try:
        yield scheduler
    finally:
        for group, rate in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = rate
            del group["initial_lr"]  # another training may begin from another rate


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Within: torch's deterministic algorithms, if wanted, else cuDNN's fastest for the shapes that come again."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # counts if no cuBLAS call came before
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextlib.contextmanager
def _interrupts() -> Iterator[list[bool]]:
    """Within: the first Ctrl-C waits for the end of the iteration, so that nothing is lost; a second one does not."""
    asked: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: (asked.append(True), signal.signal(signal.SIGINT, before)))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def fit(
    step: Step, batches: Iterable[Any], *, net: nn.Module | Mapping[str, nn.Module], optimizer: torch.optim.Optimizer,
    iterations: int, ema: AveragedModel | Mapping[str, AveragedModel] | None = None, run: Run | None = None,
    generators: Sequence[torch.Generator] = (), state: Sequence[Any] = (), warmup: int = 0, cosine: bool = False,
    clip_norm: float | None = None, save_every: int = 1000, keep: int = 2, bound: float | Mapping[str, float] = 1e6,
    log_every: int = 10, desc: str = "", progress: bool = True, deterministic: bool = False, clock: bool = False,
) -> History:  # fmt: skip
    """Minimize the loss of step(batch, done) -> (loss, stats), up to `iterations` in all; done in [0, 1) is behind.

    A stat is a 0- or 1-d tensor, or a plain number that is summed (`History.total`); `clock` adds "cpu_seconds". With a
    `run`, a checkpoint is written every `save_every` iterations, at the end and on Ctrl-C, and one that is there is
    continued, bit-identically on the CPU: it holds `generators`, batches.rng, torch's generator and `state`, too.
    `warmup` is linear, `cosine` decays to 0. Several processes (`parallel`) call it alike; the first one's are kept.
    Diverged if |loss| > bound or is not finite, or a stat named in the mapping `bound`. OutOfMemory says what to lower.
    """
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        raise ValueError(f"clip_norm = {clip_norm}: allowed is None, which is off, or a finite number above 0")
    training = _Training(net, ema, optimizer, batches, generators, state, run)
    training.terms |= {"warmup": warmup, "clip_norm": clip_norm, "cosine over": iterations if cosine else None}
    watch, pause = Watch(bound, log_every, training.history), 0.5 if os.isatty(2) else 5.0
    with training, _rates(optimizer, warmup, cosine, iterations) as rates, _deterministic(deterministic):
        start, silent = training.resume(), not progress or parallel.rank() > 0
        if rates:
            rates.last_epoch = start
        bar = tqdm(total=iterations, initial=start, disable=silent, desc=desc, leave=False, mininterval=pause)
        with _interrupts() as asked, bar, parallel.own_random_numbers(training.generators):
            for i in range(start + 1, iterations + 1):
                began = time.process_time()
                loss, stats = training.advance(step, i, (i - 1) / iterations, clip_norm)
                if rates:
                    rates.step()
                watch.add(i, loss, {**stats, "cpu_seconds": time.process_time() - began} if clock else stats)
                stop = any(parallel.gathered(bool(asked)))
                due = stop or i == iterations or (run is not None and i % save_every == 0)
                training.look(i, watch, due, keep)
                bar.set_postfix_str(watch.text, refresh=False)
                bar.update()
                if stop:
                    raise KeyboardInterrupt
    return training.history
