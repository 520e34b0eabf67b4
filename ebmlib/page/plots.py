"""The book's figures: one function a figure kind, drawn on a given `ax`; arrays are tensors or numpy arrays."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.container import BarContainer
from matplotlib.image import AxesImage
from matplotlib.pyplot import Axes, Figure, Line2D

from ebmlib.page.results import quantity

WIDTH = 7.0  # inches, the width of the book's column
GAP = 2  # white pixels between images
MOST_INSIDE = 4  # lines of a legend inside its axes
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")  # as in book.mplstyle


def style() -> None:
    """Apply the book's matplotlib style, `ebmlib/page/book.mplstyle`."""
    plt.style.use(Path(__file__).with_name("book.mplstyle"))


def panels(rows: int = 1, columns: int = 1, aspect: float = 1.0, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """A figure of rows x columns panels, row by row; aspect is a panel's height over its width, titles aside.

    Up to four square panels a row stay legible on a phone.
    """
    height = rows * (aspect * width / columns + 0.4)  # 0.4 in: room for a title
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="compressed")
    return figure, list(axes.flat)


def density(ax: Axes, values, box: float, title: str | None = None, vmax: float | None = None) -> AxesImage:
    """A density on [-box, box]^2: values (n, n), rows y from below, columns x, as `partition.on_grid` returns them.

    The color scale runs from 0 to vmax (the maximum if None): give the panels that are to be compared the same vmax.
    """
    values = _array(values)
    image = ax.imshow(values, origin="lower", extent=(-box, box, -box, box), vmin=0, vmax=vmax, interpolation="nearest")
    _square(ax, box, title)
    return image


def samples(ax: Axes, x, box: float, title: str | None = None, **kw) -> PathCollection:
    """Points (N, 2) on [-box, box]^2; says how many lie outside or are not numbers. kw goes to `ax.scatter`."""
    x = _points(x, "(N, 2)")
    size = np.clip(8000 / max(len(x), 1), 1.5, 14)
    points = ax.scatter(*x.T, **{"s": size, "alpha": 0.5, "linewidths": 0, "color": PALETTE[0], **kw})
    _square(ax, box, title)
    if outside := len(x) - int((np.abs(x) <= box).all(1).sum()):
        boxed = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
        ax.text(0.97, 0.03, f"{outside} outside", transform=ax.transAxes, ha="right", fontsize=10.5, bbox=boxed)
    return points


def paths(ax: Axes, x, box: float, title: str | None = None) -> LineCollection:
    """Chains (K + 1, B, 2) as lines on [-box, box]^2, one color a chain; a ring marks the start, a dot the end."""
    x = _points(x, "(K, B, 2)")
    colors = [PALETTE[k % len(PALETTE)] for k in range(x.shape[1])]
    lines = ax.add_collection(LineCollection(list(x.swapaxes(0, 1)), colors=colors, linewidths=1.0, alpha=0.8))
    ax.scatter(*x[0].T, s=34, facecolors="white", edgecolors=colors, linewidths=1.4, zorder=3)
    ax.scatter(*x[-1].T, s=34, color=colors, linewidths=0, zorder=3)
    _square(ax, box, title)
    return lines


def lines(ax: Axes, series: Mapping[str, Sequence], xlabel: str = "", ylabel: str = "") -> list[Line2D]:
    """Lines {label: (steps, values)}, or (steps, values, se) for a band of one standard error either side.

    A legend appears where there is more than one line; a long one is beside the axes.
    """
    drawn = []
    for label, (steps, values, *se) in series.items():
        steps, values = _array(steps), _array(values)
        drawn += ax.plot(steps, values, label=label)
        if se:
            error, color = _array(se[0]), drawn[-1].get_color()
            ax.fill_between(steps, values - error, values + error, color=color, alpha=0.2, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(drawn) > 1:  # inside the axes a long legend would hide the lines
        ax.legend(**({"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(drawn) > MOST_INSIDE else {}))
    return drawn


def bars(ax: Axes, values: Mapping[str, float | tuple[float, float]], xlabel: str = "") -> BarContainer:
    """Horizontal bars {label: value} or {label: (value, standard error)}, first on top, each with its number."""
    pairs = [v if isinstance(v, tuple) else (v, np.nan) for v in values.values()]  # nan: no whisker
    value, error = np.array(pairs, dtype=float).reshape(-1, 2).T
    whisker = {"ecolor": "#222222", "capsize": 3}
    drawn = ax.barh(list(values), value, xerr=error, height=0.6, color=PALETTE[0], error_kw=whisker)
    text = [quantity(v, e) for v, e in pairs]
    ax.bar_label(drawn, text, padding=4, fontsize=11)
    ax.margins(x=0.25)  # room for the numbers
    ax.invert_yaxis()
    ax.locator_params("x", nbins=4)
    ax.grid(False)
    ax.set_xlabel(xlabel)
    return drawn


def image_grid(ax: Axes, x, columns: int = 8, title: str | None = None) -> AxesImage:
    """A grid of images (N, C, H, W), row by row: uint8, or floats where -1 is black and 1 white (clipped beyond).

    C is 1 or 3. One scale for all images: nothing is normalized image by image.
    """
    x = _pixels(x)
    return _tiled(ax, [x[k : k + columns] for k in range(0, len(x), columns)], columns, title)


def image_rows(ax: Axes, rows: Sequence, row_labels: Sequence[str], title: str | None = None) -> AxesImage:
    """One labeled row of images for each (N, C, H, W) in `rows`, as in `image_grid`; only H and W must agree.

    A panel of aspect len(rows) / N fits.
    """
    rows = [_pixels(x) for x in rows]
    drawn, height = _tiled(ax, rows, max(map(len, rows)), title), rows[0].shape[1]
    ax.set_yticks([r * (height + GAP) + (height - 1) / 2 for r in range(len(rows))], row_labels)
    return drawn


def _array(x) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def _points(x, shape: str) -> np.ndarray:
    x = _array(x)
    if x.ndim != shape.count(",") + 1 or x.shape[-1] != 2:
        raise ValueError(f"x must have the shape {shape}, not {x.shape}")
    return x


def _pixels(x) -> np.ndarray:
    """(N, C, H, W) as uint8 (N, H, W, 3)."""
    x = _array(x)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not len(x):
        raise ValueError(f"images must have the shape (N, 1 or 3, H, W) with N > 0, not {x.shape}")
    if x.dtype != np.uint8:
        if x.dtype.kind != "f" or not np.isfinite(x).all():
            raise ValueError(f"images must be uint8 or finite floats in [-1, 1]; these are {x.dtype}")
        x = ((x.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    return np.repeat(x, 3 // x.shape[1], axis=1).transpose(0, 2, 3, 1)


def _tiled(ax: Axes, rows: list[np.ndarray], columns: int, title: str | None) -> AxesImage:
    """Draw rows of images of one size, with white gaps and without ticks."""
    height, width = rows[0].shape[1:3]
    canvas = np.full((len(rows), height + GAP, columns, width + GAP, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        canvas[r, :height, : len(row), :width] = row.swapaxes(0, 1)
    canvas = canvas.reshape(len(rows) * (height + GAP), columns * (width + GAP), 3)[:-GAP, :-GAP]
    ax.set(xticks=[], yticks=[], title=title or "")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(False)
    return ax.imshow(canvas)


def _square(ax: Axes, box: float, title: str | None) -> None:
    ax.set(xlim=(-box, box), ylim=(-box, box), aspect="equal", **({"title": title} if title else {}))
    ax.spines[:].set_visible(True)
    ax.grid(False)
    ax.locator_params(nbins=3, steps=[1, 2, 5, 10])
