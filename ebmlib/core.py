"""The one convention of the library: an energy is a function (B, *S) -> (B,), low where data are likely."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

Energy = Callable[[Tensor], Tensor]
Rng = torch.Generator | None  # None: the global generator
LOG_2PI = math.log(2 * math.pi)
in_training: set[nn.Module] = set()  # BatchNorm layers that `fit` trains now: chains see them in evaluation mode


def flat_sum(x: Tensor) -> Tensor:
    """Sum over every dimension but the first: (B, *S) -> (B,)."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def gaussian_energy(x: Tensor) -> Tensor:
    """-log N(x; 0, I) in nats: (B, *S) -> (B,)."""
    return flat_sum(0.5 * x**2 + 0.5 * LOG_2PI)


def expand(value: float | Tensor, x: Tensor) -> float | Tensor:
    """Shape a float or (B,) tensor so that it multiplies x (B, *S) per sample."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.reshape(-1, *[1] * (x.ndim - 1))


def checked(energy: Energy, x: Tensor) -> Tensor:
    """E(x); ValueError unless it is a tensor of shape (B,): a forgotten sum would mix gradients silently."""
    value, one_each = energy(x), x.shape[:1]
    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if got != tuple(one_each):
        raise ValueError(f"an energy must return a tensor of shape {tuple(one_each)}, one number per sample; got {got}")
    return value


def _nets(part: Any, depth: int = 4) -> Iterator[nn.Module]:
    """The modules that an energy calls: itself, or those that a function, method or partial holds or names."""
    if isinstance(part, nn.Module):
        yield from part.modules()
    elif depth and callable(part):
        code, scope = getattr(part, "__code__", None), getattr(part, "__globals__", {})
        inside = [scope.get(name) for name in code.co_names] if code else []
        inside += [cell.cell_contents for cell in getattr(part, "__closure__", None) or () if cell != CellType()]
        inside += [getattr(part, "__self__", None), getattr(part, "func", None), *getattr(part, "args", ())]
        for one in inside:
            yield from _nets(one, depth - 1)


def norms(net: nn.Module | Energy) -> set[nn.Module]:
    """The layers of a net, or of an energy's nets, that now mix the samples of a batch: BatchNorm in train mode."""
    found = {m for m in _nets(net) if isinstance(m, _BatchNorm)}
    return {m for m in found if m.training or m.running_mean is None or m in in_training}


def uncoupled(energy: Energy) -> None:
    """ValueError if samples of a batch meet in the energy, in this mode or in the one in which `fit` trains it."""
    for layer in norms(energy):
        couples = "where the energy of a sample depends on the others in its batch: take GroupNorm or no norm"
        raise ValueError(f"the energy has {type(layer).__name__} in train mode, {couples}")


def by_autograd(energy: Energy, x: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """E(x) and grad E(x) as `energy_and_grad` returns them, by plain autograd whatever the engine is."""
    with torch.enable_grad():
        point = x if x.requires_grad and create_graph else x.detach().requires_grad_(True)
        value = checked(energy, point)
        grad = None
        if value.requires_grad:
            (grad,) = torch.autograd.grad(value.sum(), point, create_graph=create_graph, allow_unused=True)
        if grad is None:
            how = "compute it from x by torch operations, without detach, no_grad or NumPy"
            raise ValueError(f"the energy has no gradient in x: {how}")
    return (value, grad) if create_graph else (value.detach(), grad)


way: Callable[[Energy, Tensor], tuple[Tensor, Tensor]] = by_autograd  # where no graph is kept; `engine.use` sets it


def energy_and_grad(energy: Energy, x: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """E(x) (B,) and grad E(x) (B, *S) as `engine.use` has set; detached unless `create_graph`, which is plain autograd.

    The gradient of the sum is the per-sample gradient because energies have no batch coupling.
    """
    with torch.inference_mode(False):  # chains may run inside it, from tensors made there
        x = x.clone() if x.is_inference() else x
        if create_graph:
            uncoupled(energy)
            return by_autograd(energy, x, create_graph=True)
        return way(energy, x)


@torch.no_grad()
def renormalize(net: nn.Module, n: int = 50) -> None:
    """Run n power iterations of each spectral norm of a net in evaluation mode, so that it fits the weights.

    A running mean of weights has the trained net's singular vectors: its norms along these are too small.
    """
    for module in filter(parametrize.is_parametrized, net.modules()):
        for name in list(module.train().parametrizations) * n:
            getattr(module, name)
        module.train(False)


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Parameters of `module` take no gradient inside the block (stop-gradient on theta)."""
    before = [(p, p.requires_grad) for p in module.parameters()]
    try:
        for p, _ in before:
            p.requires_grad_(False)
        yield module
    finally:
        for p, flag in before:
            p.requires_grad_(flag)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and frozen parameters inside the block; normalized weights are computed once.

    Spectral norm moves its vectors in train mode, so a chain run in train mode would follow a changing energy.
    """
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with frozen(module), parametrize.cached():
            yield module
    finally:
        for m, mode in modes:
            m.training = mode
