"""What a user's input or machine can raise; command lines turn it into a line and exit code 2."""

import reprlib

BRIEF = reprlib.Repr()
BRIEF.maxstring = BRIEF.maxother = BRIEF.maxlong = 60


class UserError(ValueError):
    """Say in one line what was expected, what came instead and what to do about it."""


class UnfinishedError(UserError):
    """Say that work stopped for a reason outside its input: the same command goes on where it stopped."""


def brief(value: object) -> str:
    """Return a foreign value for a message, cut where it is long."""
    return BRIEF.repr(value)
