"""What an installed package holds besides its modules."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "ebmlib" / "page"
PATTERNS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["ebmlib.page"]


def files() -> list[Path]:
    found = [path for path in (ROOT / "ebmlib").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path.relative_to(ROOT / "ebmlib") for path in found if path.suffix != ".py"]


def test_every_file_beside_the_modules_is_installed():
    taken = {path for pattern in PATTERNS for path in PAGE.glob(pattern)}  # as setuptools does
    assert "page/book.mplstyle" in map(str, files())
    assert [str(path) for path in files() if ROOT / "ebmlib" / path not in taken] == []


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_pattern_is_idle(pattern: str):
    assert any(PAGE.glob(pattern))
