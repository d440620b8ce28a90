"""The choices of a question, and which of them is right, in the ways that people write them."""

from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from dataset.messages import RecordError, is_absent, read_text

CHOICES, CHOSEN = ("choices", "options"), ("answer", "answerKey")
"""keys of choices, and of which is right"""


@dataclass(frozen=True)
class Choices:
    """What a record lets a model choose from."""

    texts: tuple[str, ...]
    right: str
    keys: frozenset[str]
    """under which they stand, and which is right"""


def read_choices(record: dict[str, Any]) -> Choices | None:
    """Return the choices of a record, None where it has none or asks freely; raises `RecordError`."""
    places = [key for key in CHOICES if record.get(key)][:1]
    given = record[places[0]] if places else _lettered(record)
    chosen = [key for key in CHOSEN if not is_absent(record.get(key))][:1]
    right = record[chosen[0]] if chosen else None
    if not given or (right is None and record.get("answers")):
        return None
    texts, labels = _labelled(given)
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise RecordError("choices are not a list of two or more texts")
    texts = tuple(read_text(text, "a choice") for text in texts)
    keys = frozenset([*(places or given), *chosen])
    if len(set(texts)) < len(texts):
        raise RecordError("a choice stands twice")
    if isinstance(right, str) and (right in texts or right in labels):
        return Choices(texts, right if right in texts else texts[labels.index(right)], keys)
    if type(right) is not int or not 0 <= right < len(texts):
        raise RecordError(f"answer is no place of a choice, 0 to {len(texts) - 1}, nor its letter or text")
    return Choices(texts, texts[right], keys)


def _lettered(record: dict[str, Any]) -> dict[str, Any]:
    """Return choices that stand under the keys A, B, … beside the letter of the right one, as C-Eval's do."""
    letters = [letter for letter in ascii_uppercase if not is_absent(record.get(letter))]
    return {letter: record[letter] for letter in letters} if letters[:2] == ["A", "B"] else {}


def _labelled(given: Any) -> tuple[list[Any], list[Any]]:
    """Return choices and their labels: of a list, of ARC's columns, or by letter; none of anything else."""
    texts, labels = given, None
    if isinstance(given, dict) and "text" in given:
        texts, labels = given["text"], given.get("label")
    elif isinstance(given, dict):
        texts, labels = list(given.values()), list(given)
    if not isinstance(texts, list):
        return [], []
    if all(isinstance(each, dict) for each in texts):
        labels, texts = [each.get("label") for each in texts], [each.get("text") for each in texts]
    letters = [chr(ord("A") + n) for n in range(len(texts))]
    return texts, labels if isinstance(labels, list) and len(labels) == len(texts) else letters
