"""The words that texts are cut into before they are encoded: their pattern, ids, and characters for bytes."""

import json
import re
from collections.abc import Iterator
from itertools import chain

import tokenizers
from tokenizers import Regex, pre_tokenizers

from dataset.foreign_tokenizer import copy_of, encode_after, is_blank, marks_of, try_out
from model.errors import UserError

PART_CHARACTERS = 50_000  # longer texts are encoded in parts, cut before a space or full stop if there is one
PART_END = re.compile(r"(?<=[^\W\d_])[\s。，]")
RUN_CHARACTERS = 256
RUN = re.compile(r"[^\W\d_]{n}|\d{n}|(?:[^\w\s]|_){n}|\s{n}".replace("n", str(RUN_CHARACTERS)))
_WHOLE = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
_OTHERS = [byte for byte in range(256) if byte not in _WHOLE]
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _WHOLE}
BYTE_OF_CHARACTER |= {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
"""what the characters of a byte-level vocabulary stand for (the table of GPT-2): printable ones for
themselves, those from U+0100 on for the other bytes, in their order"""


class Words(dict[str, list[int]]):
    """The ids of words as they are met: several times as fast as the library, as languages repeat words."""

    LONGEST, MOST = 32, 200_000  # characters of a word, words

    def __init__(self, content: tokenizers.Tokenizer) -> None:
        """Take over what encodes contents; raises `UserError` if its rules fail on harmless text."""
        super().__init__()
        self.content, self.pattern, self.inside = content, _word_pattern(content), ""
        self._lacking = _lacking_bytes(content)
        if self.pattern is None:
            try_out(content, self._lacking)
            # What begins no text is encoded after a character that joins no other, where that matters.
            alone, after = encode_after(content, "", "a"), encode_after(content, "\0", "a")
            self.inside = "" if alone == after else "\0"

    def encode(self, text: str, begins: bool = False) -> list[int]:
        """Return the ids of a text, word by word unless texts are cut in other ways than ours.

        Some tokenizers write a space before what `begins` a text. Raises `UserError` for what is not Unicode,
        and for a text of which the tokenizer would lose a part.
        """
        if self._lacking:
            self._check(text)
        try:
            if self.pattern:
                return list(chain.from_iterable(map(self.__getitem__, self.pattern.findall(text))))
            return encode_after(self.content, "" if begins else self.inside, text)
        except TypeError:
            raise UserError("the text is not valid Unicode; write it as UTF-8") from None

    def _check(self, text: str) -> None:
        if not self._lacking.isdisjoint(text.encode(errors="replace")):
            lost = next(c for c in text if not self._lacking.isdisjoint(c.encode(errors="replace")))
            raise UserError(f"the tokenizer has no token for {lost!r}, which it would lose; use another")

    def __missing__(self, word: str) -> list[int]:
        ids = self.content.encode(word, add_special_tokens=False).ids
        if len(word) <= self.LONGEST:
            if len(self) >= self.MOST:
                self.clear()
            self[word] = ids
        return ids


def pre_tokenizer(isolate_han: bool) -> pre_tokenizers.PreTokenizer:
    """Return what cuts texts as GPT-2 does, Chinese characters each for itself if asked to."""
    split_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split_han = pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")
    return pre_tokenizers.Sequence([split_han, split_words] if isolate_han else [split_words])


HAN_APART = {pre_tokenizer(is_apart).__getstate__(): is_apart for is_apart in (True, False)}
HAN_APART |= {pre_tokenizers.ByteLevel(add_prefix_space=False).__getstate__(): False}
"""ways to cut texts as GPT-2 does, by what tells them: whether each Han character is apart"""


def _word_pattern(content: tokenizers.Tokenizer) -> re.Pattern[str] | None:
    """Return a pattern that cuts a text only where `content` cuts it too, None where its ways are not ours.

    A word is cut only at a space, at a Han character, or where ASCII changes between letters, digits and
    signs; an apostrophe stays with what follows. The rest is left to the library, so the ids are the same.
    """
    rules, model = content.pre_tokenizer, content.model
    isolates_han = HAN_APART.get(rules.__getstate__()) if rules else None
    has_marks = model.continuing_subword_prefix or model.end_of_word_suffix
    if isolates_han is None or content.normalizer is not None or has_marks:
        return None

    # White space as Unicode has it, and the Han characters that are cut off, each for itself.
    space = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    han = "\u3400-\u4dbf\u4e00-\u9fef" if isolates_han else ""

    # A run of ASCII of one kind ends a word unless a letter or sign of another script goes on with it, or,
    # after signs, an apostrophe: GPT-2 cuts before 's and its like, which the library is left to find.
    joins = rf"[^\x00-\x7f{han}]"
    letters, digits = rf"[A-Za-z]++(?!{joins})", rf"[0-9]++(?!{joins})"
    signs = rf"[!-&(-/:-@\[-`{{-~]++(?!{joins}|')"

    # Spaces go with the word that follows. What begins with no such run is taken up to the next space.
    word = rf"[{space}]*(?:{letters}|{digits}|{signs}|[^{space}{han}]+)|[{space}]+"
    return re.compile(rf"[{han}]|{word}" if han else word)


def without_marks(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return a copy that knows no mark: its own escape switch leaves those with `special=False`."""
    added, marks = backend.get_added_tokens_decoder(), marks_of(backend)
    content = copy_of(backend, [token for token in added.values() if is_blank(token.content)])
    texts = {mark.content for i, mark in marks.items() if i in encode_after(content, "", mark.content)}
    if not texts:
        return content

    # Some are words, too: they leave the vocabulary.
    rules = json.loads(content.to_str())
    model = rules["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if token not in texts}
    model["merges"] = [[a, b] for a, b in model["merges"] if not texts & {a, b, a + b}]
    return tokenizers.Tokenizer.from_str(json.dumps(rules))


def _lacking_bytes(content: tokenizers.Tokenizer) -> frozenset[int]:
    """Return the bytes of UTF-8 without a token: the library drops them from texts without a word."""
    if content.model.byte_fallback:
        return frozenset()
    vocab = content.get_vocab()
    lacking = {byte for character, byte in BYTE_OF_CHARACTER.items() if character not in vocab}
    return frozenset(lacking - {0xC0, 0xC1, *range(0xF5, 0x100)})  # which no text has


def parts_of(text: str) -> Iterator[str]:
    """Cut a text so that encoding it takes little memory, between words wherever there is such a place."""
    begin = 0
    while len(text) - begin > 2 * PART_CHARACTERS:
        latest = begin + 2 * PART_CHARACTERS
        found = PART_END.search(text, begin + PART_CHARACTERS, latest)
        end = found.start() if found else latest
        yield text[begin:end]
        begin = end
    yield text[begin:]


def without_long_runs(text: str) -> Iterator[str]:
    """Cut a text within runs that are one word to the pre-tokenizer; only every 256th place is looked at."""
    begin = 0
    for place in range(RUN_CHARACTERS, len(text), RUN_CHARACTERS):
        if RUN.match(text, place):
            yield text[begin:place]
            begin = place
    yield text[begin:]
