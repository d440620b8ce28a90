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
from model.masks import Layout, visible_mask
from model.pattern import Pattern
from model.runs import sights

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


def in_bands(layout: Layout, pattern: Pattern) -> Visibility | None:
    """Return whole rows (B, T) cut into bands, where that is exact and pays."""
    if pattern.reach is None:
        return None
    size, length = max(SMALLEST_BLOCK, pattern.reach // 2), layout.block_ids.shape[1]
    number, before = _number(length, size), _number(pattern.reach - 1, size)
    room = int(WIDEST_SHARE * length) // size - before - 1
    if room < 0 or (seen := sights(layout, number * size)) is None:
        return None
    wanted = _number(tokens_ahead(seen[1], pattern), size)
    after = next((blocks for blocks in BLOCKS_AFTER if blocks >= wanted), room + 1)
    blocks = [places.reshape(-1, number, size) for places in seen]
    return Visibility(rows=cut(layout, blocks, pattern, before, after)) if after <= room else None


def in_one(layout: Layout, pattern: Pattern) -> Visibility | None:
    """Return whole rows (B, T) under one mask by places, where that is exact."""
    length = layout.block_ids.shape[1]
    if (seen := sights(layout, length)) is None:
        return None
    first, last = seen
    mask = _between(*pattern.bounded(np.arange(length), first, last), 0, length)  # (B, T, T)
    if pattern.sinks:
        mask |= _between(first, np.minimum(first + pattern.sinks - 1, last), 0, length)
    return Visibility(torch.from_numpy(mask)[:, None])


def _number(tokens: int, size: int) -> int:
    return -(-tokens // size)


def tokens_ahead(last: np.ndarray, pattern: Pattern) -> int:
    """Return how far behind a query the last key may stand that it sees: in its block, and near.

    `last` (B, T) are the last keys that queries see without bounds.
    """
    longest = int((last - np.arange(last.shape[1])).max()) + 1
    bounds = [pattern.window if pattern.both_sides else None, pattern.chunk]
    near = min((bound for bound in bounds if bound), default=longest)
    return min(longest, max(near, pattern.sinks)) - 1  # sinks are seen through any bound


def cut(layout: Layout, seen: list[np.ndarray], pattern: Pattern, before: int, after: int) -> Bands:
    """Return rows cut into bands, with so many blocks of keys on the sides of their queries.

    `seen` are the first and last place (B, N, c) that queries see without bounds.
    """
    _, number, size = seen[0].shape
    begin = (np.arange(number)[:, None] - before) * size  # (N, 1), of the keys of bands in their row
    start, end = (places - begin for places in seen)  # now counted from there
    first, last = pattern.bounded(before * size + np.arange(size), start, end)
    width = (before + 1 + after) * size
    mask, sinks = _between(first, last, pattern.sinks, width), None  # (B, N, c, sinks + W)
    if pattern.sinks:
        # Few queries see sinks in the band that are not near.
        far = ((start > -pattern.sinks) & ((start < first) | (last < end))).nonzero()
        until = np.minimum(start + pattern.sinks - 1, end)
        mask[far] |= _between(np.maximum(start, 0)[far], until[far], pattern.sinks, width)
        # Only the document of the first query can have begun before the band, at places below 0.
        places = start[:, :, :1] + np.arange(pattern.sinks)  # (B, N, sinks)
        mask[..., : pattern.sinks] = (start == start[:, :, :1])[..., None] & (places < 0)[:, :, None]
        sinks = torch.from_numpy((places + begin).clip(0, layout.block_ids.shape[1] - 1))
    return Bands(torch.from_numpy(mask).flatten(0, 1)[:, None], sinks, before, after, layout, pattern)


def _between(first: np.ndarray, last: np.ndarray, ahead: int, width: int) -> np.ndarray:
    """Return True from the first to the last (...) of the places that bands have, `ahead` of them below 0."""
    narrow = np.min_scalar_type(-(ahead + width))  # numbers of few bytes are compared faster
    places = np.arange(-ahead, width, dtype=narrow)
    mask = first.astype(narrow)[..., None] <= places
    mask &= places <= last.astype(narrow)[..., None]
    return mask  # (..., ahead + width)
