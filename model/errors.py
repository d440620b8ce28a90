"""What a user's input or machine can raise; command lines turn it into a line and exit code 2."""


class UserError(ValueError):
    """Say in one line what was expected, what came instead and what to do about it."""


class UnfinishedError(UserError):
    """Say that work stopped for a reason outside its input: the same command goes on where it stopped."""
