"""The first cells of langevin_toy in this process: what it has no use for is refused, or said to be unused."""

import json
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[1]


def first_cells(**given) -> None:
    """The parameters, the imports and the settings, the checks; a run that stops, stops there."""
    cells = json.loads((ROOT / "notebooks" / "langevin_toy.ipynb").read_text())["cells"]
    parameters, *rest = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][:3]
    namespace: dict = {}
    exec(parameters, namespace)
    namespace |= {"preset": "smoke", "device": "cpu", **given}
    with matplotlib.rc_context():
        for source in rest:
            exec(source, namespace)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"resume": True}, "resume = True: langevin_toy trains nothing and keeps no runs, so only False is allowed"),
        ({"checkpoint": "a.safetensors"}, "checkpoint = 'a.safetensors': langevin_toy reads none, so only None is "),
        ({"dataset": "rings"}, "dataset = 'rings': langevin_toy reads none, so only None is allowed"),
        ({"step": 2.0}, "step = 2: allowed is a number below 2, ULA's stability limit in units of s^2"),
    ],
)
def test_what_it_has_no_use_for_is_refused(given, sentence):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the sentence is compared below
        first_cells(**given)
    assert str(caught.value).startswith(sentence)


def test_a_run_dir_is_taken_and_nothing_is_written(tmp_path):
    """The book's builder passes one to every notebook."""
    first_cells(run_dir=str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
