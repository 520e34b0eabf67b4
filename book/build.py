"""Builds the book: executes what changed, stages it, runs Jupyter Book strictly, and swaps the result in.

    python -m book.build [--preset quick] [--output build/book] [--jobs N] [--no-pages]

Exit status 0 means that every notebook ran and that the pages are new and complete.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout

from book import cards, checks
from book.execution import Outcome, execute_all, over_budget, slowest
from book.pages import stage
from book.project import Project


class Refused(RuntimeError):
    """A reason to stop, in one sentence for the reader of the terminal."""


say = functools.partial(print, flush=True)


def main(arguments: list[str] | None = None, root: Path | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m book.build", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="quick", help="preset of every notebook (quick is what the book shows)")
    parser.add_argument("--output", type=Path, default=Path("build/book"), help="the book's folder, under the root")
    parser.add_argument("--jobs", type=int, help="notebooks at a time (as many as there are cores and memory for)")
    parser.add_argument("--no-pages", action="store_true", help="execute only")
    options = parser.parse_args(arguments)
    project = Project(root or Path(__file__).resolve().parents[1], options.preset, options.output)
    try:
        with alone(project):
            return build(project, options.jobs, not options.no_pages)
    except (Refused, ValueError) as error:
        print(f"book: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("book: interrupted; the notebooks that had ended are kept.", file=sys.stderr)
        return 130


def build(project: Project, jobs: int | None = None, with_pages: bool = True, say: Callable[[str], None] = say) -> int:
    """The whole build; 0 where every notebook is up to date and the pages are built."""
    start = time.monotonic()
    outcomes = execute_all(project, project.plans(), jobs, say)
    if with_pages:
        made = make_pages(project, outcomes)
        say(f"The book: {project.output / '_build' / 'html' / 'index.html'} ({made})")
    _say_summary(project, outcomes, time.monotonic() - start, say)
    return 1 if any(outcome.error is not None for outcome in outcomes) else 0


def _say_summary(project: Project, outcomes: list[Outcome], seconds: float, say: Callable[[str], None]) -> None:
    names = ", ".join(f"{outcome.plan.name} {outcome.record.seconds:.0f} s" for outcome in slowest(outcomes))
    say(f"{seconds:.0f} s in all; slowest when last executed: {names or 'none'}.")
    if project.preset == "quick":
        records = {outcome.plan.name: outcome.record for outcome in outcomes if outcome.record is not None}
        for sentence in over_budget(project, records):
            say(f"WARNING over budget: {sentence}")
    for outcome in outcomes:
        if outcome.error is not None:
            shown = "its page is stale" if outcome.notebook is not None else "it has no page"
            say(f"FAILED {outcome.plan.name} {outcome.error} ({shown})")


def make_pages(project: Project, outcomes: list[Outcome]) -> str:
    """Builds the pages beside the served ones and swaps them in; says what was done. Refused names what is wrong."""
    new = project.staged.with_name(project.staged.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    stage(project, outcomes, new)
    # A page that failed may have been the target of a link or label of another: then warnings cannot stop the rest.
    strict = all(outcome.error is None for outcome in outcomes)
    contents = tree_digest(new) + ("" if strict else " lenient")
    stamp = project.staged / "_build" / "contents"
    if stamp.is_file() and stamp.read_text() == contents and (project.pages / "index.html").is_file():
        shutil.rmtree(new)
        return "pages unchanged"
    seconds = run_jupyter_book(project, new, strict)
    cards.tag_first_page(new / "_build" / "html")
    problems = [f"requests another host: {line}" for line in checks.external_requests(new / "_build" / "html")]
    problems += [f"dead link: {line}" for line in checks.dead_links(new / "_build" / "html") if strict]
    if problems:
        raise Refused("the pages are not served:\n  " + "\n  ".join(problems))
    (new / "_build" / "contents").write_text(contents)
    shutil.rmtree(new / "_build" / ".doctrees", ignore_errors=True)
    swap(new, project.staged)
    return f"pages built in {seconds:.0f} s{'' if strict else ', not strictly, since a notebook failed'}"


def run_jupyter_book(project: Project, folder: Path, strict: bool) -> float:
    """Jupyter Book 1 over the staged folder, every warning an error where `strict`; its seconds."""
    version = metadata.version("jupyter-book")
    if not version.startswith("1."):  # 2.x finds no _config.yml, builds nothing and exits with 0
        raise Refused(f"jupyter-book is {version}; this book needs 1.x, as requirements.lock has it.")
    log = project.root / "build" / f"{project.staged.name}.log"
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(folder), "--keep-going", "-n"]
    command += ["-W"] if strict else []
    # autodoc imports the library of this checkout, and Sphinx our extension, wherever this environment's packages lie.
    paths = [str(project.root), str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    own = {"PYTHONWARNINGS": "ignore", "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    start = time.monotonic()
    with log.open("w") as sink:
        streams = {"stdin": subprocess.DEVNULL, "stdout": sink, "stderr": subprocess.STDOUT}
        process = subprocess.run(command, cwd=project.root, env=os.environ | own, **streams)
    if process.returncode or not (folder / "_build" / "html" / "index.html").is_file():
        plain = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace")).replace(f"{folder}{os.sep}", "")
        lines = [line for line in plain.splitlines() if re.search(r"WARNING|ERROR|CRITICAL|Error:", line)]
        shown = "\n  ".join(dict.fromkeys(lines[:30])) or "no reason was printed"
        where = f"All it said is in build/{log.name}"
        raise Refused(f"jupyter-book failed; the pages served before stay. {where}:\n  {shown}")
    return time.monotonic() - start


def swap(new: Path, served: Path) -> None:
    """Puts `new` in the place of `served`; a reader meets one or the other."""
    old = served.with_name(served.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if served.exists():
        os.replace(served, old)
    os.replace(new, served)
    shutil.rmtree(old, ignore_errors=True)


def tree_digest(folder: Path) -> str:
    """A digest of every file's path and contents."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


@contextmanager
def alone(project: Project) -> Iterator[None]:
    """Refused where another build of the same preset is running."""
    path = project.root / "build" / f"{project.preset}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise Refused(f"another build at preset {project.preset} is running in this checkout.") from None


if __name__ == "__main__":
    sys.exit(main())
