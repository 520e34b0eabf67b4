"""Stages the book for Jupyter Book: settings, prose, executed notebooks and the generated results page."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from pathlib import Path

import yaml

from book import api, cards, landing, methods, papers, performance, recipes
from book.execution import Outcome
from book.project import Project, raw, read_notebook, reprinted, tags
from ebmlib.page import playground, results

# Beside the package, for literalinclude: pages show the tested code itself. And pages are built again after a change.
SOURCES = ("tests", "benchmarks", "book")
# What the bar of a folded cell says; papermill prints the parameters twice.
PROMPTS = {"parameters": "parameters and their defaults", "injected-parameters": "what this page sets"}
NOT_PAGES = shutil.ignore_patterns("*.py", "*.pyc", "*.toml", "__pycache__", ".*")


def stage(project: Project, outcomes: list[Outcome], folder: Path) -> None:
    """Writes everything that the Sphinx build reads into `folder`, which must not exist."""
    shutil.copytree(project.root / "book", folder / "book", ignore=NOT_PAGES)
    for package in (project.package, *SOURCES):
        for path in sorted((project.root / package).rglob("*.py")):
            copy = folder / path.relative_to(project.root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    notebooks, assets = folder / "notebooks", folder / "book" / "_assets"
    notebooks.mkdir()
    assets.mkdir(exist_ok=True)
    rows, table = papers.collect(project, outcomes), project.table()
    for outcome in outcomes:
        name, entry = outcome.plan.name, table.get(outcome.plan.name, {})
        if outcome.notebook is not None:
            parts = opening(outcome, entry.get("opening", ""), notebooks, rows), headline(name, entry, rows)
            page = notebook_page(outcome, "\n\n".join(filter(None, parts)))
            text = json.dumps(page, ensure_ascii=False, indent=1)
            (notebooks / f"{name}.ipynb").write_text(text + "\n", encoding="utf-8")
    (assets / "langevin-static.js").write_text(playground.static_script(), encoding="utf-8")
    config = configured(yaml.safe_load((project.root / "_config.yml").read_text()), os.environ.get("BOOK_REPOSITORY"))
    for names in (folder / "book").glob("api.md"):
        names.write_text(api.by_room(project, names.read_text(encoding="utf-8")), encoding="utf-8")
    filled_in = committed_numbers(project) | api.substitutions(project) | {"recipes": recipes.table()}
    if (project.root / "book" / "papers").is_dir():
        tables = folder / "book" / "paper_tables.md"
        text = tables.read_text(encoding="utf-8").replace("{{ paper_tables }}", papers.page(project, rows))
        tables.write_text(text, encoding="utf-8")
        filled_in |= methods.substitutions(rows, outcomes, assets)
        filled_in |= landing.substitutions(papers.load(project.root / "book" / "papers"), outcomes, rows, assets)
    if (project.root / "book" / "performance.md").is_file():
        filled_in |= performance.substitutions(project.root / "data" / "benchmarks")
    config["sphinx"]["config"]["myst_substitutions"] = filled_in
    (folder / "_config.yml").write_text(yaml.safe_dump(config))
    contents = (project.root / "_toc.yml").read_text()
    ordered = sorted(outcomes, key=lambda outcome: contents.find(f"notebooks/{outcome.plan.name}"))
    (folder / "book" / "results.md").write_text(results_page(project, ordered), encoding="utf-8")
    toc = yaml.safe_load(contents)
    missing = {f"notebooks/{outcome.plan.name}" for outcome in outcomes if outcome.notebook is None}
    (folder / "_toc.yml").write_text(yaml.safe_dump(without_pages(toc, missing), sort_keys=False))


def configured(config: dict, address: str | None) -> dict:
    """Book settings as built: buttons only where the repository has an address, social cards where its site has one."""
    repository = config.get("repository", {})
    repository["url"] = address or repository.get("url") or ""
    if repository["url"]:
        config["repository"] = repository
        hosts = {"colab_url": "https://colab.research.google.com", "binderhub_url": "https://mybinder.org"}
        config["launch_buttons"] = {"notebook_interface": "jupyterlab", **hosts}
        buttons = ("use_repository_button", "use_issues_button", "use_edit_page_button")
        config["html"] = config.get("html", {}) | dict.fromkeys(buttons, True)
    else:
        config.pop("repository", None)
    site = cards.site_of(repository["url"])
    if site:
        config["html"] = config.get("html", {}) | {"baseurl": site}
    config["sphinx"]["config"] |= cards.settings(site, config["title"])
    config["sphinx"]["config"]["html_js_files"] = ["langevin-static.js"]  # the playground on pages without a kernel
    return config


def committed_numbers(project: Project) -> dict[str, str]:
    """What prose may quote as {{ notebook_result_dataset }}: the first row of that name among the committed ones.

    Means over seeds come first in those files; {{ ..._seeds }} has the numbers of the single seeds in place of a mean.
    An unknown name is a warning, which stops a strict build.
    """
    numbers: dict[str, str] = {}
    for path in papers.committed_files(project):
        rows = results.load(path)[0]
        for row in rows:
            key = re.sub(r"[^a-z0-9]+", "_", f"{path.stem} {row.name} {row.dataset}".lower()).strip("_")
            numbers.setdefault(key, results.quantity(row.value, row.se))
            if each := papers.of_each_seed(row, rows):
                numbers.setdefault(f"{key}_seeds", ", ".join(f"{one.value:.3g}" for one in each))
    return numbers


def without_pages(toc: dict, missing: set[str]) -> dict:
    """The table of contents without the pages in `missing` and without parts that this leaves empty."""
    toc = dict(toc)
    for key in ("chapters", "sections"):
        if key in toc:
            toc[key] = [without_pages(page, missing) for page in toc[key] if page.get("file") not in missing]
    if "parts" in toc:
        parts = [without_pages(part, missing) for part in toc["parts"]]
        toc["parts"] = [part for part in parts if part["chapters"]]
    return toc


def opening(outcome: Outcome, name: str, folder: Path, rows: papers.Rows) -> str:
    """What a page opens with: its figure `name`, written into `folder`, with a link to the place where it is drawn."""
    shown = reprinted(outcome.notebook, name, folder / f"{outcome.plan.name}-opening.png", "ebm-opening")
    if name and not shown and rows.complete:
        raise LookupError(f"book/notebooks.toml opens {outcome.plan.name} with {name}; its run drew no such figure.")
    return shown


def headline(name: str, entry: dict, rows: papers.Rows) -> str:
    """The rows that the builder's table names for a page's opening, the paper's number beside each."""
    asked = [rows.of(name, what, dataset) for what, dataset in entry.get("headline", [])]
    lines = [f"- {papers.sentence(found[0], found)}" for found in asked if found]
    return "\n".join(["```{admonition} What came out", ":class: note", *lines, "```"]) if lines else ""


def notebook_page(outcome: Outcome, first: str = "") -> dict:
    """The executed notebook as the book shows it: `first` behind its first cell's text, a banner on top if stale."""
    notebook = read_notebook(outcome.notebook)
    for cell in notebook["cells"]:
        cell.pop("papermill", None)
        status = cell["metadata"].pop("papermill", {}).get("status", "completed")
        if status != "completed":
            raise RuntimeError(f"{outcome.notebook.name} has a cell that is {status}; it must not be published.")
        if "outputs" in cell:
            cell["outputs"] = as_terminal(cell["outputs"])
        if "figure" in cell["metadata"].get("mystnb", {}):
            cell["outputs"] = [output for output in cell["outputs"] if not _is_bare_text(output)]
        cell["metadata"].pop("execution", None)  # times: the page follows from the contents alone
        if "injected-parameters" in tags(cell):
            cell["metadata"]["tags"] = [*tags(cell), "hide-input"]
        for what in PROMPTS.keys() & set(tags(cell)):
            prompts = {f"code_prompt_{way.lower()}": f"{way} {PROMPTS[what]}" for way in ("Show", "Hide")}
            cell["metadata"]["mystnb"] = cell["metadata"].get("mystnb", {}) | prompts
    notebook["metadata"].pop("papermill", None)
    if first or outcome.error is not None:
        _open(notebook, outcome, first)
    return notebook


def _open(notebook: dict, outcome: Outcome, first: str) -> None:
    """Put `first` behind the text of the first cell that has any, and a banner below its title if the page is stale."""
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    text = cell["source"]
    if outcome.error is not None:
        title, line, rest = text.partition("\n")
        text = f"{title}\n\n{_banner(outcome)}\n{line}{rest}"
    cell["source"] = f"{text}\n\n{first}".strip()


def as_terminal(outputs: list[dict]) -> list[dict]:
    """Neighboring writes to one stream joined, each line as a terminal leaves it: what comes after its last return.

    A progress bar that clears itself leaves nothing behind.
    """
    joined: list[dict] = []
    for output in outputs:
        text = "".join(output["text"]) if output["output_type"] == "stream" else None
        earlier = [k for k, other in enumerate(joined) if text is not None and other.get("name") == output["name"]]
        if earlier:
            joined[earlier[0]]["text"] += text
        else:
            joined.append({**output, "text": text} if text is not None else output)
    for output in joined:
        if output["output_type"] == "stream":
            lines = [line.rpartition("\r")[2].rstrip() for line in output["text"].split("\n")]
            output["text"] = "\n".join(lines).strip("\n")
    return [output for output in joined if output["output_type"] != "stream" or output["text"]]


def _is_bare_text(output: dict) -> bool:
    """What the last plotting call of a figure's cell returned; it would get the caption and name a second time."""
    return output["output_type"] == "execute_result" and set(output["data"]) == {"text/plain"}


def _banner(outcome: Outcome) -> str:
    error = outcome.error.replace("`", "'")
    return (
        "```````{admonition} Stale page\n:class: danger stale\n"
        f"What this page shows was executed on {outcome.record.finished}. Something that it depends on has changed "
        f"since, and the newest execution failed:\n\n``````text\n{error}\n``````\n```````"
    )


def results_page(project: Project, outcomes: list[Outcome]) -> str:
    """The rows that each notebook's run made, then the committed ones of its long runs, then those of no notebook."""
    about = "Every row below was written by a notebook's run, none by hand. "
    about += "The paper's own number stands beside ours where it has one. ± is one standard error."
    lines = ["# All results", "", about, ""]
    for outcome in outcomes:
        tables = _tables(project, outcome)
        if tables:
            name, stale = outcome.plan.name, " That page is stale: its newest execution failed." * bool(outcome.error)
            source = f"From {{doc}}`the notebook {name} <../notebooks/{name}>`.{stale}"
            missing = "Its page is missing: the notebook failed."
            lines += [f"## {_title(outcome)}", "", missing if outcome.notebook is None else source, ""]
        for heading, table in tables:
            lines += [heading, "", raw(table), ""]
    names = {outcome.plan.name for outcome in outcomes}
    for path in papers.committed_files(project):
        if path.stem not in names:
            lines += _section_of(path)
    return "\n".join([*lines, *_not_run(project)])


def _not_run(project: Project) -> list[str]:
    """What the plan of long runs has and `data/results` has not, each with the command that would make it."""
    plan = project.root / "benchmarks" / "plan.toml"
    entries = tomllib.loads(plan.read_text(encoding="utf-8")) if plan.is_file() else {}
    lines = ["## Planned and not run", "", "Nothing below was run: there are no numbers to show.", ""]
    for name, entry in entries.items():
        if not (project.root / "data" / "results" / f"{name}.json").is_file():
            gpu = entry.get("preset") == "gpu"
            command = "make gpu" if gpu else f"python benchmarks/results.py --only {name}"
            how = f"`{command}`{' on a machine with a GPU' * gpu} writes `data/results/{name}.json`"
            title = entry.get("title", f"The long runs of `{name}`")
            lines += [f"- **{title}**: not run; {how}. {entry.get('note', '')}".rstrip()]
    return [*lines, ""] if len(lines) > 4 else []


def _section_of(path: Path) -> list[str]:
    """Committed rows that no notebook made, under the title and with the note that the file brings."""
    rows, meta = results.load(path)
    words = [meta["note"], ""] if "note" in meta else []
    lines = [f"## {meta.get('title', path.stem)}", "", *words, _source(path), ""]
    return [*lines, raw(results.as_html(results.summary(rows))), ""]


def _source(path: Path) -> str:
    return f"Longer runs, as means where there are several seeds (`data/results/{path.name}` holds every seed):"


def _title(outcome: Outcome) -> str:
    """The notebook's own title."""
    titles = (re.match(r"#\s+(.+)", cell["source"]) for cell in read_notebook(outcome.plan.source)["cells"])
    return next((title[1] for title in titles if title), outcome.plan.name)


def _tables(project: Project, outcome: Outcome) -> list[tuple[str, str]]:
    """(what it is, HTML table) of the page's own rows and of the committed ones, where there are any."""
    own = papers.own_rows(outcome)
    tables = [("As this book's build ran it:", results.as_html(own))] if own else []
    committed = project.root / "data" / "results" / f"{outcome.plan.name}.json"
    if committed.is_file():
        tables.append((_source(committed), results.as_html(results.summary(results.load(committed)[0]))))
    return tables
