"""Rows whose documents stand in one piece: where these begin and end, and how far their tokens see.

By the one rule (`model/masks.py`) a token in no part sees its document up to the end of its block, or itself,
as far as it is near. A row has few documents and blocks: finding their ends is cheaper than comparing pairs.
"""

from itertools import groupby
from typing import NamedTuple

import numpy as np
from torch import Tensor

from model.masks import Layout
from model.strategies import CAUSAL, NO_PART


class Span(NamedTuple):
    """Tokens of a row that stand next to each other: a whole document, or padding."""

    row: int
    begin: int
    end: int
    is_padding: bool
    blocks: tuple[tuple[int, int], ...] = ()
    """where each block begins and ends, counted from the first token"""
    has_parts: bool = False


def document_spans(layout: Layout) -> list[Span] | None:
    """Return the spans of all rows in order, or None if the tokens of a document are not all in one span.

    What lies outside of the squares of the spans is not visible:

        1 . . . .     documents 0 0 0 1 1
        1 1 . . .
        1 1 1 . .
        . . . 1 .
        . . . 1 1
    """
    documents, blocks = layout.document_ids.numpy(), layout.block_ids.numpy()

    # Runs are of tokens in one block, or in none; those of a document that stand together are its span.
    opens = np.ones(documents.shape, dtype=bool)
    opens[:, 1:] = (documents[:, 1:] != documents[:, :-1]) | (blocks[:, 1:] != blocks[:, :-1])
    rows, begins = (places.tolist() for places in opens.nonzero())
    ends = [end or documents.shape[1] for end in (*begins[1:], 0)]  # where the next row begins, it is at 0
    runs = zip(rows, documents[opens].tolist(), begins, ends, blocks[opens].tolist(), strict=True)
    groups = [[*group] for _, group in groupby(runs, lambda run: run[:2])]
    names = [group[0][:2] for group in groups if group[0][1] >= 0]
    is_torn = len({*names}) < len(names)
    return None if is_torn else [_span(group, layout.part_ids) for group in groups]


def _span(runs: list[tuple[int, int, int, int, int]], parts: Tensor | None) -> Span:
    """Return the span of runs, of which row, document, begin, end and block are given."""
    (row, document, begin, *_), end = runs[0], runs[-1][3]
    blocks = tuple((first - begin, last - begin) for *_, first, last, block in runs if block != CAUSAL)
    has_parts = parts is not None and bool((parts[row, begin:end] != NO_PART).any())
    return Span(row, begin, end, document < 0, blocks, has_parts)


def sights(layout: Layout, length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the first and last place that tokens see without bounds, both (B, length), of rows padded to it.

    None where documents are torn, have parts or do not count from 0. Padding sees itself:

        documents 0 0 0 0 1 1 -       first 0 0 0 0 4 4 6
        blocks    0 0 - - - - -       last  1 1 2 3 4 5 6
    """
    spans = None if layout.part_ids is not None else document_spans(layout)
    if spans is None:
        return None
    documents, positions = layout.document_ids.numpy(), layout.position_ids.numpy()
    places = np.arange(length)
    first, last = (np.full((len(documents), length), places) for _ in range(2))
    for span in spans:
        if not span.is_padding:
            first[span.row, span.begin : span.end] = span.begin
        for begin, end in span.blocks:
            last[span.row, span.begin + begin : span.begin + end] = span.begin + end - 1
    counts = (places - first)[:, : documents.shape[1]]
    return (first, last) if ((counts == positions) | (documents < 0)).all() else None
