"""Training objectives. They take energy values when values suffice."""

import torch
from torch import Tensor, nn

from ebmlib.core import Energy, Rng, checked, energy_and_grad, evaluating, expand, flat_sum


def contrastive(
    pos: Tensor, neg: Tensor, *, weight: Tensor | float = 1.0, l2: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean of weight (E(x+) - E(x-)) plus l2 (E(x+)^2 + E(x-)^2), and stats.

    pos and neg are energies (B,) of data and of samples without a graph,
    weight is 1 or (B,). The gradient is that of maximum likelihood (DRL,
    Eq. 3). stats["gap"] > 0 while samples are less likely than data.
    """
    if pos.ndim != 1 or neg.ndim != 1:
        shapes = f"{tuple(pos.shape)} and {tuple(neg.shape)}"
        raise ValueError(f"contrastive takes energies (B,); got {shapes}")
    loss = (weight * pos).mean() - (weight * neg).mean()
    if l2:
        loss = loss + l2 * ((pos**2).mean() + (neg**2).mean())
    stats = {"pos": pos.mean().detach(), "neg": neg.mean().detach()}
    return loss, {"gap": stats["neg"] - stats["pos"], **stats}


def kl_opt(energy: nn.Module, x_neg: Tensor) -> Tensor:
    """Mean of E(x-) with frozen weights: their gradient comes through x-.

    x- (B, *S) must keep the graph of the chain's last steps (ValueError if
    not). Source: improved CD, supplement, Eq. 7 (its energy half); over a
    whole chain, the self-adversarial generator loss.
    """
    if not x_neg.requires_grad:
        how = "take the last step with differentiable=True"
        raise ValueError(f"kl_opt needs samples with a graph: {how}")
    with evaluating(energy):
        return checked(energy, x_neg).mean()


def entropy_nn(x: Tensor, reference: Tensor, floor: float = 1e-4) -> Tensor:
    """Mean log distance from x (B, *S) to its nearest of `reference` (M, *S).

    For M samples of x's own distribution it grows as entropy / d. Its gradient
    is less, since the reference takes none: in the scale of x, for M = 100,
    0.72 of the exact one at d = 8, 0.57 at d = 64, and 1/2 in many dimensions.
    At d = 2 it has infinite variance but for `floor` (in units of x): a nearer
    distance counts as `floor`, without a gradient.
    Source: improved CD's Eq. 7, as in its code.
    """
    if x.shape[1:] != reference.shape[1:] or not len(reference):
        got = f"{tuple(x.shape)} and {tuple(reference.shape)}"
        takes = "x (B, *S) and a reference (M, *S) that is not empty"
        raise ValueError(f"entropy_nn takes {takes}; got {got}")
    flat, others = x.flatten(1), reference.detach().flatten(1)
    # Matrix products would lose half the digits between close points.
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(flat.detach(), others, compute_mode=exact)
    square = (flat - others[apart.argmin(1)]).square().sum(1)  # (B,)
    return 0.5 * square.clamp(min=floor**2).log().mean()


def denoising_score_matching(
    energy: Energy, x: Tensor, sigma: float | Tensor, rng: Rng = None, *,
    weight: float | Tensor = 1.0
) -> Tensor:  # fmt: skip
    """Mean of weight / 2 |sigma grad E(x + sigma n) - n|^2 for n ~ N(0, I).

    E learns the distribution of x (B, *S) plus the noise; the least value is
    not 0. sigma (positive, in units of x) and weight are floats or (B,).
    Source: Vincent (2011), Eq. 9, times sigma^2.
    """
    if not bool((torch.as_tensor(sigma) > 0).all()):
        raise ValueError(f"every sigma must be positive; got {sigma}")
    shape = {"dtype": x.dtype, "device": x.device}
    noise = torch.randn(x.shape, generator=rng, **shape)
    noisy = (x + expand(sigma, x) * noise).detach()
    _, grad = energy_and_grad(energy, noisy, create_graph=True)
    miss = expand(sigma, x) * grad - noise  # -grad E is the model's score
    return (0.5 * weight * flat_sum(miss.square())).mean()


def elbo(
    log_lik: Tensor, mean: Tensor, log_std: Tensor, *, beta: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Minus the evidence lower bound: beta KL(q || N(0, I)) - log p(x | z).

    log_lik (B,) in nats at one draw z of q; mean and log_std (B, d) of the
    Gaussian q(z | x), whose KL is in closed form. stats["elbo"] is the bound
    itself, at beta = 1. Source: VAEBM, Eq. 3.
    """
    if mean.shape != log_std.shape or log_lik.shape != mean.shape[:1]:
        got = [tuple(part.shape) for part in (log_lik, mean, log_std)]
        takes = "log likelihoods (B,) and q's mean and log_std (B, d)"
        raise ValueError(f"elbo takes {takes}; got {got}")
    square = mean**2 + (2 * log_std).exp()
    kl = 0.5 * flat_sum(square - 1 - 2 * log_std)
    stats = {"elbo": log_lik - kl, "kl": kl, "log_lik": log_lik}
    stats = {name: value.mean().detach() for name, value in stats.items()}
    return (beta * kl - log_lik).mean(), stats
