"""What several test files share: the run's device and dtype, and the book built at preset smoke, once a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the suite's seeds and times assume one thread

ROOT = Path(__file__).resolve().parents[1]


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
def smoke_book() -> Path:
    """Folder of the pages of the whole book at preset smoke, built by the real command; it must build strictly."""
    command = [sys.executable, "-m", "book.build", "--preset", "smoke", "--output", "build/test-book"]
    run = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if run.returncode:
        pytest.fail(f"the book does not build at preset smoke:\n{run.stdout}{run.stderr}", pytrace=False)
    return ROOT / "build" / "test-book" / "_build" / "html"


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
