"""The cells of drl_toy in this process: what stops it early, what its guard sees, and what its rows say."""

import os
from functools import partial
from pathlib import Path

import cells
import pytest
import torch

from ebmlib.page import results
from ebmlib.run import checkpoint

ROOT = Path(__file__).resolve().parents[1]
SMOKE = {"preset": "smoke", "device": "cpu", "iterations": 2}


pytestmark = pytest.mark.usefixtures("in_process")
run_cells = partial(cells.run_cells, "drl_toy", **SMOKE)


def trained(**given) -> str:
    """The last checkpoint of a short training."""
    namespace, fit = run_cells("training.fit", **given)
    exec(fit, namespace)
    return str(namespace["folder"].checkpoints()[-1])


# A checkpoint that is to be judged


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"dataset": "swiss-roll"}, "has dataset = 'checkerboard', not 'swiss-roll'"),
        ({"b2": 0.02}, "has b2 = 0.06, not 0.02"),
        ({"T": 4}, "has T = 6, not 4"),
    ],
)
def test_a_checkpoint_of_another_target_or_ladder_stops_the_page_before_a_run_begins(tmp_path, given, sentence):
    path = trained()
    before = sorted(tmp_path.rglob("*"))
    namespace, opening = run_cells("training.open_run", checkpoint=path, **given)
    with pytest.raises(ValueError, match=sentence) as caught:
        exec(opening, namespace)
    assert "\n" not in str(caught.value)
    assert "folder" not in namespace
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_names_no_target_is_refused(tmp_path):
    namespace, _ = run_cells("training.fit")
    path = checkpoint.save_weights(tmp_path / "bare.safetensors", namespace["net"])
    again, opening = run_cells("training.open_run", checkpoint=str(path))
    with pytest.raises(ValueError, match="has dataset = None, not 'checkerboard'"):
        exec(opening, again)


def test_a_checkpoints_weights_are_judged_as_they_are():
    path = trained(seed=3)
    namespace, _ = run_cells("caught = {}", checkpoint=path)
    assert (namespace["history"], namespace["length"]) == (None, 2)
    saved = checkpoint.load(path)[0]["ema"]["net"]
    assert all(torch.equal(value, saved[name]) for name, value in namespace["ema"].module.state_dict().items())


# Training


def test_energies_that_run_away_together_stop_the_run(tmp_path):
    """Of data and samples alike: the loss, their difference, stays small."""
    namespace, fit = run_cells("training.fit")
    step = namespace["step"]

    def shifted(x):
        loss, stats = step(x)
        return loss, stats | {name: stats[name] + 2e5 for name in ("pos", "neg")}

    namespace["step"] = shifted
    with pytest.raises(RuntimeError, match=r"diverged at iteration 1: (pos|neg) is \S+ \(bound 100000\); there is no "):
        exec(fit, namespace)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wanted", [False, True])
def test_deterministic_reaches_both_trainings(wanted: bool):
    namespace, fit = run_cells("training.fit", deterministic=wanted)
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if wanted else None), "before anything is computed"
    step, seen = namespace["step"], []
    namespace["step"] = lambda x: seen.append(torch.are_deterministic_algorithms_enabled()) or step(x)
    exec(fit, namespace)
    assert seen == [wanted] * 2
    assert namespace["usual"]["deterministic"] is wanted
    (short,) = [source for source in cells.code_cells("drl_toy") if "step_short" in source]
    assert "| usual" in short


# Rows


def test_rows_name_their_training_and_its_own_seconds():
    namespace, show = run_cells("results.show(rows)", b2=0.02, short_iterations=3)
    exec(show, namespace)
    rows: list[results.Row] = namespace["rows"]
    for method, length in (
        ("recovery likelihood", "2 iterations, b2 = 0.02"),
        ("short-run", "3 iterations, step 0.005"),
    ):
        own = [row for row in rows if row.name.endswith(f", {method}")]
        assert [row.name.rpartition(",")[0] for row in own] == [
            "KL to the truth",
            "held-out log-likelihood",
            "log Z on the larger box",
            "MMD^2 of samples",
        ]
        assert {row.protocol.partition("; ")[0] for row in own} == {length}
        assert own[2].value == namespace["leak"][method]
    history, short = namespace["history"], namespace["short_history"]
    assert {row.seconds for row in rows} == {history.seconds, short.seconds}
