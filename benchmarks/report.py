"""The table that a benchmark ends with: on the terminal, as Markdown, and as JSON with every single measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return `rows` as a Markdown table; a row may lack columns."""
    columns = list(dict.fromkeys(column for row in rows for column in row))

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return "" if value is None else str(value)

    lines = [columns, ["---"] * len(columns), *([cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(title: str, about: dict[str, Any], rows: list[dict[str, Any]], every: Any, out: Path | None) -> None:
    """Print the table with the machine's name over it; with `out`, write OUT.md and OUT.json."""
    text = f"{title}\n\n{'; '.join(f'{name} {value}' for name, value in about.items())}\n\n{markdown(rows)}\n"
    print(f"\n{text}")
    if out:
        whole = {"title": title, "about": about, "median": rows, "every": every}
        out.with_suffix(".md").write_text(text, encoding="utf-8")
        out.with_suffix(".json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def figures(found: dict[str, Any], out: Path | None) -> None:
    """Print `found` a line each under the machine's name; with `out`, write both as JSON."""
    from gptx_nb.engine import device

    found = {"machine": device.choose("cpu").name, **found}
    width = max(map(len, found)) + 2
    for name, value in found.items():
        print(f"{name:{width}}{f'{value:,.1f}' if isinstance(value, float) else value}")
    if out:
        out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
