"""What an executed notebook depends on, as digests of contents: never file times, never docstrings or comments."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from book.project import Plan, Project, read_notebook


def digest(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:20]


def fingerprint(project: Project, plan: Plan) -> dict[str, str]:
    """Digest of each thing that the notebook's outputs follow from, by a name that can be shown to the reader."""
    found = {
        "the notebook": digest(json.dumps(_cells(plan.source), sort_keys=True)),
        "its parameters": digest(json.dumps(plan.parameters, sort_keys=True)),
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "requirements.lock": file_digest(project.root / "requirements.lock"),
    }
    return found | parts(project.root, project.package, notebook_code(plan.source), plan.files)


def parts(
    root: Path, package: str, code: ast.Module, files: Iterable[str], without: tuple[str, ...] = ()
) -> dict[str, str]:
    """Digests of the package's modules that `code` reaches by import, of its other files that those name, and of data.

    `files` are patterns of data files. Paths that begin with one of `without` do not count, nor what they import.
    """
    modules = reached_modules(root, package, code, without)
    found = {str(path.relative_to(root)): digest(ast.dump(tree)) for path, tree in modules.items()}
    data = (path for pattern in files for path in sorted(root.glob(pattern)))
    for path in [*named_files(root / package, [code, *modules.values()]), *data]:
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith(without):
            found[name] = file_digest(path)
    return found


def changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """The names of the parts that differ, came or went."""
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def file_digest(path: Path) -> str:
    return digest(path.read_bytes()) if path.is_file() else "absent"


def _cells(path: Path) -> list:
    kept = ("tags", "mystnb")  # what an editor notes besides (ids, scrolling, folding) changes no page
    known = lambda about: {key: about[key] for key in kept if key in about}
    return [[cell["cell_type"], cell["source"], known(cell["metadata"])] for cell in read_notebook(path)["cells"]]


def notebook_code(path: Path) -> ast.Module:
    """All code cells as one syntax tree; a cell that does not parse is left to papermill to report."""
    from IPython.core.inputtransformer2 import TransformerManager

    body: list[ast.stmt] = []
    for cell in read_notebook(path)["cells"]:
        if cell["cell_type"] == "code":
            try:
                body += ast.parse(TransformerManager().transform_cell(cell["source"])).body
            except SyntaxError:
                continue
    return ast.Module(body=body, type_ignores=[])


def reached_modules(
    root: Path, package: str, code: ast.Module, without: tuple[str, ...] = ()
) -> dict[Path, ast.Module]:
    """The package's modules that `code` imports, directly or through one another, without their docstrings."""
    reached: dict[Path, ast.Module] = {}
    waiting = list(imported_names(code))
    while waiting:
        for path in _files_of(root, package, waiting.pop()):
            if path not in reached and not path.relative_to(root).as_posix().startswith(without):
                reached[path] = without_docstrings(ast.parse(path.read_text(encoding="utf-8")))
                waiting += imported_names(reached[path])
    return dict(sorted(reached.items()))


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Dotted names that may be modules; the library has no relative imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files_of(root: Path, package: str, name: str) -> Iterator[Path]:
    """The file of a dotted name and of each package above it, where they are the package's own."""
    words = name.split(".")
    for end in range(1, len(words) + 1) if words[0] == package else ():
        stem = root.joinpath(*words[:end])
        yield from filter(Path.is_file, (stem / "__init__.py", stem.with_name(stem.name + ".py")))


def without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree


def named_files(folder: Path, trees: list[ast.Module]) -> list[Path]:
    """The package's files that are no modules and that a string in the code names, by their name or their folder's."""
    constants = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    strings = {value for value in constants if isinstance(value, str)}
    text = "\n".join(strings)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".py", ".pyc")]
    inside = lambda path: path.relative_to(folder).parts[:-1]
    named = lambda path: path.name in text or any(part in strings or f"{part}/" in text for part in inside(path))
    return [path for path in files if named(path)]
