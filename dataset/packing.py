"""Which documents share a row, and in which order rows come: pure functions of lengths, seed and epoch.

A row is a series of pieces (document, begin, end), 12 bytes each; `dataset/batches.py` fills in the tokens.
"""

from array import array
from dataclasses import dataclass

import numpy as np

AT_ONCE = 2**16  # documents that are cut at a time


@dataclass(frozen=True)
class RowPlan:
    """The rows of one epoch in order; `plan[i]` are the pieces of row `i`."""

    pieces: np.ndarray
    """(P, 3) int32: document, index of its first token, index after its last"""
    offsets: np.ndarray
    """(R + 1,) int64: row i holds pieces[offsets[i]:offsets[i + 1]]"""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the pieces (p, 3) of a row."""
        return self.pieces[self.offsets[row] : self.offsets[row + 1]]

    def sum_rows(self, values: np.ndarray) -> np.ndarray:
        """Return for every row the sum of `values` (P,) over its pieces."""
        return np.add.reduceat(values, self.offsets[:-1], dtype=values.dtype)

    @property
    def row_tokens(self) -> np.ndarray:
        """Return the number of tokens (R,) of every row."""
        return self.sum_rows(self.pieces[:, 2] - self.pieces[:, 1])


def best_fit(lengths: np.ndarray, capacity: int, seed: int, epoch: int) -> RowPlan:
    """Fill rows by best-fit-decreasing (Johnson et al. 1974): the longest first, each into the fullest row.

    A document that fits into a row stays whole; a longer one is cut into full rows and a rest (Ding et al.
    2024, arXiv 2404.10830). Pieces of one length are shuffled, so that epochs differ in rows, not in number.
    """
    random = np.random.default_rng((seed, epoch))
    pieces = _cut_at_rows(lengths, capacity)
    _reorder(pieces, random.permutation(len(pieces)))
    _reorder(pieces, np.argsort(pieces[:, 1] - pieces[:, 2], kind="stable"))
    row_of_piece, num_rows = _fullest_rows(pieces[:, 2] - pieces[:, 1], capacity)
    return _rows_at(pieces, row_of_piece, np.argsort(random.permutation(num_rows)))


def _fullest_rows(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Put each size (P,) into the fullest row that takes it; return its row (P,) and the number of rows."""
    row_of_piece, num_rows = array("i"), 0
    rows_by_space = [array("i") for _ in range(capacity + 1)]
    spaces = 0  # as bits: bit s is set where rows_by_space[s] holds a row
    for size in memoryview(sizes):
        # The lowest set bit at or above `size` is the least space that suffices; if none is, a row begins.
        enough = spaces >> size
        if enough:
            space = size + (enough & -enough).bit_length() - 1
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                spaces ^= 1 << space
        else:
            space, row, num_rows = capacity, num_rows, num_rows + 1
        # The row now has less space.
        row_of_piece.append(row)
        rows_by_space[space - size].append(row)
        spaces |= 1 << (space - size)
    return np.frombuffer(row_of_piece, np.int32), num_rows


def split_stream(lengths: np.ndarray, capacity: int, seed: int, epoch: int) -> RowPlan:
    """Cut the shuffled documents, one after the other, into rows of `capacity` tokens.

        stream      0 0 0 0 0 0 1 1 1 2 2 2      cuts at the ends of documents and of rows (here of 4 tokens)
        pieces      0 0 0 0|0 0|1 1|1|2 2 2

    The last row may be short. Were it one token, it would be left out: no token predicts it.
    """
    random = np.random.default_rng((seed, epoch))
    documents = random.permutation(np.flatnonzero(lengths).astype(np.int32))
    sizes = lengths[documents]
    offsets = np.cumsum(sizes, dtype=np.int64)
    is_one_too_many = offsets[-1] % capacity == 1
    offsets = ((offsets - sizes) % capacity).astype(np.int32)
    sizes[-1] -= is_one_too_many
    pieces = _cut(documents, sizes, offsets, capacity)
    del documents, sizes, offsets
    # A piece stands in the row in which it ends.
    row_of_piece = (np.cumsum(pieces[:, 2] - pieces[:, 1], dtype=np.int64) - 1) // capacity
    row_of_piece = row_of_piece.astype(np.int32)
    return _rows_at(pieces, row_of_piece, random.permutation(row_of_piece[-1] + 1))


def one_per_row(lengths: np.ndarray, capacity: int, seed: int, epoch: int) -> RowPlan:
    """Give every document a row of its own, or several if it is longer than one."""
    pieces = _cut_at_rows(lengths, capacity)
    random = np.random.default_rng((seed, epoch))
    return _rows_at(pieces, np.arange(len(pieces), dtype=np.int32), random.permutation(len(pieces)))


def _cut_at_rows(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Cut documents into pieces (P, 3) of `capacity` tokens and a rest, left out where it is one token."""
    documents, sizes = np.arange(len(lengths), dtype=np.int32), lengths - (lengths % capacity == 1)
    return _cut(documents, sizes, np.zeros(len(lengths), np.int8), capacity)


def _cut(documents: np.ndarray, sizes: np.ndarray, offsets: np.ndarray, capacity: int) -> np.ndarray:
    """Cut documents (D,) of `sizes` tokens, each of which begins in a row at its offset, where rows end."""
    parts = []
    for first in range(0, len(documents), AT_ONCE):
        document, size, offset = (x[first : first + AT_ONCE] for x in (documents, sizes, offsets))
        counts = (offset + size - 1) // capacity + 1
        which, ends = np.repeat(np.arange(len(counts)), counts), np.cumsum(counts)
        begin = (np.arange(ends[-1]) - (ends - counts)[which]) * capacity - offset[which]
        cut = document[which], np.maximum(begin, 0), np.minimum(begin + capacity, size[which])
        parts.append(np.stack(cut, axis=1).astype(np.int32))
    return np.concatenate(parts)


def _rows_at(pieces: np.ndarray, row_of_piece: np.ndarray, place_of_row: np.ndarray) -> RowPlan:
    """Return rows sorted by their place (R,) in the epoch; pieces keep their order within a row."""
    place_of_piece = np.take(place_of_row.astype(np.int32), row_of_piece, out=row_of_piece, mode="clip")
    offsets = np.concatenate(([0], np.cumsum(np.bincount(place_of_piece))))
    _reorder(pieces, np.argsort(place_of_piece, kind="stable"))
    return RowPlan(pieces, offsets)


def _reorder(pieces: np.ndarray, order: np.ndarray) -> None:
    """Put pieces into another order column by column: a second copy would take most of the memory."""
    for column in pieces.T:
        column[:] = column[order]
