"""Several processes that train one net: each runs the same step, and only the calls of the net are divided among them.

Every process draws the whole batch, its levels, noise and reservoir places from one seed, and follows the whole chains
and the whole loss. What costs time is the net: a call computes this process's rows, and the rows of all are gathered.
So a step needs no change, and it may couple its samples as it likes. With one process nothing here does anything.
"""

import contextlib
import functools
import hashlib
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd import Function

# The processes -------------------------------------------------------------------------------------------------------


def size() -> int:
    """How many processes train together; 1 without a process group (`ebmlib.run.launch` makes one)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0. The first one alone writes files and shows progress."""
    return dist.get_rank() if size() > 1 else 0


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in their order; every process must call it."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def once(call: Callable[[], Any]) -> Any:
    """What `call()` gives on the first process, where alone it runs; its error, too, is raised on every process."""
    if size() == 1:
        return call()
    value = error = None
    if rank() == 0:
        try:
            value = call()
        except Exception as caught:
            error = caught
    value, error = gathered((value, error))[0]
    if error is not None:
        raise error
    return value


def agree(what: str, state: Any) -> None:
    """RuntimeError if the tensors of `state` (nested dicts, lists, tuples) differ in a bit between processes."""
    if size() == 1:
        return
    digest = hashlib.sha256()
    for value in _tensors(state):
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    found = gathered(digest.digest())
    differ = [number for number, other in enumerate(found) if other != found[0]]
    if differ:
        raise RuntimeError(f"the processes must agree in {what}; unlike the first are: {', '.join(map(str, differ))}")


def cuda_states() -> list[Tensor]:
    """The states of torch's own CUDA generators: of every GPU, or of this process's GPU where each has its own."""
    if not torch.cuda.is_initialized():
        return []
    return torch.cuda.get_rng_state_all() if size() == 1 else [torch.cuda.get_rng_state()]


def set_cuda_states(states: list[Tensor]) -> None:
    """Set them again; from a run on more or fewer GPUs, those that are there. One GPU each takes the first state."""
    if size() > 1 and states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[0])
        return
    for device, state in zip(range(torch.cuda.device_count()), states):
        torch.cuda.set_rng_state(state, device)


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping | list | tuple):
        for part in state.values() if isinstance(state, Mapping) else state:
            yield from _tensors(part)


# A net's rows among the processes ------------------------------------------------------------------------------------
#
# A tensor is either whole (the same on every process) or this process's rows of one; a loss is whole. A gradient by
# rows is kept times the number of processes, so that the mean over processes is right for every weight: for one that
# the rows meet (its gradient is a sum over processes) and for one that is used in whole (all have the same gradient).
# Backward passes are made of the same two maps, so derivatives of any order are right.


class _Rows(Function):
    """Whole (B, ...) to this process's rows (B / size, ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        n = len(x) // size()
        return x[rank() * n : (rank() + 1) * n].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Whole.apply(grad) / size()


class _Whole(Function):
    """The rows of every process to the whole."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        rows = [torch.empty_like(x) for _ in range(size())]
        dist.all_gather(rows, x)
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Rows.apply(grad) * size()


class _Dividing:
    """Whether calls are divided now: within `sharded`, but not within a call that is divided already."""

    now = False
    ever = False  # since `sharded` began


def rows(x: Tensor) -> Tensor:
    """This process's rows (B / size, ...) of x (B, ...) within `sharded`, else x; ValueError if size does not divide B.

    What is computed from them, sample by sample, `whole` brings together again.
    """
    if not _Dividing.now:
        return x
    if len(x) % size():
        raise ValueError(f"{size()} processes cannot share a batch of {len(x)}: choose one that they divide")
    _Dividing.ever = True
    return _Rows.apply(x)


def whole(x: Tensor) -> Tensor:
    """The rows x (B / size, ...) of all processes as one (B, ...) within `sharded`, else x."""
    return _Whole.apply(x) if _Dividing.now else x


@contextlib.contextmanager
def sharded(nets: Iterable[nn.Module], generators: Iterable[torch.Generator] = ()) -> Iterator[None]:
    """Within: a call of one of `nets` computes the rows of this process and returns those of all (`rows`, `whole`).

    Its tensors with as many rows as the first are divided; its outputs have one row a sample. Of a module without a
    forward (ModuleDict, a VAE) the calls of its children are. All else every process does in full. Nets must neither
    couple rows nor draw, and weight gradients are right after `mean_gradients`. RuntimeError if the processes start
    from different weights or generators. One process: nothing happens.
    """
    if size() == 1:
        yield
        return
    nets = list(nets)
    states = [[net.state_dict() for net in nets], [rng.get_state() for rng in generators]]
    agree("the weights and generators that training starts from", states)
    modules = dict.fromkeys(module for net in nets for module in _called(net))
    for module in modules:
        module.forward = types.MethodType(_divided, module)  # a method: a copy of the module gets its own
    _Dividing.now, _Dividing.ever = True, False
    try:
        yield
    finally:
        _Dividing.now = False
        for module in modules:
            del module.forward
    if not _Dividing.ever:
        warnings.warn("training called none of its nets: each process did all the work", stacklevel=3)


def mean_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace the gradients of an optimizer's weights by their means over the processes, in one message."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    grads = [weight.grad for weight in weights if weight.grad is not None]
    if size() == 1 or not grads:
        return
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    for grad, piece in zip(grads, (flat / size()).split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(piece.view(grad.shape))


def _called(net: nn.Module) -> Iterator[nn.Module]:
    if type(net).forward is not nn.Module.forward:
        yield net
    else:
        for child in net.children():
            yield from _called(child)


def _divided(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """In place of a module's forward."""
    forward = functools.partial(type(module).forward, module)
    if not _Dividing.now:
        return forward(*args, **kwargs)
    n = next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

    def own(value: Any) -> Any:
        return rows(value) if isinstance(value, Tensor) and value.dim() and len(value) == n else value

    args, kwargs = [own(value) for value in args], {name: own(value) for name, value in kwargs.items()}
    _Dividing.now = False
    try:
        out = forward(*args, **kwargs)
    finally:
        _Dividing.now = True
    return _gathered_rows(out, n)


def _gathered_rows(out: Any, n: int) -> Any:
    """An output of n rows in all, or each of a tuple of them."""
    if isinstance(out, tuple):
        parts = [_gathered_rows(part, n) for part in out]
        return type(out)(*parts) if hasattr(out, "_fields") else tuple(parts)
    if not isinstance(out, Tensor) or not out.dim() or len(out) * size() != n:
        raise ValueError("a net that processes share must return tensors of one row a sample")
    return whole(out)


# One run folder ------------------------------------------------------------------------------------------------------


class SharedRun:
    """A run (`checkpoint.Run`) of all processes: the first opens it by `opened()` and writes, the others get its word.

    They read checkpoints themselves, so the folder must be on a disk that all see. All but `close` and `discard` must
    be called on every process.
    """

    def __init__(self, opened: Callable[[], Any]):
        self._run = None

        def first() -> bool:
            self._run = opened()
            return self._run.resumed

        self.resumed = once(first)

    @property
    def folder(self) -> Path:
        """Where the run lives, or would live."""
        return once(lambda: self._run.folder)

    def checkpoints(self) -> list[Path]:
        """The checkpoints in the folder, newest last."""
        return once(lambda: self._run.checkpoints())

    def save(self, iteration: int, objects: Mapping[str, Any], meta: Mapping[str, Any], keep: int = 2) -> Path:
        """Write a checkpoint, if all processes hold the same weights and generators (RuntimeError)."""
        agree(f"weights and generators at iteration {iteration}", [objects.get("net"), objects.get("generators")])
        return once(lambda: self._run.save(iteration, objects, meta, keep))

    def write(self, **entries: Any) -> None:
        """Add entries to run.json."""
        once(lambda: self._run.write(**entries))

    def write_text(self, name: str, text: str) -> Path:
        """Replace a small text file in the folder."""
        return once(lambda: self._run.write_text(name, text))

    def finish(self) -> None:
        """Mark the run as finished."""
        once(lambda: self._run.finish())

    def close(self) -> None:
        """Let go of the lock, without waiting for the others: one of them may have failed."""
        if self._run is not None:
            self._run.close()

    def discard(self) -> None:
        """Remove the folder if it has no checkpoint, without waiting for the others."""
        if self._run is not None:
            self._run.discard()

    def __enter__(self) -> "SharedRun":
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
