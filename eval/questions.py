"""Questions from files, in the forms that users have, and an account of the records that are none.

What a chat looks like is `dataset/formats.py`'s.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from dataset.blocks import check_whole
from dataset.chat_form import ROLES, Message
from dataset.formats import COMMON, DETAILS, QuestionPosition, format_of, opened, parse_messages, rename
from dataset.messages import (
    THOUGHTS,
    LeftOutError,
    RecordError,
    held_keys,
    is_absent,
    read_message,
    read_objects,
    read_text,
    shown,
)
from dataset.records import Record, are_too_many, read_records
from dataset.sources import check_sources
from dataset.unread_keys import BESIDE_PAIRS, dropped, of_objects, of_texts, of_turns, others, unread_keys
from dataset.written_turns import LIKE_TURNS, are_turns
from eval.choices import read_choices
from eval.matching import final_answer
from model.errors import UserError

TURNS = ("conversations", "messages", "prompt", "input")
"""keys of a question that is a chat"""
ASKED = ("question", "prompt", "query", "problem", "instruction", "input")
"""keys of a question that is one text"""
CONTEXTS = ("context", "passage", "article")
"""keys of the text that a question is about"""
ACCEPTED = ("answers", "answer", "ideal", "targets", "target")
"""keys of what counts as right"""
OF_ANSWERS = ("text", "value", "aliases", "spans")
"""keys of an answer that is an object"""
EXPECTED = "expected question and answers (context where there is one), or messages; beside choices, answer"
NAMES = {"id", "split", "language", "kind", "task", "cluster", "is_impossible"}
"""keys of what else is read of any question"""


@dataclass(frozen=True)
class Question:
    """A conversation that ends before an answer, and the answers that count as right."""

    id: str
    split: str
    language: str
    kind: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    """answers of which the most probable is taken; empty where the model is to answer freely"""
    cluster: str = ""
    """names the text or fact that the question shares with others; empty where it shares none"""

    def __post_init__(self) -> None:
        """Refuse what cannot be asked (`ValueError`)."""
        if not self.messages or not self.answers or {message.role for message in self.messages} - set(ROLES):
            raise ValueError("expected messages with known roles, and answers")


@dataclass(frozen=True)
class LeftOut:
    """A record of a question file that is not asked."""

    file: str
    line: int
    reason: str
    is_broken: bool
    """whether it counts for --max_reject_fraction; otherwise its question has no answer"""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of some files, and the records in them that are not asked."""

    questions: tuple[Question, ...]
    left_out: tuple[LeftOut, ...]
    from_chats: int
    """questions whose accepted answer is the last one of their chat"""
    unread_keys: tuple[str, ...] = ()
    """keys that hold something in the files and are not read"""
    not_asked: int = 0
    """questions beyond `max_questions` of their file"""
    absent_columns: tuple[str, ...] = ()
    """keys that users name which no record has"""


def load_questions(
    paths: Sequence[str],
    question_position: QuestionPosition = "last",
    max_reject_fraction: float = 0.01,
    max_questions: int | None = None,
    columns: Mapping[str, str] = {},
) -> QuestionSet:
    """Read question files. A question that has no answer is left out, and so is a record that is broken.

    Raises `UserError` that names the line where a file has no question, or where more than a share of its
    records are broken; in a file of under 100 records one may be, unless the share is 0. No more than
    `max_questions` of a file are kept. `columns` name keys of the records by ours.
    """
    check_sources(paths)
    found: set[str] = set()
    how = (question_position, max_reject_fraction, max_questions)
    files = [_load_file(path, _renamed(path, columns, found), *how) for path in paths]
    return QuestionSet(
        tuple(question for file in files for question in file.questions),
        tuple(record for file in files for record in file.left_out),
        sum(file.from_chats for file in files),
        tuple(dict.fromkeys(key for file in files for key in file.unread_keys)),
        sum(file.not_asked for file in files),
        tuple(sorted({*columns.values()} - found)),
    )


def _renamed(path: str, columns: Mapping[str, str], found: set[str]) -> Iterator[Record]:
    for record in read_records([path]):
        if record.value is not None:
            found |= columns.values() & record.value.keys()
            renamed = rename(record.value, columns)
            unread = (*record.unread, *sorted(dropped(record.value, renamed, columns)))
            record = record._replace(value=renamed, unread=unread)
        yield record


def _load_file(
    path: str,
    records: Iterable[Record],
    question_position: QuestionPosition,
    max_reject_fraction: float,
    max_questions: int | None,
) -> QuestionSet:
    questions, faults, are_chats, keys = [], [], [], {}
    for record in records:
        try:
            questions.append(_parse(record, path, question_position))
        except RecordError as error:
            check_whole(f"{path} line {record.line}", str(error), max_reject_fraction)
            is_broken = not isinstance(error, LeftOutError)
            faults.append(LeftOut(str(path), record.line, str(error), is_broken))
        else:
            are_chats.append(not questions[-1].choices and _accepted(record.value) is None)
            keys |= dict.fromkeys([*record.unread, *sorted(unread_of(record.value))])
    _check_faults(path, faults, len(questions), max_reject_fraction)
    kept = range(len(questions)) if max_questions is None else spread(questions, max_questions)
    from_chats = sum(are_chats[n] for n in kept)
    asked = tuple(questions[n] for n in kept)
    return QuestionSet(asked, tuple(faults), from_chats, tuple(keys), len(questions) - len(asked))


def unread_of(record: dict[str, Any]) -> set[str]:
    """Return the keys of a record and of its messages that hold something and are not read."""
    record = opened(record, ASKED)
    choices, names = read_choices(record), NAMES - ({"task"} if _name(record, "kind") else set())
    if not (answers := (choices.right,) if choices else _accepted(record)):
        return unread_keys(record, format_of(record)) - names | _beside_answer(record)
    read = choices.keys if choices else {key for key in ACCEPTED if _is_among(record.get(key), answers)}
    inside = _unread_inside(record, read, {"text", "label"} if choices else OF_ANSWERS)
    if key := next((key for key in TURNS if _turns(record.get(key))), None):
        read = read | {key} | COMMON - BESIDE_PAIRS | names
        return others(record, read) | _unread_of_turns(key, _turns(record[key]), answers) | inside
    asked = _place(record, ASKED)
    beside = DETAILS["alpaca"] if asked == "instruction" else (_place(record, CONTEXTS),)
    inside |= of_turns("history", record.get("history")) | of_texts("history", record.get("history"))
    inside |= of_turns(asked, record[asked])
    return others(record, read | {asked, *beside} | COMMON | names) | inside


def _beside_answer(record: dict[str, Any]) -> set[str]:
    """Return what stands beside the text of an answer, which alone is compared."""
    last = {key: value[-1:] for key, value in record.items() if isinstance(value, list)}
    held = {key: held_keys(turns[0]) for key, turns in last.items() if are_turns(turns)}
    inside = {f"{key}.{each}" for key in held for each in held[key] if each in (*THOUGHTS, "tools")}
    return {*THOUGHTS} & {*held_keys(record)} | inside


def _unread_inside(record: dict[str, Any], keys: Collection[str], read: Collection[str]) -> set[str]:
    """Return the same of objects that answers or choices are; those of choices by letter are all read."""
    values = {key: record.get(key) for key in keys}
    letters = [key for key, value in values.items() if isinstance(value, dict) and not value.keys() & {*read}]
    return set().union(*(of_objects(key, values[key], read) for key in values.keys() - letters))


def _unread_of_turns(key: str, turns: list[dict[str, Any]], answers: Sequence[str]) -> set[str]:
    """Return the same of a chat, whose own last answer gives way to those that count as right."""
    last = read_message(turns[-1])
    is_lost = last.role == "assistant" and not _is_among(last.content, answers)
    return of_turns(key, turns) | ({f"the last answer of {key}"} if is_lost else set())


def _place(record: dict[str, Any], keys: Sequence[str]) -> str | None:
    """Return the first of the keys that holds something."""
    return next((key for key in keys if not is_absent(record.get(key))), None)


def spread(questions: Sequence[Question], most: int) -> list[int]:
    """Return the places of at most so many questions, in order, every split, kind and language by its share.

    Which ones depends on the questions alone.
    """
    places = sorted(
        range(len(questions)), key=lambda n: (questions[n].split, questions[n].kind, questions[n].language)
    )
    count = min(most, len(places))
    return sorted(places[n * len(places) // count] for n in range(count))


def _parse(record: Record, path: str, question_position: QuestionPosition) -> Question:
    if record.value is None:
        raise RecordError(record.fault)
    try:
        return parse_question(record.value, f"{path}:{record.line}", Path(path).stem, question_position)
    except RecursionError:
        raise RecordError("nested too deeply") from None


def _check_faults(path: str, faults: Sequence[LeftOut], num_questions: int, max_fraction: float) -> None:
    broken, count = [fault for fault in faults if fault.is_broken], num_questions + len(faults)
    if broken and (are_too_many(len(broken), count, max_fraction) or not num_questions):
        share = f"{len(broken)} of {count} records cannot be used"
        limit = f", more than --max_reject_fraction {max_fraction:g} allows" if num_questions else ""
        raise UserError(f"{path}, line {broken[0].line}: {broken[0].reason}; {share}{limit}")
    if not num_questions:
        raise UserError(f"{path} holds no questions with answers; expected one JSON object per line")


def parse_question(
    record: dict[str, Any], name: str, split: str, question_position: QuestionPosition = "last"
) -> Question:
    """Return the question of a record; `name` and `split` stand in for those that it lacks.

        {"conversations": […, user], "answers": […]}            also under "messages", "prompt" or "input"
        {"conversations": […, user, assistant]}                 its last message is the accepted answer
        {"context"?: …, "question": …, "answers": […]}          also "answer", one or several
        {"question": …, "choices": […], "answer": 0}            with a context too, or a chat in its place

    With choices, "answer" is the right one's label, or place counted from 0, letter or text; the model is
    not shown them. Without it "answers" are those of a free question, whatever choices it carries. Raises
    `RecordError` with the reason, `LeftOutError` where the record says that its question has no answer.
    """
    if record.get("is_impossible") in (True, "true", "True"):  # 1, too
        raise LeftOutError("its question has no answer")
    record = opened(record, ASKED)
    choices = read_choices(record)
    answers = (choices.right,) if choices else _accepted(record)
    if answers is not None:
        *messages, last = _with_answer(record, answers[0], question_position)
    elif format_of(record) in (None, "preference"):
        raise RecordError(f"no question and answers under the keys {shown(record)}; {EXPECTED}")
    else:
        *messages, last = parse_messages(record, question_position)
    if last.role != "assistant" or not messages or messages[-1].role == "assistant":
        raise RecordError("expected a question before one answer")
    if not answers and last.tool_calls:
        raise LeftOutError("its answer calls a tool, and only texts are compared")
    return Question(
        _name(record, "id") or name,
        _name(record, "split") or split,
        _name(record, "language"),
        _name(record, "kind") or _name(record, "task"),
        tuple(messages),
        answers or (final_answer(last.content) or last.content,),
        choices.texts if choices else (),
        _name(record, "cluster") or _text_digest(record),
    )


def _text_digest(record: dict[str, Any]) -> str:
    """Return a name for the text that a question is about, nothing where it has none."""
    key = _place(record, CONTEXTS)
    return sha256(json.dumps(record[key]).encode()).hexdigest()[:16] if key else ""


def _name(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    text = value if isinstance(value, str | None) else json.dumps(value)
    return read_text(text, key, may_be_empty=True)


def _with_answer(record: dict[str, Any], answer: str, question_position: QuestionPosition) -> list[Message]:
    """Return the messages of a record whose answer stands beside its question, and that answer."""
    rest = {key: value for key, value in record.items() if key not in (*TURNS, *ASKED, *ACCEPTED)}
    turns = next(filter(None, (_turns(record.get(key)) for key in TURNS)), None)
    if turns:
        whole = [*turns, {"role": "assistant", "content": answer}]
        *messages, last = parse_messages(rest | {"conversations": whole}, chat_format="conversations")
        return [*(messages[:-1] if messages and messages[-1].role == "assistant" else messages), last]
    key = _place(record, ASKED)
    if key is None:
        raise RecordError(f"no question under the keys {shown(record)}; {EXPECTED}")
    if key == "instruction":
        asked = {"instruction": record[key], "input": record.get("input"), "output": answer}
        return parse_messages(rest | asked, chat_format="alpaca")
    asked = {"question": record[key], "context": record.get(_place(record, CONTEXTS)), "answers": [answer]}
    return parse_messages(rest | asked, question_position, "reading")


def _turns(value: Any) -> list[dict[str, Any]]:
    """Return a list of messages; nothing for a text, unless it is one of messages that are not JSON."""
    if is_absent(value) or (isinstance(value, str) and not LIKE_TURNS.match(value)):
        return []
    return read_objects(value, "messages")


def _accepted(record: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the answers that count as right, None where a conversation is to end with the one that does.

    Raises `LeftOutError` where the record says that there is none.
    """
    given = [record[key] for key in ACCEPTED if not is_absent(record.get(key))]
    if not given:
        return None
    found = next(filter(None, ([text for text in _texts(each) if text.strip()] for each in given)), [])
    if not found:
        raise LeftOutError("its question has no answer")
    return tuple(dict.fromkeys(final_answer(text) or text for text in found))


def _is_among(value: Any, answers: Sequence[str]) -> bool:
    """Say whether a value says nothing but what counts as right already."""
    try:
        return {final_answer(text) or text for text in _texts(value)} <= {*answers}
    except RecordError:
        return False


def _texts(value: Any) -> list[str]:
    """Return the texts of an answer or several: also SQuAD's columns and objects, and numbers."""
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    if isinstance(value, dict):
        known = [key for key in OF_ANSWERS if key in value]
        if not known:
            raise RecordError("answers are objects without text")
        return [text for key in known for text in _texts(value[key])]
    if is_absent(value) or isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RecordError("answers are not texts")
    return [read_text(value if isinstance(value, str) else json.dumps(value), "answer", may_be_empty=True)]
