"""How far a grid has come: a bar for each stage on a terminal, a line for every cell elsewhere."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from dataset.progress import Bars, about
from eval.cells import Cell
from eval.grid import Grid, Show


@contextmanager
def showing() -> Iterator[Show]:
    """Yield what a grid tells its changes to; everything goes to stderr."""
    with Bars(sys.stderr) as bars:

        def show(grid: Grid, ended: Cell | None) -> None:
            if ended and (ended.address in grid.failed or not bars.are_drawn):
                bars.say(_words(grid, ended))
            _show_stages(bars, grid)

        yield show


def _words(grid: Grid, ended: Cell) -> str:
    place = f"[{_done(grid)}/{len(grid.wanted)}] {ended.address}"
    if ended.address in grid.failed:
        return f"{place} failed: {grid.failed[ended.address]}"
    return f"{place}: {about(grid.seconds[ended.stage][-1])}{_left(grid)}"


def _done(grid: Grid) -> int:
    return len(grid.wanted) - len(grid.waiting) - len(grid.running)


def _left(grid: Grid) -> str:
    return "" if grid.seconds_left is None else f", {about(grid.seconds_left)} left"


def _show_stages(bars: Bars, grid: Grid) -> None:
    total = Counter(cell.stage for cell in grid.wanted.values())
    waiting, running, failed = (
        Counter(grid.cells[address].stage for address in each)
        for each in (grid.waiting, grid.running, grid.failed)
    )
    for stage in total:
        ended, times = total[stage] - waiting[stage] - running[stage], grid.seconds.get(stage)
        each = f", {about(sum(times) / len(times))} each" if times else ""
        words = f"{ended} of {total[stage]} ended, {running[stage]} running, {failed[stage]} failed{each}"
        bars.show(stage, ended, total[stage], words)
    bars.show("all", _done(grid), len(grid.wanted), f"{_done(grid)} of {len(grid.wanted)} cells{_left(grid)}")
