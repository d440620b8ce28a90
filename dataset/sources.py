"""Records of local files, one at a time, and an account of those that cannot be used.

Files are read as binary lines: a broken line or byte costs that line, never the file. What a record means is
`dataset/conversation.py`'s.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, TypeVar

from dataset.conversation import RecordError, parse_messages, read_text
from model.errors import UserError

Parsed = TypeVar("Parsed")
SUFFIXES = (".jsonl", ".txt")


class Record(NamedTuple):
    """One object of a .jsonl file, or one paragraph of a .txt file as `{"text": …}`."""

    value: dict[str, Any] | None
    """None where the record cannot be read"""
    fault: str
    """why it cannot be read; empty where it can"""
    file: str
    line: int
    """counted from 1"""
    num_bytes: int
    """size in the file"""


def check_sources(paths: Sequence[str]) -> None:
    """Raise `UserError` unless every path is a file of a known form that is not empty."""
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"data file not found: {path}")
        if Path(path).suffix not in SUFFIXES:
            raise UserError(f"{path}: expected a file that ends in {' or '.join(SUFFIXES)}")
        if not Path(path).stat().st_size:
            raise UserError(f"data file is empty: {path}")


def describe_source(path: str) -> dict[str, Any]:
    """Return what tells this state of a file from another: name, size in bytes, sha256."""
    with open(path, "rb") as file:
        return {
            "path": str(path),
            "bytes": Path(path).stat().st_size,
            "sha256": file_digest(file, "sha256").hexdigest(),
        }


def read_records(paths: Iterable[str]) -> Iterator[Record]:
    """Yield the records of files in order; what cannot be read comes as a record with its fault."""
    for path in paths:
        read = _read_jsonl if Path(path).suffix == ".jsonl" else _read_paragraphs
        with open(path, "rb") as file:
            yield from read(str(path), file)


def _read_jsonl(path: str, file: BinaryIO) -> Iterator[Record]:
    for number, line in enumerate(file, start=1):
        if line.isspace():
            continue
        value, fault = None, ""
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            if not isinstance(value, dict):
                value, fault = None, "not a JSON object"
        except UnicodeDecodeError:
            fault = "not UTF-8"
        except ValueError:
            fault = "not JSON"
        except RecursionError:
            fault = "nested too deeply"
        yield Record(value, fault, path, number, len(line))


def _read_paragraphs(path: str, file: BinaryIO) -> Iterator[Record]:
    lines: list[bytes] = []
    number = 0
    for number, line in enumerate(file, start=1):
        if not line.isspace():
            lines.append(line)
        elif lines:
            yield _paragraph(path, number - len(lines), lines)
            lines = []
    if lines:
        yield _paragraph(path, number - len(lines) + 1, lines)


def _paragraph(path: str, number: int, lines: list[bytes]) -> Record:
    content = b"".join(lines)
    try:
        return Record({"text": content.decode("utf-8-sig").strip()}, "", path, number, len(content))
    except UnicodeDecodeError:
        return Record(None, "not UTF-8", path, number, len(content))


def texts_of(record: dict[str, Any], text_column: str = "text") -> list[str]:
    """Return every text that a record of either kind holds; raises `RecordError` where there is none."""
    if text_column in record:
        return [read_text(record[text_column], text_column)]
    return [message.content for message in parse_messages(record)]


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
        self._first = ""

    def add(self, record: Record, reason: str) -> None:
        """Note one record that cannot be used."""
        self._first = self._first or f"{record.file} line {record.line}: {reason}"
        self.reasons[reason] += 1
        if self.listing:
            entry = {"file": record.file, "line": record.line, "reason": reason}
            self.listing.write(json.dumps(entry) + "\n")

    def check(self) -> None:
        """Raise `UserError` when too many of the records were rejected."""
        if not self.num_records:
            raise UserError("the data files hold no records")
        rejected = self.reasons.total()
        if rejected > self.max_fraction * self.num_records or rejected == self.num_records:
            others = f" (and {rejected - 1} more)" if rejected > 1 else ""
            raise UserError(
                f"{self._first}{others}; {rejected} of {self.num_records} records cannot be used, "
                f"more than --max_reject_fraction {self.max_fraction:g} allows"
            )


def accept(
    records: Iterable[Record], parse: Callable[[dict[str, Any]], Parsed], rejects: Rejects
) -> Iterator[Parsed]:
    """Yield what `parse` makes of each record; those it refuses go to `rejects`."""
    for record in records:
        rejects.num_records += 1
        if record.value is None:
            rejects.add(record, record.fault)
            continue
        try:
            parsed = parse(record.value)
        except RecordError as error:
            rejects.add(record, str(error))
        else:
            yield parsed
