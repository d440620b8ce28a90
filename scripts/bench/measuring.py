"""How long a command takes and how much memory it and its processes hold at the most."""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from model.errors import UserError

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Cost:
    """What one run of a command cost."""

    seconds: float
    peak_bytes: int
    """resident memory of all its processes together; pages that they share are counted in each"""


def measure(command: Sequence[str]) -> Cost:
    """Run a command to its end; raises `UserError` with its last words if it fails."""
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                peak = max(peak, _resident_bytes(process.pid))
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed: {output[-500:]}")
    return Cost(time.monotonic() - started, peak)


def _resident_bytes(pid: int) -> int:
    import psutil

    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
