"""A table for readers, and the forms it is written in: plain text, Markdown, LaTeX, CSV."""

import csv
import dataclasses
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from primia_jax.core.names import csv_cell

Record = TypeVar("Record")

ABSENT = "-"
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "–": "--", "−": "$-$", "±": r"$\pm$", "κ": r"$\kappa$", "≥": r"$\geq$", "<": "$<$", ">": "$>$",
    "·": r"$\cdot$", "×": r"$\times$", "²": r"\textsuperscript{2}", "η": r"$\eta$",
    "’": "'", "“": "``", "”": "''",
}  # fmt: skip


class Cell(NamedTuple):
    """A value, and below it in small type a note on it."""

    text: str = ABSENT
    note: str = ""
    bold: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with its caption; the first column names the rows.

    Attributes:
      name: of its files.
      caption: above it.
      heads: of the columns.
      rows: of cells.
      groups: heads over so many columns each, after the first.
      note: below it.
    """

    name: str
    caption: str
    heads: list[str]
    rows: list[list[Cell]]
    groups: tuple[tuple[str, int], ...] = ()
    note: str = ""

    @property
    def full_heads(self) -> list[str]:
        """The heads, each with that of its group."""
        over = [name for name, count in self.groups for _ in range(count)]
        over = ["", *over] if over else [""] * len(self.heads)
        return [f"{a}, {b}" if a else b for a, b in zip(over, self.heads)]


def build(
    records: Iterable[Record],
    columns: Sequence[tuple[str, Callable[[Record], Cell | str]]],
    name: str = "",
    caption: str = "",
    note: str = "",
) -> Table:
    """A table with a row for each record; a column is its head and what it shows of a record."""
    rows = [[_cell(show(record)) for _, show in columns] for record in records]
    return Table(name, caption, [head for head, _ in columns], rows, note=note)


def _cell(shown: Cell | str) -> Cell:
    return Cell(shown) if isinstance(shown, str) else shown


def plain(table: Table, width: int = 80) -> str:
    """The table for a terminal of `width` columns: what does not fit side by side goes below.

    Notes stand in a line of their own below their values.
    """
    texts: list[list[str]] = []
    for row in table.rows:
        texts.append([cell.text for cell in row])
        if any(cell.note for cell in row):
            texts.append([cell.note for cell in row])
    heads = table.full_heads
    first = max(map(len, [heads[0], *(row[0] for row in texts)]))
    first = min(first, width // 3)
    widths = [
        min(max(map(len, [head, *(row[i] for row in texts)])), width - first - 2)
        for i, head in enumerate(heads[1:], 1)
    ]
    blocks: list[list[int]] = [[]]
    for i, column in enumerate(widths, 1):
        used = first + sum(widths[j - 1] + 2 for j in blocks[-1])
        if blocks[-1] and used + 2 + column > width:
            blocks.append([])
        blocks[-1].append(i)
    lines = textwrap.wrap(table.caption, width)
    for block in blocks:
        lines.append("")
        for line in [heads, *texts]:
            shown = [_cut(line[0], first).ljust(first)]
            shown += [_cut(line[i], widths[i - 1]).rjust(widths[i - 1]) for i in block]
            lines.append("  ".join(shown).rstrip())
    if table.note:
        lines += ["", *textwrap.wrap(table.note, width)]
    return "\n".join(lines) + "\n"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def markdown(table: Table) -> str:
    """The table in Markdown, its columns as wide as what they hold."""
    rows = [table.full_heads, *([_flat(cell) for cell in row] for row in table.rows)]
    rows = [[text.replace("|", "\\|") for text in row] for row in rows]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(table.heads))]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths)) + " |"
        for row in rows
    ]
    parts = [f"**{table.caption}**", "\n".join(lines)]
    return "\n\n".join(parts + [table.note] * bool(table.note)) + "\n"


def _flat(cell: Cell) -> str:
    """A cell on one line."""
    text = f"**{cell.text}**" if cell.bold else cell.text
    return f"{text} ({cell.note})" if cell.note else text


def latex(table: Table) -> str:
    """The table as a LaTeX float; the document needs the package booktabs."""
    columns = "l" + "c" * (len(table.heads) - 1)
    lines = [r"\begin{table}", r"\centering", r"\small"]
    lines += [rf"\caption{{{_tex(table.caption)}}}", rf"\label{{tab:{table.name}}}"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    if table.groups:
        over = [rf"\multicolumn{{{n}}}{{c}}{{{_tex(name)}}}" for name, n in table.groups]
        lines.append(" & ".join(["", *over]) + r" \\")
    lines.append(" & ".join(_tex(head) for head in table.heads) + r" \\")
    lines.append(r"\midrule")
    for row in table.rows:
        lines.append(" & ".join(_tex_cell(cell) for cell in row) + r" \\")
        if any(cell.note for cell in row):
            notes = (rf"{{\scriptsize {_tex(cell.note)}}}" if cell.note else "" for cell in row)
            lines.append(" & ".join(notes) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.note:
        lines += ["", rf"\smallskip{{\footnotesize {_tex(table.note)}}}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _tex_cell(cell: Cell) -> str:
    return rf"\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text)


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def as_csv(records: Iterable[Mapping[str, object]]) -> str:
    """Comma-separated lines below the first record's keys; None is empty, a text no formula."""
    file, records = io.StringIO(), list(records)
    if records:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _csv(value) for key, value in line.items()} for line in records)
    return file.getvalue()


def _csv(value: object) -> object:
    return csv_cell(value) if isinstance(value, str) else value
