"""How gradients are computed: as written, compiled, or in bfloat16. One switch for everything that calls core.

EBMLIB_ENGINE=compile papermill notebooks/drl_cifar.ipynb out.ipynb     # a notebook need not know
engine.use("compile:reduce-overhead+bfloat16")                          # the same from Python
"""

import os
import warnings
from collections.abc import Callable
from functools import partial
from types import CellType
from typing import Any

import torch
from torch import Tensor

from ebmlib.core import Energy, by_autograd, checked, compute_by

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile
PARTS = ("compile", *(f"compile:{mode}" for mode in MODES), "bfloat16", "channels-last")
STATIC = ("reduce-overhead", "max-autotune")  # modes whose results lie in the static memory of a CUDA graph
RECOMPILES = 64  # energies and shapes that one process may compile; torch's own limit is 8, fewer than a notebook has
backend = "inductor"  # of torch.compile

_parts: frozenset[str] = frozenset()
_mode: str | None = None  # of torch.compile, None where nothing is compiled
_level: dict[Any, int] = {}  # by backend, mode and energy: how many of ATTEMPTS have failed
_functions: dict[Any, tuple[Callable, Callable]] = {}  # by backend and mode: the compiled halves of ATTEMPTS


def use(mode: str) -> None:
    """Set how gradients are computed from here on.

    `mode` is "plain", or some of these words joined by "+":

    - "compile": energy and gradient as one function of torch.compile, else the
      energy alone; equal to the plain way to about 1e-5 of the gradient's
      size. What cannot be compiled is computed plainly, with one warning.
    - "compile:MODE": with one of torch.compile's modes, see `MODES`. On a GPU
      "reduce-overhead" replays a CUDA graph in place of Python's calls.
    - "bfloat16": autocast for the net, to a few hundredths of the gradient's
      size; states, updates and returned energies keep their own type.
    - "channels-last": images (B, C, H, W) lie in memory as convolutions are
      fastest; the same numbers up to rounding.

    Gradients that keep their graph are plain. ValueError for another word.
    """
    global _parts, _mode
    words = mode.split("+")
    compiled = [word for word in words if word.startswith("compile")]
    known = words == ["plain"] or set(words) <= set(PARTS)
    if not known or len(compiled) > 1:
        allowed = f"plain, or some of {', '.join(PARTS)} joined by +"
        raise ValueError(f"the engine is {mode!r}; allowed is {allowed}")
    _parts = frozenset(words)
    _mode = None
    if compiled:
        _mode = compiled[0].partition(":")[2] or "default"
    plain = _mode is None and "bfloat16" not in _parts
    compute_by(by_autograd if plain else _chosen)


def in_layout(x: Tensor) -> Tensor:
    """x in the layout that the engine has chosen for images; updates of a chain keep it."""
    images = "channels-last" in _parts and x.ndim == 4
    return x.contiguous(memory_format=torch.channels_last) if images else x


def _chosen(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, torch.bfloat16, enabled="bfloat16" in _parts):
        value, grad = by_autograd(energy, x) if _mode is None else _compiled(energy, x)
    if _mode in STATIC:  # the next call overwrites it, and a chain keeps the gradient of its last state
        value, grad = value.clone(), grad.clone()
    return value.to(x.dtype), grad


def _key(energy: Any, depth: int = 4) -> Any:
    """What two closures made anew in every iteration have in common: their code, and that of what they close over."""
    if isinstance(energy, partial):
        return _key(energy.func, depth), *(_key(part, depth - 1) for part in energy.args if callable(part) and depth)
    code = getattr(energy, "__code__", None)
    if code is None:
        return type(energy)
    held = [cell.cell_contents for cell in energy.__closure__ or () if cell != CellType()]  # filled ones
    return code, *(_key(part, depth - 1) for part in held if callable(part) and depth)


def _value_and_grad(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    def total(point: Tensor) -> tuple[Tensor, Tensor]:
        value = checked(energy, point)
        return value.sum(), value

    grad, value = torch.func.grad(total, has_aux=True)(x)
    return value, grad


def _whole(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward in one graph, the fastest way. Nets with normalized weights or mixed layouts may refuse."""
    with torch.no_grad():
        return _functions[backend, _mode][0](energy, x.detach())


def _halves(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """The energy compiled, its gradient by autograd."""
    return by_autograd(lambda point: _functions[backend, _mode][1](energy, point), x)


ATTEMPTS = (_whole, _halves, by_autograd)


def _compiled(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """By the first of ATTEMPTS that works for this energy."""
    if (backend, _mode) not in _functions:
        # fullgraph, because a break in the graph would hide itself
        compiler = partial(torch.compile, backend=backend, mode=_mode, fullgraph=True)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILES)
        _functions[backend, _mode] = compiler(_value_and_grad), compiler(checked)
    key = backend, _mode, _key(energy)
    level = _level.setdefault(key, 0)
    try:
        return ATTEMPTS[level](energy, x)
    except Exception as error:
        if level == len(ATTEMPTS) - 1:
            raise
        pair = by_autograd(energy, x)  # where the energy itself is wrong, its own error is the one to show
        _level[key] = level + 1
        if level == len(ATTEMPTS) - 2:
            name = getattr(energy, "__qualname__", type(energy).__name__)
            reason = str(error).strip().replace("\n", " ")[:200]
            warnings.warn(f"the energy {name} runs plainly, since it could not be compiled: {reason}", stacklevel=5)
        return pair


use(os.environ.get("EBMLIB_ENGINE", "plain"))
