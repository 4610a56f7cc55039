r"""Tables as LaTeX: `\input` the file where `booktabs` and `threeparttable` are loaded."""

import re
from collections.abc import Iterable, Sequence

from kdbench.errors import printable
from kdbench.report.text import Cell, TextTable

HEAD = r"% \usepackage{booktabs,threeparttable}; letters beyond Latin ones need LuaLaTeX or XeLaTeX"

SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\symbol{34}", "`": r"\textasciigrave{}",
    "[": "{[}", "]": "{]}", "*": "{*}",
    "–": r"\textendash{}", "—": r"\textemdash{}", "“": r"\textquotedblleft{}", "”": r"\textquotedblright{}",
    "‘": r"\textquoteleft{}", "’": r"\textquoteright{}", "…": r"\textellipsis{}", "µ": r"\textmu{}",
    "×": r"\texttimes{}", "±": r"\textpm{}", "·": r"\textperiodcentered{}", "€": r"\texteuro{}", "°": r"\textdegree{}",
    "−": r"\ensuremath{-}", "Δ": r"\ensuremath{\Delta}", "≤": r"\ensuremath{\leq}", "≥": r"\ensuremath{\geq}",
    "≈": r"\ensuremath{\approx}", "Σ": r"\ensuremath{\Sigma}", "√": r"\ensuremath{\surd}",
    "→": r"\ensuremath{\rightarrow}", "\N{REPLACEMENT CHARACTER}": r"\textquestiondown{}",
}  # fmt: skip
r"""What LaTeX would read as more than the sign itself: alone, or as a `[` after `\\`."""


def to_latex(tables: Sequence[TextTable]) -> str:
    """A floating table for each, with its footnotes below it, and the best in bold."""
    return "\n".join([HEAD, *map(_table, tables)])


def _table(table: TextTable) -> str:
    kinds = "".join("l" if column.left else "r" for column in table.columns)
    notes = [f"\\item[{number}] {escaped(note)}" for number, note in enumerate(table.notes, 1)]
    legend = [f"\\item[] {escaped(table.legend)}"] if table.legend else []
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\begin{threeparttable}",
        f"\\caption{{{escaped(table.title)}}}",
        f"\\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        _line(escaped(column.name) for column in table.columns),
        r"\midrule",
        *(_line(map(_cell, row)) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\begin{tablenotes}", *legend, *notes, r"\end{tablenotes}"] if legend or notes else []),
        r"\end{threeparttable}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Cell) -> str:
    text = f"\\textbf{{{escaped(cell.text)}}}" if cell.best else escaped(cell.text)
    return text + (f"\\tnote{{{','.join(map(str, cell.notes))}}}" if cell.notes else "")


def escaped(text: str) -> str:
    """Text on one line that LaTeX prints as it is."""
    line = printable(" ".join(text.split()))
    apart = re.sub(r"(-(?=-)|,(?=,)|'(?='))", "\\1\0", line)  # as ligatures they would be other signs
    return re.sub(".", lambda sign: SIGNS.get(sign[0], sign[0]), apart).replace("\0", "{}")
