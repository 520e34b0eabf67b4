"""The commit that a benchmark or a run was made on."""

import subprocess
from pathlib import Path


def git_commit(root: Path) -> str:
    """The last commit that changed more than rows and weights, with -dirty where other files have changed since.

    Rows may then be committed while other runs of the same code go on.
    """
    asked = ("log -1 --format=%h --abbrev=12", "status --porcelain --untracked-files=no")
    numbers = [f":!data/{folder}" for folder in ("results", "benchmarks", "checkpoints")]
    commands = [["git", *ask.split(), "--", ".", *numbers] for ask in asked]
    commit, changed = (subprocess.run(c, cwd=root, capture_output=True, text=True).stdout.strip() for c in commands)
    return commit + "-dirty" * bool(changed)
