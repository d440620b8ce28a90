"""Keys and values of the tokens seen so far, and the layout they were computed under.

`KVCache` keeps every token; `RollingKVCache`, for models whose every layer has a sliding window, keeps the
last ones only. A call of the model first `extend`s the cache with the layout of its tokens, then every layer
stores and reads with `update`, or the slots of one token per row are given to somebody who does both.
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

    Rows are right-padded and have lengths of their own. The last slot is where padding is written; no key
    view reaches it.
    """

    def __init__(
        self, config: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.max_tokens = config.max_position_embeddings
        shape = (batch, config.num_key_value_heads, 1, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.block_ids = torch.full((batch, 1), -1, device=device)  # (B, slots)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.used = 0
        """length of the longest row in tokens"""

    def extend(self, layout: Layout) -> Layout:
        """Make room for right-padded tokens of `layout` (B, T) at the end of each row.

        Returns the layout (B, Tk) of the keys that `update` will give; their positions are their place in
        the row. Raises `ValueError` for tokens that do not continue their row or whose block began before
        this call (the cut rule), and `UserError` when a row would pass `max_position_embeddings`.
        """
        self._check_continues(layout, layout.document_ids >= 0)
        return self.append(layout)

    def append(self, layout: Layout) -> Layout:
        """Do what `extend` does for a layout that is known to continue the rows."""
        real = layout.document_ids >= 0
        lengths = self.lengths + real.sum(1)
        used = int(lengths.max())
        if used > self.max_tokens:
            raise UserError(
                f"the context needs {used} tokens but the model takes {self.max_tokens}; "
                "shorten it or raise max_position_embeddings"
            )
        return self._place(layout, real, lengths, used)

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
        self.lengths = self.lengths.clamp(max=length)
        self.used = min(self.used, length)

    def keep(self, rows: list[int]) -> None:
        """Keep only the given rows, in the given order; a row may be given more than once."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        self.block_ids, self.lengths = self.block_ids[rows], self.lengths[rows]
        self.used = int(self.lengths.max()) if rows else 0

    @torch.no_grad()
    def replace(self, rows: list[int], other: KVCache) -> None:
        """Put the rows of another cache of the same model in place of `rows`."""
        slots = max(self.block_ids.shape[1], other.block_ids.shape[1])
        for cache in (self, other):
            cache._reserve(slots)
        for mine, theirs in zip(self.keys + self.values, other.keys + other.values, strict=True):
            mine[rows] = theirs
        self.block_ids[rows], self.lengths[rows] = other.block_ids, other.lengths
        self.used = int(self.lengths.max())

    def _place(self, layout: Layout, real: Tensor, lengths: Tensor, used: int) -> Layout:
        self._reserve(used + 1)
        self._remember_slots(torch.where(real, layout.position_ids, self.block_ids.shape[1] - 1), layout)
        self.lengths, self.used = lengths, used
        index = torch.arange(used, device=lengths.device).expand(len(lengths), -1)
        return Layout(torch.where(index < lengths[:, None], 0, -1), index, self.block_ids[:, :used])

    def _remember_slots(self, slots: Tensor, layout: Layout) -> None:
        self.slots = slots
        first = int(slots[0, 0])
        is_straight = bool((slots == torch.arange(first, first + slots.shape[1], device=slots.device)).all())
        self._straight = slice(first, first + slots.shape[1]) if is_straight else None
        self.block_ids.scatter_(1, slots, layout.block_ids)

    def _store(self, layer: int, k: Tensor, v: Tensor) -> None:
        for store, new in ((self.keys[layer], k), (self.values[layer], v)):
            if self._straight:
                store[:, :, self._straight] = new
            else:
                rows = torch.arange(len(new), device=new.device)[:, None]
                store[rows, :, self.slots] = new.transpose(1, 2).to(store.dtype)

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

    def _reserve(self, slots: int) -> None:
        missing = slots - self.block_ids.shape[1]
        if missing <= 0:
            return
        missing = -(-missing // GROWTH_TOKENS) * GROWTH_TOKENS
        self.block_ids = F.pad(self.block_ids, (0, missing), value=-1)
        self.keys = [F.pad(keys, (0, 0, 0, missing)) for keys in self.keys]
        self.values = [F.pad(values, (0, 0, 0, missing)) for values in self.values]


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
        self._reserve_exactly(self.ring + 1)
        self.positions = torch.full((batch, self.ring + 1), -1, device=device)
        self._lost = torch.zeros(
            batch, dtype=torch.long, device=device
        )  # tokens that were overwritten, per row

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
        """Say whether all keys that the token after the first `length` of a row sees are still there."""
        return length <= self.used and bool((self._lost <= max(0, length - self.window + 1)).all())

    def cut(self, length: int) -> None:
        """Forget the tokens from `length` on in every row, which the cache must still `hold`."""
        super().cut(length)
        self.positions = self.positions.masked_fill(self.positions >= length, -1)
        if length == 0:
            self._lost = torch.zeros_like(self._lost)

    def keep(self, rows: list[int]) -> None:
        """Keep only the given rows, in the given order; a row may be given more than once."""
        super().keep(rows)
        self.positions, self._lost = self.positions[rows], self._lost[rows]

    @torch.no_grad()
    def replace(self, rows: list[int], other: RollingKVCache) -> None:
        """Put the rows of another cache of the same model in place of `rows`."""
        super().replace(rows, other)
        self.positions[rows], self._lost[rows] = other.positions, other._lost

    def _place(self, layout: Layout, real: Tensor, lengths: Tensor, used: int) -> Layout:
        self._one_token = layout.position_ids.shape[1] == 1
        old = self._ring_layout()
        stays = real & (layout.position_ids >= lengths[:, None] - self.ring)
        slots = torch.where(stays, layout.position_ids % self.ring, self.ring)
        self._remember_slots(slots, layout)
        self.positions.scatter_(1, slots, layout.position_ids)
        self.positions[:, self.ring] = -1
        self.lengths, self.used = lengths, used
        self._lost = torch.maximum(self._lost, lengths - self.ring)
        if self._one_token:
            return self._ring_layout()
        return Layout(*(torch.cat(fields, dim=1) for fields in zip(old, layout, strict=True)))

    def _ring_layout(self) -> Layout:
        positions = self.positions[:, : self.ring].clone()
        return Layout(torch.where(positions >= 0, 0, -1), positions, self.block_ids[:, : self.ring].clone())

    def _last_blocks(self) -> Tensor:
        slots = (self.lengths - 1).clamp(min=0) % self.ring
        return self.block_ids.gather(1, slots[:, None])[:, 0]

    def _blocks_at(self, position: int) -> Tensor:
        return self.block_ids[:, position % self.ring]

    def _reserve(self, slots: int) -> None:
        """A ring does not grow."""

    def _reserve_exactly(self, slots: int) -> None:
        missing = slots - self.block_ids.shape[1]
        self.block_ids = F.pad(self.block_ids, (0, missing), value=-1)
        self.keys = [F.pad(keys, (0, 0, 0, missing)) for keys in self.keys]
        self.values = [F.pad(values, (0, 0, 0, missing)) for values in self.values]
