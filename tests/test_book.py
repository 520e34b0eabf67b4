"""The whole book at preset smoke, the last run's times, the vendored files, and the one lock file."""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from book import api, checks, dependencies, recipes
from book.project import Project, assigned, read_notebook, tags

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED_EXTRAS = ("book", "test", "data")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WITH_A_PLAYGROUND = ("langevin_toy", "ml_toy", "drl_toy", "self_adversarial_toy", "vaebm_toy")


def toc_pages() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]


# The built book


def test_every_page_of_the_contents_is_built(smoke_book: Path):
    missing = [page for page in toc_pages() if not (smoke_book / f"{page}.html").is_file()]
    assert missing == []


def test_the_door_leads_to_the_first_page_and_has_an_icon_of_its_own(smoke_book: Path):
    """A browser asks for /favicon.ico where a page names no icon, and the console tells of the failure."""
    text = (smoke_book / "index.html").read_text("utf-8")
    assert "url=book/index.html" in text
    (icon,) = re.findall(r'<link rel="icon" href="(.*?)">', text)
    assert (smoke_book / icon).is_file()


def test_no_page_asks_another_host_for_anything_and_every_internal_link_leads_somewhere(smoke_book: Path):
    assert checks.external_requests(smoke_book) == checks.dead_links(smoke_book) == []


def test_tables_that_notebooks_write_in_markdown_are_tables(smoke_book: Path):
    pages = {page.stem: page.read_text("utf-8") for page in (smoke_book / "notebooks").glob("*.html")}
    assert re.search(r"<th[^>]*><p>KL to the truth</p></th>", pages["methods_toy"])
    assert [name for name, text in pages.items() if re.search(r"<p>\|[^<]*\|", text)] == []


def test_no_page_shows_where_it_was_built(smoke_book: Path):
    paths = (str(ROOT), str(Path.home()) + "/") if len(ROOT.parts) > 2 else (str(Path.home()) + "/",)
    texts = [*checks.html_pages(smoke_book), *smoke_book.rglob("_sources/**/*.*")]
    assert [str(page) for page in texts if any(path in page.read_text("utf-8") for path in paths)] == []


def test_every_kind_of_result_stands_on_the_results_page(smoke_book: Path):
    text = (smoke_book / "book" / "results.html").read_text("utf-8")
    assert [path.stem for path in NOTEBOOKS if f"notebooks/{path.stem}.html" not in text] == []


def test_every_public_name_of_the_library_stands_on_the_api_page(smoke_book: Path):
    places = checks.page(smoke_book / "book" / "api.html").places
    missing = []
    for module in api.modules(Project(ROOT)):
        name = f"ebmlib.{module}"
        loaded = importlib.import_module(name)
        source = Path(loaded.__file__).read_text("utf-8")
        defined = {key for key, thing in vars(loaded).items() if getattr(thing, "__module__", None) == name}
        constants = {key for node in ast.parse(source).body for key in assigned(node)}
        public = {key for key in defined | constants if not key.startswith("_")}
        assert public <= set(vars(loaded))
        missing += [place for place in (f"{name}.{key}" for key in public) if place not in places]
    assert missing == []


def test_the_table_of_recipes_is_on_its_page(smoke_book: Path):
    text = (smoke_book / "book" / "notation.html").read_text("utf-8")
    (table,) = re.findall(r"<table.*?Gradient clip.*?</table>", text, re.DOTALL)
    assert table.count("<tr") == len(recipes.load()) + 1
    assert 'href="references.html#' in table
    assert "1.9 \\cdot 10^{-2}" in table


def test_no_line_can_begin_with_the_mark_behind_a_formula(smoke_book: Path):
    page = (smoke_book / "book" / "drl.html").read_text()
    assert len(re.findall(r'<span class="ebm-whole"><span class="math[^>]*>[^<]*</span>[,.;:)]+</span>', page)) > 20
    loose = re.sub(r'<span class="ebm-whole">.*?</span>[^<]*</span>', "", page)
    assert not re.search(r'<span class="math notranslate nohighlight">[^<]*</span>[,.;:)]', loose)


def test_pictures_have_a_text(smoke_book: Path):
    """A picture without an alternative text says nothing to a reader who cannot see it."""
    silent = []
    for path in checks.html_pages(smoke_book):
        for picture in re.findall(r"<img\b[^>]*>", path.read_text("utf-8")):
            if not re.search(r'\balt="(?!"|[^"]*_images/)', picture):
                silent.append(f"{path.relative_to(smoke_book)}: {picture[:100]}")
    assert silent == []


# Sources


def test_every_module_stands_once_on_the_api_page():
    text = api.by_room(Project(ROOT), (ROOT / "book" / "api.md").read_text("utf-8"))
    shown = re.findall(r"^### ebmlib\.(\S+)\n\n\{\{ api_(\S+) \}\}$", text, re.MULTILINE)
    assert sorted(module for module, _ in shown) == api.modules(Project(ROOT))
    assert [name for module, name in shown if name != module.replace(".", "_")] == []


def test_every_notebook_stands_in_the_contents_and_the_builders_table():
    plans = Project(ROOT).plans()
    assert {f"notebooks/{plan.name}" for plan in plans} == {page for page in toc_pages() if "notebooks/" in page}
    nothing = [f"{plan.name}: {pattern}" for plan in plans for pattern in plan.files if not any(ROOT.glob(pattern))]
    assert nothing == [], "the table names files that are not there"
    named = {path for plan in plans for pattern in plan.files for path in ROOT.glob(pattern)}
    made = [*ROOT.glob("data/checkpoints/*.safetensors"), *ROOT.glob("data/results/*.json")]
    assert [path.name for path in made if path not in named] == [], "a change of these would execute no notebook again"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_hold_no_outputs_and_typed_parameters(path: Path):
    notebook = read_notebook(path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["source"] for cell in cells if cell["outputs"] or cell["execution_count"]] == []
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    (parameters,) = [cell["source"] for cell in cells if "parameters" in tags(cell)]
    untyped = [type(node).__name__ for node in ast.parse(parameters).body if not isinstance(node, ast.AnnAssign)]
    assert untyped == [], "papermill shows a parameter's type"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_and_playground_has_a_caption_and_a_name_of_its_own(path: Path):
    names = []
    for cell in read_notebook(path)["cells"]:
        draws = cell["cell_type"] == "code" and re.search(r"\bplots\.panels\(|^Playground\(", cell["source"], re.M)
        if draws:
            figure = cell["metadata"].get("mystnb", {}).get("figure", {})
            assert figure.get("caption", "").endswith("."), cell["source"][:80]
            names.append(figure["name"])
    assert len(set(names)) == len(names) > 0


@pytest.mark.parametrize("name", WITH_A_PLAYGROUND)
def test_every_playground_stands_below_two_or_three_things_to_try(name: str):
    cells = read_notebook(ROOT / "notebooks" / f"{name}.ipynb")["cells"]
    placed = [k for k, cell in enumerate(cells) if re.search(r"^Playground\(", cell["source"], re.M)]
    assert placed
    for k in placed:
        text, figure = cells[k - 1]["source"], cells[k]["metadata"]["mystnb"]["figure"]["name"]
        assert f"{{numref}}`{figure}`" in text
        _, tasks = re.split("[Tt]hings to try:", text)
        assert len(re.findall(r"^\d\. ", tasks, re.M)) in (2, 3), text


def test_every_file_of_the_package_is_reached_by_a_module_that_names_it():
    """Else a change of it would not execute any notebook again."""
    trees = [ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "ebmlib").rglob("*.py"))]
    named = dependencies.named_files(ROOT / "ebmlib", trees)
    others = [path for path in (ROOT / "ebmlib").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert sorted(path.name for path in others if path not in named) == []


SUMS = [*sorted(ROOT.glob("book/_assets/*/SHA256SUMS")), ROOT / "tests/axe-core/SHA256SUMS"]


@pytest.mark.parametrize("sums", SUMS, ids=lambda path: path.parent.name)
def test_vendored_files_are_unmodified_and_licensed(sums: Path):
    expected = dict(reversed(line.split("  ")) for line in sums.read_text().splitlines())
    files = [path for path in sums.parent.rglob("*") if path.is_file() and path != sums]
    hashed = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    assert {path.relative_to(sums.parent).as_posix(): hashed(path) for path in files} == expected
    assert "LICENSE" in expected


def test_every_term_of_the_glossary_says_where_it_is_used_and_the_main_ones_are_there():
    source = (ROOT / "book/glossary.md").read_text("utf-8")
    (text,) = re.findall(r"```\{glossary\}\n:sorted:\n\n(.*?)```", source, re.DOTALL)
    entries = [entry.strip("\n").split("\n  ") for entry in text.split("\n\n")]
    said = {term: " ".join(lines[1:]) for lines in entries for term in lines[0].split("\n")}
    assert [term for term, words in said.items() if "{doc}`" not in words] == []
    wanted = {"energy", "partition function", "Langevin dynamics", "ULA", "MALA", "HMC", "temperature", "mode", "EMA"}
    wanted |= {"short-run chain", "persistent chain", "contrastive divergence", "replay buffer", "reservoir", "ELBO"}
    wanted |= {"score matching", "recovery likelihood", "IWAE", "AIS", "reverse AIS", "bracketing", "FID", "KID", "MMD"}
    assert wanted | {"spectral normalization", "gradient-flow ODE"} <= said.keys()


# The one lock file


def locked() -> dict[str, str]:
    """Pinned version of each package; a package pinned twice (by marker) keeps the one for this Python."""
    pins = {}
    for name, version, marker in re.findall(r"^([a-z0-9._-]+)==(\S+?)(?: ; (.+?))? \\$", LOCK, re.MULTILINE):
        if not marker or Requirement(f"{name} ; {marker}").marker.evaluate():
            pins[canonicalize_name(name)] = version
    return pins


def test_the_lock_holds_versions_and_hashes_and_no_address():
    line = re.compile(r"#.*|[a-z0-9._-]+==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?|    # .*|")
    assert [text for text in LOCK.splitlines() if not line.fullmatch(text)] == []
    assert not re.search("://|file:", LOCK)
    pinned = re.findall(r"^[a-z0-9._-]+==.*\n(?!    --hash)", LOCK, re.MULTILINE)
    assert pinned == [], "a pin without a hash"


def test_the_lock_satisfies_every_direct_dependency():
    project, pins = PYPROJECT["project"], locked()
    extras = [text for extra in LOCKED_EXTRAS for text in project["optional-dependencies"][extra]]
    for text in (*project["dependencies"], *PYPROJECT["build-system"]["requires"], *extras):
        requirement = Requirement(text)
        version = pins.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in requirements.lock: make lock"
        assert requirement.specifier.contains(version, prereleases=True), f"the lock has {version}, wanted {text}"


def test_jupyterlab_is_not_locked_in():
    """It makes every start of papermill seconds slower; who wants it asks for the extra `lab`."""
    assert "jupyterlab" in PYPROJECT["project"]["optional-dependencies"]["lab"][1]
    assert not {"jupyterlab", "notebook", "jupyter-server"} & locked().keys()


def test_conda_make_and_pip_install_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock"]
    python = next(entry.removeprefix("python=") for entry in plain if entry.startswith("python="))
    assert Requirement(f"python{PYPROJECT['project']['requires-python']}").specifier.contains(python)
    assert set(plain) == {f"python={python}", "pip"}, "conda brings Python and pip, the lock the rest"
    makefile = (ROOT / "Makefile").read_text()
    wanted = (f"--python-version {python}", "--require-hashes -r requirements.lock")
    assert all(words in makefile for words in (*wanted, *(f"--extra {extra}" for extra in LOCKED_EXTRAS)))


def test_the_stamp_of_the_environment_is_the_locks_hash():
    stamp = ROOT / ".venv" / "lock.sha256"
    if not stamp.is_file():
        pytest.skip("this environment was not made by make")
    assert stamp.read_text().strip() == hashlib.sha256(LOCK.encode()).hexdigest()
