"""The one exception that a user's input can raise; command lines turn it into a line and exit code 2."""


class UserError(ValueError):
    """Say in one line what was expected, what came instead and what to do about it."""
