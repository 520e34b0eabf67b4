"""Energies pulled back through a decoder: VAEBM's chains on (eps_x, eps_z), and importance estimates of log p(x).

A decoder is a function z (B, d) -> a Gaussian of x with `mean` and `log_std` of x's shape (B, *S), `transform` and
`log_prob`, as in `nets.vae`; the prior of z is N(0, I). A state eps is one tensor (B, D): eps_x flat, then eps_z.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ebmlib.core import Energy, Rng, checked, flat_sum, gaussian_energy

Decoder = Callable[[Tensor], Any]


def pack(*parts: Tensor) -> Tensor:
    """Groups (B, *S_i) as one state (B, D), each flat, in their order."""
    return torch.cat([part.flatten(1) for part in parts], 1)


def split(state: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A packed state (B, D) as its part of x's shape (B, *S) and the rest (B, d)."""
    size = math.prod(shape)
    if state.shape[-1] <= size:
        raise ValueError(f"a state of {state.shape[-1]} numbers leaves no latents beside x of shape {shape}")
    return state[:, :size].reshape(-1, *shape), state[:, size:]


def push(
    decode: Decoder, eps: Tensor, shape: tuple[int, ...] = (2,)
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """T(eps) = (x, z): z = eps_z and x = mean(z) + std(z) eps_x.

    eps (B, D) to x (B, *S) and z (B, d). Source: VAEBM, Eq. 8.
    """
    eps_x, z = split(eps, shape)
    return decode(z).transform(eps_x), z


def pull(decode: Decoder, x: Tensor, z: Tensor) -> Tensor:
    """The inverse of `push`: eps (B, D) with T(eps) = (x, z)."""
    p = decode(z)
    return pack((x - p.mean) * (-p.log_std).exp(), z)


def log_jacobian(decode: Decoder, z: Tensor) -> Tensor:
    """log |det dT / d eps| (B,) in nats: the sum of the decoder's log standard deviations (VAEBM, Eq. 14)."""
    return flat_sum(decode(z).log_std)


def in_noise(
    energy: Energy, decode: Decoder, shape: tuple[int, ...] = (2,)
) -> Energy:  # fmt: skip
    """E(T_x(eps)) - log N(eps; 0, I): the energy of VAEBM's chains (Eq. 9).

    Of eps (B, D). With E = 0 it is normalized; the mean of exp(-E) under
    N(0, I) is Z of p(x) = p_VAE(x) exp(-E(x)) / Z.
    """

    def target(eps: Tensor) -> Tensor:
        x, _ = push(decode, eps, shape)
        return checked(energy, x) + gaussian_energy(eps)

    return target


def in_data(energy: Energy, decode: Decoder, shape: tuple[int, ...] = (2,)) -> Energy:
    """E(x) - log p(x | z) - log p(z) of the packed state (x, z) (B, D): the same model in the other space.

    At T(eps) it exceeds `in_noise` by exactly `log_jacobian`: the densities are the same (VAEBM, Appendix B).
    """

    def target(state: Tensor) -> Tensor:
        x, z = split(state, shape)
        return checked(energy, x) - decode(z).log_prob(x) + gaussian_energy(z)

    return target


def importance(encode: Decoder, decode: Decoder, x: Tensor, rng: Rng = None, n: int = 1) -> Tensor:
    """log p(x | z) + log p(z) - log q(z | x) for n draws z of q per x (B, *S): (n, B), exp of it has mean p(x)."""
    q = encode(x)
    z = q.transform(torch.randn(n, *q.mean.shape, generator=rng, dtype=x.dtype, device=x.device))
    each, of = z.flatten(0, 1), x.expand(n, *x.shape).flatten(0, 1)
    return (decode(each).log_prob(of) - gaussian_energy(each)).reshape(n, -1) - q.log_prob(z)


@torch.no_grad()
def iwae(encode: Decoder, decode: Decoder, x: Tensor, n: int, rng: Rng = None, block: int = 20_000) -> Tensor:
    """log of the mean of n importance weights, (B, *S) -> (B,) in nats: at most log p(x) on average, = it for n large.

    At most `block` draws are decoded at once. Source: Burda et al. (2016), Eq. 8; VAEBM, section 5.4.
    """
    total = torch.full(x.shape[:1], -math.inf, dtype=x.dtype, device=x.device)
    at_once = max(1, min(n, block // max(len(x), 1)))
    for done in range(0, n, at_once):
        count = min(at_once, n - done)
        total = torch.logaddexp(total, torch.logsumexp(importance(encode, decode, x, rng, count), 0))
    return total - math.log(n)
