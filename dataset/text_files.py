"""What ends a document in a .txt file, and the marks of documents and turns that corpora spell as text.

Also a guess at what bytes are that are no UTF-8. Only texts are divided at marks; what stands in chats is
encoded as the characters it is.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from model.errors import UserError

TextMarks = Literal["split", "keep"]
SEPARATORS = {
    "blank_line": re.compile(rb"\n[^\S\n]*\n"),
    "line": re.compile(rb"\n"),
    "file": re.compile(rb"(?!)"),
}
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
ENDS = (
    *("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>"),
    *("<eos>", "[EOS]", "<eod>", "<|eod|>"),
    *TURN_ENDS,
)
"""what ends a document; the first of these that a .txt file has is taken to end all of its documents"""
BEGINNINGS = ("<|startoftext|>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<bos>", "[BOS]", "<s>")
TURN_BEGINNINGS = ("<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>")
INSIDE = (
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<｜User｜>", "<｜Assistant｜>"),
)
LIKE_MARK = re.compile(r"<\|\w{2,30}\|>|<｜[\w▁]{2,30}｜>")
NONE: dict[str, int] = {}
MOST_KEPT = 20  # kinds of what looks like a mark
STRUCK_OUT = re.compile(r"(?:[^\s>]|(?<!/s)(?<!<s)>)\s*<s>|</s>\s*+(?!<s>|\Z)")  # <s> of HTML


def _any(texts: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, texts))})"


def _header(roles: str) -> str:
    """Return a pattern of what begins a turn where a chat was written out."""
    forms = (r"<\|im_start\|>{}\n", r"<\|start_header_id\|>{}<\|end_header_id\|>\s*", r"<start_of_turn>{}\n")
    return f"(?:{'|'.join(form.format(f'(?:{roles})') for form in forms)})"


MARK = re.compile(_any(ENDS + BEGINNINGS + TURN_BEGINNINGS + INSIDE))
HEADER = re.compile(_header("system|developer|user|assistant|model|tool"))
NEXT_TURN = re.compile(
    rf"(?<!\s)\s*+(?:{_any(TURN_ENDS)}\s*{_header('user|assistant|model|tool')}"
    rf"|(?:(?:<\|end\|>|</s>)\s*)?{_any(INSIDE)})\s*"
)


class TextRules(NamedTuple):
    """How texts become documents."""

    separator: str = "blank_line"
    """what ends a document of a .txt file: blank_line, line, file, or a mark on a line of its own"""
    marks: TextMarks = "split"
    """whether texts are divided at marks that they spell"""

    def check(self) -> None:
        """Raise `UserError` for a separator that is neither known nor a line."""
        if not self.separator.strip() or len(self.separator.splitlines()) > 1:
            wanted = f"document_separator: expected {', '.join(SEPARATORS)} or the text of a line"
            raise UserError(f"{wanted}, got {self.separator!r}")

    def record_end(self, beginning: str) -> re.Pattern[bytes]:
        """Return what ends a document in a .txt file that begins so.

        Where marks are spelt in it, those end its documents instead of blank lines. The pattern then matches
        behind the mark, or before one that begins documents: it is a part of the record until it is counted.
        """
        if self == DEFAULT_RULES and (mark := _end_mark(beginning)):
            return re.compile(b"(?%s%s)" % (b"=" if mark in BEGINNINGS else b"<=", re.escape(mark.encode())))
        if self.separator in SEPARATORS:
            return SEPARATORS[self.separator]
        return re.compile(rb"(?m)^[^\S\n]*" + re.escape(self.separator.strip().encode()) + rb"[^\S\n]*\n")


DEFAULT_RULES = TextRules()


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    """How what reads texts, or chats, out of files takes them."""

    text_column: str = "text"
    """key of the text in a record (not of chats)"""
    document_separator: str = DEFAULT_RULES.separator
    """what ends a document of a .txt file: blank_line, line, file, or any other text, as a line of its own"""
    text_marks: TextMarks = DEFAULT_RULES.marks
    """split: marks of documents and turns that texts spell, as <|endoftext|>, end documents, also those of
    .txt files in place of blank lines; keep: they are text (not of chats)"""
    max_reject_fraction: float = 0.01
    """share of the records that may be unusable; more is an error"""
    overwrite: bool = False
    """replace what lies at --out"""

    @property
    def text_rules(self) -> TextRules:
        """Return how texts become documents."""
        return TextRules(self.document_separator, self.text_marks)


@dataclass
class Marks:
    """Divides texts at the marks that they spell, and counts those."""

    found: Counter[str] = field(default_factory=Counter)
    records: int = 0
    """with marks"""
    documents: int = 0
    """made of those records"""
    kept: Counter[str] = field(default_factory=Counter)
    """what looks like a mark and is none that is known: it is text"""

    def divide(self, text: str) -> list[str]:
        """Return the documents in a text, itself if it has no marks: several, or none if it is marks alone.

        <|im_start|>One.<|im_end|> <|im_start|>Two.<|im_end|>      "One."  "Two."
        <s>[INST] Name a bird. [/INST] Heron. </s>                  "Name a bird.\\nHeron."
        """
        for like in LIKE_MARK.findall(text) if "<" in text else ():
            if not MARK.fullmatch(like) and (like in self.kept or len(self.kept) < MOST_KEPT):
                self.kept[like] += 1
        if not (found := _marks(text)):
            return [text]
        end = re.compile(f"{HEADER.pattern}|{_any(found)}")
        documents = [piece.strip() for piece in end.split(NEXT_TURN.sub("\n", text)) if piece.strip()]
        self.add(found, 1, len(documents))
        return documents

    def add(self, found: dict[str, int], records: int, documents: int, kept: dict[str, int] = NONE) -> None:
        """Add counts, such as another process kept."""
        self.found.update(found)
        self.kept.update(kept)
        self.records, self.documents = self.records + records, self.documents + documents


def counts(marks: dict[str, int]) -> str:
    """Return marks with their numbers, the most frequent first."""
    return ", ".join(f"{count:,} {mark}" for mark, count in Counter(marks).most_common())


def not_utf8(content: bytes) -> str:
    """Return a reason for bytes that are not UTF-8, with a guess at what they are."""
    if 50 * content.count(0) > len(content):
        return "not UTF-8: looks like UTF-16 (convert it: iconv -f UTF-16 -t UTF-8), or is no text"
    try:
        text = content.decode("gb18030")
    except UnicodeDecodeError:
        return "not UTF-8"
    foreign = [character for character in text if not character.isascii()]
    num_han = sum("\u3000" <= character <= "\u9fff" or character > "\uff00" for character in foreign)
    guess = ": looks like GBK (convert it: iconv -f GB18030 -t UTF-8)"
    return "not UTF-8" + guess * (num_han > len(foreign) // 2)


def _end_mark(text: str) -> str:
    """Return the mark that ends, or begins, the documents of a .txt file: at an edge of some line."""
    found = {mark for mark in _marks(text) if re.search(f"(?m)^{re.escape(mark)}|{re.escape(mark)}$", text)}
    if HEADER.search(text):  # a chat stays together
        found -= set(TURN_ENDS)
    return next(filter(found.__contains__, ENDS + BEGINNINGS), "")


def _marks(text: str) -> Counter[str]:
    found = Counter(MARK.findall(text))
    if "<s>" in found and STRUCK_OUT.search(text):
        del found["<s>"], found["</s>"]
    return found
