"""The first page's screen: a playground that moves, and the five papers with a picture and a number each.

Pictures are cut from the figures of the notebooks that this build executed, numbers come from committed rows where
there are some and from this build's rows else. A figure or row that is not there is left out, and at preset quick it
is an error.
"""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

from book.execution import Outcome
from book.papers import Rows, taken
from book.project import read_notebook

FIELDS = "two-fields"


@dataclass(frozen=True)
class Card:
    """One paper: its page, the part of a figure to show (left, top, right, bottom as shares), and the number."""

    title: str
    page: str  # relative to book/
    idea: str
    notebook: str
    figure: str
    part: tuple[float, float, float, float]
    alt: str
    measure: str  # what the paper's number is
    paper: str  # as the paper prints it
    where: str  # on what and in which table
    quantity: str  # what our number is: it need not be the paper's
    ours: tuple[tuple[str, str, str], ...]  # what comes before the number, name of the row, its data set
    about: str  # on what ours was taken
    bundled: bool = False  # whether the picture is of the bundled checkpoint, as the number


CARDS = (
    Card(
        "Diffusion recovery likelihood", "drl.html", "an energy a noise level",
        "drl_cifar", "fig-drl-cifar-checkpoint", (0.5, 0.045, 1.0, 0.268),
        "Eight generated garments: tops, a bag and shoes can be told apart.",
        "FID", "9.60", "CIFAR-10, Table 1",
        "FID of another kind",
        (("", "FID (Fashion-CNN features, images resized to 28 x 28), trained", "fashion_mnist"),),
        "Fashion-MNIST at 16 px, features of a small classifier, not to compare",
        bundled=True,
    ),
    Card(
        "Improved contrastive divergence", "../notebooks/improved_cd_toy.html", "a gradient through the sampler",
        "improved_cd_toy", "fig-icd-toy-samples", (0.38, 0.0, 1.0, 0.455),
        "Chains of two energies on 25 Gaussians: with the KL term close to the modes, without it spread between them.",
        "FID", "33.46", "LSUN bedrooms, A.2",
        "modes of 25 in 2D",
        (("", "modes covered, CD + KL", "25-gaussians"), ("without the term", "modes covered, CD", "25-gaussians")),
        "25 Gaussians",
    ),
    Card(
        "VAEBM", "../notebooks/vaebm_toy.html", "an energy corrects an autoencoder",
        "vaebm_toy", "fig-vaebm-result", (0.37, 0.1, 1.0, 0.9),
        "The density of the corrected autoencoder, 25 spots on a grid, and its chains, which sit on them.",
        "test nats in 2D", "-1.50", "section 5.4",
        "the same",
        (("", "test log-likelihood, VAEBM", "25-gaussians"), ("truth", "test log-likelihood, truth", "25-gaussians")),
        "25 Gaussians",
    ),
    Card(
        "Self-adversarial EBM", "../notebooks/self_adversarial_toy.html", "short chains train a generator",
        "self_adversarial_toy", "fig-flow-densities", (0.5, 0.13, 1.0, 1.0),
        "Two flows on the Swiss roll: trained by the energy objective with mass off the roll, by likelihood on it.",
        "test nats in 2D", "-.69", "Swiss roll, section 5.1",
        "the same",
        (
            ("", "test log-likelihood, flow by likelihood", "swiss-roll"),
            ("truth", "test log-likelihood, truth", "swiss-roll"),
        ),
        "Swiss roll",
    ),
    Card(
        "Coarse-to-fine EBM", "../notebooks/coarse_to_fine_toy.html", "a net grows with the resolution",
        "coarse_to_fine_toy", "fig-c2f-toy-samples", (0.43, 0.0, 1.0, 0.585),
        "Rows of small random fields: data, and chains of energies grown and trained at full resolution.",
        "FID", "16.71", "CIFAR-10, Table 1; 24.67 without growing, Table 9",
        "score error, 0 is best",
        (("", "score error, growing", FIELDS), ("without growing", "score error, full resolution", FIELDS)),
        "small fields of known law",
    ),
)  # fmt: skip


def substitutions(outcomes: list[Outcome], rows: Rows, assets: Path) -> dict[str, str]:
    """{{ landing }}: raw HTML; the pictures are written into `assets`."""
    from ebmlib.page import playground

    moving = playground.Playground("swiss-roll", steps=100_000, particles=300).static_html()
    papers = "".join(_item(card, outcomes, rows, assets) for card in CARDS)
    page = (
        f'<div class="ebm-landing"><div class="ebm-hero">{moving}</div>'
        f'<ol class="ebm-cards" aria-label="The five papers">{papers}</ol></div>'
    )
    return {"landing": f"```{{raw}} html\n{page}\n```"}


def _item(card: Card, outcomes: list[Outcome], rows: Rows, assets: Path) -> str:
    from ebmlib.page import results

    picture = _picture(card, outcomes)
    asked = [(label, rows.of(card.notebook, name, dataset)) for label, name, dataset in card.ours]
    if rows.complete and (picture is None or not all(found for _, found in asked)):
        raise LookupError(f"the first page asks for {card.figure} and {card.ours}, and the build has not made both.")
    shown = ""
    if picture is not None:
        name = f"card-{card.notebook}.png"
        (assets / name).write_bytes(picture)
        shown = f'<img src="../_static/{name}" alt="{html.escape(card.alt)}">'
    ours, about = "ours: not in this build", card.where
    if all(found for _, found in asked):
        first = asked[0][1]
        values = (
            f"{label} <strong>{results.quantity(found[0].value, found[0].se)}</strong>".strip()
            for label, found in asked
        )
        ours = f"ours: {html.escape(card.quantity)} {', '.join(values)}"
        about = f"Paper: {card.where}. Ours: {card.about}; {taken(first[0], first)}."
        drawn = [str(o.plan.parameters.get("preset")) for o in outcomes if o.plan.name == card.notebook]
        if not card.bundled and drawn != [first[0].preset]:  # a long run's number beside a short run's picture
            about += "".join(f" Picture: preset {preset}." for preset in drawn)
    return (
        f'<li>{shown}<div><a href="{card.page}">{html.escape(card.title)}</a>: {html.escape(card.idea)}'
        f"<p>paper: {html.escape(card.measure)} <strong>{html.escape(card.paper)}</strong> | {ours}</p>"
        f"<small>{html.escape(about)}</small></div></li>"
    )


def _picture(card: Card, outcomes: list[Outcome]) -> bytes | None:
    """The card's part of its figure as PNG."""
    from PIL import Image

    for outcome in outcomes:
        if outcome.plan.name != card.notebook or outcome.notebook is None:
            continue
        for cell in read_notebook(outcome.notebook)["cells"]:
            if cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") != card.figure:
                continue
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    whole = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
                    size = (whole.width, whole.height) * 2
                    part = whole.convert("RGB").crop(tuple(round(a * b) for a, b in zip(card.part, size)))
                    part.thumbnail((480, 480))
                    kept = io.BytesIO()
                    part.save(kept, "PNG")
                    return kept.getvalue()
    return None
