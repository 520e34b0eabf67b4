"""Diffusion recovery likelihood (DRL): noising tables, training pairs, the conditional energy, progressive sampling.

Arrays over noise steps 0..T are a, sigma, cum_a, cum_sigma; arrays over levels 0..T-1 are scale, precision, delta.
Level t models y_t = scale[t] x_t given x_{t+1}. Source: Gao et al. (2021), and its release where the text differs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ebmlib.core import Energy, Rng, expand, flat_sum
from ebmlib.samplers import Callback, NoiseSource, Pair, Scalar, langevin, noise_like

VARIANTS = ("code", "text")
WAYS = ("arc", "angle", "line")


class Noising(NamedTuple):
    """The tables of one noising process, float32 tensors on one device: x_t = a_t x_{t-1} + sigma_t eps.

    a, sigma, cum_a, cum_sigma are (T + 1,), with x_t ~ N(cum_a_t x, cum_sigma_t^2); the others (T,), one entry a level.
    """

    a: Tensor
    sigma: Tensor
    cum_a: Tensor
    cum_sigma: Tensor
    scale: Tensor  # y_t = scale[t] x_t
    precision: Tensor  # 1 / sigma_{t+1}^2 of the quadratic term; 0 where there is none
    delta: Tensor  # Langevin step: a = delta^2 / 2, b = delta
    energy_scale: Tensor  # E = net / energy_scale[t]
    weight: Tensor  # of a level's loss on E

    @property
    def T(self) -> int:
        """Number of levels."""
        return len(self.scale)

    def to(self, device: torch.device | str) -> "Noising":
        """The same tables on another device."""
        return Noising(*(table.to(device) for table in self))

    def noise_to(self, x: Tensor, t: Tensor, rng: Rng = None) -> Tensor:
        """Draw x_t ~ N(cum_a_t x, cum_sigma_t^2 I); x is (B, *S), t is (B,) in 0..T."""
        return expand(self.cum_a[t], x) * x + expand(self.cum_sigma[t], x) * noise_like(x, rng)

    def pairs(self, x: Tensor, rng: Rng = None) -> tuple[Tensor, ...]:
        """Draw (y_t, x_{t+1}, t) with a level t ~ U{0..T-1} for each sample.

        x is data (B, *S); y_t = scale[t] x_t and x_{t+1} = a_{t+1} x_t +
        sigma_{t+1} eps are (B, *S), t is (B,). Source: Eq. 15, Algorithm 1.
        """
        t = torch.randint(self.T, (len(x),), generator=rng, device=x.device)
        x_t = self.noise_to(x, t, rng)
        a, sigma = expand(self.a[t + 1], x), expand(self.sigma[t + 1], x)
        x_next = a * x_t + sigma * noise_like(x, rng)
        return expand(self.scale[t], x) * x_t, x_next, t

    def coupled(self, x: Tensor, rng: Rng = None) -> tuple[Tensor, ...]:
        """`pairs` drawn from the far end: (y_t, x_{t+1}, t, xi).

        x_{t+1} comes first, then x_t from p(x_t | x_{t+1}, x), a Gaussian made
        of the noise xi (B, *S) (Ho et al., 2020, Eqs. 6 and 7). xi ~ N(0, I)
        is independent of x_{t+1}, so that a model's sample can share it.
        """
        t = torch.randint(0, self.T, (len(x),), generator=rng, device=x.device)
        xi, x_next = noise_like(x, rng), self.noise_to(x, t + 1, rng)
        near, step = self.cum_sigma[t] ** 2, self.sigma[t + 1] ** 2
        far = self.cum_sigma[t + 1] ** 2
        of_x, of_next = self.cum_a[t] * step / far, self.a[t + 1] * near / far
        x_t = expand(of_x, x) * x + expand(of_next, x) * x_next
        x_t = x_t + expand((near * step / far).sqrt(), x) * xi
        y = expand(self.scale[t], x) * x_t
        return y, x_next, t, xi


def _sigma2(T: int, variant: str) -> Tensor:
    """Noise variances sigma_0^2..sigma_T^2, float64."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)  # of Ho et al. (2020)
    if T == 1000:  # the released stride is 0 here: take sigma_t^2 = beta_t, and clean data at t = 0
        return torch.cat([torch.zeros(1, dtype=torch.float64), betas])
    stride = 1000 // (2 * (T - 1)) if T > 1 else 0  # the released code cuts the betas at 0, s, .., (T - 1) s, 999
    log_keep = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0)])
    # a_t^2 multiplies (1 - beta) over the betas after one cut up to and including the next.
    ends = torch.tensor([-1, *(k * stride for k in range(T)), 999]) + 1
    code = 1 - (log_keep[ends[1:]] - log_keep[ends[:-1]]).exp()
    if variant == "code":
        return code
    # "sigma_t^2 increases linearly" (section 4), from clean data to the code's last variance: the text has no ends.
    return code[-1] * torch.arange(T + 1, dtype=torch.float64) / T


def noising(
    T: int = 6, b2: float = 2e-4, variant: str = "code", *,
    scaled: bool = True, c_power: float = 1.0, weight_power: float = 1.0, device=None,
) -> Noising:  # fmt: skip
    """Tables for T levels; delta_t^2 = c_t^2 b2 sigma_{t+1}^2 with c_t^2 = (cum_sigma_t / cum_sigma_0)^c_power.

    "code" follows the release: E = net / delta^2 (`scaled=False`: E = net), the net's loss weighted by
    (sigma_1 / sigma_{t+1})^weight_power, no quadratic term at the last level. "text" follows Eqs. 15 to 17: linear
    variances, c = 1, E = net, weights 1, the term at every level.
    """
    if isinstance(T, bool) or not isinstance(T, int) or not (1 <= T <= 501 or T == 1000):
        raise ValueError(f"T = {T!r} levels: allowed are 1, any whole number from 2 to 501, and 1000")
    if variant not in VARIANTS:
        raise ValueError(f"variant = {variant!r}: allowed are {', '.join(map(repr, VARIANTS))}")
    if not b2 > 0:
        raise ValueError(f"b2 = {b2!r}: the step constant must be positive")
    sigma2 = _sigma2(T, variant)
    sigma, a = sigma2.sqrt(), (1 - sigma2).sqrt()
    cum_a = a.cumprod(0)
    cum_sigma = (1 - cum_a**2).sqrt()
    scale, precision, ones = a[1:].clone(), 1 / sigma2[1:], torch.ones(T, dtype=torch.float64)
    delta = sigma[1:].clone() if T == 1000 else b2**0.5 * sigma[1:]
    energy_scale, weight = ones, ones
    if variant == "code":
        if T != 1000:
            delta = delta * (cum_sigma[:-1] / cum_sigma[0]) ** (c_power / 2)
            scale[-1], precision[-1] = 1.0, 0.0
        energy_scale = delta**2 if scaled else ones
        weight = energy_scale * (sigma[1] / sigma[1:]) ** weight_power
    tables = (a, sigma, cum_a, cum_sigma, scale, precision, delta, energy_scale, weight)
    return Noising(*(table.float().to(device) for table in tables))


def chains_of(settings: Mapping[str, Any], device=None) -> tuple[Noising, list[int]]:
    """The tables and the steps of each level that a checkpoint's settings name, for `progressive`.

    Older files know neither c_power, which was 1, nor `doubled`, the number of levels with 2 K steps at test time.
    """
    T, b2, variant, K = (settings[name] for name in ("T", "b2", "variant", "K"))
    steps = [2 * K if t < settings.get("doubled", 0) else K for t in range(T)]
    return noising(T, b2, variant, c_power=settings.get("c_power", 1.0), device=device), steps


def levels(
    net_at: Callable[[Tensor], Energy], tables: Noising, given: Tensor | None = None
) -> Callable[[Tensor], Energy]:
    """at_level(t): the energy of y_t, E(y) = net_at(t)(y) / energy_scale[t], at fixed t (B,) (Eq. 32, f = -E).

    With `given` (B, C, H, W), the energy of y when these images are known: the net sees their channels, then y's.
    """

    def at_level(t: Tensor) -> Energy:
        raw, scale = net_at(t), tables.energy_scale[t]
        seen = lambda y: y if given is None else torch.cat([given, y], 1)
        return lambda y: raw(seen(y)) / scale

    return at_level


def conditional(energy: Energy, x_next: Tensor, precision: Scalar) -> Energy:
    """E(y) + precision / 2 |x_next - y|^2, the energy of y given x_next.

    For x_next = y + sigma eps; precision (B,) is 1 / sigma^2 (Eq. 16).
    """
    pull = lambda y: 0.5 * precision * flat_sum((x_next - y) ** 2)
    return lambda y: energy(y) + pull(y)


def schedule(
    tables: Noising, t: Tensor, K: int, noise: float = 1.0
) -> list[Pair]:  # fmt: skip
    """The K pairs (delta^2 / 2, noise * delta) of Eq. 17 for levels t (B,).

    K = 0 is the normal approximation of Eq. 12: one pair
    (sigma_{t+1}^2, noise * sigma_{t+1}), started at x_{t+1}.
    """
    if K == 0:
        sigma = tables.sigma[t + 1]
        return [(sigma**2, noise * sigma)]
    delta = tables.delta[t]
    return [(delta**2 / 2, noise * delta)] * K


@torch.inference_mode(False)  # each level's energy keeps tensors for gradients
def progressive(
    at_level: Callable[[Tensor], Energy],
    tables: Noising,
    x: Tensor,
    K: int | Sequence[int],
    *,
    noise: float = 0.99,
    rng: NoiseSource = None,
    move: Callable[[int, Energy, Tensor], Tensor] | None = None,
    project: Callable[[int, Tensor], Tensor] | None = None,
    callback: Callback = None,
) -> Tensor:
    """Algorithm 2: from x_T ~ N(0, I) (B, *S) down the levels to x_0.

    K Langevin steps at each level, or K[t] at level t; `noise` scales theirs
    (.99 in the release at test time, 1 in the text) and `rng` is `langevin`'s.
    `move(t, target, y)` goes on from there, by HMC say (section 4.2).
    `project(t, y)` changes the state after each step, and `callback(t, x_t)`
    sees every level.
    """
    K = [K] * tables.T if isinstance(K, int) else K
    for level in reversed(range(tables.T)):
        t = torch.full((len(x),), level, dtype=torch.long, device=x.device)
        target = conditional(at_level(t), x, tables.precision[t])
        pairs = schedule(tables, t, K[level], noise)
        put = None if project is None else partial(project, level)
        y, _ = langevin(target, x, pairs, rng=rng, project=put)
        y = y if move is None else move(level, target, y)
        x = y / expand(tables.scale[t], y)
        if callback is not None:
            callback(level, x)
    return x


def inpaint(
    at_level: Callable[[Tensor], Energy], tables: Noising, x0: Tensor, known: Tensor, K: int | Sequence[int], *,
    noise: float = 0.99, rng: Rng = None,
) -> Tensor:  # fmt: skip
    """Samples (B, *S) that have the pixels of x0 (B, *S) where `known`, a bool mask that broadcasts to x0.

    Progressive sampling in which the known pixels of every state are those of x0, noised along one path x_0, ..., x_T
    (Eq. 15). The rest at level t sees the known pixels of levels t to T, not those below: conditional approximately.
    """
    path = [tables.noise_to(x0, torch.zeros(len(x0), dtype=torch.long, device=x0.device), rng)]
    for a, sigma in zip(tables.a[1:], tables.sigma[1:], strict=True):
        path.append(a * path[-1] + sigma * noise_like(x0, rng))
    x = torch.where(known, path[-1], noise_like(x0, rng))
    put = lambda t, y: torch.where(known, tables.scale[t] * path[t], y)
    return torch.where(known, x0, progressive(at_level, tables, x, K, project=put, noise=noise, rng=rng))


def by_level(values: Tensor, t: Tensor, T: int) -> Tensor:
    """Mean of values (B,) at each level: (T,), NaN at a level that the batch does not hold."""
    total = values.new_zeros(T).index_add(0, t, values)
    count = values.new_zeros(T).index_add(0, t, torch.ones_like(values))
    return torch.where(count > 0, total / count, math.nan)


# Several scales: an image is the low band of Haar's wavelet and its details; p(x) = p(low) p(details | low) ---------


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The bands of x (B, C, H, W) in Haar's wavelet: low (B, C, H/2, W/2), details (B, 3C, H/2, W/2).

    low sums 2x2 pixels, over 2. The transform is orthonormal: the bands of white noise are white noise.
    """
    low, *details = _haar(F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).unbind(2))
    return low, torch.cat(details, 1)


def merged(low: Tensor, details: Tensor) -> Tensor:
    """The image (B, C, H, W) of two bands, the inverse of `split`."""
    return F.pixel_shuffle(torch.stack(_haar([low, *details.chunk(3, 1)]), 2).flatten(1, 2), 2)


def _haar(parts: Sequence[Tensor]) -> list[Tensor]:
    """Of four tensors: the sum, the differences of rows and of columns, and that of the diagonals. Its own inverse."""
    a, b, c, d = parts
    return [(a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]


def band(x: Tensor, scale: int, scales: int) -> tuple[Tensor | None, Tensor]:
    """What the net at `scale` of `scales` (0 has the smallest images) is given, and what it models, of images x."""
    for _ in range(scales - 1 - scale):
        x, _ = split(x)
    return split(x) if scale else (None, x)


def coarse_to_fine(
    nets: Sequence[Any], tables: Noising, x: Tensor,
    run: Callable[[Callable[[Tensor], Energy], Tensor, Callable[[Tensor], Tensor]], Tensor],
) -> Tensor:  # fmt: skip
    """Images like x (B, C, H, W): the smallest first, then the details that double them, given the smaller image.

    run(at_level, z, whole) samples a scale, from the band z of x: x = x_T ~ N(0, I) serves `progressive`, data
    `inpaint`. whole(z) is the image that details z make.
    """
    image = None
    for scale, net in enumerate(nets):
        whole = partial(merged, image) if scale else lambda z: z
        image = whole(run(levels(net.at, tables, image), band(x, scale, len(nets))[1], whole))
    return image


# Interpolation (section 4.1): the noise of two samples is interpolated, not the samples ------------------------------


def between(eps0: Tensor, eps1: Tensor, s: Tensor, way: str = "arc") -> Tensor:
    """Points (n, B, *S) at s (n,) in [0, 1] of the way from eps0 to eps1 (B, *S), exact at both ends.

    sin((1 - s) w) / sin(w) eps0 + sin(s w) / sin(w) eps1 (Shoemake 1985). The paper says "sphere", not which w:
    "arc", w = pi / 2, is exactly normal for independent normal noise. "angle" measures w for each sample: normal in
    many dimensions only; NaN for opposite inputs and zeros. "line" is (1 - s) eps0 + s eps1, of variance 1/2 halfway.
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
    weights = 1 - s[:, None], s[:, None]
    if way != "line":
        angle = _angle(eps0, eps1) if way == "angle" else s.new_full((1,), math.pi / 2)
        weights = (torch.where(angle == 0, w, torch.sin(w * angle) / torch.sin(angle)) for w in weights)  # (n, B)
    w0, w1 = (w.reshape(*w.shape, *[1] * (eps0.ndim - 1)) for w in weights)
    return w0 * eps0 + w1 * eps1


def _angle(x: Tensor, y: Tensor) -> Tensor:
    """The angle of each pair (B,), in [0, pi], to full digits near both ends; NaN where it decides nothing."""
    x, y = (v.flatten(1) / torch.linalg.vector_norm(v.flatten(1), dim=1, keepdim=True) for v in (x, y))
    apart, along = (torch.linalg.vector_norm(v, dim=1) for v in (x - y, x + y))
    angle = 2 * torch.atan2(apart, along)
    return torch.where(along < torch.finfo(x.dtype).eps ** 0.5, math.nan, angle)


def shared(
    rng0: torch.Generator, rng1: torch.Generator, s: Tensor, way: str = "arc"
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """Noise for chains at s (n,) of the way between two runs.

    A function for `langevin`'s rng: it takes a state (n * B, *S), all samples
    at s[0] first, and draws what two ordinary runs of B chains would draw from
    their generators.
    """
    _check(s, way)
    if rng0 is rng1:
        raise ValueError("the two ends need a generator each, got one")
    s = s.to(rng0.device)

    def noise(x: Tensor) -> Tensor:
        end = x[: len(x) // len(s)]
        ends = noise_like(end, rng0), noise_like(end, rng1)
        return _mix(*ends, s.to(x.dtype), way).flatten(0, 1)

    return noise


@torch.inference_mode(False)
def interpolate(
    at_level: Callable[[Tensor], Energy],
    tables: Noising,
    shape: tuple[int, ...],
    K: int | Sequence[int],
    s: Tensor,
    rng0: torch.Generator,
    rng1: torch.Generator,
    *,
    way: str = "arc",
    fresh: Rng = None,
    noise: float = 0.99,
) -> Tensor:
    """Samples (n, B, *S) at s (n,) of the way between two runs (Figure 5).

    The runs are progressive sampling with rng0 and with rng1, each drawing x_T
    of `shape` (B, *S) first; s = 0 and 1 give them. The noise of the start and
    of every step is interpolated (`between`); with `fresh` only the start is,
    and every chain draws its own noise from there. Source: section 4.1.
    """
    given = shared(rng0, rng1, s, way)
    size = len(s) * shape[0], *shape[1:]
    x = given(torch.empty(size, device=rng0.device))
    source = fresh or given
    x = progressive(at_level, tables, x, K, noise=noise, rng=source)
    return x.unflatten(0, (len(s), -1))


def path_length(path: Tensor) -> Tensor:
    """Length of the way along path (n, B, *S), step by step, over the distance of its ends: (B,), 1 for a line."""
    flat = path.flatten(2)
    steps = torch.linalg.vector_norm(flat.diff(dim=0), dim=2)
    return steps.sum(0) / torch.linalg.vector_norm(flat[-1] - flat[0], dim=1)
