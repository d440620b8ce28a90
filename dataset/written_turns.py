"""What texts of a record hold: messages as JSON, as in tables, and the prompt of two texts alone.

Under which keys they may stand is `dataset/formats.py`'s.
"""

import os
import re
from typing import Any

from dataset.messages import ROLE_OF, RecordError, held_keys, is_transcript, parse_json, read_json, read_text

SPEAKERS, SAID = {"role", "from"}, {"content", "value", "tool_calls", "function_call"}
BEGINS = re.compile(r"\s*(?:\[\s*)?\{")
LIKE_TURNS = re.compile(
    r"""\s*\[\s*\{(?=.*?(['"])(?:role|from)\1\s*:)(?=.*?(['"])(?:content|value)\2\s*:)""", re.DOTALL
)
"""a text that begins as a list of messages does, in JSON, in Python's form, or broken off"""


def are_turns(value: Any) -> bool:
    """Say whether a value is a list in which someone speaks."""
    objects = [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
    return any(each.keys() & SPEAKERS and each.keys() & SAID for each in objects)


def open_turns(value: Any) -> Any:
    """Return the messages of which a value is the JSON text, be it one or in a list; others stay."""
    if isinstance(value, list):
        return [open_turns(each) if isinstance(each, str | list) else each for each in value]
    if not (isinstance(value, str) and BEGINS.match(value)):
        return value
    try:
        turns = read_json(value)
    except (ValueError, RecursionError):  # `read_said` refuses it where it is read
        return value
    if isinstance(turns, dict) and str(turns.get("role", turns.get("from"))).lower() in ROLE_OF:
        turns = [turns]  # in others nobody speaks whom a chat knows: people write about them
    return turns if are_turns(turns) else value


def read_said(value: Any, name: str, may_be_empty: bool = False) -> str:
    """Return a text that is said; raises `RecordError` for messages that could not be opened."""
    if are_turns(value):
        raise RecordError(f"{name} holds messages, and a text stands beside it; expected two texts")
    text = read_text(value, name, may_be_empty)
    if LIKE_TURNS.match(text):
        try:
            parse_json(text, "messages")
        except RecordError as error:
            raise RecordError(f"{error}; expected a text in {name}, or messages as JSON") from None
    return text


def with_prompt(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a record of two texts and nothing else with the words that they share as its prompt.

    {"chosen": "The sky is blue.", "rejected": "The sky is green."}     the prompt is `The sky is`
    """
    texts = [record.get("chosen"), record.get(name)]
    is_bare = {*held_keys(record)} == {"chosen", name} and all(isinstance(text, str) for text in texts)
    if not is_bare or any(is_transcript(text) or LIKE_TURNS.match(text) for text in texts):
        return record
    shared = os.path.commonprefix(texts)
    end = max(map(shared.rfind, " \n\t")) + 1  # the words after it may begin with the same letters
    if not end:
        return record
    return {"prompt": shared[:end].strip(), "chosen": texts[0][end:], name: texts[1][end:]}
