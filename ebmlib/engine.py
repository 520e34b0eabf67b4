"""How a chain computes its steps: as written, compiled, in bfloat16, as a CUDA graph. One switch for all samplers.

EBMLIB_ENGINE=compile+graph papermill notebooks/drl_cifar.ipynb out.ipynb     # a notebook need not know
engine.use("compile+bfloat16")                                                # the same from Python
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType
from typing import Any

import torch
from torch import Tensor

from ebmlib import core
from ebmlib.core import Energy, checked

PARTS = ("plain", "compile", "bfloat16", "channels-last", "graph")
RECOMPILES = 64  # energies and shapes that one process may compile; torch's own limit is 8, fewer than a notebook has
backend = "inductor"  # of torch.compile

_parts: frozenset[str] = frozenset()
_ways: dict[tuple[Any, Any], int] = {}  # by backend and energy: which of the ways below it takes
_functions: dict[Any, tuple[Callable, Callable]] = {}  # by backend: the first two ways, compiled


def use(mode: str) -> None:
    """Choose how chains are computed from here on: "plain", or some of PARTS joined by "+".

    compile: the energy and its gradient as one function of torch.compile, or the energy alone where that cannot be,
    equal to the plain path to about 1e-5 of the gradient's size. What cannot be compiled at all runs plainly, and a
    warning says so once. bfloat16: the net's sums and products by autocast, to a few hundredths of the gradient's size;
    the state, its updates and what the energy returns stay in its own type. channels-last: images (B, C, H, W) lie in
    memory as convolutions are fastest, the same numbers up to rounding. graph: on CUDA one step of the chain is
    recorded as a CUDA graph and played again for all others, with the noise that the plain chain would draw; elsewhere,
    and where an energy cannot be recorded, the chain runs step by step, and a warning says so once.
    ValueError for another word.
    """
    global _parts
    parts = frozenset(mode.split("+"))
    if not parts <= set(PARTS) or ("plain" in parts and len(parts) > 1):
        raise ValueError(f"the engine is {mode!r}; it must be plain, or some of {', '.join(PARTS[1:])} joined by +")
    _parts = parts - {"plain"}


def start(x: Tensor) -> Tensor:
    """x, detached, as a chain starts from it: in the chosen layout, which its updates keep."""
    images = "channels-last" in _parts and x.ndim == 4
    return x.detach().contiguous(memory_format=torch.channels_last) if images else x.detach()


def energy_and_grad(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """E(x) of shape (B,) and grad E(x) of shape (B, *S), detached, as `core.energy_and_grad` but by the chosen way."""
    if not _parts:
        return core.energy_and_grad(energy, x)
    with torch.autocast(x.device.type, torch.bfloat16, enabled="bfloat16" in _parts):
        value, grad = _compiled(energy, x) if "compile" in _parts else core.energy_and_grad(energy, x)
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


# Recorded steps ------------------------------------------------------------------------------------------------------

Step = Callable[[], None]  # changes tensors in place and touches nothing else


class Recorder:
    """Records a step as a CUDA graph. One graph is alive at a time, and the next takes over its memory."""

    device_type = "cuda"

    def __init__(self) -> None:
        self.streams: dict[torch.device, torch.cuda.Stream] = {}
        self.last: dict[torch.device, torch.cuda.CUDAGraph] = {}  # its memory is reused while it lives

    @contextmanager
    def aside(self, device: torch.device) -> Iterator[None]:
        """A stream of its own, between what came before and what comes after: the default one cannot be recorded."""
        if device not in self.streams:
            self.streams[device] = torch.cuda.Stream(device)
        stream = self.streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            torch.cuda.current_stream(device).wait_stream(stream)

    def record(self, step: Step, device: torch.device, rng: torch.Generator | None) -> Step:
        """Capture `step` without running it; the result runs it. Generators stay as they are where that fails.

        Not by the context manager of torch.cuda.graph, which empties the allocator's cache: a chain in a training loop
        is recorded in every iteration, since its energy is a new one.
        """
        graph = torch.cuda.CUDAGraph()
        generators = {rng, torch.cuda.default_generators[torch.cuda.current_device()]} - {None}
        before = [(generator, generator.clone_state()) for generator in generators]
        if rng is not None:
            with warnings.catch_warnings():  # newer versions of PyTorch do it by themselves, and say so
                warnings.simplefilter("ignore")
                graph.register_generator_state(rng)
        pool = {"pool": self.last[device].pool()} if device in self.last else {}
        try:
            graph.capture_begin(**pool, capture_error_mode="thread_local")
            try:
                step()
            finally:
                graph.capture_end()
        except BaseException:
            for generator, state in before:  # a capture that fails leaves them waiting for its end
                generator.graphsafe_set_state(state)
            self.last.pop(device, None)
            raise
        self.last[device] = graph
        return graph.replay


recorder = Recorder()
_refused: set[Any] = set()  # energies, by `_key`, and devices that no step can be recorded on


def records(energy: Energy, x: Tensor, rng: Any) -> bool:
    """Whether a chain on `energy` from x may be recorded: the part is on, x is on CUDA, the noise is a generator's."""
    if "graph" not in _parts or not (rng is None or isinstance(rng, torch.Generator)):
        return False
    if x.device.type != recorder.device_type:
        _say_once(x.device.type, f"chains on the {x.device.type} run step by step: the engine's graph part needs CUDA")
        return False
    return _key(energy) not in _refused


def record(step: Step, energy: Energy, x: Tensor, rng: torch.Generator | None) -> Step | None:
    """`step` as something to be played, or None where it cannot be recorded; it has not run then.

    The gradient at x is taken once before, so that libraries are set up, kernels chosen and compiled outside the graph.
    """
    with recorder.aside(x.device):
        energy_and_grad(energy, x)
        try:
            return recorder.record(step, x.device, rng)
        except torch.OutOfMemoryError:  # a graph takes more than a step does: another chain may have the room
            warnings.warn("memory did not suffice to record a chain, which runs step by step", stacklevel=4)
            return None
        except Exception as error:
            name = getattr(energy, "__qualname__", type(energy).__name__)
            reason = str(error).strip().replace("\n", " ")[:200]
            _say_once(_key(energy), f"the energy {name} runs step by step, since it could not be recorded: {reason}")
            return None


def _say_once(key: Any, sentence: str) -> None:
    if key not in _refused:
        _refused.add(key)
        warnings.warn(sentence, stacklevel=5)


use(os.environ.get("EBMLIB_ENGINE", "plain"))
