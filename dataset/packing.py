"""Which documents share a row, and in which order rows come: pure functions of lengths, seed and epoch.

A row is a series of pieces (document, begin, end); `dataset/batches.py` fills in the tokens.
"""

from array import array
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RowPlan:
    """The rows of one epoch in order; `plan[i]` are the pieces of row `i`."""

    pieces: np.ndarray
    """(P, 3) int64: document, index of its first token, index after its last"""
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
        return np.add.reduceat(values, self.offsets[:-1])

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
    pieces = random.permutation(_cut(lengths, capacity))
    pieces = pieces[np.argsort(pieces[:, 1] - pieces[:, 2], kind="stable")]
    row_of_piece, num_rows = _fullest_rows(pieces[:, 2] - pieces[:, 1], capacity)
    return _rows_at(pieces, row_of_piece, np.argsort(random.permutation(num_rows)))


def _fullest_rows(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Put each size (P,) into the fullest row that takes it; return its row (P,) and the number of rows.

    Pieces may be many millions, so no Python object is kept for one.
    """
    row_of_piece, num_rows = array("q"), 0
    rows_by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
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
    return np.frombuffer(row_of_piece, np.int64), num_rows


def split_stream(lengths: np.ndarray, capacity: int, seed: int, epoch: int) -> RowPlan:
    """Cut the shuffled documents, one after the other, into rows of `capacity` tokens.

        stream      0 0 0 0 0 0 1 1 1 2 2 2      cuts at the ends of documents and of rows (here of 4 tokens)
        pieces      0 0 0 0|0 0|1 1|1|2 2 2

    The last row may be short. Were it one token, it would be left out: no token predicts it.
    """
    random = np.random.default_rng((seed, epoch))
    documents = random.permutation(np.flatnonzero(lengths))
    ends = np.cumsum(lengths[documents])
    total = int(ends[-1])
    total -= total % capacity == 1

    # A piece begins where the one before it ends, in the document that has not ended by then.
    cuts = np.union1d(np.minimum(ends, total), np.arange(capacity, total, capacity))
    begins = np.concatenate(([0], cuts[:-1]))
    which = np.searchsorted(ends, begins, side="right")
    document_begins = ends[which] - lengths[documents[which]]
    pieces = np.stack((documents[which], begins - document_begins, cuts - document_begins), axis=1)
    return _rows_at(pieces, begins // capacity, random.permutation(-(-total // capacity)))


def one_per_row(lengths: np.ndarray, capacity: int, seed: int, epoch: int) -> RowPlan:
    """Give every document a row of its own, or several if it is longer than one."""
    pieces = _cut(lengths, capacity)
    random = np.random.default_rng((seed, epoch))
    return _rows_at(pieces, np.arange(len(pieces)), random.permutation(len(pieces)))


def _cut(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Cut documents into pieces (P, 3) of `capacity` tokens and a rest, left out where it is one token.

    The k-th piece of a document begins at token k * `capacity`, where k is the number of the piece among all
    pieces less the number of the document's first piece.
    """
    documents = np.flatnonzero(lengths)
    counts = (lengths[documents] - 2) // capacity + 1  # (n - 1) / capacity, rounded up
    which = np.repeat(documents, counts)
    begins = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * capacity
    return np.stack((which, begins, np.minimum(begins + capacity, lengths[which])), axis=1)


def _rows_at(pieces: np.ndarray, row_of_piece: np.ndarray, place_of_row: np.ndarray) -> RowPlan:
    """Return rows sorted by their place (R,) in the epoch; pieces keep their order within a row."""
    place_of_piece = place_of_row[row_of_piece]
    order = np.argsort(place_of_piece, kind="stable")
    return RowPlan(pieces[order], np.concatenate(([0], np.cumsum(np.bincount(place_of_piece)))))
