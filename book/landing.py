"""The first page's screen: a playground that moves, and the papers with a picture and a number each.

What a card shows is the table `card` in the paper's file of `book/papers`. A figure or row that is not there is left
out, and at preset quick it is an error.
"""

from __future__ import annotations

import html
import io
from pathlib import Path

from book.execution import Outcome
from book.papers import Rows, taken
from book.project import figure, raw
from ebmlib.page import results


def substitutions(papers: list[dict], outcomes: list[Outcome], rows: Rows, assets: Path) -> dict[str, str]:
    """{{ landing }}: raw HTML; the pictures are written into `assets`."""
    from ebmlib.page import playground

    moving = playground.Playground("swiss-roll", steps=100_000, particles=300).static_html()
    items = "".join(_item(paper["title"], paper["card"], outcomes, rows, assets) for paper in papers if "card" in paper)
    page = (
        f'<div class="ebm-landing"><div class="ebm-hero">{moving}</div>'
        f'<ol class="ebm-cards" aria-label="The papers">{items}</ol></div>'
    )
    return {"landing": raw(page)}


def _item(title: str, card: dict, outcomes: list[Outcome], rows: Rows, assets: Path) -> str:
    picture = _picture(card, outcomes)
    if rows.complete and picture is None:
        raise LookupError(f"the first page asks for {card['figure']}; the build has not made it.")
    asked = [(label, rows.of(card["notebook"], name, dataset)) for label, name, dataset in card["ours"]]
    shown = ""
    if picture is not None:
        name = f"card-{card['notebook']}.png"
        (assets / name).write_bytes(picture)
        shown = f'<img src="../_static/{name}" alt="{html.escape(card["alt"])}">'
    ours, about = "ours: not in this build", card["where"]
    if all(found for _, found in asked):
        first = asked[0][1]
        numbers = [(label, results.quantity(found[0].value, found[0].se)) for label, found in asked]
        values = ", ".join(f"{label} <strong>{number}</strong>".strip() for label, number in numbers)
        ours = f"ours: {html.escape(card['quantity'])} {values}"
        about = f"Paper: {card['where']}. Ours: {card['about']}; {taken(first[0], first)}."
        drawn = [str(o.plan.parameters.get("preset")) for o in outcomes if o.plan.name == card["notebook"]]
        if not card.get("bundled") and drawn != [first[0].preset]:  # a long run's number beside a short run's picture
            about += "".join(f" Picture: preset {preset}." for preset in drawn)
    return (
        f'<li>{shown}<div><a href="{card["page"]}">{html.escape(title)}</a>: {html.escape(card["idea"])}'
        f"<p>paper: {html.escape(card['measure'])} <strong>{html.escape(card['paper'])}</strong> | {ours}</p>"
        f"<small>{html.escape(about)}</small></div></li>"
    )


def _picture(card: dict, outcomes: list[Outcome]) -> bytes | None:
    """The card's part of its figure as PNG."""
    from PIL import Image

    found = [figure(o.notebook, card["figure"]) for o in outcomes if o.plan.name == card["notebook"]]
    if not found or found[0] is None:
        return None
    whole, kept = Image.open(io.BytesIO(found[0][0])), io.BytesIO()
    part = whole.convert("RGB").crop(tuple(round(a * b) for a, b in zip(card["part"], whole.size * 2)))
    part.thumbnail((480, 480))
    part.save(kept, "PNG")
    return kept.getvalue()
