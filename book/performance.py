"""The page "What a step costs": tables and verdicts from data/benchmarks/cpu.json and cuda.json; nothing is typed."""

from __future__ import annotations

import html
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from book.papers import html_table
from book.project import raw

COMMANDS = {"cpu": "make bench", "cuda": 'make bench ARGS="--device cuda"'}
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
SERIES = {"batch": "batch", "K": "steps K", "resolution": "pixels a side"}
MISSING = "not measured"
PEERS, OURS_ON_GPU = ("torchebm", "ebmkit"), ("langevin", "compiled", "compiled, reduce-overhead")
TESTS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge}


class Goal(NamedTuple):
    """What was asked for, in words, and as a test of the worst median ratio of the best of `ours` to each of `others`.

    The ratio is seconds of ours over those of the other one, or for ">=" the inverse. `nets` chooses the cases: small
    ones, the WideResNet's, or all. Without `ours` the value is the share of the card's rate that training reaches.
    """

    device: str
    text: str
    test: str
    limit: float
    ours: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    nets: str = ""


GOALS = (
    Goal("cpu", "langevin at most 1.05 times the bare cost", "<=", 1.05, ("langevin",), ("bare",)),
    Goal("cpu", "compiled, below the bare cost", "<", 1, ("compiled",), ("bare",)),
    Goal("cpu", "langevin below both peers everywhere", "<", 1, ("langevin",), PEERS),
    Goal("cpu", "compiled, below both peers everywhere", "<", 1, ("compiled",), PEERS),
    Goal("cuda", "small nets at least 3 times as fast as both peers", ">=", 3, OURS_ON_GPU, PEERS, "small"),
    Goal(
        "cuda", "the WideResNet at least 1.5 times as fast as both peers", ">=", 1.5, OURS_ON_GPU, PEERS, "wideresnet"
    ),
    Goal("cuda", "DRL's training at 25 % or more of the card's dense bf16 rate", ">=", 0.25),
)


def reached(goal: Goal, content: dict) -> tuple[float, str] | str:
    """The worst value over the goal's cases and where it was found, or the reason why there is none."""
    if not goal.ours:
        return training_share(content)
    found, inverse = [], goal.test == ">="
    for key, rows in by_case(content).items():
        if goal.nets and ("wideresnet" if "wideresnet" in key else "small") != goal.nets:
            continue
        title = rows["bare"]["title"]
        measured = [rows[name] for name in goal.ours if name in rows and not rows[name]["not_measured"]]
        if not measured or any(other not in row["against"] for row in measured for other in goal.others):
            return f"{MISSING}: {title} lacks {', '.join(goal.ours)} or {', '.join(goal.others)}"
        for other in goal.others:
            ratio, name = min((row["against"][other]["median"], row["contender"]) for row in measured)
            found.append((1 / ratio if inverse else ratio, f"{name} beside {other}, {title}"))
    return (min(found) if inverse else max(found)) if found else f"{MISSING}: no such case"


def training_share(content: dict) -> tuple[float, str] | str:
    """The best preset's median share of the card's rate."""
    where = lambda row: f"preset {row['preset']}, engine {row['engine']}"
    shares = [(row["share"]["median"], where(row)) for row in content["training"] if row["share"]]
    reasons = [row["share_is"] for row in content["training"] if row["share_is"]]
    return max(shares) if shares else (reasons[0] if reasons else MISSING)


def load(path: Path) -> dict | None:
    """The benchmark's content, None where there is none; ValueError for a dry run, whose numbers mean nothing."""
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["meta"]["dry_run"]:
        raise ValueError(f"{path.name} is of a dry run: its numbers mean nothing and stand on no page.")
    return content


def substitutions(folder: Path) -> dict[str, str]:
    """{{ speed_goals }}, {{ speed_kills }}; for cpu and cuda {{ speed_*_source }}, _steps, _training and _growth."""
    contents = {device: load(folder / f"{device}.json") for device in COMMANDS}
    found = {"speed_goals": raw(goals(contents)), "speed_kills": kills(folder / "kills.json")}
    for device, content in contents.items():
        parts = dict.fromkeys(("source", "steps", "training", "growth"), "")
        parts["source"] = f"{DEVICES[device]}: {MISSING}. `{COMMANDS[device]}` fills this in."
        if content is not None:
            tables = {"steps": steps(content), "training": training(content), "growth": growth(content)}
            parts = {"source": source(content)} | {name: raw(table) for name, table in tables.items()}
        found |= {f"speed_{device}_{part}": text for part, text in parts.items()}
    return found


def kills(path: Path) -> str:
    """How many kills of a training run were survived, as a table."""
    if not path.is_file():
        return f"Kills: {MISSING}. `make kills` fills this in."
    content = json.loads(path.read_text(encoding="utf-8"))
    rows, meta = content["rows"], content["meta"]
    body = [[row["name"], f"{row['value']:.0f} of {row['n']}"] for row in rows]
    about = f"{rows[0]['protocol']}; {rows[0]['device']}, `{meta['command']}` at commit {meta['commit']}."
    return f"{about[0].upper()}{about[1:]}\n\n" + raw(texts(("what", "how many"), body, "Kills"))


def texts(titles: tuple[str, ...], body: list[list[str]], label: str, words: int = 0) -> str:
    """A table whose cells are texts."""
    return html_table(titles, [[html.escape(cell) for cell in row] for row in body], label, words=words)


def by_case(content: dict) -> dict[str, dict[str, dict]]:
    """key of a case: {contender: row}, in the order of the benchmark."""
    found: dict[str, dict[str, dict]] = {}
    for row in content["rows"]:
        found.setdefault(row["case"], {})[row["contender"]] = row
    return found


def source(content: dict) -> str:
    meta = content["meta"]
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    return f"Measured on {meta['hardware']} by `{meta['command']}` at commit {meta['commit']}, with {versions}."


def goals(contents: dict[str, dict | None]) -> str:
    """Each goal with the worst value found and whether it is met."""
    body = []
    for goal in GOALS:
        content = contents[goal.device]
        value = f"{MISSING}: {COMMANDS[goal.device]}" if content is None else reached(goal, content)
        cells = [value, "", MISSING]
        if not isinstance(value, str):
            unit = " times" if goal.ours else " of the rate"
            met = TESTS[goal.test](value[0], goal.limit)
            cells = [f"{value[0]:.3g}{unit}", value[1], "met" if met else "missed"]
        body.append([goal.text, DEVICES[goal.device], *cells])
    return texts(("goal", "on", "worst value", "where", "verdict"), body, "Goals")


def steps(content: dict) -> str:
    """A table: case, contender, seconds a step and times the bare cost, each as min / median / max."""
    body = []
    for row in content["rows"]:
        label = row["title"] + (f"; {row['weights']:,} weights" if row["contender"] == "bare" else "")
        cells = [f"{MISSING}: {row['not_measured']}", "", ""]
        if not row["not_measured"]:
            bare = row["against"].get("bare")
            ratio = three(bare, lambda v: f"{v:.2f}") if bare else "1"
            cells = [three(row["seconds"], seconds), ratio, str(len(row["rounds"]))]
        body.append([label, row["contender"], *cells])
    titles = ("case", "contender", "seconds a step: min / median / max", "times bare: min / median / max", "rounds")
    return texts(titles, body, "Seconds a step")


def training(content: dict) -> str:
    body = []
    for row in content["training"]:
        if reason := row.get("not_measured"):
            body.append([f"preset {row['preset']}, engine {row['engine']}", f"{MISSING}: {reason}", "", "", "", ""])
            continue
        blocks = f"{row['blocks']} block{'s' * (row['blocks'] > 1)}"
        net = f"{row['size']} px, width {row['width']}, {blocks}, {row['weights']:,} weights"
        about = f"batch {row['batch']}, T = {row['T']}, K = {row['K']}, {row['precision']}"
        engine = "" if row["engine"] == "plain" else f", engine {row['engine']}"
        memory = "" if row["memory"] is None else f"{row['memory'] / 2**20:,.0f} MiB: "
        share = three(row["share"], lambda v: f"{v:.1%}") + " " if row["share"] else ""
        rate = three(row["per_second"], lambda v: f"{v:.3g}")
        cells = [rate, memory + row["memory_is"], f"{row['flops']:.4g}", share + row["share_is"], profile(row)]
        body.append([f"preset {row['preset']}: {net}, {about}{engine}", *cells])
    titles = ("training", "iterations a second: min / median / max", "peak memory", "FLOP an iteration", "share")
    return texts((*titles, "where the time goes"), body, "Training recovery likelihood", words=2)


def profile(row: dict) -> str:
    """The operations that take most of one iteration, and how busy they kept a GPU."""
    operations, busy = row["profile"]["operations"], row["profile"]["busy"]
    parts = ", ".join(f"{part['share']:.0%} {part['operation'].removeprefix('aten::')}" for part in operations)
    return parts if busy is None else f"busy {busy:.0%} of the iteration: {parts}"


def growth(content: dict) -> str:
    body = []
    for row in content["growth"]:
        cells = [f"{three(row['seconds'], seconds)} a {row['per']}", three(row["times"], lambda v: f"{v:.3g}")]
        body.append([row["title"], f"{SERIES[row['kind']]} = {row['x']:,}", *cells])
    titles = ("net", "size", "seconds: min / median / max", "times the first of its series: min / median / max")
    return texts(titles, body, "How the cost grows")


def three(values: dict[str, float], say: Callable[[float], str]) -> str:
    return " / ".join(say(values[key]) for key in ("min", "median", "max"))


def seconds(value: float) -> str:
    """Three digits, in milliseconds below a second."""
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
