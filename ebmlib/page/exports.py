"""Energies as plain JSON values: what `playground.js` needs to compute them and their gradients on a page.

Closed forms are exported as their parameters, small nets as their weights, and any other 2D energy as a table of spline
coefficients. Arrays are little-endian float32 in base64.
"""

import base64
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ebmlib.core import Energy, evaluating
from ebmlib.nets.mlp import MLP, TimeMLP
from ebmlib.papers.recovery import Noising, levels
from ebmlib.targets import densities
from ebmlib.targets.planar import check_number, check_whole

MOST_WEIGHTS = 50_000  # of a net on a page; beyond, one update of a few hundred particles takes longer than a frame


def encoded(values: Tensor) -> str:
    """Numbers as little-endian float32 in base64."""
    return base64.b64encode(values.detach().cpu().numpy().astype("<f4").tobytes()).decode("ascii")


def energy_spec(density: densities.Density) -> dict:
    """The density's energy in closed form. `std` is the width s of the Gaussian that blurs it; 0 for the sharp funnel.

    The energy's Hessian is I/s^2 - Cov/s^4 with Cov the spread of the unblurred points behind x (Tweedie), so its
    curvature is at most L = 1/s^2, reached far out. Chains with a > 2/L diverge.
    """
    match density:
        case densities.GaussianGrid(side=side, spacing=spacing, mean=mean, std=std):
            axes = [[m + spacing * (k - (side - 1) / 2) for k in range(side)] for m in mean]
            return {"kind": "lattice", "axes": axes, "std": std}
        case densities.Curve() | densities.Rings():
            center, log_weight = density.nodes(torch.float64, torch.device("cpu"))
            # 9 decimals keep the energy to 1e-6 and the page small.
            shape = {"means": center.T.numpy().round(9).tolist(), "log_weights": log_weight.numpy().round(9).tolist()}
            return {"kind": "mixture", **shape, "std": density.noise * getattr(density, "scale", 1.0)}
        case densities.Checkerboard(half=half, cells=cells, edge=edge) if edge > 0:
            dark = [[i, j] for i in range(cells) for j in range(cells) if (i + j) % 2 == 0]
            return {"kind": "checkerboard", "half": half, "cells": cells, "std": edge * density.side, "dark": dark}
        case densities.Funnel(spread=spread, width=width, blur=blur):
            node, weight = densities.hermite(64 if blur else 1)
            shape = {"spread": spread, "width": width, "blur": blur, "std": blur}
            return {"kind": "funnel", **shape, "nodes": node.tolist(), "log_weights": np.log(weight).tolist()}
    raise ValueError(f"the playground has no energy with a gradient for {density!r}")


def net_spec(
    net: MLP, box: float, *, factor: float = 1.0, temperature: float = 1.0, walls: float = 0.0, name: str = "a net"
) -> dict:
    """The energy net(factor x) / temperature of points x in data units, drawn on [-box, box]^2.

    `walls` > 0 mirrors the chains at |x_i| = walls, in data units too. ValueError for any net but a 2D `MLP` of at most
    50,000 weights: larger ones are too slow on a page, and `table_spec` takes them.
    """
    if not isinstance(net, MLP):
        raise ValueError(f"net must be an ebmlib.nets.mlp.MLP, not {type(net).__name__}; table_spec takes any energy")
    check_number("factor", factor)
    check_number("temperature", temperature)
    with evaluating(net):  # spectral normalization moves its weight at every look in training mode
        biases = encoded(torch.cat([layer.bias for layer in net.layers]))
        spec = _net([(layer.weight, None) for layer in net.layers], factor * net.gain)
    spec |= {"biases": biases, "divide": temperature}
    return spec | _place(box, walls, name) | {"unit": 1 / factor}


def _net(layers: Sequence[tuple[Tensor, Tensor | str | None]], factor: float) -> dict:
    """A net's matrices as one flat array; a layer's skip connection is None, "same" (the identity) or a matrix."""
    shapes, parts = [], []
    for weight, skip in layers:
        across = isinstance(skip, Tensor)
        shapes.append({"rows": len(weight), "columns": weight.shape[1], "skip": "matrix" if across else skip})
        parts += [weight.flatten(), skip.flatten()] if across else [weight.flatten()]
    flat = torch.cat(parts)
    if shapes[0]["columns"] != 2:
        raise ValueError(f"the playground draws energies of 2 coordinates, and this net takes {shapes[0]['columns']}")
    if len(flat) > MOST_WEIGHTS:
        raise ValueError(f"a page computes at most {MOST_WEIGHTS} weights smoothly, not {len(flat)}: use table_spec")
    return {"kind": "net", "layers": shapes, "weights": encoded(flat), "factor": factor}


def levels_spec(
    model: TimeMLP | Callable[[Tensor], Energy], tables: Noising, K: int, box: float, *, n: int | None = None,
    walls: float | None = None, name: str = "the levels of a net",
) -> dict:  # fmt: skip
    """Recovery likelihood's energies of y at levels 0..T-1, with what a walk of K steps a level needs.

    model: a net(y, t), divided by energy_scale[t], or at_level(t) as in `recovery.progressive`. Drawn on [-box, box]^2
    in the net's own units. With n, a table of n x n nodes a level takes the place of the weights: for at_level, for
    nets of more than 50,000, and for a slider that walks down without a pause. The tables reach to |x_i| = walls, `box`
    by default, and mirror the chains there. ValueError names a bad argument.
    """
    is_net = isinstance(model, TimeMLP)
    if not is_net and (n is None or not callable(model) or isinstance(model, torch.nn.Module)):
        raise ValueError(f"a walk needs a TimeMLP, or at_level and n for its tables, not {type(model).__name__}")
    check_whole("K", K, 1)
    walls = (0.0 if n is None else box) if walls is None else walls
    spec = {"kind": "levels", "K": K, **_place(box, walls, name), "unit": 1.0}
    spec |= {name: getattr(tables, name).tolist() for name in ("delta", "precision", "scale")}
    if not is_net:
        return spec | {"energies": _level_tables(model, tables, walls, n)}
    tables = tables.to(model.stem.bias.device)
    with evaluating(model), torch.no_grad():
        if n is None:
            return spec | _time_net(model, tables)
        return spec | {"energies": _level_tables(levels(model.at, tables), tables, walls, n)}


def _level_tables(at_level: Callable[[Tensor], Energy], tables: Noising, box: float, n: int) -> list[dict]:
    """A table for each level; energies are asked on the tables' device."""
    device = tables.a.device

    def at(t: int) -> Energy:
        return lambda y: at_level(torch.full((len(y),), t, device=device))(y.to(device)).cpu()

    return [table_spec(at(t), box, n=n) for t in range(tables.T)]


def _time_net(net: TimeMLP, tables: Noising) -> dict:
    """A `TimeMLP` as one net with biases for each level: at a fixed t, the time is a shift of a block's first bias."""
    layers, biases = [(net.stem.weight, None)], [net.stem.bias.expand(tables.T, -1)]
    temb = net.embed(torch.arange(tables.T, device=net.stem.bias.device))  # (T, width)
    for block in net.body:
        factor, across = block.scale.factor, isinstance(block.shortcut, torch.nn.Linear)
        skip = block.shortcut.weight if across else "same"
        layers += [(block.first.weight, None), (factor[:, None] * block.second.weight, skip)]
        bias = factor * block.second.bias + (block.shortcut.bias if across else 0)
        biases += [block.first.bias + block.shift(temb), bias.expand(tables.T, -1)]
    flat = _net([*layers, (net.head.weight, None)], net.gain)
    each = torch.cat([*biases, net.head.bias.expand(tables.T, -1)], 1)  # (T, biases)
    return {"net": flat, "biases": [encoded(b) for b in each], "scales": tables.energy_scale.tolist()}


def table_spec(energy: Energy, box: float, *, n: int = 257, name: str = "a table") -> dict:
    """Any energy (B, 2) -> (B,) as a cubic spline through its values on n x n nodes of [-box, box]^2, edges included.

    A page computes a bicubic polynomial instead of the energy: its error falls with the fourth, the gradient's with the
    third power of the spacing. The walls of the box mirror the chains, since nothing is known beyond.
    ValueError for fewer than 5 nodes a side or an energy that is not finite on all of them.
    """
    check_whole("n", n, 5)
    place = _place(box, box, name)
    axis = torch.linspace(-box, box, n)
    y, x = torch.meshgrid(axis, axis, indexing="ij")  # rows along y
    with torch.no_grad():
        parts = torch.stack([x, y], 2).reshape(-1, 2).split(20_000)
        values = torch.cat([energy(part) for part in parts]).double().reshape(n, n)
    if not values.isfinite().all():
        raise ValueError(f"the energy is not finite on all of [-{box:g}, {box:g}]^2, so it has no table there")
    # A coefficient a node and one more at each end, where the third derivative has no jump at the first inner node.
    rows = torch.arange(n)
    matrix = torch.zeros(n + 2, n + 2, dtype=torch.float64)
    for k, weight in enumerate((1 / 6, 2 / 3, 1 / 6)):
        matrix[rows + 1, rows + k] = weight
    matrix[0, :5] = matrix[-1, -5:] = torch.tensor([1.0, -4.0, 6.0, -4.0, 1.0], dtype=torch.float64)
    padded = lambda rows: torch.nn.functional.pad(rows, (0, 0, 1, 1))
    half = torch.linalg.solve(matrix, padded(values))  # (n + 2, n)
    coefficients = torch.linalg.solve(matrix, padded(half.T)).T
    return {"kind": "table", "n": n, "coefficients": encoded(coefficients), **place, "unit": 1.0}


def any_spec(energy: Energy, box: float) -> dict:
    """A module or function (B, 2) -> (B,) on [-box, box]^2: `net_spec` where it can, `table_spec` else."""
    if isinstance(energy, MLP) and sum(layer.weight.numel() for layer in energy.layers) <= MOST_WEIGHTS:
        return net_spec(energy, box)
    if isinstance(energy, torch.nn.Module):
        with evaluating(energy):
            return table_spec(energy, box, name="a module")
    return table_spec(energy, box, name="a function")


def _place(box: float, walls: float, name: str) -> dict:
    """Where a spec is drawn and mirrored, and how it is called."""
    check_number("box", box)
    check_number("walls", walls, zero=True)
    return {"box": float(box), "walls": float(walls), "name": name}
