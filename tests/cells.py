"""Notebooks' code cells, run in this process; the fixture `in_process` cleans up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ebmlib.nets.wideresnet import cascade
from ebmlib.page import results
from ebmlib.run import checkpoint, training

ROOT = Path(__file__).resolve().parents[1]


def code_cells(notebook: str) -> list[str]:
    """The sources of its code cells."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cells(notebook: str, until: str | None, **given) -> tuple[dict, str]:
    """The globals after the code cells before the first that holds `until`, and its source; None runs all of them.

    `given` replaces parameters, as papermill does: after the cell that holds them.
    """
    namespace: dict = {}
    for source in code_cells(notebook):
        if until is not None and until in source:
            return namespace, source
        exec(source, namespace)
        if source.startswith("preset: "):
            namespace |= given
    if until is not None:
        raise LookupError(f"no cell holds {until}")
    return namespace, ""


def first_fit(monkeypatch, notebook: str, **given) -> tuple[Callable, object, dict]:
    """What the notebook gives to its first `training.fit`: (step, batches, options). Nothing is trained."""

    class Asked(Exception):
        pass

    def ask(step, batches, **options):
        raise Asked(step, batches, options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", ask)
        with pytest.raises(Asked) as caught:
            run_cells(notebook, None, **given)
    return caught.value.args


def all_rows(monkeypatch, notebook: str, **given) -> list[results.Row]:
    """The rows that the whole notebook shows first: its own. Committed ones follow."""
    shown, show = [], results.show
    with monkeypatch.context() as patch:
        patch.setattr(results, "show", lambda rows, **how: shown.append(rows) or show(rows, **how))
        run_cells(notebook, None, **given)
    return shown[0]


def same(one: dict, other: dict) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def small_drl(path: Path, **more) -> str:
    """A checkpoint as `drl_cifar` writes it, of a tiny net: another size and ladder than the bundled file's."""
    net = {"channels": 1, "width": 4, "multipliers": [1], "blocks": 1, "head": "dense", "spectral": True}
    its = {"T": 2, "K": 3, "b2": 0.01, "variant": "text", "size": 8, "noise": 0.7}
    key = {"net": net, "settings": its, "dataset": "fashion_mnist", **more}
    torch.manual_seed(1)
    return str(checkpoint.save_weights(path, cascade(**net), {"key": key, "iteration": 1234}))
