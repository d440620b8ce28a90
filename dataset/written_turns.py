"""Lists of messages that a record holds as their JSON text, as tables do: told from texts, and opened.

Under which keys they may stand is `dataset/formats.py`'s.
"""

import re
from typing import Any

from dataset.messages import RecordError, parse_json, read_json, read_text

SPEAKERS, SAID = {"role", "from"}, {"content", "value", "tool_calls", "function_call"}
BEGINS = re.compile(r"\s*\[\s*\{")
LIKE_TURNS = re.compile(
    BEGINS.pattern + r"""(?=.*?(['"])(?:role|from)\1\s*:)(?=.*?(['"])(?:content|value)\2\s*:)""", re.DOTALL
)
"""a text that begins as a list of messages does, in JSON, in Python's form, or broken off"""


def are_turns(value: Any) -> bool:
    """Say whether a value is a list in which someone speaks."""
    objects = [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
    return any(each.keys() & SPEAKERS and each.keys() & SAID for each in objects)


def open_turns(value: Any) -> Any:
    """Return the messages of which a value is the JSON text, also inside of lists; others stay."""
    if isinstance(value, list):
        return [open_turns(each) if isinstance(each, str | list) else each for each in value]
    if not (isinstance(value, str) and BEGINS.match(value)):
        return value
    try:
        turns = read_json(value)
    except (ValueError, RecursionError):  # `read_said` refuses it where it is read
        return value
    return turns if are_turns(turns) else value


def read_said(value: Any, name: str, may_be_empty: bool = False) -> str:
    """Return a text that is said; raises `RecordError` for messages that could not be opened."""
    text = read_text(value, name, may_be_empty)
    if LIKE_TURNS.match(text):
        try:
            parse_json(text, "messages")
        except RecordError as error:
            raise RecordError(f"{error}; expected a text in {name}, or messages as JSON") from None
    return text
