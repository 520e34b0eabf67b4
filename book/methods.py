"""What "Which method should I use?" shows of methods_toy: its figure of the longer runs, and who is closest."""

from __future__ import annotations

import math
from itertools import takewhile
from pathlib import Path

from book.execution import Outcome
from book.papers import Rows, taken
from book.project import reprinted

KL, MMD = MEASURES = "KL to the truth", "MMD^2 of samples"
FIGURE = "fig-methods-rows"
Found = dict[str, dict[tuple[str, str], object]]  # {method: {(target, measure): row}}


def substitutions(rows: Rows, outcomes: list[Outcome], assets: Path) -> dict[str, str]:
    """{{ methods_source }}, {{ methods_figure }} and {{ methods_best }}; a sentence instead where no run made rows.

    The figure is written into `assets`.
    """
    found = _by_method(rows)
    if not found:
        nothing = "This build has no rows of {doc}`the comparison <../notebooks/methods_toy>`."
        return {"methods_source": nothing, "methods_figure": "", "methods_best": ""}
    targets = list(dict.fromkeys(target for method in found.values() for target, _ in method))
    any_row = next(iter(next(iter(found.values())).values()))
    notebook = next((outcome.notebook for outcome in outcomes if outcome.plan.name == "methods_toy"), None)
    return {
        "methods_source": f"{taken(any_row)}, {any_row.device}",
        "methods_figure": reprinted(notebook, FIGURE, assets / "methods-rows.png", "ebm-methods", "_assets/"),
        "methods_best": "\n".join(_best(found, target) for target in targets),
    }


def _by_method(rows: Rows) -> Found:
    """The rows of the longest preset, methods as the chapter has them."""
    of_chapter = {key: found for key, found in rows.found.items() if key[0] == "methods_toy"}
    presets = {row.preset for found in of_chapter.values() for row in found}
    preset = "paper" if "paper" in presets else next(iter(presets), None)
    methods: Found = {}
    for (_, name, target), found in of_chapter.items():
        measure, _, method = name.partition(", ")
        row = next((row for row in found if row.preset == preset), None)
        if measure in (*MEASURES, "diverged") and row is not None and method != "data":
            methods.setdefault(method, {})[target, measure] = row
    return methods


def _best(found: Found, target: str) -> str:
    """Who is closest to a target by each measure, among the methods that finished with every seed, and who did not."""
    lost = {method: at[target, "diverged"] for method, at in found.items() if (target, "diverged") in at}
    lost = {method: row for method, row in lost.items() if row.value}
    said = []
    for measure, what in ((KL, "as a density"), (MMD, "in its samples")):
        rows = {m: at[target, measure] for m, at in found.items() if (target, measure) in at and m not in lost}
        if not rows:
            continue
        first, *rest = sorted(rows, key=lambda m: rows[m].value)
        tied = list(takewhile(lambda m, of=rows[first], rows=rows: _within_two_errors(rows[m], of), rest))
        names = " and ".join(f"*{m}*" for m in (first, *tied)) + ", within two standard errors" * bool(tied)
        said.append(f"Closest {what}: {names}" + "".join(f"; then *{m}*" for m in rest[len(tied) :][:1]) + ".")
    if lost:
        said.append("Lost seeds: " + ", ".join(f"*{m}* ({_share(row)})" for m, row in lost.items()) + ".")
    return f"- **{target}**. {' '.join(said)}"


def _share(row) -> str:
    """How many of a row's seeds were lost, from the mean over them."""
    seeds = len(row.seed) if isinstance(row.seed, list) else 1
    return f"{round(seeds * row.value)} of {seeds}"


def _within_two_errors(one, other) -> bool:
    """Whether two rows differ by less than two standard errors of their difference."""
    return abs(one.value - other.value) < 2 * math.hypot(one.se or 0.0, other.se or 0.0)
