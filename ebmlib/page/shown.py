"""What a notebook shows besides figures: tables and banners, as HTML with a plain text beside it."""

import html
import sys
from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Display a table of texts, one list of cells per row. Outside a notebook it is printed."""
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    page = f'<div class="ebm-table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    show(page, "\n".join(" | ".join(row) for row in [heads, *rows]))


def banner(sentence: str) -> None:
    """Display one sentence as a warning, such as "this run uses other data than you asked for"."""
    show(f'<div class="alert alert-warning">{html.escape(sentence)}</div>', sentence)


def show(page: str, text: str, **more: object) -> None:
    """Display HTML with its plain text, and further MIME types in `more`; print the text where there is no notebook."""
    ipython = sys.modules.get("IPython")  # a notebook's kernel has imported it
    if ipython is None or ipython.get_ipython() is None:
        print(text)
        return
    from IPython.display import display

    display({"text/html": page, "text/plain": text, **more}, raw=True)
