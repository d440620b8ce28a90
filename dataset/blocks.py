"""What is read of a source: blocks of lines that end where a record ends.

Local text is read as bytes, unpacked where the name says so: what is broken costs a record, never
the file, and no file is held whole but one of JSON in one piece. Parquet and the hub are in
`dataset/tables.py`; what stands in a block is read by `dataset/records.py`.
"""

import bz2
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from zstandard import ZstdDecompressor, ZstdError

from dataset.tables import CHUNK_BYTES, HUB, MOST_JSON_BYTES, hub_parts, parquet_rows
from dataset.text_files import DEFAULT_RULES, TextRules, not_utf8
from model.errors import UserError
from model.files import opened

COMPRESSIONS = {
    ".gz": (lambda: zlib.decompressobj(wbits=31), zlib.error),
    ".zst": (lambda: ZstdDecompressor(max_window_size=2**31).decompressobj(), ZstdError),  # zstd --long=31
    ".bz2": (bz2.BZ2Decompressor, OSError),
    ".xz": (lzma.LZMADecompressor, lzma.LZMAError),
}
"""what unpacks a file by its ending, and what that raises where it is damaged"""
FORMS = (".jsonl", ".json", ".txt", ".parquet")
ENDINGS = (*FORMS, *(form + packed for form in FORMS[:3] for packed in COMPRESSIONS))
PACKED_BYTES = 2**10  # what is unpacked at a time: so much may be lost before a damaged place
BROKEN_OFF = "compressed data"  # begins what is said of a file that cannot be read to its end
BLOCK_BYTES = 2**22
LONGEST_RECORD_BYTES = 2**26
SEPARATOR_BYTES = 2**10  # what ends a record may come in two chunks
BEGINNING_BYTES = 2**20  # of a .txt file, in which marks of documents are looked for
LINE_END = re.compile(rb"\n")
BETWEEN = re.compile(r"[ \t\r\n,]*+")
DECODER = json.JSONDecoder(parse_int=str)  # numbers with too many digits are a fault of their own record


class Block(NamedTuple):
    """Consecutive records of a source, as they stand in it."""

    source: str
    line: int
    """of its beginning, counted from 1"""
    content: bytes
    fault: str = ""
    """why something here cannot be read; then there is no content"""
    record_end: re.Pattern[bytes] = LINE_END


def form_of(path: str | Path) -> str:
    """Return the ending that says how a file is read, without that of its compression; "" if unknown."""
    name = Path(path).name
    for ending in () if str(path).startswith(HUB) else ENDINGS:
        if name.endswith(ending):
            return next(form for form in FORMS if ending.startswith(form))
    return ""


def read_blocks(source: str, rules: TextRules = DEFAULT_RULES) -> Iterator[Block]:
    """Yield the blocks of a source: the same at every reading, each a little longer than `BLOCK_BYTES`.

    Line ends of .txt files are unified, so that a line ends with a newline alone.
    """
    form, record_end = form_of(source), LINE_END
    if source.startswith(HUB):
        chunks = _hub_lines(source)
    elif form == ".parquet":
        chunks = parquet_rows(source)
    elif form == ".json":
        chunks = as_json_lines(source, read_chunks(source))
    elif form == ".txt":
        record_end, chunks = rules.record_end(_beginning(source)), _with_newlines(read_chunks(source))
    else:
        chunks = read_chunks(source)
    yield from _Cutter(source, record_end).blocks(chunks)


def _hub_lines(source: str) -> Iterator[bytes]:
    for name, chunks in hub_parts(source):
        yield from as_json_lines(source, _unpacked(chunks, name))
        yield b"\n"  # the last line of a file may have no end


def _beginning(source: str) -> str:
    """Return whole lines from the beginning of a file, as far as it can be read."""
    taken = bytearray()
    with suppress(BrokenOffError):
        for chunk in _with_newlines(read_chunks(source)):
            taken += chunk
            if len(taken) >= BEGINNING_BYTES:
                del taken[taken.rfind(b"\n", 0, BEGINNING_BYTES) + 1 or BEGINNING_BYTES :]
                break
    return taken.decode(errors="replace")


def _with_newlines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Turn each carriage return, with the newline behind it if there is one, into a newline."""
    held = b""
    for chunk in chunks:
        chunk = held + chunk
        held = b"\r" if chunk.endswith(b"\r") else b""
        yield chunk.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    yield held.replace(b"\r", b"\n")


class _Cutter:
    """Cuts a stream of bytes into blocks at ends of records."""

    def __init__(self, source: str, record_end: re.Pattern[bytes]) -> None:
        self.source, self.record_end = source, record_end
        self.line, self._pending, self._searched, self._in_giant = 1, bytearray(), 0, False

    def blocks(self, chunks: Iterable[bytes]) -> Iterator[Block]:
        """Yield the blocks; what is read before a damage is kept."""
        fault = ""
        try:
            for chunk in chunks:
                yield from self._feed(chunk)
        except BrokenOffError as error:
            fault = str(error)
        if self._pending and not self._in_giant:
            yield self._take(len(self._pending))
        if fault:
            yield Block(self.source, self.line, b"", fault)

    def _feed(self, chunk: bytes) -> Iterator[Block]:
        self._pending += chunk
        if self._in_giant and not self._leave_giant():
            return
        while found := self.record_end.search(self._pending, max(BLOCK_BYTES, self._searched)):
            yield self._take(found.end())
        self._searched = self._open_end()
        if len(self._pending) > LONGEST_RECORD_BYTES:
            yield from self._enter_giant()

    def _enter_giant(self) -> Iterator[Block]:
        """Yield the records before one that is too long to hold, and say so; its rest is passed over."""
        found = takewhile(lambda end: end.start() < BLOCK_BYTES, self.record_end.finditer(self._pending))
        ends = [each.end() for each in found]
        del found  # which holds what is pending
        if ends:
            yield self._take(ends[-1])
        yield Block(self.source, self.line, b"", f"longer than {LONGEST_RECORD_BYTES >> 20} MB")
        self._in_giant = True
        self._leave_giant()

    def _leave_giant(self) -> bool:
        begin = not self._pending.startswith(b"\n")  # another first byte only says whether a line begins
        found = self.record_end.search(self._pending, begin)
        self._take(found.end() if found else self._open_end())
        if not found and self._pending[2:].isspace():
            del self._pending[2:-SEPARATOR_BYTES]
        self._in_giant = not found
        return not self._in_giant

    def _open_end(self) -> int:
        """Return where what may begin to end a record begins, or a byte before: its last line may be long."""
        near = max(0, len(self._pending) - SEPARATOR_BYTES)
        newline = self._pending.rfind(b"\n", max(0, near - 2 * CHUNK_BYTES))
        return min(near, max(0, newline - 1)) if newline >= 0 else near

    def _take(self, end: int) -> Block:
        with memoryview(self._pending) as view:
            content = bytes(view[:end])
        del self._pending[:end]
        line, self.line = self.line, self.line + content.count(b"\n")
        self._searched = 0
        return Block(self.source, line, content, "", self.record_end)


class BrokenOffError(ValueError):
    """Says why a compressed file cannot be read further."""


def read_chunks(path: str) -> Iterator[bytes]:
    """Yield what is in a file, unpacked; raises `BrokenOffError` where that is damaged."""
    with opened(path) as file:
        yield from _unpacked(iter(lambda: file.read(CHUNK_BYTES), b""), path)


def _unpacked(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yield what is in a file; in packed streams one after the other, perhaps padded with zeros."""
    if (ending := Path(name).suffix) not in COMPRESSIONS:
        yield from chunks
        return
    pieces = (chunk[at : at + PACKED_BYTES] for chunk in chunks for at in range(0, len(chunk), PACKED_BYTES))
    start, fault = COMPRESSIONS[ending]
    unpacker = start()
    for data in pieces:
        while data := data.lstrip(b"\0") if unpacker.eof else data:
            unpacker = start() if unpacker.eof else unpacker
            try:
                yield unpacker.decompress(data)
            except fault:
                raise BrokenOffError(f"{BROKEN_OFF} is damaged") from None
            data = unpacker.unused_data
    if not unpacker.eof:
        raise BrokenOffError(f"{BROKEN_OFF} ends early")


def check_whole(place: str, fault: str, max_reject_fraction: float) -> None:
    """Raise `UserError` for the fault of a file that breaks off, unless everything may be lost."""
    if fault.startswith(BROKEN_OFF) and max_reject_fraction < 1:
        fault = f"{place}: {fault}, and how much is lost cannot be known"
        raise UserError(f"{fault}; get the file anew, or take what can be read with --max_reject_fraction 1")


def as_json_lines(source: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the objects, each on the line on which it begins, or on the next one that is free.

        [{"a": 1},          {"a": 1}
         {"b":              {"b":  2}
           2}, 3]           3           a line as well, which the reader will refuse

    A file whose first line is an object is one of lines already and passes as it is. Any other is held whole:
    raises `UserError` where it is larger than `MOST_JSON_BYTES` or not JSON.
    """
    content, is_first_line = bytearray(), True
    chunks = iter(chunks)
    try:
        for chunk in chunks:
            content += chunk
            if is_first_line and b"\n" in chunk:
                is_first_line = False
                if _is_object(content.lstrip(b"\xef\xbb\xbf\r\n").partition(b"\n")[0]):
                    yield bytes(content)
                    yield from chunks
                    return
            if len(content) > MOST_JSON_BYTES:
                wanted = f"{source}: expected at most {MOST_JSON_BYTES >> 20} MB of JSON in one piece"
                advice = "convert it to .jsonl, a record on each line: jq -c '.[]' a.json > a.jsonl"
                raise UserError(f"{wanted}; {advice}")
        text = content.decode("utf-8-sig")
        if is_bomb(text):
            raise UserError(f"{source}: hardly anything but brackets; expected records of text")
    except BrokenOffError as error:
        raise UserError(f"{source}: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{source}: {not_utf8(bytes(content[: 2**16]))}") from None
    yield from _objects(source, text)


def is_bomb(text: str) -> bool:
    """Say whether JSON is a megabyte or more of hardly anything but brackets: parsed, it takes far more."""
    return len(text) >= 2**20 and 8 * (text.count("[") + text.count("{")) > len(text)


def _is_object(line: bytes | bytearray) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _objects(source: str, text: str) -> Iterator[bytes]:
    position = BETWEEN.match(text).end()
    in_array = text.startswith("[", position)
    position, counted, line, written = position + in_array, 0, 0, 0
    while (position := BETWEEN.match(text, position).end()) < len(text):
        line, counted = line + text.count("\n", counted, position), position
        if in_array and text[position] == "]":
            if text[position + 1 :].strip():
                raise UserError(f"{source} line {line + 1}: more follows the end of the array; mend the file")
            return
        try:
            _, end = DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise UserError(f"{source} line {error.lineno}: not JSON ({error.msg}); mend the file") from None
        except RecursionError:
            raise UserError(f"{source} line {line + 1}: nested too deeply; mend the file") from None
        gap = "\n" * max(0, line - written)
        written += len(gap) + 1
        yield (gap + text[position:end].replace("\n", " ") + "\n").encode()
        position = end
    if in_array:
        raise UserError(f"{source}: the array has no end; mend the file")
