"""What a trained energy is good for beside samples: paths between two of them that share the noise of their chains.

Source: Gao et al. (2021), section 4.1, "Interpolation": the noise of two samples is interpolated, not the samples.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ebmlib.core import Energy
from ebmlib.recovery import Noising, progressive
from ebmlib.samplers import noise_like

WAYS = ("arc", "angle", "line")


def between(eps0: Tensor, eps1: Tensor, s: Tensor, way: str = "arc") -> Tensor:
    """Points at s (n,) in [0, 1] of the way from eps0 to eps1, each (B, *S): (n, B, *S), exact at s = 0 and 1.

    sin((1 - s) w) / sin(w) eps0 + sin(s w) / sin(w) eps1 (Shoemake 1985). The paper says "sphere", not which w:

    - "arc", w = pi / 2: cos(pi s / 2) eps0 + sin(pi s / 2) eps1. For independent normal noise the result is exactly
      normal, in any dimension. It does not look at the inputs: equal ones grow by sqrt(2), opposite ones vanish.
    - "angle", w measured sample by sample: the great circle for inputs of one length, equal to the arc but for
      O(1 / sqrt(d)) of chance; not normal in few dimensions. Parallel inputs give the line. Opposite ones, where no way
      is the shortest, and zeros, which have no direction, give NaN.
    - "line": (1 - s) eps0 + s eps1, with variance (1 - s)^2 + s^2 for independent noise, 1/2 in the middle.

    Raises ValueError for unequal shapes, an unknown way, and s that is not (n,) within [0, 1].
    """
    if eps0.shape != eps1.shape:
        raise ValueError(f"the ends differ in shape: {tuple(eps0.shape)} and {tuple(eps1.shape)}")
    _check(s, way)
    return _mix(eps0, eps1, s.to(eps0), way)


def _check(s: Tensor, way: str) -> None:
    if way not in WAYS:
        raise ValueError(f"way = {way!r}: allowed are {', '.join(map(repr, WAYS))}")
    if s.ndim != 1 or not len(s) or not bool(((s >= 0) & (s <= 1)).all()):
        raise ValueError(f"s must be (n,) within [0, 1]; got {s.tolist()}")


def _mix(eps0: Tensor, eps1: Tensor, s: Tensor, way: str) -> Tensor:
    """`between` without its checks, for use inside a chain: s has the noise's dtype and device."""
    s = s[:, None]
    if way == "line":
        weights = 1 - s, s
    else:
        angle = _angle(eps0, eps1) if way == "angle" else s.new_full((1,), math.pi / 2)
        weights = _share(1 - s, angle), _share(s, angle)
    w0, w1 = (w.reshape(*w.shape, *[1] * (eps0.ndim - 1)) for w in weights)
    return w0 * eps0 + w1 * eps1


def _angle(x: Tensor, y: Tensor) -> Tensor:
    """The angle of each pair (B,), in [0, pi], to full digits near both ends; NaN where it decides nothing."""
    x, y = (v.flatten(1) / torch.linalg.vector_norm(v.flatten(1), dim=1, keepdim=True) for v in (x, y))
    apart, along = (torch.linalg.vector_norm(v, dim=1) for v in (x - y, x + y))
    angle = 2 * torch.atan2(apart, along)
    return torch.where(along < torch.finfo(x.dtype).eps ** 0.5, math.nan, angle)


def _share(s: Tensor, angle: Tensor) -> Tensor:
    """sin(s w) / sin(w) for s (n, 1) and angles w (B,): (n, B), and its limit s at w = 0."""
    return torch.where(angle == 0, s, torch.sin(s * angle) / torch.sin(angle))


def shared(rng0: torch.Generator, rng1: torch.Generator, s: Tensor, way: str = "arc") -> Callable[[Tensor], Tensor]:
    """Noise for chains at s (n,) of the way between two runs: a function for `langevin`'s rng.

    It takes a state (n * B, *S), all samples at s[0] first, and draws what two ordinary runs of B chains would draw
    from their generators. Raises ValueError as `between` does, and for one generator given twice.
    """
    _check(s, way)
    if rng0 is rng1:
        raise ValueError("the two ends need a generator each; one alone would give them every other draw")

    s = s.to(rng0.device)

    def noise(x: Tensor) -> Tensor:
        end = x[: len(x) // len(s)]
        return _mix(noise_like(end, rng0), noise_like(end, rng1), s.to(x.dtype), way).flatten(0, 1)

    return noise


def interpolate(
    at_level: Callable[[Tensor], Energy],
    tables: Noising,
    shape: tuple[int, ...],
    K: int,
    s: Tensor,
    rng0: torch.Generator,
    rng1: torch.Generator,
    *,
    way: str = "arc",
    fresh: torch.Generator | None = None,
    noise: float = 0.99,
) -> Tensor:
    """Samples (n, *shape) at s (n,) of the way between two runs of progressive sampling; shape is (B, *S).

    The noise that a chain starts from and the noise of each Langevin step at each level are interpolated (`between`),
    so that s = 0 is the run with rng0 alone and s = 1 that with rng1, each drawing x_T first. With `fresh` only the
    start is interpolated and every chain draws its own Langevin noise from there. The other arguments are
    `progressive`'s. Source: section 4.1, Figure 5.
    """
    given = shared(rng0, rng1, s, way)
    x = given(torch.empty(len(s) * shape[0], *shape[1:], device=rng0.device))
    x = progressive(at_level, tables, x, K, noise=noise, rng=fresh or given)
    return x.unflatten(0, (len(s), -1))


def path_length(path: Tensor) -> Tensor:
    """Length of the way along path (n, B, *S), step by step, over the distance of its ends: (B,).

    1 is a straight line, n - 1 a walk between points as far from each other as the ends are.
    """
    if len(path) < 2:
        raise ValueError(f"a path needs two points at least; got {len(path)}")
    flat = path.flatten(2)
    steps = torch.linalg.vector_norm(flat.diff(dim=0), dim=2)
    return steps.sum(0) / torch.linalg.vector_norm(flat[-1] - flat[0], dim=1)
