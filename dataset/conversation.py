"""From a chat record to messages, and from messages to token ids with their roles, targets and starts.

The one renderer of the project: SFT, chat, evaluation and export take the form of a conversation from here.
Which token may see which is decided elsewhere (`model/masks.py`) from what is marked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from dataset.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
TARGET, START = 16, 32  # bits of a token's code; the low four bits are the index of its role

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")

QuestionPosition = Literal["last", "first"]


@dataclass(frozen=True)
class Message:
    """One message of a conversation; the content is any text, also empty or with special tokens spelt out."""

    role: str
    content: str


@dataclass(frozen=True)
class Rendered:
    """Token ids of one document and what each token is.

        tokens   <|im_start|> user \\n Hello <|im_end|> \\n <|im_start|> assistant \\n Hi <|im_end|> \\n
        role     u            u    u  u     u          u  u            u         u  a  a          a
        start    1            .    .  .     .          .  .            .         .  .  .          .
        target   .            .    .  .     .          .  .            .         .  1  1          .

    The header of an answer belongs to the message before it. The newline after an answer belongs to the
    message that follows, which starts there; after the last answer it is the assistant's, without target.
    """

    ids: np.ndarray
    """(n,) unsigned token ids"""
    codes: np.ndarray
    """(n,) uint8: index of the role, plus TARGET, plus START"""

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)

    @property
    def roles(self) -> np.ndarray:
        """Return the index into ROLES of the message that each token belongs to, (n,) uint8."""
        return self.codes & 15

    @property
    def targets(self) -> np.ndarray:
        """Return which tokens are an answer or its end marker, (n,) bool."""
        return self.codes & TARGET > 0

    @property
    def starts(self) -> np.ndarray:
        """Return which tokens begin a message that is not an answer, (n,) bool."""
        return self.codes & START > 0


class Renderer:
    """Renders conversations with one tokenizer, whose headers it encodes once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Encode what stands between contents."""
        self.tokenizer = tokenizer
        self.headers = {role: [tokenizer.im_start_id, *tokenizer.encode(f"{role}\n")] for role in ROLES}
        self.newline = tokenizer.encode("\n")

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> Rendered:
        """Return the tokens of a conversation; `generation_prompt` adds the header of an answer to come."""
        contents = [self.tokenizer.encode(message.content) for message in messages]
        return self.assemble([message.role for message in messages], contents, generation_prompt)

    def assemble(
        self, roles: Sequence[str], contents: Sequence[list[int]], generation_prompt: bool = False
    ) -> Rendered:
        """Return the tokens of a conversation whose contents are encoded already."""
        row, end, before = _Row(), [self.tokenizer.im_end_id], None
        for role, content in zip(roles, contents, strict=True):
            self._add_header(row, role, before)
            if role == "assistant":
                row.add(content + end, role, TARGET)
            else:
                row.add(content + end + self.newline, role)
            before = role
        if generation_prompt:
            self._add_header(row, "assistant", before)
        elif before == "assistant":
            row.add(self.newline, "assistant")
        return row.rendered()

    def _add_header(self, row: _Row, role: str, before: str | None) -> None:
        owed_newline = self.newline if before == "assistant" else []
        if role == "assistant" and before not in (None, "assistant"):
            row.add(self.headers[role], before)
        else:
            row.add(owed_newline + self.headers[role], role, is_start=True)


class _Row:
    """Collects tokens and their codes."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.codes = bytearray()

    def add(self, ids: list[int], role: str, bits: int = 0, is_start: bool = False) -> None:
        first = len(self.ids)
        self.ids += ids
        self.codes += bytes([ROLES.index(role) | bits]) * len(ids)
        if is_start:
            self.codes[first] |= START

    def rendered(self) -> Rendered:
        return Rendered(np.array(self.ids, dtype=np.uint32), np.frombuffer(self.codes, dtype=np.uint8))


def render(messages: Sequence[Message], tokenizer: Tokenizer, generation_prompt: bool = False) -> Rendered:
    """Return the tokens of a conversation; `generation_prompt` adds the header of an answer to come."""
    return Renderer(tokenizer).render(messages, generation_prompt)


class RecordError(ValueError):
    """Says why a record cannot be used; the text is a reason that many records may share."""


def parse_messages(record: dict[str, Any], question_position: QuestionPosition = "last") -> list[Message]:
    """Return the messages of a chat record, with at least one answer among them.

        {"conversations": [{"role": …, "content": …}, …]}       also under "messages"
        {"context": …, "question": …, "answers": [first, …]}    one user message, answered by the first answer

    Raises `RecordError` with the reason.
    """
    turns = record.get("conversations", record.get("messages"))
    if turns is None and "question" in record:
        return _read_comprehension(record, question_position)
    if turns is None:
        raise RecordError("no conversations, messages or question")
    if not isinstance(turns, list):
        raise RecordError("messages are not a list")
    messages = [_read_message(turn) for turn in turns]
    if not any(message.role == "assistant" for message in messages):
        raise RecordError("no answer")
    return messages


def reading_prompt(context: str, question: str, question_position: QuestionPosition = "last") -> str:
    """Return the user message that asks a question about a text."""
    parts = (context, question) if question_position == "last" else (question, context)
    return "\n\n".join(parts)


def read_text(value: Any, name: str) -> str:
    """Return a value of a record as text that can be encoded; raises `RecordError` if it is none or blank."""
    if value is None:
        raise RecordError(f"no {name}")
    if not isinstance(value, str):
        raise RecordError(f"{name} is not a string")
    if not value.strip():
        raise RecordError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RecordError(f"{name} is not valid Unicode") from None
    return value


def _read_message(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise RecordError("a message is not an object")
    if turn.get("role") not in ROLES:
        raise RecordError("unknown role")
    return Message(turn["role"], read_text(turn.get("content"), "content"))


def _read_comprehension(record: dict[str, Any], question_position: QuestionPosition) -> list[Message]:
    answers = record.get("answers")
    if not isinstance(answers, list) or not answers:
        raise RecordError("no answer")
    context, question = (read_text(record.get(key), key) for key in ("context", "question"))
    prompt = reading_prompt(context, question, question_position)
    return [Message("user", prompt), Message("assistant", read_text(answers[0], "answer"))]
