"""What reaches a terminal: foreign text made visible, streams that take every character, and bars."""

import io
import logging
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from traceback import format_exception
from typing import Any, TextIO

from model.files import is_seen

LINE_EVERY_SECONDS = 10.0
LINES_AND_BYTES = "\n\t" + "".join(map(chr, range(0xDC80, 0xDD00)))  # of functions of a shell, of paths
MOST_DAYS = 9999
"""where `about` stops counting: --max_steps may be any number"""

Report = Callable[[int, int], None]


def printable(text: str, keep: str = "") -> str:
    """Return foreign text with what would steer a terminal shown as an escape: `\\x1b` in place of ESC.

    All that prints text of a model, a data file or a name goes through here. `keep` lists control characters
    that stay, such as the newlines of an answer.
    """
    return "".join(map(_shown, text) if not keep else (c if c in keep else _shown(c) for c in text))


def _shown(character: str) -> str:
    return character if is_seen(character) else character.encode("unicode_escape").decode()


NOTE = "note: "
"""begins a line that says what of data does not count, or what else a user is to know of a result"""


def tell(line: str) -> None:
    """Print a line, in which foreign names may stand, on standard error."""
    print(printable(line), file=sys.stderr)


def prepare_streams(stdout_is_log: bool = False) -> None:
    """Let output show what its encoding lacks as escapes, and replace closed streams.

    Of a log, which standard error always is, a line that cannot be written is dropped, and never ends the
    work. Elsewhere a reader that is gone ends it quietly (exit code 141), and a full disk raises `OSError`.
    A mistake of ours is shown with its traceback in the same way, and so is what libraries log and warn of.
    """
    sys.excepthook = lambda kind, error, trace: show_traceback(error)
    threading.excepthook = sys.unraisablehook = _show_lost
    logging.setLogRecordFactory(_Logged)
    warnings.formatwarning = _warning
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell: `>&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and getattr(sys, name) is getattr(sys, f"__{name}__"):
            is_log = stdout_is_log or name == "stderr"
            setattr(sys, name, _on(_Output(getattr(sys, name).fileno(), is_log), getattr(sys, name)))


def clear_environment() -> None:
    """Let variables hold escapes in place of what steers a terminal: libraries print them as they are."""
    for name, value in os.environ.items():
        os.environ[name] = printable(value, keep=LINES_AND_BYTES)


def show_traceback(error: BaseException) -> None:
    """Print an error with its traceback, the foreign text in it made visible."""
    print(printable("".join(format_exception(error)), keep="\n"), end="", file=sys.stderr)


def _show_lost(lost: Any) -> None:
    """Show what ended a thread, or a cleaning up, but where it was told to end."""
    if not isinstance(lost.exc_value, SystemExit):
        show_traceback(lost.exc_value)


class _Logged(logging.LogRecord):
    """What a library logs, with the foreign text in it made visible."""

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        if self.exc_info and self.exc_info[1]:
            self.exc_text = printable("".join(format_exception(self.exc_info[1])).rstrip(), keep="\n")

    def getMessage(self) -> str:  # noqa: N802 - the name that logging has
        return printable(super().getMessage(), keep="\n\t")


def _warning(*words: Any, former: Callable[..., str] = warnings.formatwarning) -> str:
    return printable(former(*words), keep="\n")


def _on(output: "_Output", former: io.TextIOWrapper) -> io.TextIOWrapper:
    by_line = former.line_buffering or former.write_through or output.is_log
    return io.TextIOWrapper(io.BufferedWriter(output), former.encoding, "backslashreplace", None, by_line)


class _Output(io.FileIO):
    """A standard stream that says once, or as a log never, that it cannot be written."""

    def __init__(self, descriptor: int, is_log: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.is_log = is_log

    def write(self, data: bytes) -> int:
        try:
            return super().write(data) or len(data)
        except OSError as error:
            if self.is_log:
                return len(data)
            self.is_log = True  # what is left is dropped, also at exit, where nobody could catch it
            if isinstance(error, BrokenPipeError):
                raise SystemExit(141) from None
            raise


class Bars:
    """Bars by name, one below the other, where a stream is a terminal; a bar comes when it is first shown.

    with closing(Bars(sys.stderr)) as bars:
        bars.show("reading", done=30, total=100, words="3 records")
        bars.say("a.jsonl is cut short")
    """

    def __init__(self, stream: TextIO, line_every_seconds: float = math.inf) -> None:
        """Take over a stream; where it is no terminal, show a bar as a line from time to time."""
        self.are_drawn = stream.isatty()
        self._stream, self._every, self._due = stream, line_every_seconds, line_every_seconds
        self._began, self._rows, self._progress = time.monotonic(), {}, None

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
        """Draw nothing more, and leave the bars as they are."""
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def reporting(total_bytes: int, action: str) -> Iterator[Report]:
    """Yield a function to be told of records and bytes done; stderr shows rate and time left.

    `total_bytes` 0 is for what has no known size; a compressed file passes its own.
    """
    num_records, num_bytes, began = 0, 0, time.monotonic()
    with closing(Bars(sys.stderr, LINE_EVERY_SECONDS)) as bars:

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
