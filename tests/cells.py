"""The code cells of a notebook, run in this process; the fixture `in_process` cleans up behind them."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def code_cells(notebook: str) -> list[str]:
    """The sources of its code cells; the first holds the parameters."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cells(notebook: str, until: str | None, **given) -> tuple[dict, str]:
    """The globals after the code cells before the first that holds `until`, and its source; None runs all of them."""
    parameters, *rest = code_cells(notebook)
    namespace: dict = {}
    exec(parameters, namespace)
    namespace |= given
    for source in rest:
        if until is not None and until in source:
            return namespace, source
        exec(source, namespace)
    if until is not None:
        raise LookupError(f"no cell holds {until}")
    return namespace, ""
