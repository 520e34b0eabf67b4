"""What several test files share: the run's device and dtype, the book built at preset smoke, and groups of tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the suite's seeds and times assume one thread

ROOT = Path(__file__).resolve().parents[1]

# With pytest-xdist, tests that use one of these fixtures run in one worker, one after the other: the fixture is made
# once, and the browsers or processes of two tests do not compete for the cores.
GROUPS = {
    "book": {"smoke_book", "site", "browser", "lab"},
    "processes": {"together", "start"},  # tests/test_parallel.py and tests/test_launch.py
    "playground": {"engine"},
    "speed": {"dry"},
    "results": {"executed"},
    "inception": {"made"},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the science tests compute: cpu, cuda, cuda:1")
    parser.addoption("--dtype", default="float64", choices=("float32", "float64"), help="of the science tests' states")


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--device")
    if name == "cpu":
        return
    import torch  # only the science tests need it

    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 where a test compares digits
    try:
        torch.empty(1, device=name)
    except Exception as error:  # whatever a missing driver raises
        raise pytest.UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        used = {*getattr(item, "fixturenames", ())}
        for group, names in GROUPS.items():
            if names & used:
                item.add_marker(pytest.mark.xdist_group(group))
        if "smoke_book" in used:  # the first of them waits for the build, of every notebook
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    import torch

    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    import torch

    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture(scope="session")
def rng(device: torch.device) -> Callable[[int], torch.Generator]:
    """rng(seed) is a new generator on the run's device."""
    import torch

    return lambda seed: torch.Generator(device).manual_seed(seed)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """once(name, make) returns a folder that make(folder) has filled: once a session, also with several workers."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # which all workers share

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, outcome = base / name, base / f"{name}.outcome"
        with FileLock(base / f"{name}.lock"):
            if not outcome.exists():
                folder.mkdir()
                try:
                    make(folder)
                    outcome.write_text("")
                except (Exception, pytest.fail.Exception) as error:
                    outcome.write_text(str(error) or repr(error))
        if reason := outcome.read_text():
            pytest.fail(reason, pytrace=False)
        return folder

    return made


def build_smoke_book(_: Path) -> None:
    command = [sys.executable, "-m", "book.build", "--preset", "smoke", "--output", "build/test-book"]
    run = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if run.returncode:
        pytest.fail(f"the book does not build at preset smoke:\n{run.stdout}{run.stderr}", pytrace=False)


@pytest.fixture(scope="session")
def smoke_book(once) -> Path:
    """Folder of the pages of the whole book at preset smoke, built by the real command; it must build strictly."""
    once("smoke-book", build_smoke_book)
    return ROOT / "build" / "test-book" / "_build" / "html"


@pytest.fixture(scope="session")
def smoke_runs(smoke_book: Path) -> Path:
    """Folder of the notebooks as that build executed them: what they show needs no execution of its own."""
    return ROOT / "build" / "executions" / "smoke"


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch):
    """A folder to run cells in, with figures, random numbers and variables as they were afterwards."""
    import matplotlib
    import torch
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")  # first set, so that what the cells leave is undone, too
    with matplotlib.rc_context(), torch.random.fork_rng(devices=[]):
        yield
        pyplot.close("all")
