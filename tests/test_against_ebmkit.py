"""The comparison with ebmkit at a tiny size: our side always, the other where that library is installed."""

import sys

import against_ebmkit
import pytest
import torch

from ebmlib.page import results
from ebmlib.run import training


@pytest.fixture
def against(monkeypatch):
    monkeypatch.setattr(against_ebmkit, "SAMPLES", 1000)
    monkeypatch.setattr(against_ebmkit, "STEPS_AT_TEST", 20)
    return against_ebmkit


WHAT = ("seconds of training", "MMD^2", "held-out log-likelihood", "KL to the truth")


def test_our_side_learns_and_is_judged(against):
    """Three hundred iterations bring persistent chains most of their way to the moons."""
    data = against.MOONS.sample(against.TRAIN, training.seeded(0))
    fresh = against.MOONS.sample(1000, training.seeded(1))
    start, later = (against.ours_cd(data, 0, iterations=n, K=5, step_size=0.02) for n in (1, 300))
    for kind in start.samples:
        before, after = (against.metrics.mmd(t.samples[kind], fresh, 0.5)[0] for t in (start, later))
        assert after < 0.7 * before
    drl = against.ours_drl(data, 0, iterations=2, K=2)
    assert drl.samples["progressive"].shape == (1000, 2)
    names = {row.name for row in against.judge("ours, DRL", drl, 0, "smoke")}
    assert names == {f"{what}, ours, DRL" for what in WHAT}


def test_the_truth_is_judged_as_the_truth(against):
    exact = against.Trained(against.MOONS.energy, {"data": against.MOONS.sample(1000, training.seeded(7))}, 0.0)
    rows = against.judge("x", exact, 0, "smoke")
    values = {row.name: row.value for row in rows}
    assert abs(values["KL to the truth, x"]) < 1e-4
    for row in rows:  # 1,000 points each: the estimate is a few thousandths where nothing is to be found
        assert not row.name.startswith("MMD^2") or abs(row.value) < 0.005


def test_rows_and_their_file_name_the_code_and_no_number_of_another_protocol(against, monkeypatch, tmp_path):
    """With the other library left out: what is judged, kept, averaged and written goes its whole way."""
    monkeypatch.setattr(against, "METHODS", {"ours, CD": against.ours_cd})
    monkeypatch.setattr(against, "KEPT", tmp_path / "kept")
    command = ["x", "--seeds", "0", "1", "--iterations", "1", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(against.peers, "missing", lambda name: {name: "not there"})
    with pytest.raises(SystemExit, match="not there"):
        against.main()
    monkeypatch.setattr(against.peers, "missing", lambda name: {})
    against.main()
    rows, meta = results.load(tmp_path / "out.json")
    assert {row.paper for row in rows} == {None}, "another protocol's number is no paper's"
    assert ".0157" in meta["note"]
    assert [row.seed for row in rows if row.name == "KL to the truth, ours, CD"] == [[0, 1], 0, 1]
    assert {row.preset for row in rows} == {"smoke"}
    assert meta["code"] == against.code_hash()


def test_the_other_side_runs_on_the_same_data(against):
    ebm = pytest.importorskip("ebm", reason="ebmkit is not installed: make compare puts it under build/compare")
    data = against.MOONS.sample(against.TRAIN, training.seeded(0))
    theirs = ebm.datasets.two_moons(20_000, noise=0.1, generator=training.seeded(1))
    assert torch.allclose(theirs.mean(0), data.mean(0), atol=0.05)
    assert torch.allclose(theirs.std(0), data.std(0), rtol=0.03), "another law than the one that both are trained on"
    for method, name in ((against.their_cd, "from noise"), (against.their_drl, "progressive")):
        trained = method(data, 0, iterations=2)
        assert trained.samples[name].shape == (1000, 2)
        assert {row.name for row in against.judge("x", trained, 0, "smoke")} == {f"{what}, x" for what in WHAT}
