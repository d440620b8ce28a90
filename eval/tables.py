"""Tables of figures that fit any width, on a terminal and as Markdown: no figure is ever shortened."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

from rich.cells import cell_len

from dataset.printing import printable
from eval.answers import Cell

GAP, NARROWEST_NAME = "  ", 12


@dataclass(frozen=True)
class Table:
    """Names down, figures across; an empty row parts sections."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: tuple[str, ...] = ()
    """lines below it"""


def score_table(columns: Mapping[str, Sequence[Cell]]) -> Table:
    """Return exact match in percent: columns hold the given cells, a row per split and kind."""
    by_row = {name: {(cell.split, cell.kind): cell for cell in cells} for name, cells in columns.items()}
    rows = []
    for split, kind in dict.fromkeys(row for cells in by_row.values() for row in cells):
        row = [cells.get((split, kind)) for cells in by_row.values()]
        questions = max(cell.questions for cell in row if cell)
        rows.append((f"  {kind}" if kind else split, str(questions), *map(score, row)))
    return Table(
        ("exact match, %", "n", *columns), tuple(rows), ("in brackets: 95% interval over questions",)
    )


def mean_table(means: Mapping[str, Mapping[str, float]]) -> Table:
    """Return for each task how probable right answers are, and how many words of answers are right."""
    forms = {"log_likelihood": "{:.4f}", "f1": "{:.1%}"}
    rows = (
        (task, *(form.format(of[name]) if name in of else "" for name, form in forms.items()))
        for task, of in means.items()
    )
    return Table(("mean over questions", "log-likelihood, nats", "F1"), tuple(rows))


def score(cell: Cell | None) -> str:
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
    titles = [_wrapped(header[0], name_width), *(_wrapped(header[n], widths[n]) for n in part)]
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
    padded = (" " * (size - cell_len(cell)) + cell for cell, size in zip(cells, widths, strict=True))
    return GAP.join([name + " " * (name_width - cell_len(name)), *padded]).rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    """Return the words of a title in lines of a width that the longest word fits."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if cell_len(longer) <= width else [*lines, word]
    return [each for line in lines if line or len(lines) == 1 for each in _folded(line, width)]


def _folded(text: str, width: int) -> list[str]:
    """Return a text cut into lines of a width."""
    lines = [""]
    for character in text:
        if cell_len(lines[-1] + character) > max(width, 2):
            lines.append("")
        lines[-1] += character
    return lines


def as_markdown(table: Table) -> str:
    """Return the table as Markdown, with its caption below."""
    rows = [_markdown_row(row) for row in table.rows if row]
    rule = "|" + "---|" + "---:|" * (len(table.header) - 1)
    caption = [line for each in table.caption for line in ("", printable(each))]
    return "\n".join([_markdown_row(table.header), rule, *rows, *caption])


def _markdown_row(cells: Sequence[str]) -> str:
    shown = (printable(cell).replace("|", "\\|") for cell in cells)
    return "| " + " | ".join("&emsp;" + c.strip() if c.startswith("  ") else c for c in shown) + " |"
