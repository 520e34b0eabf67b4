"""Runs notebooks through papermill, two at a time, and keeps the last good execution of each and what it used."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from book.dependencies import changed, fingerprint
from book.project import Plan, Project, read_notebook, tags

CELL_SECONDS = 900  # papermill's own default is to wait for ever
NOTEBOOK_SECONDS = 1200
# jupyter_client chooses a kernel's ports before the kernel binds them, so any other process may take one (its issue
# 487). The kernel then dies before the first cell: nothing has run, and a second start is safe.
NO_START = "Kernel died before replying to kernel_info"


@dataclass(frozen=True)
class Record:
    """What is known of a good execution: wall seconds, memory of its largest process in MiB, and its fingerprint."""

    seconds: float
    memory: float
    finished: str
    parts: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """How one notebook stands: `notebook` is None where it never ran well, `error` is None where it is up to date."""

    plan: Plan
    notebook: Path | None
    record: Record | None
    executed: bool = False
    error: str | None = None

    @property
    def title(self) -> str:
        return self.plan.name


def executed_path(project: Project, name: str) -> Path:
    return project.executions / f"{name}.ipynb"


def record_of(project: Project, name: str) -> Record | None:
    """The record of the last good execution, None where there is none or its notebook is gone."""
    path = executed_path(project, name).with_suffix(".json")
    if not path.is_file() or not executed_path(project, name).is_file():
        return None
    try:
        return Record(**json.loads(path.read_text()))
    except (TypeError, ValueError):  # cut short, or written by another version of this file
        return None


def execute_all(project: Project, plans: list[Plan], jobs: int, say: Callable[[str], None]) -> list[Outcome]:
    """Brings every notebook up to date, the longest first, and says one line each. Failures do not stop the others."""
    project.executions.mkdir(parents=True, exist_ok=True)
    _quiet_kernels(project)
    records = {plan.name: record_of(project, plan.name) for plan in plans}

    def expected(plan: Plan) -> float:
        record = records[plan.name]
        return record.seconds if record else plan.limit

    outcomes = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = [pool.submit(bring_up_to_date, project, plan) for plan in sorted(plans, key=expected, reverse=True)]
        for k, future in enumerate(as_completed(futures), start=1):
            outcome = future.result()
            outcomes[outcome.plan.name] = outcome
            say(f"[{k} of {len(plans)}] {_line(outcome, records[outcome.plan.name])}")
    finally:
        pool.shutdown(cancel_futures=True)
    return [outcomes[plan.name] for plan in plans]


def bring_up_to_date(project: Project, plan: Plan) -> Outcome:
    """The last good execution where it depends on nothing that changed, else a new one."""
    parts = fingerprint(project, plan)
    record = record_of(project, plan.name)
    kept = executed_path(project, plan.name)
    if record is not None and record.parts == parts:
        return Outcome(plan, kept, record)
    error, seconds, memory = _papermill(project, plan)
    if error is not None:
        return Outcome(plan, kept if record else None, record, executed=True, error=error)
    record = Record(round(seconds, 1), round(memory), time.strftime("%Y-%m-%d %H:%M"), parts)
    os.replace(kept.with_suffix(".tmp.ipynb"), kept)
    written = kept.with_suffix(".json.tmp")
    written.write_text(json.dumps(asdict(record), indent=1) + "\n")
    os.replace(written, kept.with_suffix(".json"))
    kept.with_suffix(".failed.ipynb").unlink(missing_ok=True)
    return Outcome(plan, kept, record, executed=True)


def _line(outcome: Outcome, before: Record | None) -> str:
    name, record = outcome.plan.name, outcome.record
    if outcome.error is not None:
        return f"{name}: FAILED {outcome.error}"
    if not outcome.executed:
        return f"{name}: unchanged ({record.seconds:.0f} s when it ran)"
    reasons = changed(before.parts, record.parts) if before else []
    why = f", because of {', '.join(reasons[:3])}{' and more' if len(reasons) > 3 else ''}" if reasons else ""
    return f"{name}: {record.seconds:.0f} s, {record.memory:.0f} MiB{why}"


def _papermill(project: Project, plan: Plan) -> tuple[str | None, float, float]:
    """Runs the notebook in the checkout's root; (error or None, seconds, MiB). Its output is left at *.tmp.ipynb."""
    out = executed_path(project, plan.name).with_suffix(".tmp.ipynb")
    runs = plan.parameters.get("run_dir")
    if runs is not None:  # a run folder is never written over, and each execution is a run of its own
        shutil.rmtree(project.root / str(runs), ignore_errors=True)
    command = [
        *[sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar"],
        *["--execution-timeout", str(CELL_SECONDS), "-y", json.dumps(plan.parameters)],
        *[str(path.relative_to(project.root)) for path in (plan.source, out)],
    ]
    log = out.with_name(f"{plan.name}.log")
    start = time.monotonic()
    code, memory, late = _run(command, project.root, _environment(project), log)
    if code != 0 and not late and NO_START in log.read_text(errors="replace"):
        code, memory, late = _run(command, project.root, _environment(project), log)
    seconds = time.monotonic() - start
    if code == 0 and not late:
        if runs is not None:
            shutil.rmtree(project.root / str(runs), ignore_errors=True)
        return None, seconds, memory
    reason = f"after {NOTEBOOK_SECONDS} s without an end" if late else _what_failed(plan, out, log)
    if out.is_file():
        os.replace(out, out.with_name(f"{plan.name}.failed.ipynb"))
    return reason, seconds, memory


def _run(command: list[str], folder: Path, environment: dict[str, str], log: Path) -> tuple[int, float, bool]:
    """(exit status, MiB of the largest process in the tree, whether the limit ended it)."""
    with log.open("w") as sink:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
        )
        late = threading.Event()

        def stop(how: signal.Signals) -> None:
            late.set()
            with suppress(ProcessLookupError):
                os.kill(process.pid, how)

        timers = [  # an interrupt first: papermill then ends its kernel
            threading.Timer(NOTEBOOK_SECONDS, stop, [signal.SIGINT]),
            threading.Timer(NOTEBOOK_SECONDS + 30, stop, [signal.SIGKILL]),
        ]
        for timer in timers:
            timer.daemon = True
            timer.start()
        _, status, usage = os.wait4(process.pid, 0)  # wait() would not tell the memory
        for timer in timers:
            timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return process.returncode, usage.ru_maxrss / unit, late.is_set()


def _environment(project: Project) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}  # the kernel draws inline
    return environment | {
        "OMP_NUM_THREADS": "1",
        "IPYTHONDIR": str(project.root / "build" / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }


def _quiet_kernels(project: Project) -> None:
    """An IPython profile of our own: kernels say nothing of their sockets, and the user's start-up files stay out."""
    profile = project.root / "build" / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text("c = get_config()\nc.IPKernelApp.log_level = 50\n")


def _what_failed(plan: Plan, out: Path, log: Path) -> str:
    """One line: the failing cell's number in the source, its first line and the error; else the log's last line."""
    if out.is_file():
        failure = failing_cell(out)
        if failure is not None:
            number, source, error = failure
            return f"in cell {number} (`{source}`): {error}"
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


def slowest(outcomes: list[Outcome], count: int = 3) -> list[Outcome]:
    """Those with the most seconds on record."""
    recorded = [outcome for outcome in outcomes if outcome.record is not None]
    return sorted(recorded, key=lambda outcome: outcome.record.seconds, reverse=True)[:count]


def over_budget(project: Project, records: dict[str, Record]) -> list[str]:
    """One sentence for each limit of the table that the recorded seconds break."""
    limits = {plan.name: plan.limit for plan in project.plans()}
    sentences = [
        f"{name} took {record.seconds:.0f} s; its limit is {limits[name]:.0f} s."
        for name, record in records.items()
        if record.seconds > limits[name]
    ]
    total = sum(record.seconds for record in records.values())
    if total > project.total_limit:
        sentences.append(f"All notebooks took {total:.0f} s; their limit is {project.total_limit:.0f} s.")
    return sentences
