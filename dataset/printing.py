"""What reaches a terminal: foreign text made visible, and streams that take every character."""

import os
import sys
import unicodedata

HARMLESS = "\u200c\u200d"  # joiners of emoji and of several scripts
ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, half surrogates, line and paragraph separators


def printable(text: str, keep: str = "") -> str:
    """Return foreign text with what would steer a terminal shown as an escape: `\\x1b` in place of ESC.

    All that prints text of a model, a data file or a name goes through here. `keep` lists control characters
    that stay, such as the newlines of an answer.
    """
    return "".join(map(_shown, text) if not keep else (c if c in keep else _shown(c) for c in text))


def _shown(character: str) -> str:
    if character.isprintable() or character in HARMLESS or unicodedata.category(character) not in ESCAPED:
        return character
    return character.encode("unicode_escape").decode()


def prepare_streams() -> None:
    """Let standard output and error show what their encoding lacks as escapes; replace closed streams."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell: `>&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
