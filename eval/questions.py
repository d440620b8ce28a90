"""Questions from files, in the forms that users have, and an account of the records that are none.

What a chat looks like is `dataset/formats.py`'s.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from dataset.chat_form import ROLES, Message
from dataset.formats import COMMON as READ_BESIDE
from dataset.formats import PAIRS, QuestionPosition, format_of, parse_messages, rename
from dataset.messages import (
    LeftOutError,
    RecordError,
    held_keys,
    is_absent,
    read_objects,
    read_text,
    shown,
)
from dataset.records import Record, are_too_many, read_records
from dataset.sources import check_sources
from dataset.unpacking import check_whole
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
CHOICES, CHOSEN = ("choices", "options"), ("answer", "answerKey")
"""keys of choices, and of which is right"""
EXPECTED = "expected question and answers (context where there is one), or messages; beside choices, answer"
NAMES = ("id", "split", "language", "kind", "task", "cluster")
OF_TEXTS = {*TURNS, *ASKED, *CONTEXTS, "history"}
KNOWN = {*TURNS, *ASKED, *CONTEXTS, *ACCEPTED, *CHOICES, *CHOSEN, *NAMES, *ascii_uppercase}
KNOWN |= READ_BESIDE | {key for pairs in PAIRS.values() for pair in pairs for key in pair}


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
    files = [
        _load_file(path, _renamed(path, columns), question_position, max_reject_fraction, max_questions)
        for path in paths
    ]
    return QuestionSet(
        tuple(question for file in files for question in file.questions),
        tuple(record for file in files for record in file.left_out),
        sum(file.from_chats for file in files),
        tuple(dict.fromkeys(key for file in files for key in file.unread_keys)),
        sum(file.not_asked for file in files),
    )


def _renamed(path: str, columns: Mapping[str, str]) -> Iterator[Record]:
    for record in read_records([path]):
        yield record._replace(value=record.value and rename(record.value, columns))


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
            keys |= dict.fromkeys(_unread(record.value))
    _check_faults(path, faults, len(questions), max_reject_fraction)
    kept = range(len(questions)) if max_questions is None else spread(questions, max_questions)
    from_chats = sum(are_chats[n] for n in kept)
    asked = tuple(questions[n] for n in kept)
    return QuestionSet(asked, tuple(faults), from_chats, tuple(keys), len(questions) - len(asked))


def _unread(record: dict[str, Any]) -> Iterator[str]:
    """Yield the keys that hold something and are not read: beside messages, those of texts neither."""
    turns = next((key for key in TURNS if record.get(key) and isinstance(record[key], list)), None)
    known = KNOWN - (OF_TEXTS - {turns} if turns else set())
    yield from (key for key in held_keys(record) if key not in known)


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


def _check_faults(
    path: str, faults: Sequence[LeftOut], num_questions: int, max_reject_fraction: float
) -> None:
    broken, count = [fault for fault in faults if fault.is_broken], num_questions + len(faults)
    if broken and (are_too_many(len(broken), count, max_reject_fraction) or not num_questions):
        share = f"{len(broken)} of {count} records cannot be used"
        limit = f", more than --max_reject_fraction {max_reject_fraction:g} allows" if num_questions else ""
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

    With choices, "answer" is the place of the right one counted from 0, its letter or its text; the model is
    not shown them. Without it "answers" are those of a free question, whatever choices it carries. Raises
    `RecordError` with the reason, `LeftOutError` where the record says that its question has no answer.
    """
    if record.get("is_impossible") is True:
        raise LeftOutError("its question has no answer")
    choices = _choices(record)
    answers = (choices.right,) if choices else _accepted(record)
    if answers is not None:
        *messages, last = _with_answer(record, answers[0], question_position)
    elif format_of(record) in (None, "preference"):
        raise RecordError(f"no question and answers under the keys {shown(record)}; {EXPECTED}")
    else:
        *messages, last = parse_messages(record, question_position)
    if last.role != "assistant" or not messages or messages[-1].role == "assistant":
        raise RecordError("expected a question before one answer")
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
    text = next((record[key] for key in CONTEXTS if not is_absent(record.get(key))), None)
    return sha256(json.dumps(text).encode()).hexdigest()[:16] if text is not None else ""


def _name(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    text = value if isinstance(value, str | None) else json.dumps(value)
    return read_text(text, key, may_be_empty=True)


def _with_answer(record: dict[str, Any], answer: str, question_position: QuestionPosition) -> list[Message]:
    """Return the messages of a record whose answer stands beside its question, and that answer."""
    rest = {key: value for key, value in record.items() if key not in (*TURNS, *ASKED, *ACCEPTED)}
    turns = next(filter(None, (_turns(record.get(key)) for key in TURNS)), None)
    if turns:
        closing = (
            {"from": "gpt", "value": answer}
            if "from" in turns[-1]
            else {"role": "assistant", "content": answer}
        )
        *messages, last = parse_messages(
            rest | {"conversations": [*turns, closing]}, chat_format="conversations"
        )
        return [*(messages[:-1] if messages and messages[-1].role == "assistant" else messages), last]
    key = next((key for key in ASKED if not is_absent(record.get(key))), None)
    if key is None:
        raise RecordError(f"no question under the keys {shown(record)}; {EXPECTED}")
    if key == "instruction":
        asked = {"instruction": record[key], "input": record.get("input"), "output": answer}
        return parse_messages(rest | asked, chat_format="alpaca")
    context = next((record[key] for key in CONTEXTS if not is_absent(record.get(key))), None)
    asked = {"question": record[key], "context": context, "answers": [answer]}
    return parse_messages(rest | asked, question_position, "reading")


def _turns(value: Any) -> list[dict[str, Any]]:
    """Return a list of messages, also one that is stored as the JSON text of it; nothing for another text."""
    if is_absent(value) or (isinstance(value, str) and not value.lstrip().startswith("[{")):
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


def _texts(value: Any) -> list[str]:
    """Return the texts of an answer or several: also SQuAD's columns and objects, and numbers."""
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    if isinstance(value, dict):
        known = [key for key in ("text", "value", "aliases", "spans") if key in value]
        if not known:
            raise RecordError("answers are objects without text")
        return [text for key in known for text in _texts(value[key])]
    if is_absent(value) or isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RecordError("answers are not texts")
    return [read_text(value if isinstance(value, str) else json.dumps(value), "answer", may_be_empty=True)]


@dataclass(frozen=True)
class _Choices:
    texts: tuple[str, ...]
    right: str


def _choices(record: dict[str, Any]) -> _Choices | None:
    given = next((record[key] for key in CHOICES if record.get(key)), None) or _lettered(record)
    right = next((record[key] for key in CHOSEN if not is_absent(record.get(key))), None)
    if not given or (right is None and record.get("answers")):
        return None
    texts, labels = _labelled(given)
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise RecordError("choices are not a list of two or more texts")
    texts = tuple(read_text(text, "a choice") for text in texts)
    if len(set(texts)) < len(texts):
        raise RecordError("a choice stands twice")
    if isinstance(right, str) and (right in texts or right in labels):
        return _Choices(texts, right if right in texts else texts[labels.index(right)])
    if type(right) is not int or not 0 <= right < len(texts):
        raise RecordError(
            f"answer is not the place of a choice, 0 to {len(texts) - 1}, nor its letter or text"
        )
    return _Choices(texts, texts[right])


def _lettered(record: dict[str, Any]) -> dict[str, Any]:
    """Return choices that stand under the keys A, B, … beside the letter of the right one, as C-Eval's do."""
    letters = [letter for letter in ascii_uppercase if not is_absent(record.get(letter))]
    return {letter: record[letter] for letter in letters} if letters[:2] == ["A", "B"] else {}


def _labelled(given: Any) -> tuple[list[Any], list[Any]]:
    """Return choices and their labels: of a list, of ARC's columns, or by letter; none of anything else."""
    if isinstance(given, dict):
        texts, labels = (
            (given.get("text"), given.get("label"))
            if "text" in given
            else (list(given.values()), list(given))
        )
    else:
        texts, labels = given, None
    if not isinstance(texts, list):
        return [], []
    if all(isinstance(each, dict) for each in texts):
        labels, texts = [each.get("label") for each in texts], [each.get("text") for each in texts]
    letters = [chr(ord("A") + n) for n in range(len(texts))]
    return texts, labels if isinstance(labels, list) and len(labels) == len(texts) else letters
