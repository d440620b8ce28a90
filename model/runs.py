"""Rows whose documents stand in one piece: where these begin and end, and how far their tokens see.

By the one rule (`model/masks.py`) a token in no part sees its document up to the end of its block, or itself,
as far as it is near. A row has few documents and blocks: finding their ends is cheaper than comparing pairs.
"""

from typing import NamedTuple

import numpy as np

from model.masks import Layout


class Span(NamedTuple):
    """Tokens of a row that stand next to each other: a whole document, or padding."""

    row: int
    begin: int
    end: int
    is_padding: bool


def document_spans(layout: Layout) -> list[Span] | None:
    """Return the spans of all rows in order, or None if the tokens of a document are not all in one span.

    What lies outside of the squares of the spans is not visible:

        1 . . . .     documents 0 0 0 1 1
        1 1 . . .
        1 1 1 . .
        . . . 1 .
        . . . 1 1
    """
    documents = layout.document_ids.numpy()
    opens = _opens(documents)
    rows, begins = (places.tolist() for places in opens.nonzero())
    ends = [end or documents.shape[1] for end in (*begins[1:], 0)]  # where the next row begins, it is at 0
    names = documents[opens].tolist()
    whole = [name for name in zip(rows, names, strict=True) if name[1] >= 0]
    if len({*whole}) < len(whole):
        return None
    return [Span(*span, name < 0) for *span, name in zip(rows, begins, ends, names, strict=True)]


def last_seen(layout: Layout) -> np.ndarray:
    """Return the last place (B, T) in its row that each token sees: the end of its block, or itself."""
    blocks = layout.block_ids.numpy()
    ends = np.ones(blocks.shape, dtype=bool)
    ends[:, :-1] = (_opens(layout.document_ids.numpy()) | _opens(blocks) | (blocks < 0))[:, 1:]
    places = np.arange(
        blocks.shape[1], dtype=np.min_scalar_type(-blocks.shape[1])
    )  # compared faster if short
    return np.minimum.accumulate(np.where(ends, places, places[-1])[:, ::-1], axis=1)[:, ::-1]


def _opens(ids: np.ndarray) -> np.ndarray:
    """Return True (B, T) where another id begins in a row."""
    opens = np.ones(ids.shape, dtype=bool)
    np.not_equal(ids[:, 1:], ids[:, :-1], out=opens[:, 1:])
    return opens


def sights(layout: Layout, length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the first and last place that tokens see without bounds, both (B, length), of rows padded to it.

    None where documents are torn, have parts, or do not count from 0 or upwards. Padding sees itself:

        documents 0 0 0 0 1 1 -       first 0 0 0 0 4 4 6
        blocks    0 0 - - - - -       last  1 1 2 3 4 5 6
    """
    if layout.part_ids is not None:
        return None
    documents, positions, places = layout.document_ids.numpy(), layout.position_ids.numpy(), np.arange(length)
    own, real, opens = np.s_[:, : documents.shape[1]], documents >= 0, _opens(documents)
    first, last = (np.full((len(documents), length), places) for _ in range(2))
    begins = np.maximum.accumulate(np.where(opens, places[own[1]], 0), axis=1)
    np.copyto(first[own], begins, where=real)
    last[own] = last_seen(layout)
    highest = np.maximum.accumulate(documents, axis=1)  # a document that comes again is not above it
    is_whole = (documents[:, 1:] > highest[:, :-1])[(opens & real)[:, 1:]].all()
    return (first, last) if is_whole and ((places - first)[own] == positions)[real].all() else None
