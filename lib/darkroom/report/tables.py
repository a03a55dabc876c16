"""Tables for notebooks: a polars frame shown whole, with units in the head and few digits."""

from __future__ import annotations

import html

import numpy as np


class Table:
    """A frame that shows itself as HTML in a notebook and as text in a log.

    `title` states the finding; `digits` maps a column to its decimals (default 2).
    """

    def __init__(self, frame, title: str = "", digits: dict[str, int] | None = None) -> None:
        self.frame, self.title, self.digits = frame, title, digits or {}

    def cell(self, column: str, value) -> str:
        """Return a value as text: numbers with their decimals, absent ones as a dash."""
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return "–"
        if isinstance(value, float):
            return f"{value:,.{self.digits.get(column, 2)}f}"
        return (
            f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        )

    def _rows(self) -> list[list[str]]:
        return [
            [self.cell(c, v) for c, v in zip(self.frame.columns, row, strict=True)]
            for row in self.frame.iter_rows()
        ]

    def _numeric(self) -> list[bool]:
        return [t.is_numeric() for t in self.frame.dtypes]

    def _repr_html_(self) -> str:
        numeric = self._numeric()
        align = ["right" if n else "left" for n in numeric]
        head = "".join(
            f'<th style="text-align:{a};padding:3px 12px">{html.escape(c)}</th>'
            for c, a in zip(self.frame.columns, align, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(
                f'<td style="text-align:{a};padding:3px 12px;font-variant-numeric:tabular-nums">'
                f"{html.escape(v)}</td>"
                for v, a in zip(row, align, strict=True)
            )
            + "</tr>"
            for row in self._rows()
        )
        title = f"<p><b>{html.escape(self.title)}</b></p>" if self.title else ""
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        rows, numeric = [list(self.frame.columns), *self._rows()], self._numeric()
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.frame.columns))]
        lines = [
            "  ".join(
                v.rjust(w) if n else v.ljust(w)
                for v, w, n in zip(row, widths, numeric, strict=True)
            ).rstrip()
            for row in rows
        ]
        return "\n".join(([self.title] if self.title else []) + lines)


def short(text: str | None, length: int = 90) -> str:
    """Cut a long text in its middle."""
    text = text or ""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"
