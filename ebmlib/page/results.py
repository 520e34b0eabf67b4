"""Results: a number with its standard error, protocol, hardware and the paper's number; as a table and as JSON.

An executed notebook is the record: `show` displays rows as a table with a JSON twin, `read` gets them back.
"""

import json
import math
import numbers
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ebmlib.files import atomic
from ebmlib.page import shown

MIME = "application/vnd.ebmlib.results+json"
COMMITTED = Path(__file__).resolve().parents[2] / "data" / "results"  # the rows of long runs that come with the book
ERROR_TAG = "papermill-error-cell-tag"  # of the cells that papermill puts into a failed notebook
_KINDS = {str: "a string", numbers.Integral: "an integer", numbers.Real: "a number"}
LEAST = {"se": 0, "seconds": 0, "n": 1}  # the smallest value that a column may have


@dataclass(frozen=True)
class Row:
    """One result. value: this run's, se: its standard error, n: samples behind it, paper: the paper's own number.

    source says where the paper has its number (a table, say), protocol how ours was taken; seed is a list for a mean
    over seeds; seconds is the cost. Wrong types, NaN and infinities are a ValueError that names the row.
    """

    name: str
    value: float
    se: float | None = None
    n: int | None = None
    unit: str = ""
    paper: float | str | None = None
    source: str = ""
    dataset: str = ""
    protocol: str = ""
    preset: str = ""
    seed: int | list[int] | None = None
    device: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"a result's name must be a non-empty string, got {self.name!r}.")
        for key in COLUMNS[1:]:
            object.__setattr__(self, key, _plain(f"result {self.name!r}: {key}", key, getattr(self, key)))


COLUMNS = tuple(f.name for f in fields(Row))


def _plain(what: str, key: str, value: Any) -> Any:
    """The value of a column as a plain text or number of Python; ValueError where it is none."""
    default = Row.__dataclass_fields__[key].default
    if value is None and default is None:
        return None
    if key == "seed" and isinstance(value, list | tuple):
        return [_plain(what, key, seed) for seed in value]
    is_text = default == "" or (key == "paper" and isinstance(value, str))
    kind = str if is_text else numbers.Integral if key in ("n", "seed") else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{what} must be {_KINDS[kind]}, got {value!r}.")
    if kind is str:
        return value
    if not math.isfinite(value) or value < LEAST.get(key, -math.inf):
        raise ValueError(f"{what} must be finite{f' and at least {LEAST[key]}' if key in LEAST else ''}, got {value}.")
    return int(value) if kind is numbers.Integral else float(value)


def hardware(device: Any = "cpu") -> str:
    """What a run was made on: the GPU's name for a CUDA device, else "CPU, <threads>, <model>"."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type.upper()}, {platform.machine()}"
    threads, info = torch.get_num_threads(), Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = next(filter(None, names), "") or platform.processor() or platform.machine()
    return f"CPU, {threads} thread{'s' * (threads != 1)}, {model}"


def mean_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows of several seeds as their mean with its standard error, std / sqrt(number of seeds).

    Rows that agree in all but value, se, n, seed, device and seconds belong together; a single row stays as it is.
    n stays where all seeds share it, seconds are their mean. A missing or repeated seed is a ValueError.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in _checked(rows):
        groups.setdefault(_group(row), []).append(row)
    return [group[0] if len(group) == 1 else _mean(group) for group in groups.values()]


def _group(row: Row) -> tuple:
    return row.name, row.unit, row.paper, row.source, row.dataset, row.protocol, row.preset


def _mean(group: Sequence[Row]) -> Row:
    name, seeds, seconds, count = group[0].name, [r.seed for r in group], [r.seconds for r in group], len(group)
    if len({seed for seed in seeds if isinstance(seed, int)}) < count:
        raise ValueError(f"result {name!r}: a mean over seeds needs another single seed in each row, got {seeds}.")
    mean = fmean(row.value for row in group)
    variance = math.fsum((row.value - mean) ** 2 for row in group) / (count - 1)
    n = group[0].n if len({row.n for row in group}) == 1 else None
    device = "; ".join(dict.fromkeys(row.device for row in group if row.device))
    cost, se = None if None in seconds else fmean(seconds), math.sqrt(variance / count)
    return replace(group[0], value=mean, se=se, n=n, seed=seeds, device=device, seconds=cost)


def with_means(rows: Iterable[Row]) -> list[Row]:
    """The means of those rows that have several seeds, then the rows: what a file of committed rows holds.

    A row that is itself a mean, over sampling seeds for example, is there once.
    """
    rows = list(rows)
    return [*(row for row in mean_rows(rows) if row not in rows), *rows]


def summary(rows: Iterable[Row]) -> list[Row]:
    """What a page shows of such a file: the means, and the rows that no mean covers."""
    rows = _checked(rows)
    covered = {(_group(row), seed) for row in rows if isinstance(row.seed, list) for seed in row.seed}
    return [row for row in rows if isinstance(row.seed, list) or (_group(row), row.seed) not in covered]


def show(rows: Iterable[Row], *, own: bool = True) -> None:
    """Display rows as a table (HTML, plain text); in plain Python, print the table.

    Only rows of the run itself, `own`, have the JSON twin that `read` takes them from.
    """
    rows = _checked(rows)
    shown.show(as_html(rows), as_text(rows), **({MIME: [asdict(row) for row in rows]} if own else {}))


def show_committed(notebook: str, preset: str) -> None:
    """Show the means of `data/results/<notebook>.json` that are not of this preset, or say that there are none.

    Rows of the run's own preset are left out, because the run has just made them.
    """
    path = COMMITTED / f"{notebook}.json"
    rows = summary(load(path)[0]) if path.is_file() else []
    others = [row for row in rows if row.preset != preset]
    if others:
        show(others, own=False)
    elif not rows:
        sentence = f"There are no committed rows of longer runs of {notebook} yet."
        shown.show(f"<p>{shown.escaped(sentence)}</p>", sentence)


def as_html(rows: Iterable[Row]) -> str:
    """The table paper | this run as HTML: escaped, with class names for the book's CSS, scrolling on a narrow page."""
    titles, body = _cells(rows)
    note = lambda text: f'<br><small class="ebm-results-note">{shown.escaped(text)}</small>' if text else ""
    cells = [[shown.escaped(main) + note(more) for main, more in line] for line in body]
    return shown.as_html(titles, cells, "Results")


def as_text(rows: Iterable[Row]) -> str:
    """The same table in plain text."""
    titles, body = _cells(rows)
    table = [titles, *([f"{main} ({note})" if note else main for main, note in line] for line in body)]
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in table)


def _cells(rows: Iterable[Row]) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Column titles and, per row, cells of (text, note); columns that are empty in every row are left out."""
    rows = _checked(rows)
    note = lambda seed: "seeds " + ", ".join(map(str, seed)) if isinstance(seed, list) else f"seed {seed}"
    cost = lambda row: f"{'mean ' * isinstance(row.seed, list)}{row.seconds:.4g} s"
    columns = {
        "result": [(row.name + (f" [{row.unit}]" if row.unit else ""), row.protocol) for row in rows],
        "paper": [(quantity(r.paper) if isinstance(r.paper, float) else r.paper or "", r.source) for r in rows],
        "this run": [(quantity(row.value, row.se), "") for row in rows],
        "n": [("" if row.n is None else f"{row.n:,}", "") for row in rows],
        "data set": [(row.dataset, "") for row in rows],
        "preset": [(row.preset, "" if row.seed is None else note(row.seed)) for row in rows],
        "hardware": [(row.device, "" if row.seconds is None else cost(row)) for row in rows],
    }
    kept = {k: cells for k, cells in columns.items() if k in ("paper", "this run") or any(map(any, cells))}
    return list(kept), [list(line) for line in zip(*kept.values())]


def quantity(value: float, se: float | None = None) -> str:
    """A value with its standard error, both rounded to two digits of the error: 1.2345, 0.067 -> "1.234 ± 0.067".

    An error of 0, or one below the float's own rounding, is not shown: the value has four digits, or all of a count.
    """
    if not se or math.isnan(se) or se < 1e-12 * abs(value):
        return f"{value + 0.0:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.4g}"
    se = float(f"{se:.1e}")  # first, because 0.0996 has its two digits at 0.10
    exponent, places = math.floor(math.log10(max(abs(value), se))), 1 - math.floor(math.log10(se))
    if -4 <= exponent < 6:
        value, se = round(value, places) + 0.0, round(se, places)  # no -0.00
        return f"{value:.{max(places, 0)}f} ± {se:.{max(places, 0)}f}"
    scale, places = 10.0**exponent, places + exponent
    return f"({value / scale:.{places}f} ± {se / scale:.{places}f})e{exponent}"


def read(path: str | Path) -> list[Row]:
    """The rows that the run of an executed notebook made, in order, without committed ones that its page shows.

    ValueError names the notebook and the cell where a run failed or did not finish, or which was not run in its turn,
    each once from top to bottom; or says that there are no results.
    """
    notebook = _json(Path(path))
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError(f"{path} is not a notebook.")
    cells = [cell for cell in notebook["cells"] if ERROR_TAG not in cell.get("metadata", {}).get("tags", [])]
    rows, turn = [], 0
    for number, cell in enumerate(cells, 1):
        turn += (is_code := cell.get("cell_type") == "code" and bool("".join(cell.get("source", "")).strip()))
        if trouble := _trouble(cell, turn if is_code else None):
            raise ValueError(f"{path} is not a finished run: cell {number} {trouble}.")
        for output in cell.get("outputs", []):
            rows += _rows(output.get("data", {}).get(MIME, []), f"{path}, cell {number}")
    if notebook.get("metadata", {}).get("papermill", {}).get("exception") or len(cells) < len(notebook["cells"]):
        raise ValueError(f"{path} is not a finished run: papermill marked it as failed.")
    if not rows:
        raise ValueError(f"{path} has no results: no cell shows any, or it was never executed.")
    return rows


def _trouble(cell: dict, turn: int | None) -> str:
    """Why a cell makes its notebook unusable, "" if it does not; `turn` is its place among the cells of code."""
    metadata = cell.get("metadata", {})
    errors = [output for output in cell.get("outputs", []) if output.get("output_type") == "error"]
    if errors and "raises-exception" not in metadata.get("tags", []):
        return f"failed with {errors[0].get('ename')}: {' '.join(str(errors[0].get('evalue')).split())}".rstrip(".")
    status = metadata.get("papermill", {}).get("status", "completed")
    if status != "completed":
        return f"is marked {status}"
    count = cell.get("execution_count")
    if turn is None or count == turn:
        return ""
    return "was not run" if count is None else f"was run in another order (run {count} of the kernel, not {turn})"


def save(path: str | Path, rows: Iterable[Row], *, overwrite: bool = False, **meta: Any) -> None:
    """Write rows and `meta` (commit, settings hash, ...) as JSON, whole or not at all.

    A file with other content is kept: RuntimeError, unless `overwrite`.
    """
    path = Path(path)
    content = {"meta": meta, "rows": [asdict(row) for row in _checked(rows)]}
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    if path.exists() and not overwrite:
        if path.read_text(encoding="utf-8") == text:
            return
        raise RuntimeError(f"{path} exists and holds other results; pass overwrite=True to replace it.")
    with atomic(path) as draft:
        draft.write_text(text, encoding="utf-8")


def load(path: str | Path) -> tuple[list[Row], dict[str, Any]]:
    """Rows and meta of a file that `save` wrote; a missing or damaged file is named in the error."""
    match _json(Path(path)):
        case {"meta": dict(meta), "rows": list(rows)}:
            return _rows(rows, str(path)), meta
    raise ValueError(f"{path} is not a results file: it must hold rows and meta.")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # covers broken JSON and broken UTF-8
        raise ValueError(f"{path} is not JSON: {error}.") from None


def _rows(items: Any, where: str) -> list[Row]:
    """Rows from their dictionaries."""
    try:
        return [Row(**item) for item in items]
    except TypeError as error:  # no dictionaries, or with other columns
        raise ValueError(f"{where}: these are not rows of results: {error}.") from None


def _checked(rows: Iterable[Row]) -> list[Row]:
    rows = [rows] if isinstance(rows, Row) else list(rows)
    wrong = next((row for row in rows if not isinstance(row, Row)), None)
    if wrong is not None or not rows:
        raise ValueError(f"results must be a non-empty list of Row, got {'an empty one' if not rows else repr(wrong)}.")
    return rows
