"""Where the book's builder finds and puts things, and its table of notebooks (notebooks.toml)."""

from __future__ import annotations

import ast
import base64
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """One notebook to execute: its source, what papermill sets, the data it names, its limit in seconds at quick."""

    name: str
    source: Path
    parameters: dict[str, object] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    limit: float = 0.0


@dataclass(frozen=True)
class Project:
    """A checkout and what is made from it: `output` holds the staged book, the rest lies beside it under build/."""

    root: Path
    preset: str = "quick"
    output: Path = Path("build/book")
    package: str = "ebmlib"

    @property
    def staged(self) -> Path:
        return self.root / self.output

    @property
    def pages(self) -> Path:
        return self.staged / "_build" / "html"

    @property
    def executions(self) -> Path:
        return self.root / "build" / "executions" / self.preset

    def table(self) -> dict:
        return tomllib.loads((self.root / "book" / "notebooks.toml").read_text())

    @property
    def reference(self) -> float | None:
        """What `book.calibration` measured where the limits were set; None where the table does not say."""
        return self.table().get("calibration")

    def plans(self) -> list[Plan]:
        """Every notebook in the folder, by name. ValueError where folder and table disagree."""
        table = {name: entry for name, entry in self.table().items() if isinstance(entry, dict)}
        found = {path.stem: path for path in sorted((self.root / "notebooks").glob("*.ipynb"))}
        for name in sorted(table.keys() ^ found.keys()):
            where = "has no entry in book/notebooks.toml" if name in found else "is in book/notebooks.toml only"
            raise ValueError(f"notebooks/{name}.ipynb {where}: both need it.")
        return [self._plan(path, table[name]) for name, path in found.items()]

    def _plan(self, path: Path, entry: dict) -> Plan:
        known = declared_parameters(path)
        parameters = {"preset": self.preset, **entry.get("parameters", {})}
        for name in sorted(parameters.keys() - known):
            raise ValueError(f"The book sets {name} in notebooks/{path.name}, whose parameters are {', '.join(known)}.")
        if "run_dir" in known:  # relative, so that no machine's path stands on the page
            parameters["run_dir"] = f"build/runs/{self.preset}/{path.stem}"
        files = (*entry.get("files", ()), *self._committed(path))
        return Plan(path.stem, path, parameters, files, float(entry["limit"]))

    def _committed(self, path: Path) -> list[str]:
        """The files of committed rows that the notebook shows: its own, and those that its code names."""
        code = "\n".join(cell["source"] for cell in read_notebook(path)["cells"] if cell["cell_type"] == "code")
        found = sorted((self.root / "data" / "results").glob("*.json"))
        shown = [file for file in found if file.stem == path.stem or re.search(rf'"{file.stem}(\.json)?"', code)]
        return [file.relative_to(self.root).as_posix() for file in shown]


def read_notebook(path: Path) -> dict:
    """The notebook's JSON with each cell's source joined to one string."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
        cell.setdefault("metadata", {})
    return notebook


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def figure(notebook: Path | None, name: str) -> tuple[bytes, str] | None:
    """(PNG, alternative text) of the figure of this name in an executed notebook, None where there is none."""
    for cell in read_notebook(notebook)["cells"] if notebook else []:
        about = cell["metadata"].get("mystnb", {})
        data = [output.get("data", {}) for output in cell.get("outputs", [])]
        pictures = [found["image/png"] for found in data if "image/png" in found]
        if pictures and about.get("figure", {}).get("name") == name:
            return base64.b64decode(pictures[0]), about.get("image", {}).get("alt", "")
    return None


def reprinted(notebook: Path | None, name: str, file: Path, kind: str, folder: str = "") -> str:
    """The figure of this name, written to `file`, as a directive with a link to where it is drawn; "" without one.

    `kind` is a CSS class, `folder` that of the file as seen from the page.
    """
    found = figure(notebook, name)
    if found is None:
        return ""
    file.write_bytes(found[0])
    alt = json.dumps(found[1], ensure_ascii=False)
    about = f"{folder}{file.name}\n:alt: {alt}\n:figclass: {kind}"
    # Sphinx numbers what has a caption: an empty comment stands in its place, and the words are a legend.
    return f"```{{figure}} {about}\n\n%\n\nFrom {{numref}}`{name}`.\n```"


def raw(page: str) -> str:
    """HTML as a directive that leaves it as it is."""
    return f"```{{raw}} html\n{page}\n```"


def declared_parameters(path: Path) -> list[str]:
    """The names that the cell tagged `parameters` assigns."""
    cells = [cell for cell in read_notebook(path)["cells"] if "parameters" in tags(cell)]
    return [name for cell in cells for node in ast.parse(cell["source"]).body for name in assigned(node)]


def assigned(node: ast.stmt) -> list[str]:
    """The names that a statement assigns."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
