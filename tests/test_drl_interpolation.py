"""The cells of drl_interpolation in this process: whose weights it takes, what stops it early, what its rows say."""

from functools import partial
from pathlib import Path

import cells
import pytest
import torch
from cells import small_drl

from ebmlib.nets.mlp import MLP
from ebmlib.papers import recovery
from ebmlib.run import checkpoint

pytestmark = pytest.mark.usefixtures("in_process")
run_cells = partial(cells.run_cells, "drl_interpolation", preset="smoke", device="cpu")


@pytest.mark.slow
def test_shared_noise_holds_a_row_together_and_fresh_noise_does_not():
    """With the bundled weights."""
    namespace, _ = run_cells("job.show(", pairs=16, at_once=6, steps=5)
    rows = {row.name: row for row in namespace["found"]}
    assert {(row.dataset, row.n, row.preset) for row in rows.values()} == {("fashion_mnist", 16, "smoke")}
    how = {row.protocol for name, row in rows.items() if not name.startswith("share of pixels outside")}
    assert all("16 pairs, 5 points, arc; " in said for said in how)
    assert all(said.endswith("EMA weights after 4,000 iterations") for said in how)
    length = lambda name: rows[f"length of the path, {name}"]
    assert length("shared noise").value + 3 * length("shared noise").se < 2
    assert length("fresh noise").value - 2 * length("fresh noise").se > 2.5, "of 4, were they all as far apart"
    # Pair by pair: pictures differ far more from each other in their detail than the two ways do.
    line, arc = (namespace["fine"][name][2] for name in ("noise on the line", "shared noise"))
    lost = arc - line
    assert lost.mean() > 3 * lost.std() / len(lost) ** 0.5


def test_net_size_and_chains_are_the_checkpoints(tmp_path: Path):
    path = small_drl(tmp_path / "small.safetensors")
    namespace, _ = run_cells("job.show(", checkpoint=path, preset="paper", pairs=3, steps=3, at_once=2)
    assert namespace["smooth"].shape == (3, 3, 1, 8, 8)
    assert torch.equal(namespace["tables"].delta, recovery.noising(2, 0.01, "text").delta)
    says = "size = 8, T = 2, K = 3, b2 = 0.01, variant = text, noise = 0.7; EMA weights after 1,234 iterations"
    left = "the largest of 5 sets of paths, before they are clamped"
    assert {row.protocol for row in namespace["found"]} == {f"3 pairs, 3 points, arc; {says}", left}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"preset": "paper"}, "checkpoint = None: preset 'paper' needs a file that drl_cifar trained"),
        ({"checkpoint": "{folder}/foreign.safetensors"}, "is not of drl_cifar: its header names no net, settings or"),
        ({"checkpoint": "{folder}/faces.safetensors", "dataset": "lsun_church"}, "the checkpoint is of celeba"),
        ({"dataset": "mnist"}, "dataset = 'mnist': the checkpoint is of fashion_mnist"),
    ],
)
def test_the_wrong_weights_stop_the_page_before_anything_is_read_or_trained(tmp_path, monkeypatch, given, sentence):
    checkpoint.save_weights(tmp_path / "foreign.safetensors", MLP())
    small_drl(tmp_path / "faces.safetensors", dataset="celeba")
    monkeypatch.setattr("ebmlib.data.images", lambda *_, **__: pytest.fail("images were read", pytrace=False))
    given = {name: text.replace("{folder}", str(tmp_path)) for name, text in given.items()}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=sentence):
        run_cells("job.show(", **given)
    assert sorted(tmp_path.iterdir()) == before
