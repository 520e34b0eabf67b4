"""The papers' tables beside our rows: `book/papers/*.toml` hold what a paper prints, results what we ran.

A table has `columns`, a `note` with its protocol, rows of other works (`quoted`), and rows of the paper itself. Each of
those names the rows of ours that answer it (`ours`; by the end of their protocol, `at`, where names are the same), the
command that would run it, and why it was not run or how ours differs.
"""

from __future__ import annotations

import html
import re
import tomllib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from book.execution import Outcome
from book.project import Project, raw
from ebmlib.page import results, shown

OURS = ("ours", "not run, or what differs", "command")  # behind the paper's own columns
html_table = partial(shown.as_html, kind="ebm-paper-table")  # of cells that are HTML


@dataclass(frozen=True)
class Rows:
    """Every row that prose and tables may quote, by (notebook, name, dataset): the committed ones first, then quick."""

    found: dict[tuple[str, str, str], list]
    complete: bool  # whether every notebook's page was made at quick: then a row that is missing is an error
    seeds: dict[tuple[str, str, str], list] = field(default_factory=dict)  # those of each seed behind the first mean

    def of(self, notebook: str, name: str, dataset: str, at: str = "") -> list:
        """Those of one name whose protocol ends with `at`; LookupError where a complete book has none."""
        rows = [row for row in self.found.get((notebook, name, dataset), []) if row.protocol.endswith(at)]
        if not rows and self.complete:
            raise LookupError(f"the book shows {name!r} of {notebook} on {dataset!r} {at}, and no run made such a row.")
        return rows


def committed_files(project: Project) -> list[Path]:
    return sorted((project.root / "data" / "results").glob("*.json"))


def own_rows(outcome: Outcome) -> list:
    """The rows that a page's run made."""
    if outcome.notebook is None or results.MIME not in outcome.notebook.read_text(encoding="utf-8"):
        return []
    return results.read(outcome.notebook)


def of_each_seed(mean, rows: list) -> list:
    """The rows of single seeds that a mean was taken over; [] for a row of one seed."""
    alike = lambda row: (row.name, row.dataset, row.protocol, row.preset)
    seeds = mean.seed if isinstance(mean.seed, list) else []
    return [row for row in rows if row.seed in seeds and alike(row) == alike(mean)]


def collect(project: Project, outcomes: list[Outcome]) -> Rows:
    """Committed rows as means over their seeds, then those of the build's own executions that are not the same."""
    found: dict[tuple[str, str, str], list] = {}
    seeds: dict[tuple[str, str, str], list] = {}
    for path in committed_files(project):
        loaded = results.load(path)[0]
        for row in results.summary(loaded):
            found.setdefault((path.stem, row.name, row.dataset), []).append(row)
            seeds.setdefault((path.stem, row.name, row.dataset), of_each_seed(row, loaded))
    for outcome in outcomes:
        for row in own_rows(outcome):
            found.setdefault((outcome.plan.name, row.name, row.dataset), []).append(row)
    complete = project.preset == "quick" and all(outcome.error is None for outcome in outcomes)
    return Rows(found, complete, seeds)


def load(folder: Path) -> list[dict]:
    """The papers' tables by the `order` of their files; ValueError names the first row that has a wrong shape."""
    papers = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.toml"))]
    for paper, table in [(one, table) for one in papers for table in one["table"]]:
        width, rows, where = len(table["columns"]), table.get("row", []), f"{paper['title']}, {table['source']}"
        for name, *values in [*table.get("quoted", []), *([row["name"], *row["values"]] for row in rows)]:
            if len(values) != width:
                raise ValueError(f"{where}: the row {name!r} has {len(values)} values, not {width}.")
        for name in [row["name"] for row in rows if not row.get("ours") and not row.get("why")]:
            raise ValueError(f"{where}: the row {name!r} has neither a row of ours nor a reason.")
    return sorted(papers, key=lambda paper: paper["order"])


def page(project: Project, rows: Rows) -> str:
    """All tables as Markdown; LookupError where a table names a row of ours that no run made."""
    lines: list[str] = []
    for paper in load(project.root / "book" / "papers"):
        lines += [f"## {paper['title']}", "", f"{{cite:t}}`{paper['cite']}`. {paper.get('note', '')}".rstrip(), ""]
        for table in paper["table"]:
            lines += [f"### {table['source'][0].upper()}{table['source'][1:]}: {table['title']}", ""]
            lines += [table["note"], ""] if table.get("note") else []
            lines += [raw(_table(table, rows)), ""]
    return "\n".join(lines)


def _table(table: dict, rows: Rows) -> str:
    parts = []
    if table.get("row"):
        answered = [_answer(row, rows) for row in table["row"]]
        told = [k for k in range(len(OURS)) if any(answer[k] for answer in answered)]  # columns that are not empty
        theirs = [[*map(html.escape, (row["name"], *row["values"]))] for row in table["row"]]
        body = [[*row, *(answer[k] for k in told)] for row, answer in zip(theirs, answered)]
        titles = ("row", *table["columns"], *(OURS[k] for k in told))
        parts.append(html_table(titles, body, table["title"], words=len(told)))
    if table.get("quoted"):
        body = [[html.escape(cell) for cell in quoted] for quoted in table["quoted"]]
        count = f"{len(body)} row{'s' * (len(body) > 1)} of other works"
        inside = html_table(("row", *table["columns"]), body, f"{table['title']}, other works")
        parts.append(f"<details><summary>{count}</summary>{inside}</details>")
    return "".join(parts)


def _answer(row: dict, rows: Rows) -> list[str]:
    ours = [line for asked in row.get("ours", []) for line in _answers(asked, rows)]
    # A line breaks before a parameter, not within it.
    command = re.sub(r"-p \S+ \S+", r'<span class="ebm-whole">\g<0></span>', html.escape(row.get("command", "")))
    command = f"<code>{command}</code>" if command else ""
    return ["<br>".join(ours), html.escape(row.get("why", "")), command]


def _answers(asked: dict, rows: Rows) -> list[str]:
    """HTML for each row of ours that was asked for: value, preset, seeds, data set."""
    found = rows.of(asked["notebook"], asked["name"], asked["dataset"], asked.get("at", ""))
    # each_seed: for rows whose seeds are so far apart that a mean describes none of them.
    each = rows.seeds.get((asked["notebook"], asked["name"], asked["dataset"]), []) if asked.get("each_seed") else []
    text = lambda row: ", ".join(map(value, each)) if each and isinstance(row.seed, list) else value(row)
    number = lambda row: f"<strong>{html.escape(text(row))}</strong>"
    about = lambda row: html.escape(f"{row.name}; {row.dataset}; {taken(row, found)}")
    return [f'{number(row)} <small class="ebm-results-note">{about(row)}</small>' for row in found]


def value(row) -> str:
    """A row's value with its standard error and unit."""
    return f"{results.quantity(row.value, row.se)} {row.unit}".strip()


def taken(row, among=()) -> str:
    """At which preset, and over how many seeds where there are several.

    Where a row in `among` differs in the protocol's first words, which hold the settings, these come before the preset.
    """
    several = isinstance(row.seed, list) and len(row.seed) > 1
    own, *others = (r.protocol.partition(";")[0] for r in (row, *among) if r.preset == row.preset)
    settings = f"{own}, " if any(other != own for other in others) else ""
    return f"{settings}preset {row.preset}" + (f", {len(row.seed)} seeds" if several else "")


def sentence(row, among=()) -> str:
    """A row in one line of Markdown: name, value, what it was taken on, and the paper's number where it has one."""
    place = f" ({row.source})" if row.source else ""
    paper = "" if row.paper is None else f"; the paper: {row.paper}{place}"
    return f"{row.name}: **{value(row)}** ({row.dataset}, {taken(row, among)}){paper}"
