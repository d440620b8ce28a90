"""The records of a block, and an account of those that cannot be used.

What a record says is `dataset/formats.py`'s.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TextIO, TypeVar

from dataset.formats import FormatError, RecordError, format_of, parse_messages, read_text
from dataset.json_lines import is_bomb
from dataset.sources import Block, form_of, read_blocks
from dataset.text_files import DEFAULT_RULES, TextRules, not_utf8
from model.errors import UserError

Parsed = TypeVar("Parsed")
ARRAY = "this .jsonl holds one JSON array; name it .json"


class Record(NamedTuple):
    """One object of a source, or one document of a .txt file as `{"text": …}`."""

    value: dict[str, Any] | None
    """None where the record cannot be read"""
    fault: str
    """why it cannot be read; empty where it can"""
    file: str
    line: int
    """counted from 1"""
    num_bytes: int
    """size in the file"""


def read_records(sources: Iterable[str], rules: TextRules = DEFAULT_RULES) -> Iterator[Record]:
    """Yield the records of sources in order; what cannot be read comes as a record with its fault."""
    for source in sources:
        for block in read_blocks(str(source), rules):
            yield from records_of(block)


def records_of(block: Block) -> Iterator[Record]:
    """Yield the records of a block."""
    if block.fault:
        yield Record(None, block.fault, block.source, block.line, 0)
    elif form_of(block.source) == ".txt":
        yield from _texts(block)
    else:
        yield from _lines(block)


def _lines(block: Block) -> Iterator[Record]:
    for number, line in enumerate(_pieces(block.content), start=block.line):
        value, fault, begins = None, "", number == 1 and form_of(block.source) == ".jsonl"
        try:
            text = str(line, "utf-8-sig" if number == 1 else "utf-8")
            if text.isspace():
                continue
            value = None if is_bomb(text) else json.loads(text)
            if not isinstance(value, dict):
                fault = ARRAY if begins and isinstance(value, list) else "not a JSON object"
                value = None
        except UnicodeDecodeError:
            fault = not_utf8(bytes(line))
        except ValueError as error:
            fault = _not_json(bytes(line), str(error), begins)
        except RecursionError:
            fault = "nested too deeply"
        yield Record(value, fault, block.source, number, len(line))


def _not_json(line: bytes, error: str, begins: bool) -> str:
    """Return why a line is no JSON, with a guess at what its file is instead."""
    if begins and line.lstrip(b"\xef\xbb\xbf").startswith(b"["):
        return ARRAY
    if begins and line.strip() == b"{":
        return "this .jsonl holds objects over several lines; name it .json"
    if b"\0" in line:
        return not_utf8(line)
    return "several JSON values on one line" if error.startswith("Extra data") else "not JSON"


def _pieces(content: bytes) -> Iterator[memoryview]:
    """Yield the lines of a block, none of them copied: one may be most of it."""
    view, begin = memoryview(content), 0
    while begin < len(content):
        end = content.find(b"\n", begin) + 1 or len(content)
        yield view[begin:end]
        begin = end


def _texts(block: Block) -> Iterator[Record]:
    content, begin, line = block.content + b"\n\n", 0, block.line
    for end in chain(block.record_end.finditer(content), [None]):
        piece = content[begin : end.start() if end else None].rstrip()
        text = piece.lstrip()
        if text.strip(b"\xef\xbb\xbf"):
            yield _text(block.source, line + piece.count(b"\n", 0, len(piece) - len(text)), text)
        if end:
            line, begin = line + content.count(b"\n", begin, end.end()), end.end()


def _text(path: str, number: int, content: bytes) -> Record:
    try:
        value, fault = {"text": content.decode("utf-8-sig").strip()}, ""
    except UnicodeDecodeError:
        value, fault = None, not_utf8(content)
    if content.count(0) > len(content) // 4:  # in UTF-16 every other byte of English
        value, fault = None, not_utf8(content)
    return Record(value, fault, path, number, len(content))


def texts_of(record: dict[str, Any], text_column: str = "text") -> list[str]:
    """Return every text that a record of either kind holds; raises `RecordError` where there is none."""
    if record.get(text_column) is not None:
        return [read_text(record[text_column], text_column)]
    if format_of(record) is None:
        raise RecordError(f"no {text_column}, and no chat format has these keys")
    return [part for message in parse_messages(record) for part in message.parts()[::2] if part]


@dataclass
class Rejects:
    """Counts the records that cannot be used by reason, and lists each as a line of JSON where asked to."""

    max_fraction: float = 0.01
    """share of all records that may be rejected"""
    listing: TextIO | None = None

    def __post_init__(self) -> None:
        """Start at zero."""
        if not 0 <= self.max_fraction <= 1:
            raise UserError(
                f"--max_reject_fraction: expected a share between 0 and 1, got {self.max_fraction}"
            )
        self.num_records = 0
        self.reasons: Counter[str] = Counter()
        self.first = ""

    def add(self, record: Record, reason: str) -> None:
        """Note one record that cannot be used."""
        self.first = self.first or f"{record.file} line {record.line}: {reason}"
        self.reasons[reason] += 1
        if self.listing:
            entry = {"file": record.file, "line": record.line, "reason": reason}
            self.listing.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def merge(self, num_records: int, reasons: dict[str, int], first: str) -> None:
        """Add an account that was kept elsewhere of the records that follow."""
        self.num_records += num_records
        self.reasons.update(reasons)
        self.first = self.first or first

    def account(self) -> tuple[int, dict[str, int], str]:
        """Return what `merge` takes."""
        return self.num_records, dict(self.reasons), self.first

    def check(self) -> None:
        """Raise `UserError` when too many of the records were rejected."""
        if not self.num_records:
            raise UserError("the data files hold no records")
        rejected = self.reasons.total()
        if rejected > self.max_fraction * self.num_records or rejected == self.num_records:
            others = f" (and {rejected - 1} more)" if rejected > 1 else ""
            raise UserError(
                f"{self.first}{others}; {rejected} of {self.num_records} records cannot be used, "
                f"more than --max_reject_fraction {self.max_fraction:g} allows"
            )


def accept(
    records: Iterable[Record], parse: Callable[[dict[str, Any]], Parsed], rejects: Rejects
) -> Iterator[Parsed]:
    """Yield what `parse` makes of each record; those it refuses go to `rejects`.

    Raises `UserError` that names the line where a file mixes formats.
    """
    for record in records:
        rejects.num_records += 1
        if record.value is None:
            rejects.add(record, record.fault)
            continue
        try:
            parsed = parse(record.value)
        except RecordError as error:
            rejects.add(record, str(error))
        except RecursionError:
            rejects.add(record, "nested too deeply")
        except FormatError as error:
            raise UserError(f"{record.file} line {record.line}: {error}") from None
        else:
            yield parsed
