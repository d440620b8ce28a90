"""What a tokenizer is trained on: a sample of documents, and others that are held out to measure it."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any

from dataset.blocks import COMPRESSIONS, read_blocks
from dataset.chat_form import MOST_COPIES
from dataset.formats import format_of
from dataset.messages import held_keys
from dataset.preferences import BAD
from dataset.printing import reporting
from dataset.records import Rejects, accept, records_of, text_key, texts_of
from dataset.sources import begin_reading, check_unchanged, find_sources, size_of
from dataset.text_files import Marks, ReadingSettings
from dataset.tokenizer import check_vocab_size
from dataset.unread_keys import note, noting, unread_keys
from model.errors import UserError

HELD_OUT_SHARE, HELD_OUT_CHARACTERS = 0.02, 1_000_000  # of the documents; about the most of a language
PACKED, PACKED_RATIO = (*COMPRESSIONS, ".parquet"), 4  # a guess of how much text is in a compressed file

Texts = dict[str, list[str]]


@dataclass(frozen=True)
class TokenizerSettings(ReadingSettings):
    """What `scripts.train_tokenizer` is asked for."""

    data: tuple[str, ...]
    """files, folders, globs or hub names of texts or chats, as for scripts.prepare_data"""
    out: str
    """tokenizer directory to write"""
    vocab_size: int = 6400
    """tokens, bytes and special tokens included"""
    isolate_han: bool = True
    """keep each Han character apart before merging; without it tokens run across Chinese words"""
    max_bytes: int = 300_000_000
    """bytes of text to train on; of more, documents from all over the data are taken"""
    prompt_copies: int = 1
    """how often the text of a user stands in a prompt, one copy below the other; it is a property of the chat
    template, so that whatever renders with this tokenizer does the same"""
    compare: tuple[str, ...] = ()
    """what to report beside it: tokenizer directories, or sizes of vocabularies to train on the same text"""

    def __post_init__(self) -> None:
        """Check what no type can say, before the work begins."""
        if self.max_bytes < 1:
            raise UserError(f"max_bytes: expected at least 1, got {self.max_bytes}")
        if not 1 <= self.prompt_copies <= MOST_COPIES:
            raise UserError(f"prompt_copies: expected 1 to {MOST_COPIES}, got {self.prompt_copies}")
        for size in (self.vocab_size, *filter(str.isdecimal, self.compare)):
            check_vocab_size(int(size))


class Sample:
    """Texts from all over the data, about `max_bytes` in all, drawn by the hash of each document.

    So the same data gives the same sample. `held_out` gathers texts by language that are never yielded. Marks
    that texts spell are left out, those of chats are text.
    """

    def __init__(self, settings: TokenizerSettings) -> None:
        """Find the sources; raises `UserError` where there are none."""
        self.sources, self._settings = find_sources(settings.data), settings
        self.marks, self._states = Marks(), begin_reading(self.sources, settings)
        sizes = [size_of(s) * (PACKED_RATIO if s.endswith(PACKED) else 1) for s in self.sources]
        self._total_bytes = sum(sizes)
        self._share = min(1.0, settings.max_bytes / max(self._total_bytes, 1))
        self.is_drawn = self._share < 1
        self.held_out: Texts = {}
        self.records, self.rejects = 0, {}
        self.unread: list[str] = []
        """sources not read to their end, as those before held more text than their size let expect"""
        self.unread_keys: set[str] = set()
        self.taken_bytes = self.read_bytes = 0
        """of text that is trained on, and of all that was read"""

    def texts(self) -> Iterator[str]:
        """Yield the texts; raises `UserError` for too many unusable records."""
        self.marks = Marks()
        rejects, held_out = Rejects(self._settings.max_reject_fraction), defaultdict(list)
        sizes: Counter[str] = Counter()
        self.taken_bytes = self.read_bytes = 0
        for texts in self._documents(rejects):
            size = sum(len(text.encode()) for text in texts)
            self.read_bytes += size
            place = _uniform("".join(texts))
            if place < HELD_OUT_SHARE and (languages := _with_room(texts, sizes)):
                for text, language in zip(texts, languages, strict=True):
                    held_out[language].append(text)
                    sizes[language] += len(text)
            elif place < HELD_OUT_SHARE + (1 - HELD_OUT_SHARE) * self._share:
                self.taken_bytes += size
                yield from texts
            if self.taken_bytes >= self._settings.max_bytes:
                self.unread = self.sources[self.sources.index(self._reading) :]
                break
        rejects.check()
        self.records, self.rejects = rejects.num_records, dict(rejects.reasons)
        check_unchanged(self._states)
        self.held_out = dict(held_out)

    def _documents(self, rejects: Rejects) -> Iterator[list[str]]:
        rules = self._settings.text_rules
        with reporting(self._total_bytes, "reading") as report:
            for block in chain.from_iterable(read_blocks(each, rules) for each in self.sources):
                before, self._reading = rejects.num_records, block.source
                yield from accept(noting(records_of(block), self.unread_keys), self._texts_of, rejects)
                report(rejects.num_records - before, len(block.content))

    def _texts_of(self, record: dict) -> list[str]:
        texts = texts_of(record, column := text_key(self._reading, self._settings.text_column))
        is_chat = record.get(column) is None
        note(self.unread_keys, _unread_of_chat(record) if is_chat else {*held_keys(record)} - {column})
        if self._settings.text_marks == "keep" or is_chat:
            return texts
        return self.marks.divide(texts[0])


def _unread_of_chat(record: dict[str, Any]) -> set[str]:
    chat_format = format_of(record)
    bad = {*BAD} & {*held_keys(record)} if chat_format == "preference" else set()
    return unread_keys(record, chat_format) | bad


def language_of(text: str) -> str:
    """Return zh where a fifth of a text or more is Han characters, en where nearly all is ASCII, or other."""
    num_han = sum("\u3400" <= character <= "\u9fff" for character in text)
    if num_han >= 0.2 * len(text):
        return "zh"
    return "en" if sum(map(str.isascii, text)) >= 0.95 * len(text) else "other"


def _with_room(texts: list[str], sizes: Counter[str]) -> list[str]:
    """Return the languages of the texts of a document, or none where enough is held out of one of them."""
    languages = [*map(language_of, texts)]
    return [] if any(sizes[each] >= HELD_OUT_CHARACTERS for each in languages) else languages


def _uniform(text: str) -> float:
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
