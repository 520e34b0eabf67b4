"""Checks of the built pages as files: no request to another host, no dead internal link."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
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


@cache
def _page(path: Path, _stamp: tuple[int, int]) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def page(path: Path) -> Page:
    status = path.stat()
    return _page(path, (status.st_mtime_ns, status.st_size))


def html_pages(pages: Path) -> list[Path]:
    """The book's own pages; under _static lie the theme's templates, which are no pages."""
    return [path for path in sorted(pages.rglob("*.html")) if path.relative_to(pages).parts[0] != "_static"]


def external_requests(pages: Path) -> list[str]:
    """`page: address` for everything that a page or style sheet would load from another host when it is opened."""
    found = []
    for path in html_pages(pages):
        loads = [*page(path).loads, *_addresses_in_styles(path)]
        found += [f"{path.relative_to(pages)}: {address}" for address in loads if OUTSIDE.match(address)]
    for path in sorted(pages.rglob("*.css")):
        found += [f"{path.relative_to(pages)}: {address}" for address in CSS_ADDRESS.findall(path.read_text("utf-8"))]
    return found


def _addresses_in_styles(path: Path) -> list[str]:
    styles = re.findall(r"<style[^>]*>(.*?)</style>", path.read_text(encoding="utf-8"), re.DOTALL | re.IGNORECASE)
    return [address for style in styles for address in CSS_ADDRESS.findall(style)]


def dead_links(pages: Path) -> list[str]:
    """`page: address` for every relative address that names no file of the book, or no place in its page."""
    found = []
    for path in html_pages(pages):
        for address in [*page(path).links, *page(path).loads]:
            parts = urlsplit(address)
            if not address or parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or not _has_place(target, unquote(parts.fragment)):
                found.append(f"{path.relative_to(pages)}: {address}")
    return found


def _has_place(target: Path, place: str) -> bool:
    return not place or target.suffix != ".html" or place in page(target).places
