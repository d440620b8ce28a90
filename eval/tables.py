"""Tables of figures that fit any width, on a terminal and as Markdown: no figure is ever shortened."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from textwrap import fill
from typing import TYPE_CHECKING, Any, TypeVar

from rich.cells import cell_len, chop_cells

from dataset.printing import printable

if TYPE_CHECKING:
    from eval.answers import Tally

Entry = TypeVar("Entry")
GAP, NARROWEST_NAME = "  ", 12
FIGURES = "+-\u2212\u20130123456789"  # what a number begins with, with a minus or a dash
SUPERSCRIPTS = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)


@dataclass(frozen=True)
class Table:
    """Names down, figures across; an empty row parts sections."""

    header: Sequence[str]
    rows: Sequence[tuple[str, ...]]
    caption: tuple[str, ...] = ()
    """lines below it"""


def grouped(entries: Iterable[Entry], key: Callable[[Entry], Any]) -> dict[Any, list[Entry]]:
    """Return entries by what they have in common, in the order in which it is met."""
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return groups


def score_table(columns: Mapping[str, Sequence["Tally"]]) -> Table:
    """Return exact match in percent: columns hold the given cells, a row per split and kind."""
    by_row = {name: {(cell.split, cell.kind): cell for cell in cells} for name, cells in columns.items()}
    rows = []
    for split, kind in dict.fromkeys(row for cells in by_row.values() for row in cells):
        row = [cells.get((split, kind)) for cells in by_row.values()]
        questions = max(cell.questions for cell in row if cell)
        rows.append((f"  {kind}" if kind else split, str(questions), *map(score, row)))
    notes = ("in brackets: 95% interval over questions",)
    return Table(("exact match, %", "n", *columns), tuple(rows), notes)


def mean_table(means: Mapping[str, Mapping[str, float]]) -> Table:
    """Return for each task how probable right answers are, and how many words of answers are right."""
    forms = {"log_likelihood": ("log-likelihood, nats", "{:.4f}"), "f1": ("F1", "{:.1%}")}
    forms = {name: form for name, form in forms.items() if any(name in of for of in means.values())}
    rows = (
        (task, *(form.format(of[name]) if name in of else "" for name, (_, form) in forms.items()))
        for task, of in means.items()
    )
    return Table(("mean over questions", *(title for title, _ in forms.values())), tuple(rows))


def score(cell: "Tally | None") -> str:
    """Return exact match with its 95% interval in percent; nothing where nothing was asked."""
    if cell is None:
        return ""
    low, high = cell.interval
    return f"{cell.exact_match * 100:.1f} ({low * 100:.0f}-{high * 100:.0f})"


def as_text(table: Table, width: int) -> str:
    """Return the table in lines of `width`: names are folded, and columns without room come further down."""
    rows = [tuple(map(printable, row)) for row in table.rows]
    header = tuple(map(printable, table.header))
    columns = [[row[n] for row in rows if row] for n in range(len(header))]
    titles = [[header[0]], *(title.split() for title in header[1:])]
    widths = [max(map(cell_len, [*column, *titles[n]]), default=0) for n, column in enumerate(columns)]
    parts = list(_parts(widths, max(width, 1)))
    texts = ["\n".join(_lines(header, rows, widths, part, width)) for part in parts]
    caption = [fill(printable(line), max(width, NARROWEST_NAME)) for line in table.caption]
    return "\n".join(["\n\n".join(texts), *(["", *caption] if caption else [])])


def _parts(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Yield groups of columns without the first, as many as fit beside it; always at least one."""
    room = width - min(widths[0], max(NARROWEST_NAME, width // 3))
    part, used = [], 0
    for n, each in enumerate(widths[1:], start=1):
        if part and used + len(GAP) + each > room:
            yield part
            part, used = [], 0
        part.append(n)
        used += len(GAP) + each
    yield part


def _lines(
    header: Sequence[str], rows: Sequence[tuple[str, ...]], widths: Sequence[int], part: list[int], width: int
) -> Iterator[str]:
    others = sum(len(GAP) + widths[n] for n in part)
    name_width = min(widths[0], max(NARROWEST_NAME, width - others))
    titles = [wrapped(header[0], name_width), *(wrapped(header[n], widths[n]) for n in part)]
    for level in range(-max(map(len, titles)), 0):
        first, *cells = (title[level] if -level <= len(title) else "" for title in titles)
        yield _line(first, cells, name_width, [widths[n] for n in part])
    yield "-" * (name_width + others)
    for row in rows:
        if row:
            *above, name = _folded(row[0], name_width)
            yield from above
            yield _line(name, [row[n] for n in part], name_width, [widths[n] for n in part])
        else:
            yield ""


def _line(name: str, cells: Sequence[str], name_width: int, widths: Sequence[int]) -> str:
    figures = (padded(cell, size, is_right=True) for cell, size in zip(cells, widths, strict=True))
    return GAP.join([padded(name, name_width), *figures]).rstrip()


def padded(text: str, width: int, is_right: bool = False) -> str:
    """Return a text with the spaces that bring it to a width in characters of a terminal."""
    space = " " * (width - cell_len(text))
    return space + text if is_right else text + space


def wrapped(text: str, width: int) -> list[str]:
    """Return the words of a text in lines of a width in characters; a longer word is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if cell_len(longer) <= width else [*lines, word]
    return [each for line in lines if line or len(lines) == 1 for each in _folded(line, width)]


def _folded(text: str, width: int) -> list[str]:
    """Return a text cut into lines of a width."""
    return chop_cells(text, max(width, 2)) or [""]


def as_markdown(table: Table, width: int | None = None) -> str:
    """Return the table as Markdown, straight in a terminal, too; columns beyond `width` come further down."""
    shown = ([literal(cell) for cell in row] for row in (table.header, *table.rows) if row)
    rows = [[re.sub("^ {2,}", "&emsp;", cell) for cell in row] for row in shown]
    widths = [max(3, *map(cell_len, column)) for column in zip(*rows, strict=True)]
    right = figure_columns(table)
    rows = [[padded(cell, widths[n], n in right) for n, cell in enumerate(row)] for row in rows]
    rows.insert(1, ["-" * (size - 1) + (":" if n in right else "-") for n, size in enumerate(widths)])
    pieces = []
    for part in _parts(widths, width) if width else [range(1, len(widths))]:
        lines = (" | ".join([row[0], *(row[n] for n in part)]) for row in rows)
        pieces.append("\n".join(f"| {line} |" for line in lines))
    return "\n\n".join([*pieces, *map(literal, table.caption)])


def figure_columns(table: Table) -> set[int]:
    """Return the numbers of the columns of figures, which stand on the right; the first one holds names."""
    columns = {n: [row[n] for row in table.rows if row] for n in range(1, len(table.header))}
    return {n for n, column in columns.items() if all(cell[:1] in FIGURES for cell in column)}


def literal(text: str) -> str:
    """Return foreign text as Markdown that shows it as it is, on one line."""
    return re.sub(
        r"[\\`*<|~&$]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|^ *(?:[#>]|[+=-](?=[\s=-]|$))",
        r"\\\g<0>",
        printable(text),
    )


def figure(value: float | None, is_signed: bool = False) -> str:
    """Return a number with three significant digits and a proper minus; a dash where there is none."""
    if value is None:
        return "\u2013"
    if not isfinite(value) or value == 0:
        return "0" if value == 0 else str(value)
    mantissa, exponent = f"{abs(value):.2e}".split("e")
    power = int(exponent)
    text = f"{float(f'{value:.2e}'):,.{max(0, 2 - power)}f}".lstrip("-")
    if not -4 <= power < 6:
        text = f"{mantissa} \u00d7 10{str(power).translate(SUPERSCRIPTS)}"
    return ("\u2212" if value < 0 else "+" if is_signed else "") + text
