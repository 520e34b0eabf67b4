"""Figures are read back: what was drawn, where, in what color."""

import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ebmlib.page import plots
from ebmlib.targets import densities


@pytest.fixture(autouse=True)
def book_style():
    with plt.rc_context():
        plots.style()
        yield
        plt.close("all")


@pytest.fixture
def ax():
    return plots.panels()[1][0]


def color_at(ax, x: float, y: float) -> np.ndarray:
    """RGB of the rendered figure at a point in data coordinates."""
    ax.figure.canvas.draw()
    pixels = np.asarray(ax.figure.canvas.buffer_rgba())
    column, row = ax.transData.transform((x, y))
    return pixels[len(pixels) - 1 - int(row), int(column), :3].astype(int)


def test_style_is_the_palette_and_legible_on_a_phone():
    assert tuple(plt.rcParams["axes.prop_cycle"].by_key()["color"]) == plots.PALETTE
    css_pixels = 358 / (72 * plots.WIDTH)  # a figure fills 358 of a phone's 390 px
    assert plt.rcParams["figure.figsize"][0] <= plots.WIDTH
    assert plt.rcParams["xtick.labelsize"] * css_pixels > 8.5


def test_density_stands_where_its_samples_stand(ax):
    target = densities.gaussian(0.2, (1.0, -0.5))
    line = torch.linspace(-2, 2, 101)
    y, x = torch.meshgrid(line, line, indexing="ij")  # rows y, columns x
    values = target.log_prob(torch.stack((x.flatten(), y.flatten()), 1)).exp().reshape(101, 101)
    plots.density(ax, values, 2.0, "one mode")
    top, bottom = (np.round(255 * np.array(plt.get_cmap("viridis")(v)[:3])) for v in (1.0, 0.0))
    assert np.abs(color_at(ax, 1.0, -0.5) - top).max() < 8
    for elsewhere in ((-1.0, -0.5), (1.0, 0.5), (-0.5, 1.0)):
        assert np.abs(color_at(ax, *elsewhere) - bottom).max() < 8
    assert ax.get_title() == "one mode"


def test_samples_counts_what_it_cannot_show(ax):
    x = torch.tensor([[0.0, 0.0], [0.5, -0.5], [1.5, 0.0], [torch.nan, 0.0], [0.0, -torch.inf]])
    points = plots.samples(ax, x, 1.0, color="black", s=40)
    assert [t.get_text() for t in ax.texts] == ["3 outside"]
    assert points.get_sizes() == [40]
    assert color_at(ax, 0.5, -0.5).max() < 140  # black at alpha .5
    assert color_at(ax, -0.5, 0.5).min() == 255


def test_paths_runs_each_chain_through_its_points(ax):
    x = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0))
    lines = plots.paths(ax, x, 4.0)
    np.testing.assert_array_equal(np.stack(lines.get_segments()), x.transpose(0, 1))
    start, end = ax.collections[1:]
    np.testing.assert_array_equal(start.get_offsets(), x[0])
    np.testing.assert_array_equal(end.get_offsets(), x[-1])


def test_lines_draws_one_standard_error_either_side(ax):
    steps = np.arange(4)
    lines = plots.lines(ax, {"a": (steps, steps**2.0, np.full(4, 0.5)), "b": (steps, -steps)}, "step", "value")
    np.testing.assert_array_equal(lines[0].get_ydata(), steps**2.0)
    band = ax.collections[0].get_paths()[0].vertices
    assert {y for x, y in band if x == 2} == {3.5, 4.5}
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "value")


def test_a_long_legend_stands_beside_the_lines(ax):
    for count in (plots.MOST_INSIDE, plots.MOST_INSIDE + 1):
        ax.clear()
        plots.lines(ax, {str(k): (np.arange(3), np.arange(3.0) * k) for k in range(count)})
        ax.figure.canvas.draw()
        left = ax.get_legend().get_window_extent().x0
        assert (left >= ax.get_window_extent().x1) == (count > plots.MOST_INSIDE)


def test_bars_show_their_numbers_first_on_top(ax):
    drawn = plots.bars(ax, {"ULA": (0.0312, 0.002), "HMC": 0.004}, "MMD²")
    assert [b.get_width() for b in drawn] == [0.0312, 0.004]
    assert [t.get_text() for t in ax.texts] == ["0.0312 ± 0.0020", "0.004"]
    ax.figure.canvas.draw()
    first, second = (b.get_window_extent().y0 for b in drawn)
    assert first > second


def test_images_keep_one_scale_for_all(ax):
    # A dark and a bright image, and one beyond the range: nothing is stretched, only clipped.
    x = torch.stack([torch.full((1, 4, 4), v) for v in (-0.9, 0.9, 3.0)])
    canvas = plots.image_grid(ax, x, columns=2).get_array()
    assert canvas.shape == (10, 10, 3)  # 2 x 2 images of 4 px and 2 px between
    assert (canvas[:4, :4] == 13).all()  # (1 - .9) * 127.5 = 12.75
    assert (canvas[:4, 6:] == 242).all()
    assert (canvas[6:, :4] == 255).all()
    assert (canvas[6:, 6:] == 255).all()  # no fourth image: paper
    assert (canvas[:, 4:6] == 255).all()


def test_images_of_bytes_and_of_floats_look_alike():
    x = torch.randint(0, 256, (5, 3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    left, right = plots.panels(1, 2)[1]
    of_bytes = plots.image_grid(left, x, columns=3).get_array()
    of_floats = plots.image_grid(right, x / 127.5 - 1, columns=3).get_array()
    np.testing.assert_array_equal(of_bytes, of_floats)
    np.testing.assert_array_equal(of_bytes[8:14, 9:16], x[4].permute(1, 2, 0))  # the fifth: row 1, column 1


def test_image_rows_pairs_rows_and_labels(ax):
    gray = torch.zeros(3, 1, 4, 4)
    color = torch.zeros(2, 3, 4, 4)
    color[:, 0] = 1.0
    canvas = plots.image_rows(ax, [gray, color], ["gray", "red"]).get_array()
    assert canvas.shape == (10, 16, 3)
    assert (canvas[:4, 12:] == 128).all()
    assert (canvas[6:, :4] == (255, 128, 128)).all()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["gray", "red"]
    np.testing.assert_array_equal(ax.get_yticks(), [1.5, 7.5])  # the rows' middles


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda ax: plots.samples(ax, torch.zeros(4, 3), 1.0), "x must have the shape (N, 2), not (4, 3)"),
        (lambda ax: plots.paths(ax, torch.zeros(4, 2), 1.0), "x must have the shape (K, B, 2), not (4, 2)"),
        (lambda ax: plots.image_grid(ax, torch.zeros(2, 4, 8, 8)), "with N > 0, not (2, 4, 8, 8)"),
        (lambda ax: plots.image_grid(ax, torch.full((2, 1, 8, 8), torch.nan)), "these are float32"),
    ],
)
def test_bad_arguments_are_named(ax, call, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call(ax)
