"""Sources that other machines encode: the blocks of each in a file, until one store is made of all.

    .out.shares/DIGEST/     one folder for each source, named by all that decides its blocks
        blocks              frames of a block each, `Encoded`; an empty frame ends them
        .blocks.partial     the same while it is written: what was killed goes on behind its last whole frame
        failed.txt          what a task said that could not go on

A frame is the length of its content in 8 bytes, their digest in 8, and the content: arrays as numpy has them.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dataset.encoding import Encoded, PreparationSettings
from dataset.preparation import Sources, encode_sources
from dataset.printing import printable, reporting
from dataset.sources import describe_source, size_of
from dataset.text_files import Marks
from dataset.token_store import Part
from dataset.tokenizer import Tokenizer
from model.errors import UnfinishedError, UserError
from model.files import beside, flush, flush_written, locked, own, write_text

HEAD_BYTES = 16
FAILED = "failed.txt"


class Share(NamedTuple):
    """A source, and where its blocks go."""

    source: str
    weight: float
    tokenizer: str
    """fingerprint"""
    folder: Path
    state: str
    """what tells the content of the source from another"""

    @property
    def blocks(self) -> Path:
        """Return the file of all its blocks, which is there when none is missing."""
        return self.folder / "blocks"


def shares_of(folder: Path, sources: Sources, request: dict[str, Any]) -> list[Share]:
    """Return the shares of sources in `folder`: another of each for each state, and each request."""
    of_all = {key: request[key] for key in request.keys() - {"sources", "weights", "file_endings"}}
    shares = []
    for (source, weight), state in zip(sources, request["sources"], strict=True):
        decides = json.dumps([of_all, source, weight, state], sort_keys=True)
        name = blake2b(decides.encode(), digest_size=16).hexdigest()
        shares.append(Share(source, weight, request["tokenizer"], folder / name, state))
    return shares


def encode_shares(settings: PreparationSettings, shares: Sequence[Share]) -> None:
    """Encode what is not encoded yet, one source after the other; what stops one is left beside it."""
    for share in shares:
        share.folder.mkdir(parents=True, exist_ok=True)
        (share.folder / FAILED).unlink(missing_ok=True)
        try:
            encode_share(settings, share)
        except UserError as error:
            write_text(share.folder / FAILED, printable(f"{error}\n", keep="\n"))


def encode_share(settings: PreparationSettings, share: Share) -> None:
    """Encode a source to its end, or what is missing of it; raises `UserError` as a preparation does.

    One process at a time is at work on it: another one waits, and finds what it left.
    """
    with locked(share.folder, waits=True):
        if share.blocks.exists():
            return
        if Tokenizer.load(settings.tokenizer).fingerprint != share.tokenizer:
            raise UserError(f"{settings.tokenizer} changed meanwhile; run the same command again")
        partial = beside(share.blocks, "partial")
        _check_state(share, partial)
        with open(own(partial), "ab+") as file:
            _write_blocks(file, settings, share)
        _check_state(share, partial)
        os.replace(partial, share.blocks)
        flush(share.folder)


def _check_state(share: Share, partial: Path) -> None:
    """Raise `UserError` for a source that is no longer what the share is named after, whose blocks go."""
    if describe_source(share.source)["sha256"] != share.state:
        partial.unlink(missing_ok=True)
        raise UserError(f"{share.source} changed meanwhile; run the same command again once it stays")


def _write_blocks(file: BinaryIO, settings: PreparationSettings, share: Share) -> None:
    # What a kill left of a frame is cut off; an empty one, behind which nothing is missing, is written anew.
    file.seek(0)
    whole = [len(content) for content in _frames(file) if content]
    file.truncate(sum(whole) + HEAD_BYTES * len(whole))
    file.seek(0, os.SEEK_END)
    sources = [(share.source, share.weight)]
    blocks = encode_sources(settings, sources, {"tokenizer": share.tokenizer}, len(whole))
    with closing(blocks), reporting(size_of(share.source), share.source) as report:
        for encoded in blocks:
            _write_frame(file, _packed(encoded))
            report(encoded.account[0], encoded.size)
    _write_frame(file, b"")
    flush_written(file)


def read_share(share: Share) -> Iterator[Encoded]:
    """Yield the blocks of a share that is whole; if not, take it away and raise `UnfinishedError`."""
    with open(share.blocks, "rb") as file:
        for content in _frames(file):
            if not content:
                return
            yield _unpacked(content)
    share.blocks.unlink()
    raise UnfinishedError(f"{share.blocks} was damaged and is gone; the same command makes it again")


def _frames(file: BinaryIO) -> Iterator[bytes]:
    """Yield what is in the frames from here on, up to one that is not whole."""
    size = os.fstat(file.fileno()).st_size
    while len(head := file.read(HEAD_BYTES)) == HEAD_BYTES:
        num_bytes = int.from_bytes(head[:8], "little")
        if num_bytes > size or head != _head(content := file.read(num_bytes)):
            return
        yield content


def _write_frame(file: BinaryIO, content: bytes) -> None:
    file.write(_head(content) + content)


def _head(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + blake2b(content, digest_size=8).digest()


def _packed(encoded: Encoded) -> bytes:
    """Return a block as bytes: the arrays of its parts, and all else as JSON."""
    arrays = {
        f"{field}{place}": array
        for place, part in enumerate(encoded.parts)
        for field, array in (part._asdict() if part else {}).items()
        if array is not None
    }
    said = encoded._asdict() | {"parts": 0, "num_bytes": encoded.num_bytes.tolist()}
    said["marks"] = vars(encoded.marks)
    buffer = BytesIO()
    np.savez(buffer, said=np.frombuffer(json.dumps(said).encode(), np.uint8), **arrays)
    return buffer.getvalue()


def _unpacked(content: bytes) -> Encoded:
    with np.load(BytesIO(content)) as arrays:
        said = json.loads(arrays["said"].tobytes())
        parts = [[arrays.get(f"{field}{place}") for field in Part._fields] for place in range(2)]
    marks = Marks()
    marks.add(**said["marks"])
    said["parts"] = tuple(Part(*part) if part[0] is not None else None for part in parts)
    return Encoded(**said | {"num_bytes": np.array(said["num_bytes"]), "marks": marks})
