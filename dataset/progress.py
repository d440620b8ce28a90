"""How far a pass over files has come: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator

from dataset.sources import Record

LINE_EVERY_SECONDS = 10.0
BAR_EVERY_SECONDS = 0.2


def with_progress(records: Iterable[Record], total_bytes: int, action: str) -> Iterator[Record]:
    """Pass records through, and write on stderr documents/s, MB/s and the time left."""
    if sys.stderr.isatty():
        yield from _with_bar(records, total_bytes, action)
        return
    for record, done in _at_intervals(records, LINE_EVERY_SECONDS):
        if done:
            left = done.seconds * (total_bytes / done.num_bytes - 1)
            print(f"{action}: {done.num_bytes / total_bytes:.0%}, {done}, {left:.0f} s left", file=sys.stderr)
        yield record


def _with_bar(records: Iterable[Record], total_bytes: int, action: str) -> Iterator[Record]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        action,
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%  {task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total_bytes)
        for record, done in _at_intervals(records, BAR_EVERY_SECONDS):
            if done:
                bar.update(task, completed=done.num_bytes, description=str(done))
            yield record
        bar.update(task, completed=total_bytes)


class _Done:
    def __init__(self) -> None:
        self.num_records, self.num_bytes, self.started = 0, 0, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def __str__(self) -> str:
        rate = self.num_records / self.seconds
        return f"{self.num_records:,} records, {rate:,.0f}/s, {self.num_bytes / 1e6 / self.seconds:.1f} MB/s"


def _at_intervals(records: Iterable[Record], seconds: float) -> Iterator[tuple[Record, _Done | None]]:
    done, due = _Done(), seconds
    for record in records:
        done.num_records += 1
        done.num_bytes += record.num_bytes
        if done.seconds >= due:
            due = done.seconds + seconds
            yield record, done
        else:
            yield record, None
