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


# By file under ebmlib/ and by test file: what is wrong, the text, the slip for it, and the names of the tests that must
# fail, without their test_, where these are not all of the file.
TABLES = [
    ("core.py", "test_core.py", [
        ("flat_sum averages", "x.flatten(1).sum(1)", "x.flatten(1).mean(1)"),
        ("the graph is cut", "create_graph=create_graph, allow", "create_graph=False, allow"),
        ("the point's graph is cut", "x if x.requires_grad and create_graph else x", "x"),
        ("frozen forgets to restore", "p.requires_grad_(flag)", "p.requires_grad_(False)"),
        ("evaluating stays in train mode", "    module.eval()\n", ""),
        ("evaluating restores train mode for all", "m.training = mode", "m.training = True"),
        ("BatchNorm in train mode passes", "if m.training or m.running_mean is None", "if m.running_mean is None",
         "an_energy_in_which_samples_of_a_batch_meet_is_refused"),
        ("a net that a function names is not looked at", "for name in code.co_names]", "for name in ()]",
         "an_energy_in_which_samples_of_a_batch_meet_is_refused"),
    ]),
    ("core.py", "test_engine.py", [
        ("a graph goes through the engine", "        if create_graph:\n            uncoupled",
         "        if create_graph and way is by_autograd:\n            uncoupled",
         "a_graph_that_is_kept_never_goes_through_the_engine"),
    ]),
    ("samplers.py", "test_samplers.py", [
        ("the floor is the first step's noise", "b = float(schedule[-1][1])", "b = float(schedule[0][1])"),
        ("the floor is that of stability", "if b >= narrowest:", "if b >= 2 * narrowest:"),
        ("temperature loses its 1/2", "b**2 / (2 * a)", "b**2 / a"),
        ("ULA's noise loses its 2", "[(step, (2 * step) ** 0.5)] * K", "[(step, step**0.5)] * K"),
        ("the step goes uphill", "_plus(x, -a, grad)", "_plus(x, a, grad)"),
        ("noise of half the size", "_plus(x, b, noise_like", "_plus(x, 0.5 * b, noise_like"),
        ("clip is one-sided", "seen[1].clamp(-clip, clip)", "seen[1].clamp(max=clip)"),
        ("decayed noise ends above 0", "k / max(K - 1, 1)", "k / K"),
        ("project is forgotten", "x = x if project is None else project(x)", "x = x"),
        ("annealed goes round the levels", "for pair in zip(steps, noises, strict=True) for _ in range(K)",
         "for _ in range(K) for pair in zip(steps, noises)"),
        ("a differentiable step is detached", "return x if graph else x.detach()", "return x.detach()"),
        ("MALA without its reverse term", "+ forward - backward", "+ forward"),
        ("MALA's reverse drift with the old gradient", "x - proposal + eps * new_grad", "x - proposal + eps * grad"),
        ("MALA keeps the old gradient", "return (proposal, new_value, new_grad), value",
         "return (proposal, new_value, grad), value"),
        ("NaN is accepted", "nan=-math.inf, posinf", "nan=0.0, posinf"),
        ("the decision is turned round", "uniform.log() < log_ratio", "uniform.log() > log_ratio"),
        ("leapfrog without its first kick", "    p = p - 0.5 * eps * grad\n", ""),
        ("leapfrog loses its last half step", "(eps if k < L - 1 else 0.5 * eps)", "eps"),
        ("HMC loses the 1/2 of kinetic energy", "= 0.5 * (flat_sum(p**2)", "= (flat_sum(p**2)"),
        ("HMC without its correction", "value - new[0] + kinetic", "0 * value"),
        ("tune goes the wrong way", "1 if acceptance > high else -1", "-1 if acceptance > high else 1"),
        ("tune never shortens its stride", "factor = factor**0.5 if before", "factor = factor if before"),
        ("one step less keeps its graph", "k >= n - kept", "k > n - kept"),
        ("True is one step", "n if differentiable is True else", "1 if differentiable is True else"),
        ("jumps forget their proposal's density", "(proposal, new_value), here - there",
         "(proposal, new_value), value - new_value", "independence_is_exact_and_forgets_its_start"),
        ("mirrored at twice the distance", "% (4 * box)", "% (2 * box)"),
    ]),
    ("samplers.py", "test_interpolation.py", [
        ("given noise is spread", "given.shape != x.shape", "given.ndim != x.ndim"),
    ]),
    ("papers/recovery.py", "test_recovery.py", [
        ("a cut is one beta early", "torch.tensor([-1, *(k * stride for k in range(T)), 999]) + 1",
         "torch.tensor([0, *(k * stride for k in range(T)), 999])"),
        ("the stride is twice as long", "1000 // (2 * (T - 1))", "1000 // (T - 1)"),
        ("sigma of the level below", "else b2**0.5 * sigma[1:]", "else b2**0.5 * sigma[:-1]"),
        ("precision of the level below", "1 / sigma2[1:]", "1 / sigma2[:-1]"),
        ("b2 without its root", "b2**0.5 *", "b2 *"),
        ("a quadratic term at the last level", "precision[-1] = 1.0, 0.0", "precision[-1] = 1.0, precision[-1]"),
        ("the last level is rescaled", "scale[-1], precision[-1] = 1.0, 0.0", "precision[-1] = 0.0"),
        ("c squared", "** (c_power / 2)", "** c_power"),
        ("weights turned round", "(sigma[1] / sigma[1:])", "(sigma[1:] / sigma[1])"),
        ("energy over delta", "energy_scale = delta**2", "energy_scale = delta"),
        ("noise without the cumulative sigma", "expand(self.cum_sigma[t], x)", "expand(self.sigma[t], x)"),
        ("pairs with the noise of level t", "expand(self.sigma[t + 1], x)", "expand(self.sigma[t], x)"),
        ("pairs without the scale", "return expand(self.scale[t], x) * x_t", "return x_t"),
        ("coupled noise of the step, not of the bridge", "(near * step / far).sqrt()", "step.sqrt()"),
        ("a move is forgotten", "y = y if move is None else move(level, target, y)", "y = y"),
        ("known pixels without the scale", "tables.scale[t] * path[t], y)", "path[t], y)"),
        ("known pixels of the level above", "tables.scale[t] * path[t]", "tables.scale[t] * path[t + 1]"),
        ("a projection is forgotten", "rng=rng, project=put)", "rng=rng)"),
        ("the last level is never drawn", "torch.randint(self.T, (", "torch.randint(max(self.T - 1, 1), ("),
        ("the conditional loses its 1/2", "0.5 * precision * flat_sum", "precision * flat_sum"),
        ("the quadratic term pushes away", "energy(y) + pull(y)", "energy(y) - pull(y)"),
        ("the step is delta^2", "[(delta**2 / 2, noise * delta)]", "[(delta**2, noise * delta)]"),
        ("the chain's noise is left alone", "(delta**2 / 2, noise * delta)", "(delta**2 / 2, delta)"),
        ("the normal approximation one level off", "sigma = tables.sigma[t + 1]", "sigma = tables.sigma[t]"),
        ("no division by the scale", "x = y / expand(tables.scale[t], y)", "x = y"),
        ("levels upward", "reversed(range(tables.T))", "range(tables.T)"),
        ("levels without their scale", "raw(seen(y)) / scale", "raw(seen(y))"),
        ("details that forget their image", "torch.cat([given, y], 1)", "torch.cat([0 * given, y], 1)"),
        ("two bands exchanged", "(a + b - c - d) / 2, (a - b + c - d) / 2", "(a - b + c - d) / 2, (a + b - c - d) / 2"),
        ("details of another size", "range(scales - 1 - scale)", "range(scales - 1)"),
        ("by_level sums", "torch.where(count > 0, total / count", "torch.where(count > 0, total"),
    ]),
    ("papers/recovery.py", "test_interpolation.py", [
        ("the arc is half as long", "math.pi / 2)", "math.pi / 4)"),
        ("angles from one sum", "(x - y, x + y)", "(x - y, 2 * y)"),
        ("opposite ends pass", "math.nan, angle", "angle, angle"),
        ("both ends draw from one", "noise_like(end, rng1)", "noise_like(end, rng0)"),
        ("fresh noise is shared", "source = fresh or given", "source = given"),
        ("steps draw their own noise", "source = fresh or given", "source = fresh or rng0"),
        ("a path without its ends", "flat[-1] - flat[0]", "flat[-1] - flat[1]"),
    ]),
    ("partition.py", "test_partition.py", [
        ("the cells' width turned round", "- math.log2(width)", "+ math.log2(width)"),
        ("the cell's area is forgotten", "flatten(), 0) + cell", "flatten(), 0)"),
        ("log Z of exp(+E)", "torch.logsumexp(-values", "torch.logsumexp(values"),
        ("KL's sign", "p * (lp - lq)", "p * (lq - lp)"),
        ("KL without its mass", " - mass.log()", ""),
        ("corners for midpoints", "get_default_dtype()) + 0.5)", "get_default_dtype()))"),
        ("x and y of the grid swapped", "torch.stack([x.flatten(), y.flatten()], 1)",
         "torch.stack([y.flatten(), x.flatten()], 1)"),
        ("AIS moves under the next energy", "kernels[k - 1](old, x, rng=rng)", "kernels[k - 1](new, x, rng=rng)",
         "a_kernel_that_is_not_exact_biases_the_weights_as_quadrature_says"),
        ("AIS weighs upside down", "(checked(old, x) - checked(new, x))", "(checked(new, x) - checked(old, x))",
         "without_levels_it_is_importance_sampling"),
        ("AIS keeps the last weight only", "log_w = log_w + (checked(old", "log_w = (checked(old",
         "with_perfect_kernels_the_mean_log_weight_is_low_by_the_divergences"),
        ("AIS's kernels are one off", "if k > 0:", "if k > 1:",
         "with_perfect_kernels_the_mean_log_weight_is_low_by_the_divergences"),
        ("all energies of a path are the last one's", "lambda x, beta=beta: (1 - beta) * first(x) + beta * last(x)",
         "lambda x: (1 - betas[-2]) * first(x) + betas[-2] * last(x)", "a_geometric_path_of_gaussians"),
        ("a tuned step that is not handed on", "partial(kernel, step=step, K=K)", "partial(kernel, step=0.01, K=K)",
         "tuned_kernels_keep_the_window_on_other_chains"),
        ("the mean of logs", "log_mean = torch.logsumexp(log_w, 1) - math.log(M)", "log_mean = log_w.mean(1)",
         "the_estimate_of_a_few_weights_by_hand"),
        ("ESS of the weights' roots", "M / (relative**2).mean(1)", "M / relative.mean(1)",
         "the_effective_sample_size_of_lognormal_weights"),
        ("levels' errors add as if independent", "relative.sum(0).std() / M**0.5",
         "(relative.var(1).sum() / M) ** 0.5", "the_importance_chain_of_recovery_likelihood"),
        ("betas may fall", "any(b < a for", "any(b < -a for", "bad_input_is_refused"),
        ("the gambler bets one share", "0.5 ** powers", "1.0 ** powers",
         "the_bound_is_where_the_gambler_holds_one_over_delta"),
        ("the gambler picks the best share afterwards", "torch.logsumexp(wealth, -1) - math.log(count)",
         "wealth.amax(-1)", "the_bound_is_where_the_gambler_holds_one_over_delta"),
        ("each side of the bracket takes all of delta", "lower_bound(forward, delta / 2)",
         "lower_bound(forward, delta)", "forward_lies_below_reverse_above_and_brackets_hold_at_their_rate"),
        ("draws at midpoints", "center + shift * (2 * box / n)", "center", "draws_are_exact_inside_a_cell_too"),
        ("draws that are never refused", ".log() < log_ratio])", ".log() < 0])", "draws_are_exact_inside_a_cell_too"),
        ("the cubic's weights", "2 - 5 * t**2 + 3 * t**3", "2 - 4 * t**2 + 2 * t**3",
         "interpolation_is_exact_for_quadratics_and_of_third_order"),
    ]),
    ("objectives.py", "test_objectives.py", [
        ("the loss is turned round", "(weight * pos).mean() - (weight * neg).mean()",
         "(weight * neg).mean() - (weight * pos).mean()"),
        ("l2 on data only", "(pos**2).mean() + (neg**2).mean()", "(pos**2).mean()"),
        ("samples are not weighted", "- (weight * neg).mean()", "- neg.mean()"),
        ("the gap is turned round", 'stats["neg"] - stats["pos"]', 'stats["pos"] - stats["neg"]'),
        ("the KL term moves the weights", "with evaluating(energy):", "if True:"),
        ("the KL term's sample is cut", "checked(energy, x_neg)", "checked(energy, x_neg.detach())"),
        ("entropy loses its square root", "0.5 * square.clamp", "square.clamp"),
        ("the farthest for the nearest", "apart.argmin(1)", "apart.argmax(1)"),
        ("the floor is not squared", "clamp(min=floor**2)", "clamp(min=floor)"),
        ("no floor", "square.clamp(min=floor**2).log()", "square.log()"),
        ("the reference is pushed too", "reference.detach().flatten(1)", "reference.flatten(1)"),
        ("denoising loses its 1/2", "(0.5 * weight *", "(weight *"),
        ("denoising points the wrong way", "* grad - noise  #", "* grad + noise  #"),
        ("denoising forgets sigma", "miss = expand(sigma, x) * grad", "miss = grad"),
        ("denoising sees clean data", "energy, noisy, create_graph", "energy, x, create_graph"),
        ("denoising keeps no graph", "noisy, create_graph=True", "noisy, create_graph=False"),
        ("denoising without a weight", "(0.5 * weight *", "(0.5 *"),
    ]),
    ("objectives.py", "test_vae.py", [
        ("the KL's entropy is halved", "- 1 - 2 * log_std)", "- 1 - log_std)"),
        ("beta weighs the likelihood", "(beta * kl - log_lik)", "(kl - beta * log_lik)"),
    ]),
    ("reservoir.py", "test_reservoir.py", [
        ("bytes are cut, not rounded", ".round().clamp(0, 255)", ".clamp(0, 255)"),
        ("bytes wrap around", ".round().clamp(0, 255)", ".round().to(torch.int32)"),
        ("bytes come back unscaled", "(x.float() / 255)", "x.float()"),
        ("bytes lose their origin", "self.low + (self.high - self.low) * (x", "(self.high - self.low) * (x"),
        ("the restart share is turned round", "torch.rand(n, **on) < restart", "torch.rand(n, **on) > restart"),
        ("the oldest places go first", "torch.randperm(len(self.x), generator=rng, device=self.x.device)[: len(x)]",
         "torch.arange(len(x))"),
        ("a push meets a place twice", "torch.randperm(len(self.x), generator=rng, device=self.x.device)[: len(x)]",
         "torch.randint(len(self.x), (len(x),), generator=rng)"),
        ("a push keeps its graph", "x = x.detach().float()", "x = x.float()"),
        ("the state is not loaded", '        self.x.copy_(state["x"])\n', ""),
    ]),
    ("nets/blocks.py", "test_nets.py", [
        ("a steeper leaky ReLU", "negative_slope=0.2", "negative_slope=0.02"),
        ("a shallower frequency range", "(dim // 2 - 1)", "(dim // 2)"),
        ("the time is left out", "h = h + shift.reshape(", "h = h + 0 * shift.reshape("),
        ("no activation before the second layer", "self.second(self.act(h))", "self.second(h)"),
        ("the branch begins as something", "torch.zeros(channels)", "torch.ones(channels)"),
        ("no spectral norm", "spectral_norm(layer) if on else layer", "layer"),
    ]),
    ("nets/wideresnet.py", "test_nets.py", [
        ("the loss is rounded", " and not self.training", ""),
        ("a mean over space", ".sum((2, 3))", ".mean((2, 3))"),
        ("no ReLU before the sum", "h = F.relu(h).to(", "h = h.to("),
    ]),
    ("nets/wideresnet.py", "test_engine.py", [
        ("the net switches the engine's rounding off",
         "torch.autocast(x.device.type, torch.bfloat16) if rounded else nullcontext()",
         "torch.autocast(x.device.type, torch.bfloat16, enabled=rounded)",
         "bfloat16_rounds_the_net_and_not_the_state"),
    ]),
    ("nets/mlp.py", "test_nets.py", [
        ("a batch coupling", "h = self.stem(self.gain * x)", "h = self.stem(self.gain * (x - x.mean(0)))"),
        ("the gain is forgotten", "self.stem(self.gain * x)", "self.stem(x)"),
        ("units turn in a smaller box", "weight.mul_(steep)\n", "weight.mul_(1.0)\n",
         "units_of_the_first_layer_turn_all_over_the_box"),
    ]),
    ("nets/mlp.py", "test_flow.py", [
        ("swish's second derivative", "(2 + z * (1 - 2 * s))", "(1 + z * (1 - 2 * s))",
         "the_nets_own_laplacian_is_autograds"),
    ]),
    ("nets/conv.py", "test_nets.py", [
        ("no swish in the ConvNet", "for layer in self.body:\n            x = F.silu(layer(x))",
         "for layer in self.body:\n            x = layer(x)"),
    ]),
    ("settings/resolve.py", "test_settings.py", [
        ("a short preset takes the paper's", '(published if values["preset"] == "paper" else {})', "published"),
        ("the first size of a data set always", 'entry.get("size") == chosen.get("size")', "True"),
        ("True passes for a number", "good = type(value) in (get_args(kind) or (kind,))",
         "good = isinstance(value, get_args(kind) or (kind,))"),
        ("a preset beats the parameters", "| short | chosen)", "| chosen | short)"),
        ("off is a value", 'if optional and given == "off":', "if False:"),
        ("a larger setting is not seen", "value > (bound", "value < (bound"),
    ]),
    ("targets/densities.py", "test_densities.py", [
        ("the board's narrowest width without its side", "return self.edge * self.side", "return self.edge",
         "the_curvature_at_samples_is_that_of_the_narrowest_width_at_most"),
        ("the blur adds standard deviations", "edge=math.hypot(self.edge, std / self.side)",
         "edge=self.edge + std / self.side", "blurred_is_the_convolution_with_a_gaussian"),
        ("the funnel opens twice as fast", "(x_2 / 2).exp()", "x_2.exp()", "samples_follow_the_density[pinwheel]",
         "samples_follow_the_density[funnel]"),
        ("the funnel's width for its square", "self.width**2 * sharp.exp()", "self.width * sharp.exp()",
         "funnel_against_its_two_normals", "blurred_funnel_against_a_sum_over_its_sharp_height"),
        ("the funnel's height is not drawn to the middle", "(self.spread / total) ** 2 * x",
         "self.spread / total * x", "funnel_against_its_two_normals",
         "blurred_funnel_against_a_sum_over_its_sharp_height"),
        ("the funnel's blurs add", "blur=math.hypot(self.blur, std)", "blur=self.blur + std",
         "blurred_is_the_convolution_with_a_gaussian[0.6-rings]",
         "blurred_is_the_convolution_with_a_gaussian[0.6-blurred-funnel]"),
    ]),
    ("targets/curves.py", "test_densities.py", [
        ("a curve's narrowest width in its own scale", "return self.scale * self.noise", "return self.noise",
         "the_curvature_at_samples_is_that_of_the_narrowest_width_at_most"),
        ("the roll's blur ignores its scale", "math.hypot(self.noise, std / self.scale)",
         "math.hypot(self.noise, std)", "blurred_is_the_convolution_with_a_gaussian"),
        ("both moons the same", "(1 - 2 * arc) * torch.stack", "torch.stack", "curves_against_adaptive_quadrature"),
        ("every arc has all the mass", "(half * weight).flatten() / curve.arcs", "(half * weight).flatten()",
         "curves_against_adaptive_quadrature"),
        ("the circle's Bessel function with s", "r * radius / self.noise**2", "r * radius / self.noise",
         "curves_against_adaptive_quadrature"),
        ("the pinwheel's arms are too short", "return 1 + self.radial * torch.randn",
         "return 1 + 0.9 * self.radial * torch.randn", "samples_follow_the_density[pinwheel]",
         "samples_follow_the_density[funnel]"),
        ("the rings' blurs add", "noise=math.hypot(self.noise, std))", "noise=self.noise + std)",
         "blurred_is_the_convolution_with_a_gaussian[0.6-rings]",
         "blurred_is_the_convolution_with_a_gaussian[0.6-blurred-funnel]"),
    ]),
    ("imagefiles.py", "test_data.py", [
        ("transparent pixels show their hidden color",
         'Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)', "image",
         "transparent_pixels_are_white_and_counted"),
        ("a class called train is a split", '"val" in found or "test" in found', "any(found)",
         "which_folders_are_splits"),
        ("a picture of the same size and time is not read", "s.st_mtime_ns, s.st_ctime_ns)", "s.st_mtime_ns)",
         "a_picture_of_the_size_and_time_of_the_one_before_is_read_anew"),
    ]),
    ("run/training.py", "test_training.py", [
        ("the mean keeps the trained net's norms", "core.renormalize(mean.module)", "core.renormalize(mean.module, 0)",
         "the_mean_of_a_spectrally_normalized_net_has_the_norm_one"),
        ("the saved rate replaces the one that is asked for", "name in self.terms and self.terms[name] != value",
         "False", "another_training_does_not_go_on_with_a_run"),
        ("EMA with the other weight", "get_ema_multi_avg_fn(decay)", "get_ema_multi_avg_fn(1 - decay)",
         "ema_against_the_closed_form"),
    ]),
    ("papers/flow.py", "test_flow.py", [
        ("the divergence has the other sign", "-grad.flatten(1), trace[:, None]", "-grad.flatten(1), -trace[:, None]",
         "the_law_of_a_quadratics_flow_and_its_log_density"),
        ("the change is added", "-gaussian_energy(x0) - change", "-gaussian_energy(x0) + change",
         "the_law_of_a_quadratics_flow_and_its_log_density"),
        ("the flow climbs", "-energy_and_grad(energy, y, create_graph=create_graph)[1]",
         "energy_and_grad(energy, y, create_graph=create_graph)[1]",
         "the_flow_of_a_quadratic_is_the_matrix_exponential"),
        ("backward runs forward", "sign * velocity(y)", "velocity(y)",
         "the_flow_of_a_quadratic_is_the_matrix_exponential"),
        ("the flow's graph is cut", "with torch.set_grad_enabled(create_graph):\n        return _solve",
         "with torch.no_grad():\n        return _solve", "the_generator_loss_differentiates_through_the_sample_alone"),
        ("Euler's determinant one state late", "path[:-1]", "path[1:]",
         "eulers_log_determinant_is_that_of_the_full_jacobian"),
        ("Euler's Jacobian with a plus", "eye - step *", "eye + step *",
         "eulers_log_determinant_is_that_of_the_full_jacobian"),
        ("the bound by the wrong norm", "ord=2", "ord=1",
         "the_bound_of_a_quadratic_is_exact_and_sets_the_inverses_rate"),
        ("Hutchinson forgets its second probe", "flat_sum(v * product(v)[0])", "flat_sum(v.abs() * product(v)[0])",
         "hutchinsons_estimate_is_unbiased"),
    ]),
    ("papers/coarse_to_fine.py", "test_coarse_to_fine.py", [
        ("the fade runs over the whole stage", "2 * shown / images", "shown / images",
         "beta_rises_over_the_first_half_of_a_stage"),
        ("beta as it is printed", "return min(1.0, 2", "return max(1.0, 2",
         "beta_rises_over_the_first_half_of_a_stage"),
        ("pooling sums", "(-1, 2)).mean(d + 1)", "(-1, 2)).sum(d + 1)", "the_pyramid_pools"),
        ("pooling takes pixels that are far apart", "(-1, 2)).mean(d + 1)", "(2, -1)).mean(d)", "the_pyramid_pools"),
        ("noise from U(0, 1)", "2 * torch.rand(*shape, generator=rng, device=device) - 1",
         "torch.rand(*shape, generator=rng, device=device)",
         "at_beta_one_the_start_is_noise_and_the_coarse_model_rests"),
        ("noise before upsampling", "beta * uniform(up.shape, rng, up.device).to(up)",
         "beta * upsample(uniform(coarse.shape, rng, up.device)).to(up)", "the_mixtures_mean_and_variance"),
        ("the mixture's weights swapped", "1 - beta if how", "beta if how", "the_mixtures_mean_and_variance"),
        ("the root of the wrong thing", "(1 - beta**2) ** 0.5", "(1 - beta) ** 0.5", "the_mixtures_mean_and_variance"),
        ("coarse steps grow with beta", "round(K * (1 - beta))", "round(K * beta)", "coarse_steps_shrink_with_beta"),
        ("all coarse steps are taken", "noise, coarse_steps(K, beta))", "noise, K)",
         "the_start_of_a_stage_in_closed_form"),
        ("a stage starts anew", "upsample(x) if s else x",
         "uniform(upsample(x).shape, None, x.device).to(x) if s else x",
         "a_stage_starts_at_the_ends_of_the_one_before"),
        ("a chain's variance loses its square", "(1 - a * w) ** 2 * v", "(1 - a * w) * v",
         "the_short_run_curvature_against_brent_and_a_chain"),
    ]),
    ("nets/growing.py", "test_nets.py", [
        ("Primal without its root", "(F.avg_pool2d(x, 2))) / math.sqrt(2)", "(F.avg_pool2d(x, 2))) / 2",
         "growing_keeps_every_trunk_parameter_bit_for_bit", "the_growing_net_is_table_6"),
        ("the fade is swapped", "self.beta * self.primal[str(self.size)](h) + (1 - self.beta) * self.fade(h)",
         "(1 - self.beta) * self.primal[str(self.size)](h) + self.beta * self.fade(h)",
         "growing_keeps_every_trunk_parameter_bit_for_bit", "the_growing_net_is_table_6"),
        ("growing shares the trunk", "fine = copy.deepcopy(self)", "fine = copy.copy(self)",
         "growing_keeps_every_trunk_parameter_bit_for_bit", "the_growing_net_is_table_6"),
        ("growing keeps FromRGB", "        fine.from_rgb = _from_rgb(self.channels, outer, *self.options)\n", "",
         "growing_keeps_every_trunk_parameter_bit_for_bit", "the_growing_net_is_table_6"),
        ("growing forgets to thaw", ".train().requires_grad_(True)", ".train()",
         "growing_keeps_every_trunk_parameter_bit_for_bit", "the_growing_net_is_table_6"),
    ]),
    ("targets/fields.py", "test_coarse_to_fine.py", [
        ("the field's mixture without its weights", "self.weights.log() - 0.5 * squares", "-0.5 * squares",
         "the_fields_density_and_score_against_torch"),
        ("pooling a field by rows alone", "torch.kron(pair, pair)", "torch.kron(pair, pair.roll(1, 1))",
         "pooled_is_the_blocks_mean_of_the_covariance"),
    ]),
    ("papers/latent.py", "test_latent.py", [
        ("draws of one point weigh another", "x.expand(n, *x.shape).flatten(0, 1)", "x.repeat_interleave(n, 0)"),
        ("the noise's own density is forgotten", "checked(energy, x) + gaussian_energy(eps)", "checked(energy, x)"),
        ("the decoder's density is forgotten", "- decode(z).log_prob(x) + gaussian_energy(z)", "+ gaussian_energy(z)"),
        ("the Jacobian's sign", "return flat_sum(decode(z)", "return -flat_sum(decode(z)"),
        ("pull multiplies by the spread", "(-p.log_std).exp()", "p.log_std.exp()"),
        ("weights without the posterior", " - q.log_prob(z)", ""),
        ("IWAE sums its weights", "return total - math.log(n)", "return total"),
        ("IWAE keeps its last block", "total = torch.logaddexp(total, ", "total = ("),
    ]),
    ("nets/vae.py", "test_vae.py", [
        ("the Gaussian's normalizer", "z.square() + self.log_std", "z.square() - self.log_std"),
    ]),
    ("nets/vae.py", "test_latent.py test_vae.py", [
        ("noise times the log spread", "self.log_std.exp() * eps", "self.log_std * eps"),
    ]),
    ("run/parallel.py", "test_parallel.py", [
        ("gradients are summed", "(flat / size())", "flat", "the_mean_gradient_is_that_of_the_joined_batch",
         "processes_draw_their_own_rows_and_hold_the_same_weights"),
        ("all processes draw the same", "if rank() > 0:\n        own", "if rank() > size():\n        own",
         "the_mean_gradient_is_that_of_the_joined_batch", "processes_draw_their_own_rows_and_hold_the_same_weights"),
    ]),
    ("metrics/images.py", "test_metrics.py", [
        ("only bright pixels leave the range", "(x.abs() > 1 + 2 / 255)", "(x > 1 + 2 / 255)",
         "the_share_that_left_the_range_is_counted"),
        ("the score's spread is no error", "values.std() / splits**0.5", "values.std()",
         "the_score_is_the_mean_over_equal_splits"),
        ("p(y) is that of all splits", "_inception_score(logits.split(size))", "_inception_score([logits] * splits)",
         "the_score_is_the_mean_over_equal_splits"),
        ("classes that never come are NaN", "found.clamp(min=-600)", "found", "classes_that_never_come_do_not_count"),
        ("a rung's noise is its variance", "x + std * normal", "x + std**2 * normal",
         "the_ladder_is_what_its_names_say"),
        ("a pooled rung takes the maximum", "F.avg_pool2d(x, k)", "F.max_pool2d(x, k)",
         "the_ladder_is_what_its_names_say"),
        ("the Gaussian mixes images that are not centered", "@ (x - mean).flatten(1)", "@ x.flatten(1)",
         "the_ladders_gaussian_has_the_images_mean_and_covariance_and_is_one"),
        ("the Gaussian is a resampling", "normal(n, n) / (n - 1) ** 0.5 @", "torch.eye(n)[torch.randint(n, (n,))] @",
         "the_ladders_gaussian_has_the_images_mean_and_covariance_and_is_one"),
        ("ties count one", "for right in (False, True))", "for right in (True, True))",
         "auroc_counts_pairs_and_half_of_the_ties"),
        ("auroc's error is of one set", " + of_lower.var() / len(lower)", "", "auroc_counts_pairs_and_half_of_the_ties",
         "aurocs_error_is_the_spread_over_samples"),
        ("a reference forgets the images", '"images": images.cpu()', '"n": images[:1].cpu()',
         "a_reference_to_anything_else_never_hits"),
        ("a reference forgets the weights", "in net.state_dict().items()", "in ()",
         "a_reference_to_anything_else_never_hits"),
        ("a reference forgets the batch", "[net.name, batch, ", "[net.name, ",
         "a_reference_to_anything_else_never_hits"),
    ]),
    ("metrics/mixing.py", "test_mixing.py", [
        ("chains are not split", "half = len(x) // 2", "half = len(x)",
         "chains_that_disagree_in_place_trend_or_spread_are_seen"),
        ("ranks of ties are the last", "count.cumsum(0) - (count - 1) / 2", "count.cumsum(0)",
         "equal_values_share_their_rank_as_in_arviz"),
        ("spread is not looked at", "for values in (x, (x - x.quantile(0.5)).abs()):", "for values in (x,):",
         "chains_that_disagree_in_place_trend_or_spread_are_seen"),
        ("means of chains do not count", " + x.mean(0).var()", "",
         "chains_that_disagree_in_place_trend_or_spread_are_seen"),
        ("correlations count once", "tau = -1 + 2 * float", "tau = float", "the_effective_sample_size_of_ar1_is_exact"),
        ("the FFT wraps round", "z.mean(0), 2 * n, dim=0)", "z.mean(0), n, dim=0)",
         "the_values_are_those_of_arviz"),
    ]),
    ("metrics/planar.py", "test_metrics_planar.py", [
        ("an error that cannot be estimated is 0", "if variance > 0 else None", "if variance > 0 else 0.0",
         "an_error_that_cannot_be_estimated_is_not_0"),
        ("cold for hot", "-model.values.flatten() / temperature", "-model.values.flatten() * temperature",
         "divergence_and_log_z_of_gaussians", "divergences_follow_the_temperature"),
        ("log Z without the cells' area", " + 2 * math.log(2 * box / n)", "", "divergence_and_log_z_of_gaussians",
         "divergences_follow_the_temperature"),
    ]),
    ("engine.py", "test_engine.py", [
        ("rounded values leave the engine", "return value.to(x.dtype), grad",
         "return value.to(x.dtype), grad.bfloat16().float()"),
        ("images stay in their layout", "memory_format=torch.channels_last) if images",
         "memory_format=torch.contiguous_format) if images", "channels_last_is_another_layout_of_the_same_chain"),
        ("a kept gradient lies in a graph's static memory", "value, grad = value.clone(), grad.clone()", "pass",
         "results_in_static_memory_are_copied"),
    ]),
    ("run/folder.py", "test_training.py", [
        ("a run writes after another has gone on with it",
         'if self._lock is None or _read(self._folder).get("opened") != self._info["opened"]:',
         "if self._lock is None:", "a_run_that_was_let_go_writes_nothing_once_another_has_gone_on_with_it"),
        ("stages after one that ran again stay", "shutil.rmtree(self._folder / later, ignore_errors=True)", "pass",
         "a_stage_whose_folder_was_deleted_runs_again_and_so_do_those_after_it"),
        ("a stored stage leaves the generators as they were", "parallel.set_random_state(objects, self.generators)",
         "pass", "an_interrupted_run_of_stages_goes_on_bit_for_bit"),
    ]),
    ("settings/drl.py", "test_settings.py", [
        ("a thousand draws at the chains' noise", 'implied |= {"noise": 1.0}  #', "pass  #"),
    ]),
    ("settings/value.py", "test_settings.py", [
        ("small beats a preset of its own", 'presets.pop("small")) | presets', 'presets["small"])'),
    ]),
    ("run/job.py", "test_settings.py", [
        ("too few images pass", "len(job.train) < needed", "False"),
        ("a run is not named after its own images", '{"images_sha256": self.sha256} if self.sha256 else {}', "{}",
         "a_run_of_own_images_is_named_for_them"),
    ]),
]  # fmt: skip
MUTANTS = [
    Slip(about, file, old, new, tuple(f"{tests}::test_{name}" for name in only) or tuple(tests.split()))
    for file, tests, slips in TABLES
    for about, old, new, *only in slips
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
