"""Tokenized documents on disk: how they are laid out, written, opened and read.

    store/  ids-00000.bin      uint16 or uint32, the documents of a shard one after the other
            codes-00000.bin    uint8 per token: role, target, start, untrained and passage bits (chat only)
            lengths-00000.bin  uint32 tokens of each document
            …  manifest.json  rejects.jsonl  tokenizer/

The store knows nothing of masks and lengths: every training reads the same bytes. What goes in is decided by
`dataset/preparation.py`, what comes out as rows by `dataset/batches.py`.
"""

import os
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from hashlib import file_digest
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset.batch_settings import Kind
from dataset.conversation import PASSAGE, ROLES, TARGET, Rendered, are_trained
from dataset.tokenizer import Tokenizer
from model.errors import UserError
from model.files import flush_written, read_object, write_json
from model.typed_json import read_values

FORMAT_VERSION = 2
ADVICE = "prepare the data again, with --overwrite"
READ_TOKENS = 2**22
STRIDE = 64  # documents between two whose beginnings are kept
SHARD_TOKENS = 2**27  # a shard ends with the part that reaches this
SHARES = {"min": 0, "median": 50, "p90": 90, "p99": 99, "max": 100}
"""percentiles of the lengths of documents that a manifest tells"""
OF_CHATS = ("ids", "codes", "lengths")
FIELDS = {"pretrain": ("ids", "lengths"), "sft": OF_CHATS, "preference": OF_CHATS}
ITEMS = {"codes": "uint8", "lengths": "uint32"}
"""types of what files hold; ids are of the dtype that the manifest tells"""
SIDES = {"pretrain": 1, "sft": 1, "preference": 2}
"""documents that belong together: of preference data a good answer and a bad one, in this order"""
SHARD, FILE = {"documents": int, "tokens": int}, {"bytes": int, "sha256": str}
MANIFEST = {
    **{"kind": str, "dtype": str, "documents": int, "tokens": int, "targets": int},
    "tokenizer": {"fingerprint": str},
    "shards": list[SHARD],
    "files": dict[str, FILE],
}
"""what opening a store relies on"""


class Part(NamedTuple):
    """Consecutive documents of a store."""

    ids: np.ndarray
    """(n,) of all documents"""
    codes: np.ndarray | None
    """(n,) uint8 as in `Rendered`; None for text, in which every token is a target"""
    lengths: np.ndarray
    """(D,) uint32 tokens of each document"""


class TokenStore:
    """The documents of one folder; `store[i]` is a `Rendered` that is read when it is asked for.

    store = TokenStore("data/sft")
    store.tokenizer.decode(store[0].ids)

    Files stay open, so a store that is deleted or replaced is read on. One that is cut is a `UserError`; a
    page of it that were memory-mapped would end the process.
    """

    def __init__(self, path: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Open a store and read all of it once.

        Raises `UserError` if it is not as it was written, or was made with another tokenizer.
        """
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        expected = self.manifest["tokenizer"]["fingerprint"]
        if tokenizer is not None and tokenizer.fingerprint != expected:
            raise UserError(f"{path} was prepared with another tokenizer; prepare it again with this one")
        self.kind: Kind = self.manifest["kind"]
        self.num_tokens: int = self.manifest["tokens"]
        self.tokenizer_path = self.path / "tokenizer"
        self.tokenizer = Tokenizer.load(self.tokenizer_path)
        """the tokenizer that the store was made with"""
        if self.tokenizer.fingerprint != expected:
            raise UserError(f"{self.tokenizer_path} is not the tokenizer of {self.path}; {ADVICE}")
        self._files = {name: self._open(name) for name in self.manifest["files"]}
        shards = self.manifest["shards"]
        lengths = [self._read("lengths", n, 0, shard["documents"]) for n, shard in enumerate(shards)]
        self._first_of_shard = [0, *accumulate(map(len, lengths))]
        self.lengths = np.concatenate(lengths)
        strides = (np.add.reduceat(each, range(0, len(each), STRIDE), dtype=np.int64) for each in lengths)
        self._begins = [np.cumsum(np.append(0, each)) for each in strides]
        sizes = [shard["tokens"] for shard in shards]
        if not self.lengths.all() or [begins[-1] for begins in self._begins] != sizes:
            raise UserError(f"the lengths in {self.path} are damaged; {ADVICE}")
        self.highest_id = max(int(part.ids.max()) for part in self.parts(READ_TOKENS))  # reading checks all

    def _open(self, name: str) -> int:
        """Return the descriptor of a file that is as it was written."""
        path, written = self.path / name, self.manifest["files"][name]
        if (size := path.stat().st_size if path.is_file() else 0) != written["bytes"]:
            raise UserError(f"{path}: expected {written['bytes']} bytes, got {size}; {ADVICE}")
        descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        with open(descriptor, "rb", closefd=False) as file:
            if file_digest(file, "sha256").hexdigest() != written["sha256"]:
                raise UserError(f"{path} is damaged; {ADVICE}")
        return descriptor

    def _read(self, field: str, shard: int, first: int, last: int) -> np.ndarray:
        """Return the items `first` to `last` of a file."""
        dtype = np.dtype(ITEMS.get(field, self.manifest["dtype"]))
        name, size = shard_file(field, shard), (last - first) * dtype.itemsize
        content = os.pread(self._files[name], size, first * dtype.itemsize)
        if len(content) < size:
            raise UserError(f"{self.path / name} became shorter while it was read; {ADVICE}")
        return np.frombuffer(content, dtype)

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> Rendered:
        """Return document `index`; in text every token is a target."""
        shard = bisect_right(self._first_of_shard, index) - 1
        first = index - self._first_of_shard[shard]
        part = self._slice(shard, first, first + 1)
        if part.codes is not None:
            return Rendered(part.ids, part.codes)
        return Rendered(part.ids, np.full(len(part.ids), ROLES.index("assistant") | TARGET, dtype=np.uint8))

    def parts(self, max_tokens: int) -> Iterator[Part]:
        """Yield all documents in order, as many at a time as hold `max_tokens`, or one that is longer."""
        for shard in range(len(self._begins)):
            lengths, first = self._lengths_of(shard), 0
            while first < len(lengths):
                ends = np.cumsum(lengths[first : first + max_tokens], dtype=np.int64)
                last = first + max(1, int(np.searchsorted(ends, max_tokens, side="right")))
                yield self._slice(shard, first, last)
                first = last

    def _slice(self, shard: int, first: int, last: int) -> Part:
        """Return documents of a shard; raises `UserError` for tokens that no vocabulary or renderer knows."""
        # Where a document begins is known of every 64th; the lengths from there on tell the rest.
        lengths, known = self._lengths_of(shard), first - first % STRIDE
        begin = int(self._begins[shard][first // STRIDE]) + int(lengths[known:first].sum(dtype=np.int64))
        end = begin + int(lengths[first:last].sum(dtype=np.int64))
        ids = self._read("ids", shard, begin, end)
        codes = self._read("codes", shard, begin, end) if "codes" in FIELDS[self.kind] else None
        if ids.max() >= self.tokenizer.vocab_size:
            raise UserError(f"{self.path} holds an id that its tokenizer has not; {ADVICE}")
        if codes is not None and (codes & 15).max() >= len(ROLES):
            raise UserError(f"{self.path} holds a code of no role; {ADVICE}")
        if codes is not None and (codes & (TARGET | PASSAGE) == TARGET | PASSAGE).any():
            raise UserError(f"{self.path} holds a passage that is an answer; {ADVICE}")
        return Part(ids, codes, lengths[first:last])

    def _lengths_of(self, shard: int) -> np.ndarray:
        return self.lengths[self._first_of_shard[shard] : self._first_of_shard[shard + 1]]


def open_stores(paths: Sequence[str | Path], tokenizer: Tokenizer | None = None) -> list[TokenStore]:
    """Open stores that one training reads together; raises `UserError` if kind or tokenizer differ."""
    stores = [TokenStore(path, tokenizer) for path in paths]
    for store in stores[1:]:
        if store.kind != stores[0].kind:
            raise UserError(f"{store.path} holds {store.kind} data, {stores[0].path} {stores[0].kind} data")
        if store.manifest["tokenizer"] != stores[0].manifest["tokenizer"]:
            raise UserError(f"{store.path} and {stores[0].path} were prepared with different tokenizers")
    return stores


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Return the manifest of a store; raises `UserError` where there is none of our format."""
    file = Path(path) / "manifest.json"
    if not file.is_file():
        raise UserError(f"no token store in {path}: expected a folder that scripts.prepare_data wrote")
    manifest = read_object(file, ADVICE)
    if (version := manifest.get("format_version")) != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}, expected {FORMAT_VERSION}; {ADVICE}")
    if not _adds_up(read_values(MANIFEST, manifest, file, ADVICE)):
        raise UserError(f"{file} is damaged (its counts contradict each other); {ADVICE}")
    return manifest


def _adds_up(manifest: dict[str, Any]) -> bool:
    """Say whether the files and counts of a manifest are those of its shards, and none is empty."""
    kind, dtype, shards = manifest["kind"], manifest["dtype"], manifest["shards"]
    if kind not in FIELDS or dtype not in ("uint16", "uint32"):
        return False
    sizes = {
        shard_file(field, number): _num_bytes(field, shard, dtype)
        for number, shard in enumerate(shards)
        for field in FIELDS[kind]
    }
    totals = {key: sum(shard[key] for shard in shards) for key in ("documents", "tokens")}
    return (
        sizes == {name: file["bytes"] for name, file in manifest["files"].items()}
        and totals == {key: manifest[key] for key in totals}
        and all(shard[key] for shard in shards for key in totals)
        and not any(shard["documents"] % SIDES[kind] for shard in shards)
        and 0 not in (len(shards), manifest["targets"])
    )


def _num_bytes(field: str, shard: dict[str, int], dtype: str) -> int:
    """Return the bytes of a file of a shard, by the counts of the shard."""
    return np.dtype(ITEMS.get(field, dtype)).itemsize * shard["documents" if field == "lengths" else "tokens"]


def shard_file(field: str, shard: int) -> str:
    """Return the name of a file of a shard."""
    return f"{field}-{shard:05}.bin"


class StoreWriter:
    """Appends documents to the shards of a store in `folder`.

    `position()` says how far it has come; a writer that is given it goes on from there, whatever was written
    after it. So the bytes of a store do not depend on interruptions.
    """

    def __init__(
        self, folder: Path, kind: Kind, tokenizer: Tokenizer, position: dict[str, Any] | None = None
    ) -> None:
        """Start a store, or go on with one."""
        self.folder, self.kind, self.tokenizer = folder, kind, tokenizer
        self.dtype = np.dtype(tokenizer.typecode)
        position = position or {"shards": [], "targets": 0}
        self.num_targets: int = position["targets"]
        self._shards: list[dict[str, int]] = [dict(shard) for shard in position["shards"]]
        folder.mkdir(exist_ok=True)
        self._files = self._open() if self._shards else {}

    def append(self, part: Part) -> None:
        """Add documents."""
        if not self._shards or self._shards[-1]["tokens"] >= SHARD_TOKENS:
            self.close()
            self._shards.append({"documents": 0, "tokens": 0})
            self._files = self._open()
        for field, file in self._files.items():
            file.write(getattr(part, field).data)
        self._shards[-1]["documents"] += len(part.lengths)
        self._shards[-1]["tokens"] += len(part.ids)
        if part.codes is None:
            self.num_targets += len(part.ids) - len(part.lengths)  # all but the first of each text
        else:
            self.num_targets += int(np.count_nonzero(are_trained(part.codes)))

    def position(self) -> dict[str, Any]:
        """Return what has been written, and see to it that it stays written."""
        for file in self._files.values():
            flush_written(file)
        return {"shards": [dict(shard) for shard in self._shards], "targets": self.num_targets}

    def close(self) -> None:
        """Close the files without finishing the store."""
        for file in self._files.values():
            flush_written(file)
            file.close()
        self._files = {}

    def finish(self, notes: dict[str, Any]) -> None:
        """Write tokenizer and manifest, which holds `notes` too."""
        self.close()
        self.tokenizer.save(self.folder / "tokenizer")
        names = [shard_file(field, n) for n in range(len(self._shards)) for field in FIELDS[self.kind]]
        files = [self.folder / shard_file("lengths", shard) for shard in range(len(self._shards))]
        lengths = np.concatenate([np.fromfile(file, dtype=np.uint32) for file in files])
        shares = np.percentile(lengths, [*SHARES.values()]).tolist()
        manifest = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "documents": len(lengths),
            "tokens": int(lengths.sum(dtype=np.int64)),
            "targets": self.num_targets,
            "dtype": self.dtype.name,
            "lengths": {"mean": float(lengths.mean()), **dict(zip(SHARES, shares, strict=True))},
            "tokenizer": {"fingerprint": self.tokenizer.fingerprint, "vocab_size": self.tokenizer.vocab_size},
            "shards": self._shards,
            "files": {name: _checksum(self.folder / name) for name in names},
        } | notes
        write_json(self.folder / "manifest.json", manifest)

    def _open(self) -> dict[str, Any]:
        """Open the files of the last shard, cut to what its counts say."""
        files = {}
        for field in FIELDS[self.kind]:
            files[field] = open(self.folder / shard_file(field, len(self._shards) - 1), "ab")  # noqa: SIM115
            files[field].truncate(_num_bytes(field, self._shards[-1], self.dtype.name))
        return files


def _checksum(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}
