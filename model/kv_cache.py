"""Keys and values of the tokens seen so far, and the layout they were computed under.

`KVCache` keeps every token; `RollingKVCache`, for models whose every layer has a sliding window, keeps the
last ones only. A call of the model first `extend`s the cache with the layout of its tokens, then every layer
stores and reads with `update`. After `make_room`, a step of one causal token per row may do that by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.errors import UserError
from model.masks import Layout

GROWTH_TOKENS = 128
UNDO_TOKENS = 64


def new_cache(config: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str) -> KVCache:
    """Return an empty cache for `batch` rows, a rolling one where no layer sees farther than a window."""
    farthest = max(window or config.max_position_embeddings for window in config.layer_windows)
    rolls = farthest < config.max_position_embeddings
    return (RollingKVCache if rolls else KVCache)(config, batch, dtype, device)


class KVCache:
    """Preallocated keys and values, one document per row; the slot of a token is its position.

    Rows are right-padded and have lengths of their own. The last slot is where padding is written; it always
    counts as empty.
    """

    ring: int | None = None
    """number of slots after which tokens take the first one again"""

    def __init__(
        self, config: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.max_tokens = config.max_position_embeddings
        shape = (batch, config.num_key_value_heads, 1, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.positions, self.block_ids = (torch.full((batch, 1), -1, device=device) for _ in range(2))
        """position of the token in each slot, -1 = empty, and its block; both (B, slots)"""
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.used = 0
        """length of the longest row in tokens"""

    def extend(self, layout: Layout) -> Layout:
        """Make room for right-padded tokens of `layout` (B, T) at the end of each row.

        Returns the layout (B, Tk) of the keys that `update` will give, good until the cache changes; their
        positions are their place in the row, -1 where there is none. Raises `ValueError` for tokens that do
        not continue their row or whose block began before this call (the cut rule), and `UserError` when a
        row would pass `max_position_embeddings`.
        """
        real = layout.document_ids >= 0
        self._check_continues(layout, real)
        lengths = self.lengths + real.sum(1)
        self.make_room(int(lengths.max()))
        self.lengths = lengths
        self._slots = self._slots_of(layout, real)
        first = int(self._slots[0, 0])
        straight = torch.arange(first, first + self._slots.shape[1], device=lengths.device)
        self._straight = (
            slice(first, first + len(straight)) if bool((self._slots == straight).all()) else None
        )
        place(layout, self._slots, self.positions, self.block_ids)
        self.positions[:, -1] = -1
        return slot_layout(self.positions[:, : self.used], self.block_ids[:, : self.used])

    def make_room(self, used: int) -> None:
        """Let the longest row have `used` tokens; who calls it writes them, their layout and the lengths.

        Raises `UserError` when the row would pass `max_position_embeddings`.
        """
        if used > self.max_tokens:
            raise UserError(
                f"the context needs {used} tokens but the model takes {self.max_tokens}; "
                "shorten it or raise max_position_embeddings"
            )
        missing = used + 1 - self.block_ids.shape[1]
        if not self.ring:
            self._grow(-(-missing // GROWTH_TOKENS) * GROWTH_TOKENS)
        self.used = used

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, Hkv, T, D) of new tokens; return those to attend to (B, Hkv, Tk, D)."""
        self._store(layer, k, v)
        return self.keys[layer][:, :, : self.used], self.values[layer][:, :, : self.used]

    def holds(self, length: int) -> bool:
        """Say whether all keys that the token after the first `length` of a row sees are still there."""
        return length <= self.used

    def cut(self, length: int) -> None:
        """Forget the tokens from `length` on in every row.

        Raises `ValueError` for a cut inside a block: tokens before it have seen tokens after it.
        """
        self._check_cut(length)
        self.positions = self.positions.masked_fill(self.positions >= length, -1)
        self.lengths = self.lengths.clamp(max=length)
        self.used = min(self.used, length)

    def keep(self, rows: list[int]) -> None:
        """Keep only the given rows, in the given order; a row may be given more than once."""
        index = self._index(rows)
        self.keys = [keys[index] for keys in self.keys]
        self.values = [values[index] for values in self.values]
        self.positions, self.block_ids = self.positions[index], self.block_ids[index]
        self.lengths = self.lengths[index]
        self.used = int(self.lengths.max()) if rows else 0

    @torch.no_grad()
    def replace(self, rows: list[int], other: KVCache) -> None:
        """Put the rows of another cache of the same model in place of `rows`."""
        slots = max(self.block_ids.shape[1], other.block_ids.shape[1])
        for cache in (self, other):
            cache._grow(slots - cache.block_ids.shape[1])
        index = self._index(rows)
        for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
            mine[index] = theirs
        self.used = int(self.lengths.max())

    def _index(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.lengths.device)

    def _tensors(self) -> list[Tensor]:
        return [*self.keys, *self.values, self.positions, self.block_ids, self.lengths]

    def _slots_of(self, layout: Layout, real: Tensor) -> Tensor:
        """Return where tokens (B, T) are kept, now that the rows have their new lengths."""
        return torch.where(real, layout.position_ids, self.block_ids.shape[1] - 1)

    def _store(self, layer: int, k: Tensor, v: Tensor) -> None:
        for store, new in ((self.keys[layer], k), (self.values[layer], v)):
            if self._straight:
                store[:, :, self._straight] = new
            else:
                rows = torch.arange(len(new), device=new.device)[:, None]
                store[rows, :, self._slots] = new.transpose(1, 2).to(store.dtype)

    def _check_continues(self, layout: Layout, real: Tensor) -> None:
        expected = self.lengths[:, None] + torch.arange(real.shape[1], device=real.device)
        is_one_document = (layout.document_ids == layout.document_ids[:, :1]) | ~real
        if bool(((layout.position_ids != expected) & real).any() | ~is_one_document.all()):
            raise ValueError(
                f"the cache holds {self.lengths.tolist()} tokens; expected rows of one document that go on"
            )
        split = (self.lengths > 0) & real[:, 0] & (layout.block_ids[:, 0] >= 0)
        split &= self._last_blocks() == layout.block_ids[:, 0]
        if bool(split.any()):
            row = int(split.nonzero()[0])
            raise ValueError(
                f"block {int(layout.block_ids[row, 0])} of row {row} is cut after {int(self.lengths[row])} "
                "tokens: a bidirectional block must be computed in one call"
            )

    def _check_cut(self, length: int) -> None:
        if not 0 < length < self.used:
            return
        before, after = self._blocks_at(length - 1), self._blocks_at(length)
        split = (before >= 0) & (before == after) & (self.lengths > length)
        if bool(split.any()):
            row = int(split.nonzero()[0])
            raise ValueError(
                f"block {int(before[row])} of row {row} is cut after {length} tokens; cut before it"
            )

    def _last_blocks(self) -> Tensor:
        return self.block_ids.gather(1, (self.lengths - 1).clamp(min=0)[:, None])[:, 0]

    def _blocks_at(self, position: int) -> Tensor:
        return self.block_ids[:, position]

    def _grow(self, added: int) -> None:
        """Add empty slots, if any are to be added."""
        if added <= 0:
            return
        self.positions, self.block_ids = (
            F.pad(x, (0, added), value=-1) for x in (self.positions, self.block_ids)
        )
        self.keys, self.values = (
            [F.pad(x, (0, 0, 0, added)) for x in stores] for stores in (self.keys, self.values)
        )


def place(layout: Layout, slots: Tensor, positions: Tensor, block_ids: Tensor) -> None:
    """Write down in `positions` and `block_ids` (B, S) which tokens (B, T) are put into `slots` (B, T)."""
    positions.scatter_(1, slots, layout.position_ids)
    block_ids.scatter_(1, slots, layout.block_ids)


def slot_layout(positions: Tensor, block_ids: Tensor) -> Layout:
    """Return the layout (B, slots) of what stands in slots; an empty one, position -1, is padding."""
    return Layout(torch.where(positions >= 0, 0, -1), positions, block_ids)


class RollingKVCache(KVCache):
    """Keeps what a sliding window can still see, and a little more so that a few tokens may be taken back.

    The slot of a token is its position modulo the number of slots. A call of several tokens attends to the
    old keys and its own before anything is overwritten:

        window 3, 4 slots, tokens 0 … 4 seen       slots  4 1 2 3
        a call of tokens 5 6 attends to                   4 1 2 3 + 5 6      (1 and 2 lie outside the window)
        and leaves                                        4 5 6 3
    """

    def __init__(
        self, config: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(config, batch, dtype, device)
        self.window = config.sliding_window
        self.ring = min(self.window + UNDO_TOKENS, self.max_tokens)
        self._grow(self.ring)
        self._longest = self.lengths.clone()
        """longest that each row was before a cut: all but its last `ring` tokens are overwritten"""

    def extend(self, layout: Layout) -> Layout:
        """Make room for tokens at the end of each row, as a cache that keeps every token does."""
        self._one_token = layout.position_ids.shape[1] == 1
        places = (self.positions[:, : self.ring], self.block_ids[:, : self.ring])
        old = None if self._one_token else slot_layout(*(x.clone() for x in places))
        super().extend(layout)
        if self._one_token:
            return slot_layout(*places)
        return Layout(*(torch.cat(fields, dim=1) for fields in zip(old, layout, strict=True)))

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, Hkv, T, D) of new tokens; return those to attend to (B, Hkv, Tk, D)."""
        if self._one_token:  # the slot it takes lies outside its window
            self._store(layer, k, v)
            return self.keys[layer][:, :, : self.ring], self.values[layer][:, :, : self.ring]
        keys, values = (
            torch.cat((store[layer][:, :, : self.ring], new.to(store[layer].dtype)), dim=2)
            for store, new in ((self.keys, k), (self.values, v))
        )
        self._store(layer, k, v)
        return keys, values

    def holds(self, length: int) -> bool:
        """Say whether all keys that the token after the first `length` of a row sees are still there.

        So must be the token before it, even if it is not seen: its block tells whether a cut is legal.
        """
        lost = torch.maximum(self._longest, self.lengths) - self.ring  # tokens that were overwritten
        needed = max(self.window - 1, 1)
        return length <= self.used and bool((lost <= max(0, length - needed)).all())

    def cut(self, length: int) -> None:
        """Forget the tokens from `length` on in every row, which the cache must still `hold`."""
        longest = torch.maximum(self._longest, self.lengths)
        super().cut(length)
        self._longest = longest if length else self.lengths.clone()

    def keep(self, rows: list[int]) -> None:
        """Keep only the given rows, in the given order; a row may be given more than once."""
        super().keep(rows)
        self._longest = self._longest[self._index(rows)]

    def _tensors(self) -> list[Tensor]:
        return [*super()._tensors(), self._longest]

    def _slots_of(self, layout: Layout, real: Tensor) -> Tensor:
        stays = real & (layout.position_ids >= self.lengths[:, None] - self.ring)
        return torch.where(stays, layout.position_ids % self.ring, self.ring)

    def _last_blocks(self) -> Tensor:
        slots = (self.lengths - 1).clamp(min=0) % self.ring
        return self.block_ids.gather(1, slots[:, None])[:, 0]

    def _blocks_at(self, position: int) -> Tensor:
        return self.block_ids[:, position % self.ring]
