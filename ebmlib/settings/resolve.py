"""Settings of a notebook from its parameters: checked, and resolved against the preset. `run.job.start` calls this."""

import contextlib
import difflib
import importlib
import math
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields, replace
from pathlib import Path
from types import FunctionType, ModuleType, UnionType
from typing import Any, get_args, get_origin

from ebmlib.settings.value import Settings

COMMON = ("preset", "seed", "device", "dataset", "run_dir", "resume", "checkpoint")
SEEDS = 2**32  # so that 1000 * seed + k stays an int64, and JavaScript and NumPy take the seed, too
SHELL = ("In", "Out", "exit", "quit", "open", "get_ipython")  # what IPython itself puts among the globals
_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", str | None: "a text or None"}


def classes() -> dict[str, type[Settings]]:
    """The settings class of each notebook, by the notebook's name: all that the modules of this package define."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"ebmlib.settings.{module.name}")
    found = [cls for cls in Settings.__subclasses__() if cls.__module__.startswith("ebmlib.settings.")]
    return {cls.notebook: cls for cls in sorted(found, key=lambda cls: cls.notebook)}


def parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters among a notebook's globals: what is neither code nor IPython's nor begins with _."""
    code = ModuleType | FunctionType | type
    return {k: v for k, v in namespace.items() if not (k.startswith("_") or k in SHELL or isinstance(v, code))}


def common(cls: type[Settings], given: Mapping[str, Any]) -> dict[str, Any]:
    """The seven common parameters, checked; ValueError in one sentence for an unknown name or a wrong value."""
    known = [*COMMON, *(f.name for f in fields(cls))]
    for name in (name for name in given if name not in known):
        meant = _nearest(name, known)
        raise ValueError(f"unknown parameter {name}{meant}: {cls.notebook} takes {', '.join(known)}")
    preset = given.get("preset", "quick")
    if not isinstance(preset, str) or preset not in cls.presets:
        raise ValueError(f"preset = {preset!r}{_nearest(preset, cls.presets)}: allowed are {', '.join(cls.presets)}")
    seed = _typed("seed", given.get("seed", 0), int, low=0, below=SEEDS)
    resume = _typed("resume", given.get("resume", False), bool)
    texts = {k: _typed(k, given.get(k), str | None) for k in ("device", "dataset", "run_dir", "checkpoint")}
    values = {"preset": preset, "seed": seed, "resume": resume, **texts}
    for name in ("dataset", "resume", "checkpoint"):
        if name not in cls.takes and values[name] not in (None, False, cls.data):
            only = repr(cls.data) if name == "dataset" and cls.data else "False" if name == "resume" else "None"
            raise ValueError(f"{name} = {values[name]!r}: {cls.notebook} has no use for it, allowed is only {only}")
    return values


def resolved(cls: type[Settings], given: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The settings that these parameters give, and what the paper sets for their data set where it differs.

    given: common parameters and settings by name; a setting that is None is taken from the preset, and the text "off"
    switches one off that may be None. ValueError in one sentence for an unknown name or a wrong value.
    """
    values, of = common(cls, given), {f.name: f for f in fields(cls)}
    chosen = {name: _checked(of[name], v) for name, v in given.items() if name in of and v is not None}
    found = cls.published.get(values["dataset"] or "", [])
    published = next((entry for entry in found if entry.get("size") == chosen.get("size")), found[0] if found else {})
    short = {f.name: f.metadata["presets"][p] for f in fields(cls) if (p := values["preset"]) in f.metadata["presets"]}
    config = replace(cls(), **((published if values["preset"] == "paper" else {}) | short | chosen)).implied(chosen)
    _fit_together(config)
    return config, published


def table(config: Settings, published: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(setting, paper's text, released code, this run, where) for every setting; the text's value is that of
    `published` where it has one: what the paper sets for the data set of this run.
    """
    rows = []
    for f in fields(config):
        text, code = _word(published.get(f.name, f.metadata["text"])), _word(f.metadata["code"])
        rows.append((f.name, text, code, _word(getattr(config, f.name), "off"), f.metadata["source"]))
    return rows


def _word(thing: Any, nothing: str = "not given") -> str:
    return nothing if thing is None else " x ".join(map(str, thing)) if isinstance(thing, tuple) else str(thing)


def _nearest(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _checked(setting: Field, given: Any) -> Any:
    known = setting.metadata
    given = _typed(setting.name, given, setting.type, known["low"], known["above"], known["below"])
    if known["allowed"] and given not in known["allowed"]:
        raise ValueError(f"{setting.name} = {given!r}: allowed are {', '.join(map(repr, known['allowed']))}")
    if known["check"]:
        known["check"](given)
    return given


def _typed(name: str, given: Any, kind: Any, low: Any = None, above: Any = None, below: Any = None) -> Any:
    """`given` as `kind`, or ValueError; a number in a text, as YAML reads 1e-4, is a number."""
    if get_origin(kind) is tuple:
        if isinstance(given, list | tuple) and given and all(type(n) is int and n > 0 for n in given):
            return tuple(given)
        hint = f", from papermill by -y '{name}: [1, 2]'" if isinstance(given, str) else ""  # -p passes a text
        raise ValueError(f"{name} = {given!r}: allowed is a list of positive whole numbers{hint}")
    optional = isinstance(kind, UnionType) and kind != (str | None)
    if optional and given == "off":
        return None
    kind = get_args(kind)[0] if optional else kind
    value = given
    if kind is float and type(given) in (int, str):
        with contextlib.suppress(ValueError):
            value = float(given)
    good = type(value) in (get_args(kind) or (kind,)) and not (type(value) is float and not math.isfinite(value))
    good = good and (low is None or value >= low) and (above is None or value > above)
    if not good or (below is not None and not value < below):
        ends = {"of at least": low, "above": above, "below": below}
        bounds = " and ".join(f"{word} {end}" for word, end in ends.items() if end is not None)
        allowed = f"{_KINDS[kind]} {bounds}".rstrip() + ", or the text off" * optional
        raise ValueError(f"{name} = {given!r}: allowed is {allowed}")
    return value


def _fit_together(config: Settings) -> None:
    """ValueError if a setting is larger than one that bounds it, or if the net cannot halve the images."""
    for f in fields(config):
        most, value = f.metadata["most"], getattr(config, f.name)
        if most and value > (bound := getattr(config, most)):
            raise ValueError(f"{f.name} = {value}: allowed is at most {most} = {bound}")
    times, size = config.halvings(), getattr(config, "size", 0)
    if size and size % 2**times:
        raise ValueError(f"size = {size}: the net halves images {times} times, so it is a multiple of {2**times}")
