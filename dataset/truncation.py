"""What stays of a conversation that is longer than a row: the one rule, on one document.

    S S U U U A A U U c c c c c a a c c c c U U A A A     two rounds; the last answer stands in its context
    S S           U U … c a a c … U U A A A               what stays of them where that is the row's length

Texts are compared as bytes: the tokens of the same text may differ in a prompt and in an answer.
"""

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dataset.conversation import ROLES, START, UNTRAINED, Rendered, Renderer
from dataset.tokenizer import Tokenizer

SYSTEM, USER = ROLES.index("system"), ROLES.index("user")
BREAKS = [  # between a question and a text, the clearest first: of paragraphs, lines, sentences
    re.compile(pattern)
    for pattern in (rb"\n\s*\n", rb"(?<!\s)\s*\n\s*", "(?<=[.!?])(?= )|(?<=。|！|？)".encode())
]


class Truncated(NamedTuple):
    """What stays of a conversation, and how many answers that carry loss do not."""

    rendered: Rendered | None
    """None where no answer stays"""
    too_long: int
    """answers that do not fit into a row beside their question"""
    cut_out: int
    """answers that stood in a text of a prompt, and would not in what stays of it"""


def truncate(document: Rendered, limit: int, renderer: Renderer) -> Truncated:
    """Return what stays of a conversation in `limit` tokens.

    The system message stays, the oldest rounds go; a round begins with a user's message and ends before the
    next. Where the last round alone is too long, texts of its prompt are cut (`_cuts`), its headers never.
    An answer that does not fit even so is left out, and the ones before it are tried. So is one that stood in
    a text that goes, as it would teach to invent; where a later answer stays, it stays too, without loss.
    Texts that stand in a prompt more than once are not cut: what does not fit with its copies is left out.
    """
    chat, lost = _Chat(document, renderer), {"too_long": 0, "cut_out": 0}
    can_cut = renderer.form.prompt_copies == 1
    for last in np.flatnonzero(chat.is_trained)[::-1].tolist():
        # The rounds that fit with this answer; where not even its own does, texts must give `excess` tokens.
        begin, end = chat.oldest_begin(last, limit), int(chat.ends[last])
        excess = chat.prefix + end - begin - limit
        if excess > can_cut * sum(high - low for low, high in chat.texts(begin, end)):
            lost["too_long"] += 1
            continue

        # The text in which the answer stands must stay, and the place of the answer in it.
        cuts = _cuts(chat, begin, last, excess) if excess > 0 else []
        if cuts is None or chat.source(last) < begin:
            lost["cut_out" if chat.source(last) < chat.begins[last] else "too_long"] += 1
            continue

        # Answers before it whose text is gone stay as they are, without loss.
        unlearnable = _unlearnable(chat, begin, last, cuts)
        lost["cut_out"] += len(unlearnable)
        return Truncated(_assemble(chat, begin, end, cuts, unlearnable), **lost)
    return Truncated(None, **lost)


class _Chat:
    """A conversation: its answers (A,) and the texts of its other messages, as ranges of tokens."""

    def __init__(self, document: Rendered, renderer: Renderer) -> None:
        self.document, self.renderer = document, renderer
        edges = np.flatnonzero(np.diff(document.targets.astype(np.int8), prepend=0, append=0))
        self.begins, self.ends = edges[::2], edges[1::2]
        self.is_trained = document.trained[self.begins]
        self._texts = list(self._find_texts())

        # What always stays, and where rounds begin: what a tool says belongs to the round of the question.
        self.has_system = document.roles[0] == SYSTEM and len(self._texts) > 0
        footer = len(renderer.footers.get("system", []))
        first = ROLES[document.roles[0]]
        begin = len(renderer.first_headers[first]) - len(renderer.headers[first])
        self.prefix = self._texts[0][1] + footer if self.has_system else begin
        followers = self.ends[:-1] + len(renderer.newline)
        role = document.roles[followers]
        self._rounds = np.append(self.prefix, followers[(role == SYSTEM) | (role == USER)])
        self.source = cache(self._source)

        # What all of it says: token t stands for bytes offsets[t] to offsets[t + 1].
        table, first_bytes = _byte_table(renderer.tokenizer)
        begins = first_bytes[document.ids]
        self.sizes = first_bytes[document.ids.astype(np.int64) + 1] - begins
        self.offsets = np.append(0, np.cumsum(self.sizes))
        which = np.repeat(begins - self.offsets[:-1], self.sizes) + np.arange(self.offsets[-1])
        self.bytes = table[which].tobytes()

    def _find_texts(self) -> Iterator[tuple[int, int]]:
        """Yield where the text of each message lies that is no answer, between its header and footer."""
        ids, roles, form = self.document.ids, self.document.roles, self.renderer
        starts, answers = np.flatnonzero(self.document.starts).tolist(), set(self.begins.tolist())
        after_answers = set(self.ends.tolist())
        for start, stop in pairwise(sorted({*starts, *answers, len(ids)})):
            role = ROLES[roles[start]]
            if start in answers or role == "assistant":
                continue
            header = form.headers[role] if start else form.first_headers[role]
            owed = form.newline if start in after_answers else []
            low, high = start + len(owed) + len(header), stop - len(form.footers[role])
            if stop in answers:
                opening = len(form.opening)
                is_bare = ids[stop - opening : stop].tolist() != form.opening
                high -= len(form.headers["assistant"]) + (0 if is_bare else opening)
            yield low, max(low, high)

    def oldest_begin(self, answer: int, limit: int) -> int:
        """Return where the oldest round begins that fits with an answer, or that of the answer."""
        fitting = np.searchsorted(self._rounds, self.prefix + self.ends[answer] - limit)
        return int(self._rounds[min(fitting, self._round(answer))])

    def _round(self, answer: int) -> int:
        return int(np.searchsorted(self._rounds, self.begins[answer], side="right")) - 1

    def texts(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Return where the texts of messages that are no answers lie, from token `begin` to `end`."""
        return [text for text in self._texts if begin <= text[0] < end]

    def text(self, begin: int, end: int) -> bytes:
        """Return what tokens say."""
        return self.bytes[self.offsets[begin] : self.offsets[end]]

    def answer(self, number: int) -> bytes:
        """Return what an answer says after its thoughts."""
        content = self.text(self.begins[number], self.ends[number] - 1)
        return content.rpartition(b"</think>")[2].strip()

    def _source(self, number: int) -> int:
        """Return where the text begins in which an answer stands, or where the answer does if nowhere.

        A text of its own round comes first, then the system message, which always stays. In a round before,
        it must be a word of two characters or more: others stand there by chance.
        """
        begin, answer = int(self.begins[number]), self.answer(number)
        own = int(self._rounds[self._round(number)])
        if not answer:
            return begin
        for low, high in self.texts(own, begin):
            if answer in self.text(low, high):
                return low
        if own == self.prefix or len(answer.decode(errors="replace")) < 2:
            return begin
        earlier = self.texts(0, own)
        holding = [low for low, high in earlier if _places(answer, self.text(low, high))[1]]
        return begin if not holding or holding[0] < self.prefix else holding[-1]


@lru_cache(maxsize=1)
def _byte_table(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of all tokens, one after the other, and where those of each begin (V + 1,)."""
    tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    return np.frombuffer(b"".join(tokens), np.uint8), np.cumsum([0, *map(len, tokens)])


def _places(answer: bytes, text: bytes) -> tuple[list[int], list[int]]:
    """Return where an answer stands in a text, and at which of the places it is no part of a word."""
    places = [found.start() for found in re.finditer(re.escape(answer), text)] if answer else []
    before, after = rb"(?<![A-Za-z0-9])" * answer[:1].isalnum(), rb"(?![A-Za-z0-9])" * answer[-1:].isalnum()
    word = re.compile(before + re.escape(answer) + after)
    return places, [at for at in places if word.match(text, at)]


def _cuts(chat: _Chat, begin: int, last: int, excess: int) -> list[tuple[int, int]] | None:
    """Return which spans of tokens go from the texts of a prompt, None where too few can.

    They hold `excess` tokens and those of the marks that stand for them. What stays is the part around the
    answer where it stands in the texts, else their end, and the question at either end where there is one.
    """
    prompt, mark = _Prompt(chat, begin, last), len(chat.renderer.ellipsis)
    for low, high in prompt.bodies(excess):
        window = prompt.window(low, high, high - low - excess - mark * len(prompt.texts), mark)
        if window is not None:
            spans = (*prompt.spans(low, window[0]), *prompt.spans(window[1], high))
            return [span for span in spans if span[1] - span[0] > mark]
    return None


class _Prompt:
    """The texts of a prompt one after the other, as n tokens, and the places in them of the answer to it."""

    def __init__(self, chat: _Chat, begin: int, last: int) -> None:
        self.texts = chat.texts(begin, chat.begins[last])
        self._bytes = b"".join(chat.text(low, high) for low, high in self.texts)
        sizes = [chat.sizes[low:high] for low, high in self.texts]
        offsets = np.append(0, np.cumsum(np.concatenate(sizes)))
        first_bytes = np.frombuffer(self._bytes + b"\0", np.uint8)[offsets]
        self._borders = np.flatnonzero(first_bytes & 0xC0 != 0x80)  # tokens that begin a character
        self._border_bytes, self._num_tokens = offsets[self._borders], len(offsets) - 1
        self._message_bytes = np.cumsum([each.sum() for each in sizes])[:-1].tolist()

        answer = chat.answer(last)
        places, words = _places(answer, self._bytes)
        self._place_begins = self._before(np.array(words or places, dtype=np.int64))
        self._place_ends = self._after(np.array(words or places, dtype=np.int64) + len(answer))

    def _before(self, byte: np.ndarray | int) -> np.ndarray:
        """Return the last token border at or before a byte."""
        return self._borders[np.searchsorted(self._border_bytes, byte, side="right") - 1]

    def _after(self, byte: np.ndarray | int) -> np.ndarray:
        """Return the first token border at or after a byte."""
        return self._borders[np.searchsorted(self._border_bytes, byte)]

    def bodies(self, excess: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of tokens to cut in, the best first, which leave a short first or last part whole.

        Parts are paragraphs; where these are long, lines; else sentences. The question is one of them: both
        stay where they take no more than half of the room, else the shorter if it does.
        """
        n, half, has_part = self._num_tokens, (self._num_tokens - excess) // 2, False
        for pattern in BREAKS:
            first_break, last_break = self._outer_breaks(pattern)
            head, tail = int(self._after(first_break)), n - int(self._before(last_break))
            if min(head, tail) > half:
                continue
            has_part = True
            if head + tail <= half:
                yield head, n - tail
            yield (head, n) if head < tail else (0, n - tail)
        if not has_part:
            yield 0, n

    def _outer_breaks(self, pattern: re.Pattern[bytes]) -> tuple[int, int]:
        """Return the bytes where the first part of the texts ends and the last begins; messages are parts."""
        end = len(self._bytes.rstrip())
        begin = len(self._bytes) - len(self._bytes.lstrip())
        spans = [match.span() for match in pattern.finditer(self._bytes, begin, end)]
        spans += [(byte, byte) for byte in self._message_bytes]
        spans = sorted(span for span in spans if begin < span[0] and span[1] < end)
        return (spans[0][1], spans[-1][0]) if spans else (len(self._bytes), 0)

    def window(self, low: int, high: int, size: int, mark: int) -> tuple[int, int] | None:
        """Return which `size` tokens of a range stay, None where the place of the answer would not.

        They hold as many places of it as possible, in their middle, and leave room for a mark after them.
        Where the answer has no place in the range, they are the last.
        """
        begins, ends = self._place_begins, self._place_ends
        is_inside, is_outside = (begins >= low) & (ends <= high), (begins >= high) | (ends <= low)
        begin = high - size

        # A window that begins with place n holds those that end in it, counts[n]: the best one, with what
        # room is left before and after them.
        if is_inside.any():
            begins, ends, size = begins[is_inside], ends[is_inside], size - mark
            counts = np.searchsorted(ends, begins + size, side="right") - np.arange(len(begins))
            first = int(counts.argmax())
            span = ends[first + counts[first] - 1] - begins[first]
            begin = min(max(begins[first] - (size - span) // 2, low), high - size)
            if counts[first] < 1:
                return None
        if size < 1 or (len(begins) > 0 and not (is_inside | is_outside).any()):
            return None

        # The tokens at both ends may begin within a character: the window shrinks to whole ones.
        first, last = np.searchsorted(self._borders, (begin, begin + size + 1))
        begin, end = int(self._borders[first]), int(self._borders[last - 1])
        return (begin, end) if begin < end else None

    def spans(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield where a range lies in the conversation, message by message."""
        at = 0
        for first, last in self.texts:
            begin, end = max(low, at), min(high, at + last - first)
            if begin < end:
                yield first + begin - at, first + end - at
            at += last - first


def _unlearnable(chat: _Chat, begin: int, last: int, cuts: list[tuple[int, int]]) -> list[int]:
    """Return the trained answers between token `begin` and the last whose text went or was cut."""
    texts = chat.texts(begin, chat.begins[last])
    was_cut = {low for low, high in texts if any(low <= first < high for first, _ in cuts)}
    earlier = np.flatnonzero(chat.is_trained[:last] & (chat.begins[:last] >= begin)).tolist()
    return [n for n in earlier if chat.source(n) < begin or chat.source(n) in was_cut]


def _assemble(
    chat: _Chat, begin: int, end: int, cuts: list[tuple[int, int]], unlearnable: list[int]
) -> Rendered:
    """Return the system message and the tokens from `begin` to `end`, cut, with marks where they are."""
    # A mark takes the place of the first tokens of each cut.
    ids, codes = chat.document.ids.copy(), chat.document.codes.copy()
    keeps = np.zeros(len(ids), dtype=bool)
    keeps[: chat.prefix] = keeps[begin:end] = True
    mark = chat.renderer.ellipsis
    for first, last in cuts:
        ids[first : first + len(mark)] = mark
        keeps[first + len(mark) : last] = False
    for answer in unlearnable:
        codes[chat.begins[answer] : chat.ends[answer]] |= UNTRAINED
    ids, codes = ids[keeps], codes[keeps]

    # A passage of which the beginning went begins where it goes on.
    passages = chat.document.passages[keeps]
    codes[(passages >= 0) & (np.diff(passages, prepend=-1) != 0)] |= START

    # Another message is the first now, or follows the system message: what lies before its header is its own.
    if begin > chat.prefix:
        first = chat.prefix if chat.has_system else 0
        codes[first : chat.prefix + 1] = codes[chat.prefix] & 15
        codes[first] |= START
        if not chat.has_system:  # some tokenizers write a space before it
            header = chat.renderer.first_headers[ROLES[codes[first] & 15]]
            ids[: len(header)] = header
    return Rendered(ids, codes)
