"""What a shared link shows: each page's title and first words, and a picture of them where the site's address is known.

sphinxext-opengraph writes tags and pictures; here stand its settings and what it leaves undone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LOGO = "book/_assets/logo.png"  # the cards' painter takes no SVG
ACCENT = "#0072B2"  # the first color of the book's figures


def site_of(repository: str) -> str:
    """Where GitHub Pages publishes a repository's book; empty for other hosts, whose sites have no fixed address."""
    found = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+?)(?:\.git)?/?", repository)
    if not found:
        return ""
    owner, name = found[1].lower(), found[2]
    return f"https://{owner}.github.io/" + ("" if name.lower() == f"{owner}.github.io" else f"{name}/")


def settings(site: str, title: str) -> dict[str, Any]:
    """Sphinx settings for a book published at `site`; a picture needs a full address: without one there is none."""
    pictures = {"enable": bool(site), "image": LOGO, "image_mini": LOGO, "line_color": ACCENT}
    return {"ogp_site_url": site, "ogp_site_name": title, "ogp_social_cards": pictures}


def tag_first_page(pages: Path) -> None:
    """The first page's tags on Jupyter Book's bare redirect too: the site's own address is what people share.

    And its icon: without one a browser may ask for /favicon.ico, and fail.
    """
    first, redirect = pages / "book" / "index.html", pages / "index.html"
    tags = re.findall(r'<meta (?:property="og:|name="(?:description|twitter:))[^>]*>', first.read_text("utf-8"))
    lines = [redirect.read_text("utf-8").rstrip(), '<link rel="icon" href="_static/favicon.svg">', *tags, ""]
    redirect.write_text("\n".join(lines), encoding="utf-8")


def without_citations(app: Any, page: str, template: str, context: dict, doctree: Any) -> None:
    """Takes marks such as [1] out of the text that a description is made from; the page itself is drawn by then."""
    from docutils import nodes

    for mark in list(doctree.findall(nodes.reference)) if doctree is not None else []:
        if "references.html#" in mark.get("refuri", "") and mark.astext().isdigit():
            place, at = mark.parent, mark.parent.index(mark)
            around = place[max(at - 1, 0) : at + 2]
            if all(isinstance(node, nodes.Text) for node in around if node is not mark):
                text = "".join(node.astext() for node in around if node is not mark)
                place[max(at - 1, 0) : at + 2] = [nodes.Text(re.sub(r"\s*\[[\s,]*\]", "", text))]


def setup(app: Any) -> dict[str, Any]:
    app.connect("html-page-context", without_citations, priority=400)  # before sphinxext-opengraph's 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
