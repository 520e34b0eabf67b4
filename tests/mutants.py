"""Planted slips: each changes one line of the library, and the named tests must fail. `make mutants` runs them all.

A survivor means that a test is missing. Each slip runs in its own copy of the package, two at a time.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two slips run at a time

import pytest
import scipy.integrate  # noqa: F401  loaded once, for every slip
import torch

ROOT = Path(__file__).resolve().parents[1]


class Slip(NamedTuple):
    """What is wrong, the file under ebmlib/, its text (once there) and the slip for it, the tests that must fail."""

    about: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


CORE, SAMPLERS, RECOVERY = ("test_core.py",), ("test_samplers.py",), ("test_recovery.py",)
OBJECTIVES, PARTITION, NETS = ("test_objectives.py",), ("test_partition.py",), ("test_nets.py",)
RESERVOIR, APPLICATIONS = ("test_reservoir.py",), ("test_applications.py",)
GROWING = tuple(
    f"test_nets.py::test_{name}"
    for name in ("growing_keeps_every_trunk_parameter_bit_for_bit", "the_growing_net_is_table_6")
)
DENSITIES = ("test_densities.py::test_blurred_is_the_convolution_with_a_gaussian",)
CURVES = ("test_densities.py::test_curves_against_adaptive_quadrature",)
FUNNEL = tuple(
    f"test_densities.py::test_{name}"
    for name in ("funnel_against_its_two_normals", "blurred_funnel_against_a_sum_over_its_sharp_height")
)
FOLLOW = tuple(f"test_densities.py::test_samples_follow_the_density[{name}]" for name in ("pinwheel", "funnel"))
CONVOLVED = tuple(f"{DENSITIES[0]}[0.6-{name}]" for name in ("rings", "blurred-funnel"))
LATENT, VAE = ("test_latent.py",), ("test_vae.py",)
PARALLEL = tuple(
    f"test_parallel.py::test_{name}"
    for name in (
        "the_mean_gradient_is_that_of_the_joined_batch",
        "processes_draw_their_own_rows_and_hold_the_same_weights",
    )
)
SCORE = ("test_metrics.py::test_the_score_is_the_mean_over_equal_splits",)
NEVER_COME = ("test_metrics.py::test_classes_that_never_come_do_not_count",)
REFERENCE = ("test_metrics.py::test_a_reference_to_anything_else_never_hits",)
PLANAR = tuple(
    f"test_metrics_planar.py::test_{name}"
    for name in ("divergence_and_log_z_of_gaussians", "divergences_follow_the_temperature")
)
SETTINGS, TRAINING = ("test_settings.py",), ("test_training.py::test_ema_against_the_closed_form",)

MUTANTS = [
    Slip("flat_sum averages", "core.py", "x.flatten(1).sum(1)", "x.flatten(1).mean(1)", CORE),
    Slip("the graph is cut", "core.py", "create_graph=create_graph)", "create_graph=False)", CORE),
    Slip("the point's graph is cut", "core.py", "x if x.requires_grad and create_graph else x", "x", CORE),
    Slip("frozen forgets to restore", "core.py", "p.requires_grad_(flag)", "p.requires_grad_(False)", CORE),
    Slip("evaluating stays in train mode", "core.py", "    module.eval()\n", "", CORE),
    Slip("evaluating restores train mode for all", "core.py", "m.training = mode", "m.training = True", CORE),
    Slip("temperature loses its 1/2", "samplers.py", "b**2 / (2 * a)", "b**2 / a", SAMPLERS),
    Slip(
        "ULA's noise loses its 2", "samplers.py", "[(step, (2 * step) ** 0.5)] * K", "[(step, step**0.5)] * K", SAMPLERS
    ),
    Slip("the step goes uphill", "samplers.py", "_plus(x, -a, grad)", "_plus(x, a, grad)", SAMPLERS),
    Slip("noise of half the size", "samplers.py", "_plus(x, b, noise_like", "_plus(x, 0.5 * b, noise_like", SAMPLERS),
    Slip("clip is one-sided", "samplers.py", "seen[1].clamp(-clip, clip)", "seen[1].clamp(max=clip)", SAMPLERS),
    Slip("decayed noise ends above 0", "samplers.py", "k / max(K - 1, 1)", "k / K", SAMPLERS),
    Slip("project is forgotten", "samplers.py", "x = x if project is None else project(x)", "x = x", SAMPLERS),
    Slip(
        "annealed goes round the levels",
        "samplers.py",
        "for pair in zip(steps, noises) for _ in range(K)",
        "for _ in range(K) for pair in zip(steps, noises)",
        SAMPLERS,
    ),
    Slip(
        "a differentiable step is detached",
        "samplers.py",
        "return x if graph else x.detach()",
        "return x.detach()",
        SAMPLERS,
    ),
    Slip("MALA without its reverse term", "samplers.py", "+ forward - backward", "+ forward", SAMPLERS),
    Slip(
        "MALA's reverse drift with the old gradient",
        "samplers.py",
        "x - proposal + eps * new_grad",
        "x - proposal + eps * grad",
        SAMPLERS,
    ),
    Slip(
        "MALA keeps the old gradient",
        "samplers.py",
        "(accept, (proposal, new_value, new_grad), (x",
        "(accept, (proposal, new_value, grad), (x",
        SAMPLERS,
    ),
    Slip("NaN is accepted", "samplers.py", "nan=-math.inf, posinf", "nan=0.0, posinf", SAMPLERS),
    Slip(
        "the decision is turned round",
        "samplers.py",
        "uniform.log() < log_ratio",
        "uniform.log() > log_ratio",
        SAMPLERS,
    ),
    Slip("leapfrog without its first kick", "samplers.py", "    p = p - 0.5 * eps * grad\n", "", SAMPLERS),
    Slip("leapfrog loses its last half step", "samplers.py", "(eps if k < L - 1 else 0.5 * eps)", "eps", SAMPLERS),
    Slip(
        "HMC loses the 1/2 of kinetic energy", "samplers.py", "= 0.5 * (flat_sum(p**2)", "= (flat_sum(p**2)", SAMPLERS
    ),
    Slip(
        "HMC without its correction",
        "samplers.py",
        "value - new[0] + kinetic",
        "0 * value",
        SAMPLERS,
    ),
    Slip(
        "tune goes the wrong way",
        "samplers.py",
        "1 if acceptance > high else -1",
        "-1 if acceptance > high else 1",
        SAMPLERS,
    ),
    Slip(
        "tune never shortens its stride",
        "samplers.py",
        "factor = factor**0.5 if before",
        "factor = factor if before",
        SAMPLERS,
    ),
    Slip(
        "a cut is one beta early",
        "papers/recovery.py",
        "torch.tensor([-1, *edges]) + 1",
        "torch.tensor([0, *edges])",
        RECOVERY,
    ),
    Slip("the stride is twice as long", "papers/recovery.py", "1000 // (2 * (T - 1))", "1000 // (T - 1)", RECOVERY),
    Slip(
        "sigma of the level below",
        "papers/recovery.py",
        "else b2**0.5 * sigma[1:]",
        "else b2**0.5 * sigma[:-1]",
        RECOVERY,
    ),
    Slip("precision of the level below", "papers/recovery.py", "1 / sigma2[1:]", "1 / sigma2[:-1]", RECOVERY),
    Slip("b2 without its root", "papers/recovery.py", "b2**0.5 *", "b2 *", RECOVERY),
    Slip(
        "a quadratic term at the last level",
        "papers/recovery.py",
        "precision[-1] = 1.0, 0.0",
        "precision[-1] = 1.0, precision[-1]",
        RECOVERY,
    ),
    Slip(
        "the last level is rescaled",
        "papers/recovery.py",
        "scale[-1], precision[-1] = 1.0, 0.0",
        "precision[-1] = 0.0",
        RECOVERY,
    ),
    Slip("c squared", "papers/recovery.py", "** (c_power / 2)", "** c_power", RECOVERY),
    Slip("weights turned round", "papers/recovery.py", "(sigma[1] / sigma[1:])", "(sigma[1:] / sigma[1])", RECOVERY),
    Slip("energy over delta", "papers/recovery.py", "energy_scale = delta**2", "energy_scale = delta", RECOVERY),
    Slip(
        "noise without the cumulative sigma",
        "papers/recovery.py",
        "expand(self.cum_sigma[t], x)",
        "expand(self.sigma[t], x)",
        RECOVERY,
    ),
    Slip(
        "pairs with the noise of level t",
        "papers/recovery.py",
        "expand(self.sigma[t + 1], x)",
        "expand(self.sigma[t], x)",
        RECOVERY,
    ),
    Slip(
        "pairs without the scale", "papers/recovery.py", "return expand(self.scale[t], x) * x_t", "return x_t", RECOVERY
    ),
    Slip(
        "coupled noise of the step, not of the bridge",
        "papers/recovery.py",
        "(near * step / far).sqrt()",
        "step.sqrt()",
        RECOVERY,
    ),
    Slip(
        "a move is forgotten",
        "papers/recovery.py",
        "y = y if move is None else move(level, target, y)",
        "y = y",
        RECOVERY,
    ),
    Slip("the cells' width turned round", "partition.py", "- math.log2(width)", "+ math.log2(width)", PARTITION),
    Slip(
        "the last level is never drawn",
        "papers/recovery.py",
        "torch.randint(self.T, (",
        "torch.randint(max(self.T - 1, 1), (",
        RECOVERY,
    ),
    Slip(
        "the conditional loses its 1/2",
        "papers/recovery.py",
        "0.5 * precision * flat_sum",
        "precision * flat_sum",
        RECOVERY,
    ),
    Slip(
        "the quadratic term pushes away",
        "papers/recovery.py",
        "energy(y) + pull(y)",
        "energy(y) - pull(y)",
        RECOVERY,
    ),
    Slip(
        "the step is delta^2",
        "papers/recovery.py",
        "[(delta**2 / 2, noise * delta)]",
        "[(delta**2, noise * delta)]",
        RECOVERY,
    ),
    Slip(
        "the chain's noise is left alone",
        "papers/recovery.py",
        "(delta**2 / 2, noise * delta)",
        "(delta**2 / 2, delta)",
        RECOVERY,
    ),
    Slip(
        "the normal approximation one level off",
        "papers/recovery.py",
        "sigma = tables.sigma[t + 1]",
        "sigma = tables.sigma[t]",
        RECOVERY,
    ),
    Slip("no division by the scale", "papers/recovery.py", "x = y / expand(tables.scale[t], y)", "x = y", RECOVERY),
    Slip("levels upward", "papers/recovery.py", "reversed(range(tables.T))", "range(tables.T)", RECOVERY),
    Slip("levels without their scale", "papers/recovery.py", "raw(y) / scale", "raw(y)", RECOVERY),
    Slip(
        "by_level sums",
        "papers/recovery.py",
        "torch.where(count > 0, total / count",
        "torch.where(count > 0, total",
        RECOVERY,
    ),
    Slip("the arc is half as long", "papers/recovery.py", "math.pi / 2)", "math.pi / 4)", APPLICATIONS),
    Slip("angles from one sum", "papers/recovery.py", "(x - y, x + y)", "(x - y, 2 * y)", APPLICATIONS),
    Slip("opposite ends pass", "papers/recovery.py", "math.nan, angle", "angle, angle", APPLICATIONS),
    Slip(
        "both ends draw from one", "papers/recovery.py", "noise_like(end, rng1)", "noise_like(end, rng0)", APPLICATIONS
    ),
    Slip("fresh noise is shared", "papers/recovery.py", "source = fresh or given", "source = given", APPLICATIONS),
    Slip(
        "steps draw their own noise",
        "papers/recovery.py",
        "source = fresh or given",
        "source = fresh or rng0",
        APPLICATIONS,
    ),
    Slip("a path without its ends", "papers/recovery.py", "flat[-1] - flat[0]", "flat[-1] - flat[1]", APPLICATIONS),
    Slip("given noise is spread", "samplers.py", "given.shape != x.shape", "given.ndim != x.ndim", APPLICATIONS),
    Slip(
        "the loss is turned round",
        "objectives.py",
        "(weight * pos).mean() - (weight * neg).mean()",
        "(weight * neg).mean() - (weight * pos).mean()",
        OBJECTIVES,
    ),
    Slip("l2 on data only", "objectives.py", "(pos**2).mean() + (neg**2).mean()", "(pos**2).mean()", OBJECTIVES),
    Slip("samples are not weighted", "objectives.py", "- (weight * neg).mean()", "- neg.mean()", OBJECTIVES),
    Slip(
        "the gap is turned round",
        "objectives.py",
        'stats["neg"] - stats["pos"]',
        'stats["pos"] - stats["neg"]',
        OBJECTIVES,
    ),
    Slip("the KL term moves the weights", "objectives.py", "with evaluating(energy):", "if True:", OBJECTIVES),
    Slip(
        "the KL term's sample is cut",
        "objectives.py",
        "checked(energy, x_neg)",
        "checked(energy, x_neg.detach())",
        OBJECTIVES,
    ),
    Slip("entropy loses its square root", "objectives.py", "0.5 * square.clamp", "square.clamp", OBJECTIVES),
    Slip("the farthest for the nearest", "objectives.py", "apart.argmin(1)", "apart.argmax(1)", OBJECTIVES),
    Slip("the floor is not squared", "objectives.py", "clamp(min=floor**2)", "clamp(min=floor)", OBJECTIVES),
    Slip("no floor", "objectives.py", "square.clamp(min=floor**2).log()", "square.log()", OBJECTIVES),
    Slip(
        "the reference is pushed too",
        "objectives.py",
        "reference.detach().flatten(1)",
        "reference.flatten(1)",
        OBJECTIVES,
    ),
    Slip("denoising loses its 1/2", "objectives.py", "(0.5 * weight *", "(weight *", OBJECTIVES),
    Slip("denoising points the wrong way", "objectives.py", "* grad - noise  #", "* grad + noise  #", OBJECTIVES),
    Slip("denoising forgets sigma", "objectives.py", "miss = expand(sigma, x) * grad", "miss = grad", OBJECTIVES),
    Slip(
        "denoising sees clean data",
        "objectives.py",
        "energy, noisy, create_graph",
        "energy, x, create_graph",
        OBJECTIVES,
    ),
    Slip(
        "denoising keeps no graph", "objectives.py", "noisy, create_graph=True", "noisy, create_graph=False", OBJECTIVES
    ),
    Slip("denoising without a weight", "objectives.py", "(0.5 * weight *", "(0.5 *", OBJECTIVES),
    Slip(
        "one step less keeps its graph",
        "samplers.py",
        "k >= n - kept",
        "k > n - kept",
        SAMPLERS,
    ),
    Slip(
        "True is one step",
        "samplers.py",
        "n if differentiable is True else",
        "1 if differentiable is True else",
        SAMPLERS,
    ),
    Slip("bytes are cut, not rounded", "reservoir.py", ".round().clamp(0, 255)", ".clamp(0, 255)", RESERVOIR),
    Slip("bytes wrap around", "reservoir.py", ".round().clamp(0, 255)", ".round().to(torch.int32)", RESERVOIR),
    Slip("bytes come back unscaled", "reservoir.py", "(x.float() / 255)", "x.float()", RESERVOIR),
    Slip(
        "bytes lose their origin",
        "reservoir.py",
        "self.low + (self.high - self.low) * (x",
        "(self.high - self.low) * (x",
        RESERVOIR,
    ),
    Slip(
        "the restart share is turned round",
        "reservoir.py",
        "torch.rand(n, **on) < restart",
        "torch.rand(n, **on) > restart",
        RESERVOIR,
    ),
    Slip(
        "the oldest places go first",
        "reservoir.py",
        "torch.randperm(len(self.x), generator=rng, device=self.x.device)[: len(x)]",
        "torch.arange(len(x))",
        RESERVOIR,
    ),
    Slip(
        "a push meets a place twice",
        "reservoir.py",
        "torch.randperm(len(self.x), generator=rng, device=self.x.device)[: len(x)]",
        "torch.randint(len(self.x), (len(x),), generator=rng)",
        RESERVOIR,
    ),
    Slip("a push keeps its graph", "reservoir.py", "x = x.detach().float()", "x = x.float()", RESERVOIR),
    Slip("the state is not loaded", "reservoir.py", "        self.x.copy_(x)\n", "", RESERVOIR),
    Slip("the cell's area is forgotten", "partition.py", "flatten(), 0) + cell", "flatten(), 0)", PARTITION),
    Slip("log Z of exp(+E)", "partition.py", "torch.logsumexp(-values", "torch.logsumexp(values", PARTITION),
    Slip("KL's sign", "partition.py", "p * (lp - lq)", "p * (lq - lp)", PARTITION),
    Slip("KL without its mass", "partition.py", " - mass.log()", "", PARTITION),
    Slip("corners for midpoints", "partition.py", "dtype=torch.float32) + 0.5)", "dtype=torch.float32))", PARTITION),
    Slip(
        "x and y of the grid swapped",
        "partition.py",
        "torch.stack([x.flatten(), y.flatten()], 1)",
        "torch.stack([y.flatten(), x.flatten()], 1)",
        PARTITION,
    ),
    *(
        Slip(about, "partition.py", old, new, tuple(f"test_partition.py::{name}" for name in tests))
        for about, old, new, *tests in [
            (
                "AIS moves under the next energy",
                "kernels[k - 1](old, x, rng=rng)",
                "kernels[k - 1](new, x, rng=rng)",
                "test_a_kernel_that_is_not_exact_biases_the_weights_as_quadrature_says",
            ),
            (
                "AIS weighs upside down",
                "(checked(old, x) - checked(new, x))",
                "(checked(new, x) - checked(old, x))",
                "test_without_levels_it_is_importance_sampling",
            ),
            (
                "AIS keeps the last weight only",
                "log_w = log_w + (checked(old",
                "log_w = (checked(old",
                "test_with_perfect_kernels_the_mean_log_weight_is_low_by_the_divergences",
            ),
            (
                "AIS's kernels are one off",
                "if k > 0:",
                "if k > 1:",
                "test_with_perfect_kernels_the_mean_log_weight_is_low_by_the_divergences",
            ),
            (
                "all energies of a path are the last one's",
                "lambda x, beta=beta: (1 - beta) * first(x) + beta * last(x)",
                "lambda x: (1 - betas[-2]) * first(x) + betas[-2] * last(x)",
                "test_a_geometric_path_of_gaussians",
            ),
            (
                "a tuned step that is not handed on",
                "partial(kernel, step=step, K=K)",
                "partial(kernel, step=0.01, K=K)",
                "test_tuned_kernels_keep_the_window_on_other_chains",
            ),
            (
                "the mean of logs",
                "log_mean = torch.logsumexp(log_w, 1) - math.log(M)",
                "log_mean = log_w.mean(1)",
                "test_the_estimate_of_a_few_weights_by_hand",
            ),
            (
                "ESS of the weights' roots",
                "M / (relative**2).mean(1)",
                "M / relative.mean(1)",
                "test_the_effective_sample_size_of_lognormal_weights",
            ),
            (
                "levels' errors add as if independent",
                "relative.sum(0).std() / M**0.5",
                "(relative.var(1).sum() / M) ** 0.5",
                "test_the_importance_chain_of_recovery_likelihood",
            ),
            (
                "the gambler bets one share",
                "0.5 ** powers",
                "1.0 ** powers",
                "test_the_bound_is_where_the_gambler_holds_one_over_delta",
            ),
            (
                "the gambler picks the best share afterwards",
                "torch.logsumexp(wealth, -1) - math.log(count)",
                "wealth.amax(-1)",
                "test_the_bound_is_where_the_gambler_holds_one_over_delta",
            ),
            (
                "each side of the bracket takes all of delta",
                "lower_bound(forward, delta / 2)",
                "lower_bound(forward, delta)",
                "test_forward_lies_below_reverse_above_and_brackets_hold_at_their_rate",
            ),
            (
                "draws at midpoints",
                "center + shift * (2 * box / n)",
                "center",
                "test_draws_are_exact_inside_a_cell_too",
            ),
            (
                "draws that are never refused",
                ".log() < log_ratio])",
                ".log() < 0])",
                "test_draws_are_exact_inside_a_cell_too",
            ),
        ]
    ),
    Slip("a steeper leaky ReLU", "nets/blocks.py", "F.leaky_relu(x, 0.2)", "F.leaky_relu(x, 0.02)", NETS),
    Slip("a shallower frequency range", "nets/blocks.py", "(dim // 2 - 1)", "(dim // 2)", NETS),
    Slip("the time is left out", "nets/blocks.py", "h = h + shift.reshape(", "h = h + 0 * shift.reshape(", NETS),
    Slip("no activation before the second layer", "nets/blocks.py", "self.second(self.act(h))", "self.second(h)", NETS),
    Slip("the branch begins as something", "nets/blocks.py", "torch.zeros(channels)", "torch.ones(channels)", NETS),
    Slip("no spectral norm", "nets/blocks.py", "spectral_norm(layer) if on else layer", "layer", NETS),
    Slip("the loss is rounded", "nets/wideresnet.py", " and not self.training", "", NETS),
    Slip("a mean over space", "nets/wideresnet.py", ".sum((2, 3))", ".mean((2, 3))", NETS),
    Slip(
        "a batch coupling",
        "nets/mlp.py",
        "h = self.stem(self.gain * x)",
        "h = self.stem(self.gain * (x - x.mean(0)))",
        NETS,
    ),
    Slip(
        "no swish in the ConvNet",
        "nets/conv.py",
        "for layer in self.body:\n            x = F.silu(layer(x))",
        "for layer in self.body:\n            x = layer(x)",
        NETS,
    ),
    Slip(
        "a short preset takes the paper's",
        "settings/resolve.py",
        '(published if values["preset"] == "paper" else {})',
        "published",
        SETTINGS,
    ),
    Slip(
        "the first size of a data set always",
        "settings/resolve.py",
        'entry.get("size") == chosen.get("size")',
        "True",
        SETTINGS,
    ),
    Slip("the gain is forgotten", "nets/mlp.py", "self.stem(self.gain * x)", "self.stem(x)", NETS),
    Slip("no ReLU before the sum", "nets/wideresnet.py", "h = F.relu(h).to(", "h = h.to(", NETS),
    Slip(
        "the blur adds standard deviations",
        "targets/densities.py",
        "edge=math.hypot(self.edge, std / self.side)",
        "edge=self.edge + std / self.side",
        DENSITIES,
    ),
    Slip(
        "the roll's blur ignores its scale",
        "targets/curves.py",
        "math.hypot(self.noise, std / self.scale)",
        "math.hypot(self.noise, std)",
        DENSITIES,
    ),
    Slip("both moons the same", "targets/curves.py", "(1 - 2 * arc) * torch.stack", "torch.stack", CURVES),
    Slip(
        "every arc has all the mass",
        "targets/curves.py",
        "(half * weight).flatten() / curve.arcs",
        "(half * weight).flatten()",
        CURVES,
    ),
    Slip(
        "the circle's Bessel function with s",
        "targets/curves.py",
        "r * radius / self.noise**2",
        "r * radius / self.noise",
        CURVES,
    ),
    Slip(
        "the pinwheel's arms are too short",
        "targets/curves.py",
        "return 1 + self.radial * torch.randn",
        "return 1 + 0.9 * self.radial * torch.randn",
        FOLLOW,
    ),
    Slip("the funnel opens twice as fast", "targets/densities.py", "(x_2 / 2).exp()", "x_2.exp()", FOLLOW),
    Slip(
        "the funnel's width for its square",
        "targets/densities.py",
        "self.width**2 * sharp.exp()",
        "self.width * sharp.exp()",
        FUNNEL,
    ),
    Slip(
        "the funnel's height is not drawn to the middle",
        "targets/densities.py",
        "(self.spread / total) ** 2 * x",
        "self.spread / total * x",
        FUNNEL,
    ),
    Slip(
        "the funnel's blurs add",
        "targets/densities.py",
        "blur=math.hypot(self.blur, std)",
        "blur=self.blur + std",
        CONVOLVED,
    ),
    Slip(
        "the rings' blurs add",
        "targets/curves.py",
        "noise=math.hypot(self.noise, std))",
        "noise=self.noise + std)",
        CONVOLVED,
    ),
    Slip(
        "True passes for a number",
        "settings/resolve.py",
        "good = type(value) in (get_args(kind) or (kind,))",
        "good = isinstance(value, get_args(kind) or (kind,))",
        SETTINGS,
    ),
    Slip(
        "a preset beats the parameters",
        "settings/resolve.py",
        "| short | chosen)",
        "| chosen | short)",
        SETTINGS,
    ),
    Slip(
        "EMA with the other weight",
        "run/training.py",
        "get_ema_multi_avg_fn(decay)",
        "get_ema_multi_avg_fn(1 - decay)",
        TRAINING,
    ),
    Slip(
        "the divergence has the other sign",
        "papers/flow.py",
        "-grad.flatten(1), trace[:, None]",
        "-grad.flatten(1), -trace[:, None]",
        ("test_flow.py::test_the_law_of_a_quadratics_flow_and_its_log_density",),
    ),
    Slip(
        "the change is added",
        "papers/flow.py",
        "-gaussian_energy(x0) - change",
        "-gaussian_energy(x0) + change",
        ("test_flow.py::test_the_law_of_a_quadratics_flow_and_its_log_density",),
    ),
    Slip(
        "the flow climbs",
        "papers/flow.py",
        "-energy_and_grad(energy, y, create_graph=create_graph)[1]",
        "energy_and_grad(energy, y, create_graph=create_graph)[1]",
        ("test_flow.py::test_the_flow_of_a_quadratic_is_the_matrix_exponential",),
    ),
    Slip(
        "backward runs forward",
        "papers/flow.py",
        "sign * velocity(y)",
        "velocity(y)",
        ("test_flow.py::test_the_flow_of_a_quadratic_is_the_matrix_exponential",),
    ),
    Slip(
        "the flow's graph is cut",
        "papers/flow.py",
        "with torch.set_grad_enabled(create_graph):\n        return _solve",
        "with torch.no_grad():\n        return _solve",
        ("test_flow.py::test_the_generator_loss_differentiates_through_the_sample_alone",),
    ),
    Slip(
        "Euler's determinant one state late",
        "papers/flow.py",
        "path[:-1]",
        "path[1:]",
        ("test_flow.py::test_eulers_log_determinant_is_that_of_the_full_jacobian",),
    ),
    Slip(
        "Euler's Jacobian with a plus",
        "papers/flow.py",
        "eye - step *",
        "eye + step *",
        ("test_flow.py::test_eulers_log_determinant_is_that_of_the_full_jacobian",),
    ),
    Slip(
        "the bound by the wrong norm",
        "papers/flow.py",
        "ord=2",
        "ord=1",
        ("test_flow.py::test_the_bound_of_a_quadratic_is_exact_and_sets_the_inverses_rate",),
    ),
    Slip(
        "Hutchinson forgets its second probe",
        "papers/flow.py",
        "flat_sum(v * hv)",
        "flat_sum(v.abs() * hv)",
        ("test_flow.py::test_hutchinsons_estimate_is_unbiased",),
    ),
    Slip(
        "swish's second derivative",
        "nets/mlp.py",
        "(2 + z * (1 - 2 * s))",
        "(1 + z * (1 - 2 * s))",
        ("test_flow.py::test_the_nets_own_laplacian_is_autograds",),
    ),
    Slip(
        "the fade runs over the whole stage",
        "papers/coarse_to_fine.py",
        "2 * shown / images",
        "shown / images",
        ("test_coarse_to_fine.py::test_beta_rises_over_the_first_half_of_a_stage",),
    ),
    Slip(
        "beta as it is printed",
        "papers/coarse_to_fine.py",
        "return min(1.0, 2",
        "return max(1.0, 2",
        ("test_coarse_to_fine.py::test_beta_rises_over_the_first_half_of_a_stage",),
    ),
    Slip(
        "pooling sums",
        "papers/coarse_to_fine.py",
        "(-1, 2)).mean(d + 1)",
        "(-1, 2)).sum(d + 1)",
        ("test_coarse_to_fine.py::test_the_pyramid_pools",),
    ),
    Slip(
        "pooling takes pixels that are far apart",
        "papers/coarse_to_fine.py",
        "(-1, 2)).mean(d + 1)",
        "(2, -1)).mean(d)",
        ("test_coarse_to_fine.py::test_the_pyramid_pools",),
    ),
    Slip(
        "noise from U(0, 1)",
        "papers/coarse_to_fine.py",
        "2 * torch.rand(*shape, generator=rng, device=device) - 1",
        "torch.rand(*shape, generator=rng, device=device)",
        ("test_coarse_to_fine.py::test_at_beta_one_the_start_is_noise_and_the_coarse_model_rests",),
    ),
    Slip(
        "noise before upsampling",
        "papers/coarse_to_fine.py",
        "beta * uniform(up.shape, rng, up.device).to(up)",
        "beta * upsample(uniform(coarse.shape, rng, up.device)).to(up)",
        ("test_coarse_to_fine.py::test_the_mixtures_mean_and_variance",),
    ),
    Slip(
        "the mixture's weights swapped",
        "papers/coarse_to_fine.py",
        "1 - beta if how",
        "beta if how",
        ("test_coarse_to_fine.py::test_the_mixtures_mean_and_variance",),
    ),
    Slip(
        "the root of the wrong thing",
        "papers/coarse_to_fine.py",
        "(1 - beta**2) ** 0.5",
        "(1 - beta) ** 0.5",
        ("test_coarse_to_fine.py::test_the_mixtures_mean_and_variance",),
    ),
    Slip(
        "coarse steps grow with beta",
        "papers/coarse_to_fine.py",
        "round(K * (1 - beta))",
        "round(K * beta)",
        ("test_coarse_to_fine.py::test_coarse_steps_shrink_with_beta",),
    ),
    Slip(
        "all coarse steps are taken",
        "papers/coarse_to_fine.py",
        "noise, coarse_steps(K, beta))",
        "noise, K)",
        ("test_coarse_to_fine.py::test_the_start_of_a_stage_in_closed_form",),
    ),
    Slip(
        "a stage starts anew",
        "papers/coarse_to_fine.py",
        "upsample(x) if s else x",
        "uniform(upsample(x).shape, None, x.device).to(x) if s else x",
        ("test_coarse_to_fine.py::test_a_stage_starts_at_the_ends_of_the_one_before",),
    ),
    Slip(
        "a chain's variance loses its square",
        "papers/coarse_to_fine.py",
        "(1 - a * precision) ** 2 * begin",
        "(1 - a * precision) * begin",
        ("test_coarse_to_fine.py::test_the_short_run_curvature_against_brent_and_a_chain",),
    ),
    Slip(
        "Primal without its root",
        "nets/growing.py",
        "(F.avg_pool2d(x, 2))) / math.sqrt(2)",
        "(F.avg_pool2d(x, 2))) / 2",
        GROWING,
    ),
    Slip(
        "the fade is swapped",
        "nets/growing.py",
        "self.beta * self.primal[str(self.size)](h) + (1 - self.beta) * self.fade(h)",
        "(1 - self.beta) * self.primal[str(self.size)](h) + self.beta * self.fade(h)",
        GROWING,
    ),
    Slip(
        "growing shares the trunk", "nets/growing.py", "fine = copy.deepcopy(self)", "fine = copy.copy(self)", GROWING
    ),
    Slip(
        "growing keeps FromRGB",
        "nets/growing.py",
        "        fine.from_rgb = FromRGB(self.channels, outer, *self.options)\n",
        "",
        GROWING,
    ),
    Slip("growing forgets to thaw", "nets/growing.py", ".train().requires_grad_(True)", ".train()", GROWING),
    Slip(
        "the field's mixture without its weights",
        "targets/fields.py",
        "self.weights.log() - 0.5 * squares",
        "-0.5 * squares",
        ("test_coarse_to_fine.py::test_the_fields_density_and_score_against_torch",),
    ),
    Slip(
        "pooling a field by rows alone",
        "targets/fields.py",
        "torch.kron(pair, pair)",
        "torch.kron(pair, pair.roll(1, 1))",
        ("test_coarse_to_fine.py::test_pooled_is_the_blocks_mean_of_the_covariance",),
    ),
    Slip(
        "the noise's own density is forgotten",
        "papers/latent.py",
        "checked(energy, x) + gaussian_energy(eps)",
        "checked(energy, x)",
        LATENT,
    ),
    Slip(
        "the decoder's density is forgotten",
        "papers/latent.py",
        "- decode(z).log_prob(x) + gaussian_energy(z)",
        "+ gaussian_energy(z)",
        LATENT,
    ),
    Slip("the Jacobian's sign", "papers/latent.py", "return flat_sum(decode(z)", "return -flat_sum(decode(z)", LATENT),
    Slip("pull multiplies by the spread", "papers/latent.py", "(-p.log_std).exp()", "p.log_std.exp()", LATENT),
    Slip("weights without the posterior", "papers/latent.py", " - q.log_prob(z)", "", LATENT),
    Slip("IWAE sums its weights", "papers/latent.py", "return total - math.log(n)", "return total", LATENT),
    Slip("IWAE keeps its last block", "papers/latent.py", "total = torch.logaddexp(total, ", "total = (", LATENT),
    Slip("the Gaussian's normalizer", "nets/vae.py", "z.square() + self.log_std", "z.square() - self.log_std", VAE),
    Slip(
        "noise times the log spread", "nets/vae.py", "self.log_std.exp() * eps", "self.log_std * eps", (*LATENT, *VAE)
    ),
    Slip("the KL's entropy is halved", "objectives.py", "- 1 - 2 * log_std)", "- 1 - log_std)", VAE),
    Slip("beta weighs the likelihood", "objectives.py", "(beta * kl - log_lik)", "(kl - beta * log_lik)", VAE),
    Slip("gradients are summed", "run/parallel.py", "(flat / size())", "flat", PARALLEL),
    Slip(
        "all processes draw the same",
        "run/parallel.py",
        "if rank() > 0:\n        seeds",
        "if rank() > size():\n        seeds",
        PARALLEL,
    ),
    Slip(
        "jumps forget their proposal's density",
        "samplers.py",
        "_accept(here - there, rng)",
        "_accept(value - new_value, rng)",
        ("test_samplers.py::test_independence_is_exact_and_forgets_its_start",),
    ),
    Slip(
        "the cubic's weights",
        "partition.py",
        "2 - 5 * t**2 + 3 * t**3",
        "2 - 4 * t**2 + 2 * t**3",
        ("test_partition.py::test_interpolation_is_exact_for_quadratics_and_of_third_order",),
    ),
    Slip("the score's spread is no error", "metrics/images.py", "values.std() / splits**0.5", "values.std()", SCORE),
    Slip(
        "p(y) is that of all splits",
        "metrics/images.py",
        "_inception_score(logits.split(size))",
        "_inception_score([logits] * splits)",
        SCORE,
    ),
    Slip("classes that never come are NaN", "metrics/images.py", "found.clamp(min=-600)", "found", NEVER_COME),
    Slip(
        "a reference forgets the images",
        "metrics/images.py",
        '"images": images.cpu()',
        '"n": images[:1].cpu()',
        REFERENCE,
    ),
    Slip(
        "cold for hot",
        "metrics/planar.py",
        "-model.values.flatten() / temperature",
        "-model.values.flatten() * temperature",
        PLANAR,
    ),
    Slip("log Z without the cells' area", "metrics/planar.py", " + 2 * math.log(2 * box / n)", "", PLANAR),
    Slip("a reference forgets the weights", "metrics/images.py", "in net.state_dict().items()", "in ()", REFERENCE),
    Slip("a reference forgets the batch", "metrics/images.py", "[net.name, batch, ", "[net.name, ", REFERENCE),
    Slip(
        "the net switches the engine's rounding off",
        "nets/wideresnet.py",
        "torch.autocast(x.device.type, torch.bfloat16) if rounded else nullcontext()",
        "torch.autocast(x.device.type, torch.bfloat16, enabled=rounded)",
        ("test_engine.py::test_bfloat16_rounds_the_net_and_not_the_state",),
    ),
    Slip(
        "rounded values leave the engine",
        "engine.py",
        "return value.to(x.dtype), grad",
        "return value.to(x.dtype), grad.bfloat16().float()",
        ("test_engine.py",),
    ),
    Slip(
        "images stay in their layout",
        "engine.py",
        "memory_format=torch.channels_last) if images",
        "memory_format=torch.contiguous_format) if images",
        ("test_engine.py::test_channels_last_is_another_layout_of_the_same_chain",),
    ),
    Slip(
        "a kept gradient lies in a graph's static memory",
        "engine.py",
        "value, grad = value.clone(), grad.clone()",
        "pass",
        ("test_engine.py::test_results_in_static_memory_are_copied",),
    ),
    Slip(
        "a graph goes through the engine",
        "core.py",
        "if create_graph else _way(energy, x)",
        "if create_graph and _way is by_autograd else _way(energy, x)",
        ("test_engine.py::test_a_graph_that_is_kept_never_goes_through_the_engine",),
    ),
    Slip("mirrored at twice the distance", "samplers.py", "% (4 * box)", "% (2 * box)", SAMPLERS),
    Slip(
        "units turn in a smaller box",
        "nets/mlp.py",
        "weight.mul_(steep)\n",
        "weight.mul_(1.0)\n",
        ("test_nets.py::test_units_of_the_first_layer_turn_all_over_the_box",),
    ),
    Slip(
        "a run writes after another has gone on with it",
        "run/folder.py",
        'if self._lock is None or _read(self._folder).get("opened") != self._info["opened"]:',
        "if self._lock is None:",
        ("test_training.py::test_a_run_that_was_let_go_writes_nothing_once_another_has_gone_on_with_it",),
    ),
    Slip(
        "stages after one that ran again stay",
        "run/folder.py",
        "shutil.rmtree(self._folder / old, ignore_errors=True)",
        "pass",
        ("test_training.py::test_a_stage_whose_folder_was_deleted_runs_again_and_so_do_those_after_it",),
    ),
    Slip(
        "a stored stage leaves the generators as they were",
        "run/folder.py",
        "parallel.set_random_state(objects, self.generators)",
        "pass",
        ("test_training.py::test_an_interrupted_run_of_stages_goes_on_bit_for_bit",),
    ),
    Slip(
        "a thousand draws at the chains' noise",
        "settings/drl.py",
        'implied |= {"noise": 1.0}  #',
        "pass  #",
        SETTINGS,
    ),
    Slip(
        "small beats a preset of its own",
        "settings/value.py",
        'presets.pop("small")) | presets',
        'presets["small"])',
        SETTINGS,
    ),
    Slip("off is a value", "settings/resolve.py", 'if optional and given == "off":', "if False:", SETTINGS),
    Slip("a larger setting is not seen", "settings/resolve.py", "value > (bound", "value < (bound", SETTINGS),
    Slip("too few images pass", "run/job.py", "len(job.train) < needed", "False", SETTINGS),
]


def misfits() -> list[str]:
    """Slips whose text is not found exactly once in its file (the library moved on: move the slip with it)."""
    counts = ((slip, (ROOT / "ebmlib" / slip.file).read_text("utf-8").count(slip.old)) for slip in MUTANTS)
    return [f"{slip.file}: {slip.old!r} stands there {count} times" for slip, count in counts if count != 1]


def caught(slip: Slip) -> tuple[Slip, bool, float]:
    """Whether the slip's tests fail on a copy of the package with the slip in it, and the seconds that took.

    Runs in a process of its own, forked from one that has loaded torch: that is most of what a test file costs.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "ebmlib"
        shutil.copytree(ROOT / "ebmlib", copy, ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / "data").symlink_to(ROOT / "data")  # modules look for data beside the package
        text = (copy / slip.file).read_text("utf-8")
        (copy / slip.file).write_text(text.replace(slip.old, slip.new), "utf-8")
        os.chdir(folder)
        os.environ["PYTHONPATH"] = folder
        sys.path.insert(0, folder)  # before the checkout, whose `pythonpath = .` is taken out below
        with open("log", "w+") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            files = [str(ROOT / "tests" / name) for name in slip.tests]
            code = pytest.main(["-x", "-m", "not slow", "-o", "pythonpath=", *files])
            sys.stdout.flush()
            log.seek(0)
            report = log.read()
    if not sys.modules["ebmlib"].__file__.startswith(folder):
        raise RuntimeError(f"{slip.about}: the tests saw {sys.modules['ebmlib'].__file__}")
    if code not in (0, 1):  # 1: tests failed; anything else means that they did not run
        raise RuntimeError(f"{slip.about}: pytest ended with {code}\n{report}")
    return slip, code == 1, time.monotonic() - start


def main(words: list[str]) -> int:
    """Run the slips whose description or file holds one of `words` (all if none); 1 if any is missed or misfits."""
    problems = misfits()
    for line in problems:
        print(f"MISFIT  {line}")
    if problems:
        return 1
    chosen = [s for s in MUTANTS if not words or any(word in f"{s.file} {s.about}" for word in words)]
    missed = 0
    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))  # loads what the first comparison loads
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        for slip, hit, seconds in pool.imap(caught, chosen, chunksize=1):
            missed += not hit
            print(f"{'caught' if hit else 'MISSED'}  {slip.file}: {slip.about} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} slips caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
