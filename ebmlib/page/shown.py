"""What a notebook shows besides figures: tables and banners, as HTML with a plain text beside it."""

import html
import sys
from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], fold: str = "") -> None:
    """Display a table of texts, one list of cells per row. Outside a notebook it is printed.

    With a title in `fold`, the page shows the title alone until the reader opens it.
    """
    page = as_html(heads, [[escaped(cell) for cell in row] for row in rows])
    if fold:
        page = f"<details><summary>{escaped(fold)}</summary>{page}</details>"
    show(page, "\n".join(" | ".join(row) for row in [heads, *rows]))


def banner(sentence: str) -> None:
    """Display one sentence as a warning, such as "this run uses other data than you asked for"."""
    show(f'<div class="alert alert-warning">{escaped(sentence)}</div>', sentence)


def escaped(text: str) -> str:
    """A text as HTML that shows it as it is: MathJax takes no formula from dollars in elements of their own."""
    return html.escape(text).replace("$", "<span>$</span>")


def as_html(
    heads: Sequence[str], rows: Sequence[Sequence[str]], label: str = "", kind: str = "ebm-results-table", words=0
) -> str:
    """A table of cells that are HTML already, under titles that are text.

    With a label, which screen readers need, it scrolls by itself, has the CSS class `kind`, and the first cell of each
    row is the row's title. The last `words` columns hold sentences and get room for them.
    """
    wide = [' class="ebm-words"' * (k >= len(heads) - words) for k in range(len(heads))]
    head = "".join(f'<th scope="col"{room}>{escaped(title)}</th>' for title, room in zip(heads, wide))
    first = '<th scope="row">{}</th>' if label else "<td>{}</td>"
    lines = (first.format(row[0]) + "".join(f"<td>{cell}</td>" for cell in row[1:]) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    region = f' style="overflow-x: auto" role="region" aria-label="{html.escape(label)}" tabindex="0"' if label else ""
    begin = f'<div class="ebm-results"{region}><table class="{kind}">' if label else '<div class="ebm-table"><table>'
    return f"{begin}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def show(page: str, text: str, **more: object) -> None:
    """Display HTML with its plain text, and further MIME types in `more`; print the text where there is no notebook."""
    ipython = sys.modules.get("IPython")  # a notebook's kernel has imported it
    if ipython is None or ipython.get_ipython() is None:
        print(text)
        return
    from IPython.display import display

    display({"text/html": page, "text/plain": text, **more}, raw=True)
