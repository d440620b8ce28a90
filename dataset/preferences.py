"""A record of preference data as two conversations, which end with the good and the bad answer to one prompt.

In which keys they stand is `dataset/formats.py`'s.
"""

from dataclasses import replace
from typing import Any

from dataset.chat_form import Message
from dataset.formats import BESIDE_MESSAGES, QuestionPosition, ending_with, is_in_full, opened, read_side_of
from dataset.messages import LeftOutError, RecordError, half_of, is_absent
from dataset.unread_keys import idle_flags, of_texts, of_turns, others
from dataset.written_turns import with_prompt

Pair = tuple[list[Message], list[Message]]
"""the conversations that end with the good answer and with the bad one"""

SCORES = ("score_chosen", "chosen_score", "chosen-rating", "chosen_rating")
"""keys under which data tell how good an answer is; of the other one they say `rejected`"""
BAD = ("rejected", *BESIDE_MESSAGES)


def parse_pair(record: dict[str, Any], question_position: QuestionPosition = "last") -> Pair:
    """Return the conversations of a pair, the good one first; answers before they part carry no loss.

    Raises `RecordError` with the reason, `LeftOutError` where neither answer is better than the other.
    """
    record = opened(record)
    name = next((name for name in BAD if not is_absent(record.get(name))), None)
    if name is None or (name == "rejected" and half_of(record)):
        raise RecordError(half_of(record) or "no pair of answers; expected chosen and rejected")
    record = with_prompt(record, name)
    good = ending_with(record, "chosen", question_position)
    if is_absent(record.get("chosen")) and not is_in_full(said := read_side_of(record, name)):
        bad = [*good[:-1], *said]  # the good answer ends the messages
    else:
        bad = ending_with(record, name, question_position)
    scores = ((record.get(key), record.get(key.replace("chosen", "rejected"))) for key in SCORES)
    if good == bad or any(not is_absent(one) and one == other for one, other in scores):
        raise LeftOutError("neither answer of a pair is better")
    return _parted(good, bad)


def unread_of_bad(record: dict[str, Any]) -> set[str]:
    """Return what of the bad answer of a pair is not read: keys in it, and another one beside it."""
    given = opened({name: record[name] for name in BAD if not is_absent(record.get(name))})
    name = next(iter(given))
    inside = of_turns(name, given[name]) | of_texts(name, given[name])
    return others(given, {name}) | inside | idle_flags(f"{name}.", given[name])


def _parted(good: list[Message], bad: list[Message]) -> Pair:
    """Return both sides, without loss where they are the same; raises `RecordError` unless answers differ."""
    said = ([replace(message, is_trained=True) for message in side] for side in (good, bad))
    place = next((n for n, (one, other) in enumerate(zip(*said, strict=False)) if one != other), None)
    if place is None or good[place].role != "assistant" or bad[place].role != "assistant":
        raise RecordError("chosen and rejected do not answer the same prompt")
    earlier = [replace(each, is_trained=each.role != "assistant") for each in good[:place]]
    return earlier + good[place:], earlier + bad[place:]
