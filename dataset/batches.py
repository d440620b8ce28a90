"""Batches for training: rows as tensors, divided among processes, without labels that the mask would leak.

`dataset/documents.py` decides what a document holds, `dataset/packing.py` which rows there are and in which
order, `model/masks.py` what blocks mean.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataset.documents import Documents, Piece
from dataset.packing import RowPlan
from model.errors import UserError
from model.loss import NO_TARGET
from model.masks import Layout, Tokens, check_layout, is_readable, visible
from model.strategies import NO_PART


class Batch(NamedTuple):
    """Rows of tokens, each tensor int64 (B, T)."""

    ids: Tensor
    labels: Tensor
    """`ids[t]` where token t carries loss, else -100; token t - 1 predicts it"""
    document_ids: Tensor
    """-1 = padding"""
    position_ids: Tensor
    block_ids: Tensor
    """-1 = causal"""
    part_ids: Tensor | None = None
    """-1 = in no part; None = no token is in one"""

    @property
    def layout(self) -> Layout:
        """Return what the mask is made from."""
        return Layout(self.document_ids, self.position_ids, self.block_ids, self.part_ids)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the fields that are there, of which a batch is made again."""
        return tuple(tensor for tensor in self if tensor is not None)

    @property
    def num_targets(self) -> int:
        """Return the number of labels that carry loss."""
        return int((self.labels != NO_TARGET).sum())

    @property
    def num_real(self) -> int:
        """Return the number of positions that are not padding."""
        return int((self.document_ids >= 0).sum())

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self.tensors))


class BatchStream:
    """The rows of every epoch over the documents of one or more token stores.

    settings = BatchSettings(max_seq_len=512, prompt_mask="prefix")
    stream = BatchStream(documents_of(open_stores(["data/sft"]), settings))
    for batch in stream.batches(epoch=0, start_row=0, rows_per_step=16): ...
    """

    def __init__(self, documents: Documents) -> None:
        self.documents, self.settings = documents, documents.settings
        self.plan = lru_cache(maxsize=1)(documents.arrange)
        """returns the rows of an epoch, a `RowPlan`; every epoch has as many"""

    def batches(
        self, epoch: int, start_row: int = 0, rows_per_step: int = 1, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Yield one process's part of every step from row `start_row` of the epoch on.

        `rows_per_step` counts rows of all processes. A short last step is filled with rows of padding: every
        process takes the same number of steps. Raises `UserError` if the rows cannot be shared evenly.
        """
        if rows_per_step % world:
            raise UserError(f"{rows_per_step} rows a step cannot be shared out to {world} processes")
        plan, share = self.plan(epoch), rows_per_step // world
        for first in range(start_row, len(plan), rows_per_step):
            # A step is the next `rows_per_step` rows at one length; process `rank` takes its share of them.
            length = self._row_length(plan, first, rows_per_step)
            mine = range(first + rank * share, first + (rank + 1) * share)
            rows = [self.pieces(epoch, row) if row < len(plan) else [] for row in mine]
            batch = collate(rows, length, self.documents.tokenizer.pad_id)
            yield batch if self.settings.isolate_documents else join_documents(batch)

    def pieces(self, epoch: int, row: int) -> list[Piece]:
        """Return what stands in a row, in order."""
        return self.documents.pieces(epoch, self.plan(epoch)[row])

    def describe(self, rows_per_step: int = 1) -> dict[str, Any]:
        """Return the figures of the first epoch that a training prints at its start."""
        plan = self.plan(0)
        if self.settings.packing != "none":
            return self.documents.figures(plan, len(plan) * self.settings.max_seq_len)
        longest = np.maximum.reduceat(plan.row_tokens, range(0, len(plan), rows_per_step))
        missing = -len(plan) % rows_per_step * int(longest[-1])  # rows of the last step
        return self.documents.figures(plan, int(longest.sum()) * rows_per_step - missing)

    def _row_length(self, plan: RowPlan, first: int, rows_per_step: int) -> int:
        if self.settings.packing != "none":
            return self.settings.max_seq_len
        rows = (plan[row] for row in range(first, min(first + rows_per_step, len(plan))))
        return max(int((row[:, 2] - row[:, 1]).sum()) for row in rows)


def collate(rows: Sequence[Sequence[Piece]], length: int, pad_id: int) -> Batch:
    """Return the batch (len(rows), length) of rows of pieces, padded on the right.

    In each row documents and blocks are numbered from 0. Raises `ValueError` if a block is torn or a label is
    visible to the token that predicts it.
    """
    # The fields of a batch begin as padding; rows are written into them piece by piece.
    has_parts = any(piece.parts is not None for pieces in rows for piece in pieces)
    padding = Batch(pad_id, NO_TARGET, -1, 0, -1, NO_PART)[: 5 + has_parts]
    grid = np.empty((len(padding), len(rows), length), dtype=np.int64)
    grid[:] = np.reshape(padding, (-1, 1, 1))
    for row, pieces in enumerate(rows):
        _fill_row(Batch(*grid[:, row]), pieces)
    batch = Batch(*torch.from_numpy(grid))

    # The leak rule: a token that the one before it sees, as both share a block, is no label. Then check all.
    check_layout(batch.layout)
    batch.labels[is_readable(batch.block_ids)] = NO_TARGET
    check_labels(batch)
    return batch


def join_documents(batch: Batch) -> Batch:
    """Return the rows as one document each, as packing without masks has it: all see what comes before.

        documents   0 0 0 0 1 1 1 .    become    0 0 0 0 0 0 0 .
        positions   0 1 2 3 0 1 2 .              0 1 2 3 4 5 6 .
        blocks      0 0 - - 1 1 - .              0 0 - - 1 1 - .      labels stay, too

    The first token of a document is still no label: the last token of another one would predict it.
    """
    real = batch.document_ids >= 0
    index = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    return batch._replace(document_ids=torch.where(real, 0, -1), position_ids=torch.where(real, index, 0))


def check_labels(batch: Batch) -> None:
    """Raise `ValueError` if the token that predicts a label sees it, or is of another document."""
    index = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    tokens = [index, *(field for field in batch.layout if field is not None)]
    before, after = Tokens(*(field[:, :-1] for field in tokens)), Tokens(*(field[:, 1:] for field in tokens))
    forbidden = batch.position_ids == 0  # the token before it, if there is one, is of another document
    forbidden[:, 1:] |= visible(before, after)
    if (wrong := forbidden & (batch.labels != NO_TARGET)).any():
        row, position = wrong.nonzero()[0].tolist()
        raise ValueError(f"the label at row {row}, position {position} could be read where it is predicted")


def _fill_row(row: Batch, pieces: Sequence[Piece]) -> None:
    """Write pieces one after the other into the fields (T,) of a row, blocks numbered through the row.

    So are parts: those of a piece count up or down from where those before it end.
    """
    begin = next_block = num_parts = 0
    for number, piece in enumerate(pieces):
        span = slice(begin, begin + len(piece.ids))
        row.ids[span] = piece.ids
        row.labels[span][piece.supervised] = piece.ids[piece.supervised]
        row.document_ids[span] = number
        row.position_ids[span] = piece.positions
        row.block_ids[span] = piece.blocks
        row.block_ids[span][piece.blocks >= 0] += next_block
        next_block += int(piece.blocks.max()) + 1
        if piece.parts is not None:
            row.part_ids[span] = piece.parts + np.sign(piece.parts - NO_PART) * num_parts
            num_parts += int(np.abs(piece.parts - NO_PART).max())
        begin = span.stop
