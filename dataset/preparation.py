"""From sources to a token store: blocks are encoded by all cores, appended in order, and never done twice.

    out/  the token store        out/validation/  that of the documents kept apart, if any are

The bytes depend on the sources and settings alone, neither on the number of processes nor on interruptions:
`.out.partial` beside the store holds what is done and a journal of it until all is.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from dataset.blocks import form_of, read_blocks
from dataset.encoding import Encoded, Encoder, Job, PreparationSettings, map_in_order
from dataset.formats import format_of, read_columns, rename
from dataset.printing import reporting
from dataset.records import Rejects, records_of
from dataset.sources import begin_reading, check_unchanged, describe_source, find_sources, size_of
from dataset.text_files import Marks
from dataset.token_store import ADVICE, SHARES, StoreWriter, TokenStore, read_manifest
from dataset.tokenizer import Tokenizer
from dataset.unread_keys import MOST_KEYS
from model.errors import UserError
from model.files import LOCK, flush_written, resumable_folder, write_text
from model.systems import num_cores
from model.typed_json import read_values

JOURNAL = "journal.json"
JOURNAL_EVERY_SECONDS = 5.0
STORES = (".", "validation")  # folders of the two stores in `out`
SOURCE = {"path": str, "bytes": int, "documents": int, "unread_keys": list[str]}
NOTES = {
    **{"records": int, "bytes": int, "rejects": dict[str, int], "stores": list[str], "request": dict},
    "marks": {"found": dict[str, int], "kept": dict[str, int], "records": int, "documents": int},
    **{"sources": list[SOURCE], "absent_columns?": list[str], "lengths": dict.fromkeys(SHARES, float)},
}
"""what a manifest says of the preparation"""
UNDECIDING = {"data", "out", "max_reject_fraction", "num_workers", "overwrite"}
"""settings that leave the bytes of a store as they are"""
Sources = list[tuple[str, float]]
"""each with its weight"""
Encode = Callable[[PreparationSettings, Sources, dict[str, Any], int], Iterator[Encoded]]
"""gives the blocks of sources, for a request, from a number on"""


def encode_sources(
    settings: PreparationSettings, sources: Sources, request: dict[str, Any], num_done: int
) -> Iterator[Encoded]:
    """Yield the blocks of sources from number `num_done` on, encoded by all cores of this machine."""
    workers = settings.num_workers or num_cores()
    jobs = _jobs(settings, sources, request["tokenizer"], num_done)
    yield from map_in_order(Encoder(settings), jobs, workers, lambda job: len(job.block.content))


def write_store(
    settings: PreparationSettings, encode: Encode = encode_sources
) -> tuple[dict[str, Any], bool]:
    """Write the token store that is asked for; return its manifest, and whether it lay there already.

    Raises `UserError` for missing or empty files, too many unusable records, or anything else at `out`.
    """
    weights = settings.weights or (1.0,) * len(settings.data)
    named = zip(settings.data, weights, strict=True)
    sources = [(source, weight) for name, weight in named for source in find_sources([name])]
    states = begin_reading([source for source, _ in sources], settings)
    tokenizer = Tokenizer.load(settings.tokenizer)
    described = [describe_source(source) for source, _ in sources]
    request = _request(settings, tokenizer, described, [weight for _, weight in sources])
    is_store = all((Path(settings.out) / name).is_file() for name in ("manifest.json", "rejects.jsonl"))
    if is_store and not settings.overwrite:
        return _finished(settings.out, request), True
    with resumable_folder(settings.out, overwrite=is_store) as folder:
        # A preparation may have been killed between its last file and the renaming of the folder.
        if not ((folder / "manifest.json").is_file() and read_notes(folder)["request"] == request):
            output = _Output(settings, tokenizer, _Journal(folder, request, [path for path, _ in sources]))
            blocks = partial(encode, settings, sources, request)
            _write(output, blocks, {"sources": described, "request": request})
        check_unchanged(states)
        (folder / JOURNAL).unlink(missing_ok=True)
        return read_notes(folder), False


def _request(
    settings: PreparationSettings, tokenizer: Tokenizer, sources: list[dict[str, Any]], weights: list[float]
) -> dict[str, Any]:
    """Return all that decides the bytes of the store."""
    given = json.loads(json.dumps(asdict(settings)))
    return {key: value for key, value in given.items() if key not in UNDECIDING} | {
        "weights": weights,
        "tokenizer": tokenizer.fingerprint,
        "sources": [source["sha256"] for source in sources],
        "file_endings": [form_of(source["path"]) for source in sources],
    }


def _finished(out: str, request: dict[str, Any]) -> dict[str, Any]:
    manifest = read_notes(out)
    former = {"file_endings": request["file_endings"]} | manifest["request"]  # older stores do not tell
    if differing := [key for key in request if request[key] != former.get(key)]:
        fault = f"{out} was prepared with other {', '.join(differing)}"
        raise UserError(f"{fault}; choose another --out, or --overwrite it")
    for store in manifest["stores"]:
        TokenStore(Path(out) / store)  # raises where it is damaged
    return manifest


def read_notes(path: str | Path) -> dict[str, Any]:
    """Return the manifest of a store, all notes of the preparation in it; raises `UserError`."""
    file = Path(path) / "manifest.json"
    manifest = read_values(NOTES, read_manifest(path), file, ADVICE)
    if unknown := manifest["marks"].keys() - vars(Marks()).keys():
        raise UserError(f"{file} is damaged (marks: unknown key {min(unknown)}); {ADVICE}")
    return manifest


class _Journal:
    """Says how far a preparation has come; one that is damaged, or of another request, is void."""

    def __init__(self, folder: Path, request: dict[str, Any], sources: list[str]) -> None:
        self.folder, self.path, self.sources = folder, folder / JOURNAL, sources
        self._request, self.due = request, monotonic() + JOURNAL_EVERY_SECONDS
        self.position: dict[str, Any] = {}
        try:
            content, digest = self.path.read_text(encoding="utf-8").rsplit("\n", 1)
            if digest == _digest(content) and (written := json.loads(content))["request"] == request:
                self.position = dict(written["done"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            pass  # nothing was done yet
        if not self.position:
            shutil.rmtree(folder / STORES[1], ignore_errors=True)
            for file in folder.iterdir():
                if file.is_file() and file.name != LOCK:
                    file.unlink()

    def write(self, position: dict[str, Any]) -> None:
        content = json.dumps({"request": self._request, "done": position})
        write_text(self.path, f"{content}\n{_digest(content)}")
        self.due = monotonic() + JOURNAL_EVERY_SECONDS


def _digest(content: str) -> str:
    return blake2b(content.encode(), digest_size=8).hexdigest()


def _write(output: "_Output", blocks_from: Callable[[int], Iterator[Encoded]], notes: dict[str, Any]) -> None:
    """Append what the journal does not hold yet, then write the manifests."""
    total_bytes = sum(size_of(source["path"]) for source in notes["sources"])
    with closing(output):
        with reporting(total_bytes, "preparing") as report:
            for encoded in blocks_from(output.num_blocks):
                output.append(encoded)
                report(encoded.account[0], encoded.size)
        output.finish(notes)


def _jobs(settings: PreparationSettings, sources: Sources, fingerprint: str, num_done: int) -> Iterator[Job]:
    """Yield the blocks that are to be encoded; of those done before, only the format is looked at."""
    number, columns = 0, read_columns(settings.columns)
    for source, weight in sources:
        chat_format = settings.format
        for block in read_blocks(source, settings.text_rules):
            if settings.kind != "pretrain" and chat_format is None:  # the first record tells that has one
                records = (rename(each.value, columns) for each in records_of(block) if each.value)
                chat_format = next(filter(None, map(format_of, records)), None)
            if number >= num_done:
                yield Job(block, weight, chat_format, fingerprint)
            number += 1


class _Output:
    """The stores being written, the list of rejects, and the counts for the manifest."""

    def __init__(self, settings: PreparationSettings, tokenizer: Tokenizer, journal: _Journal) -> None:
        position = journal.position or {"blocks": 0, "listing": 0, "account": Rejects().account()}
        self._journal = journal
        self.num_blocks: int = position["blocks"]
        told = position.get("told") or [[0, []] for _ in journal.sources]  # which may be named otherwise now
        self._told = dict(zip(dict.fromkeys(journal.sources), told, strict=False))  # documents, unread keys
        self._marks = Marks()
        self._marks.add(**position.get("marks", vars(Marks())))
        self._named, self._columns = read_columns(settings.columns), {*position.get("columns", ())}
        self._num_bytes = np.array(position.get("bytes", [[0, 0], [0, 0]]))
        self._listing = open(journal.folder / "rejects.jsonl", "ab")  # noqa: SIM115
        self._listing.truncate(position["listing"])
        self._listing.seek(0, os.SEEK_END)  # a file opened to append keeps its old place
        self._rejects = Rejects(settings.max_reject_fraction)
        self._rejects.merge(*position["account"])
        places = position.get("stores", [None, None])
        names = STORES if settings.validation_fraction else STORES[:1]
        stores = ((journal.folder / name, place) for name, place in zip(names, places, strict=False))
        self._writers = [StoreWriter(store, settings.kind, tokenizer, place) for store, place in stores]

    def append(self, encoded: Encoded) -> None:
        """Add a block's documents and rejects."""
        told = self._told[encoded.source]
        for writer, part in zip(self._writers, encoded.parts, strict=False):
            if part is not None:
                writer.append(part)
                told[0] += len(part.lengths)
        told[1] = sorted({*told[1], *encoded.unread})[:MOST_KEYS]
        self._columns.update(encoded.columns)
        self._num_bytes += encoded.num_bytes
        self._rejects.merge(*encoded.account)
        self._marks.add(**vars(encoded.marks))
        self._listing.write(encoded.rejects.encode())
        self.num_blocks += 1
        if monotonic() >= self._journal.due:
            self._journal.write(self._position())

    def _position(self) -> dict[str, Any]:
        flush_written(self._listing)
        return {
            "blocks": self.num_blocks,
            "told": [*self._told.values()],
            "columns": sorted(self._columns),
            "bytes": self._num_bytes.tolist(),
            "listing": self._listing.tell(),
            "account": self._rejects.account(),
            "marks": vars(self._marks),
            "stores": [writer.position() for writer in self._writers],
        }

    def finish(self, notes: dict[str, Any]) -> None:
        """Write the manifests, that of `out` last; raises `UserError` if a store is empty."""
        self._rejects.check()
        self._journal.write(self._position())
        records, reasons, *_ = self._rejects.account()
        for source in notes["sources"]:
            source["documents"], source["unread_keys"] = self._told[source["path"]]
        counts = {"records": records, "rejects": reasons, "marks": vars(self._marks)}
        counts["absent_columns"] = sorted({*self._named.values()} - self._columns)
        counts["stores"] = list(STORES[: len(self._writers)])
        for place in reversed(range(len(self._writers))):
            if not self._writers[place].position()["shards"]:
                raise UserError("a store would hold no document; change validation_fraction or weights")
            num_bytes, target_bytes = self._num_bytes[place].tolist()
            sizes = {"bytes": num_bytes, "target_bytes": target_bytes}
            self._writers[place].finish(counts | sizes | notes)

    def close(self) -> None:
        """Close all files."""
        for file in (*self._writers, self._listing):
            file.close()
