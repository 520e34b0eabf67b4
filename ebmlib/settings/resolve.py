"""Settings of the notebooks: their parameters checked, resolved against `presets`, and shown.

`start` is the first line of every notebook: it checks the parameters and resolves them before anything is written.
"""

import difflib
import html
import math
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args, get_origin

from ebmlib.settings.presets import DATASETS, NOTEBOOKS

COMMON = ("preset", "seed", "device", "dataset", "run_dir", "resume", "checkpoint")
SHELL = ("In", "Out", "exit", "quit", "open", "get_ipython")  # what IPython itself puts among the globals


@dataclass(frozen=True)
class Start:
    """A notebook's checked parameters: the common ones as given, and `config`, the resolved settings."""

    notebook: str
    preset: str
    seed: int
    device: str | None
    dataset: str | None
    run_dir: str | None
    resume: bool
    checkpoint: str | None
    config: Any
    published: Mapping[str, Any]  # what the paper sets for this data set, where that is not the chapter's own

    def key(self, dataset: str) -> dict[str, Any]:
        """What a run folder's name is the hash of: the resolved settings, the data set's true name, the seed."""
        return {"settings": asdict(self.config), "dataset": dataset, "seed": self.seed}


def start(notebook: str, namespace: Mapping[str, Any]) -> Start:
    """Check the parameters among a notebook's globals and resolve its settings; None means "from the preset".

    ValueError in one sentence for an unknown name (with the nearest known one), preset, type or value.
    """
    settings, presets = NOTEBOOKS[notebook]
    types_of = {f.name: f for f in fields(settings)}
    given = {k: v for k, v in namespace.items() if not k.startswith("_") and k not in SHELL and not _is_code(v)}
    known = [*COMMON, *types_of]
    for name in given:
        if name not in known:
            raise ValueError(f"unknown parameter {name}{_nearest(name, known)}: {notebook} takes {', '.join(known)}")
    preset = given.get("preset", "quick")
    if not isinstance(preset, str) or preset not in presets:
        raise ValueError(f"preset = {preset!r}{_nearest(preset, presets)}: allowed are {', '.join(presets)}")
    common = {
        "seed": _typed("seed", given.get("seed", 0), int, low=0),
        "resume": _typed("resume", given.get("resume", False), bool),
    }
    for name in ("device", "dataset", "run_dir", "checkpoint"):
        common[name] = _typed(name, given.get(name), str | None)
    chosen = {n: _checked(types_of[n], v) for n, v in given.items() if n in types_of and v is not None}
    published = _published(notebook, common["dataset"], chosen.get("size"))
    config = replace(settings(), **{**(published if preset == "paper" else {}), **presets[preset], **chosen})
    config = config.implied(chosen) if hasattr(config, "implied") else config
    return Start(notebook, preset, config=config, published=published, **common)


def _published(notebook: str, dataset: str | None, size: int | None) -> Mapping[str, Any]:
    """What the paper sets for a data set, at this size where it has several."""
    found = DATASETS.get(notebook, {}).get(dataset or "", [])
    return next((entry for entry in found if entry.get("size") == size), found[0] if found else {})


def _is_code(thing: Any) -> bool:
    return isinstance(thing, types.ModuleType | types.FunctionType | type)


def _nearest(name: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _typed(name: str, given: Any, kind: Any, low: float | None = None, below: float | None = None) -> Any:
    """`given` as `kind` (int, float, bool, str, tuple[int, ...] or str | None), or one sentence."""
    names = {
        int: "a whole number",
        float: "a number",
        bool: "True or False",
        str: "a text",
        str | None: "a text or None",
    }
    bound = "" if low is None else f" of at least {low:g}"
    bound += "" if below is None else f" and below {below:g}"
    if get_origin(kind) is tuple:
        whole = isinstance(given, list | tuple) and given and all(type(n) is int and n > 0 for n in given)
        if not whole:
            hint = f", from papermill by -y '{name}: [1, 2]'" if isinstance(given, str) else ""  # -p passes a text
            raise ValueError(f"{name} = {given!r}: allowed is a list of positive whole numbers{hint}")
        return tuple(given)
    wanted = get_args(kind) or (kind,)
    good = type(given) in wanted or (kind is float and type(given) is int)
    good = good and not (type(given) is float and not math.isfinite(given))
    if not good or (low is not None and not given >= low) or (below is not None and not given < below):
        raise ValueError(f"{name} = {given!r}: allowed is {names[kind]}{bound}")
    return float(given) if kind is float else given


def _checked(setting: Any, given: Any) -> Any:
    known = setting.metadata
    given = _typed(setting.name, given, setting.type, known["low"], known["below"])
    if known["allowed"] and given not in known["allowed"]:
        choices = ", ".join(map(repr, known["allowed"]))
        raise ValueError(f"{setting.name} = {given!r}: allowed are {choices}")
    return given


def table(config: Any, published: Mapping[str, Any] | None = None) -> list[tuple[str, str, str, str, str]]:
    """(setting, paper's text, released code, this run, where) for every setting of a dataclass of this module.

    The text's value is that of `published` where it has one: what the paper sets for the data set of this run.
    """
    published = published or {}
    return [
        (
            f.name,
            _word(published.get(f.name, f.metadata["text"])),
            _word(f.metadata["code"]),
            _word(getattr(config, f.name)),
            f.metadata["source"],
        )
        for f in fields(config)
    ]


def _word(thing: Any) -> str:
    return "not given" if thing is None else " x ".join(map(str, thing)) if isinstance(thing, tuple) else str(thing)


def show(run: Start) -> None:
    """Display a run's settings: paper's text | released code | this run; a column without values is left out."""
    from IPython.display import display  # only notebooks call this

    heads = ("setting", "paper's text", "released code", f"this run ({run.preset})", "where")
    columns = [column for column in zip(heads, *table(run.config, run.published)) if {*column[1:]} != {_word(None)}]
    heads, *rows = zip(*columns)
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    page = f'<div class="ebm-table"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'
    plain = "\n".join(" | ".join(row) for row in [heads, *rows])
    display({"text/html": page, "text/plain": plain}, raw=True)
