"""The gradient-flow ODE dx/dt = -grad E(x) as a generator with an exact density, and its Euler steps.

Source: the self-adversarial paper, section 2. Solvers are torchdiffeq's. `tol` bounds the error of each of their steps,
not of the solution: a log density at 1e-5 on a stiff energy may be off by nats. Solve at two tolerances to see it.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ebmlib.core import Energy, energy_and_grad, flat_sum, gaussian_energy
from ebmlib.samplers import decoupled, langevin

# (B, *S) -> (grad E, Laplacian of E) of shapes (B, *S) and (B,); differentiable in the weights and in x.
GradLaplacian = Callable[[Tensor], tuple[Tensor, Tensor]]


def laplacian(
    energy: Energy, x: Tensor, *, probe: Tensor | None = None, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """grad E(x) (B, *S) and the Laplacian of E (B,), by one Hessian product a coordinate; with a graph if asked for.

    With a `probe` v of x's shape it is Hutchinson's estimate v . H v, unbiased for entries of mean 0 and covariance I.
    """
    axes = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])
    directions = [v.expand_as(x) for v in axes] if probe is None else [probe]
    with torch.enable_grad():
        point = x if x.requires_grad and create_graph else x.detach().requires_grad_(True)
        _, grad = energy_and_grad(energy, point, create_graph=True)
        product = partial(torch.autograd.grad, grad, point, create_graph=create_graph, retain_graph=True)
        trace = sum(flat_sum(v * product(v)[0]) for v in directions)
    return (grad if create_graph else grad.detach()), trace


def hessian(energy: Energy, x: Tensor) -> Tensor:
    """Hessian of E at each sample, (B, *S) -> (B, d, d) with d the number of coordinates; detached."""
    one = lambda point: energy(point.reshape(1, *x.shape[1:]))[0]
    return torch.func.vmap(torch.func.jacrev(torch.func.grad(one)))(x.flatten(1)).detach()


def _solve(velocity: Callable[[Tensor], Tensor], state: Tensor, t_end: float, tol: float) -> Tensor:
    """State at time t_end of d state/dt = velocity(state), by dopri5 with relative and absolute tolerance tol."""
    from torchdiffeq import odeint  # here, because it loads scipy

    if not (math.isfinite(t_end) and t_end != 0 and tol > 0):
        raise ValueError(f"a flow needs a finite end time other than 0 and a positive tolerance; got {t_end}, {tol}")
    times = torch.tensor([0.0, abs(t_end)], dtype=state.dtype, device=state.device)
    sign = math.copysign(1.0, t_end)
    return odeint(lambda t, y: sign * velocity(y), state, times, rtol=tol, atol=tol, method="dopri5")[-1]


def transport(
    energy: Energy, x: Tensor, t_end: float = 0.2, *, tol: float = 1e-5,
    create_graph: bool = False
) -> Tensor:  # fmt: skip
    """Follow dx/dt = -grad E(x) for time t_end (negative: backward).

    x is (B, *S), t_end in units of x^2 / energy. With x ~ N(0, I) this is the
    generator G_theta of Eq. 5. Detached unless `create_graph`, which
    differentiates through the solver's own steps, at the memory of all.
    """

    def velocity(y: Tensor) -> Tensor:
        return -energy_and_grad(energy, y, create_graph=create_graph)[1]

    with torch.set_grad_enabled(create_graph):
        return _solve(velocity, x, t_end, tol)


def transport_density(
    energy: Energy, x: Tensor, t_end: float = 0.2, *,
    tol: float = 1e-5, field: GradLaplacian | None = None, create_graph: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `transport`, with the change of the log density along the path, (B,): d log p(x(t)) / dt = +Laplacian of E.

    `field` replaces `laplacian`: a net's own fast one, or Hutchinson's estimate. Source: Chen et al. (2018); Eq. 6.
    """
    if field is None:
        field = lambda y: laplacian(energy, y, create_graph=create_graph)

    def velocity(state: Tensor) -> Tensor:
        grad, trace = field(state[:, :-1].reshape(x.shape))
        return torch.cat([-grad.flatten(1), trace[:, None]], 1)  # (B, d + 1)

    with torch.set_grad_enabled(create_graph):
        state = torch.cat([x.flatten(1), torch.zeros_like(x.flatten(1)[:, :1])], 1)
        state = _solve(velocity, state, t_end, tol)
    return state[:, :-1].reshape(x.shape), state[:, -1]


def log_prob(
    energy: Energy,
    x: Tensor,
    t_end: float = 0.2,
    *,
    tol: float = 1e-5,
    field: GradLaplacian | None = None,
    create_graph: bool = False,
) -> Tensor:
    """Log density in nats of the flow of N(0, I) at x (B, *S): (B,).

    Exact but for the solver: compare with tol / 10 where it judges a density.
    The ODE runs backward from x to its latent x_0 (Eq. 6). With `create_graph`
    it can be maximized over the weights.
    """
    options = {"tol": tol, "field": field, "create_graph": create_graph}
    x0, change = transport_density(energy, x, -t_end, **options)
    return -gaussian_energy(x0) - change


# -- Forward Euler: K steps x' = x - step grad E(x), the residual flow of Eqs. 7 and 8 with step = eta / 2. --


def euler(energy: Energy, x: Tensor, step: float, K: int) -> tuple[Tensor, Tensor]:
    """K steps of gradient descent from x and log |det d x_K / d x|, (B,): the sum of log |det(I - step H(x_k))|.

    Where every step is invertible, log p(x_K) = log p_0(x) minus it. Not differentiable.
    """
    path = [x]
    end, _ = langevin(energy, x, decoupled(step, 0.0, K), callback=lambda k, y: path.append(y))
    eye = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    jacobians = (eye - step * hessian(energy, y) for y in path[:-1])
    return end, sum(torch.linalg.slogdet(jacobian).logabsdet for jacobian in jacobians)


def euler_inverse(energy: Energy, y: Tensor, step: float, K: int, *, rounds: int = 50) -> Tensor:
    """x with K Euler steps from x ending at y: each step by `rounds` fixed-point rounds x <- y + step grad E(x).

    It converges where `contraction` is below 1.
    """
    for _ in range(K):
        x = y
        for _ in range(rounds):
            x = y + step * energy_and_grad(energy, x)[1]
        y = x
    return y


def contraction(energy: Energy, x: Tensor, step: float) -> Tensor:
    """step times the spectral norm of the Hessian at each x, (B,). Below 1 on a convex set: Euler is invertible there.

    Source: the bound of Behrmann et al. (2019).
    """
    return step * torch.linalg.matrix_norm(hessian(energy, x), ord=2)
