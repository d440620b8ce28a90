"""Which documents share a row, and in which order rows come: pure functions of lengths, seed and epoch.

A row is a run of pieces (document, begin, end); tokens are `dataset/batches.py`'s.
"""

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


def pack_whole(lengths: np.ndarray, capacity: int, seed: int, epoch: int) -> RowPlan:
    """Fill rows with whole documents by best-fit-decreasing (Johnson et al. 1974); length 0 leaves one out.

    Each document, the longest first, goes into the fullest row that still takes it. Documents of one length
    are shuffled, so rows differ between epochs while their number stays.
    """
    documents = np.flatnonzero(lengths)
    pieces = np.stack((documents, np.zeros_like(documents), lengths[documents]), axis=1)
    return _best_fit(pieces, capacity, np.random.default_rng((seed, epoch)))


def pack_fragments(lengths: np.ndarray, capacity: int, seed: int, epoch: int) -> RowPlan:
    """Cut documents that are longer than a row into rows and a rest, and pack these by best-fit-decreasing.

    No other document is cut (Ding et al. 2024, arXiv 2404.10830). A rest of one token is left out.
    """
    pieces = _fragments(np.flatnonzero(lengths), lengths, capacity)
    return _best_fit(pieces, capacity, np.random.default_rng((seed, epoch)))


def _best_fit(pieces: np.ndarray, capacity: int, random: np.random.Generator) -> RowPlan:
    pieces = random.permutation(pieces)
    sizes = pieces[:, 2] - pieces[:, 1]
    pieces = pieces[np.argsort(-sizes, kind="stable")]
    rows: list[list[int]] = []
    rows_by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0  # bit s is set where rows_by_space[s] holds a row
    for piece, size in enumerate((pieces[:, 2] - pieces[:, 1]).tolist()):
        enough = spaces >> size
        if enough:
            space = size + (enough & -enough).bit_length() - 1
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                spaces ^= 1 << space
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(piece)
        rows_by_space[space - size].append(row)
        spaces |= 1 << (space - size)
    order = random.permutation(len(rows))
    return RowPlan(
        pieces[[piece for row in order for piece in rows[row]]], _offsets([len(rows[row]) for row in order])
    )


def split_stream(lengths: np.ndarray, capacity: int, seed: int, epoch: int) -> RowPlan:
    """Cut the shuffled documents, one after the other, into rows of `capacity` tokens.

    The last row may be short; it is left out where it would hold one token, which nothing predicts.
    """
    random = np.random.default_rng((seed, epoch))
    documents = random.permutation(np.flatnonzero(lengths))
    ends = np.cumsum(lengths[documents])
    total = int(ends[-1])
    total -= total % capacity == 1
    cuts = np.union1d(np.minimum(ends, total), np.arange(capacity, total, capacity))
    begins = np.concatenate(([0], cuts[:-1]))
    which = np.searchsorted(ends, begins, side="right")
    document_begins = ends[which] - lengths[documents[which]]
    pieces = np.stack((documents[which], begins - document_begins, cuts - document_begins), axis=1)
    row_of_piece = begins // capacity
    return _in_random_order(pieces, row_of_piece, random)


def one_per_row(lengths: np.ndarray, capacity: int, seed: int, epoch: int) -> RowPlan:
    """Give every document a row, or several where it is longer; a last one of one token is left out."""
    pieces = _fragments(np.flatnonzero(lengths), lengths, capacity)
    return _in_random_order(pieces, np.arange(len(pieces)), np.random.default_rng((seed, epoch)))


def _fragments(documents: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Return the pieces (P, 3) of at most `capacity` tokens, without last ones of one token."""
    counts = (lengths[documents] - 2) // capacity + 1
    which = np.repeat(documents, counts)
    begins = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * capacity
    return np.stack((which, begins, np.minimum(begins + capacity, lengths[which])), axis=1)


def _in_random_order(pieces: np.ndarray, row_of_piece: np.ndarray, random: np.random.Generator) -> RowPlan:
    counts = np.bincount(row_of_piece)
    place_of_row = random.permutation(len(counts))
    order = np.argsort(place_of_row[row_of_piece], kind="stable")
    return RowPlan(pieces[order], _offsets(counts[np.argsort(place_of_row)]))


def _offsets(counts: np.ndarray | list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
