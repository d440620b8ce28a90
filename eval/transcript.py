"""Conversations as lines of JSON: `prepare_data` takes them as training data, a chat takes them up again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset.chat_form import OURS, Message
from dataset.formats import format_of, parse_messages
from dataset.messages import FLAGS, RecordError, held_keys
from dataset.records import Record, read_records
from dataset.sources import check_sources
from dataset.tokenizer import Tokenizer
from dataset.unread_keys import unread_keys
from eval.chat import ChatSession, Turn
from model.errors import UserError
from model.files import as_json, write_text
from model.typed_json import read_as

OF_TRANSCRIPTS = {"answer_ids", "tokenizer"}


def save_transcript(path: str | Path, sessions: Sequence[ChatSession]) -> int:
    """Write a line for each session; return the number of turns whose blank answer no training would take.

    Those are left out. Raises `UserError` for a session without any other turn, and for a file that holds
    anything but transcripts.
    """
    if Path(path).suffix != ".jsonl":
        raise UserError(f"expected a file name that ends in .jsonl, as training data does, got {str(path)!r}")
    path = Path(path)
    if path.exists() and not all("answer_ids" in record.value for record in _read(path)):
        raise UserError(f"{path} holds something else than transcripts; choose another name")
    if not all(_spoken(session) for session in sessions):
        raise UserError("there is nothing to save yet")
    lines = (as_json(_record(session)) + "\n" for session in sessions)
    write_text(path, "".join(lines))
    return sum(len(session.turns) - len(_spoken(session)) for session in sessions)


def is_replaced(path: str | Path, sessions: Sequence[ChatSession]) -> bool:
    """Say whether a file holds messages or keys that a transcript of these sessions would not."""
    records = _read(Path(path)) if Path(path).is_file() else []
    if any({*held_keys(record.value)} - {"conversations", *OF_TRANSCRIPTS} for record in records):
        return True
    former = [record.value.get("conversations") for record in records]
    now = [_record(session)["conversations"] for session in sessions]
    return len(former) > len(now) or any(
        not isinstance(old, list) or new[: len(old)] != old for old, new in zip(former, now, strict=False)
    )


def load_transcript(path: str | Path, sessions: Sequence[ChatSession]) -> list[str]:
    """Let each session take up the conversation of its line; `UserError` leaves all as they were.

    Answers come back as the ids that they were where the tokenizer is the same, else encoded from their text.
    Returns the keys that hold something else, and what marks passages, where that is not taken up.
    """
    check_sources([str(path)])
    records = _read(Path(path))
    if len(records) != len(sessions):
        raise UserError(f"{path} holds {len(records)} conversations; expected {len(sessions)}, one per model")
    try:
        pairs = zip(records, sessions, strict=True)
        found = [_parse(record.value, session.served.tokenizer) for record, session in pairs]
        keys = [{*record.unread, *_not_taken_up(record.value)} for record in records]
    except (RecordError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from None
    for session, (system, turns) in zip(sessions, found, strict=True):
        session.restore(system, turns)
    return sorted(set().union(*keys) - OF_TRANSCRIPTS)


def _read(path: Path) -> list[Record]:
    records = list(read_records([str(path)]))
    for record in records:
        if record.value is None:
            raise UserError(f"{path}, line {record.line}: {record.fault}")
    return records


def _not_taken_up(record: dict[str, Any]) -> set[str]:
    """Return what no session holds: other keys, and where passages stand, which some masks tell apart."""
    has_passages = any(message.passages for message in parse_messages(record))
    flags = {name for name in held_keys(record) if name in FLAGS}
    return {*unread_keys(record, format_of(record)), *flags, *["marks of passages"] * has_passages}


def _spoken(session: ChatSession) -> list[Turn]:
    return [turn for turn in session.turns if turn.answer.strip()]


def _record(session: ChatSession) -> dict[str, Any]:
    turns, messages = _spoken(session), []
    if session.system:
        messages.append({"role": "system", "content": session.system})
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    return {
        "conversations": messages,
        "answer_ids": [turn.answer_ids for turn in turns],
        "tokenizer": session.served.tokenizer.fingerprint,
    }


def _parse(record: dict[str, Any], tokenizer: Tokenizer) -> tuple[str, list[Turn]]:
    messages = parse_messages(record)
    if any(message.tools for message in messages):
        raise RecordError("tools cannot be taken up in a chat")
    system = messages.pop(0).content if messages[0].role == "system" else ""
    if [message.role for message in messages] != ["user", "assistant"] * (len(messages) // 2):
        raise RecordError("expected questions and answers in turn, after a system message or none")
    pairs = list(zip(messages[::2], messages[1::2], strict=True))
    ids = _answer_ids(record, len(pairs), tokenizer)
    return system, [_turn(*pair, each, tokenizer) for pair, each in zip(pairs, ids, strict=True)]


def _answer_ids(record: dict[str, Any], answers: int, tokenizer: Tokenizer) -> Sequence[Sequence[int]]:
    """Return the ids of each answer as they were sampled, none where they are not this tokenizer's."""
    if "answer_ids" not in record or record.get("tokenizer") != tokenizer.fingerprint:
        return [()] * answers
    try:
        found = read_as(tuple[tuple[int, ...], ...], record["answer_ids"])
    except ValueError:
        found = ()
    if len(found) != answers or any(i >= tokenizer.vocab_size for ids in found for i in ids):
        fault = f"answer_ids are not a list of ids below {tokenizer.vocab_size} for each answer"
        raise RecordError(f"{fault}; without the key, texts are taken")
    return found


def _turn(question: Message, answer: Message, ids: Sequence[int], tokenizer: Tokenizer) -> Turn:
    """Return a turn; ids that do not spell the answer (its text was edited) give way to the text."""
    text = "".join(OURS.parts(answer))  # with its thought and calls, as the chat shows it
    if not tokenizer.decode(ids, skip_special_tokens=True).startswith(text):
        ids = tokenizer.encode(text)
    return Turn(question.content, tuple(ids), text)
