"""Tokenized documents on disk, memory-mapped: how they are laid out, written and opened.

    store/  ids.bin      uint16 or uint32, all documents one after the other
            codes.bin    uint8 per token: role, target and start bits (chat only)
            offsets.bin  int64, document i is ids[offsets[i]:offsets[i + 1]]
            manifest.json  rejects.jsonl  tokenizer/

The store knows nothing of masks and lengths: every training reads the same bytes. What goes in is decided by
`dataset/preparation.py`, what comes out as rows by `dataset/batches.py`.
"""

import json
from array import array
from collections.abc import Sequence
from functools import cached_property
from hashlib import file_digest, sha256
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any

import numpy as np

from dataset.conversation import ROLES, TARGET, Rendered
from dataset.settings import Kind
from dataset.tokenizer import Tokenizer
from model.errors import UserError

FORMAT_VERSION = 1


class TokenStore:
    """The documents of one folder; `store[i]` is a `Rendered` whose arrays lie in the file.

    store = TokenStore("data/sft")
    store.tokenizer.decode(store[0].ids)
    """

    def __init__(self, path: str | Path, tokenizer: Tokenizer | None = None) -> None:
        """Open a store; raises `UserError` if it is incomplete or was made with another tokenizer."""
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._check_sizes()
        expected = self.manifest["tokenizer"]["fingerprint"]
        if tokenizer is not None and tokenizer.fingerprint != expected:
            raise UserError(f"{path} was prepared with another tokenizer; prepare it again with this one")
        self.kind: Kind = self.manifest["kind"]
        self.num_tokens: int = self.manifest["tokens"]
        self.tokenizer_path = self.path / "tokenizer"
        self.offsets = np.fromfile(self.path / "offsets.bin", dtype=np.int64)
        self.lengths = np.diff(self.offsets)
        if self.offsets[-1] != self.num_tokens or (self.lengths <= 0).any():
            raise UserError(f"{self.path / 'offsets.bin'} is damaged; prepare the data again")
        self.ids = np.asarray(np.memmap(self.path / "ids.bin", dtype=self.manifest["dtype"], mode="r"))
        self.codes = (
            np.asarray(np.memmap(self.path / "codes.bin", np.uint8, "r")) if self.kind == "sft" else None
        )

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> Rendered:
        """Return document `index`; in text every token is a target."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        if self.codes is not None:
            return Rendered(self.ids[span], self.codes[span])
        return Rendered(
            self.ids[span], np.full(self.lengths[index], ROLES.index("assistant") | TARGET, dtype=np.uint8)
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that the store was made with."""
        return Tokenizer.load(self.tokenizer_path)

    def verify(self) -> None:
        """Read every file; raises `UserError` if one is not as it was written, the tokenizer included."""
        if self.tokenizer.fingerprint != self.manifest["tokenizer"]["fingerprint"]:
            raise UserError(
                f"{self.tokenizer_path} is not the tokenizer of {self.path}; prepare the data again"
            )
        for name, written in self.manifest["files"].items():
            with open(self.path / name, "rb") as file:
                if file_digest(file, "sha256").hexdigest() != written["sha256"]:
                    raise UserError(f"{self.path / name} is damaged; prepare the data again with --overwrite")

    def _check_sizes(self) -> None:
        for name, written in self.manifest["files"].items():
            file = self.path / name
            size = file.stat().st_size if file.is_file() else 0
            if size != written["bytes"]:
                raise UserError(
                    f"{file}: expected {written['bytes']} bytes, got {size}; prepare the data again"
                )


def open_stores(paths: Sequence[str | Path], tokenizer: Tokenizer | None = None) -> list[TokenStore]:
    """Open stores that one training reads together; raises `UserError` if kind or tokenizer differ."""
    stores = [TokenStore(path, tokenizer) for path in paths]
    for store in stores:
        store.verify()
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
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        if version == FORMAT_VERSION:
            _check_manifest(manifest)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged; prepare the data again") from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, expected {FORMAT_VERSION}; prepare the data again"
        )
    return manifest


def _check_manifest(manifest: dict[str, Any]) -> None:
    """Raise `ValueError` or `KeyError` unless the values that opening a store relies on are there."""
    kind, dtype = manifest["kind"], np.dtype(manifest["dtype"])
    names = {"ids.bin", "offsets.bin"} | ({"codes.bin"} if kind == "sft" else set())
    sizes = {name: manifest["files"][name]["bytes"] for name in names}
    if kind not in ("pretrain", "sft") or set(manifest["files"]) != names:
        raise ValueError("files and kind of data do not agree")
    if sizes["ids.bin"] != manifest["tokens"] * dtype.itemsize or not manifest["tokenizer"]["fingerprint"]:
        raise ValueError("files and number of tokens do not agree")


class StoreWriter:
    """Appends documents to the files of a new store in `folder`."""

    def __init__(self, folder: Path, kind: Kind, tokenizer: Tokenizer) -> None:
        """Open the files."""
        self.folder, self.kind, self.tokenizer = folder, kind, tokenizer
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self.num_targets = 0
        self._lengths = array("q")
        self._ids = _HashedFile(folder / "ids.bin")
        self._codes = _HashedFile(folder / "codes.bin") if kind == "sft" else None

    def append(self, ids: Sequence[int] | np.ndarray, codes: np.ndarray | None = None) -> None:
        """Add one document; `codes` (n,) uint8 for chat."""
        self._ids.append(np.asarray(ids, dtype=self.dtype))
        self._lengths.append(len(ids))
        if self._codes is None:
            self.num_targets += len(ids) - 1
        else:
            self._codes.append(codes)
            self.num_targets += int(np.count_nonzero(codes & TARGET))

    def close(self) -> None:
        """Close the files without finishing the store."""
        for file in (self._ids, self._codes):
            if file:
                file.close()

    def finish(self, notes: dict[str, Any]) -> dict[str, Any]:
        """Write offsets, tokenizer and manifest; return the manifest, which holds `notes` too."""
        lengths = np.frombuffer(self._lengths, dtype=np.int64)
        offsets = _HashedFile(self.folder / "offsets.bin")
        offsets.append(np.concatenate(([0], np.cumsum(lengths))))
        self.tokenizer.save(self.folder / "tokenizer")
        files = [file for file in (self._ids, self._codes, offsets) if file]
        manifest = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "documents": len(lengths),
            "tokens": int(lengths.sum()),
            "targets": self.num_targets,
            "dtype": self.dtype.name,
            "lengths": _describe_lengths(lengths),
            "tokenizer": {"fingerprint": self.tokenizer.fingerprint, "vocab_size": self.tokenizer.vocab_size},
            "files": {file.path.name: file.finish() for file in files},
        } | notes
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (self.folder / "manifest.json").write_text(text, encoding="utf-8")
        return manifest


def _describe_lengths(lengths: np.ndarray) -> dict[str, float]:
    shares = {"min": 0, "median": 50, "p90": 90, "p99": 99, "max": 100}
    return {"mean": float(lengths.mean())} | {
        name: float(np.percentile(lengths, q)) for name, q in shares.items()
    }


class _HashedFile(BufferedWriter):
    """A binary file whose checksum is taken while it is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path, "wb"))
        self.path, self._hash = path, sha256()

    def append(self, values: np.ndarray) -> None:
        self.write(values.data)
        self._hash.update(values.data)

    def finish(self) -> dict[str, Any]:
        """Close the file and return its size in bytes and its checksum."""
        self.close()
        return {"bytes": self.path.stat().st_size, "sha256": self._hash.hexdigest()}
