"""Checks of the built pages as files: no request to another host, no dead internal link."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself. A link to click (a) is no request; of link elements only these kinds load something.
LOADED = dict.fromkeys(("script", "img", "iframe", "source", "video", "audio", "embed", "track", "input"), "src")
LOADED |= {"object": "data", "image": "href", "use": "href"}
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch", "manifest"}
OUTSIDE = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
CSS_ADDRESS = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])\s*((?:https?:)?//[^'\")\s]+)", re.IGNORECASE)


@dataclass
class Page(HTMLParser):
    """What one page loads and links to, and the places in it that links can name."""

    text: str
    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    places: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)
        styles = re.findall(r"<style[^>]*>(.*?)</style>", self.text, re.DOTALL | re.IGNORECASE)
        self.loads += [address for style in styles for address in CSS_ADDRESS.findall(style)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag in LOADED and LOADED[tag] in values:
            self.loads.append(values[LOADED[tag]])
        if "srcset" in values:
            self.loads += [part.split()[0] for part in values["srcset"].split(",") if part.split()]
        if tag == "link" and LOADED_LINKS & set(values.get("rel", "").lower().split()):
            self.loads.append(values.get("href", ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loads += CSS_ADDRESS.findall(values.get("style", ""))

    handle_startendtag = handle_starttag


def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def html_pages(pages: Path) -> list[Path]:
    """The book's own pages; under _static lie the theme's templates, which are no pages."""
    return [path for path in sorted(pages.rglob("*.html")) if path.relative_to(pages).parts[0] != "_static"]


def external_requests(pages: Path) -> list[str]:
    """`page: address` for everything that a page or style sheet would load from another host when it is opened."""
    loads = {path: page(path).loads for path in html_pages(pages)}
    loads |= {path: CSS_ADDRESS.findall(path.read_text("utf-8")) for path in sorted(pages.rglob("*.css"))}
    return [f"{path.relative_to(pages)}: {it}" for path, found in loads.items() for it in found if OUTSIDE.match(it)]


def dead_links(pages: Path) -> list[str]:
    """`page: address` for every relative address that names no file of the book, or no place in its page."""
    found, known = [], {path.resolve(): page(path) for path in html_pages(pages)}
    for path in html_pages(pages):
        for address in [*known[path.resolve()].links, *known[path.resolve()].loads]:
            parts = urlsplit(address)
            if not address or parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            place, there = unquote(parts.fragment), known.get(target.resolve())
            if not target.is_file() or (place and there is not None and place not in there.places):
                found.append(f"{path.relative_to(pages)}: {address}")
    return found
