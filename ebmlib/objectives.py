"""Training objectives. They take energy values when values suffice."""

import torch
from torch import Tensor, nn

from ebmlib.core import Energy, checked, energy_and_grad, evaluating, expand, flat_sum


def contrastive(
    pos: Tensor, neg: Tensor, *, weight: Tensor | float = 1.0, l2: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean of weight E(x+) minus mean of weight E(x-), plus l2 (E(x+)^2 + E(x-)^2): the maximum-likelihood gradient.

    pos and neg are energies (B,) of data and of samples without a graph; weight is 1 or (B,). Returns (loss, stats);
    stats["gap"] = mean E(x-) - mean E(x+) is positive while samples are less likely than data. Source: DRL, Eq. 3.
    """
    if pos.ndim != 1 or neg.ndim != 1:
        raise ValueError(f"contrastive takes energies of shape (B,); got {tuple(pos.shape)} and {tuple(neg.shape)}")
    loss = (weight * pos).mean() - (weight * neg).mean()
    if l2:
        loss = loss + l2 * ((pos**2).mean() + (neg**2).mean())
    stats = {"pos": pos.mean().detach(), "neg": neg.mean().detach()}
    return loss, {"gap": stats["neg"] - stats["pos"], **stats}


def kl_opt(energy: nn.Module, x_neg: Tensor) -> Tensor:
    """Mean of E(x-) with E's parameters frozen: their gradient comes through the sample x- (B, *S) alone.

    x- must keep the graph of the chain's last steps (ValueError if not). Runs under `evaluating`: spectral norm stays.
    Source: improved CD, supplement, Eq. 7 (its energy half); over a whole chain, the self-adversarial generator loss.
    """
    if not x_neg.requires_grad:
        raise ValueError(
            "kl_opt needs samples with a graph: take the last step with differentiable=True, do not detach"
        )
    with evaluating(energy):
        return checked(energy, x_neg).mean()


def entropy_nn(x: Tensor, reference: Tensor, floor: float = 1e-4) -> Tensor:
    """Mean log of the distance from x (B, *S) to its nearest of `reference` (M, *S), which takes no gradient.

    For M samples of x's own law it grows as entropy / d. A distance below `floor` (in units of x) counts as `floor`:
    the loss stays finite, and a sample that meets a reference exactly gets no gradient. Source: the entropy of improved
    CD's Eq. 7, estimated as in the released code.
    """
    if x.shape[1:] != reference.shape[1:] or not len(reference):
        shapes = f"{tuple(x.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"entropy_nn takes x (B, *S) and a reference (M, *S) that is not empty; got {shapes}")
    flat, others = x.flatten(1), reference.detach().flatten(1)
    # Distances without matrix products, which lose half the digits between close points.
    apart = torch.cdist(flat.detach(), others, compute_mode="donot_use_mm_for_euclid_dist")
    square = (flat - others[apart.argmin(1)]).square().sum(1)  # (B,)
    return 0.5 * square.clamp(min=floor**2).log().mean()


def denoising_score_matching(
    energy: Energy,
    x: Tensor,
    sigma: float | Tensor,
    rng: torch.Generator | None = None,
    *,
    weight: float | Tensor = 1.0,
) -> Tensor:
    """Mean of weight / 2 |sigma grad E(x + sigma n) - n|^2, n ~ N(0, I): E learns the law of x (B, *S) plus the noise.

    sigma and weight are floats or (B,); sigma in units of x, positive (ValueError). Keeps a graph to E's weights.
    Source: Vincent (2011), Eq. 9, times sigma^2. For x ~ N(0, s^2 I) the optimum is d/2 s^2 / (s^2 + sigma^2), not 0.
    """
    if not bool((torch.as_tensor(sigma) > 0).all()):
        raise ValueError("denoising_score_matching needs noise: every sigma must be positive")
    noise = torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device)
    noisy = (x + expand(sigma, x) * noise).detach()
    _, grad = energy_and_grad(energy, noisy, create_graph=True)  # -grad E is the score of the model
    return (0.5 * weight * flat_sum((expand(sigma, x) * grad - noise).square())).mean()


def elbo(log_lik: Tensor, mean: Tensor, log_std: Tensor, *, beta: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus the evidence lower bound, mean of beta KL(q || N(0, I)) - log p(x | z), z one draw of q; and its stats.

    log_lik (B,) in nats; mean and log_std (B, d) of the Gaussian q(z | x), whose KL is in closed form. beta rises from
    0 to 1 where the KL term is annealed; stats["elbo"] is the bound itself, at beta = 1. Source: VAEBM, Eq. 3.
    """
    if log_lik.ndim != 1 or mean.shape != log_std.shape or len(mean) != len(log_lik):
        shapes = f"{tuple(log_lik.shape)}, {tuple(mean.shape)} and {tuple(log_std.shape)}"
        raise ValueError(f"elbo takes log likelihoods (B,) and q's mean and log_std (B, d); got {shapes}")
    kl = 0.5 * flat_sum(mean**2 + (2 * log_std).exp() - 1 - 2 * log_std)
    stats = {"elbo": (log_lik - kl).mean().detach(), "kl": kl.mean().detach(), "log_lik": log_lik.mean().detach()}
    return (beta * kl - log_lik).mean(), stats
