"""How far a grid has come: a live table of its stages on a terminal, a line for every cell elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dataset.printing import printable
from dataset.progress import about
from eval.cells import Cell
from eval.grid import Grid

REFRESH_SECONDS = 1.0

Show = Callable[[Grid, Cell | None], None]


@contextmanager
def showing() -> Iterator[Show]:
    """Yield what a grid tells its changes to; everything goes to stderr."""
    if not sys.stderr.isatty():
        yield _say
        return
    from rich.console import Console
    from rich.live import Live

    due = 0.0
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def draw(grid: Grid, ended: Cell | None) -> None:
            nonlocal due
            if ended and ended.address in grid.failed:
                live.console.print(printable(_words(grid, ended)))
            if ended or time.monotonic() >= due:
                due = time.monotonic() + REFRESH_SECONDS
                live.update(_table(grid), refresh=True)

        yield draw


def _say(grid: Grid, ended: Cell | None) -> None:
    if ended:
        print(printable(_words(grid, ended)), file=sys.stderr, flush=True)


def _words(grid: Grid, ended: Cell) -> str:
    done = len(grid.wanted) - len(grid.waiting) - len(grid.running)
    place = f"[{done}/{len(grid.wanted)}] {ended.address}"
    if ended.address in grid.failed:
        return f"{place} failed: {grid.failed[ended.address]}"
    left = "" if grid.seconds_left is None else f", {about(grid.seconds_left)} left"
    return f"{place}: {about(grid.seconds[ended.stage][-1])}{left}"


def _table(grid: Grid):
    from rich.table import Table
    from rich.text import Text

    left = "" if grid.seconds_left is None else f", {about(grid.seconds_left)} left"
    done = len(grid.wanted) - len(grid.waiting) - len(grid.running)
    table = Table(title=f"{done} of {len(grid.wanted)} cells{left}", title_justify="left")
    for name in ("stage", "waiting", "running", "finished", "failed", "a cell takes"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    stages = Counter(cell.stage for cell in grid.wanted.values())
    for stage, total in stages.items():
        waiting, running, failed = (
            sum(grid.cells[address].stage == stage for address in each)
            for each in (grid.waiting, grid.running, grid.failed)
        )
        times = grid.seconds.get(stage)
        mean = about(sum(times) / len(times)) if times else ""
        counts = (waiting, running, total - waiting - running - failed, failed)
        table.add_row(Text(printable(stage)), *map(str, counts), mean)
    return table
