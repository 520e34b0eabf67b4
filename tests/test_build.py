"""The book's builder on tiny books in a folder of their own: the real papermill, the real Jupyter Book."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import nbformat
import pytest
from docutils.core import publish_doctree
from docutils.nodes import literal
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book import api, build, cards, checks, dependencies, landing, methods, pages, papers
from book.execution import Outcome, Record, execute_all, forecast, jobs_for, over_budget
from book.project import Plan, Project
from book.runner import failing_cell
from ebmlib.page import results

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = 'preset = "quick"  # which preset\nrun_dir = None  # where runs live'
PICTURE, ALT = "from PIL import Image\nImage.new('L', (4, 4))", 'One dot: "black".'
# Each execution leaves a mark, so that a test can count them.
MARK = "with open(f'{marks}.txt', 'a') as file:\n    file.write('x')"


def write_notebook(root: Path, name: str, *code: str) -> None:
    cells = [
        new_markdown_cell(f"# The {name} page\n\nWith a first paragraph."),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(MARK.replace("{marks}", name)),
        *[new_code_cell(source) for source in code],
    ]
    for k, cell in enumerate(cells):
        cell["id"] = f"cell-{k}"
        if cell["source"].startswith("from PIL"):
            cell["metadata"]["mystnb"] = {"figure": {"name": "fig-one", "caption": "A dot."}, "image": {"alt": ALT}}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (root / "notebooks").mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=kernel), root / "notebooks" / f"{name}.ipynb")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def executions(root: Path, name: str) -> int:
    path = root / f"{name}.txt"
    return len(path.read_text()) if path.exists() else 0


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two notebooks; `one` reaches toy/a.py and by it toy/b.py, which names toy/table.txt. Nothing reaches toy/c.py."""
    write(
        tmp_path,
        {
            "requirements.lock": "nothing==1.0\n",
            "toy/__init__.py": '"""A toy."""\n',
            "toy/a.py": "from toy.b import double\n\n\ndef four():\n    return double(2)\n",
            "toy/b.py": 'TABLE = "table.txt"\n\n\ndef double(x):\n    """Twice x."""\n    return 2 * x\n',
            "toy/c.py": "unused = 1\n",
            "toy/table.txt": "1 2 3\n",
            "toy/other.txt": "4 5 6\n",
            "data/set.txt": "data\n",
            "data/results/README": "",
            "book/notebooks.toml": 'total = 100\n[one]\nlimit = 60\nfiles = ["data/*.txt"]\n[two]\nlimit = 30\n',
        },
    )
    write_notebook(tmp_path, "one", "from toy import a\nprint(a.four())")
    write_notebook(tmp_path, "two", "print('two', preset, run_dir)")
    return Project(tmp_path, package="toy")


def parts(project: Project, name: str = "one") -> dict[str, str]:
    plan = next(plan for plan in project.plans() if plan.name == name)
    return dependencies.fingerprint(project, plan)


NEUTRAL = {
    "the same text again": lambda root: os.utime(root / "toy" / "b.py", (0, 0)),
    "a docstring": lambda root: edit(root / "toy/b.py", "Twice x.", "Two times x."),
    "a comment": lambda root: edit(root / "toy/b.py", "    return 2", "    # doubled\n    return 2"),
    "a module that nothing reaches": lambda root: edit(root / "toy/c.py", "1", "2"),
    "a file that nothing names": lambda root: edit(root / "toy/other.txt", "4", "5"),
    "a cell's id": lambda root: edit(root / "notebooks/one.ipynb", "cell-3", "cell-9"),
}
TELLING = {
    "toy/b.py": lambda root: edit(root / "toy/b.py", "2 * x", "3 * x"),
    "toy/a.py": lambda root: edit(root / "toy/a.py", "double(2)", "double(3)"),
    "toy/table.txt": lambda root: edit(root / "toy/table.txt", "1", "7"),
    "data/set.txt": lambda root: edit(root / "data/set.txt", "data", "other data"),
    "data/new.txt": lambda root: write(root, {"data/new.txt": "new"}),
    "requirements.lock": lambda root: edit(root / "requirements.lock", "1.0", "1.1"),
    "the notebook": lambda root: edit(root / "notebooks/one.ipynb", "print(a.four())", "print(a.four() + 1)"),
    "toy/c.py": lambda root: edit(root / "toy/a.py", "from toy", "import toy.c\nfrom toy"),
}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("what", TELLING)
def test_what_may_change_an_output_changes_the_fingerprint(project: Project, what: str):
    before, other = parts(project), parts(project, "two")
    smoke = parts(replace(project, preset="smoke"))
    assert dependencies.changed(before, smoke) == ["its parameters"]
    TELLING[what](project.root)
    assert what in dependencies.changed(before, parts(project))
    assert what == "requirements.lock" or parts(project, "two") == other


def test_imports_inside_functions_and_of_packages_are_followed(tmp_path: Path):
    files = dict.fromkeys(("toy/__init__.py", "toy/nets/__init__.py", "toy/core.py", "toy/last.py", "toy/never.py"), "")
    files["toy/nets/deep.py"] = "from toy.core import base\nfrom toy.nets import side\n"
    files["toy/nets/side.py"] = "def late():\n    import toy.last as last\n    return last\n"
    write(tmp_path, files)
    write_notebook(tmp_path, "x", "%matplotlib inline\nfrom toy.nets.deep import base", "this does not parse")
    code = dependencies.notebook_code(tmp_path / "notebooks" / "x.ipynb")
    reached = {str(path.relative_to(tmp_path)) for path in dependencies.reached_modules(tmp_path, "toy", code)}
    wanted = ["__init__", "nets/__init__", "nets/deep", "nets/side", "core", "last"]
    assert reached == {f"toy/{name}.py" for name in wanted}


DISAGREE = {
    r"three\.ipynb has no entry": lambda root: write_notebook(root, "three"),
    r"two\.ipynb is in book/notebooks\.toml only": lambda root: (root / "notebooks/two.ipynb").unlink(),
    r"sets datset in notebooks/two\.ipynb, whose parameters are preset, run_dir": lambda root: edit(
        root / "book/notebooks.toml", "limit = 30", 'limit = 30\nparameters = {datset = "x"}'
    ),
}


@pytest.mark.parametrize("said", DISAGREE)
def test_table_and_notebooks_must_agree(project: Project, said: str):
    DISAGREE[said](project.root)
    with pytest.raises(ValueError, match=said):
        project.plans()


def test_notebooks_run_when_something_changed_and_only_then(project: Project):
    said: list[str] = []

    def run() -> tuple[list[Outcome], int, int]:
        said.clear()
        outcomes = execute_all(project, project.plans(), 2, said.append)
        return outcomes, executions(project.root, "one"), executions(project.root, "two")

    outcomes, *counts = run()
    assert counts == [1, 1]
    assert all(outcome.executed and outcome.error is None for outcome in outcomes)
    text = outcomes[0].notebook.read_text()
    assert '"4\\n"' in text
    assert str(project.root) not in outcomes[1].notebook.read_text(), "a page must not show a machine's path"
    assert 20 < outcomes[0].record.memory < 4000
    assert [line[:8] for line in said] == ["2 of 2 n", "[1 of 2]", "[2 of 2]"]
    assert 1 < outcomes[0].record.cpu < 60

    for change in NEUTRAL.values():
        change(project.root)
    _, *counts = run()
    assert counts == [1, 1]
    assert said[0] == "None of 2 notebooks has to run."
    assert [line.split("] ")[1].split(" (")[0] for line in said[1:]] == ["one: unchanged", "two: unchanged"]

    TELLING["toy/b.py"](project.root)
    outcomes, *counts = run()
    assert counts == [2, 1]
    assert '"6\\n"' in outcomes[0].notebook.read_text()
    assert any("one: " in line and "because of toy/b.py" in line for line in said)

    # A failure is named, stops nothing else, keeps the last good execution, and is tried again.
    write_notebook(project.root, "one", "fine = 1", "# a comment\nraise ValueError('the step\\nis too long')")
    TELLING["requirements.lock"](project.root)
    outcomes, *counts = run()
    assert counts == [3, 2]
    message = "in cell 5 (`# a comment`): ValueError: the step is too long"
    assert outcomes[0].error == message
    assert f"one: FAILED {message}" in "\n".join(said)
    assert '"6\\n"' in outcomes[0].notebook.read_text()
    assert outcomes[1].error is None
    assert failing_cell(project.executions / "one.failed.ipynb")[0] == 5
    _, *counts = run()
    assert counts == [4, 2]
    assert not (project.root / "runs").exists()


def test_a_kernel_that_dies_is_named_with_the_last_words(project: Project):
    write_notebook(project.root, "two", "import os\nos._exit(3)")
    plan = [plan for plan in project.plans() if plan.name == "two"]
    (outcome,) = execute_all(project, plan, 1, lambda line: None)
    assert outcome.notebook is None
    assert "DeadKernelError" in outcome.error or "Kernel died" in outcome.error


# Imported by every Python at its start: the first kernel that starts in the marker's folder dies as one does whose port
# was taken.
DIES_ONCE = """
import os, pathlib, sys
marker = pathlib.Path(os.environ["DIES_ONCE"])
if "ipykernel_launcher" in sys.orig_argv and len(list(marker.iterdir())) < int(os.environ["DEATHS"]):
    (marker / str(os.getpid())).touch()
    os._exit(1)
"""


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_kernel_that_dies_before_the_first_cell_is_started_once_more(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deaths: int
):
    write(tmp_path, {"site/sitecustomize.py": DIES_ONCE})
    (tmp_path / "deaths").mkdir()
    own = {"PYTHONPATH": tmp_path / "site", "DIES_ONCE": tmp_path / "deaths", "DEATHS": deaths}
    for name, value in own.items():
        monkeypatch.setenv(name, str(value))
    (outcome,) = execute_all(project, [plan for plan in project.plans() if plan.name == "two"], 1, lambda line: None)
    assert len(list((tmp_path / "deaths").iterdir())) == deaths
    assert outcome.error is None if deaths == 1 else "Kernel died before replying" in outcome.error
    assert executions(project.root, "two") == 2 - deaths


@pytest.fixture
def tiny_book(project: Project) -> Project:
    """The project as a book with the real settings, one of whose pages opens with a picture."""
    root = project.root
    write_notebook(root, "one", "from toy import a\nprint(a.four())", PICTURE)
    edit(root / "book/notebooks.toml", "[two]", 'opening = "fig-one"\n[two]')
    shutil.copy(ROOT / "_config.yml", root)
    shutil.copytree(ROOT / "book" / "_assets", root / "book" / "_assets", ignore=shutil.ignore_patterns("mathjax"))
    toc = "format: jb-book\nroot: book/index\nparts:\n  - caption: Runs\n    chapters:\n"
    toc += "      - file: notebooks/one\n      - file: notebooks/two\n"
    index = "# Tiny\n\nSee {doc}`../notebooks/one` and [the other](../notebooks/two.ipynb).\n"
    index += "\n## toy.b\n\n{{ api_b }}\n"
    write(root, {"_toc.yml": toc, "book/index.md": index, "book/references.bib": ""})
    return project


def test_the_book_is_built_strictly_and_swapped_in_only_when_it_is_whole(tiny_book: Project):
    said: list[str] = []
    root, served = tiny_book.root, tiny_book.pages
    assert build.build(tiny_book, say=said.append) == 0
    one = served / "notebooks" / "one.html"
    assert "The one page" in one.read_text()
    assert "Stale page" not in one.read_text()
    text = one.read_text().partition("<article")[2]
    picture = text.index("one-opening.png")
    assert text.index("With a first paragraph") < picture < text.index('class="highlight')
    assert text.count('alt="One dot: &quot;black&quot;."') == 2
    assert re.findall("Fig. [0-9]+", re.sub("<[^>]*>", "", text)) == ["Fig. 1", "Fig. 1"], "a link and the caption"
    assert checks.external_requests(served) == checks.dead_links(served) == []
    assert said[-1].startswith(tuple("0123456789"))
    assert "slowest when last executed: " in said[-1]

    assert build.build(tiny_book, say=said.append) == 0
    assert "pages unchanged" in said[-2]

    # A docstring reaches its page, and executes no notebook.
    assert "Twice x." in (served / "book" / "index.html").read_text()
    NEUTRAL["a docstring"](root)
    assert build.build(tiny_book, say=said.append) == 0
    assert "pages built" in said[-2]
    assert "Two times x." in (served / "book" / "index.html").read_text()
    assert executions(root, "one") == executions(root, "two") == 1

    # A dead reference refuses the new pages; those served stay as they were.
    before = build.tree_digest(served)
    edit(root / "book/index.md", "See", "See {doc}`nowhere`, and")
    with pytest.raises(build.Refused, match="unknown document: 'nowhere'"):
        build.build(tiny_book, say=said.append)
    edit(root / "book/index.md", "{doc}`nowhere`", '<img alt="" src="https://example.org/x.png">')
    with pytest.raises(build.Refused, match=r"requests another host: book/index\.html: https://example\.org/x\.png"):
        build.build(tiny_book, say=said.append)
    assert build.tree_digest(served) == before
    edit(root / "book/index.md", '<img alt="" src="https://example.org/x.png">', "them")

    # A notebook that fails keeps its page, under a banner that names cell and error.
    write_notebook(root, "one", "1 / 0")
    assert build.build(tiny_book, say=said.append) == 1
    text = one.read_text().partition("<article")[2]
    assert text.index("The one page") < text.index("Stale page") < text.index("With a first paragraph")
    assert "ZeroDivisionError: division by zero" in text
    assert said[-1].startswith("FAILED one in cell 4 (`1 / 0`): ZeroDivisionError: division by zero")
    assert "its page is stale" in said[-1]

    # A notebook that never ran has no page; the rest of the book is there.
    shutil.rmtree(tiny_book.executions)
    assert build.build(tiny_book, say=said.append) == 1
    assert not one.exists()
    assert (served / "notebooks" / "two.html").is_file()
    assert "it has no page" in said[-1]


def test_two_builds_at_once_are_refused(project: Project):
    refused = pytest.raises(build.Refused, match="another build at preset quick")
    with build.alone(project), refused, build.alone(project):
        pass


PLAIN = [
    "x' = x - a |grad E|^2 + b_ xi*, for *S and eps_x: 1. is no list, `MLP`s are code.",
    "- (B, *S) -> (B,) in [0, 1] <- `schedule[:-1]` and ``Z``_k; 2 ** 3 \\ 4 :: `",
    "One line.\n\nA second `word`\nwrapped.",
]


@pytest.mark.parametrize("text", PLAIN)
def test_a_docstring_is_shown_as_it_reads(text: str):
    document = publish_doctree(api.as_rst(text), settings_overrides={"report_level": 1, "halt_level": 1})
    words = re.sub(r"``?([^`]+)``?", r"\1", text)
    assert document.astext().split() == words.split()
    assert len(document.children) == len(text.split("\n\n"))
    code = [node.astext() for node in document.findall(literal)]
    assert code == re.findall(r"``?([^`]+)``?", text)


def test_an_indented_paragraph_of_a_docstring_keeps_its_lines():
    document = publish_doctree(api.as_rst("Such as\n\n    a: [1]  # one\n    b: `2`\n\nand no more."))
    assert [node.astext() for node in document] == ["Such as", "a: [1]  # one\nb: `2`", "and no more."]


def test_the_api_page_takes_every_public_name_with_what_is_said_of_it(project: Project):
    source = (
        '# About\n# both.\nPAIR = (1, 2)\nWORD: str = "x"  # trailing\n_hidden = 1\n'
        f'LONG = "{"x" * 80}"\n\nclass Net:\n    """A net."""\n    def push(self):\n        """Push."""\n'
        '    def quiet(self):\n        pass\n    def _own(self):\n        """Own."""\n\ndef f(x):\n    pass\n'
    )
    write(project.root, {"toy/nets/deep.py": source})
    assert api.modules(project) == ["a", "b", "c", "nets.deep"]
    told = api.substitutions(project)["api_nets_deep"]
    for line in (
        ".. automodule:: toy.nets.deep",
        ".. py:data:: PAIR\n   :module: toy.nets.deep\n   :value: (1, 2)\n\n   About both\\.",
        ".. py:data:: WORD\n   :module: toy.nets.deep\n   :value: 'x'\n\n   trailing",
        ".. py:data:: LONG\n   :module: toy.nets.deep\n\n",
        ".. autoclass:: toy.nets.deep.Net\n   :members: push\n",
        ".. autofunction:: toy.nets.deep.f\n",
    ):
        assert line in told, line


def executed(tmp_path: Path, *cells: dict, error: str | None = None) -> Outcome:
    path = tmp_path / "page.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    record = Record(1.0, 1.0, "2026-01-01 12:00", {}, 1.0)
    return Outcome(Plan("page", path), path, record, executed=True, error=error)


def test_set_parameters_are_folded_and_an_unfinished_cell_is_not_published(tmp_path: Path):
    injected = new_code_cell("preset = 'quick'", metadata={"tags": ["injected-parameters"]})
    page = pages.notebook_page(executed(tmp_path, new_markdown_cell("# T"), injected))
    assert page["cells"][1]["metadata"]["tags"] == ["injected-parameters", "hide-input"]
    assert page["cells"][1]["metadata"]["mystnb"]["code_prompt_show"] == "Show what this page sets"
    pending = new_code_cell("1", metadata={"papermill": {"status": "pending"}})
    with pytest.raises(RuntimeError, match="a cell that is pending"):
        pages.notebook_page(executed(tmp_path, pending))


def test_a_figures_cell_shows_the_figure_alone(tmp_path: Path):
    returned = new_output("execute_result", {"text/plain": "(0.0, 1.05)"}, execution_count=1)
    figure = new_output("display_data", {"image/png": "", "text/plain": "<Figure>"})
    outputs = [returned, new_output("stream", text="said\n"), figure]
    plain = new_code_cell("x", outputs=outputs)
    captioned = new_code_cell("x", outputs=outputs, metadata={"mystnb": {"figure": {"name": "f", "caption": "c"}}})
    page = pages.notebook_page(executed(tmp_path, plain, captioned))
    kinds = [[output["output_type"] for output in cell["outputs"]] for cell in page["cells"]]
    assert kinds == [["execute_result", "stream", "display_data"], ["stream", "display_data"]]


def test_buttons_stand_only_where_the_repository_has_an_address():
    own = {"title": "A book", "repository": {"url": ""}, "html": {"use_issues_button": False}, "sphinx": {"config": {}}}
    addresses = ("", "https://github.com/someone/book")
    without, with_address = (pages.configured(copy.deepcopy(own), address) for address in addresses)
    assert not {"launch_buttons", "repository"} & without.keys()
    assert with_address["repository"]["url"] == "https://github.com/someone/book"
    assert with_address["html"]["use_issues_button"] is True
    assert with_address["launch_buttons"]["binderhub_url"]
    assert with_address["html"]["baseurl"] == with_address["sphinx"]["config"]["ogp_site_url"]
    assert with_address["sphinx"]["config"]["ogp_social_cards"]["enable"] is True
    assert without["sphinx"]["config"]["ogp_social_cards"]["enable"] is False


def test_the_site_of_a_repository():
    sites = {"Someone/Book": "Book/", "someone/book.git": "book/", "someone/someone.github.io/": ""}
    for repository, site in sites.items():
        assert cards.site_of(f"https://github.com/{repository}") == f"https://someone.github.io/{site}"
    assert cards.site_of("https://example.org/someone/book") == cards.site_of("") == ""


def test_a_shared_link_shows_a_title_words_and_a_picture(tmp_path: Path):
    """A book of one page, built by Sphinx with the book's extensions: its tags, its card and those of the redirect."""
    source, made = tmp_path / "source", tmp_path / "made"
    (source / "book" / "_assets").mkdir(parents=True)
    shutil.copyfile(ROOT / cards.LOGO, source / cards.LOGO)
    (source / "book" / "index.md").write_text("# A title\n\nAs in {cite:t}`a2020`, then {cite}`b2021,a2020`.\n")
    (source / "book" / "references.md").write_text("# References\n\n```{bibliography}\n```\n")
    entry = "@misc{{{}, title={{T}}, author={{{}, N.}}, year={{{}}}}}\n"
    (source / "all.bib").write_text(entry.format("a2020", "Doe", 2020) + entry.format("b2021", "Roe", 2021))
    (source / "conf.py").write_text(
        "extensions = ['myst_parser', 'sphinxcontrib.bibtex', 'sphinxext.opengraph', 'book.cards']\n"
        "root_doc, bibtex_bibfiles, bibtex_default_style = 'book/index', ['all.bib'], 'unsrt'\n"
        f"globals().update({cards.settings('https://someone.github.io/book/', 'A book')!r})\n"
    )
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(source), str(made)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    (made / "index.html").write_text('<meta http-equiv="Refresh" content="0; url=book/index.html" />')
    cards.tag_first_page(made)
    for page in ("book/index.html", "index.html"):
        tags = dict(re.findall(r'<meta (?:property|name)="([\w:]+)" content="([^"]*)"', (made / page).read_text()))
        assert (tags["og:title"], tags["og:site_name"]) == ("A title", "A book")
        assert tags["og:description"] == tags["description"] == "As in Doe, then."
        assert tags["og:url"] == "https://someone.github.io/book/book/index.html"
        picture = made / tags["og:image"].removeprefix("https://someone.github.io/book/")
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_rows_of_one_preset_are_told_apart_by_their_settings():
    rows = [results.Row("KL", 1.0, protocol=f"step {a}; ten chains", preset="paper") for a in (0.1, 0.2)]
    quick = replace(rows[0], preset="quick", seed=[0, 1])
    found = [*rows, quick]
    assert papers.taken(rows[0]) == "preset paper"
    assert papers.taken(rows[1], found) == "step 0.2, preset paper"
    assert papers.taken(quick, found) == "preset quick, 2 seeds"


def test_prose_quotes_committed_numbers_means_first(project: Project):
    assert pages.committed_numbers(project) == {}
    mean = results.Row("KL, (ours)", 0.05264, 0.00604, dataset="9-gaussians", seed=[0, 1])
    folder = project.root / "data" / "results"
    results.save(folder / "one_toy.json", [mean, replace(mean, value=0.04, se=None, seed=0)])
    key = "one_toy_kl_ours_9_gaussians"
    assert pages.committed_numbers(project) == {key: "0.0526 ± 0.0060", f"{key}_seeds": "0.04"}
    other = [replace(mean, value=0.06, se=None, seed=seed, preset=preset) for seed, preset in ((1, ""), (0, "quick"))]
    rows = [mean, replace(mean, value=0.04, se=None, seed=0), *other]
    results.save(folder / "one_toy.json", rows, overwrite=True)
    assert pages.committed_numbers(project)[f"{key}_seeds"] == "0.04, 0.06", "each seed of the mean, and no other row"


def test_the_results_page_has_the_builds_own_rows_and_the_means_of_the_committed_ones(project: Project):
    source = project.root / "notebooks" / "one.ipynb"
    row = results.Row(name="KL <p|q>", value=0.123456, se=0.0123, paper="none", preset="quick", seed=3)
    values = enumerate((0.1875, 0.3125))
    committed = results.with_means(replace(row, value=value, preset="paper", seed=seed) for seed, value in values)
    bundle = {"text/html": "", results.MIME: [asdict(row)]}
    cell = new_code_cell("show(rows)", outputs=[new_output("display_data", bundle)], execution_count=1)
    ran = executed(project.root, new_markdown_cell("# One"), cell)
    ran = replace(ran, plan=Plan("one", source))
    results.save(project.root / "data/results/one.json", committed)
    never = Outcome(Plan("two", source), None, None, error="in cell 2 (`x`): Error")
    text = pages.results_page(project, [ran, never])
    order = ("## The one page", "<../notebooks/one>`", "build ran it", "0.123 ± 0.012", "Longer runs", "0.250 ± 0.062")
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert text.count("0.250 ± 0.062") == text.count("seeds 0, 1") == 1
    assert "0.1875" not in text  # a single seed, which the file holds
    assert "KL &lt;p|q&gt;" in text
    assert "two" not in text  # no row, no section


def test_committed_rows_of_no_notebook_have_a_section_of_their_own(project: Project):
    folder = project.root / "data" / "results"
    rows = results.with_means([results.Row("MMD^2, ours", value, seed=k) for k, value in enumerate((0.1875, 0.3125))])
    results.save(folder / "one_beside_another.json", rows, title="Beside another library", note="Context only.")
    results.save(folder / "plain.json", rows)
    never = Outcome(Plan("one", project.root / "notebooks" / "one.ipynb"), None, None)
    text = pages.results_page(project, [never])
    assert re.findall(r"^## .*", text, re.M) == ["## Beside another library", "## plain"]
    assert text.index("## Beside") < text.index("Context only.") < text.index("0.250 ± 0.062") < text.index("## plain")


def test_planned_rows_that_are_not_there_say_not_run_with_their_command(project: Project):
    plan = '[one]\n[two_gpu]\npreset = "gpu"\n[three_gpu]\npreset = "gpu"\ntitle = "The third"\n[four]\n'
    never = Outcome(Plan("one", project.root / "notebooks" / "one.ipynb"), None, None)
    assert "not run" not in pages.results_page(project, [never]), "no plan, nothing to say"
    write(project.root, {"benchmarks/plan.toml": plan})
    for name in ("one", "two_gpu"):
        results.save(project.root / f"data/results/{name}.json", [results.Row("KL", 0.5)])
    said = pages.results_page(project, [never]).partition("## Planned and not run")[2].strip().splitlines()
    assert said[2:] == [
        "- **The third**: not run; `make gpu` on a machine with a GPU writes `data/results/three_gpu.json`.",
        "- **The long runs of `four`**: not run; `python benchmarks/results.py --only four` writes "
        "`data/results/four.json`.",
    ]


def test_rows_that_a_notebook_shows_execute_it_again_once_they_are_there(project: Project):
    write_notebook(project.root, "two", 'committed = "results/more.json"\nprint("two_and_more.json")')
    before = parts(project, "two")
    assert not any("json" in name for name in before)
    write(project.root, {"data/results/two.json": "{}", "data/results/more.json": "{}"})
    assert dependencies.changed(before, parts(project, "two")) == ["data/results/two.json"]  # its own
    write_notebook(project.root, "two", 'show_committed("more", preset)')
    now = parts(project, "two")
    edit(project.root / "data/results/more.json", "{}", "{ }")
    assert dependencies.changed(now, parts(project, "two")) == ["data/results/more.json"]


def test_the_budget_names_what_is_over_it_on_a_machine_as_fast_as_the_tables(project: Project):
    def record(cpu: float, calibration: float | None = None) -> Record:
        return Record(9.0, 1, "", {}, cpu, calibration)

    records = {"one": record(61.0), "two": record(29.0)}
    assert over_budget(project, records) == ["one took 61 s; its limit is 60 s."]
    records["two"] = record(45.0)
    total = "All notebooks took 106 s; their limit is 100 s."
    assert over_budget(project, records)[1:] == ["two took 45 s; its limit is 30 s.", total]
    edit(project.root / "book/notebooks.toml", "total = 100", "total = 100\ncalibration = 1.5")
    assert over_budget(project, {"one": record(110.0, 3.0), "two": record(29.0, 1.5)}) == []
    records = {"one": record(110.0, 2.0), "two": record(29.0, 1.5)}
    assert over_budget(project, records)[0] == "one took 82 s; its limit is 60 s."


def test_as_many_run_at_a_time_as_there_are_cores_and_memory_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    for gigabytes, wanted in ((64, 4), (5, 2), (1, 1)):
        monkeypatch.setattr(Path, "read_text", lambda *_, free=gigabytes: f"MemAvailable: {free * 2**20} kB\n")
        assert jobs_for([2048.0] * 8) == wanted
    assert jobs_for([500.0] * 8) == 2
    monkeypatch.setattr(Path, "read_text", lambda *_: "")  # not said: one per core
    assert jobs_for([2048.0] * 3) == 3
    assert forecast([60.0, 600.0, 120.0], [1024.0, 2048.0, 512.0], 2, 9).endswith("about 10 min and 3.0 GB.")
    assert forecast([600.0] * 4, [1024.0] * 4, 2, 9).endswith("about 20 min and 2.0 GB.")


def test_page_checks_see_requests_and_dead_links(tmp_path: Path):
    good = (
        '<a href="https://example.org">out</a><a href="b.html#there">b</a><link rel="canonical" href="https://e.org">'
    )
    write(tmp_path, {"a.html": good, "b.html": '<p id="there">', "_static/theme.html": '<script src="//x.org/s.js">'})
    assert checks.external_requests(tmp_path) == checks.dead_links(tmp_path) == []
    bad = '<script src="https://cdn.org/x.js"></script><p style="background: url(//x.org/y.png)"><style>@import "http://z.org/s"'
    write(tmp_path, {"c.html": bad + '</style><a href="gone.html">x</a><a href="b.html#nowhere">y</a>'})
    write(tmp_path, {"s.css": "@font-face { src: url('https://fonts.org/f.woff') }"})
    loaded = ["c.html: https://cdn.org/x.js", "c.html: //x.org/y.png", "c.html: http://z.org/s"]
    assert checks.external_requests(tmp_path) == [*loaded, "s.css: https://fonts.org/f.woff"]
    assert checks.dead_links(tmp_path) == ["c.html: gone.html", "c.html: b.html#nowhere"]


def test_a_progress_bar_that_clears_itself_leaves_nothing_on_the_page():
    def stream(name: str, text: str) -> dict:
        return {"output_type": "stream", "name": name, "text": text}

    shown = {"output_type": "display_data", "data": {"text/plain": "x"}, "metadata": {}}
    bar = [stream("stderr", "\r  0%|  | 0/9"), stream("stderr", "\r 50%|= | 4/9"), stream("stderr", "\r        \r")]
    kept = pages.as_terminal([*bar, stream("stdout", "9 iterations\n"), stream("stderr", "\r"), shown])
    assert kept == [stream("stdout", "9 iterations"), shown]
    assert pages.as_terminal([stream("stdout", "one\n"), stream("stdout", "two\n")]) == [stream("stdout", "one\ntwo")]


TABLE = """
title = "A paper"
cite = "someone2020"
order = {order}

[[table]]
source = "Table {order}"
title = "FID < 10"
columns = ["FID", "IS"]
quoted = [["another work", "20.1", "5.0"]]

[[table.row]]
name = "with noise"
values = ["9.60", ""]
ours = [{{ notebook = "one", name = "FID", dataset = "toy" }}]
command = "papermill one.ipynb out.ipynb"
"""


def test_the_papers_rows_stand_beside_ours_committed_ones_first(tmp_path: Path):
    write(tmp_path, {"book/papers/b.toml": TABLE.format(order=2), "book/papers/a.toml": TABLE.format(order=10)})
    row = results.Row("FID", 4.0, 0.1, dataset="toy", preset="paper")
    project = Project(tmp_path)
    (tmp_path / "data" / "results").mkdir(parents=True)
    committed = results.with_means([replace(row, value=4.0 + seed, seed=seed) for seed in (0, 1)])
    results.save(tmp_path / "data" / "results" / "one.json", committed)
    quick = replace(row, value=7.0, preset="quick", seed=0)
    shown = new_output("display_data", {results.MIME: [asdict(quick)], "text/html": "x"})
    outcome = executed(tmp_path, new_code_cell("results.show(rows)", outputs=[shown], execution_count=1))
    outcome = replace(outcome, plan=replace(outcome.plan, name="one"))
    rows = papers.collect(project, [outcome])
    assert [found.value for found in rows.of("one", "FID", "toy")] == [4.5, 7.0]
    text = papers.page(project, rows)
    assert text.index("Table 2: FID < 10") < text.index("Table 10")
    line = re.search(r"<tr><th scope=.row.>with noise.*?</tr>", text)[0]
    assert line.index("4.50 ± 0.50") < line.index("preset paper, 2 seeds") < line.index("7.00 ± 0.10")
    assert "<code>papermill one.ipynb out.ipynb</code>" in line
    assert "<summary>1 row of other works" in text
    assert "{cite:t}`someone2020`" in text
    each = TABLE.format(order=2).replace('dataset = "toy"', 'dataset = "toy", each_seed = true')
    write(tmp_path, {"book/papers/b.toml": each})
    line = re.search(r"<tr><th scope=.row.>with noise.*?</tr>", papers.page(project, rows))[0]
    assert "4.50" not in line
    assert line.index("4.00 ± 0.10, 5.00 ± 0.10") < line.index("7.00 ± 0.10")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('["9.60", ""]', '["9.60"]', "'with noise' has 1 values, not 2"),
        ('"20.1", "5.0"', '"20.1"', "'another work' has 1 values, not 2"),
        ("ours = ", "others = ", "neither a row of ours nor a reason"),
    ],
)
def test_a_paper_row_of_wrong_shape_or_without_an_answer_is_refused(tmp_path: Path, old: str, new: str, named: str):
    write(tmp_path, {"a.toml": TABLE.format(order=1).replace(old, new)})
    with pytest.raises(ValueError, match=named):
        papers.load(tmp_path)


def test_cards_table_and_contents_have_the_papers_in_one_order():
    """The `order` of a paper's file is that of its card and of its tables."""
    root = Path(__file__).resolve().parents[1]
    found = {paper["cite"]: paper["card"]["page"] for paper in papers.load(root / "book" / "papers")}
    first_page, contents = (root / "book" / "index.md").read_text("utf-8"), (root / "_toc.yml").read_text("utf-8")
    listed = re.findall(r"^\| \*\*.*?\{cite:p\}`(\w+)`", first_page, re.MULTILINE)
    assert listed == list(found)
    places = [contents.index(page.removeprefix("../").removesuffix(".html")) for page in found.values()]
    assert places == sorted(places)


def test_a_page_opens_with_the_rows_that_the_table_names(tmp_path: Path):
    row = results.Row("nats", -1.139, 0.015, unit="nats", dataset="toy", preset="paper", seed=[0, 1], paper=-1.5)
    rows = papers.Rows({("one", "nats", "toy"): [replace(row, source="section 5"), row]}, complete=True)
    first = pages.headline("one", {"headline": [["nats", "toy"]]}, rows)
    source = pages.notebook_page(executed(tmp_path, new_markdown_cell("# T\n\nText.")), first)["cells"][0]["source"]
    said = "- nats: **-1.139 ± 0.015 nats** (toy, preset paper, 2 seeds); the paper: -1.5 (section 5)"
    assert source.index("# T") < source.index("Text.") < source.index(said)
    assert pages.headline("one", {"headline": [["gone", "toy"]]}, papers.Rows({}, complete=False)) == ""


def test_a_page_without_its_opening_picture_is_an_error_once_all_have_run(tmp_path: Path):
    about = {"figure": {"name": "fig-x"}}
    outcome = executed(
        tmp_path, new_code_cell("x", outputs=[new_output("stream", text="")], metadata={"mystnb": about})
    )
    for name in ("fig-x", "fig-gone"):
        assert pages.opening(outcome, name, tmp_path, papers.Rows({}, complete=False)) == ""
        with pytest.raises(LookupError, match=f"opens page with {name}"):
            pages.opening(outcome, name, tmp_path, papers.Rows({}, complete=True))


def test_a_row_of_ours_that_no_run_made_is_an_error_once_all_have_run(tmp_path: Path):
    write(tmp_path, {"book/papers/a.toml": TABLE.format(order=1)})
    assert "with noise" in papers.page(Project(tmp_path), papers.Rows({}, complete=False))
    with pytest.raises(LookupError, match="no run made such a row"):
        papers.page(Project(tmp_path), papers.Rows({}, complete=True))


def test_a_paper_row_takes_ours_of_its_own_settings_where_names_are_the_same(tmp_path: Path):
    asked = 'dataset = "toy", at = "T = 1000, K = 0"'
    write(tmp_path, {"book/papers/a.toml": TABLE.format(order=1).replace('dataset = "toy"', asked)})
    row = results.Row("FID", 4.0, dataset="toy", preset="paper", seed=0, protocol="n = 9; T = 1000, K = 0")
    others = (replace(row, value=5.0, protocol=f"n = 9; {of}") for of in ("T = 1000, K = 0, DSM", "T = 6, K = 0"))
    text = papers.page(Project(tmp_path), papers.Rows({("one", "FID", "toy"): [*others, row]}, complete=True))
    line = re.search(r"<tr><th scope=.row.>with noise.*?</tr>", text)[0]
    assert re.findall(r"<strong>(.*?)</strong>", line) == ["4"]


def test_the_methods_page_takes_the_longest_preset_and_ranks_by_each_measure(tmp_path: Path):
    def of(method: str, kl: float | None, mmd: float, preset: str, lost: float = 0.0) -> list[results.Row]:
        row = partial(results.Row, dataset="toy", preset=preset, seed=[0, 1, 2, 3, 4], device="CPU")
        found = [row(f"KL to the truth, {method}", kl, 0.01)] if kl is not None else []
        return [*found, row(f"diverged, {method}", lost), row(f"MMD^2 of samples, {method}", mmd)]

    rows = [*of("data", 0.0, 0.0, "paper"), *of("slow", 0.1, 0.9, "paper"), *of("fast", 0.7, 0.2, "paper")]
    rows += [*of("lost", None, 0.5, "paper", 1.0), *of("slow", 9.0, 0.1, "quick"), *of("near", 0.12, 0.8, "paper")]
    rows += of("rash", 0.01, 0.1, "paper", 0.8)
    found: dict = {}
    for row in rows:
        found.setdefault(("methods_toy", row.name, row.dataset), []).append(row)
    page = methods.substitutions(papers.Rows(found, complete=True), [], tmp_path)
    assert page["methods_source"] == "preset paper, 5 seeds, CPU"
    best, lost = page["methods_best"].split(" Lost seeds: ")
    assert re.findall(r"\*(\w+)\*", best) == ["toy", "slow", "near", "fast", "fast", "near"]
    assert best.index("near*, within two standard errors; then *fast") > 0
    assert lost == "*lost* (5 of 5), *rash* (4 of 5)."
    assert page["methods_figure"] == ""
    assert "no rows of" in methods.substitutions(papers.Rows({}, complete=True), [], tmp_path)["methods_source"]


def test_the_first_page_wants_every_picture_and_number_once_all_notebooks_have_run(tmp_path: Path):
    cards = papers.load(ROOT / "book" / "papers")
    page = landing.substitutions(cards, [], papers.Rows({}, complete=False), tmp_path)["landing"]
    assert page.count("<li>") == page.count("not in this build") == len(cards)
    with pytest.raises(LookupError, match="fig-drl-cifar-opening"):
        landing.substitutions(cards, [], papers.Rows({}, complete=True), tmp_path)
