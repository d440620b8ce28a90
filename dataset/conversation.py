"""From messages to token ids with their roles, targets and starts.

The one renderer of the project: SFT, chat, evaluation and export take the form of a conversation from here.
Which token may see which is decided elsewhere (`model/masks.py`) from what is marked here.
"""

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from dataset.chat_form import ROLES, Message
from dataset.tokenizer import Tokenizer

TARGET, START, UNTRAINED = 16, 32, 64  # bits of a token's code; the low four are the index of its role


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
    """Renders conversations in the form of a tokenizer (`ChatForm`), whose fixed texts it encodes once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Encode the texts around contents; raises `UserError` where the tokenizer's form is unknown."""
        self.tokenizer, self.form, encode = tokenizer, tokenizer.form, tokenizer.encode_form
        self.headers = {role: encode(self.form.headers.get(role, "")) for role in ROLES}
        self.footers = {role: encode(text) for role, text in self.form.footers.items()}
        self.newline = encode(self.form.gap)
        self.opening, self.begin = encode(self.form.opening), encode(self.form.begin)
        self.between_results = encode(self.form.between_results or "")
        self.ellipsis = tokenizer.encode("…")

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> Rendered:
        """Return the tokens of a conversation; `generation_prompt` adds the header of an answer to come.

        Some templates write an `opening` after the header of an answer that is asked for, such as an empty
        thought. An answer that is trained on follows it, too, unless it brings a thought; one inside a prompt
        begins with `past_opening`, encoded with its text.
        """
        answers = [n for n, message in enumerate(messages) if message.role == "assistant"]
        past = self.form.past_opening if generation_prompt else self.form.closing
        contents = (self._encode(each, past * (each.role == "assistant")) for each in messages)
        bare = answers if generation_prompt else [n for n in answers if messages[n].thought]
        untrained = [n for n in answers if not messages[n].is_trained]
        return self.assemble([each.role for each in messages], contents, generation_prompt, untrained, bare)

    def render_text(self, text: str) -> Rendered:
        """Return the tokens of a pretraining text, with the end-of-text token on both sides."""
        tokens, end = _Tokens(self.tokenizer.typecode), [self.tokenizer.endoftext_id]
        for ids in (end, chain.from_iterable(self.tokenizer.encode_parts(text)), end):
            tokens.add(ids, "assistant", TARGET)
        return tokens.rendered()

    def assemble(
        self,
        roles: Sequence[str],
        contents: Iterable[Iterable[int]],
        generation_prompt: bool = False,
        untrained: Collection[int] = (),
        bare: Collection[int] = (),
    ) -> Rendered:
        """Return the tokens of a conversation whose contents are encoded already.

        `untrained` are the numbers of the messages that are answers without loss, `bare` those of answers
        whose header has no `opening` after it.
        """
        self.form.check([f"{role} messages" for role in roles])
        tokens, end, before = _Tokens(self.tokenizer.typecode), [self.tokenizer.im_end_id], None

        # Some forms have a default system message.
        if self.form.default_system and list(roles[:1]) != ["system"]:
            self._add_header(tokens, "system", before)
            tokens.add(self.tokenizer.encode(self.form.default_system), before := "system")
            tokens.add(self.footers[before], before)

        # Header, content, footer. The footer of an answer is its end marker, a target like its content.
        # Some forms write the results of several tools as one message, with a text between them.
        for number, (role, content) in enumerate(zip(roles, contents, strict=True)):
            is_result = role == "tool" and self.form.between_results is not None
            if is_result and before == "tool":
                tokens.add(self.between_results, role)
            else:
                self._add_header(tokens, role, before, number not in bare)
            bits = TARGET | UNTRAINED * (number in untrained) if role == "assistant" else 0
            tokens.add(content, role, bits)
            if bits:
                tokens.add(end, role, bits)
            elif not (is_result and roles[number + 1 : number + 2] == ["tool"]):
                tokens.add(self.footers[role], role)
            before = role

        # The newline after an answer is part of the next header; after the last answer it stands alone.
        if generation_prompt:
            self._add_header(tokens, "assistant", before)
        elif before == "assistant":
            tokens.add(self.newline, "assistant")
        return tokens.rendered()

    def _encode(self, message: Message, opening: str = "") -> Iterator[int]:
        parts, encode = self.form.parts(message, opening), self.tokenizer.encode
        if len(parts) == 1:
            return chain.from_iterable(self.tokenizer.encode_parts(parts[0]))
        # Every second part is text of the form, in which special tokens are what they spell.
        return chain.from_iterable(
            self.tokenizer.encode_form(part) if number % 2 else encode(part)
            for number, part in enumerate(parts)
        )

    def _add_header(self, tokens: "_Tokens", role: str, before: str | None, opens: bool = True) -> None:
        """Add a header; an answer's belongs to the message before it, any other to the message it starts."""
        header = self.headers[role] + (self.opening if role == "assistant" and opens else [])
        if role == "assistant" and before not in (None, "assistant"):
            tokens.add(header, before)
        else:
            gap = self.newline if before == "assistant" else [] if before else self.begin
            tokens.add(gap + header, role, is_start=True)


class _Tokens:
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
