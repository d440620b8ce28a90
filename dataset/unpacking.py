"""The bytes in a file, a piece at a time, out of gzip or zstd where its name says so."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from model.errors import UserError

COMPRESSIONS = (".gz", ".zst")
CHUNK_BYTES = 2**20
PACKED_BYTES = 2**10  # what is unpacked at a time: so much may be lost before a damaged place
BROKEN_OFF = "compressed data"  # begins what is said of a file that cannot be read to its end


def check_whole(place: str, fault: str, max_reject_fraction: float) -> None:
    """Raise `UserError` for the fault of a file that breaks off, unless everything may be lost."""
    if fault.startswith(BROKEN_OFF) and max_reject_fraction < 1:
        raise UserError(
            f"{place}: {fault}, and how much is lost cannot be known; get the file anew, or take what can "
            "be read with --max_reject_fraction 1"
        )


LARGEST_WINDOW = 2**31  # of `zstd --long=31`


class BrokenOffError(ValueError):
    """Says why a compressed file cannot be read further."""


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a file to be read; raises `UserError` where the system cannot, now or later."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_chunks(path: str) -> Iterator[bytes]:
    """Yield what is in a file, unpacked; raises `BrokenOffError` where that is damaged."""
    with opened(path) as file:
        yield from _unpacked(file) if path.endswith(COMPRESSIONS) else _chunks(file, CHUNK_BYTES)


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    return iter(lambda: file.read(size), b"")


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    """Yield what is in a gzip or zstd file: streams one after the other, each perhaps padded with zeros."""
    start, fault = _unpacker(file.name)
    unpacker = start()
    for data in _chunks(file, PACKED_BYTES):
        while data := data.lstrip(b"\0") if unpacker.eof else data:
            unpacker = start() if unpacker.eof else unpacker
            try:
                yield unpacker.decompress(data)
            except fault:
                raise BrokenOffError(f"{BROKEN_OFF} is damaged") from None
            data = unpacker.unused_data
    if not unpacker.eof:
        raise BrokenOffError(f"{BROKEN_OFF} ends early")


def _unpacker(name: str) -> tuple[Callable[[], Any], type[Exception]]:
    if name.endswith(".gz"):
        return lambda: zlib.decompressobj(wbits=31), zlib.error
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj, zstandard.ZstdError
