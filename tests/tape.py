"""A stand-in for CUDA graphs on the CPU: operations are recorded while Python runs once, then played without it."""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Tape(TorchDispatchMode):
    """Every operation with the tensors that it met, and copies of those that it changed in place."""

    def __init__(self):
        super().__init__()
        self.operations, self.before = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for given, argument in zip(args, function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before.setdefault(id(given), (given, given.clone()))
        out = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, out))
        return out

    def play(self):
        with torch.no_grad():
            for function, args, kwargs, out in self.operations:
                again = function(*args, **kwargs)
                for old, new in zip(
                    *(value if isinstance(value, tuple | list) else (value,) for value in (out, again))
                ):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # else a view
                        old.copy_(new)


class OnTape:
    """A recorder for the CPU that does as a CUDA graph: Python runs once, without effect, and then kernels alone."""

    device_type = "cpu"

    def __init__(self):
        self.recorded = self.played = 0

    def aside(self, device):
        return nullcontext()

    def record(self, step, device, rng):
        states, tape = [(g, g.get_state()) for g in {rng, torch.default_generator} - {None}], Tape()
        with tape:
            step()
        for generator, state in states:
            generator.set_state(state)
        for tensor, before in tape.before.values():
            tensor.copy_(before)
        self.recorded += 1

        def play():
            self.played += 1
            tape.play()

        return play
