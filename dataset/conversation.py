"""From messages to token ids with their roles, targets and starts.

The one renderer of the project: SFT, chat, evaluation and export take the form of a conversation from here.
Which token may see which is decided elsewhere (`model/masks.py`) from what is marked here.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np

from dataset.chat_form import ROLES, ChatForm, Message, Passage
from dataset.tokenizer import Tokenizer

TARGET, START, UNTRAINED, PASSAGE = 16, 32, 64, 128  # bits of a token's code; the low four index its role


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
    """(n,) uint8: index of the role, plus TARGET, plus START, plus UNTRAINED, plus PASSAGE"""

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
        return self.codes & (START | PASSAGE) == START

    @property
    def passages(self) -> np.ndarray:
        """Return the number of the passage that each token is in, counted from 0; -1 = none, (n,) int64."""
        begins = self.codes & (START | PASSAGE) == START | PASSAGE
        return np.where(self.codes & PASSAGE > 0, np.cumsum(begins) - 1, -1)


def are_trained(codes: np.ndarray) -> np.ndarray:
    """Return which of the tokens with these codes (n,) are targets that carry loss, (n,) bool."""
    return codes & (TARGET | UNTRAINED) == TARGET


class Renderer:
    """Renders conversations in the form of a tokenizer (`ChatForm`), whose fixed texts it encodes once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Encode the texts around contents; raises `UserError` where the tokenizer's form is unknown."""
        self.tokenizer, self.ellipsis = tokenizer, tokenizer.encode("…")
        self._take(tokenizer.form)
        if not all(self._gives(*proof) for proof in self.form.proofs):  # our form needs none
            self._take(self.form.whole)

    def _take(self, form: ChatForm) -> None:
        """Encode the texts of a form as they stand after others; a header also where it begins the first."""
        self.form, encode = form, self.tokenizer.encode_form
        headers = {role: form.headers.get(role, "") for role in ROLES}
        self.headers = {role: encode(text) for role, text in headers.items()}
        self.first_headers = {role: encode(form.begin + text, before="") for role, text in headers.items()}
        self.footers = {role: encode(text) for role, text in form.footers.items()}
        self.footers["assistant"] = [self.tokenizer.im_end_id]
        self.newline, self.opening = encode(form.gap, before=form.end), encode(form.opening)

    def _gives(self, messages: Sequence[Message], text: str) -> bool:
        """Say whether a prompt has the tokens of its text: none lies across the end of a content."""
        expected = self.tokenizer.encode_form(text, before="")
        # Truncation makes any header the first one, which is longer by the same in each role.
        more = {len(self.first_headers[role]) - len(self.headers[role]) for role in self.form.headers}
        return len(more) == 1 and min(more) >= 0 and self.render(messages, True).ids.tolist() == expected

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> Rendered:
        """Return the tokens of a conversation; `generation_prompt` adds the header of an answer to come."""
        tokens, before = _Tokens(self.tokenizer.typecode), None

        # Header, content, footer. The footer of an answer is its end marker, a target like its content.
        for message, parts in self.form.write(messages, generation_prompt):
            role = message.role
            bits = TARGET * (role == "assistant") | UNTRAINED * (not message.is_trained)
            self._add_header(tokens, role, before, self.form.is_opened(message, generation_prompt))
            for number, part in enumerate(parts):  # every second one is text of the form
                ids = self._encode(part, number % 2 > 0, not tokens.ids)
                tokens.add(ids, role, bits | START | PASSAGE if isinstance(part, Passage) else bits)
            tokens.add(self.footers[role], role, bits)
            before = role

        # The newline after an answer is part of the next header; after the last answer it stands alone.
        if generation_prompt:
            self._add_header(tokens, "assistant", before)
        elif before == "assistant":
            tokens.add(self.newline, "assistant")
        return tokens.rendered()

    def render_text(self, text: str) -> Rendered:
        """Return the tokens of a pretraining text, with the end-of-text token on both sides."""
        tokens, tokenizer = _Tokens(self.tokenizer.typecode), self.tokenizer
        content = chain.from_iterable(tokenizer.encode_parts(text, begins=True))
        for ids in (tokenizer.text_begin, content, [tokenizer.endoftext_id]):
            tokens.add(ids, "assistant", TARGET)
        return tokens.rendered()

    def _encode(self, part: str | tuple[int, ...], is_form: bool, begins: bool) -> Iterable[int]:
        """Return the ids of a part of a message; special tokens are what they spell in text of the form."""
        if isinstance(part, tuple):  # an answer as it was sampled
            return part
        if is_form:
            return self.tokenizer.encode_form(part, before="" if begins else None)
        return chain.from_iterable(self.tokenizer.encode_parts(part))

    def _add_header(self, tokens: "_Tokens", role: str, before: str | None, is_opened: bool = True) -> None:
        """Add a header; an answer's belongs to the message before it, any other to the message it starts."""
        header = self.headers[role] if before else self.first_headers[role]
        if role == "assistant" and is_opened:
            header = header + self.opening
        if role == "assistant" and before not in (None, "assistant"):
            tokens.add(header, before)
        else:
            tokens.add(self.newline * (before == "assistant") + header, role, START)


class _Tokens:
    """Collects tokens and their codes; of the bits, START is the first token's alone."""

    def __init__(self, typecode: str) -> None:
        self.ids = array(typecode)
        self.codes = bytearray()

    def add(self, ids: Iterable[int], role: str, bits: int = 0) -> None:
        first = len(self.ids)
        self.ids.extend(ids)
        code, count = ROLES.index(role) | bits, len(self.ids) - first
        self.codes += bytes([code])[:count] + bytes([code & ~START]) * (count - 1)

    def rendered(self) -> Rendered:
        return Rendered(np.frombuffer(self.ids, self.ids.typecode), np.frombuffer(self.codes, np.uint8))


@lru_cache(maxsize=4)
def renderer_of(tokenizer: Tokenizer) -> Renderer:
    """Return the renderer of a tokenizer, made once."""
    return Renderer(tokenizer)


def render(messages: Sequence[Message], tokenizer: Tokenizer, generation_prompt: bool = False) -> Rendered:
    """Return the tokens of a conversation; `generation_prompt` adds the header of an answer to come."""
    return renderer_of(tokenizer).render(messages, generation_prompt)
