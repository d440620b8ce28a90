"""A grid of cells: what is missing runs, side by side, in the order of what needs what; the rest is found.

Cells run as processes of this machine, or as jobs of a cluster through submitit. A cell that fails is
reported and does not stop those that need nothing of it.
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from statistics import fmean
from typing import Any

from dataset.printing import Bars, about
from eval import forks
from eval.cells import Cell, Trial
from eval.cluster import ClusterSettings, executor_of
from eval.places import Places, write_job
from eval.running import LOOK_EVERY_SECONDS, run_cell, run_until_left
from model.errors import UserError
from model.systems import num_cores

Start = Callable[[Path, int], Any]
"""begins the cell of a folder with so many threads; returns what can be asked done() and told to cancel()"""


@dataclass(frozen=True)
class Workers(ClusterSettings):
    """Where cells run, and how many at once."""

    threads: int = 0
    """of all cells at once, most of which take one; default: as many as there are cores"""
    gpus_per_cell: int = 0
    """0: cells compute on CPUs"""

    def __post_init__(self) -> None:
        """Refuse what runs nothing."""
        super().__post_init__()
        if self.threads < 0 or self.gpus_per_cell < 0:
            raise UserError("--threads, --gpus_per_cell: expected 0 or more, got less")

    @property
    def room(self) -> int:
        """Threads of all cells at once."""
        return self.threads or num_cores()


class _Process:
    """A cell at work in a process of this machine, which ends when this one does."""

    def __init__(self, folder: Path, threads: int) -> None:
        command = [sys.executable, "-m", "eval.running", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def done(self) -> bool:
        return self._process.poll() is not None

    def cancel(self) -> None:
        self._process.terminate()
        self._process.wait()


class _Fork:
    """The same as a fork of a process that has imported what commands need."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._process = forks.start(run_until_left, str(folder), True)

    def done(self) -> bool:
        return not self._process.is_alive()

    def cancel(self) -> None:
        self._process.terminate()
        self._process.join()


def starter(workers: Workers, places: Places) -> Start:
    """Return what starts the cell of a folder; raises `UserError` where submitit is wanted and absent."""
    if workers.cluster == "none":
        return _Fork if forks.CAN_FORK and not workers.gpus_per_cell else _Process
    jobs = places.work / "jobs" / token_hex(4)  # pickles: none but those of this process are read
    executor = executor_of(workers, jobs, gpus_per_node=workers.gpus_per_cell)

    def submit(folder: Path, threads: int) -> Any:
        executor.update_parameters(cpus_per_task=threads)
        return executor.submit(run_cell, str(folder))

    return submit


@dataclass
class Grid:
    """The cells of some trials, and how far they have come."""

    trials: Sequence[Trial]
    places: Places
    workers: Workers
    failed: dict[str, str] = field(default_factory=dict)
    """what a cell said that failed, by address"""
    running: dict[str, Any] = field(default_factory=dict)
    waiting: dict[str, Cell] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find out what is missing: cells that say something in the report, and what they are made from."""
        self.cells = {cell.address: cell for trial in self.trials for cell in trial.cells.values()}
        self.seconds: dict[str, list[float]] = {}
        self.paces: dict[bool, list[float]] = {True: [], False: []}  # of a step; of what has no steps
        for cell in self.cells.values():
            if record := self.places.finished(cell):
                self._note(cell, record["seconds"])
            elif cell.tells:
                self._want(cell)
        self.wanted = dict(self.waiting)
        """everything that was missing"""

    def _want(self, cell: Cell) -> None:
        for address in cell.needs:
            if address not in self.waiting and not self.places.has_output(self.cells[address]):
                self._want(self.cells[address])
        self.waiting[cell.address] = cell

    def run(self, show: "Show") -> None:
        """Run what is missing, and show how it goes."""
        start = starter(self.workers, self.places) if self.waiting else None
        try:
            while self.waiting or self.running:
                self._start_ready(start)
                show(self, None)
                while self.running and not any(job.done() for job in self.running.values()):
                    time.sleep(LOOK_EVERY_SECONDS)
                    show(self, None)
                for address in [each for each, job in self.running.items() if job.done()]:
                    self._end(address)
                    show(self, self.cells[address])
        finally:
            for job in self.running.values():
                job.cancel()

    def _start_ready(self, start: Start) -> None:
        for address, cell in list(self.waiting.items()):
            busy = sum(self.cells[each].threads for each in self.running)
            has_room = not busy or busy + cell.threads <= self.workers.room  # else it runs alone
            if broken := [need for need in cell.needs if need in self.failed]:
                self.failed[address] = f"needs {broken[0]}, which failed"
                del self.waiting[address]
            elif has_room and not {*cell.needs} & (self.waiting.keys() | self.running):
                folder = write_job(self.places, cell, uses_gpu=self.workers.gpus_per_cell > 0)
                self.running[address] = start(folder, cell.threads)
                del self.waiting[address]

    def _end(self, address: str) -> None:
        del self.running[address]
        cell = self.cells[address]
        if self.places.has_output(cell) and (record := self.places.finished(cell)):
            self._note(cell, record["seconds"])
            return
        said = self.places.work / address / "failed.txt"
        words = "its process was killed"
        if said.is_file():
            words = said.read_text(encoding="utf-8", errors="replace").strip()
        self.failed[address] = words

    @property
    def seconds_left(self) -> float | None:
        """An estimate from cells that have ended, None where they tell nothing of one that has not."""
        left = [*self.waiting.values(), *(self.cells[address] for address in self.running)]
        guesses = [self._guess(cell) for cell in left]
        return sum(guesses) / min(self.workers.room, len(left)) if left and None not in guesses else None

    def _guess(self, cell: Cell) -> float | None:
        """Return the seconds that its stage took before, or other trainings by their steps, if any."""
        if known := self.seconds.get(cell.stage):
            return fmean(known)
        steps = cell.settings.get("max_steps") or 0
        paces = self.paces[steps > 0]
        return fmean(paces) * max(steps, 1) if paces else None

    def _note(self, cell: Cell, seconds: float) -> None:
        self.seconds.setdefault(cell.stage, []).append(seconds)
        steps = cell.settings.get("max_steps") or 0
        self.paces[steps > 0].append(seconds / max(steps, 1))


Show = Callable[[Grid, Cell | None], None]
"""gets every change of a grid, and the cell that has ended if one has"""


@contextmanager
def showing() -> Iterator[Show]:
    """Yield what a grid tells its changes to; everything goes to stderr."""
    with closing(Bars(sys.stderr)) as bars:

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
