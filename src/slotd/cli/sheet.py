"""Tables for a terminal of any width: a cell is shown whole, or its column is not shown."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

__all__ = ["Column", "Note", "Sheet", "middle_cut"]

GAP = "  "
INDENT = "    "
UNBOUNDED = 1 << 16
"""Width of what is no terminal: a pipe or a file takes lines of any length."""


@dataclass(frozen=True, slots=True)
class Column:
    """``rank``: who goes first where there is room for some only, 0 = shown in any case.

    ``below``: where the column does not fit, its cells are told below the table,
    as "NAME: ``below`` CELL".
    """

    title: str
    rank: int = 0
    below: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """What is told below a table or by itself: of whom, and what, as long as it may be."""

    of: str
    text: str
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _wrapped(self, _width(console, options))


@dataclass(slots=True)
class Sheet:
    """Rows under titles, and notes below them. The first column names the rows.

    Drawn as wide as the terminal. Columns that do not fit are left out, the
    highest ranks first, and the last line says which; nothing is cut. Where the
    columns of rank 0 alone are too wide, the terminal wraps them.
    """

    columns: Sequence[Column]
    rows: list[list[Text]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    legend: str = ""

    def add(self, *cells: str | Text) -> None:
        """A row, with a cell for each column."""
        self.rows.append([_line(cell) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.lines(_width(console, options))

    def lines(self, width: int) -> Iterable[Text]:
        """The lines, for a terminal of ``width`` columns."""
        titles = [Text(column.title, style="bold") for column in self.columns]
        widths = [max(cell.cell_len for cell in cells) for cells in zip(titles, *self.rows, strict=True)]
        shown = self._fitting(widths, width)
        for cells in (titles, *self.rows):
            yield _joined(list(compress(cells, shown)), list(compress(widths, shown)))
        for note in (*self._told_below(shown), *self.notes):
            yield from _wrapped(note, width)
        if self.legend:
            yield Text(self.legend, style="dim")
        left_out = [c.title for c, fits in zip(self.columns, shown, strict=True) if not fits and not c.below]
        if left_out:
            yield from _wrapped(Note("", f"for lack of width not shown: {', '.join(left_out)}", "dim"), width)

    def _fitting(self, widths: Sequence[int], width: int) -> list[bool]:
        used = sum(w + len(GAP) for w, c in zip(widths, self.columns, strict=True) if not c.rank) - len(GAP)
        fits = {n for n, c in enumerate(self.columns) if not c.rank}
        for n in sorted(range(len(widths)), key=lambda n: self.columns[n].rank):
            if n not in fits and used + len(GAP) + widths[n] <= width:
                used += len(GAP) + widths[n]
                fits.add(n)
        return [n in fits for n in range(len(widths))]

    def _told_below(self, shown: Sequence[bool]) -> Iterable[Note]:
        for row in self.rows:
            for column, fits, cell in zip(self.columns, shown, row, strict=True):
                if column.below and not fits and cell.plain not in ("", "-"):
                    yield Note(row[0].plain, f"{column.below} {cell.plain}", "dim")


def _width(console: Console, options: ConsoleOptions) -> int:
    return options.max_width if console.is_terminal or "COLUMNS" in os.environ else UNBOUNDED


def middle_cut(text: str, longest: int) -> str:
    """``text``, without its middle if it is longer: names differ at their ends."""
    if len(text) <= longest:
        return text
    head = (longest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def _line(cell: str | Text) -> Text:
    """On one line, as text and not as markup."""
    text = cell if isinstance(cell, Text) else Text(cell)
    return Text(_printable(" ".join(text.plain.split())), style=text.style)


def _printable(text: str) -> str:
    """Clients and engines write some of what is shown: nothing of it may command the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _joined(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text(no_wrap=True, overflow="ignore", end="\n")
    for n, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        line.append_text(cell)
        if n < len(cells) - 1:
            line.append(" " * (width - cell.cell_len) + GAP)
    line.rstrip()
    return line


def _wrapped(note: Note, width: int) -> Iterable[Text]:
    """The note on lines of at most ``width``, but for words that are longer; the further ones indented."""
    head = f"{note.of}: " if note.of else ""
    if len(head) + len(note.text) <= width and note.text.isprintable():
        yield Text(head + note.text, style=note.style, no_wrap=True, overflow="ignore")
        return
    line, empty = head, True
    for word in map(_printable, note.text.split()):
        joined = word if empty else f" {word}"
        if not empty and len(line) + len(joined) > width:
            yield Text(line, style=note.style, no_wrap=True, overflow="ignore")
            line, joined = INDENT, word
        line, empty = line + joined, False
    yield Text(line.rstrip(), style=note.style, no_wrap=True, overflow="ignore")
