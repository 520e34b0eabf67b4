"""What every two-dimensional target has: samples, log density, energy, box; and checks of its parameters."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# A centered square that reaches TAIL standard deviations past the outermost point of a smooth target's skeleton
# leaves out at most 4 Phi(-5.2) = 4e-7 of the mass.
TAIL = 5.2
BLOCK = 2**19  # points times nodes at once in a quadrature: bounds its memory


class Density:
    """A 2D target: `sample`, exact `log_prob` and `energy`, and `box`.

    `box` is the half side of the centered square that holds all but 1e-6 of the mass.
    `narrowest` is the largest s for which the density is another one plus noise N(0, s^2 I): no energy has more
    curvature than 1 / s^2, and chains that end with noise b can learn it only if b < s (`samplers.check_floor`).
    `modes` (m, 2) and `mode_std` are None where the density has no separate modes.
    """

    name: str
    box: float
    narrowest: float
    modes: Tensor | None = None
    mode_std: float | None = None

    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """n independent exact samples, (n, 2) float32 on the generator's device (the CPU if None)."""
        return self._draw(n, rng, torch.device("cpu") if rng is None else rng.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log density in nats: x (B, 2) -> (B,), in x's dtype and device, differentiable in x."""
        if x.ndim != 2 or x.shape[1] != 2 or not x.is_floating_point():
            raise ValueError(f"x must be a floating-point tensor of shape (B, 2), not {x.dtype} of {tuple(x.shape)}")
        return self._log_density(x)

    def blurred(self, std: float) -> "Density":
        """The density of x + std * xi, xi ~ N(0, I): of the same kind, exact again."""
        check_number("std", std, zero=True)
        return self._blur(std)

    def energy(self, x: Tensor) -> Tensor:
        """E(x) = -log p(x), (B, 2) -> (B,): normalized, so log Z = 0."""
        return -self.log_prob(x)


def in_blocks(log_density: Callable[[Tensor], Tensor], x: Tensor, nodes: int) -> Tensor:
    """log_density(x) in blocks, so that points times nodes stay below BLOCK."""
    return torch.cat([log_density(part) for part in x.split(max(1, BLOCK // nodes))])


def is_finite(value: object) -> bool:
    """A number, and finite."""
    return isinstance(value, int | float) and math.isfinite(value)


def check_number(name: str, value: float, zero: bool = False) -> None:
    """ValueError in one sentence unless `value` is positive (or, with `zero`, not negative) and finite."""
    if not is_finite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be a {'non-negative' if zero else 'positive'} finite number, not {value!r}")


def check_whole(name: str, value: int, least: int) -> None:
    """ValueError in one sentence unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
