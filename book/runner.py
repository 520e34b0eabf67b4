"""Runs one notebook through papermill, for the book's pages and for the long rows of benchmarks/results.py."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from book.project import read_notebook, tags

PAPERMILL = (sys.executable, "-m", "papermill")
HEARTBEAT = 10.0  # seconds between two calls of `beat`
# jupyter_client chooses a kernel's ports before the kernel binds them, so any other process may take one (its issue
# 487). The kernel then dies before the first cell: nothing has run, and a second start is safe.
NO_START = "Kernel died before replying to kernel_info"


@dataclass(frozen=True)
class Ended:
    """How a run ended: `error` in one line or None, `memory` of its largest process in MiB, if it ran out of time."""

    error: str | None
    seconds: float
    cpu: float
    memory: float
    late: bool = False


def run(
    root: Path, source: Path, out: Path, parameters: Mapping[str, Any], log: Path, *,
    limit: float = math.inf, cell_limit: int | None = None, beat: Callable[[float], None] = lambda seconds: None,
) -> Ended:  # fmt: skip
    """Execute the notebook `source` in the folder `root`, on one thread, into `out`; what papermill says goes to `log`.

    After `limit` seconds the run is interrupted. `beat` is called now and then with the seconds so far.
    """
    quiet_kernels(root)
    paths = [os.path.relpath(path, root) for path in (source, out)]  # no machine's path in the output
    command = [*PAPERMILL, *paths, "-k", "python3", "--no-progress-bar", "-y", json.dumps(dict(parameters))]
    command += ["--execution-timeout", str(cell_limit)] if cell_limit else []
    ended = _wait(command, root, log, limit, beat)
    if ended.error and not ended.late and NO_START in log.read_text(errors="replace"):
        ended = _wait(command, root, log, limit, beat)
    if ended.error is None or ended.late:
        return ended
    return Ended(what_failed(out, log), ended.seconds, ended.cpu, ended.memory)


def _wait(command: list[str], root: Path, log: Path, limit: float, beat: Callable[[float], None]) -> Ended:
    begin, status, late, next_beat = time.monotonic(), None, False, HEARTBEAT
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}  # the kernel draws inline
    own = {"IPYTHONDIR": str(root / "build" / "ipython"), "JUPYTER_PREFER_ENV_PATH": "1"}
    environment |= own | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as sink:
        streams = {"stdin": subprocess.DEVNULL, "stdout": sink, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=root, env=environment, **streams)
        while status is None:
            time.sleep(0.05)
            seconds = time.monotonic() - begin
            ended, code, usage = os.wait4(process.pid, os.WNOHANG)  # as Popen.wait, with memory and CPU time
            if ended:
                status = process.returncode = os.waitstatus_to_exitcode(code)
            elif seconds > limit + 10:
                process.kill()
            elif seconds > limit and not late:  # an interrupt first: papermill then ends its kernel
                late = True
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
            elif seconds > next_beat:
                next_beat += HEARTBEAT
                beat(seconds)
    error = f"after {limit:.0f} s without an end" if late else f"with status {status}" if status else None
    memory = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Ended(error, seconds, usage.ru_utime + usage.ru_stime, memory, late)


def quiet_kernels(root: Path) -> None:
    """An IPython profile of our own: kernels do not print about sockets, and the user's start-up files are not run."""
    profile = root / "build" / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text("c = get_config()\nc.IPKernelApp.log_level = 50\n")


def what_failed(out: Path, log: Path) -> str:
    """One line: the failing cell's number in the source, its first line and the error; else the log's last line."""
    failure = failing_cell(out) if out.is_file() else None
    if failure is not None:
        return "in cell {} (`{}`): {}".format(*failure)
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"before any cell ended: {lines[-1] if lines else 'papermill said nothing'}"


def failing_cell(path: Path) -> tuple[int, str, str] | None:
    """(number of the cell in the source counted from 1, its first line, the error in one line) or None."""
    number = 0
    for cell in read_notebook(path)["cells"]:
        marks = tags(cell)
        if any(mark.startswith("papermill-error") for mark in marks) or "injected-parameters" in marks:
            continue
        number += 1
        for output in cell.get("outputs", []):
            if output["output_type"] == "error" and "raises-exception" not in marks:
                first = next((line for line in cell["source"].splitlines() if line.strip()), "")
                error = " ".join(f"{output['ename']}: {output['evalue']}".split())
                return number, first.strip(), re.sub(r"\x1b\[[0-9;]*m", "", error)
    return None
