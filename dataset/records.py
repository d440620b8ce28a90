"""The records of a block, those inside of others too, and an account of those that cannot be used.

What a record says is `dataset/formats.py`'s.
"""

from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TextIO, TypeVar

from dataset.blocks import Block, check_whole, form_of, is_bomb, read_blocks
from dataset.chat_form import OURS
from dataset.formats import FormatError, format_of, parse_messages
from dataset.messages import LeftOutError, RecordError, held_keys, read_json, read_text
from dataset.text_files import DEFAULT_RULES, TextRules, not_utf8
from model.errors import UserError
from model.files import as_json

Parsed = TypeVar("Parsed")
ARRAY = "this .jsonl holds one JSON array; name it .json"

NESTING = ("data", "paragraphs", "qas")  # keys under which SQuAD and CMRC keep what is inside
CONTEXTS = ("context", "context_text")
OTHER_NAMES = {"context_text": "context", "query_text": "question", "query_id": "id"}  # CMRC's
FEW_RECORDS = 100  # of so few one may be broken
MOST_REASONS = 100  # a file whose every record has a reason of its own shall not fill the memory


class Record(NamedTuple):
    """One object of a source, one inside of it, or one document of a .txt file as `{"text": …}`."""

    value: dict[str, Any] | None
    """None where the record cannot be read"""
    fault: str
    """why it cannot be read; empty where it can"""
    file: str
    line: int
    """counted from 1"""
    unread: tuple[str, ...] = ()
    """keys beside it, of what it stood inside of, that hold something and are not read"""


def read_records(sources: Iterable[str], rules: TextRules = DEFAULT_RULES) -> Iterator[Record]:
    """Yield the records of sources in order; what cannot be read comes as a record with its fault."""
    for source in sources:
        for block in read_blocks(str(source), rules):
            yield from records_of(block)


def records_of(block: Block) -> Iterator[Record]:
    """Yield the records of a block."""
    if block.fault:
        yield Record(None, block.fault, block.source, block.line)
    elif form_of(block.source) == ".txt":
        yield from _texts(block)
    else:
        yield from _lines(block)


def _lines(block: Block) -> Iterator[Record]:
    for number, line in enumerate(block.content.split(b"\n"), start=block.line):
        begins = number == 1 and form_of(block.source) == ".jsonl"
        values, fault = [(None, ())], ""
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text or text.isspace():
                continue
            values = values if is_bomb(text) else expand(read_json(text))
        except UnicodeDecodeError:
            fault = not_utf8(line)
        except RecordError as error:
            fault = str(error)
        except ValueError as error:
            fault = _not_json(line, str(error), begins)
        except RecursionError:
            fault = "nested too deeply"
        for value, unread in values:
            if fault or isinstance(value, dict):
                yield Record(value, fault, block.source, number, unread)
            else:
                wrong = ARRAY if begins and isinstance(value, list) else "not a JSON object"
                yield Record(None, wrong, block.source, number)


def expand(value: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """Return the records that a record holds as the files of SQuAD and CMRC do, or the record alone.

    {"version": …, "data": [{"paragraphs": [{"context": …, "qas": [{"question": …, "answers": […]}]}]}]}

    With each come the keys beside it, all around, that hold something and are not read.
    """
    values = [(value, ())]
    for name in NESTING:
        values = [inner for outer, unread in values for inner in _inside(outer, unread, name)]
    return values


def _inside(outer: Any, unread: tuple[str, ...], name: str) -> Iterable[tuple[Any, tuple[str, ...]]]:
    inside = outer.get(name) if isinstance(outer, dict) else None
    first = inside[0] if isinstance(inside, list) and inside else None
    if not isinstance(first, dict) or format_of(outer) or "text" in outer:
        return [(outer, unread)]
    if name == "data" and not (format_of(first) or "text" in first or first.keys() & set(NESTING)):
        return [(outer, unread)]  # a list under a name of the user's own, such as messages
    above = _renamed({key: outer[key] for key in CONTEXTS if key in outer})
    unread += tuple(key for key in held_keys(outer) if key not in (name, *CONTEXTS))
    return [_below(above, each, unread) if isinstance(each, dict) else (each, unread) for each in inside]


def _below(
    above: dict[str, Any], value: dict[str, Any], unread: tuple[str, ...]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a record with the text that stands above it, which gives way to one of its own."""
    own = _renamed(value)
    hidden = tuple(key for key in held_keys(above) if own.get(key, above[key]) != above[key])
    return above | own, unread + hidden


def _renamed(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object with our names for its keys, but where both stand in it."""
    names = {key: name for key, name in OTHER_NAMES.items() if name not in value}
    return {names.get(key, key): each for key, each in value.items()}


def _not_json(line: bytes, error: str, begins: bool) -> str:
    """Return why a line is no JSON, with a guess at what its file is instead."""
    if begins and line.lstrip(b"\xef\xbb\xbf").startswith(b"["):
        return ARRAY
    if begins and line.strip() == b"{":
        return "this .jsonl holds objects over several lines; name it .json"
    if b"\0" in line:
        return not_utf8(line)
    return "several JSON values on one line" if error.startswith("Extra data") else "not JSON"


def _texts(block: Block) -> Iterator[Record]:
    content, begin, line = block.content + b"\n\n", 0, block.line
    for end in chain(block.record_end.finditer(content), [None]):
        piece = content[begin : end.start() if end else None].rstrip()
        text = piece.lstrip()
        if text.replace(BOM_UTF8, b""):
            yield _text(block.source, line + piece.count(b"\n", 0, len(piece) - len(text)), text)
        if end:
            line, begin = line + content.count(b"\n", begin, end.end()), end.end()


def _text(path: str, number: int, content: bytes) -> Record:
    with suppress(UnicodeDecodeError):
        if content.count(0) <= len(content) // 4:  # in UTF-16 every other byte of English
            return Record({"text": content.decode("utf-8-sig").strip()}, "", path, number)
    return Record(None, not_utf8(content), path, number)


def text_key(source: str, text_column: str) -> str:
    """Return the key of a text in the records of a source: our own for what stands in no record there."""
    return "text" if form_of(source) == ".txt" else text_column


def texts_of(record: dict[str, Any], text_column: str = "text") -> list[str]:
    """Return every text that a record of either kind holds; raises `RecordError` where there is none."""
    if record.get(text_column) is not None:
        return [read_text(record[text_column], text_column)]
    if format_of(record) is None:
        raise RecordError(f"no {text_column}, and no chat format has these keys")
    messages = parse_messages(record, preference="chosen")
    return [part for message in messages for part in OURS.parts(message)[::2] if part]


@dataclass
class Rejects:
    """Counts the records that cannot be used by reason, and lists each as a line of JSON where asked to."""

    max_fraction: float = 0.01
    """share of all records that may be rejected"""
    listing: TextIO | None = None

    def __post_init__(self) -> None:
        """Start at zero."""
        if not 0 <= self.max_fraction <= 1:
            raise UserError(f"--max_reject_fraction: expected between 0 and 1, got {self.max_fraction}")
        self.num_records = self.num_left_out = 0
        self.reasons: Counter[str] = Counter()
        self.first = ""

    def add(self, record: Record, reason: str, is_fault: bool = True) -> None:
        """Note one record that cannot be used; one without fault counts for no limit.

        Raises `UserError` for the end of a file that breaks off.
        """
        place = f"{record.file} line {record.line}"
        check_whole(place, reason, self.max_fraction)
        self.first = self.first or f"{place}: {reason}"
        self.num_left_out += not is_fault
        self._count(reason, 1)
        if self.listing:
            entry = {"file": record.file, "line": record.line, "reason": reason}
            self.listing.write(as_json(entry) + "\n")

    def _count(self, reason: str, number: int) -> None:
        is_known = reason in self.reasons or len(self.reasons) < MOST_REASONS
        self.reasons[reason if is_known else "other reasons"] += number

    def merge(self, num_records: int, reasons: dict[str, int], first: str, num_left_out: int = 0) -> None:
        """Add an account that was kept elsewhere of the records that follow."""
        self.num_records, self.num_left_out = self.num_records + num_records, self.num_left_out + num_left_out
        for reason, number in reasons.items():
            self._count(reason, number)
        self.first = self.first or first

    def account(self) -> tuple[int, dict[str, int], str, int]:
        """Return what `merge` takes."""
        return self.num_records, dict(self.reasons), self.first, self.num_left_out

    def check(self) -> None:
        """Raise `UserError` when too many of the records were rejected, or all."""
        if not self.num_records:
            raise UserError("the data files hold no records")
        rejected = self.reasons.total()
        broken = rejected - self.num_left_out
        if rejected == self.num_records or are_too_many(broken, self.num_records, self.max_fraction):
            others = f" (and {rejected - 1} more)" if rejected > 1 else ""
            fault = f"{self.first}{others}; {rejected} of {self.num_records} records cannot be used"
            raise UserError(f"{fault}, more than --max_reject_fraction {self.max_fraction:g} allows")


def are_too_many(num_broken: int, num_records: int, max_fraction: float) -> bool:
    """Say whether more than a share of the records is broken; of few records one may be, if any may."""
    is_one_of_few = num_broken == 1 and num_records < FEW_RECORDS and max_fraction > 0
    return num_broken / num_records > max_fraction and not is_one_of_few


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
            rejects.add(record, str(error), is_fault=not isinstance(error, LeftOutError))
        except RecursionError:
            rejects.add(record, "nested too deeply")
        except FormatError as error:
            raise UserError(f"{record.file} line {record.line}: {error}") from None
        else:
            yield parsed
