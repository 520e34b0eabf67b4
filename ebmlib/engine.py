"""How a chain computes the gradient in x: as it is written, compiled, or in bfloat16. One switch for all samplers.

EBMLIB_ENGINE=compile papermill notebooks/drl_cifar.ipynb out.ipynb     # a notebook need not know
engine.use("compile+bfloat16")                                          # the same from Python
"""

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ebmlib import core
from ebmlib.core import Energy, checked

PARTS = ("plain", "compile", "bfloat16")
RECOMPILES = 64  # energies and shapes that one process may compile; torch's own limit is 8, fewer than a notebook has
backend = "inductor"  # of torch.compile

_parts: frozenset[str] = frozenset()
_ways: dict[tuple[Any, Any], int] = {}  # by backend and energy: which of the ways below it takes
_functions: dict[Any, tuple[Callable, Callable]] = {}  # by backend: the first two ways, compiled


def use(mode: str) -> None:
    """Choose how gradients are computed from here on: "plain", "compile", "bfloat16" or "compile+bfloat16".

    compile: the energy and its gradient as one function of torch.compile, or the energy alone where that cannot be,
    equal to the plain path to about 1e-5 of the gradient's size. What cannot be compiled at all runs plainly, and a
    warning says so once. bfloat16: the net's sums and products by autocast, to a few hundredths of the gradient's size;
    the state, its updates and what the energy returns stay in its own type.
    ValueError for another word.
    """
    global _parts
    parts = frozenset(mode.split("+"))
    if not parts <= set(PARTS) or ("plain" in parts and len(parts) > 1):
        raise ValueError(f"the engine is {mode!r}; it must be plain, compile, bfloat16 or compile+bfloat16")
    _parts = parts - {"plain"}


def energy_and_grad(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """E(x) of shape (B,) and grad E(x) of shape (B, *S), detached, as `core.energy_and_grad` but by the chosen way."""
    if not _parts:
        return core.energy_and_grad(energy, x)
    with torch.autocast(x.device.type, torch.bfloat16, enabled="bfloat16" in _parts):
        value, grad = _compiled(energy, x) if "compile" in _parts else core.energy_and_grad(energy, x)
    return value.to(x.dtype), grad


def _key(energy: Energy) -> Any:
    """What two closures of one line of code, made anew in every iteration, have in common."""
    return getattr(energy, "__code__", None) or type(energy)


def _value_and_grad(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    def total(point: Tensor) -> tuple[Tensor, Tensor]:
        value = checked(energy, point)
        return value.sum(), value

    grad, value = torch.func.grad(total, has_aux=True)(x)
    return value, grad


def _whole(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward in one graph, the fastest way. Nets with normalized weights or mixed layouts may refuse."""
    with torch.no_grad():
        return _functions[backend][0](energy, x.detach())


def _halves(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """The energy compiled, its gradient by autograd."""
    return core.energy_and_grad(lambda point: _functions[backend][1](energy, point), x)


WAYS = (_whole, _halves, core.energy_and_grad)


def _compiled(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    if backend not in _functions:
        compiler = partial(torch.compile, backend=backend, fullgraph=True)  # a break in the graph would hide itself
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILES)
        _functions[backend] = compiler(_value_and_grad), compiler(checked)
    key = backend, _key(energy)
    way = _ways.setdefault(key, 0)
    try:
        return WAYS[way](energy, x)
    except Exception as error:
        if way == len(WAYS) - 1:
            raise
        pair = core.energy_and_grad(energy, x)  # where the energy itself is wrong, its own error is the one to show
        _ways[key] = way + 1
        if way == len(WAYS) - 2:
            name = getattr(energy, "__qualname__", type(energy).__name__)
            reason = str(error).strip().replace("\n", " ")[:200]
            warnings.warn(f"the energy {name} runs plainly, since it could not be compiled: {reason}", stacklevel=4)
        return pair


use(os.environ.get("EBMLIB_ENGINE", "plain"))
