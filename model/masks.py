"""Which token may see which: the one rule, every form of its masks, and where a document may be cut.

A row of tokens is described by its `Layout`, whose blocks a strategy sets (`model/strategies.py`). Training,
prefill, decode and plots all derive their masks from `visible`, or from the same said of whole documents
(`model/runs.py`); nothing else decides. A layer may see less, by its pattern (`model/pattern.py`).

In order: the rule, the masks made from it, common layouts, which labels would leak, and which computed tokens
can be reused. What a strategy makes of a conversation stands in `model/layouts.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model.pattern import ALL, Pattern
from model.strategies import CAUSAL, NO_PART


class Layout(NamedTuple):
    """Three integers per token, or four, each a tensor of shape (B, T)."""

    document_ids: Tensor
    """packed document of the token; -1 = padding"""
    position_ids: Tensor
    """position inside that document"""
    block_ids: Tensor
    """bidirectional block of the token, unique per document; -1 = causal"""
    part_ids: Tensor | None = None
    """part of a prompt that sees no other part, unique per document: 0 and up also see what is in none, -2
    and down see themselves alone; -1 = in none; None = no token is in one"""


class Tokens(NamedTuple):
    """What the rule reads of a token, broadcastable integer tensors; index is its place in the row."""

    index: Tensor
    document: Tensor
    position: Tensor
    block: Tensor | None
    """None = no token is in one"""
    part: Tensor | None = None


def visible(q: Tokens, k: Tokens, pattern: Pattern = ALL, not_future: Tensor | None = None) -> Tensor:
    """Return True where query `q` may attend to key `k`; the rule from which every mask is derived.

        q is k  or  same document and (k <= q or same block) and near, by the pattern, and no part between

    One document, blocks 0 0 0 for its prompt:     Window 2:          Window 2, 1 sink:  Chunks of 2:

        1 1 1 . .                                  1 1 1 . .          1 1 1 . .          1 1 . . .
        1 1 1 . .                                  1 1 1 . .          1 1 1 . .          1 1 . . .
        1 1 1 . .                                  . 1 1 . .          1 1 1 . .          . . 1 . .
        1 1 1 1 .                                  . . 1 1 .          1 . 1 1 .          . . 1 1 .
        1 1 1 1 1                                  . . . 1 1          1 . . 1 1          . . . . 1

    The diagonal is always on, so padding (document -1) sees itself and no row is empty. `not_future` is
    `k.index <= q.index`, for a caller that has it already. Parts: a key in another part is hidden, and
    one in none, too, from a part that sees itself alone:

        - 1 . . . .      parts - 0 0 1 -         - 1 . . . .      parts - -2 -2 -3 -
        0 1 1 . . .                             -2 . 1 . . .
        0 1 1 1 . .                             -2 . 1 1 . .
        1 1 . . 1 .                             -3 . . . 1 .
        - 1 1 1 1 1                              - 1 1 1 1 1
    """
    seen = k.index <= q.index if not_future is None else not_future
    if q.block is not None:
        seen = seen | _is_same(q.block, k.block)
    if pattern != ALL:
        seen = seen & pattern.is_near(q.position, k.position)
    seen = seen & _is_same(q.document, k.document)
    if q.part is not None:
        sees_all, is_open = q.part == NO_PART, (k.part == NO_PART) & (q.part > NO_PART)
        seen = seen & (sees_all | is_open | (q.part == k.part))
    return seen | _is_same(q.index, k.index)


def _is_same(q: Tensor, k: Tensor) -> Tensor:
    """Return `(q == k) & (k >= 0)`, on CPUs in a fifth of the time: most of a mask's goes here."""
    k = k.masked_fill(k < 0, -2)  # which no query has
    return ~(q ^ k).bool()


def narrow(ids: Tensor) -> Tensor:
    """Return numbers from -1 on in two bytes, if these hold them: pairs of them wait for memory."""
    return ids.short() if ids.is_cpu and ids.max() < 2**15 else ids  # elsewhere the answer is waited for


def causal_mask(size: int, device: torch.device | str | None = None) -> Tensor:
    """Return the bool lower triangle (size, size) whose slices every dense mask starts from."""
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


def dense_mask(causal: Tensor, layout: Layout, pattern: Pattern = ALL) -> Tensor:
    """Return the bool mask (B, T, T) of packed rows that attend to themselves; a token's index is its place.

    `causal` is the model's registered buffer, at least T x T.
    """
    length = layout.document_ids.shape[1]
    index = narrow(torch.arange(length, device=causal.device))
    layout = layout._replace(document_ids=narrow(layout.document_ids), block_ids=narrow(layout.block_ids))
    q, k = _pairs(layout, layout, (index, index))
    return visible(q, k, pattern, causal[:length, :length])


def cached_mask(
    query: Layout, key: Layout, pattern: Pattern = ALL, index: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Return the bool mask (B, Tq, Tk) of new tokens over cached keys, where a row is one document.

    A token's index is its position there, unless parts share positions and `index` (B, Tq), (B, Tk) is given.
    The caller gives a padding query the index of a key, so that no row of the mask is empty.
    """
    index = index or (query.position_ids, key.position_ids)
    return visible(*_pairs(query, key, index), pattern)


def _pairs(query: Layout, key: Layout, index: tuple[Tensor, Tensor]) -> tuple[Tokens, Tokens]:
    """Return queries (B, Tq, 1) and keys (B, 1, Tk), which broadcast to all pairs of them."""
    q = Tokens(index[0][..., None], *(ids if ids is None else ids[..., None] for ids in query))
    k = Tokens(index[1][..., None, :], *(ids if ids is None else ids[:, None] for ids in key))
    return q, k


def visible_mask(layout: Layout, pattern: Pattern = ALL) -> Tensor:
    """Return the mask (B, T, T) that `dense_mask` does where no triangle is at hand."""
    triangle = causal_mask(layout.document_ids.shape[1], layout.document_ids.device)
    return dense_mask(triangle, layout, pattern)


def causal_layout(batch: int, length: int, device: torch.device | str | None = None) -> Layout:
    """Return the layout (batch, length) of rows that hold one causal document each."""
    positions = torch.arange(length, device=device).expand(batch, length)
    return Layout(torch.zeros_like(positions), positions, torch.full_like(positions, CAUSAL))


def causal_step(ends: Tensor) -> Layout:
    """Return the layout (B, 1) of one causal token at these positions (B,), at the end of rows."""
    return causal_layout(len(ends), 1, ends.device)._replace(position_ids=ends[:, None])


def is_plain_causal(layout: Layout) -> bool:
    """Say whether the lower triangle is mask enough: one document per row, padded on the right, no blocks."""
    if layout.part_ids is not None or (layout.block_ids >= 0).any():
        return False
    documents = layout.document_ids
    is_one_document = ((documents == documents[:, :1]) | (documents < 0)).all()
    return bool(is_one_document and ((documents[:, 1:] < 0) | (documents[:, :-1] >= 0)).all())


def check_layout(layout: Layout) -> None:
    """Raise `ValueError` unless every block and part is one run of a document, and each block of a part."""
    documents, _, blocks, parts = layout
    _check_whole("block", blocks, "document", documents)
    if parts is not None:
        _check_whole("part", parts, "document", documents)
        _check_whole("block", blocks, "part", parts)


def _check_whole(name: str, ids: Tensor, place: str, places: Tensor) -> None:
    """Raise `ValueError` unless every id but -1 is one contiguous run of tokens inside one place."""
    opens = ids != CAUSAL
    if place == "document" and bool((opens & (places < 0)).any()):
        raise ValueError(f"a token of padding has a {name}; expected -1")

    # One opens where the token before is of another one or place; one that opens twice is torn.
    opens[:, 1:] &= (ids[:, 1:] != ids[:, :-1]) | (places[:, 1:] != places[:, :-1])
    rows, starts = opens.nonzero(as_tuple=True)
    pairs, counts = torch.stack((rows, ids[rows, starts])).unique(dim=1, return_counts=True)
    if (counts > 1).any():
        row, number = pairs[:, counts > 1][:, 0].tolist()
        raise ValueError(f"{name} {number} of row {row} is not one contiguous run of tokens in one {place}")


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
