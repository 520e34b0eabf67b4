"""Samplers as plain functions `sampler(energy, x, ...) -> (x, Info)`, and schedules as lists of pairs (a, b).

Every Langevin chain of the book is one update, x' = x - a grad E(x) + b xi, at temperature b^2 / (2 a).
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor

from ebmlib import engine  # reads EBMLIB_ENGINE, too
from ebmlib.core import Energy, Rng, checked, energy_and_grad, expand, flat_sum, uncoupled

Scalar = float | Tensor
Pair = tuple[Scalar, Scalar]
NoiseSource = torch.Generator | Callable[[Tensor], Tensor] | None  # where a Langevin chain takes its noise from
Callback = Callable[[int, Tensor], None] | None  # called as callback(k, x) after step k
Seen = tuple[Tensor, Tensor] | None  # (E(x), grad E(x)) where a gradient was last taken


class Info(NamedTuple):
    """What a chain knows at its end; each is (B,) and stays on the device."""

    energy: Tensor  # at the last point where a gradient was taken; NaN if none was
    grad_norm: Tensor  # at the same point
    acceptance: Tensor  # mean acceptance probability, 1 for chains without a correction


def _need(above_0: bool = False, **given: Scalar | None) -> None:
    """ValueError for a number that is negative (or 0), infinite or NaN; a look at a tensor would wait for the GPU."""
    for name, value in given.items():
        if value is None or isinstance(value, Tensor) or 0 < value < math.inf or (value == 0 and not above_0):
            continue
        allowed = "above 0" if above_0 else "of at least 0"
        raise ValueError(f"{name} = {value}: allowed is a finite number {allowed}")


def _start(energy: Energy, x: Tensor) -> Tensor:
    """The first state of a chain, detached and in the engine's layout; ValueError for what no chain can start from."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"a chain starts from a tensor of floats (B, *S), not {getattr(x, 'dtype', type(x).__name__)}")
    uncoupled(energy)
    return engine.in_layout(x.detach())


def temperature(a: Scalar, b: Scalar) -> Scalar:
    """Temperature b^2 / (2 a) of the update x' = x - a grad E + b xi: for small a it samples exp(-E / temperature)."""
    return b**2 / (2 * a)


def ula(step: Scalar, K: int) -> list[Pair]:
    """Unadjusted Langevin, temperature 1: K pairs (step, sqrt(2 step))."""
    _need(step=step, K=K)
    return [(step, (2 * step) ** 0.5)] * K


def decoupled(step: Scalar, noise: Scalar, K: int) -> list[Pair]:
    """Step and noise chosen apart, as most image recipes do: K pairs (step, noise). Without noise it is descent."""
    _need(step=step, noise=noise, K=K)
    return [(step, noise)] * K


def decayed(step: Scalar, noise: float, K: int) -> list[Pair]:
    """Noise that falls linearly from `noise` at the first step to 0 at the last (CF-EBM, released code)."""
    _need(step=step, noise=noise, K=K)
    return [(step, noise * (1 - k / max(K - 1, 1))) for k in range(K)]


def annealed(steps: Sequence[float], noises: Sequence[float], K: int) -> list[Pair]:
    """K pairs (a, b) at each level, level after level; as many steps as noises."""
    _need(K=K)
    return [pair for pair in zip(steps, noises, strict=True) for _ in range(K)]


def check_floor(schedule: Sequence[Pair], narrowest: float) -> None:
    """Warn where chains of this schedule cannot learn a density that has the width `narrowest` somewhere.

    Their last step adds noise b to whatever came before, so no energy gives the ends less variance than b^2 (2a for
    ULA), while the update is stable up to a = 2 narrowest^2. Metropolis corrections have no such floor.
    """
    b = float(schedule[-1][1])
    if b >= narrowest:
        widths = f"chains end with noise of std {b:.3g}, but the density is as narrow as {narrowest:.3g}"
        warnings.warn(f"{widths}: no energy makes their ends as narrow, so take a shorter step", stacklevel=2)


def reflected(box: float) -> Callable[[Tensor], Tensor]:
    """A projection for chains that are mirrored at the walls of the box |x_i| <= box, as often as needed."""
    return lambda x: box - ((x + box) % (4 * box) - 2 * box).abs()


def noise_like(x: Tensor, rng: NoiseSource) -> Tensor:
    """Standard normal noise of x's shape, dtype and device from `rng`: drawn, or what a function in its place gives."""
    if callable(rng):
        given = rng(x)
        if given.shape != x.shape:
            raise ValueError(f"the noise given has the shape {tuple(given.shape)}, the chain {tuple(x.shape)}")
        return given
    return torch.randn_like(x, generator=rng, memory_format=torch.contiguous_format)


def _plus(x: Tensor, factor: Scalar, y: Tensor) -> Tensor:
    """x + factor y, in one pass over memory where the factor is a plain number."""
    return x + expand(factor, x) * y if isinstance(factor, Tensor) else torch.add(x, y, alpha=factor)


def _info(x: Tensor, seen: Seen, acceptance: Tensor | None = None) -> Info:
    nothing = x.new_full(x.shape[:1], math.nan)
    value, *grad = seen or (nothing,)
    norm = flat_sum(grad[0].detach() ** 2).sqrt() if grad else nothing
    return Info(value.detach(), norm, torch.ones_like(nothing) if acceptance is None else acceptance)


def _update(energy: Energy, x: Tensor, a: Scalar, b: Scalar, rng, clip, project, graph: bool) -> tuple[Tensor, Seen]:
    """x' = x - a grad E(x) + b xi and (E(x), grad E(x)); None in its place where a = 0, which takes no gradient."""
    _need(a=a, b=b)
    _need(above_0=True, clip=clip)
    seen = None
    if isinstance(a, Tensor) or a != 0:
        seen = energy_and_grad(energy, x, create_graph=graph)
        grad = seen[1] if clip is None else seen[1].clamp(-clip, clip)
        x = _plus(x, -a, grad)
    if isinstance(b, Tensor) or b != 0:
        x = _plus(x, b, noise_like(x, rng))
    x = x if project is None else project(x)
    return x if graph else x.detach(), seen


def _recomputed(energy: Energy, x: Tensor, a: Scalar, b: Scalar, rng, *rest) -> tuple[Tensor, Seen]:
    """`_update` that keeps x and its noise alone for the backward pass, which runs it again."""
    noise = noise_like(x, rng) if isinstance(b, Tensor) or b != 0 else None  # once: the second run needs the same
    again = lambda x: _update(energy, x, a, b, lambda _: noise, *rest)
    return torch.utils.checkpoint.checkpoint(again, x, use_reentrant=False)


def langevin_step(
    energy: Energy,
    x: Tensor,
    a: Scalar,
    b: Scalar,
    *,
    rng: NoiseSource = None,
    clip: float | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    differentiable: bool = False,
) -> tuple[Tensor, Info]:
    """Return x' = x - a grad E(x) + b xi with xi ~ N(0, I).

    x is (B, *S); a and b are floats or (B,), in units of x^2 / energy and x.
    `clip` bounds each entry of the gradient, `project` is applied last (a
    clamp, say), `differentiable` keeps the graph from x' to x and the weights.
    A function in place of `rng` gives the noise xi = rng(x). Source: DRL,
    Eq. 4, with a = delta^2 / 2 and b = delta.
    """
    uncoupled(energy)
    x, seen = _update(energy, x, a, b, rng, clip, project, differentiable)
    return x, _info(x, seen)


def langevin(
    energy: Energy,
    x: Tensor,
    schedule: Iterable[Pair],
    *,
    rng: NoiseSource = None,
    clip: float | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    callback: Callback = None,
    differentiable: bool | int = False,
    recompute: bool = False,
) -> tuple[Tensor, Info]:
    """Run one `langevin_step` for each pair (a, b) of the schedule.

    x (B, *S) comes back detached, but for the graph of the last
    `differentiable` steps (True: all; 1: improved CD's); the start takes no
    gradient. `recompute` keeps their states and noise alone and runs each step
    again in the backward pass: the energy must draw no random numbers, and its
    net be in the mode that it was in. `callback(k, x)` sees every state.
    """
    schedule = list(schedule)
    n = len(schedule)
    kept = n if differentiable is True else int(differentiable)
    if not 0 <= kept <= n:
        raise ValueError(f"differentiable = {kept} steps; the schedule has {n}")
    x, seen = _start(energy, x), None
    for k, (a, b) in enumerate(schedule):
        graph = k >= n - kept
        move = _recomputed if graph and recompute else _update
        x, now = move(energy, x, a, b, rng, clip, project, graph)
        seen = now or seen
        if callback is not None:
            callback(k, x)
    return x, _info(x, seen)


def _corrected(
    state: Sequence[Tensor], propose: Callable, K: int, rng: Rng, callback: Callback = None
) -> tuple[Tensor, Info]:
    """K Metropolis steps on state = (x, E(x)) or (x, E(x), grad E(x)); propose(*state) gives (new state, log ratio).

    A NaN log ratio is a rejection.
    """
    _need(K=K)
    total = torch.zeros_like(state[1])
    for k in range(K):
        new, log_ratio = propose(*state)
        log_ratio = torch.nan_to_num(log_ratio, nan=-math.inf, posinf=0.0, neginf=-math.inf).clamp(max=0)
        uniform = torch.rand(log_ratio.shape, generator=rng, dtype=log_ratio.dtype, device=log_ratio.device)
        accept = uniform.log() < log_ratio
        state = [torch.where(expand(accept, one), one, other) for one, other in zip(new, state, strict=True)]
        total = total + log_ratio.exp()
        if callback is not None:
            callback(k, state[0])
    return state[0], _info(state[0], state[1:], total / max(K, 1))


def mala(
    energy: Energy, x: Tensor, step: Scalar, K: int, *, rng: Rng = None, callback: Callback = None
) -> tuple[Tensor, Info]:
    """Langevin proposals x - step grad E + sqrt(2 step) xi with a Metropolis correction: exact for exp(-E) at any step.

    x is (B, *S), step a float or (B,). One gradient a step. Source: Roberts and Tweedie (1996).
    """
    _need(above_0=True, step=step)
    x = _start(energy, x)
    eps, b = expand(step, x), expand((2 * step) ** 0.5, x)

    def propose(x: Tensor, value: Tensor, grad: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        proposal = x - eps * grad + b * noise_like(x, rng)
        new_value, new_grad = energy_and_grad(energy, proposal)
        forward = flat_sum((proposal - x + eps * grad) ** 2 / (4 * eps))
        backward = flat_sum((x - proposal + eps * new_grad) ** 2 / (4 * eps))
        return (proposal, new_value, new_grad), value - new_value + forward - backward

    return _corrected((x, *energy_and_grad(energy, x)), propose, K, rng, callback)


def independence(
    energy: Energy, x: Tensor, K: int = 1, *, rng: Rng = None
) -> tuple[Tensor, Info]:  # fmt: skip
    """K Metropolis steps with proposals from N(0, I), whatever x is.

    Exact for exp(-E) without a gradient; x is (B, *S). A jump crosses any
    barrier, and is accepted often only where exp(-E) is close to N(0, I), as
    in the noise space of a decoder. Source: Tierney (1994), section 2.3.3.
    """

    def propose(x: Tensor, value: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        proposal = noise_like(x, rng)
        new_value = checked(energy, proposal)
        here = value - 0.5 * flat_sum(x**2)
        there = new_value - 0.5 * flat_sum(proposal**2)
        return (proposal, new_value), here - there

    with torch.no_grad():
        x = _start(energy, x)
        state = x, checked(energy, x)
        return _corrected(state, propose, K, rng)


def leapfrog(energy: Energy, x: Tensor, p: Tensor, grad: Tensor, step: Scalar, L: int) -> tuple[Tensor, ...]:
    """L leapfrog steps of size `step` for H = E(x) + |p|^2 / 2; returns (x, p, E(x), grad E(x)).

    Reversible (negate p) and of second order in the step. Source: Neal (2011), section 5.2.3.
    """
    eps = expand(step, x)
    value = x.new_full(x.shape[:1], math.nan)
    p = p - 0.5 * eps * grad
    for k in range(L):
        x = x + eps * p
        value, grad = energy_and_grad(energy, x)
        p = p - (eps if k < L - 1 else 0.5 * eps) * grad
    return x, p, value, grad


def hmc(
    energy: Energy, x: Tensor, step: Scalar, K: int, *, L: int = 2,
    rng: Rng = None, callback: Callback = None
) -> tuple[Tensor, Info]:  # fmt: skip
    """K trajectories of L leapfrog steps, each with a Metropolis correction.

    Exact for exp(-E), with unit mass and L gradients a trajectory. x is
    (B, *S), step a float or (B,). L = 2 is the DRL paper's (section 4.2).
    """
    _need(above_0=True, step=step, L=L)

    def propose(x: Tensor, value: Tensor, grad: Tensor):
        p = noise_like(x, rng)
        new_x, new_p, *new = leapfrog(energy, x, p, grad, step, L)
        kinetic = 0.5 * (flat_sum(p**2) - flat_sum(new_p**2))
        return (new_x, *new), value - new[0] + kinetic

    x = _start(energy, x)
    state = x, *energy_and_grad(energy, x)
    return _corrected(state, propose, K, rng, callback)


def tune(
    kernel: Callable[..., tuple[Tensor, Info]], energy: Energy, x: Tensor, step: float, *,
    K: int = 20, low: float = 0.6, high: float = 0.9, rounds: int = 60, rng: Rng = None,
) -> tuple[float, Tensor]:  # fmt: skip
    """Scale `step` until the mean acceptance of `kernel(energy, x, step, K)` over x's chains lies in [low, high].

    Returns (step, x after the runs); RuntimeError if `rounds` rounds do not get there. Source: DRL, section 4.2.
    """
    factor, before, acceptance = 2.0, 0, math.nan
    for _ in range(rounds):
        x, info = kernel(energy, x, step, K, rng=rng)
        acceptance = float(info.acceptance.mean())
        if low <= acceptance <= high:
            return step, x
        direction = 1 if acceptance > high else -1
        # A change of direction means that the window was stepped over: take half the (log) stride.
        factor = factor**0.5 if before == -direction else factor
        step, before = step * factor**direction, direction
    last = f"last: {step:.3g} with {acceptance:.2f}"
    raise RuntimeError(f"tune found no step size with acceptance in [{low}, {high}]; {last}")
