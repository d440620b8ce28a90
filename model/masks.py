"""Which token may see which: the one rule, every form of its masks, and where a document may be cut.

A row of tokens is described by its `Layout`, whose blocks a strategy sets (`model/strategies.py`). Training,
prefill, decode and plots all derive their masks from `visible`; nothing else decides visibility. A layer may
see less, by its pattern (`model/pattern.py`).

In order: the rule, the masks made from it, common layouts, the blocks of a conversation, which labels would
leak, and which computed tokens can be reused.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.pattern import ALL, Pattern
from model.strategies import CAUSAL, strategy_named


class Layout(NamedTuple):
    """Three integers per token, each a tensor of shape (B, T)."""

    document_ids: Tensor
    """packed document of the token; -1 = padding"""
    position_ids: Tensor
    """position inside that document"""
    block_ids: Tensor
    """bidirectional block of the token, unique per document; -1 = causal"""


class Tokens(NamedTuple):
    """What the rule reads of a token, broadcastable integer tensors; index is its place in the row."""

    index: Tensor
    document: Tensor
    position: Tensor
    block: Tensor


def visible(q: Tokens, k: Tokens, pattern: Pattern = ALL, not_future: Tensor | None = None) -> Tensor:
    """Return True where query `q` may attend to key `k`; the rule from which every mask is derived.

        q is k  or  same document and (k <= q or same block) and near by the pattern of the layer

    One document, blocks 0 0 0 for its prompt:     Window 2:          Window 2, 1 sink:  Chunks of 2:

        1 1 1 . .                                  1 1 1 . .          1 1 1 . .          1 1 . . .
        1 1 1 . .                                  1 1 1 . .          1 1 1 . .          1 1 . . .
        1 1 1 . .                                  . 1 1 . .          1 1 1 . .          . . 1 . .
        1 1 1 1 .                                  . . 1 1 .          1 . 1 1 .          . . 1 1 .
        1 1 1 1 1                                  . . . 1 1          1 . . 1 1          . . . . 1

    The diagonal is always on, so padding (document -1) sees itself and no row is empty. `not_future` is
    `k.index <= q.index`, for a caller that has it already. Prefix blocks: Raffel et al. 2020 (arXiv
    1910.10683, figure 4).
    """
    if not_future is None:
        not_future = k.index <= q.index
    same_document = (q.document == k.document) & (k.document >= 0)
    same_block = (q.block == k.block) & (k.block >= 0)
    seen = same_document & (not_future | same_block)
    if pattern != ALL:
        seen = seen & pattern.is_near(q.position, k.position)
    return seen | (q.index == k.index)


def causal_mask(size: int, device: torch.device | str | None = None) -> Tensor:
    """Return the bool lower triangle (size, size) whose slices every dense mask starts from."""
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


def dense_mask(causal: Tensor, layout: Layout, pattern: Pattern = ALL) -> Tensor:
    """Return the bool mask (B, T, T) of packed rows that attend to themselves; a token's index is its place.

    `causal` is the model's registered buffer, at least T x T.
    """
    length = layout.document_ids.shape[1]
    index = torch.arange(length, device=causal.device)
    q, k = _pairs(layout, layout, (index, index))
    return visible(q, k, pattern, causal[:length, :length])


def cached_mask(query: Layout, key: Layout, pattern: Pattern = ALL) -> Tensor:
    """Return the bool mask (B, Tq, Tk) of new tokens over cached keys, where a row is one document.

    A token's index is its position there. The caller gives a padding query the position of a real key, so
    that no row of the mask is empty.
    """
    return visible(*_pairs(query, key, (query.position_ids, key.position_ids)), pattern)


def _pairs(query: Layout, key: Layout, index: tuple[Tensor, Tensor]) -> tuple[Tokens, Tokens]:
    """Return queries (B, Tq, 1) and keys (B, 1, Tk), which broadcast to all pairs of them."""
    q = Tokens(index[0][..., None], *(ids[..., None] for ids in query))
    k = Tokens(index[1][..., None, :], *(ids[:, None] for ids in key))
    return q, k


def visible_mask(layout: Layout, pattern: Pattern = ALL) -> Tensor:
    """Return the mask (B, T, T) that `dense_mask` does where no triangle is at hand."""
    triangle = causal_mask(layout.document_ids.shape[1], layout.document_ids.device)
    return dense_mask(triangle, layout, pattern)


def causal_layout(batch: int, length: int, device: torch.device | str | None = None) -> Layout:
    """Return the layout (batch, length) of rows that hold one causal document each."""
    positions = torch.arange(length, device=device).expand(batch, length)
    return Layout(torch.zeros_like(positions), positions, torch.full_like(positions, CAUSAL))


def causal_step(lengths: Tensor) -> Layout:
    """Return the layout (B, 1) of one causal token at the end of rows of these lengths (B,)."""
    positions = lengths[:, None]
    return Layout(torch.zeros_like(positions), positions, torch.full_like(positions, CAUSAL))


def is_plain_causal(layout: Layout) -> bool:
    """Say whether the lower triangle is mask enough: one document per row, padded on the right, no blocks."""
    documents = layout.document_ids
    is_one_document = (documents == documents[:, :1]) | (documents < 0)
    right_padded = (documents[:, 1:] < 0) | (documents[:, :-1] >= 0)
    return bool((is_one_document & (layout.block_ids < 0)).all() and right_padded.all())


def check_layout(layout: Layout) -> None:
    """Raise `ValueError` unless every block is one contiguous run of tokens inside one document."""
    documents, _, blocks = layout
    if bool(((blocks >= 0) & (documents < 0)).any()):
        raise ValueError("a token of padding has a block; expected -1")

    # A block opens where the token before is of another block or document; one that opens twice is torn.
    opens = blocks >= 0
    opens[:, 1:] &= (blocks[:, 1:] != blocks[:, :-1]) | (documents[:, 1:] != documents[:, :-1])
    rows, starts = opens.nonzero(as_tuple=True)
    pairs, counts = torch.stack((rows, blocks[rows, starts])).unique(dim=1, return_counts=True)
    if (counts > 1).any():
        row, block = pairs[:, counts > 1][:, 0].tolist()
        raise ValueError(
            f"block {block} of row {row} is not one contiguous run of tokens inside one document"
        )


def prompt_blocks(prompt_mask: str, answers: Tensor, starts: Tensor) -> Tensor:
    """Return the block id (n,) of every token of one conversation under a strategy.

    `answers` (n,) bool marks answer tokens with their end marker, `starts` (n,) bool the first token of every
    message that is not an answer. Raises `UserError` for an unknown name.
    """
    strategy, is_answer = strategy_named(prompt_mask), answers.numpy()

    # A message opens where `starts` says so, and where an answer begins or ends.
    opens = starts.numpy().copy()
    opens[:1] = True
    opens[1:] |= is_answer[1:] != is_answer[:-1]
    first = np.flatnonzero(opens)
    roles = "".join("A" if is_answer[index] else "U" for index in first)

    # The strategy names the block of each message; blocks are renumbered 0, 1, … in order of appearance.
    blocks = [strategy.block(roles, i) for i in range(len(roles))]
    numbers = {CAUSAL: CAUSAL}
    for block in blocks:
        numbers.setdefault(block, len(numbers) - 1)
    of_message = np.array([numbers[block] for block in blocks], dtype=np.int64)

    # Every token gets the block of its message.
    return torch.from_numpy(np.repeat(of_message, np.diff(first, append=len(opens))))


def blocks_before_answer(prompt_mask: str, answers: Tensor, starts: Tensor) -> Tensor:
    """Return the block ids (n,) of a prompt whose answer is still to come, the same as training gave it."""
    answer = answers.new_ones(1)
    return prompt_blocks(prompt_mask, torch.cat((answers, answer)), torch.cat((starts, ~answer)))[:-1]


def is_readable(block_ids: Tensor) -> Tensor:
    """Return True (B, T) where the label is visible to the token that predicts it: the leak rule.

    The label at `t` is predicted by token `t - 1`, which sees token `t` exactly when both share a block.
    """
    readable = torch.zeros_like(block_ids, dtype=torch.bool)
    readable[:, 1:] = (block_ids[:, 1:] == block_ids[:, :-1]) & (block_ids[:, 1:] >= 0)
    return readable


def last_visible(block_ids: Tensor) -> Tensor:
    """Return the last index (n,) that each token of one document sees: the end of its block, or itself.

    Without patterns, two layouts of a document give the same mask exactly when they agree on this. Patterns
    only take keys away, so a cut that is legal without them is legal with them.
    """
    index = torch.arange(len(block_ids))
    is_end = torch.ones_like(index, dtype=torch.bool)
    is_end[:-1] = (block_ids[1:] != block_ids[:-1]) | (block_ids[1:] < 0)
    # The smallest end at or after each token: a running minimum from the right.
    return torch.where(is_end, index, len(index)).flip(0).cummin(0).values.flip(0)


def legal_cuts(block_ids: Tensor) -> Tensor:
    """Return True (n,) for tokens after which a document may be cut: none up to there sees a later one."""
    return last_visible(block_ids).cummax(0).values == torch.arange(len(block_ids))


def reusable_prefix(cached: Tensor, wanted: Tensor, limit: int) -> int:
    """Return how many tokens may keep their computed states under the wanted layout: the longest legal cut.

    `cached` and `wanted` are block ids (n,) and (m,) of one document whose first `limit` token ids agree.
    A cut `c` is legal when both layouts agree on `visible[:c, :c]` and no row before `c` sees a key at or
    after `c` in either.
    """
    limit = max(0, min(limit, len(cached), len(wanted)))
    agree = last_visible(cached)[:limit] == last_visible(wanted)[:limit]
    legal = (agree.long().cumprod(0).bool() & legal_cuts(wanted)[:limit]).nonzero().flatten()
    return int(legal[-1]) + 1 if len(legal) else 0


def draw_text(mask: Tensor) -> str:
    """Return a mask (Tq, Tk) as a picture in characters, `1` = may attend, one line per query."""
    return "\n".join(" ".join("1" if cell else "." for cell in line) for line in mask.tolist())
