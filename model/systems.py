"""What differs between operating systems: what locks and measures, and the number of cores."""

import os
import sys

try:
    import fcntl
    import resource
except ImportError:
    print(
        "error: Sightline needs Linux or macOS; on Windows run it in WSL (wsl --install)",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

__all__ = ["fcntl", "num_cores", "resource"]


def num_cores() -> int:
    """Return the cores that this process may use, as far as the system says: macOS names all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
