"""Tables for a screen of any width: numbers to the right, nothing cut.

A table that is too wide first breaks its headings and its words, then goes on below with the first column again; what is
prose then stands below the table, on lines of its own, so that a command in it can be copied.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import click

Rows = Sequence[Sequence[Any]]  # the first is the header
UNSEEN = 120  # columns, where the output is no terminal and COLUMNS says nothing
GAP = "  "
SENTENCE = 32  # characters from which a cell of the last column is prose
NUMBER = re.compile(r"[+-]?[\d,]*\.?\d+(e[+-]?\d+)?[x%]?")
RANGE = re.compile(rf"({NUMBER.pattern}( \.\. {NUMBER.pattern})?|nan|inf|-|)")


def print_table(title: str, rows: Rows) -> None:
    click.echo(title)
    for line in table_lines(rows, shutil.get_terminal_size((UNSEEN, 24)).columns):
        click.echo(line)


def table_lines(rows: Rows, width: int) -> list[str]:
    """The table in lines of at most `width` columns; only prose may be longer."""
    texts = [[str(cell) for cell in row] for row in rows]
    columns = [Column(cells) for cells in zip(*texts, strict=True)]
    if total(columns, narrow=False) <= width:
        return draw(columns, width)
    prose = [columns.pop()] if len(columns) > 1 and columns[-1].is_prose else []
    lines: list[str] = []
    for part in parts(columns, width):
        lines += ["", *draw(part, width)] if lines else draw(part, width)
    below = [f"{key}: {text}" for column in prose for key, text in zip(columns[0].cells, column.cells, strict=True) if text]
    return [*lines, *(["", *below] if below else [])]


class Column:
    """The cells of a column, whether they are numbers, and how wide it is: with whole cells, and with words at least."""

    def __init__(self, cells: Sequence[str]) -> None:
        self.name, self.cells = cells[0], cells[1:]
        self.is_number = bool(self.cells) and all(RANGE.fullmatch(cell) for cell in self.cells) and any(self.cells)
        self.is_prose = any(len(cell) > SENTENCE for cell in self.cells)
        self.whole = max(map(len, cells))
        breakable = [self.name] if self.is_number else cells
        words = [len(word) for cell in breakable for word in cell.split()]
        self.least = max([*words, *(map(len, self.cells) if self.is_number else ())], default=0)

    def drawn(self, width: int) -> list[list[str]]:
        """For the header and every cell its lines, each of `width` columns."""
        return [[self._set(line, width) for line in textwrap.wrap(cell, width) or [""]] for cell in (self.name, *self.cells)]

    def _set(self, line: str, width: int) -> str:
        return line.rjust(width) if self.is_number else line.ljust(width)


def total(columns: Sequence[Column], narrow: bool) -> int:
    return sum(column.least if narrow else column.whole for column in columns) + len(GAP) * (len(columns) - 1)


def parts(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """The columns in groups that fit, each with the first column."""
    first, groups = columns[0], list[list[Column]]()
    for column in columns[1:]:
        if not groups or total([*groups[-1], column], narrow=True) > width:
            groups.append([first])
        groups[-1].append(column)
    return groups or [[first]]


def draw(columns: Sequence[Column], width: int) -> list[str]:
    """Columns side by side, as wide as they like to be where there is room."""
    widths = [column.least for column in columns]
    spare = width - total(columns, narrow=True)
    for n, column in enumerate(columns):
        share = min(max(spare, 0), column.whole - column.least)
        widths[n], spare = column.least + share, spare - share
    rows = zip(*(column.drawn(size) for column, size in zip(columns, widths, strict=True)), strict=True)
    lines = []
    for n, row in enumerate(rows):
        blank = [" " * size for size in widths]
        for cells in zip_longest(*row):
            line = GAP.join(cell or empty for cell, empty in zip(cells, blank, strict=True)).rstrip()
            lines.append(click.style(line, bold=True) if n == 0 else line)
    return lines
