"""Where data lies: files, folders, globs and the hub, as blocks of lines that end where a record ends.

Local text is read as bytes: what is broken costs a record, never the file, and no file is held whole. Parquet
and the hub are `dataset/tables.py`'s; what stands in a block, `dataset/records.py`'s.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from glob import glob, has_magic
from hashlib import file_digest
from itertools import chain, takewhile
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple, NoReturn

from dataset.json_lines import as_json_lines
from dataset.messages import shown
from dataset.printing import printable
from dataset.tables import HUB, hub_rows, parquet_rows
from dataset.text_files import DEFAULT_RULES, TextRules
from dataset.unpacking import COMPRESSIONS, BrokenOffError, opened, read_chunks
from model.errors import UserError

FORMS = (".jsonl", ".json", ".txt", ".parquet")
ENDINGS = (*FORMS, *(form + packed for form in FORMS[:3] for packed in COMPRESSIONS))
PRODUCTS = {"a token store": ("manifest.json", "ids-00000.bin"), "a tokenizer": ("tokenizer.json",)}
"""files that tell a folder which is no data, though its files end as data do; a model has its tokenizer"""

BLOCK_BYTES = 2**22
LONGEST_RECORD_BYTES = 2**26
SEPARATOR_BYTES = 2**10  # what ends a record may come in two chunks
BEGINNING_BYTES = 2**20  # of a .txt file, in which marks of documents are looked for
LINE_END = re.compile(rb"\n")


class Block(NamedTuple):
    """Consecutive records of a source, as they stand in it."""

    source: str
    line: int
    """of its beginning, counted from 1"""
    content: bytes
    fault: str = ""
    """why something here cannot be read; then there is no content"""
    record_end: re.Pattern[bytes] = LINE_END


def find_sources(names: Sequence[str]) -> list[str]:
    """Return the sources that names stand for: files, files in folders, matches of globs, hub names."""
    return list(chain.from_iterable(map(_expand, names)))


def _expand(name: str) -> list[str]:
    if not name:
        raise UserError("data: expected the name of a file, folder, glob or hub data set, got ''")
    path = Path(name)
    if not name.startswith(HUB):
        if os.path.isdir(name):
            return _data_among(_files_in(path), path, name)
        if has_magic(name) and not os.path.lexists(name):
            plain = takewhile(lambda part: not has_magic(part), path.parts)
            return _data_among(_matches(path), Path(*plain), name)
    return [name]


def _files_in(folder: Path) -> list[str]:
    """Return the files in a folder, however deep; links to folders, and what is hidden, are named alone."""
    if product := _product(folder):
        raise UserError(f"{folder} is {product}, not data; name the files in it that are data, if any")
    entries: list[Path] = []
    hidden: list[str] = []
    for place, folders, files in os.walk(folder, onerror=_refuse):
        hidden += [name for name in folders + [*filter(form_of, files)] if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]  # half-made stores among them
        entries += [Path(place, name) for name in folders + files if not name.startswith(".")]
    if hidden:
        print(f"{printable(str(folder))}: not read, as hidden, are {shown(sorted(hidden))}", file=sys.stderr)
    for link in sorted(entry for entry in entries if entry.is_symlink() and os.path.isdir(entry)):
        print(f"{printable(str(link))} is a link to a folder: name it to read it", file=sys.stderr)
    return [str(entry) for entry in sorted(entries) if not os.path.isdir(entry)]


def _matches(pattern: Path) -> list[str]:
    """Return the files that a glob finds; one that could not look everywhere would find too few."""
    for depth in range(1, len(pattern.parts)):
        for folder in filter(os.path.isdir, glob(str(Path(*pattern.parts[:depth])), recursive=True)):
            try:
                os.listdir(folder)
            except OSError as error:
                _refuse(error)
    found = sorted(glob(str(pattern), recursive=True))
    files = [each for each in found if not os.path.isdir(each)]
    read = {folder for file in files for folder in Path(file).parents}
    for folder in filter(os.path.isdir, found):
        if Path(folder) not in read and os.listdir(folder):
            print(f"{printable(folder)} is a folder: name it to read it", file=sys.stderr)
    return files


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


def _data_among(files: list[str], root: Path, name: str) -> list[str]:
    """Return the files of known forms that lie in no product below `root`, and say what is left out."""
    products = _products_around(files, root)
    outside = [file for file in files if not products[file]]
    if not (data := list(filter(form_of, outside))):
        raise UserError(
            f"no data files in {name}: expected names that end in {', '.join(ENDINGS)}, outside tokenizers "
            "and token stores"
        )
    for folder in dict.fromkeys(filter(None, products.values())):
        print(f"{printable(str(folder))} is {_product(folder)}: not read as data", file=sys.stderr)
    if others := sorted({_ending(file) for file in outside if not form_of(file)}):
        print(f"{printable(name)}: not read are files of {printable(', '.join(others))}", file=sys.stderr)
    return data


def _ending(file: str) -> str:
    """Return the last ending of a name, with the one before it where it tells of compression."""
    packed = Path(file).suffix if file.endswith(COMPRESSIONS) else ""
    return Path(file.removesuffix(packed)).suffix + packed or "no ending"


def _products_around(files: Iterable[str], root: Path) -> dict[str, Path | None]:
    """Return for each file the outermost folder below `root` around it that is no data, else None."""
    is_product = cache(_product)
    around = {file: takewhile(lambda folder: folder != root, Path(file).parents) for file in files}
    return {file: next(filter(is_product, reversed(list(above))), None) for file, above in around.items()}


def _product(folder: Path) -> str:
    """Say what a folder is that the project itself may have written, "" for any other."""
    for product, names in PRODUCTS.items():
        if all(os.path.isfile(folder / name) for name in names):
            return product
    return ""


def form_of(path: str | Path) -> str:
    """Return the ending that says how a file is read, without that of its compression; "" if unknown."""
    name = Path(path).name
    for ending in ENDINGS:
        if name.endswith(ending):
            return Path(name.removesuffix(".gz").removesuffix(".zst")).suffix
    return ""


def check_sources(sources: Sequence[str]) -> None:
    """Raise `UserError` unless every source is a file of a known form that is not empty, or on the hub.

    None may be named twice, by whatever path: its documents would be read, and counted, twice.
    """
    for source in sources:
        if source.startswith(HUB):
            continue
        size = _check_file(source)
        if not form_of(source):
            raise UserError(f"{source}: expected a file that ends in {', '.join(ENDINGS)}")
        if not size:
            raise UserError(f"data file is empty: {source}")
    files = Counter(source if source.startswith(HUB) else os.path.realpath(source) for source in sources)
    if twice := [source for source, count in files.items() if count > 1]:
        raise UserError(f"data named more than once: {twice[0]}; name each file once")


def _check_file(path: str) -> int:
    """Return the size of a file; raises `UserError` for what is none, without waiting for it."""
    try:
        status = os.stat(path)
        if not S_ISREG(status.st_mode):
            raise UserError(f"{path}: expected a file, got a folder, pipe or device")
        with opened(path):
            return status.st_size
    except FileNotFoundError:
        aim = ", which is a link to nothing" if os.path.islink(path) else ""
        raise UserError(f"data file not found: {path}{aim}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: {error}") from None


def begin_reading(sources: Sequence[str], rules: TextRules) -> dict[str, tuple[int, ...]]:
    """Check what is about to be read, and return the states of files for `check_unchanged` when it has been.

    Raises `UserError` as `check_sources` does, and for a separator that is none or that no source heeds.
    """
    check_sources(sources)
    rules.check()
    if rules.separator != DEFAULT_RULES.separator and ".txt" not in map(form_of, sources):
        raise UserError(
            f"document_separator {rules.separator}: none of the data is a .txt file; leave it out"
        )
    return {source: _state(source) for source in sources if not source.startswith(HUB)}


def check_unchanged(states: dict[str, tuple[int, ...]]) -> None:
    """Raise `UserError` if a file was written to, replaced or removed since `begin_reading`."""
    if changed := [source for source, state in states.items() if _state(source) != state]:
        raise UserError(f"{changed[0]} changed while it was read; run the same command again once it stays")


def _state(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def size_of(source: str) -> int:
    """Return the bytes of a file, 0 for what is on the hub or gone, which its reading will say."""
    return os.path.getsize(source) if os.path.exists(source) else 0


def describe_source(source: str) -> dict[str, Any]:
    """Return what tells this state of a source from another: name, size in bytes, sha256 (files only)."""
    if source.startswith(HUB):
        return {"path": source, "bytes": 0, "sha256": ""}
    with opened(source) as file:
        digest = file_digest(file, "sha256").hexdigest()
        return {"path": str(source), "bytes": file.tell(), "sha256": digest}


def read_blocks(source: str, rules: TextRules = DEFAULT_RULES) -> Iterator[Block]:
    """Yield the blocks of a source: the same at every reading, each a little longer than `BLOCK_BYTES`.

    Line ends of .txt files are unified, so that a line ends with a newline alone.
    """
    if source.startswith(HUB):
        yield from _cut(source, LINE_END, hub_rows(source))
        return
    form = form_of(source)
    if form == ".parquet":
        yield from _cut(source, LINE_END, parquet_rows(source))
    elif form == ".json":
        yield from _cut(source, LINE_END, as_json_lines(source, read_chunks(source)))
    elif form == ".txt":
        record_end = rules.record_end(_beginning(source))
        yield from _cut(source, record_end, _with_newlines(read_chunks(source)))
    else:
        yield from _cut(source, LINE_END, read_chunks(source))


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


def _cut(source: str, record_end: re.Pattern[bytes], chunks: Iterable[bytes]) -> Iterator[Block]:
    """Cut a stream of bytes into blocks at ends of records; what is read before a damage is kept."""
    cutter, fault = _Cutter(source, record_end), ""
    try:
        for chunk in chunks:
            yield from cutter.feed(chunk)
    except BrokenOffError as error:
        fault = str(error)
    yield from cutter.rest()
    if fault:
        yield Block(source, cutter.line, b"", fault)


class _Cutter:
    def __init__(self, source: str, record_end: re.Pattern[bytes]) -> None:
        self.source, self.record_end = source, record_end
        self.line, self._pending, self._searched, self._in_giant = 1, bytearray(), 0, False

    def feed(self, chunk: bytes) -> Iterator[Block]:
        self._pending += chunk
        if self._in_giant and not self._leave_giant():
            return
        while found := self.record_end.search(self._pending, max(BLOCK_BYTES, self._searched)):
            yield self._take(found.end())
        self._searched = max(0, len(self._pending) - SEPARATOR_BYTES)
        if len(self._pending) > LONGEST_RECORD_BYTES:
            yield from self._enter_giant()

    def rest(self) -> Iterator[Block]:
        if self._pending and not self._in_giant:
            yield self._take(len(self._pending))

    def _enter_giant(self) -> Iterator[Block]:
        """Yield the records before one that is too long to hold, and say so; its rest is passed over."""
        ends = [found.end() for found in self.record_end.finditer(self._pending, 0, BLOCK_BYTES)]
        if ends:
            yield self._take(ends[-1])
        yield Block(self.source, self.line, b"", f"longer than {LONGEST_RECORD_BYTES >> 20} MB")
        self._in_giant = True
        self._leave_giant()

    def _leave_giant(self) -> bool:
        found = self.record_end.search(self._pending, 1)
        self._take(found.end() if found else max(0, len(self._pending) - SEPARATOR_BYTES))
        self._in_giant = not found
        return not self._in_giant

    def _take(self, end: int) -> Block:
        with memoryview(self._pending) as view:
            content = bytes(view[:end])
        del self._pending[:end]
        line, self.line = self.line, self.line + content.count(b"\n")
        self._searched = 0
        return Block(self.source, line, content, "", self.record_end)
