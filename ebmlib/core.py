"""The one convention of the library: an energy is a function (B, *S) -> (B,), low where data are likely."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Energy = Callable[[Tensor], Tensor]
Rng = torch.Generator | None  # None: the global generator
LOG_2PI = math.log(2 * math.pi)


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
    """E(x); ValueError unless it has shape (B,): a forgotten sum would mix gradients silently."""
    value, one_each = energy(x), x.shape[:1]
    if value.shape != one_each:
        raise ValueError(
            f"an energy must return shape {tuple(one_each)}, one number a sample; got {tuple(value.shape)}"
        )
    return value


def by_autograd(energy: Energy, x: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """E(x) and grad E(x) as `energy_and_grad` returns them, by plain autograd whatever the engine is."""
    with torch.enable_grad():
        point = x if x.requires_grad and create_graph else x.detach().requires_grad_(True)
        value = checked(energy, point)
        (grad,) = torch.autograd.grad(value.sum(), point, create_graph=create_graph)
    return (value, grad) if create_graph else (value.detach(), grad)


way: Callable[[Energy, Tensor], tuple[Tensor, Tensor]] = by_autograd  # where no graph is kept; `engine.use` sets it


def energy_and_grad(energy: Energy, x: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """E(x) (B,) and grad E(x) (B, *S) as `engine.use` has set; detached unless `create_graph`, which is plain autograd.

    The gradient of the sum is the per-sample gradient because energies have no batch coupling.
    """
    return by_autograd(energy, x, create_graph=True) if create_graph else way(energy, x)


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
