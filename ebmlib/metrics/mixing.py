"""Whether chains have mixed: split R-hat and effective sample size of one number along them (Vehtari et al., 2021)."""

import math

import torch
from torch import Tensor


def _ranked(x: Tensor) -> Tensor:
    """Both halves of each chain as chains of their own (n // 2, 2 B), values replaced by normal scores of their ranks.

    Equal values, which a rejection leaves, share their mean rank.
    """
    half = len(x) // 2
    x = torch.cat([x[:half], x[-half:]], 1)  # an odd chain loses its middle
    _, place, count = x.unique(return_inverse=True, return_counts=True)
    rank = (count.cumsum(0) - (count - 1) / 2).double()[place]
    return torch.special.ndtri((rank - 0.375) / (x.numel() + 0.25))


def _variances(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean variance within chains (n, B), and the pooled estimate (n - 1) / n within + variance of the means."""
    within = x.var(0).mean()
    return within, within * (len(x) - 1) / len(x) + x.mean(0).var()


def split_rhat(x: Tensor) -> float:
    """Rank-normalized split R-hat of x (n, B), n draws of B chains: 1 where all halves agree, above 1.01 a warning.

    The larger of that of x, for location, and of |x - median|, for scale. ValueError for fewer than 4 draws, for NaN
    and infinities; NaN for chains that never move. Source: Vehtari et al. (2021), Eqs. 1 to 5 and section 4.
    """
    _check(x)
    found = []
    for values in (x, (x - x.quantile(0.5)).abs()):
        within, pooled = _variances(_ranked(values))
        found.append(float((pooled / within).sqrt()))
    return max(found)


def ess(x: Tensor) -> float:
    """Bulk effective sample size of x (n, B): independent draws that know the mean of x's normal scores as well.

    From autocorrelations over all split chains, summed by Geyer's initial monotone sequence. Errors as `split_rhat`.
    Source: Vehtari et al. (2021), Eqs. 10 to 14.
    """
    _check(x)
    z = _ranked(x)
    n, total = len(z), z.numel()
    power = torch.fft.rfft(z - z.mean(0), 2 * n, dim=0).abs() ** 2
    covariance = torch.fft.irfft(power, dim=0)[:n].mean(1) / n
    within, pooled = _variances(z)
    rho = 1 - (within - covariance) / pooled
    rho[0] = 1.0
    pairs = rho[: 2 * (n // 2)].reshape(-1, 2).sum(1)
    kept = int((pairs > 0).long().cumprod(0).sum())  # a sum of two neighbors is positive for a reversible chain
    after = float(rho[2 * kept].clamp(min=0)) if 2 * kept < n else 0.0
    tau = -1 + 2 * float(pairs[:kept].cummin(0).values.sum()) + after
    return total / max(tau, 1 / math.log10(total))


def _check(x: Tensor) -> None:
    if x.ndim != 2 or len(x) < 4 or not bool(x.isfinite().all()):
        raise ValueError(f"x must be (n, B), finite, with n >= 4 draws a chain; got {tuple(x.shape)}")
