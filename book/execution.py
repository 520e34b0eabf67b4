"""Brings notebooks up to date, several at a time, and keeps the last good execution of each and what it used."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from book import calibration, runner
from book.dependencies import changed, fingerprint
from book.project import Plan, Project
from ebmlib.files import atomic

CELL_SECONDS = 900  # papermill's own default is to wait for ever
NOTEBOOK_SECONDS = 1200
MEMORY = 2048  # MiB of a notebook that has not run yet


@dataclass(frozen=True)
class Record:
    """What is known of a good execution."""

    seconds: float
    memory: float  # MiB of its largest process
    finished: str
    parts: dict[str, str]  # its fingerprint
    cpu: float  # seconds
    calibration: float | None = None  # what `book.calibration` measured on the same machine, where it was asked for


@dataclass(frozen=True)
class Outcome:
    """How one notebook ended: `notebook` is None where it never ran well, `error` is None where it is up to date."""

    plan: Plan
    notebook: Path | None
    record: Record | None
    executed: bool = False
    error: str | None = None


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


def execute_all(project: Project, plans: list[Plan], jobs: int | None, say: Callable[[str], None]) -> list[Outcome]:
    """Bring every notebook up to date, the longest first, and say one line each. Failures do not stop the others.

    `jobs` run at a time; None takes as many as there are cores and memory for.
    """
    project.executions.mkdir(parents=True, exist_ok=True)
    records = {plan.name: record_of(project, plan.name) for plan in plans}
    wanted = {plan.name: fingerprint(project, plan) for plan in plans}
    due = [plan for plan in plans if records[plan.name] is None or records[plan.name].parts != wanted[plan.name]]
    speed = calibration.measured() if due and project.reference else None
    slower = speed / project.reference if speed else 1.0
    seconds = {plan.name: records[plan.name].seconds if records[plan.name] else plan.limit * slower for plan in due}
    memory = {plan.name: records[plan.name].memory if records[plan.name] else MEMORY for plan in due}
    jobs = jobs or jobs_for(list(memory.values()))
    say(forecast(list(seconds.values()), list(memory.values()), jobs, len(plans)))
    outcomes = {plan.name: Outcome(plan, executed_path(project, plan.name), records[plan.name]) for plan in plans}
    for k, plan in enumerate((plan for plan in plans if plan not in due), start=1):
        say(f"[{k} of {len(plans)}] {plan.name}: unchanged ({records[plan.name].seconds:.0f} s when it ran)")
    pool = ThreadPoolExecutor(jobs)
    try:
        ordered = sorted(due, key=lambda plan: seconds[plan.name], reverse=True)
        futures = [pool.submit(execute, project, plan, wanted[plan.name], speed) for plan in ordered]
        for k, future in enumerate(as_completed(futures), start=len(plans) - len(due) + 1):
            outcome = future.result()
            outcomes[outcome.plan.name] = outcome
            say(f"[{k} of {len(plans)}] {_line(outcome, records[outcome.plan.name])}")
    finally:
        pool.shutdown(cancel_futures=True)
    return list(outcomes.values())


def execute(project: Project, plan: Plan, parts: dict[str, str], speed: float | None = None) -> Outcome:
    """A new execution, kept in place of the last one where it ends well."""
    kept, before = executed_path(project, plan.name), record_of(project, plan.name)
    out, log = kept.with_suffix(".tmp.ipynb"), kept.with_suffix(".log")
    runs = project.root / str(plan.parameters.get("run_dir", "build/runs/none"))
    shutil.rmtree(runs, ignore_errors=True)  # each execution is a run of its own, and none is written over
    limits = {"limit": NOTEBOOK_SECONDS, "cell_limit": CELL_SECONDS}
    ended = runner.run(project.root, plan.source, out, plan.parameters, log, **limits)
    if ended.error is not None:
        if out.is_file():
            os.replace(out, kept.with_suffix(".failed.ipynb"))
        return Outcome(plan, kept if before else None, before, executed=True, error=ended.error)
    shutil.rmtree(runs, ignore_errors=True)
    finished = time.strftime("%Y-%m-%d %H:%M")
    record = Record(round(ended.seconds, 1), round(ended.memory), finished, parts, round(ended.cpu, 1), speed)
    os.replace(out, kept)
    with atomic(kept.with_suffix(".json")) as draft:
        draft.write_text(json.dumps(asdict(record), indent=1) + "\n")
    kept.with_suffix(".failed.ipynb").unlink(missing_ok=True)
    return Outcome(plan, kept, record, executed=True)


def jobs_for(memory: list[float]) -> int:
    """How many notebooks of these MiB to run at a time: one per core, and as many as the free memory holds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = Path("/proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", info.read_text(), re.M) if info.is_file() else None
    free, largest = int(found[1]) / 1024 if found else math.inf, sorted(memory, reverse=True)
    return max((n for n in range(1, min(cores, len(memory)) + 1) if sum(largest[:n]) <= free), default=1)


def forecast(seconds: list[float], memory: list[float], jobs: int, count: int) -> str:
    """One sentence: how many notebooks run, how many at a time, and about how long and with how much memory."""
    if not seconds:
        return f"None of {count} notebooks has to run."
    minutes = max(sum(seconds) / jobs, max(seconds)) / 60
    gigabytes = sum(sorted(memory, reverse=True)[:jobs]) / 1024
    return f"{len(seconds)} of {count} notebooks run, {jobs} at a time: about {minutes:.0f} min and {gigabytes:.1f} GB."


def _line(outcome: Outcome, before: Record | None) -> str:
    name, record = outcome.plan.name, outcome.record
    if outcome.error is not None:
        return f"{name}: FAILED {outcome.error}"
    reasons = changed(before.parts, record.parts) if before else []
    why = f", because of {', '.join(reasons[:3])}{' and more' if len(reasons) > 3 else ''}" if reasons else ""
    return f"{name}: {record.seconds:.0f} s, {record.memory:.0f} MiB{why}"


def slowest(outcomes: list[Outcome], count: int = 3) -> list[Outcome]:
    """Those with the most seconds on record."""
    recorded = [outcome for outcome in outcomes if outcome.record is not None]
    return sorted(recorded, key=lambda outcome: outcome.record.seconds, reverse=True)[:count]


def over_budget(project: Project, records: dict[str, Record]) -> list[str]:
    """One sentence for each limit of the table that the CPU seconds break, measured as on the table's own machine."""
    limits = {plan.name: plan.limit for plan in project.plans()}
    faster = {n: project.reference / r.calibration for n, r in records.items() if project.reference and r.calibration}
    took = {name: record.cpu * faster.get(name, 1.0) for name, record in records.items()}
    said = [(f"{name} took", seconds, "its", limits[name]) for name, seconds in took.items()]
    said.append(("All notebooks took", sum(took.values()), "their", project.table()["total"]))
    return [f"{what} {s:.0f} s; {whose} limit is {limit:.0f} s." for what, s, whose, limit in said if s > limit]
