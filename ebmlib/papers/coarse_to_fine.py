"""Coarse-to-fine training (CF-EBM): the pyramid of data, the fade, where a stage's chains start, stage sampling.

A stage models images at one resolution; the net of the next is `GrowingNet.grow` of its own. `training.fit` trains.
Source: Zhao, Xie and Li (2021), Algorithms 1 and 2, section 3.2; Appendix A.6 for frozen coarse nets.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ebmlib.core import Energy, Rng
from ebmlib.samplers import Pair

MIXES = ("linear", "root")
Chain = Callable[[Energy, Tensor, int], Tensor]  # chain(energy, x, K): the ends of a chain of K steps from x


class Stage(NamedTuple):
    """One resolution: size in pixels a side, images to be shown (N), Langevin steps (T), batch (n), learning rate."""

    size: int
    images: int
    K: int
    batch: int
    lr: float = 1e-3

    @property
    def iterations(self) -> int:
        """Batches until `images` images were shown."""
        return -(-self.images // self.batch)


def fade(shown: float, images: int) -> float:
    """beta = min(1, 2 m / N) after m of a stage's N images: Primal is faded in over the first half.

    Algorithm 1 prints max(1, 2 N / n), which would be 1 or more at once.
    """
    return min(1.0, 2 * shown / images)


def pool(x: Tensor) -> Tensor:
    """Mean over 2 pixels along every spatial dimension: (B, C, 2h, 2w) to (B, C, h, w), signals (B, C, 2h) alike."""
    if x.ndim < 3 or any(side % 2 for side in x.shape[2:]):
        raise ValueError(f"pooling takes (B, C, *sides) with even sides; got {tuple(x.shape)}")
    for d in range(2, x.ndim):
        x = x.unflatten(d, (-1, 2)).mean(d + 1)
    return x


def upsample(x: Tensor) -> Tensor:
    """Repeat every pixel along every spatial dimension, (B, C, h, w) to (B, C, 2h, 2w): pool(upsample(x)) = x."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def pyramid(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """x (B, C, H, W) average-pooled to each of `sizes`, in their order (section 3.2: "average pooling")."""
    levels = {x.shape[-1]: x}
    while x.shape[-1] > min(sizes) and not any(side % 2 for side in x.shape[2:]):
        x = pool(x)
        levels[x.shape[-1]] = x
    missing = [size for size in sizes if size not in levels]
    if missing:
        raise ValueError(f"sizes {missing} cannot be reached by halving; there are {sorted(levels)}")
    return [levels[size] for size in sizes]


def uniform(shape: Sequence[int], rng: Rng = None, device: Any = None) -> Tensor:
    """Noise from U(-1, 1), where every chain of the paper starts."""
    return 2 * torch.rand(*shape, generator=rng, device=device) - 1


def mix(coarse: Tensor, beta: float, rng: Rng = None, how: str = "linear") -> Tensor:
    """The start of fine chains: (1 - beta) Up(coarse) + beta U(-1, 1), from (B, C, h, w) to twice the sides.

    how "linear" is ours; "root" weighs Up with sqrt(1 - beta^2), as Algorithm 1 and the released `train_v0` do, which
    keeps the variance where both have the same.
    """
    if how not in MIXES:
        raise ValueError(f"how = {how!r}: allowed are {', '.join(map(repr, MIXES))}")
    up = upsample(coarse)
    weight = 1 - beta if how == "linear" else (1 - beta**2) ** 0.5
    return weight * up + beta * uniform(up.shape, rng, up.device).to(up)


def coarse_steps(K: int, beta: float) -> int:
    """How many of the coarse model's K steps are still taken at beta: K (1 - beta), rounded (Algorithm 1)."""
    return round(K * (1 - beta))


def stage_start(
    coarse: Energy, noise: Tensor, K: int, chain: Chain, beta: float, *,
    rng: Rng = None, how: str = "linear"
) -> Tensor:  # fmt: skip
    """Where the chains of a stage start: (B, C, 2h, 2w) (Algorithm 1).

    K (1 - beta) coarse steps from noise (B, C, h, w), upsampled and mixed with
    new noise; at beta = 1 it is U(-1, 1). `chain(energy, x, K)` runs K steps.
    """
    x = chain(coarse, noise, coarse_steps(K, beta))
    return mix(x, beta, rng, how)


def climb(energies: Sequence[Energy], x: Tensor, steps: Sequence[int], chain: Chain) -> Tensor:
    """Stage sampling: chains of steps[s] steps on energies[s], coarsest first, each resolution's ends upsampled.

    x is the coarsest start (B, C, h, w), each stage doubles its sides. `chain(energy, x, K)` runs K steps and does what
    else they need: a net in evaluation mode, counting the work. Source: Appendix A.8 and ablation (e).
    """
    for s, (energy, K) in enumerate(zip(energies, steps, strict=True)):
        x = chain(energy, upsample(x) if s else x, K)
    return x


def short_run_precision(
    variance: Tensor, begin: Tensor, schedule: Sequence[Pair]
) -> Tensor:  # fmt: skip
    """Curvature w with which a short chain ends at `variance`, elementwise.

    The chain starts with variance `begin`. Maximum likelihood with such chains
    comes to rest there on Gaussian data; only a long chain has
    w = 1 / variance (up to its step). Bisection on -1/a < w < 1/a, where the
    end's variance falls with w.
    """

    def wide(w: Tensor) -> Tensor:
        v = begin
        for a, b in schedule:  # on E = w x^2 / 2
            v = (1 - a * w) ** 2 * v + b**2
        return v > variance

    top = 1 / max(a for a, _ in schedule)
    low = torch.full_like(variance, -top)
    high = torch.full_like(variance, top)
    if bool(wide(high).any()):
        raise ValueError("the chain's noise has more variance than asked")
    for _ in range(60):
        middle = (low + high) / 2
        more = wide(middle)
        low = torch.where(more, middle, low)
        high = torch.where(more, high, middle)
    return (low + high) / 2
