"""Exact match as a table for a terminal: splits and kinds of questions down, whatever is compared across."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from eval.answers import Cell


def score_table(columns: Mapping[str, Sequence[Cell]]) -> Table:
    """Return the table whose columns hold the given cells, one per split and kind."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, caption="in brackets: 95% interval", caption_justify="left"
    )
    table.add_column("exact match, %", no_wrap=True)
    for name in ("n", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    by_row = {name: {(cell.split, cell.kind): cell for cell in cells} for name, cells in columns.items()}
    for split, kind in dict.fromkeys(row for cells in by_row.values() for row in cells):
        row = [cells.get((split, kind)) for cells in by_row.values()]
        questions = max(cell.questions for cell in row if cell)
        table.add_row(f"  {kind}" if kind else split, str(questions), *map(score, row))
    return table


def score(cell: Cell | None) -> str:
    """Return exact match with its 95% interval in percent; nothing where nothing was asked."""
    if cell is None:
        return ""
    low, high = cell.interval
    return f"{cell.exact_match * 100:.1f} ({low * 100:.0f}-{high * 100:.0f})"
