"""How gradients are computed: as written, compiled, or in bfloat16. One switch for everything that calls core.

EBMLIB_ENGINE=compile papermill notebooks/drl_cifar.ipynb out.ipynb     # a notebook need not know
engine.use("compile:reduce-overhead+bfloat16")                          # the same from Python
"""

import os
import warnings
from collections.abc import Callable
from functools import cache, partial
from types import CellType
from typing import Any

import torch
from torch import Tensor

from ebmlib import core
from ebmlib.core import Energy, by_autograd, checked

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile
PARTS = ("compile", *(f"compile:{mode}" for mode in MODES), "bfloat16", "channels-last")
STATIC = ("reduce-overhead", "max-autotune")  # modes whose results lie in the static memory of a CUDA graph
RECOMPILES = 64  # energies and shapes that one process may compile; torch's own limit is 8, fewer than a notebook has
backend = "inductor"  # of torch.compile

_parts: frozenset[str] = frozenset()
_mode: str | None = None  # of torch.compile, None where nothing is compiled
_failed: dict[Any, int] = {}  # by backend, mode and energy: how many of the ways to compile it have failed


def use(mode: str) -> None:
    """Set how gradients are computed from here on.

    `mode` is "plain" or some of these joined by "+"; else ValueError.

    - "compile": by torch.compile, to about 1e-5 of the gradient's size; what
      cannot be compiled is computed plainly, with one warning.
    - "compile:MODE": in one of torch.compile's modes, see `MODES`. On a GPU
      "reduce-overhead" replays a CUDA graph in place of Python's calls.
    - "bfloat16": autocast for the net, to a few hundredths of the gradient's
      size; states, updates and returned energies keep their own type.
    - "channels-last": images (B, C, H, W) in the layout that suits
      convolutions. Gradients that keep their graph are always plain.
    """
    global _parts, _mode
    words = frozenset(mode.split("+"))
    compiled = [word for word in words if word.startswith("compile")]
    known = words == {"plain"} or words <= set(PARTS)
    if not known or len(compiled) > 1:
        allowed = f"plain, or some of {', '.join(PARTS)} joined by +"
        raise ValueError(f"the engine is {mode!r}; allowed is {allowed}")
    _parts, _mode = words, None
    if compiled:
        _mode = compiled[0].partition(":")[2] or "default"
    rounded = "bfloat16" in words
    core.way = _chosen if compiled or rounded else by_autograd


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


@cache
def _functions(backend: Any, mode: str) -> tuple[Callable, Callable]:
    """Energy and gradient as one compiled function of (energy, x), and the energy alone."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILES)
    # fullgraph, because a break in the graph would hide itself
    compiled = partial(torch.compile, backend=backend, mode=mode, fullgraph=True)
    return compiled(_value_and_grad), compiled(checked)


def _compiled(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Energy and gradient in one graph, the fastest; else the energy compiled and autograd; else by autograd alone.

    The first call is plain: it refuses an energy without a gradient in x, where a compiled one gives zeros.
    """
    whole, value = _functions(backend, _mode)
    key = backend, _mode, _key(energy)
    if key not in _failed:
        pair, _failed[key] = by_autograd(energy, x), 0
        return pair
    failed = _failed[key]
    try:
        if failed == 0:  # nets with normalized weights or mixed layouts may refuse
            with torch.no_grad():
                return whole(energy, x.detach())
        return by_autograd(partial(value, energy) if failed == 1 else energy, x)
    except Exception as error:
        pair = by_autograd(energy, x)  # where the energy itself is wrong, its own error is the one to show
        _failed[key] = failed + 1
        if failed == 1:
            name = getattr(energy, "__qualname__", type(energy).__name__)
            reason = str(error).strip().replace("\n", " ")[:200]
            warnings.warn(f"the energy {name} runs plainly, since it could not be compiled: {reason}", stacklevel=5)
        return pair


use(os.environ.get("EBMLIB_ENGINE", "plain"))
