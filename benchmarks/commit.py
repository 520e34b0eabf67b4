"""The plan of the long runs, and the commit that a run or a benchmark was made on."""

import subprocess
import tomllib
from pathlib import Path
from typing import Any

PLAN: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("plan.toml").read_text(encoding="utf-8"))


def git_commit(root: Path) -> str:
    """The last commit that changed more than what runs write, with -dirty where other files have changed since.

    Rows may then be committed while other runs of the same code go on.
    """
    asked = ("log -1 --format=%h --abbrev=12", "status --porcelain --untracked-files=no")
    weights = [f"checkpoints/{about['bundled']}*" for about in PLAN.values() if "bundled" in about]
    written = [f":!data/{name}" for name in ("results", "benchmarks", *weights)]
    commands = [["git", *ask.split(), "--", ".", *written] for ask in asked]
    commit, changed = (subprocess.run(c, cwd=root, capture_output=True, text=True).stdout.strip() for c in commands)
    return commit + "-dirty" * bool(changed)
