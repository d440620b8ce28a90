"""Ends that are asked for: signals, and the time limit."""

import os
import signal
import time
from types import FrameType


class StopRequest:
    """While entered, SIGTERM and Ctrl-C ask for an end after the current step; a second one ends at once."""

    def __init__(self, max_minutes: float | None) -> None:
        """Start the clock."""
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
        self.signal: signal.Signals | None = None

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
        if self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = signal.Signals(number)
        # A signal can arrive inside print, which must not be entered twice.
        os.write(
            2, f"{self.signal.name}: finishing this step, then saving; once more ends at once\n".encode()
        )
