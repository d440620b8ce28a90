"""How far a pass over data has come: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_SECONDS = 10.0
BAR_EVERY_SECONDS = 0.2
MOST_DAYS = 9999
"""where `about` stops counting: --max_steps may be any number"""

Report = Callable[[int, int], None]


@contextmanager
def reporting(total_bytes: int, action: str) -> Iterator[Report]:
    """Yield a function to be told of records and bytes done; it writes rate and time left on stderr.

    `total_bytes` 0 is for what has no known size; a compressed file passes its own.
    """
    if sys.stderr.isatty():
        with _bar(total_bytes, action) as show:
            done = _Done(total_bytes, BAR_EVERY_SECONDS, show)
            yield done.add
            show(done)
    else:
        yield _Done(total_bytes, LINE_EVERY_SECONDS, lambda done: _write_line(done, action)).add


def _write_line(done: "_Done", action: str) -> None:
    known = f"{done.share:.0%}, " if done.share else ""
    left = f", {done.seconds * (1 / done.share - 1):.0f} s left" if done.share else ""
    print(f"{action}: {known}{done}{left}", file=sys.stderr)


@contextmanager
def _bar(total_bytes: int, action: str) -> Iterator[Callable[["_Done"], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (action, BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total_bytes or None)
        yield lambda done: bar.update(task, completed=done.num_bytes, description=str(done))


def about(seconds: float) -> str:
    """Return a duration in two digits: 45 s, 3.4 min, 71 h, 12 days."""
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 99.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{min(seconds / 86400, MOST_DAYS):.0f} days"


class _Done:
    def __init__(self, total_bytes: int, every_seconds: float, show: Callable[["_Done"], None]) -> None:
        self.num_records = self.num_bytes = 0
        self._total_bytes, self._every, self._show = total_bytes, every_seconds, show
        self._started, self._due = time.monotonic(), every_seconds

    def add(self, num_records: int, num_bytes: int) -> None:
        self.num_records += num_records
        self.num_bytes += num_bytes
        if self.seconds >= self._due:
            self._due = self.seconds + self._every
            self._show(self)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def share(self) -> float:
        """0 where the end is not known: of what is compressed more bytes come out than the file has."""
        return self.num_bytes / self._total_bytes if 0 < self.num_bytes <= self._total_bytes else 0.0

    def __str__(self) -> str:
        rate = self.num_records / self.seconds
        return f"{self.num_records:,} records, {rate:,.0f}/s, {self.num_bytes / 1e6 / self.seconds:.1f} MB/s"
