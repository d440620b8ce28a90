"""By what a result was made: machine, versions, and the commit of this source code."""

import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model.systems import num_cores


def provenance() -> dict[str, Any]:
    """Return what stands beside every result."""
    return {
        "machine": platform.platform(),
        "processor": f"{_processor()}, {num_cores()} cores",
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in ("torch", "accelerate", "numpy")},
        "commit": _commit(),
    }


def _processor() -> str:
    """Return the model of the CPU where Linux tells it, else its kind."""
    told = Path("/proc/cpuinfo")
    text = told.read_text(encoding="utf-8", errors="replace") if told.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of this source code, with -dirty where it was changed; None in no repository."""
    form = ("--always", "--dirty", "--abbrev=40", "--exclude=*")
    command = ["git", "-C", str(Path(__file__).parent), "describe", *form]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
