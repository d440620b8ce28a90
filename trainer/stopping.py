"""How a training ends early: by signals, time limit, a launcher that is gone, full disks, lost processes."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from torch.distributed import DistError

from dataset import command_line
from model.errors import UserError
from trainer.run_dir import RunDirectory

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, the usual request, a lost terminal, and Slurm's warning before a job's time is over"""
LAUNCHED_BY = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")
"""what torchrun and accelerate launch leave in the environment of the processes that they start"""
LAUNCHER_SECONDS = 1.0
"""within which a launcher passes on the signal that the terminal has sent to all processes"""


class StopRequest:
    """While entered, `SIGNALS` ask for an end after the current step; a second one ends at once.

    So does the end of the launcher, which else would leave a training behind that nobody sees.
    """

    def __init__(self, max_minutes: float | None) -> None:
        """Start the clock."""
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else float("inf")
        self.signal: signal.Signals | None = None
        self._asked_at = 0.0
        self._is_launched = any(name in os.environ for name in LAUNCHED_BY)

    def is_asked(self) -> bool:
        """Say whether this process was asked to stop."""
        if self._is_launched and os.getppid() != command_line.PARENT and self.signal is None:
            self.signal = signal.SIGHUP
            _tell("the launcher is gone: saving after this step")
        return self.signal is not None or time.monotonic() > self._deadline

    def __enter__(self) -> "StopRequest":
        """Take over the signals, except that of a lost terminal where nohup has it ignored."""
        is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        taken = [number for number in SIGNALS if number != signal.SIGHUP or not is_ignored]
        self._former = {number: signal.signal(number, self._ask) for number in taken}
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
    """Write a line if possible; a signal can arrive inside print, which must not be entered twice."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


@contextmanager
def explaining(run_dir: RunDirectory) -> Iterator[None]:
    """Say how to go on, by a `UserError`, after a full or read-only disk or when processes are gone."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error}; {run_dir.last_save}") from error
    except RuntimeError as error:
        if not (isinstance(error, DistError) or "gloo" in str(error)):
            raise
        fault = "another process of this training is gone (it has said why if it could)"
        raise UserError(f"{fault}; {run_dir.last_save}") from error
