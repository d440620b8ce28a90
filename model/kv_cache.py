"""Keys and values of the tokens seen so far, and the layout they were computed under.

A call of the model first `extend`s the cache by the layout of its tokens, then every layer stores and reads
with `update`. A compiled step (`model/decoding.py`) calls `reserve` alone and writes by itself. In layers
with a sliding window, `model/rolling_cache.py` keeps only the tokens that the window can still see.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.errors import UserError
from model.masks import Layout
from model.pattern import Pattern
from model.strategies import NO_PART

GROWTH_TOKENS = 128
Change = Callable[[Tensor], Tensor]
Held = tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor, Tensor], tuple[int, int] | None]


class KVCache:
    """Preallocated keys and values, one document per row; the slot of a token is its index there.

    Rows are right-padded and have lengths of their own. The last slot is where padding is written; it always
    counts as empty:

        slots       0  1  2  3  4  …  last
        positions   0  1  2 -1 -1  …   -1      a row of 3 tokens
        positions   0  1  2  1  3  …   -1      a row of 5, beside it, two of which share a position
    """

    def __init__(
        self, config: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.max_tokens = config.max_position_embeddings
        shape = (batch, config.num_key_value_heads, 1, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.positions, self.block_ids = (torch.full((batch, 1), -1, device=device) for _ in range(2))
        """position of the token in each slot, -1 = empty, and its block; both (B, S)"""
        self.part_ids: Tensor | None = None
        """part of the token in each slot (B, S), -1 in empty ones; None until there is one"""
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.used = 0
        """length of the longest row in tokens"""

    def extend(self, layout: Layout) -> None:
        """Make room for right-padded tokens of `layout` (B, T) at the end of each row.

        Raises `ValueError` for tokens that do not continue their row or whose block began before this call
        (the cut rule), and `UserError` when a row would pass `max_position_embeddings`.
        """
        real = layout.document_ids >= 0
        self._check_continues(layout, real)
        index = self.lengths[:, None] + torch.arange(real.shape[1], device=real.device)
        lengths = self.lengths + real.sum(1)
        self.reserve(int(lengths.max()))
        self.lengths = lengths
        self._choose_slots(index, real)  # where `update` then stores, in every layer
        write_layout(layout, self._slots, self.positions, self.block_ids)
        self.positions[:, -1] = -1  # padding was written here
        if layout.part_ids is not None:  # else slots beyond the end of a row are in no part already
            self._have_parts()
            self.part_ids.scatter_(1, self._slots, layout.part_ids)

    def keys_in(self, pattern: Pattern) -> Layout:
        """Return the layout (B, Tk) of the keys that `update` returns in layers of a pattern; -1 = empty."""
        places = (self.positions, self.block_ids, self.part_ids)
        return slot_layout(*(x if x is None else x[:, : self.used] for x in places))

    def index_in(self, pattern: Pattern) -> Tensor:
        """Return the index (B, Tk) of these keys in their row; -1 = empty."""
        return self._slot_index()[:, : self.used]

    @property
    def ends(self) -> Tensor:
        """The position (B,) that the next token takes in each row, as long as it is in no part."""
        return next_positions(self.positions)

    def reserve(self, used: int) -> None:
        """Make room for `used` tokens in the longest row; the caller writes them, their layout and lengths.

        Raises `UserError` when the row would pass `max_position_embeddings`.
        """
        if used > self.max_tokens:
            fault = f"the context needs {used} tokens but the model takes {self.max_tokens}"
            raise UserError(f"{fault}; shorten it or raise max_position_embeddings")
        self._make_room(used)
        self.used = used

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, Hkv, T, D) of new tokens; return those to attend to (B, Hkv, Tk, D)."""
        self._store(layer, k, v)
        return self.keys[layer][:, :, : self.used], self.values[layer][:, :, : self.used]

    def can_truncate(self, length: int) -> bool:
        """Say whether all keys that the next token sees after going back to `length` are still there."""
        return length <= self.used

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on in every row.

        Raises `ValueError` inside a block, where tokens before the cut have seen tokens after it.
        """
        self._check_cut(length)
        is_gone = self._slot_index() >= length
        self.positions = self.positions.masked_fill(is_gone, -1)
        if self.part_ids is not None:
            self.part_ids = self.part_ids.masked_fill(is_gone, NO_PART)
        self.lengths = self.lengths.clamp(max=length)
        self.used = min(self.used, length)

    def select(self, rows: list[int]) -> None:
        """Keep only the given rows, in the given order; a row may be given more than once."""
        index = self._index_of(rows)
        self._change(lambda x: x[index], lambda x: x[index])
        self.lengths = self.lengths[index]
        self.used = int(self.lengths.max()) if rows else 0

    def trim(self) -> None:
        """Give back the slots that no row uses, all but the last, where padding is written."""
        slots = self.used + 1
        self._change(lambda x: x[:, :, :slots].clone(), lambda x: x[:, :slots].clone())

    @torch.no_grad()
    def replace(self, rows: list[int], other: KVCache) -> None:
        """Put the rows of another cache of the same model in place of `rows`."""
        slots = max(self.block_ids.shape[1], other.block_ids.shape[1])
        for cache in (self, other):
            cache._grow(slots - cache.block_ids.shape[1])
            if self.part_ids is not None or other.part_ids is not None:
                cache._have_parts()
        index = self._index_of(rows)
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine[index] = theirs
        self.used = int(self.lengths.max())

    ring: tuple[int, int] | None = None
    """slots of a rolling cache, after which tokens take the first one again; None = a slot for each token"""

    @property
    def parts(self) -> tuple[KVCache, ...]:
        """The caches of its layers, for a compiled step; two where some of them roll."""
        return (self,)

    def held(self) -> Held:
        """Return keys and values of each layer, lengths, positions and blocks, and the ring."""
        stores = list(zip(self.keys, self.values, strict=True))
        return stores, (self.lengths, self.positions, self.block_ids), self.ring

    def _check_continues(self, layout: Layout, real: Tensor) -> None:
        # New positions go on where the row ends, unless parts share them, in one document.
        expected = self.ends[:, None] + torch.arange(real.shape[1], device=real.device)
        goes_on = (layout.position_ids == expected) | ~real | (layout.part_ids is not None)
        is_one_document = (layout.document_ids == layout.document_ids[:, :1]) | ~real
        if not bool((goes_on & is_one_document).all()):
            fault = f"the cache holds {self.lengths.tolist()} tokens"
            raise ValueError(f"{fault}; expected rows of one document that go on")

        # The first new token has another block than the last one of the row.
        last = self._slots_of((self.lengths - 1).clamp(min=0))
        before, after = self.block_ids.gather(1, last[:, None])[:, 0], layout.block_ids[:, 0]
        split = (self.lengths > 0) & real[:, 0] & (after >= 0) & (before == after)
        if bool(split.any()):
            row = int(split.nonzero()[0])
            fault = f"block {int(after[row])} of row {row} is cut after {int(self.lengths[row])} tokens"
            raise ValueError(f"{fault}: a bidirectional block must be computed in one call")

    def _make_room(self, used: int) -> None:
        """Grow until there are slots for `used` tokens and for padding."""
        missing = used + 1 - self.block_ids.shape[1]
        self._grow(-(-missing // GROWTH_TOKENS) * GROWTH_TOKENS)

    def _grow(self, added: int) -> None:
        """Add empty slots, if any are to be added."""
        if added > 0:
            self._change(lambda x: F.pad(x, (0, 0, 0, added)), lambda x: F.pad(x, (0, added), value=-1))

    def _change(self, stored: Change, told: Change) -> None:
        """Change all keys and values (B, Hkv, S, D), and what is told of their slots (B, S)."""
        self.keys, self.values = ([stored(x) for x in stores] for stores in (self.keys, self.values))
        self.positions, self.block_ids = told(self.positions), told(self.block_ids)
        self.part_ids = None if self.part_ids is None else told(self.part_ids)

    def _have_parts(self) -> None:
        """Keep parts from now on."""
        if self.part_ids is None:
            self.part_ids = torch.full_like(self.block_ids, NO_PART)

    def _slot_index(self) -> Tensor:
        """Return the index (B, S) in its row of the token in each slot; -1 = empty."""
        slots = torch.arange(self.positions.shape[1], device=self.positions.device)
        return torch.where(self.positions >= 0, slots, -1)

    def _slots_of(self, index: Tensor | int) -> Tensor | int:
        """Return the slots of tokens by their index in a row."""
        return index

    def _choose_slots(self, index: Tensor, real: Tensor) -> None:
        """Decide in which slots tokens are stored by their `index` (B, T); padding goes to the last one.

        Slots that are consecutive and the same in all rows are written as a slice, far quicker than by index.
        """
        self._slots = torch.where(real, self._slots_of(index), self.block_ids.shape[1] - 1)
        first = int(self._slots[0, 0])
        consecutive = torch.arange(first, first + self._slots.shape[1], device=index.device)
        is_slice = bool((self._slots == consecutive).all())
        self._slice = slice(first, first + len(consecutive)) if is_slice else None

    def _store(self, layer: int, k: Tensor, v: Tensor) -> None:
        for store, new in ((self.keys[layer], k), (self.values[layer], v)):
            if self._slice:
                store[:, :, self._slice] = new
            else:
                rows = torch.arange(len(new), device=new.device)[:, None]
                store[rows, :, self._slots] = new.transpose(1, 2).to(store.dtype)

    def _check_cut(self, length: int) -> None:
        if not 0 < length < self.used:
            return
        before, after = (self.block_ids[:, self._slots_of(place)] for place in (length - 1, length))
        split = (before >= 0) & (before == after) & (self.lengths > length)
        if bool(split.any()):
            row = int(split.nonzero()[0])
            fault = f"block {int(before[row])} of row {row} is cut after {length} tokens"
            raise ValueError(f"{fault}; cut before it")

    def _index_of(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.lengths.device)

    def _tensors(self) -> list[Tensor]:
        parts = [] if self.part_ids is None else [self.part_ids]
        return [*self.keys, *self.values, self.positions, self.block_ids, *parts, self.lengths]


def write_layout(layout: Layout, slots: Tensor, positions: Tensor, block_ids: Tensor) -> None:
    """Record in `positions` and `block_ids` (B, S) the tokens (B, T) that are put into `slots` (B, T)."""
    positions.scatter_(1, slots, layout.position_ids)
    block_ids.scatter_(1, slots, layout.block_ids)


def slot_layout(positions: Tensor, block_ids: Tensor, part_ids: Tensor | None = None) -> Layout:
    """Return the layout (B, S) of the tokens in the slots; an empty slot (position -1) counts as padding."""
    return Layout(torch.where(positions >= 0, 0, -1), positions, block_ids, part_ids)


def next_positions(positions: Tensor) -> Tensor:
    """Return the position (B,) after the largest of each row of slots (B, S)."""
    return positions.amax(1) + 1
