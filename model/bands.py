"""Rows whose layers see what is near, cut into bands: blocks of queries, each with the keys around it.

Every band is a short row of its own under a small mask, which the one rule gives (`model/masks.py`), so time
and memory grow with the length, where those of a dense mask grow with its square. How a row attends is
decided in `model/backends.py`.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import Visibility
from model.masks import Layout, Tokens, narrow, visible, visible_mask
from model.pattern import Pattern
from model.strategies import CAUSAL

SMALLEST_BLOCK = 32
"""queries of a band; fewer share a product less well. It is half the window of wider ones"""
WIDEST_SHARE = 0.5
"""of a row that a band may be; beyond, a dense mask costs about the same"""
BLOCKS_AFTER = (0, 1, 2, 8, 32, 128)
"""blocks of later keys that bands may have; few numbers, as layers are compiled for each"""


class Bands(NamedTuple):
    """N bands a row, of c queries and W keys each, which overlap; before the row there are no tokens:

    1 . . . . .        . . 1 .                            window 3, blocks of 2, one before
    1 1 . . . .        . . 1 1
    1 1 1 . . .                   1 1 1 .
    . 1 1 1 . .                   . 1 1 1
    . . 1 1 1 .                              1 1 1 .
    . . . 1 1 1                              . 1 1 1
    """

    kind = "bands"
    mask: Tensor
    """bool (B * N, 1, c, ahead + sinks + W), True = may attend"""
    sinks: Tensor | None
    """index (B, N, sinks) in its row of the first tokens that a band sees outside of it"""
    before: int
    """blocks of keys to the left of the queries"""
    after: int
    """blocks of keys to the right"""
    layout: Layout
    """of the rows, (B, T)"""
    pattern: Pattern
    ahead: int = 0
    """keys before those of the row, which all its tokens see"""

    def behind(self, count: int) -> Visibility:
        """Return what queries see where `count` more keys that all of them see come first."""
        mask = F.pad(self.mask, (count, 0), value=True)
        return Visibility(rows=self._replace(mask=mask, ahead=self.ahead + count))

    def dense(self) -> Tensor:
        """Return the same as one mask (B, 1, T, ahead + T)."""
        return F.pad(visible_mask(self.layout, self.pattern)[:, None], (self.ahead, 0), value=True)

    def queries(self, q: Tensor) -> Tensor:
        """Return the queries (B * N, H, c, D) of all bands, from those of rows (B, H, T, D)."""
        return self._blocks(q).transpose(1, 2).flatten(0, 1)

    def keys(self, k: Tensor) -> Tensor:
        """Return the keys (B * N, Hkv, ahead + sinks + W, D) of all bands, from (B, Hkv, ahead + T, D)."""
        ahead, k = k[:, :, : self.ahead], k[:, :, self.ahead :]
        blocks = self._blocks(k)
        number, padded = blocks.shape[2], F.pad(blocks, (0, 0, 0, 0, self.before, self.after))
        parts = [ahead[:, :, None].expand(-1, -1, number, -1, -1)] if self.ahead else []
        if self.sinks is not None:
            index = self.sinks.flatten(1)[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
            parts.append(k.gather(2, index).unflatten(2, (number, -1)))
        # Slices that add up to a band: unfolding would be one view, whose gradient is slower.
        parts += [padded[:, :, n : n + number] for n in range(self.before + 1 + self.after)]
        return torch.cat(parts, dim=3).transpose(1, 2).flatten(0, 1)

    def rows(self, y: Tensor, length: int) -> Tensor:
        """Return outputs of rows (B, H, T, D) from those of bands (B * N, H, c, D)."""
        return y.unflatten(0, (len(self.layout.block_ids), -1)).transpose(1, 2).flatten(2, 3)[:, :, :length]

    def _blocks(self, x: Tensor) -> Tensor:
        """Return (B, heads, N, c, D) from rows (B, heads, T, D), with zeros behind their end."""
        size = self.mask.shape[2]
        return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))


def in_bands(layout: Layout, pattern: Pattern) -> Bands | None:
    """Return whole rows (B, T) cut into bands, where that is exact and pays; else they need a dense mask."""
    if pattern.reach is None:
        return None
    size = max(SMALLEST_BLOCK, pattern.reach // 2)
    before = _number(pattern.reach - 1, size)
    room = int(WIDEST_SHARE * layout.block_ids.shape[1]) // size - before - 1
    if room < 0 or not is_in_order(layout):
        return None
    wanted = _number(tokens_ahead(layout, pattern), size) if (layout.block_ids >= 0).any() else 0
    after = next((blocks for blocks in BLOCKS_AFTER if blocks >= wanted), room + 1)
    return cut(layout, pattern, size, before, after) if after <= room else None


def _number(tokens: int, size: int) -> int:
    return -(-tokens // size)


def is_in_order(layout: Layout) -> bool:
    """Say whether the tokens of each document stand next to each other, at positions 0, 1, …"""
    documents, positions, _, parts = (ids if ids is None else ids.numpy() for ids in layout)  # fast if small
    goes_on = documents[:, 1:] == documents[:, :-1]
    is_next = positions == np.pad((positions[:, :-1] + 1) * goes_on, ((0, 0), (1, 0)))
    rows, starts = ((positions == 0) & (documents >= 0)).nonzero()
    names = rows * (documents.max() + 1) + documents[rows, starts]
    return parts is None and bool((is_next | (documents < 0)).all()) and len(np.unique(names)) == len(names)


def tokens_ahead(layout: Layout, pattern: Pattern) -> int:
    """Return how far behind a query the last key may stand that it sees: in its block, and near."""
    blocks = F.pad(layout.block_ids, (0, 1), value=CAUSAL).flatten()  # so that none goes on in the next row
    ids, lengths = blocks.unique_consecutive(return_counts=True)
    longest = int(lengths.masked_fill(ids < 0, 1).max())
    bounds = [pattern.window if pattern.both_sides else None, pattern.chunk]
    near = min((bound for bound in bounds if bound), default=longest)
    return min(longest, max(near, pattern.sinks)) - 1  # sinks are seen through any bound


def cut(layout: Layout, pattern: Pattern, size: int, before: int, after: int) -> Bands:
    """Return rows cut into bands of `size` queries, with so many blocks of keys on their sides."""
    batch, length = layout.block_ids.shape
    number, width = _number(length, size), (before + 1 + after) * size

    # Rows get tokens of no document on both sides, so that all bands are of one width.
    here, sides = slice(before * size, (before + 1) * size), (before * size, (number + after) * size - length)

    def of_keys(ids: Tensor) -> Tensor:  # (B, N, 1, W)
        return F.pad(ids, sides, value=-1).unfold(1, width, size)[:, :number, None]

    # Places are the same in all bands: a window, which bounds as many of them, is found once.
    k = Tokens(places := torch.arange(width)[None], of_keys(narrow(layout.document_ids)), places, None)
    if pattern.sinks or pattern.chunk:
        k = k._replace(position=of_keys(layout.position_ids))
    if (layout.block_ids >= 0).any():
        k = k._replace(block=of_keys(narrow(layout.block_ids)))
    q = Tokens(*(ids if ids is None else ids[..., here].mT for ids in k))
    mask, sinks = visible(q, k, pattern), None  # (B, N, c, W)
    if pattern.sinks:
        # Only the document of the first query can have begun before the band, at places below 0.
        places = (q.index - q.position)[:, :, 0] + torch.arange(pattern.sinks)  # (B, N, sinks)
        sinks = (places + torch.arange(number)[:, None] * size - before * size).clamp(0, length - 1)
        at = (ids.gather(1, sinks.flatten(1)).unflatten(1, (number, -1)) for ids in layout[:3])
        first = Tokens(*(ids[:, :, None] for ids in (places, *at)))  # (B, N, 1, sinks)
        mask = torch.cat((visible(q, first, pattern) & (first.index < 0), mask), dim=3)
    return Bands(mask.flatten(0, 1)[:, None], sinks, before, after, layout, pattern)
