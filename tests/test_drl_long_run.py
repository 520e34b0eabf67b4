"""The cells of drl_long_run in this process: a run that is killed among its chains goes on where it stood."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import cells
import pytest
import torch

pytestmark = pytest.mark.usefixtures("in_process")
run_cells = partial(cells.run_cells, "drl_long_run", preset="smoke", device="cpu", dataset="fashion_mnist", beta1=0.5)


@pytest.mark.slow
def test_a_run_killed_among_its_chains_goes_on_with_the_same_rows(tmp_path: Path):
    """After the first number of steps; then neither the pilots nor the first chains are run again."""
    whole, _ = run_cells(None, run_dir=str(tmp_path / "whole"))
    assert whole["optimizer"].defaults["betas"] == (0.5, 0.999)
    space, source = run_cells("runs = {", run_dir=str(tmp_path / "killed"))
    walk = space["walk"]

    def killed_in_the_second(at_level, x_T, K, *others):
        if K == 2:
            raise KeyboardInterrupt
        return walk(at_level, x_T, K, *others)

    space["walk"] = killed_in_the_second
    with pytest.raises(KeyboardInterrupt):
        exec(source, space)
    space["folder"].close()
    left = {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.safetensors")}
    assert {"pilots", "chains-1"} <= set(left)
    assert "chains-2" not in left
    again, _ = run_cells(None, run_dir=str(tmp_path / "killed"), resume=True)
    for part in ("pilots", "chains-1"):
        assert (tmp_path / "killed" / f"{part}.safetensors").stat().st_mtime_ns == left[part], f"{part} ran again"
    told = lambda found: [replace(row, seconds=None) for row in found["rows"]]
    assert told(again) == told(whole)
    assert torch.equal(again["steps"], whole["steps"])
    assert all(torch.equal(x, y) for K in (1, 2) for x, y in zip(again["runs"][K], whole["runs"][K]))
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["finished"]
    assert not (tmp_path / "killed-2").exists()

    # What other weights left is not taken up.
    of, again["of"] = again["of"], {**again["of"], "weights": "others"}
    assert again["kept"]("chains-1", lambda: {"run": (torch.zeros(1),)})["run"][0].numel() == 1
    again["of"] = of
    assert again["kept"]("chains-1", lambda: {"run": (torch.zeros(2),)})["run"][0].numel() == 2
    again["folder"].close()
