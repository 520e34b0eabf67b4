"""The house's rules: who imports whom, which packages stand where, sizes, docstrings, and a quick import."""

import ast
import statistics
import subprocess
import sys
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
    "reservoir": (set(), set()),
    "nets.blocks": (set(), set()),
    "nets.mlp": ({"core", "nets.blocks"}, set()),
    "nets.conv": (set(), set()),
    "nets.wideresnet": ({"core", "nets.blocks"}, set()),
    "nets.growing": ({"nets.blocks"}, set()),
    "nets.vae": (set(), set()),
    "metrics.features": (set(), set()),
    "metrics.inception": ({"metrics.features"}, set()),
    "targets.planar": (set(), set()),
    "targets.curves": ({"targets.planar"}, set()),
    "targets.densities": ({"core", "targets.curves", "targets.planar"}, set()),
    "imagefiles": (set(), set()),
    "data": ({"imagefiles"}, set()),
    "engine": ({"core"}, set()),
    "samplers": ({"core", "engine"}, set()),
    "papers.flow": ({"core", "samplers"}, set()),
    "objectives": ({"core"}, set()),
    "papers.latent": ({"core"}, set()),
    "papers.recovery": ({"core", "run.parallel", "samplers"}, set()),
    "papers.coarse_to_fine": ({"core", "samplers"}, set()),
    "targets.fields": ({"core"}, set()),
    "partition": ({"core", "samplers"}, set()),
    "run.parallel": (set(), set()),
    "run.checkpoint": ({"run.parallel"}, {"safetensors"}),
    "run.history": (set(), set()),
    "run.training": ({"run.checkpoint", "run.history", "run.parallel"}, {"tqdm"}),
    "run.launch": ({"data", "metrics.images", "run.parallel", "run.training"}, set()),
    "metrics.cache": ({"run.checkpoint"}, set()),
    "metrics.images": (
        {"metrics.cache", "run.checkpoint", "core", "data", "metrics.features", "metrics.inception", "page.results"},
        set(),
    ),
    "settings.chapters": (set(), set()),
    "settings.presets": ({"settings.chapters"}, set()),
    "settings.resolve": ({"settings.presets"}, set()),
    "page.shown": (set(), set()),
    "page.results": ({"files", "page.shown"}, set()),
    "page.plots": ({"targets.densities"}, {"matplotlib"}),
    "page.exports": ({"core", "targets.densities", "nets.mlp", "papers.recovery"}, set()),
    "page.playground": ({"files", "targets.densities", "page.exports"}, {"anywidget", "traitlets"}),
}
# Packages that only these modules use, wherever in them: a function of theirs imports what not every reader has.
INSIDE = {
    "papers.flow": {"torchdiffeq"},
    "imagefiles": {"PIL"},
    "run.launch": {"IPython", "accelerate", "click", "nbformat", "papermill"},
    "metrics.images": {"torchmetrics"},
    "metrics.features": {"safetensors"},
    "metrics.inception": {"torchmetrics"},
    "page.shown": {"IPython"},
    "settings.resolve": {"IPython"},
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


def loaded_by(statement: str) -> tuple[set[str], float]:
    """Top-level modules that a new interpreter holds after a statement, and the CPU seconds that it took."""
    code = f"import time\nt = time.process_time()\n{statement}\nt = time.process_time() - t\nimport sys\n"
    code += "print(t, *{name.split('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    seconds, *names = out.split()
    return set(names), float(seconds)


def test_importing_the_package_costs_nothing():
    names, _ = loaded_by("import ebmlib")
    assert not names & {"torch", "numpy", "matplotlib"}
    # Less than `import torch` plus a tenth by far. CPU seconds do not depend on what else the machine does, and the
    # median leaves out a cold disk.
    assert statistics.median(loaded_by("import ebmlib")[1] for _ in range(3)) < 0.1


def test_the_library_without_figures_loads_no_heavy_package_but_torch():
    quiet = [module for module, (_, packages) in TABLE.items() if not packages & {"matplotlib", "anywidget"}]
    names, _ = loaded_by("\n".join(f"import ebmlib.{module}" for module in quiet))
    assert "torch" in names
    assert not names & {"matplotlib", "torchvision", "torchmetrics", "IPython", "anywidget", "scipy", "sklearn", "PIL"}
    assert not names & {"accelerate", "papermill"}


@each
def test_modules_and_functions_are_short(module):
    assert len(path_of(module).read_text("utf-8").splitlines()) <= 450
    functions = [n for n in ast.walk(tree(module)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno + 1 > 60}
    assert long == {}


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
