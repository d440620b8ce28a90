"""Ends that are asked for: signals, and the time limit."""

import os
import signal
import time
from types import FrameType

LAUNCHER_SECONDS = 1.0
"""within which a launcher passes on the signal that the terminal has sent to all processes"""


class StopRequest:
    """While entered, SIGTERM and Ctrl-C ask for an end after the current step; a second one ends at once."""

    def __init__(self, max_minutes: float | None) -> None:
        """Start the clock."""
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
        self.signal: signal.Signals | None = None
        self._asked_at = 0.0

    @property
    def is_asked(self) -> bool:
        """Say whether this process was asked to stop."""
        return self.signal is not None or time.monotonic() > self._deadline

    def __enter__(self) -> "StopRequest":
        """Take over the signals."""
        self._former = {
            number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the signals back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now, number = time.monotonic(), signal.Signals(number)
        if self.signal is None:
            self.signal, self._asked_at = number, now
            _tell(f"{number.name}: finishing this step, then saving; once more ends at once")
        elif now - self._asked_at > LAUNCHER_SECONDS:
            _tell(f"{number.name} again: ended at once; the same command continues from the last save")
            raise SystemExit(128 + number)


def _tell(line: str) -> None:
    """Write a line; a signal can arrive inside print, which must not be entered twice."""
    os.write(2, f"{line}\n".encode())
