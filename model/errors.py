"""What a user's input or machine can raise; command lines turn it into a line and exit code 2."""

import reprlib
from pathlib import Path

LESS_MEMORY = (
    "lower --batch_size (a training makes up for it with --gradient_accumulation), read or answer less at "
    "once, store narrower weights (--dtype bfloat16), or take --device cpu"
)
BRIEF = reprlib.Repr()
BRIEF.maxstring = BRIEF.maxother = BRIEF.maxlong = 60


class UserError(ValueError):
    """Say in one line what was expected, what came instead and what to do about it."""


class UnfinishedError(UserError):
    """Say that work stopped for a reason outside its input: the same command goes on where it stopped."""


def in_a_line(error: Exception) -> str | None:
    """Return what users can be told of an error, None where it is a mistake of ours.

    Memory that is not there is told in torch's words, on a CPU, by CUDA or by Metal, or in none by Python.
    """
    if isinstance(error, UserError | OSError):
        return str(error)
    words = " ".join(str(error).partition(". GPU")[0].split())
    is_memory = any(sign in words.lower() for sign in ("out of memory", "can't allocate memory"))
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_memory):
        return f"out of memory ({words or 'of Python'}); {LESS_MEMORY}"
    return None


def hub_advice(folder: str | Path) -> str:
    """Return what to do about a missing folder that has the name of a model on the hub; "" for others."""
    owner, _, name = str(folder).partition("/")
    if not name or "/" in name or Path(owner).exists():
        return ""
    return f"; of a model on the hub, make a folder first: hf download {folder} --local-dir {name}"


def brief(value: object) -> str:
    """Return a foreign value for a message, cut where it is long."""
    return BRIEF.repr(value)
