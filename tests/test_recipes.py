"""The published recipes: their papers' and releases' numbers, the settings that repeat them, the book's table."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from book import recipes
from book.recipes import Recipe
from ebmlib.settings.cf_ebm import CoarseToFineToy
from ebmlib.settings.drl import DRLImages
from ebmlib.settings.improved_cd import ImprovedCDToy
from ebmlib.settings.vaebm import VAEBMToy

ROOT = Path(__file__).resolve().parents[1]
RECIPES = recipes.load()
NOTATION = (ROOT / "book" / "notation.md").read_text("utf-8")


def one(name: str, source: str = "", setting: str = "") -> Recipe:
    found = [r for r in RECIPES if (r.name, setting or r.setting) == (name, r.setting) and r.source.startswith(source)]
    assert found, f"no recipe {name} [{source}]"
    return found[0]


# name, source, setting: a, b, clip, steps, temperature, as gathered from the papers and from reading their releases
PUBLISHED = {
    ("IGEBM", "code", "CIFAR-10"): (10, 0.005, 0.01, (60,), 1.3e-6),
    ("JEM", "code", ""): (1, 0.01, None, (20,), 5e-5),
    ("short-run", "code", ""): (1, 0.01, None, (100,), 5e-5),
    ("improved CD", "code", "CIFAR-10"): (100, 0.001, None, (40,), 5e-9),
    ("improved CD", "code", "CelebA"): (500, 0.001, None, (40,), 1e-9),
    ("improved CD", "paper", "CIFAR-10"): (500, 0.001, None, (40,), 1e-9),
    ("improved CD", "paper", "CelebA-HQ, LSUN"): (1000, 0.001, None, (40,), 5e-10),
    ("VAEBM", "paper, code", "CIFAR-10"): (4e-5, 8e-5**0.5, None, (10,), 1),
    ("CF-EBM", "code", ""): (1, 0.015, None, (15,), 1.1e-4),
    ("CF-EBM", "paper", ""): (0.5, 0.137, None, (15, 30, 50, 50, 60), 1.9e-2),
    ("recovery likelihood", "code", "T6"): (0.5, 1, None, (30,), 1),
    ("recovery likelihood", "paper", ""): (2e-8, 2e-4, None, (30,), 1),
    ("recovery likelihood", "paper, Eq. 12", "T1k"): (1, 1, None, (1,), 0.5),
    ("self-adversarial", "paper", "noisy"): (0.05, 0.1, None, (40, 60), 0.1),
    ("self-adversarial", "paper", "noise-free"): (0.05, 0, None, (40, 60), 0),
}


@pytest.mark.parametrize("which", PUBLISHED, ids=" ".join)
def test_a_recipe_has_the_published_numbers(which: tuple[str, str, str]):
    a, b, clip, K, temperature = PUBLISHED[which]
    recipe = one(*which)
    assert (recipe.a, recipe.b) == (pytest.approx(a), pytest.approx(b, rel=3e-3))
    assert (recipe.clip, recipe.K) == (clip, K)
    assert recipe.temperature == pytest.approx(temperature, rel=0.04)


def test_nothing_but_exact_langevin_is_left_unchecked():
    checked = {one(*which) for which in PUBLISHED}
    assert [recipe.name for recipe in RECIPES if recipe not in checked] == ["exact Langevin (ULA)"]
    assert one("exact Langevin (ULA)").temperature == pytest.approx(1)
    first = {(recipe.name, recipe.source) for recipe in RECIPES if recipe.noise_first}
    assert first == {("IGEBM", "code"), ("improved CD", "code")}
    assert {recipe.name for recipe in RECIPES if recipe.falls} == {"CF-EBM"}
    assert len(set(RECIPES)) == len(RECIPES)


def told(chapter: type, setting: str) -> tuple:
    """What the paper's text and the released code say of a setting, as the notebooks' tables show it."""
    (found,) = [f.metadata for f in fields(chapter) if f.name == setting]
    return found["text"], found["code"]


def test_recipes_and_settings_say_the_same():
    text, code = one("improved CD", "paper"), one("improved CD", "code")
    assert told(ImprovedCDToy, "step") == (text.a, code.a)
    assert told(ImprovedCDToy, "temperature") == (pytest.approx(text.temperature), code.temperature)
    assert told(ImprovedCDToy, "K") == (*text.K, *code.K)
    text, code = one("CF-EBM", "paper"), one("CF-EBM", "code")
    assert told(CoarseToFineToy, "step") == (text.a, code.a)
    assert told(CoarseToFineToy, "K") == (text.K, code.K * 5)
    assert told(VAEBMToy, "eta") == (one("VAEBM").symbol[1],) * 2
    assert told(VAEBMToy, "K") == one("VAEBM").K * 2
    assert told(DRLImages, "K") == one("recovery likelihood", "paper").K * 2


# The book's table


def test_the_table_reads_as_a_person_would_write_it():
    rows = [line.strip("| ").split(" | ") for line in recipes.table().splitlines()]
    assert [rows[k][3] for k in (2, 6, 12, 16)] == ["1", r"$5 \cdot 10^{-9}$", r"$1.9 \cdot 10^{-2}$, falls to 0", ".1"]
    assert {len(row) for row in rows} == {7}
    assert rows[3] == [
        *["IGEBM {cite:p}`du2019igebm`, CIFAR-10 [code]", "10", ".005, before the gradient", r"$1.3 \cdot 10^{-6}$"],
        *["±.01 in each entry", "[0, 1], clamped", "60"],
    ]
    assert rows[9][:2] == ["the same, CelebA-HQ, LSUN [paper, supplement B.2]", "1,000"]
    assert rows[10][1:3] == [r"$\eta/2$, $\eta = 8 \cdot 10^{-5}$", r"$\sqrt{\eta}$"]
    assert rows[14][1] == r"$b_0^2\sigma_t^2/2$, $b_0 = .0002$"
    assert [rows[k][6] for k in (2, 11, 12, 15, 17)] == [
        *["any", "15 a resolution", "15, 30, 50, 50, 60", "1 a level", "40 or 60"]
    ]


def test_the_page_takes_the_table_and_quotes_its_ends():
    assert NOTATION.count("{{ recipes }}") == 1
    numbers = [recipe.a for recipe in RECIPES if recipe.source and "_t" not in recipe.a_tex]
    ends = f'"step sizes" from ${recipes.bare(min(numbers))}$ (VAEBM) to {recipes.number(max(numbers))} (improved CD)'
    assert ends in NOTATION
