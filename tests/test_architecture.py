"""The rules of the library: who imports whom, which packages are imported where, sizes, docstrings."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import mutants
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ebmlib"

# module: (modules of the library that it may import, third-party packages at its top beside torch and numpy)
TABLE: dict[str, tuple[set[str], set[str]]] = {
    "core": (set(), set()),
    "files": (set(), set()),
    "engine": ({"core"}, set()),
    "objectives": ({"core"}, set()),
    "reservoir": ({"core"}, set()),
    "imagefiles": ({"files"}, set()),
    "samplers": ({"core", "engine"}, set()),
    "data": ({"files", "imagefiles"}, set()),
    "partition": ({"core", "samplers"}, set()),
    "nets.blocks": (set(), set()),
    "nets.conv": (set(), set()),
    "nets.vae": ({"core"}, set()),
    "nets.growing": ({"nets.blocks"}, set()),
    "nets.mlp": ({"core", "nets.blocks"}, set()),
    "nets.wideresnet": ({"core", "nets.blocks"}, set()),
    "targets.planar": (set(), set()),
    "targets.fields": ({"core"}, set()),
    "targets.curves": ({"core", "targets.planar"}, set()),
    "targets.densities": ({"core", "targets.curves", "targets.planar"}, set()),
    "papers.latent": ({"core"}, set()),
    "papers.coarse_to_fine": ({"core", "samplers"}, set()),
    "papers.flow": ({"core", "samplers"}, set()),
    "papers.recovery": ({"core", "samplers"}, set()),
    "settings.value": (set(), set()),
    "settings.improved_cd": ({"settings.value"}, set()),
    "settings.resolve": ({"settings.value"}, set()),
    "settings.self_adversarial": ({"settings.value"}, set()),
    "settings.vaebm": ({"settings.value"}, set()),
    "settings.cf_ebm": ({"papers.coarse_to_fine", "settings.value"}, set()),
    "settings.drl": ({"nets.wideresnet", "papers.recovery", "settings.value"}, set()),
    "settings.toys": ({"papers.recovery", "settings.value"}, set()),
    "page.plots": ({"page.results"}, {"matplotlib"}),
    "page.shown": (set(), set()),
    "page.results": ({"files", "page.shown"}, set()),
    "page.exports": ({"core", "nets.mlp", "papers.recovery", "targets.densities", "targets.planar"}, set()),
    "page.playground": ({"files", "page.exports", "targets.densities"}, {"anywidget", "traitlets"}),
    "run.history": (set(), set()),
    "run.checkpoint": ({"files"}, {"safetensors"}),
    "run.parallel": ({"run.checkpoint"}, set()),
    "run.folder": ({"files", "run.checkpoint", "run.parallel"}, {"filelock"}),
    "run.training": ({"core", "run.checkpoint", "run.folder", "run.history", "run.parallel"}, {"tqdm"}),
    "run.job": (
        {"data", "page.plots", "page.results", "page.shown", "targets.densities"}
        | {"run.checkpoint", "run.folder", "run.parallel", "run.training", "settings.resolve", "settings.value"},
        set(),
    ),
    "metrics.features": ({"data"}, set()),
    "metrics.inception": ({"data"}, set()),
    "metrics.mixing": (set(), set()),
    "metrics.planar": ({"core", "partition", "targets.planar"}, set()),
    "metrics.images": ({"core", "data", "metrics.features", "metrics.inception", "run.checkpoint"}, set()),
}
# Packages that only these modules use, wherever in them: a function of theirs imports what not every reader has.
INSIDE = {
    "papers.flow": {"torchdiffeq"},
    "imagefiles": {"PIL"},
    "metrics.images": {"torchmetrics"},
    "metrics.features": {"safetensors"},
    "metrics.inception": {"torchmetrics"},
    "page.shown": {"IPython"},
}
MODULES = sorted(".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in PACKAGE.rglob("*.py"))
MODULES = [m for m in MODULES if not m.endswith("__init__")]
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
each = pytest.mark.parametrize("module", MODULES)


def tree(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text("utf-8"))


def path_of(module: str) -> Path:
    return PACKAGE / (module.replace(".", "/") + ".py")


def imports(node: ast.AST) -> set[str]:
    """Every imported name inside a piece of code, dotted, with `from a import b` as a.b."""
    found = set()
    for item in ast.walk(node):
        if isinstance(item, ast.Import):
            found |= {alias.name for alias in item.names}
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, "relative imports hide who imports whom"
            found |= {f"{item.module}.{alias.name}" for alias in item.names}
    return found


def own(names: set[str]) -> set[str]:
    """The modules of the library among imported names."""
    inside = [name.removeprefix("ebmlib.") for name in names if name.startswith("ebmlib.")]
    return {max((m for m in MODULES if f"{name}.".startswith(f"{m}.")), key=len, default=name) for name in inside}


def foreign(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"ebmlib", "torch", "numpy"}


def test_the_table_names_every_module():
    assert sorted(TABLE) == MODULES


def test_the_table_is_a_dag_of_its_own_modules():
    graph = {module: allowed for module, (allowed, _) in TABLE.items()}
    assert set().union(*graph.values()) <= set(graph)
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)  # a cycle raises


@each
def test_a_module_imports_what_the_table_allows(module):
    allowed, packages = TABLE[module]
    code = tree(module)
    top = set().union(*(imports(node) for node in code.body if isinstance(node, ast.Import | ast.ImportFrom)))
    assert own(imports(code)) <= allowed
    assert foreign(top) <= packages
    assert foreign(imports(code)) <= packages | INSIDE.get(module, set())


def test_the_package_itself_imports_nothing():
    for name in ("__init__", *(f"{room}.__init__" for room in ROOMS)):
        assert imports(tree(name)) == set()
    body = tree("__init__").body
    assert [type(node) for node in body] == [ast.Expr, ast.Assign]  # a docstring and the version


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a new interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(out.split())


def test_the_library_without_figures_loads_no_heavy_package_but_torch():
    quiet = [module for module, (_, packages) in TABLE.items() if not packages & {"matplotlib", "anywidget"}]
    names = loaded_by("\n".join(f"import ebmlib.{module}" for module in quiet))
    assert "torch" in names
    assert not names & {"matplotlib", "torchvision", "torchmetrics", "IPython", "anywidget", "scipy", "sklearn", "PIL"}
    assert not names & {"accelerate", "papermill"}


@each
def test_modules_and_functions_are_short(module):
    assert len(path_of(module).read_text("utf-8").splitlines()) <= 450
    functions = [n for n in ast.walk(tree(module)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f.name: f.end_lineno - f.lineno + 1 for f in functions}
    assert {name: length for name, length in lengths.items() if length > 40} == {}


def test_the_library_is_small():
    assert sum(len(path_of(module).read_text("utf-8").splitlines()) for module in MODULES) <= 7_500


def test_every_file_beside_the_modules_is_installed():
    """As setuptools takes them, which knows nothing of the checkout."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    globs = [(ROOT / room.replace(".", "/")).glob(kind) for room, kinds in patterns.items() for kind in kinds]
    taken = {path for found in globs for path in found}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert PACKAGE / "page" / "book.mplstyle" in files
    assert files == taken


INCLUDE = re.compile(r"\{literalinclude\} (\S+)\n:pyobject: (\S+)")


def sources() -> list[str]:
    """The text of every page and of every cell of a notebook."""
    notebooks = [json.loads(path.read_text("utf-8")) for path in (ROOT / "notebooks").glob("*.ipynb")]
    pages = [path.read_text("utf-8") for path in (ROOT / "book").glob("*.md")]
    return pages + ["".join(cell["source"]) for notebook in notebooks for cell in notebook["cells"]]


SHOWN = sorted({found for text in sources() for found in INCLUDE.findall(text)})


@pytest.mark.parametrize(("file", "name"), SHOWN, ids=[f"{Path(file).stem}.{name}" for file, name in SHOWN])
def test_code_that_a_page_shows_is_narrow(file: str, name: str):
    """A page is 79 columns wide on a laptop's screen; what is wider has to be scrolled."""
    text = (ROOT / "notebooks" / file).read_text("utf-8")  # as seen from book/, too
    node = ast.parse(text)
    for part in name.split("."):
        (node,) = [n for n in node.body if getattr(n, "name", None) == part]
    lines = text.splitlines()[min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1 : node.end_lineno]
    assert [line for line in lines if len(line) > 79] == []


@each
def test_public_names_have_docstrings(module):
    code = tree(module)
    assert ast.get_docstring(code)
    public = [node for node in code.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_every_planted_slip_still_fits_the_library():
    assert mutants.misfits() == []
    assert len(mutants.MUTANTS) >= 25
    named = {file.split("::")[0] for slip in mutants.MUTANTS for file in slip.tests}
    assert named <= {path.name for path in (ROOT / "tests").glob("test_*.py")}
