"""The page "What a step costs": tables and verdicts from data/benchmarks/cpu.json and cuda.json; nothing is typed."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from book.papers import html_table

COMMANDS = {"cpu": "make bench", "cuda": 'make bench ARGS="--device cuda"'}
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
PEERS = ("torchebm", "ebmkit")
SPREAD = ("min", "median", "max")
SERIES = {"batch": "batch", "K": "steps K", "resolution": "pixels a side"}
MISSING = "not measured"


@dataclass(frozen=True)
class Goal:
    """What was asked for: `value` takes the benchmark's content and gives (number, where), or a reason for none.

    The number is the worst one over the goal's cases, so that the goal is met everywhere or not at all.
    """

    device: str
    text: str
    value: Callable[[dict], tuple[float, str] | str]
    met: Callable[[float], bool]
    unit: str = " times"


def worst(case: str, contenders: tuple[str, ...], others: tuple[str, ...], speedup: bool = False):
    """The worst median ratio over cases whose key contains `case` (not, with a `!`), of the best of `contenders`.

    A ratio is seconds of ours over seconds of the other one, or the inverse as a `speedup`; smaller is worse there.
    """

    def value(content: dict) -> tuple[float, str] | str:
        found = []
        for key, rows in by_case(content).items():
            if (case.removeprefix("!") in key) == case.startswith("!"):
                continue
            title = rows["bare"]["title"]
            measured = [rows[name] for name in contenders if name in rows and not rows[name]["not_measured"]]
            if not measured or any(other not in row["against"] for row in measured for other in others):
                return f"{MISSING}: {title} lacks {', '.join(contenders)} or {', '.join(others)}"
            for other in others:
                ratio, name = min((row["against"][other]["median"], row["contender"]) for row in measured)
                found.append((1 / ratio if speedup else ratio, f"{name} beside {other}, {title}"))
        if not found:
            return f"{MISSING}: no such case"
        return min(found) if speedup else max(found)

    return value


def training_share(content: dict) -> tuple[float, str] | str:
    """The best preset's median share of the card's rate."""
    where = lambda row: f"preset {row['preset']}, engine {row.get('engine', 'plain')}"
    shares = [(row["share"]["median"], where(row)) for row in content["training"] if row["share"]]
    reasons = [row["share_is"] for row in content["training"] if row["share_is"]]
    return max(shares) if shares else (reasons[0] if reasons else MISSING)


OURS_ON_GPU = ("langevin", "compiled", "compiled, reduce-overhead")
GPU_TRAINING = "DRL's training at 25 % or more of the card's dense bf16 rate"
most = lambda limit: lambda value: value <= limit
below = lambda limit: lambda value: value < limit
least = lambda limit: lambda value: value >= limit
GOALS = (
    Goal("cpu", "`langevin` at most 1.05 times the bare cost", worst("", ("langevin",), ("bare",)), most(1.05)),
    Goal("cpu", "compiled, below the bare cost", worst("", ("compiled",), ("bare",)), below(1)),
    Goal("cpu", "`langevin` below both peers everywhere", worst("", ("langevin",), PEERS), below(1)),
    Goal("cpu", "compiled, below both peers everywhere", worst("", ("compiled",), PEERS), below(1)),
    Goal("cuda", "small nets at least 3 times as fast as both peers",
         worst("!wideresnet", OURS_ON_GPU, PEERS, True), least(3)),
    Goal("cuda", "the WideResNet at least 1.5 times as fast as both peers",
         worst("wideresnet", OURS_ON_GPU, PEERS, True), least(1.5)),
    Goal("cuda", GPU_TRAINING, training_share, least(0.25), " of the rate"),
)  # fmt: skip


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
        if content is None:
            nothing = f"{DEVICES[device]}: {MISSING}. `{COMMANDS[device]}` fills this in."
            parts = {"source": nothing, "steps": "", "training": "", "growth": ""}
        else:
            parts = {
                "source": source(content),
                "steps": raw(steps(content)),
                "training": raw(training(content)),
                "growth": raw(growth(content)),
            }
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


def raw(table: str) -> str:
    return f"```{{raw}} html\n{table}\n```"


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
        value = f"{MISSING}: {COMMANDS[goal.device]}" if content is None else goal.value(content)
        if isinstance(value, str):
            cells = [value, "", MISSING]
        else:
            cells = [f"{value[0]:.3g}{goal.unit}", value[1], "met" if goal.met(value[0]) else "missed"]
        body.append([goal.text.replace("`", ""), DEVICES[goal.device], *cells])
    return texts(("goal", "on", "worst value", "where", "verdict"), body, "Goals")


def steps(content: dict) -> str:
    """A table: case, contender, seconds a step and times the bare cost, each as min / median / max."""
    body = []
    for rows in by_case(content).values():
        for name, row in rows.items():
            label = f"{row['title']}; {row['weights']:,} weights" if name == "bare" else row["title"]
            if row["not_measured"]:
                cells = [f"{MISSING}: {row['not_measured']}", "", ""]
            else:
                bare = row["against"].get("bare")
                ratio = three(bare, lambda v: f"{v:.2f}") if bare else "1"
                cells = [three(row["seconds"], seconds), ratio, str(len(row["rounds"]))]
            body.append([label, name, *cells])
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
        cells = [
            f"preset {row['preset']}: {net}, batch {row['batch']}, T = {row['T']}, K = {row['K']}, {row['precision']}"
            + ("" if row.get("engine", "plain") == "plain" else f", engine {row['engine']}"),
            three(row["per_second"], lambda v: f"{v:.3g}"),
            memory(row),
            f"{row['flops']:.4g}",
            three(row["share"], lambda v: f"{v:.1%}") + f" {row['share_is']}" if row["share"] else row["share_is"],
            profile(row),
        ]
        body.append(cells)
    titles = ("training", "iterations a second: min / median / max", "peak memory", "FLOP an iteration", "share")
    return texts((*titles, "where the time goes"), body, "Training recovery likelihood", words=2)


def profile(row: dict[str, Any]) -> str:
    """The operations that take most of one iteration, and how busy they kept a GPU."""
    if not row.get("profile"):
        return MISSING
    operations = row["profile"]["operations"]
    parts = ", ".join(f"{part['share']:.0%} {part['operation'].removeprefix('aten::')}" for part in operations)
    busy = row["profile"]["busy"]
    return parts if busy is None else f"busy {busy:.0%} of the iteration: {parts}"


def memory(row: dict[str, Any]) -> str:
    return row["memory_is"] if row["memory"] is None else f"{row['memory'] / 2**20:,.0f} MiB: {row['memory_is']}"


def growth(content: dict) -> str:
    body = []
    for row in content["growth"]:
        cells = [
            row["title"],
            f"{SERIES[row['kind']]} = {row['x']:,}",
            f"{three(row['seconds'], seconds)} a {row['per']}",
            three(row["times"], lambda v: f"{v:.3g}"),
        ]
        body.append(cells)
    titles = ("net", "size", "seconds: min / median / max", "times the first of its series: min / median / max")
    return texts(titles, body, "How the cost grows")


def three(values: dict[str, float], say: Callable[[float], str]) -> str:
    return " / ".join(say(values[key]) for key in SPREAD)


def seconds(value: float) -> str:
    """Three digits, in milliseconds below a second."""
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
