"""Inline math keeps the mark that follows it: else a line may begin with a comma, since math is a box of its own."""

from __future__ import annotations

import re
from typing import Any

CLASS = "ebm-whole"  # the book's CSS does not break it


def keep_marks(app: Any, doctree: Any, page: str) -> None:
    """Puts inline math and the marks right behind it into one span."""
    from docutils import nodes

    for math in list(doctree.findall(nodes.math)):
        place, at = math.parent, math.parent.index(math)
        after = place[at + 1] if at + 1 < len(place) else None
        marks = re.match(r"[,.;:!?)\]’”]+", after.astext()) if isinstance(after, nodes.Text) else None
        if marks:
            rest = after.astext()[marks.end() :]
            whole = nodes.inline("", "", classes=[CLASS])
            place[at : at + 2] = [whole, nodes.Text(rest)]
            whole += [math, nodes.Text(marks[0])]


def setup(app: Any) -> dict[str, Any]:
    app.connect("doctree-resolved", keep_marks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
