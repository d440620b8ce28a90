"""From messages to token ids with their roles, targets and starts.

The one renderer of the project: SFT, chat, evaluation and export take the form of a conversation from here.
Which token may see which is decided elsewhere (`model/masks.py`) from what is marked here.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dataset.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
TARGET, START, UNTRAINED = 16, 32, 64  # bits of a token's code; the low four are the index of its role

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Message:
    """One message of a conversation; its texts are any, also empty or with special tokens spelt out."""

    role: str
    content: str
    thought: str = ""
    """what an answer thinks first, `<think>…</think>`"""
    tool_calls: tuple[str, ...] = ()
    """tool calls of an answer, each the JSON of name and arguments, `<tool_call>…</tool_call>`"""
    tools: tuple[str, ...] = ()
    """tools that may be called, each as JSON; listed below the content"""
    is_trained: bool = True
    """whether an answer carries loss; one that does not is still an answer, for masks and for truncation"""

    def parts(self) -> list[str]:
        """Return the text of the message; every second part, from the second on, is a tag."""
        parts = [self.content]
        if self.tools:
            listing = "\n".join(("# Tools", *self.tools))
            parts = [f"{self.content}\n\n{listing}" if self.content else listing]
        if self.thought:
            parts = ["", "<think>", f"\n{self.thought}\n", "</think>", f"\n\n{self.content}"]
        for number, call in enumerate(self.tool_calls):
            parts[-1] += "\n" if number or self.content else ""
            parts += ["<tool_call>", f"\n{call}\n", "</tool_call>", ""]
        return parts


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
    """(n,) uint8: index of the role, plus TARGET, plus START, plus UNTRAINED"""

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
    def trained(self) -> np.ndarray:
        """Return which tokens are those of an answer that carries loss, (n,) bool."""
        return are_trained(self.codes)

    @property
    def starts(self) -> np.ndarray:
        """Return which tokens begin a message that is not an answer, (n,) bool."""
        return self.codes & START > 0


def are_trained(codes: np.ndarray) -> np.ndarray:
    """Return which of the tokens with these codes (n,) are targets that carry loss, (n,) bool."""
    return codes & (TARGET | UNTRAINED) == TARGET


class Renderer:
    """Renders conversations with one tokenizer, whose headers it encodes once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Encode what stands between contents."""
        self.tokenizer = tokenizer
        self.headers = {role: [tokenizer.im_start_id, *tokenizer.encode(f"{role}\n")] for role in ROLES}
        self.newline = tokenizer.encode("\n")

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> Rendered:
        """Return the tokens of a conversation; `generation_prompt` adds the header of an answer to come."""
        contents = map(self._encode, messages)
        untrained = {number for number, message in enumerate(messages) if not message.is_trained}
        return self.assemble([message.role for message in messages], contents, generation_prompt, untrained)

    def render_text(self, text: str) -> Rendered:
        """Return the tokens of a text of pretraining, which begins and ends as a document does."""
        row, end = _Row(self.tokenizer.typecode), [self.tokenizer.endoftext_id]
        for ids in (end, chain.from_iterable(self.tokenizer.encode_parts(text)), end):
            row.add(ids, "assistant", TARGET)
        return row.rendered()

    def assemble(
        self,
        roles: Sequence[str],
        contents: Iterable[Iterable[int]],
        generation_prompt: bool = False,
        untrained: Collection[int] = (),
    ) -> Rendered:
        """Return the tokens of a conversation whose contents are encoded already.

        `untrained` are the places of the answers that carry no loss.
        """
        row, end, before = _Row(self.tokenizer.typecode), [self.tokenizer.im_end_id], None
        for number, (role, content) in enumerate(zip(roles, contents, strict=True)):
            self._add_header(row, role, before)
            bits = TARGET | UNTRAINED * (number in untrained) if role == "assistant" else 0
            row.add(content, role, bits)
            row.add(end if bits else end + self.newline, role, bits)
            before = role
        if generation_prompt:
            self._add_header(row, "assistant", before)
        elif before == "assistant":
            row.add(self.newline, "assistant")
        return row.rendered()

    def _encode(self, message: Message) -> Iterator[int]:
        parts = message.parts()
        if len(parts) == 1:
            return chain.from_iterable(self.tokenizer.encode_parts(parts[0]))
        return chain.from_iterable(
            [self.tokenizer.special(part)] if number % 2 else self.tokenizer.encode(part)
            for number, part in enumerate(parts)
        )

    def _add_header(self, row: _Row, role: str, before: str | None) -> None:
        owed_newline = self.newline if before == "assistant" else []
        if role == "assistant" and before not in (None, "assistant"):
            row.add(self.headers[role], before)
        else:
            row.add(owed_newline + self.headers[role], role, is_start=True)


class _Row:
    """Collects tokens and their codes."""

    def __init__(self, typecode: str) -> None:
        self.ids = array(typecode)
        self.codes = bytearray()

    def add(self, ids: Iterable[int], role: str, bits: int = 0, is_start: bool = False) -> None:
        first = len(self.ids)
        self.ids.extend(ids)
        self.codes += bytes([ROLES.index(role) | bits]) * (len(self.ids) - first)
        if is_start:
            self.codes[first] |= START

    def rendered(self) -> Rendered:
        return Rendered(np.frombuffer(self.ids, self.ids.typecode), np.frombuffer(self.codes, np.uint8))


def render(messages: Sequence[Message], tokenizer: Tokenizer, generation_prompt: bool = False) -> Rendered:
    """Return the tokens of a conversation; `generation_prompt` adds the header of an answer to come."""
    return Renderer(tokenizer).render(messages, generation_prompt)
