"""What reaches a terminal: foreign text made visible, and streams that take every character."""

import io
import os
import sys
from traceback import format_exception

from model.files import is_seen


def printable(text: str, keep: str = "") -> str:
    """Return foreign text with what would steer a terminal shown as an escape: `\\x1b` in place of ESC.

    All that prints text of a model, a data file or a name goes through here. `keep` lists control characters
    that stay, such as the newlines of an answer.
    """
    return "".join(map(_shown, text) if not keep else (c if c in keep else _shown(c) for c in text))


def _shown(character: str) -> str:
    return character if is_seen(character) else character.encode("unicode_escape").decode()


def prepare_streams(stdout_is_log: bool = False) -> None:
    """Let output show what its encoding lacks as escapes, and replace closed streams.

    Of a log, which standard error always is, a line that cannot be written is dropped, and never ends the
    work. Elsewhere a reader that is gone ends it quietly (exit code 141), and a full disk raises `OSError`.
    A mistake of ours is shown with its traceback in the same way.
    """
    sys.excepthook = lambda kind, error, trace: show_traceback(error)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell: `>&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and getattr(sys, name) is getattr(sys, f"__{name}__"):
            is_log = stdout_is_log or name == "stderr"
            setattr(sys, name, _on(_Output(getattr(sys, name).fileno(), is_log), getattr(sys, name)))


def show_traceback(error: BaseException) -> None:
    """Print an error with its traceback, the foreign text in it made visible."""
    print(printable("".join(format_exception(error)), keep="\n"), end="", file=sys.stderr)


def _on(output: "_Output", former: io.TextIOWrapper) -> io.TextIOWrapper:
    by_line = former.line_buffering or former.write_through or output.is_log
    return io.TextIOWrapper(io.BufferedWriter(output), former.encoding, "backslashreplace", None, by_line)


class _Output(io.FileIO):
    """A standard stream that says once, or as a log never, that it cannot be written."""

    def __init__(self, descriptor: int, is_log: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.is_log = is_log

    def write(self, data: bytes) -> int:
        try:
            return super().write(data) or len(data)
        except OSError as error:
            if self.is_log:
                return len(data)
            self.is_log = True  # what is left is dropped, also at exit, where nobody could catch it
            if isinstance(error, BrokenPipeError):
                raise SystemExit(141) from None
            raise
