"""The table of "Which method should I use?", from the rows of methods_toy: the committed ones where there are some."""

from __future__ import annotations

import html
import math
from itertools import takewhile

from book.papers import Rows, html_table, taken
from ebmlib.page import results

MEASURES = ("KL to the truth", "MMD^2 of samples")


def substitutions(rows: Rows) -> dict[str, str]:
    """{{ methods_source }}, {{ methods_best }} and {{ methods_table }}; a sentence instead where no run made rows."""
    found = _by_method(rows)
    if not found:
        nothing = "This build has no rows of {doc}`the comparison <../notebooks/methods_toy>`."
        return {"methods_source": nothing, "methods_best": "", "methods_table": ""}
    targets = list(dict.fromkeys(target for method in found.values() for target, _ in method))
    any_row = next(iter(next(iter(found.values())).values()))
    return {
        "methods_source": f"{taken(any_row)}, {any_row.device}",
        "methods_best": _best(found, targets),
        "methods_table": f"```{{raw}} html\n{_table(found, targets)}\n```",
    }


def _by_method(rows: Rows) -> dict[str, dict[tuple[str, str], object]]:
    """method: {(target, measure): row}, of the longest preset with rows, methods as the chapter has them."""
    of_chapter = {key: found for key, found in rows.found.items() if key[0] == "methods_toy"}
    presets = {row.preset for found in of_chapter.values() for row in found}
    preset = "paper" if "paper" in presets else next(iter(presets), None)
    methods: dict[str, dict[tuple[str, str], object]] = {}
    for (_, name, target), found in of_chapter.items():
        measure, _, method = name.partition(", ")
        row = next((row for row in found if row.preset == preset), None)
        if measure in (*MEASURES, "evaluations", "diverged") and row is not None and method != "data":
            methods.setdefault(method, {})[target, measure] = row
    return methods


def _best(found: dict, targets: list[str]) -> str:
    """Who leads by each measure on each target, in words, with all who are not told from the first."""
    lines = []
    for target in targets:
        said = []
        for measure, what in zip(MEASURES, ("as a density", "in its samples")):
            rows = {m: at[target, measure] for m, at in found.items() if (target, measure) in at}
            stable = {m: row for m, row in rows.items() if not _share_lost(found[m], target)}
            first, *rest = sorted(stable, key=lambda m: stable[m].value)
            tied = list(takewhile(lambda m, of=stable[first], all=stable: _not_told_apart(all[m], of), rest))
            names = " and ".join(f"*{m}*" for m in (first, *tied)) + ", not told apart" * bool(tied)
            behind = "".join(f"; then *{m}*" for m in rest[len(tied) : len(tied) + 1])
            said.append(f"Closest {what}: {names}{behind}.")
        lines.append(f"- **{target}**. {' '.join(said)}")
    return "\n".join(lines)


def _share_lost(rows: dict, target: str) -> float:
    """Share of a method's runs on a target that diverged."""
    return rows[target, "diverged"].value if (target, "diverged") in rows else 0.0


def _not_told_apart(one, other) -> bool:
    """Whether two rows differ by less than two standard errors of their difference."""
    return abs(one.value - other.value) < 2 * math.hypot(one.se or 0.0, other.se or 0.0)


def _table(found: dict, targets: list[str]) -> str:
    keys, body = [(target, measure) for target in targets for measure in MEASURES], []
    titles = ["method", *(f"{target}: {what.replace('^2', '²')}" for target, what in keys), "seconds a training"]
    for method, rows in found.items():
        cells = [results.quantity(rows[key].value, rows[key].se) if key in rows else "diverged" for key in keys]
        lost = [_share_lost(rows, target) for target, _ in keys]
        cells = [f"{cell} ({part:.0%} diverged)" if 0 < part < 1 else cell for cell, part in zip(cells, lost)]
        seconds = [row.seconds for (_, measure), row in rows.items() if measure == "evaluations" and row.seconds]
        cells.append(f"{sum(seconds) / len(seconds):.3g}" if seconds else "")
        body.append([html.escape(cell) for cell in (method, *cells)])
    return html_table(titles, body, "Methods")
