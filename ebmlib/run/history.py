"""What a training run sees: its history, a guard that watches for divergence, and TensorBoard scalars."""

import contextlib
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Stats = Mapping[str, Tensor | float]


class History:
    """The logged iterations: `step` and `loss` (n,), history[name] of a stat (n,) or (n, L), `seconds` of training.

    A stat that the steps give as a plain number (work, seconds) is summed: its column is the sum so far.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.totals: dict[str, float] = {}
        self.seconds = 0.0

    def __getitem__(self, name: str) -> np.ndarray:
        shape = next((np.shape(row[name]) for row in self.rows if name in row), None)
        if shape is None:
            raise KeyError(f"no stat named {name!r}; there are: {', '.join(self.names())}")
        missing = np.full(shape, np.nan)
        return np.array([row.get(name, missing) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def step(self) -> np.ndarray:
        return np.array([row["step"] for row in self.rows], dtype=np.int64)

    @property
    def loss(self) -> np.ndarray:
        return np.array([row["loss"] for row in self.rows], dtype=np.float64)

    def total(self, name: str) -> float:
        """The sum of a stat over all iterations, logged or not; KeyError if it was no plain number."""
        if name not in self.totals:
            raise KeyError(f"no stat named {name!r} is a plain number; there are: {', '.join(self.totals) or 'none'}")
        return self.totals[name]

    def names(self) -> list[str]:
        """The columns, in the order in which they first came."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def state_dict(self) -> dict[str, Any]:
        columns = {name: self[name] for name in self.names()}
        return columns | {"totals": dict(self.totals)} if self.totals else columns

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        columns = {name: values.tolist() for name, values in state.items() if name != "totals"}
        self.rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        self.totals = dict(state.get("totals", {}))

    def csv(self) -> str:
        """One line per iteration; a stat of L entries has the columns name_0 .. name_{L-1}."""
        rows = [_flat(row) for row in self.rows]
        names = dict.fromkeys(name for row in rows for name in row)
        lines = [",".join(f"{row.get(name, math.nan):.9g}" for name in names) for row in rows]
        return "\n".join([",".join(names), *lines]) + "\n"


def _flat(row: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in row.items():
        numbers |= {name: value} if np.ndim(value) == 0 else {f"{name}_{i}": v for i, v in enumerate(value)}
    return numbers


class Watch:
    """Keeps losses on the device until `check` moves them over together, logs them and finds the first bad one."""

    def __init__(self, bound: float | Mapping[str, float], log_every: int, history: History):
        self.bound = {"loss": 1e6, **bound} if isinstance(bound, Mapping) else {"loss": bound}
        self.log_every, self.history = log_every, history
        self.pending: list[tuple[int, dict[str, Tensor], dict[str, float]]] = []
        self.text = ""

    def add(self, iteration: int, loss: Tensor, stats: Stats) -> None:
        totals = self.history.totals
        plain = {name: value for name, value in stats.items() if not isinstance(value, Tensor)}
        totals.update({name: totals.get(name, 0.0) + float(value) for name, value in plain.items()})
        values = {"loss": loss, **{name: value for name, value in stats.items() if name not in plain}}
        names = values if self._logged(iteration) else [name for name in values if name in self.bound]
        tensors = {name: values[name].detach().to(loss) for name in names}
        self.pending.append((iteration, tensors, {name: totals[name] for name in plain}))

    def _logged(self, iteration: int) -> bool:
        return iteration == 1 or iteration % self.log_every == 0

    def check(self) -> tuple[int, str] | None:
        """(iteration, what was seen) of the first value that is not finite or is out of bounds, else None."""
        flat = [value.reshape(-1) for _, values, _ in self.pending for value in values.values()]
        numbers = iter(torch.cat(flat).tolist() if flat else [])
        pending, self.pending = self.pending, []
        for iteration, values, sums in pending:
            row = {name: [next(numbers) for _ in range(v.numel())] for name, v in values.items()}
            for name in self.bound.keys() & row.keys():
                for number in row[name]:
                    if not abs(number) <= self.bound[name]:  # also true of NaN
                        return iteration, f"{name} is {number:.6g} (bound {self.bound[name]:g})"
            row = {name: number if values[name].dim() else number[0] for name, number in row.items()}
            if self._logged(iteration):
                self.history.rows.append({"step": iteration, **row, **sums})
            shown = [name for name in ("loss", "gap") if isinstance(row.get(name), float)]
            self.text = ", ".join(f"{name} {row[name]:.4g}" for name in shown)
        return None


class Board:
    """What is logged after iteration `written`, as TensorBoard scalars, if tensorboard is installed; else nothing."""

    def __init__(self, written: int):
        self.written, self.writer = written, None

    def write(self, history: History, folder: Path) -> None:
        """The rows since the last call; after their checkpoint, so that none comes twice. A full disk is a warning."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            return
        try:
            self.writer = self.writer or SummaryWriter(folder / "tensorboard")
            for row in (row for row in history.rows if row["step"] > self.written):
                self.written = step = row["step"]
                for tag, number in _flat({**row, "step": []}).items():
                    self.writer.add_scalar(tag, number, step)
            self.writer.flush()
        except OSError as error:
            warnings.warn(f"no TensorBoard scalars after iteration {self.written}: {error}", stacklevel=3)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self.writer is not None:
                self.writer.close()
