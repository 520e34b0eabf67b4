"""The cells of drl_toy in this process: which checkpoints it refuses, what its guard sees, and what its rows say."""

from functools import partial
from pathlib import Path

import cells
import pytest

from ebmlib.run import checkpoint, training

SMOKE = {"preset": "smoke", "device": "cpu", "iterations": 2}


pytestmark = pytest.mark.usefixtures("in_process")
run_cells = partial(cells.run_cells, "drl_toy", **SMOKE)


def trained(**given) -> str:
    """The last checkpoint of a short training."""
    namespace, fit = run_cells("training.fit", **given)
    exec(fit, namespace)
    return str(max(Path("runs").rglob("step-*.safetensors")))


# A checkpoint that is to be judged


@pytest.mark.parametrize(
    ("given", "sentence"),
    [({"dataset": "swiss-roll"}, "dataset = 'checkerboard'"), ({"b2": 0.02}, "b2 = 0.06"), ({"T": 4}, "T = 6")],
)
def test_a_checkpoint_of_another_target_or_ladder_stops_the_page_before_a_run_begins(tmp_path, given, sentence):
    path = trained()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=sentence) as caught:
        run_cells("training.fit", checkpoint=path, **given)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_names_no_target_is_refused(tmp_path):
    namespace, _ = run_cells("training.fit")
    path = checkpoint.save_weights(tmp_path / "bare.safetensors", namespace["net"])
    with pytest.raises(ValueError, match="dataset = None"):
        run_cells("training.fit", checkpoint=str(path))


def test_a_checkpoints_weights_are_judged_as_they_are():
    path = trained(seed=3)
    namespace, _ = run_cells("caught = {}", checkpoint=path)
    net, judged = namespace["net"], namespace["ema"].module.state_dict()
    training.load_module(path, net, ema=True)
    assert cells.same(net.state_dict(), dict(judged))


# Training


def test_deterministic_reaches_both_trainings(monkeypatch):
    fit, asked = training.fit, []
    watched = lambda *given, deterministic=False, **more: (
        asked.append(deterministic) or fit(*given, deterministic=deterministic, **more)
    )
    monkeypatch.setattr(training, "fit", watched)
    run_cells("job.show(", deterministic=True)
    assert asked == [True, True]


# Rows


def test_rows_name_their_training_and_its_own_seconds(monkeypatch):
    rows = cells.all_rows(monkeypatch, "drl_toy", **SMOKE, b2=0.02, short_iterations=3)
    seconds = set()
    for method, length in (
        ("recovery likelihood", "2 iterations, b2 = 0.02"),
        ("short-run", "3 iterations, step 0.005"),
    ):
        own = [row for row in rows if row.name.endswith(f", {method}")]
        names = {row.name.rpartition(",")[0] for row in own}
        assert names >= {"KL to the truth", "held-out log-likelihood", "MMD^2 of samples"}
        assert {row.protocol.partition("; ")[0] for row in own} == {length}
        (spent,) = {row.seconds for row in own}
        seconds.add(spent)
    assert len(seconds) == 2
    assert {row.seconds for row in rows} == seconds
