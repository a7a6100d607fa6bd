"""A table for readers, and the forms it is written in: Markdown, LaTeX, CSV."""

import csv
import io
from typing import NamedTuple

ABSENT = "-"
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "–": "--", "−": "$-$", "±": r"$\pm$", "κ": r"$\kappa$", "≥": r"$\geq$", "<": "$<$", ">": "$>$",
    "·": r"$\cdot$", "×": r"$\times$", "²": r"\textsuperscript{2}", "η": r"$\eta$",
    "’": "'", "“": "``", "”": "''",
}  # fmt: skip


class Cell(NamedTuple):
    """What stands in a cell: a value, and below it in small type what is to be known of it."""

    text: str = ABSENT
    note: str = ""
    bold: bool = False


class Table(NamedTuple):
    """A table with its caption; the first column is heads of rows."""

    name: str  # of its files
    caption: str
    heads: list[str]
    rows: list[list[Cell]]
    groups: tuple[tuple[str, int], ...] = ()  # heads over so many columns each, after the first
    note: str = ""


def markdown(table: Table) -> str:
    """The table in Markdown, its columns as wide as what they hold."""
    heads = list(table.heads)
    if table.groups:
        over = [name for name, count in table.groups for _ in range(count)]
        heads[1:] = [f"{a}, {b}" if a else b for a, b in zip(over, heads[1:])]
    rows = [heads, ["---"] * len(heads), *([_flat(cell) for cell in row] for row in table.rows)]
    rows = [[text.replace("|", "\\|") for text in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths)) + " |"
        for row in rows
    ]
    lines[1] = "| " + " | ".join("-" * width for width in widths) + " |"
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


def as_csv(heads: list[str], rows: list[list[object]]) -> str:
    """Comma-separated lines; None is an empty field."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return file.getvalue()
