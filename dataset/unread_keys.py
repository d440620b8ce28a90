"""Which keys of a record hold something that nothing reads: users are told, so that no part goes in silence.

How what is read is read stands in `dataset/formats.py` and `dataset/messages.py`.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import dataset.formats as formats
from dataset.messages import (
    CALL,
    CALL_KEYS,
    CALL_MARKS,
    CALLERS,
    FLAGS,
    PART_KEYS,
    ROLE_OF,
    THOUGHTS,
    TURN_KEYS,
    held_keys,
    is_absent,
    is_transcript,
    speaker_of,
)
from dataset.records import Record
from dataset.written_turns import are_turns

MOST_KEYS = 1000
"""that are noted of a file"""
BESIDE_PAIRS = {"history", "is_impossible"}
"""of what stands beside any chat, what is not read beside a list of messages"""
PROMPTS = {prompt for pairs in formats.PAIRS.values() for prompt, _ in pairs}
"""keys of a text that is asked, whose calls stay text"""
SYNONYMS = {"from": "role", "value": "content"}
"""keys of a message that are read where it lacks the others"""


def note(noted: set[str], keys: Iterable[str]) -> None:
    """Add keys to those that are noted, as long as these are not too many."""
    if len(noted) < MOST_KEYS:
        noted.update(keys)


def noting(records: Iterable[Record], noted: set[str]) -> Iterator[Record]:
    """Yield records, and note the keys of what they stood inside of."""
    for record in records:
        note(noted, record.unread)
        yield record


def unread_keys(record: dict[str, Any], chat_format: formats.ChatFormat | None) -> set[str]:
    """Return the keys of a record and of its messages that hold something and are not read."""
    record = formats.opened(record)
    read = _read_keys(record, chat_format)
    held = (formats.HOLDERS - {"rejected", *formats.BESIDE_MESSAGES}) & read & record.keys()
    answers = {name for name in held & {*formats.OF_SEVERAL} if not are_turns(record[name])}
    inside = [of_turns(name, record[name]) for name in held - answers]
    inside += [of_objects(name, record[name], {"text"}) for name in answers]
    said = {name: {*map(str, formats.read_answers(record[name]))} for name in answers}
    inside += [{f"{name} after the first"} for name, texts in said.items() if len(texts) > 1]
    texts = held - PROMPTS - {*formats.LISTS}
    texts |= {n for n in held & PROMPTS if chat_format == "preference" and is_transcript(record[n])}
    inside += [of_texts(name, record[name]) for name in texts]
    inside += [idle_flags(f"{name}.", record[name]) for name in held - answers]
    flagged = (_flagged(record[name], record.get("loss_mask")) for name in held & {*formats.LISTS})
    inside += [idle_flags("", each) for each in flagged]
    return others(record, read).union(*inside)


def others(record: dict[str, Any], read: Collection[str]) -> set[str]:
    """Return the keys that hold something, but those that are read and texts or lists that repeat them."""
    known = [record[key] for key in read if not isinstance(record.get(key), int | float | None)]
    return {key for key in held_keys(record) if key not in read and record[key] not in known}


def of_turns(name: str, value: Any) -> set[str]:
    """Return the keys of messages under a key of a record that hold something and are not read."""
    return {f"{name}.{key}" for turn in _objects(value) for key in _of_turn(turn)}


def idle_flags(place: str, value: Any) -> set[str]:
    """Return the flags that ask for loss in messages that are no answers, which do not get it."""
    asked = [turn for turn in _objects(value) if ROLE_OF.get(str(speaker_of(turn)).lower()) != "assistant"]
    return {f"{place}{flag} outside answers" for turn in asked for flag in FLAGS if turn.get(flag) == 1}


def _flagged(turns: Any, flags: Any) -> list[dict[str, Any]]:
    """Return the speakers of messages with the flags of loss that a record lists for them."""
    pairs = zip(_objects(turns), flags if isinstance(flags, list) else (), strict=False)
    return [{"role": speaker_of(turn), "loss_mask": flag} for turn, flag in pairs]


def of_objects(name: str, value: Any, read: Collection[str]) -> set[str]:
    """Return the keys of objects under a key that hold something, but those that are read."""
    return {f"{name}.{key}" for each in _objects(value) for key in held_keys(each) if key not in read}


def dropped(record: dict[str, Any], renamed: dict[str, Any], columns: Mapping[str, str]) -> set[str]:
    """Return the keys of a record that hold something and are gone, as `columns` name others."""
    left = {key for key in record if renamed.get(key) is record[key]}
    return {*held_keys(record)} - left - {*columns.values()}


def _of_turn(turn: dict[str, Any]) -> Iterator[str]:
    for key in held_keys(turn):
        other = turn.get(SYNONYMS.get(key))
        if key not in TURN_KEYS or not (is_absent(other) or other == turn[key]):
            yield key
    for key in ("content", "value"):
        said, text = turn.get(key), "".join(_texts(turn.get(key)))
        if isinstance(said, list):
            yield from of_objects(key, said, PART_KEYS)
        calls = [text] if str(speaker_of(turn)).lower() in CALLERS else CALL.findall(text)
        yield from (each for call in calls for each in _of_calls(key, call))
    for key in turn.keys() & {"tool_calls", "function_call"}:
        yield from _of_calls(key, turn[key])


def of_texts(name: str, value: Any) -> set[str]:
    """Return the same of tool calls that are written in texts, which may be several or in parts."""
    calls = (call for text in _texts(value) for call in CALL.findall(text))
    return {key for call in calls for key in _of_calls(name, call)}


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a list, or in lists and parts in it, or the one that a value is."""
    value = value.get("text") if isinstance(value, dict) else value
    if isinstance(value, str):
        yield value
    for each in value if isinstance(value, list) else ():
        yield from _texts(each)


def _of_calls(name: str, value: Any) -> Iterator[str]:
    """Yield the same of tool calls, which may be JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:  # then it is text and nothing else
            return
    for call in _objects(value):
        inside = call.get("function")
        yield from of_objects(name, call, CALL_MARKS | ({"function"} if "function" in call else CALL_KEYS))
        yield from of_objects(f"{name}.function", inside, CALL_MARKS | CALL_KEYS)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects in a list, or in lists in it, or the one that a value is."""
    if isinstance(value, dict):
        yield value
    for each in value if isinstance(value, list) else ():
        yield from _objects(each)


def _read_keys(record: dict[str, Any], chat_format: formats.ChatFormat | None) -> set[str]:
    if chat_format in formats.PAIRS:
        prompt, answer = formats.pair_of(record, chat_format)
        thoughts = () if are_turns(record.get(answer)) else THOUGHTS
        return formats.COMMON | {prompt, answer, *formats.DETAILS.get(chat_format, ()), *thoughts}
    if chat_format != "preference":
        return formats.COMMON - BESIDE_PAIRS | {next(filter(record.get, formats.LISTS), "messages")}
    rest = {key: value for key, value in record.items() if key not in formats.PREFERENCE}
    if record.get("chosen") is None:
        return formats.PREFERENCE | _read_keys(rest, formats.format_of(rest))
    of_two = formats.PREFERENCE - {*(formats.LABELS if formats.label_of(record) is None else ())}
    if not held_keys(rest):  # two texts alone
        return of_two
    if formats.is_in_full(answer := formats.read_side_of(record, "chosen")):
        said = [message.content for message in answer]
        repeated = {key for key, value in rest.items() if value in said or value == record["chosen"]}
        return of_two | formats.COMMON - BESIDE_PAIRS | repeated
    name, key = formats.prompt_of(rest)
    common = formats.COMMON - (BESIDE_PAIRS if name in formats.LISTS else set())
    return of_two | common | {key, *formats.DETAILS.get(name, ())}
