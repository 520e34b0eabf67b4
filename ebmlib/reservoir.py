"""The replay buffer of past samples that chains start from (persistent chains that are now and then restarted)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ebmlib.core import Rng, expand

Starts = Callable[[int, Rng], Tensor]  # (n, rng) to n starts of chains (n, *S)
STORED = ("float32", "uint8")


class Reservoir:
    """`capacity` samples on the device of `noise(n, rng) -> (n, *S)`, which fills it and restarts chains.

    `stored` "uint8" keeps one byte per number: finite x in [low, high] (clamped) is rounded to 256 values, and `draw`
    gives floats again, off by at most (high - low) / 510. Improved CD restarts 0.1 % of the chains, IGEBM and JEM 5 %.
    """

    def __init__(
        self, noise: Starts, rng: Rng = None, *,
        capacity: int = 10_000, restart: float = 1e-3, stored: str = "float32", low: float = 0.0, high: float = 1.0,
    ):  # fmt: skip
        if not 0 <= restart <= 1:
            raise ValueError(f"a reservoir's restart is a share from 0 to 1, not {restart!r}")
        if stored not in STORED:
            raise ValueError(f"stored = {stored!r}: allowed are {', '.join(map(repr, STORED))}")
        self.noise, self.restart, self.stored, self.low, self.high = noise, restart, stored, low, high
        fresh = noise(capacity, rng)
        self.dtype, self.x = fresh.dtype, self._packed(fresh)  # x is (capacity, *S)
        if len(self.x) != capacity:
            raise ValueError(f"a reservoir's noise must give as many samples as asked: {capacity}, not {len(self.x)}")

    def draw(
        self, n: int, rng: Rng = None, *, restart: float | None = None
    ) -> Tensor:  # fmt: skip
        """n of the kept samples (n, *S), with replacement.

        Each is fresh noise instead with probability `restart` (None: the
        reservoir's own share).
        """
        on = {"generator": rng, "device": self.x.device}
        x = self._unpacked(self.x[torch.randint(len(self.x), (n,), **on)])
        restart = self.restart if restart is None else restart
        if restart == 0:
            return x
        fresh = expand(torch.rand(n, **on) < restart, x)
        return torch.where(fresh, self.noise(n, rng).to(x), x)

    def push(self, x: Tensor, rng: Rng = None) -> None:
        """Let x (n, *S), n up to the capacity, take n different places at random; x's graph is not kept."""
        if x.shape[1:] != self.x.shape[1:] or len(x) > len(self.x):
            shape = f"samples of shape {tuple(self.x.shape[1:])}, at most {len(self.x)} at once"
            raise ValueError(f"this reservoir takes {shape}; got {tuple(x.shape)}")
        place = torch.randperm(len(self.x), generator=rng, device=self.x.device)[: len(x)]
        self.x[place] = self._packed(x)

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x, "low": self.low, "high": self.high}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved, own = ((tuple(s["x"].shape), s["x"].dtype, s["low"], s["high"]) for s in (state, self.state_dict()))
        if saved != own:
            raise ValueError(f"the saved reservoir has shape, type and range {saved}, this one {own}")
        self.x.copy_(state["x"])

    def _packed(self, x: Tensor) -> Tensor:
        x = x.detach().float()
        if self.stored == "float32":
            return x.clone()
        if not x.isfinite().all():  # a byte has no place for it, so it would come back as a sample
            count = int((~x.isfinite()).flatten(1).any(1).sum())
            raise ValueError(f"{count} of {len(x)} samples for the reservoir are not finite: the chains have diverged")
        return ((x - self.low) * (255 / (self.high - self.low))).round().clamp(0, 255).to(torch.uint8)

    def _unpacked(self, x: Tensor) -> Tensor:
        # Through floats first: bytes would wrap around in any sum, and a gradient step cannot move them.
        x = x if self.stored == "float32" else self.low + (self.high - self.low) * (x.float() / 255)
        return x.to(self.dtype)
