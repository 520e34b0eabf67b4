"""Several processes that train one net: each has its own rows and random numbers, and gradients are averaged.

Every process runs the same cells. The first one alone reads and writes files, and what it reads all get. The result is
that of one process in distribution, not digit by digit. With one process nothing here does anything.
"""

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ebmlib.run.checkpoint import digest

_alone = False  # within `once`, where the first process must not wait for the others


def join(device: torch.device) -> None:
    """Join the processes that torchrun or accelerate started, if one did, and take the GPU of this one's number.

    `run.job.start` calls it. ValueError if `device` names a GPU by its number.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    if device.index is not None:
        raise ValueError(f"device = '{device}': every process takes a GPU of its own, so leave the number out")
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def size() -> int:
    """How many processes train together; 1 where none were joined."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0. The first one alone writes files and shows progress."""
    return dist.get_rank() if size() > 1 else 0


def share(batch_size: int) -> int:
    """How many rows of a batch each process has; ValueError if the processes do not divide it."""
    if batch_size % size():
        raise ValueError(f"{size()} processes cannot share a batch of {batch_size}: choose one that they divide")
    return batch_size // size()


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in their order; every process must call it."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def once(call: Callable[[], Any]) -> Any:
    """What `call()` returns on the first process, which alone runs it; an error of it is raised on every process."""
    global _alone
    if size() == 1 or _alone:
        return call()
    found: list[Any] = [None, None]  # what it returns, and its error
    if rank() == 0:
        _alone = True
        try:
            found[0] = call()
        except Exception as error:
            found[1] = error
        finally:
            _alone = False
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    return found[0]


def by_the_first(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that the first process alone runs, by `once`."""

    @functools.wraps(method)
    def shared(*args: Any, **kwargs: Any) -> Any:
        return once(lambda: method(*args, **kwargs))

    return shared


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Run the block on the first process and then on the others, so that what it downloads is downloaded once."""
    if rank() > 0:
        dist.barrier()
    try:
        yield
    finally:
        if size() > 1 and rank() == 0:
            dist.barrier()


def agree(what: str, tensors: Iterable[Tensor]) -> None:
    """RuntimeError if the tensors differ in a bit between processes."""
    if size() == 1:
        return
    found = gathered(digest({str(i): value for i, value in enumerate(tensors)}))
    differ = [str(number) for number, other in enumerate(found) if other != found[0]]
    if differ:
        raise RuntimeError(f"the processes must agree in {what}; unlike the first are: {', '.join(differ)}")


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


def random_state(generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """The states of generators and of torch's own, on the CPU and on the GPUs, for checkpoints."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    own = [rng.get_state() for rng in generators]
    return {"generators": own, "global": {"cpu": torch.get_rng_state(), "cuda": cuda}}


def set_random_state(state: Mapping[str, Any], generators: Sequence[torch.Generator]) -> None:
    """Set what `random_state` returned; from a run on more or fewer GPUs, those that are there."""
    for rng, saved in zip(generators, state["generators"], strict=True):
        rng.set_state(saved)
    torch.set_rng_state(state["global"]["cpu"])
    for device, saved in zip(range(torch.cuda.device_count()), state["global"]["cuda"]):
        torch.cuda.set_rng_state(saved, device)


@contextlib.contextmanager
def own_random_numbers(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Within: processes after the first draw from seeds of their own; afterwards all have the first one's states."""
    if rank() > 0:
        own = [(rng.manual_seed, rng.get_state()) for rng in generators]
        for set_seed, state in [(torch.manual_seed, torch.get_rng_state()), *own]:
            seed = hashlib.sha256(state.numpy().tobytes() + f" rank {rank()}".encode()).digest()
            set_seed(int.from_bytes(seed[:8], "little") >> 1)
    yield
    if size() > 1:
        set_random_state(once(lambda: random_state(generators)), generators)
