"""The table of published recipes on `book/notation.md`, made from `ebmlib.recipes`: nothing in it is typed there."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context

from ebmlib.recipes import RECIPES, Recipe

HEADS = ("Recipe and source", "$a$", "$b$", r"$\mathcal{T}$", "Gradient clip", "Range", "$K$")


def table() -> str:
    """All recipes as a Markdown table; a recipe of the same paper as the one above is called the same."""
    lines = [HEADS, ("---",) * len(HEADS)]
    lines += [row(recipe, above) for above, recipe in zip((None, *RECIPES), RECIPES)]
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
