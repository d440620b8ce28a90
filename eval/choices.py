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
    is_place_of_none = type(right) is int and [] in map(record.get, CHOICES)
    if not is_place_of_none and (not given or (right is None and record.get("answers"))):
        return None
    texts, labels = _labelled(given)
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise RecordError("choices are not a list of two or more texts")
    texts = tuple(read_text(text, "a choice") for text in texts)
    keys = frozenset([*(places or given), *chosen])
    if len(set(texts)) < len(texts):
        raise RecordError("a choice stands twice")
    return Choices(texts, texts[_place(right, texts, labels)], keys)


def _place(right: Any, texts: tuple[str, ...], labels: list[str]) -> int:
    """Return the place of the right choice: its label's, if there are any; else by text, letter or place."""
    if type(right) in (str, int) and str(right) in labels:
        return labels.index(str(right))
    letters = [] if labels else list(ascii_uppercase)[: len(texts)]
    found = {names.index(right) for names in (texts, letters) if right in names}
    if len(found) > 1:
        raise RecordError("answer is the text of one choice and the letter of another; expected its place")
    if type(right) is int and 0 <= right < len(texts) and not any(map(str.isdecimal, labels)):
        return right
    if not found:
        known = f"label, {', '.join(labels)}," if labels else "letter"
        raise RecordError(f"answer is no place of a choice, 0 to {len(texts) - 1}, nor its {known} or text")
    return found.pop()


def _lettered(record: dict[str, Any]) -> dict[str, Any]:
    """Return choices that stand under the keys A, B, … beside the letter of the right one, as C-Eval's do."""
    letters = [letter for letter in ascii_uppercase if not is_absent(record.get(letter))]
    return {letter: record[letter] for letter in letters} if letters[:2] == ["A", "B"] else {}


def _labelled(given: Any) -> tuple[list[Any], list[str]]:
    """Return choices and the labels that the file gives them: of a list, of ARC's columns, or by letter."""
    texts, labels = given, None
    if isinstance(given, dict) and "text" in given:
        texts, labels = given["text"], given.get("label")
    elif isinstance(given, dict):
        texts, labels = list(given.values()), list(given)
    if not isinstance(texts, list):
        return [], []
    if all(isinstance(each, dict) for each in texts):
        labels, texts = [each.get("label") for each in texts], [each.get("text") for each in texts]
    if not labels or labels == [None] * len(texts):
        return texts, []
    listed = labels if isinstance(labels, list) else []
    names = [str(label) for label in listed if type(label) in (str, int)]
    if len({*names}) != len(texts):
        raise RecordError("labels are not one text or whole number of its own for each choice")
    return texts, names
