"""Parts of HTML that views are put together from: lines, tables, bars, what folds.

All is plain HTML with its styles in it: no script, no style sheet, so that it reads in a saved notebook anywhere.
Colours are JupyterLab's own where there are any, else those of the page around. What comes from a table or a log goes
through `escaped`; the other functions take HTML.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from gptx_nb.progress import one_line

BORDER = "var(--jp-border-color2,rgba(128,128,128,.35))"
ACCENT = "var(--jp-brand-color1,#1976d2)"
DOT = "var(--jp-warn-color1,#f57c00)"
FRAME = (
    "color:var(--jp-ui-font-color1,inherit);font-family:var(--jp-ui-font-family,inherit);"
    "font-size:var(--jp-ui-font-size1,inherit);line-height:1.5;max-width:60em;padding:2px 0"
)
_CELL = (
    "text-align:left;vertical-align:top;padding:2px 14px 2px 0;background:none;color:inherit;border:0;"
    f"border-bottom:1px solid {BORDER};max-width:34em;overflow-wrap:anywhere;white-space:normal"
)
_RIGHT = (
    "text-align:right;vertical-align:top;padding:2px 14px 2px 0;background:none;color:inherit;border:0;"
    f"border-bottom:1px solid {BORDER};white-space:nowrap;font-variant-numeric:tabular-nums"
)
MUTED = "opacity:.75"


def escaped(text: object, limit: int = 300) -> str:
    return html.escape(one_line(str(text), limit))


def prose(text: str) -> str:
    """Escape a sentence of ours; what stands in backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def line(text: str, style: str = "") -> str:
    return f'<div style="{style}">{text}</div>' if style else f"<div>{text}</div>"


def fact(text: str) -> str:
    """Lay out what is to be known, and no reason to worry."""
    return line(prose(one_line(text, 400)), MUTED)


def note(text: str) -> str:
    """Lay out a warning."""
    return line(f"⚠ {prose(one_line(text, 400))}")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lay out cells of HTML; columns whose place is in `right` hold numbers."""

    def cells(row: Sequence[str], tag: str, weight: str) -> str:
        style = [(_RIGHT if at in right else _CELL) + weight for at in range(len(row))]
        # dir=auto: Arabic and Hebrew texts start at the right.
        return "".join(f'<{tag} dir="auto" style="{style[at]}">{cell}</{tag}>' for at, cell in enumerate(row))

    lines = [f'<tr style="background:none">{cells(row, "td", "")}</tr>' for row in rows]
    if any(head):
        lines.insert(0, f'<tr style="background:none">{cells(head, "th", ";font-weight:600")}</tr>')
    style = "border-collapse:collapse;margin:4px 0 10px 0;color:inherit;font-size:inherit"
    return f'<table style="{style}">{"".join(lines)}</table>'


def bar(share: float, width: str = "120px", height: int = 8, colour: str = ACCENT) -> str:
    return (
        f'<span style="display:inline-block;width:{width};max-width:100%;height:{height}px;vertical-align:middle;'
        f'background:{BORDER}"><span style="display:block;width:{100 * min(max(share, 0.0), 1.0):.1f}%;'
        f'height:{height}px;background:{colour}"></span></span>'
    )


def heading(text: str) -> str:
    return line(html.escape(text), "font-weight:600;margin-top:8px")


def folded(title: str, inside: str, *, unfolded: bool = False) -> str:
    if not inside:
        return ""
    opened = " open" if unfolded else ""
    summary = f'<summary style="cursor:pointer;font-weight:600">{html.escape(title)}</summary>'
    return f'<details{opened} style="margin-top:6px">{summary}<div style="margin-top:4px">{inside}</div></details>'
