"""The table of published recipes on `book/notation.md`, made from `book/recipes.toml`: nothing in it is typed there."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context
from pathlib import Path

HEADS = ("Recipe and source", "$a$", "$b$", r"$\mathcal{T}$", "Gradient clip", "Range", "$K$")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One published recipe: what a paper's text or its released code does at each step of a chain, as in the file."""

    name: str
    key: str
    setting: str = ""
    source: str = ""
    a: float
    b: float
    a_tex: str = ""
    b_tex: str = ""
    symbol: tuple[str, float] | None = None
    noise_first: bool = False
    falls: bool = False
    clip: float | None = None
    range: str = "any"
    K: tuple[int, ...] = ()
    per: str = ""

    @property
    def temperature(self) -> float:
        """b^2 / (2 a), of the first step."""
        return self.b**2 / (2 * self.a)


def load() -> list[Recipe]:
    """The recipes of the file, in the order of the book's table. TypeError names an unknown or missing entry."""
    found = []
    for entry in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["recipe"]:
        if "b2" in entry:
            entry["b"] = entry.pop("b2") ** 0.5
        lists = {name: tuple(value) for name, value in entry.items() if isinstance(value, list)}
        found.append(Recipe(**entry | lists))
    return found


def table() -> str:
    """All recipes as a Markdown table; a recipe of the same paper as the one above is called the same."""
    recipes, lines = load(), [HEADS, ("---",) * len(HEADS)]
    lines += [row(recipe, above) for above, recipe in zip((None, *recipes), recipes)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def row(recipe: Recipe, above: Recipe | None) -> tuple[str, ...]:
    symbol = f", ${recipe.symbol[0]} = {bare(recipe.symbol[1])}$" if recipe.symbol else ""
    noise = recipe.b_tex or number(recipe.b) + ", falls linearly to 0" * recipe.falls
    return (
        _title(recipe, above is not None and above.name == recipe.name),
        (recipe.a_tex or number(recipe.a)) + symbol,
        noise + ", before the gradient" * recipe.noise_first,
        temperature(recipe.temperature) + ", falls to 0" * recipe.falls,
        "none" if recipe.clip is None else f"±{number(recipe.clip)} in each entry",
        recipe.range,
        _steps(recipe),
    )


def _title(recipe: Recipe, again: bool) -> str:
    name = "the same" if again else f"{recipe.name} {{cite:p}}`{recipe.key}`"
    setting = f", {recipe.setting}" if recipe.setting else ""
    return name + setting + (f" [{recipe.source}]" if recipe.source else "")


def _steps(recipe: Recipe) -> str:
    counts = (" or " if len(recipe.K) == 2 else ", ").join(map(str, recipe.K)) or "any"
    return f"{counts} {recipe.per}".strip()


def number(value: float) -> str:
    """As in prose, 1,000 and .005; a power of ten below 1e-4."""
    text = bare(value)
    return f"${text}$" if "^" in text else text


def bare(value: float) -> str:
    """The number in TeX, without its dollars."""
    return _power(value) if 0 < value < 1e-4 else f"{value:,g}".removeprefix("0") or "0"


def temperature(value: float) -> str:
    """Two digits; a power of ten below .1."""
    rounded = float(Context(prec=2, rounding=ROUND_HALF_UP).create_decimal(f"{value:.9e}"))
    return f"${_power(rounded)}$" if 0 < rounded < 0.1 else number(rounded)


def _power(value: float) -> str:
    digits, exponent = f"{value:.5e}".split("e")
    return rf"{float(digits):g} \cdot 10^{{{int(exponent)}}}"
