"""The frame of every bench: its flags, its table, what commands cost, how much memory is held at the most."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dataset.command_line import parse
from dataset.printing import printable, tell
from model.errors import UserError
from model.systems import own_bytes

POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class PlaceSettings:
    """What every bench is asked for."""

    out: str
    """folder for what is made on the way, which is removed at the end, and for the figures as JSON"""


@dataclass(frozen=True, kw_only=True)
class BenchSettings(PlaceSettings):
    """What benches are asked for that train a tokenizer or a model."""

    vocab_size: int = 6400
    """tokens of the tokenizer that is trained for it, and rows of an embedding"""


@dataclass(frozen=True, kw_only=True)
class TurnSettings(BenchSettings):
    """What benches are asked for that let two ways take turns."""

    rounds: int = 3
    """how often they take turns; medians are reported"""


Settings = TypeVar("Settings", bound=PlaceSettings)


@dataclass(frozen=True)
class Figures:
    """What a bench has found: `record` as values of JSON, and the same to be read."""

    record: Any
    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    """names, and cells below the header"""
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    """lines around the table"""


def bench(
    settings_class: type[Settings], description: str, find: Callable[[Settings, Path], Figures]
) -> None:
    """Read the flags, measure in a folder that is removed at the end, print a table and write it as JSON."""
    settings = parse(settings_class, description)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=out) as work:
        figures = find(settings, Path(work))
    file = out / f"{find.__module__.rpartition('.')[2]}.json"
    file.write_text(json.dumps(figures.record, indent=2) + "\n")
    table = [("", figures.header), *figures.rows]
    lines = [f"{name:<34}" + "".join(f"{cell:>12}" for cell in cells) for name, cells in table]
    print(printable("\n".join((*figures.before, *lines, *figures.after)), keep="\n"))


def refuse_below(settings: PlaceSettings, **least: int) -> None:
    """Raise `UserError` unless settings, or all numbers in them, are at least what their name is given."""
    for name, lowest in least.items():
        value = getattr(settings, name)
        if min(value if isinstance(value, tuple) else (value,), default=0) < lowest:
            raise UserError(f"--{name}: expected {lowest} or more, got {value}")


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """Return the median, the least and the most."""
    return statistics.median(found := [*values]), min(found), max(found)


def call(module: str, **flags: object) -> "Cost":
    """Run a command of the project; raises `UserError` with its last words if it fails."""
    words: list[str] = []
    for name, value in flags.items():
        words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    tell(f"{module} {' '.join(words)} …")
    return measure([sys.executable, "-m", module, *words])


@dataclass(frozen=True)
class Cost:
    """What one run of a command cost."""

    seconds: float
    peak_bytes: int
    """memory of all its processes together, of which what a fork shares is counted in each

    Pages of mapped files, such as a token store's, are not held: the system takes them back when it wants to.
    """


def measure(command: Sequence[str]) -> Cost:
    """Run a command to its end; raises `UserError` with its last words if it fails."""
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                peak = max(peak, _held_bytes(process.pid))
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed: {output[-500:]}")
    return Cost(time.monotonic() - started, peak)


class PeakMemory:
    """Finds how much resident memory a block adds to this process; Linux keeps count, so it costs no time.

    with PeakMemory() as memory: ...
    print(memory.added_bytes)
    """

    def __enter__(self) -> "PeakMemory":
        """Begin, with the peak as of now."""
        Path("/proc/self/clear_refs").write_text("5")
        self._before = own_bytes("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        """Read what the most was."""
        self.added_bytes = own_bytes("VmHWM") - self._before


def _held_bytes(pid: int) -> int:
    import psutil

    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in family:
        try:
            memory = member.memory_info()
            total += memory.rss - memory.shared  # what is resident, without pages of files
        except psutil.NoSuchProcess:
            continue
    return total
