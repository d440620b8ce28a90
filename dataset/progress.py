"""How far work has come: bars on a terminal and lines above them, lines alone elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from dataset.printing import printable

LINE_EVERY_SECONDS = 10.0
MOST_DAYS = 9999
"""where `about` stops counting: --max_steps may be any number"""

Report = Callable[[int, int], None]


class Bars:
    """Bars by name, one below the other, where a stream is a terminal; a bar comes when it is first shown.

    with Bars(sys.stderr) as bars:
        bars.show("reading", done=30, total=100, words="3 records")
        bars.say("a.jsonl is cut short")
    """

    def __init__(self, stream: TextIO, line_every_seconds: float = math.inf) -> None:
        """Take over a stream; where it is no terminal, show a bar as a line from time to time."""
        self.are_drawn = stream.isatty()
        self._stream, self._every, self._due = stream, line_every_seconds, line_every_seconds
        self._began, self._rows, self._progress = time.monotonic(), {}, None

    def __enter__(self) -> "Bars":
        """Show bars in a block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave them as they are."""
        self.close()

    def show(self, name: str, done: float, total: float, words: str) -> None:
        """Show how much of a total is done, in words too; total 0 is for what is not known."""
        if self.are_drawn:
            self._draw(name, done, total or None, words)
        elif (seconds := time.monotonic() - self._began) >= self._due:
            self._due = seconds + self._every
            self.say(f"{name}: {f'{done / total:.0%}, ' if total else ''}{words}")

    def _draw(self, name: str, done: float, total: float | None, words: str) -> None:
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            texts = (TextColumn(f"{{task.fields[{key}]}}", markup=False) for key in ("name", "words"))
            columns = next(texts), BarColumn(), next(texts)
            console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
            self._progress = Progress(*columns, console=console)
            self._progress.start()
        if name not in self._rows:
            self._rows[name] = self._progress.add_task("", name=printable(name), words="")
        self._progress.update(self._rows[name], completed=done, total=total, words=printable(words))

    def say(self, line: str) -> None:
        """Print a line, in which foreign names may stand, above the bars if there are any."""
        if self._progress is None:
            print(printable(line), file=self._stream, flush=True)
        else:
            self._progress.console.print(printable(line), soft_wrap=True)

    def close(self) -> None:
        """Draw nothing more."""
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def reporting(total_bytes: int, action: str) -> Iterator[Report]:
    """Yield a function to be told of records and bytes done; stderr shows rate and time left.

    `total_bytes` 0 is for what has no known size; a compressed file passes its own.
    """
    num_records, num_bytes, began = 0, 0, time.monotonic()
    with Bars(sys.stderr, LINE_EVERY_SECONDS) as bars:

        def report(new_records: int, new_bytes: int) -> None:
            nonlocal num_records, num_bytes
            num_records, num_bytes = num_records + new_records, num_bytes + new_bytes
            seconds = max(time.monotonic() - began, 1e-6)
            is_known = 0 < num_bytes <= total_bytes  # of what is compressed more comes out than the file has
            left = f", {seconds * (total_bytes / num_bytes - 1):.0f} s left" if is_known else ""
            rates = f"{num_records / seconds:,.0f}/s, {num_bytes / 1e6 / seconds:.1f} MB/s"
            words = f"{num_records:,} records, {rates}{left}"
            bars.show(action, num_bytes, total_bytes if is_known else 0, words)

        yield report


def about(seconds: float) -> str:
    """Return a duration in two digits: 45 s, 3.4 min, 71 h, 12 days."""
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 99.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{min(seconds / 86400, MOST_DAYS):.0f} days"
