"""One training loop for all papers: warm-up, EMA, a guard against divergence, checkpoints that resume bit for bit."""

import contextlib
import copy
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ebmlib.run import parallel
from ebmlib.run.checkpoint import Run, load, load_module, load_weights, open_run, save, save_weights  # noqa: F401 (the face)
from ebmlib.run.history import Board, History, Stats, Watch

CHECK_EVERY = 10  # iterations between two looks at the loss; each look waits for the device
Step = Callable[[Any], tuple[Tensor, Stats]]


class Diverged(RuntimeError):
    """The loss, a watched stat or the weights left their bounds at `iteration`.

    `checkpoint` is the last good one or None; `history` holds what was logged before.
    """

    def __init__(self, message: str, iteration: int, checkpoint: Any = None, history: Any = None):
        super().__init__(message)
        self.iteration, self.checkpoint, self.history = iteration, checkpoint, history


class OutOfMemory(RuntimeError):
    """The device's memory did not suffice at `iteration`; `checkpoint` is the last good one or None."""

    def __init__(self, message: str, iteration: int, checkpoint: Any = None):
        super().__init__(message)
        self.iteration, self.checkpoint = iteration, checkpoint


# Devices, generators, data -------------------------------------------------------------------------------------------


def pick_device(name: str | None = None) -> torch.device:
    """The named device; None is cuda if there is one, else cpu. ValueError that lists what there is otherwise."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    there = ["cpu", *(["cuda"] if cuda else []), *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]
    name = name if name is not None else ("cuda" if cuda else "cpu")
    if name not in there:
        raise ValueError(f"device {name!r} is not there; available: {', '.join(there)}")
    return torch.device(name)


def seeded(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A new generator on `device` with this seed."""
    return torch.Generator(device).manual_seed(seed)


class Batches(Iterator):
    """Endless batches of `x` (N, *S) in shuffled epochs; the last N mod batch_size of an epoch are left out.

    `transform(batch, rng)` runs after the batch is on `device`. The order is drawn from `rng`; state_dict holds the
    order and the position, and `fit` saves `rng` itself. ValueError if there are fewer than batch_size rows.
    """

    def __init__(
        self,
        x: Tensor,
        batch_size: int,
        rng: torch.Generator,
        transform: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        device: str | torch.device | None = None,
    ):
        if not 1 <= batch_size <= len(x):
            raise ValueError(f"batch_size is {batch_size}; it must lie in 1..{len(x)}, the number of rows")
        self.x, self.batch_size, self.rng, self.transform = x, batch_size, rng, transform
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
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        order = state["order"]
        if order is not None and len(order) != len(self.x):
            raise ValueError(f"the saved order is of {len(order)} rows, the data have {len(self.x)}")
        self.order = None if order is None else order.to(self.x.device)
        self.position = state["position"]


class Draws(Iterator):
    """Endless fresh batches sample(batch_size, rng), moved to `device`; no state beyond `rng`, which `fit` saves."""

    def __init__(
        self,
        sample: Callable[[int, torch.Generator], Tensor],
        batch_size: int,
        rng: torch.Generator,
        device: str | torch.device | None = None,
    ):
        self.sample, self.batch_size, self.rng, self.device = sample, batch_size, rng, device

    def __next__(self) -> Tensor:
        x = self.sample(self.batch_size, self.rng)
        return x if self.device is None else x.to(self.device)


class Ema:
    """A running mean of parameters, m <- decay m + (1 - decay) p; buffers are copied. `.module` is in eval mode."""

    def __init__(self, module: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must lie in [0, 1)")
        self.source, self.decay = module, decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        mean, now = list(self.module.parameters()), [p.detach() for p in self.source.parameters()]
        torch._foreach_lerp_(mean, now, 1 - self.decay)
        for kept, buffer in zip(self.module.buffers(), self.source.buffers(), strict=True):
            kept.copy_(buffer)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        load_weights(self.module, state, "the saved running mean")


# The loop ------------------------------------------------------------------------------------------------------------


class _Parts:
    """Everything that changes while training, and so everything that a checkpoint holds."""

    def __init__(self, net: Any, ema: Any, optimizer: torch.optim.Optimizer, batches: Any, generators: Any, state: Any):
        self.nets = dict(net) if isinstance(net, Mapping) else {"net": net}
        self.emas = {} if ema is None else dict(ema) if isinstance(ema, Mapping) else {"net": ema}
        self.optimizer, self.batches, self.state = optimizer, batches, list(state)
        self.rows: int | None = None  # of the last batch
        self.generators = list(generators)
        rng = getattr(batches, "rng", None)
        if rng is not None and not any(rng is other for other in self.generators):
            self.generators.append(rng)
        self.history = History()

    def objects(self) -> dict[str, Any]:
        return {
            "net": {name: module.state_dict() for name, module in self.nets.items()},
            "ema": {name: ema.state_dict() for name, ema in self.emas.items()},
            "optimizer": self.optimizer.state_dict(),
            "generators": [rng.get_state() for rng in self.generators],
            "global": {"cpu": torch.get_rng_state(), "cuda": parallel.cuda_states()},
            "batches": self.batches.state_dict() if hasattr(self.batches, "state_dict") else None,
            "state": [part.state_dict() for part in self.state],
            "history": self.history.state_dict(),
        }

    def restore(self, path: Any) -> int:
        """Load a checkpoint into every part; returns its iteration."""
        objects, meta = load(path)
        own = {"net": self.nets, "ema": self.emas, "generators": self.generators, "state": self.state}
        for kind, parts in own.items():
            saved = objects[kind]
            if list(saved) != list(parts) if isinstance(parts, dict) else len(saved) != len(parts):
                raise ValueError(f"{path} is of another run: it has {len(saved)} of kind {kind}, here are {len(parts)}")
        for name, module in self.nets.items():
            load_weights(module, objects["net"][name], path)
        for name, ema in self.emas.items():
            ema.load_state_dict(objects["ema"][name])
        self.optimizer.load_state_dict(objects["optimizer"])
        if objects["batches"] is not None:
            self.batches.load_state_dict(objects["batches"])
        for part, saved in zip(self.state, objects["state"], strict=True):
            part.load_state_dict(saved)
        self.history.load_state_dict(objects["history"])
        self.history.seconds = meta["seconds"]
        for rng, saved in zip(self.generators, objects["generators"], strict=True):
            rng.set_state(saved)
        torch.set_rng_state(objects["global"]["cpu"])
        parallel.set_cuda_states(objects["global"]["cuda"])
        return meta["iteration"]

    @torch.no_grad()
    def broken(self) -> str | None:
        """The name of the first weight that is not finite; waits for the device."""
        for module in (*self.nets.values(), *(ema.module for ema in self.emas.values())):
            for name, value in module.named_parameters():
                if not torch.isfinite(value).all():
                    return name
        return None


class _Rate(contextlib.AbstractContextManager):
    """Learning rates times min(1, i / warmup) at iteration i = 1, 2, .., and times a half cosine from 1 to 0 if asked.

    With neither, they are left to the optimizer, or to a scheduler that `step` calls and `state` holds.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup: int, cosine: bool, iterations: int):
        self.optimizer, self.warmup, self.cosine, self.iterations = optimizer, warmup, cosine, iterations
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def set(self, iteration: int) -> None:
        factor = min(1.0, iteration / self.warmup) if self.warmup else 1.0
        if self.cosine:
            factor *= 0.5 * (1 + math.cos(math.pi * (iteration - 1) / self.iterations))
        self._scale(factor)

    def _scale(self, factor: float) -> None:
        if self.warmup or self.cosine:  # the groups are looked up anew: loading a state replaces them
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor

    def __exit__(self, *_: Any) -> None:
        self._scale(1.0)


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Within: torch's deterministic algorithms, if wanted, else cuDNN's fastest for the shapes that come again.

    The variable counts if no cuBLAS call came before.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Within: the first Ctrl-C waits for the end of the iteration, so that nothing is lost; a second one does not."""
    asked = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield lambda: False
        return

    def ask(*_: Any) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def _memory_was_short(error: RuntimeError) -> bool:
    """CUDA has a class of its own for it; the CPU's allocator has only its words."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _advance(step: Step, parts: _Parts, clip_norm: float | None) -> tuple[Tensor, Stats]:
    optimizer, batch = parts.optimizer, next(parts.batches)
    parts.rows = len(batch) if isinstance(batch, Tensor) else None
    loss, stats = step(batch)
    optimizer.zero_grad(set_to_none=True)  # after the step: gradients that a chain left behind do not count
    loss.backward()
    parallel.mean_gradients(optimizer)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip_norm)
    optimizer.step()
    for mean in parts.emas.values():
        mean.update()
    return loss, stats


class _Keeper(contextlib.AbstractContextManager):
    """Looks at what was seen, every CHECK_EVERY iterations and before each checkpoint, and writes the checkpoints."""

    def __init__(self, run: Run | None, parts: _Parts, watch: Watch, save_every: int, keep: int):
        self.run, self.parts, self.watch, self.save_every, self.keep = run, parts, watch, save_every, keep
        self.good = run.checkpoints()[-1] if run is not None and run.checkpoints() else None
        try:
            self.start = parts.restore(self.good) if self.good else 0
            if self.good:  # a kill may have come between the checkpoint and its log
                run.write_text("log.csv", parts.history.csv())
        except BaseException:
            run.close()  # the same process may try again
            raise
        self.began = time.perf_counter() - parts.history.seconds
        self.board = Board(self.start)

    def look(self, iteration: int, loss: Tensor, stats: Stats, last: bool) -> None:
        self.watch.add(iteration, loss, stats)
        due = last or (self.run is not None and iteration % self.save_every == 0)
        if due or iteration % CHECK_EVERY == 0:
            self._stop_if_bad(iteration, weights=due)
        self.parts.history.seconds = time.perf_counter() - self.began
        if due and self.run is not None:
            meta = {"seconds": self.parts.history.seconds}
            self.good = self.run.save(iteration, self.parts.objects(), meta, self.keep)
            self.run.write_text("log.csv", self.parts.history.csv())
            if parallel.rank() == 0:
                self.board.write(self.parts.history, self.good.parent)

    @contextlib.contextmanager
    def memory(self, iteration: int) -> Iterator[None]:
        """Within: memory that does not suffice becomes one sentence that says what to lower."""
        try:
            yield
        except RuntimeError as error:
            if not _memory_was_short(error):
                raise
            rows = f" (now {self.parts.rows})" if self.parts.rows else ""
            message = (
                f"out of memory at iteration {iteration}: lower the batch size{rows} first, then the width of the net; "
                f"{self._last_good()}"
            )
            raise OutOfMemory(message, iteration, self.good) from error

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try:
            self.board.close()
        finally:
            if kind is not None and self.run is not None:
                self.run.close()  # the same process may resume it

    def _stop_if_bad(self, iteration: int, weights: bool) -> None:
        bad = parallel.gathered(self.watch.check())[0]  # the first's word, so that all stop or none
        if bad is None and weights and (name := self.parts.broken()):
            bad = iteration, f"the weight {name} is not finite"
        if bad is None:
            return
        message = f"training diverged at iteration {bad[0]}: {bad[1]}; {self._last_good()}"
        raise Diverged(message, bad[0], self.good, self.parts.history)

    def _last_good(self) -> str:
        if self.good is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.good} (iteration {int(self.good.stem.rpartition('-')[2])})"


def fit(
    step: Step,
    batches: Iterable[Any],
    *,
    net: nn.Module | Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    iterations: int,
    ema: Ema | Mapping[str, Ema] | None = None,
    run: Run | None = None,
    generators: Sequence[torch.Generator] = (),
    state: Sequence[Any] = (),
    warmup: int = 0,
    cosine: bool = False,
    clip_norm: float | None = None,
    save_every: int = 1000,
    keep: int = 2,
    bound: float | Mapping[str, float] = 1e6,
    log_every: int = 10,
    desc: str = "",
    progress: bool = True,
    deterministic: bool = False,
) -> History:
    """Minimize the loss of step(batch) -> (loss, stats), up to `iterations` in all; stats are 0- or 1-d tensors.

    With a `run`, checkpoints are written every `save_every` iterations, at the end and on Ctrl-C, and one that is there
    is continued, bit-identically on the CPU at the same thread count; `generators`, batches.rng, torch's own generator
    and the objects in `state` (state_dict, load_state_dict) are in it. `warmup` is linear; `cosine` decays to 0.
    In a process group (`run.launch`) all processes call it alike, and `parallel.sharded` divides the nets' calls.
    Diverged if |loss| > bound or is not finite, or a stat named in the mapping `bound`; a checkpoint is always good.
    OutOfMemory says what to lower. The run's folder has log.csv, and TensorBoard scalars if tensorboard is installed.
    """
    batches = batches if hasattr(batches, "__next__") else iter(batches)
    rate = _Rate(optimizer, warmup, cosine, iterations)
    parts = _Parts(net, ema, optimizer, batches, generators, state)
    keeper = _Keeper(run, parts, Watch(bound, log_every, parts.history), save_every, keep)
    shown = {"desc": desc, "leave": False, "mininterval": 0.5 if os.isatty(2) else 5.0}
    bar = tqdm(total=iterations, initial=keeper.start, disable=not progress or parallel.rank() > 0, **shown)
    shared = parallel.sharded(parts.nets.values(), parts.generators)
    with keeper, bar, rate, _deterministic(deterministic), shared, _interrupts() as interrupted:
        for iteration in range(keeper.start + 1, iterations + 1):
            rate.set(iteration)
            with keeper.memory(iteration):
                loss, stats = _advance(step, parts, clip_norm)
            stop = any(parallel.gathered(interrupted()))
            keeper.look(iteration, loss, stats, last=stop or iteration == iterations)
            bar.set_postfix_str(keeper.watch.text, refresh=False)
            bar.update()
            if stop:
                raise KeyboardInterrupt
    return parts.history
