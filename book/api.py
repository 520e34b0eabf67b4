"""The API page: what stands under each module on `book/api.md`, and how Sphinx's autodoc shows it (`setup`).

A docstring of the library is plain text with code in single backticks. Here it becomes reStructuredText that says the
same, whatever signs it holds, so that no docstring has to be written for Sphinx.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from itertools import takewhile
from typing import Any

from book.project import Project, assigned

SHOWN_VALUE = 60  # characters of a constant's value at most; a longer one is left to the source


def substitutions(project: Project) -> dict[str, str]:
    """{{ api_samplers }} and so on: for each module its docstring and its public names, for autodoc to fill in."""
    return {f"api_{module.replace('.', '_')}": section(project, module) for module in modules(project)}


def by_room(project: Project, text: str) -> str:
    """The page's text with a heading and {{ api_... }} for each module of a room in place of {{ api_room_papers }}."""

    def sections(room: re.Match) -> str:
        found = [module for module in modules(project) if module.startswith(f"{room[1]}.")]
        return "\n\n".join(f"### {project.package}.{m}\n\n{{{{ api_{m.replace('.', '_')} }}}}" for m in found)

    return re.sub(r"\{\{ api_room_(\w+) \}\}", sections, text)


def modules(project: Project) -> list[str]:
    """The package's modules, as `nets.energies`."""
    folder = project.root / project.package
    paths = sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py")
    return [".".join(path.relative_to(folder).with_suffix("").parts) for path in paths]


def section(project: Project, module: str) -> str:
    source = (project.root / project.package / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    name = f"{project.package}.{module}"
    lines = [f".. automodule:: {name}", ""]
    for node in ast.parse(source).body:
        lines += _directive(name, node, source)
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _names(node: ast.stmt) -> list[str]:
    """The public functions, classes and constants that a statement at a module's top defines."""
    names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else assigned(node)
    return [name for name in names if not name.startswith("_")]


def _directive(module: str, node: ast.stmt, source: str) -> list[str]:
    lines = []
    for name in _names(node):
        if isinstance(node, ast.FunctionDef):
            lines += [f".. autofunction:: {module}.{name}"]
        elif isinstance(node, ast.ClassDef):
            told = [item.name for item in node.body if isinstance(item, ast.FunctionDef) and ast.get_docstring(item)]
            members = ", ".join(item for item in told if not item.startswith("_"))
            lines += [f".. autoclass:: {module}.{name}", *([f"   :members: {members}"] if members else [])]
        else:
            value = " ".join(ast.unparse(node.value).split())
            lines += [f".. py:data:: {name}", f"   :module: {module}"]
            lines += [f"   :value: {value}"] if len(value) <= SHOWN_VALUE else []
            lines += ["", textwrap.indent(as_rst(_comment(node, source)), "   ")]
        lines.append("")
    return lines


def _comment(node: ast.stmt, source: str) -> str:
    """What is said of a constant: behind it, or in the lines right above."""
    lines = source.splitlines()
    if behind := re.search(r"  # (.*)$", lines[node.end_lineno - 1]):
        return behind[1]
    above = takewhile(lambda line: line.startswith("#"), reversed(lines[: node.lineno - 1]))
    return " ".join(reversed([line.lstrip("# ") for line in above]))


def as_rst(text: str) -> str:
    """A docstring as reStructuredText: paragraphs of plain words and code, indented ones as they stand."""
    paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(_paragraph(paragraph) for paragraph in paragraphs)


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    if lines and all(line.startswith("    ") for line in lines):
        return ".. code-block:: text\n\n" + "\n".join(lines)
    parts = re.split(r"``?([^`]+)``?", " ".join(line.strip() for line in lines))
    # Every sign escaped is itself; escaped spaces let code stand right beside letters.
    parts[::2] = [re.sub(r"([^\w\s]|_)", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"\\ ``{part.strip()}``\\ " for part in parts[1::2]]
    return "".join(parts)


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this: book.api is one of the extensions in _config.yml."""
    app.connect("autodoc-process-docstring", _docstring_as_rst)
    app.connect("autodoc-process-signature", _signature_as_written)
    app.connect("html-page-context", _without_barriers)
    return {"parallel_read_safe": True}


def _docstring_as_rst(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [*as_rst("\n".join(lines)).splitlines(), ""]


def _signature_as_written(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    """The source's own words, `schedule: Sequence[Pair]`; None (autodoc's) where no line of the library wrote them."""
    function = inspect.unwrap(thing.__init__ if what == "class" else thing)
    if not inspect.isfunction(function) or function.__module__ != thing.__module__:
        return None
    try:
        source = inspect.getsource(function)
    except OSError:  # a dataclass's __init__ has no source
        return None
    node = ast.parse(textwrap.dedent(source)).body[0]
    node.args.args = [argument for argument in node.args.args if argument.arg not in ("self", "cls")]
    returned = ast.unparse(node.returns).strip("'") if node.returns is not None else None
    return f"({ast.unparse(node.args)})", None if what == "class" else returned


def _without_barriers(app: Any, page: str, template: str, context: dict, doctree: Any) -> None:
    if "body" in context:  # docutils marks the references' entries with a role that ARIA has given up for list items
        context["body"] = signature_lines(context["body"].replace('role="doc-biblioentry"', 'role="listitem"'))


def signature_lines(body: str) -> str:
    """The arguments of long signatures as lines of text: Sphinx makes them definitions of no term, which is no list."""

    def as_lines(match: re.Match) -> str:
        lines = re.sub(r"<dd>(.*?)</dd>", r'<span class="sig-line">\1</span>', match[0], flags=re.DOTALL)
        return re.sub(r"</?dl>", "", lines)

    return re.sub(r'<dt class="sig .*?</dt>', as_lines, body, flags=re.DOTALL)
