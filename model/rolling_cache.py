"""The cache of layers that have a sliding window: it keeps the last tokens only."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kv_cache import KVCache, slot_layout
from model.masks import Layout

UNDO_TOKENS = 64
"""tokens kept beyond the window, so that as many may be taken back"""


def slots_of(positions: Tensor | int, ring: int | None) -> Tensor | int:
    """Return the slots of tokens at these positions, which repeat after `ring` tokens; None = never."""
    return positions % ring if ring else positions


def new_cache(config: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str) -> KVCache:
    """Return an empty cache for `batch` rows, which rolls in layers that see no farther than a window."""
    windows = {window or config.max_position_embeddings for window in config.layer_windows}
    if min(windows) >= config.max_position_embeddings:
        return KVCache(config, batch, dtype, device)
    return (RollingKVCache if len(windows) == 1 else MixedKVCache)(config, batch, dtype, device)


def part_of(window: int | None, num_parts: int) -> int:
    """Return which part of a cache is that of layers of a window."""
    return int(num_parts > 1 and window is not None)


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
        """longest that each row was before a truncation: all but its last `ring` tokens are overwritten"""

    def extend(self, layout: Layout) -> None:
        """Make room for tokens at the end of each row, as a cache that keeps every token does."""
        self._one_token = layout.position_ids.shape[1] == 1
        places = (self.positions[:, : self.ring], self.block_ids[:, : self.ring])
        old = None if self._one_token else slot_layout(*(x.clone() for x in places))
        super().extend(layout)
        self._keys = slot_layout(*places)
        if not self._one_token:
            self._keys = Layout(*(torch.cat(fields, dim=1) for fields in zip(old, layout, strict=True)))

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

    def can_truncate(self, length: int) -> bool:
        """Say whether all keys that the token after the first `length` of a row sees are still there.

        So must be the token before it, even if it is not seen: its block tells whether a cut is legal.
        """
        lost = torch.maximum(self._longest, self.lengths) - self.ring  # tokens that were overwritten
        needed = max(self.window - 1, 1)
        return length <= self.used and bool((lost <= max(0, length - needed)).all())

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on in every row, where the cache `can_truncate` to it."""
        longest = torch.maximum(self._longest, self.lengths)
        super().truncate(length)
        self._longest = longest if length else self.lengths.clone()

    def select(self, rows: list[int]) -> None:
        """Keep only the given rows, in the given order; a row may be given more than once."""
        super().select(rows)
        self._longest = self._longest[self._index(rows)]

    def _make_room(self, used: int) -> None:
        """Do nothing: all slots are there from the start."""

    def _slots_of(self, positions: Tensor | int) -> Tensor | int:
        return slots_of(positions, self.ring)

    def _choose_slots(self, positions: Tensor, real: Tensor) -> None:
        """Decide where tokens are stored; one whose slot a later one of the same call takes is not."""
        super()._choose_slots(positions, real & (positions >= self.lengths[:, None] - self.ring))

    def _tensors(self) -> list[Tensor]:
        return [*super()._tensors(), self._longest]


def _in_both(name: str) -> Callable[..., bool]:
    """Return a method that does the same in both caches, and says no where one of them does."""
    return lambda self, *inputs: all([getattr(part, name)(*inputs) is not False for part in self.parts])


class MixedKVCache(KVCache):
    """The caches of a model some of whose layers see everything: one that keeps all, and one that rolls."""

    parts: tuple[KVCache, ...] = ()
    lengths = property(lambda self: self.parts[0].lengths)
    used = property(lambda self: self.parts[0].used)
    extend, reserve, truncate = _in_both("extend"), _in_both("reserve"), _in_both("truncate")
    can_truncate, select = _in_both("can_truncate"), _in_both("select")

    def __init__(self, config: ModelConfig, *rest: int | torch.dtype | torch.device | str) -> None:
        kinds = [part_of(window, 2) for window in config.layer_windows]
        self._places = [(kind, kinds[:n].count(kind)) for n, kind in enumerate(kinds)]
        alike = replace(config, layer_types=None, value_residual=False)
        full = replace(alike, sliding_window=None, window_both_sides=False, num_hidden_layers=kinds.count(0))
        rolling = replace(alike, num_hidden_layers=kinds.count(1))
        self.parts = (KVCache(full, *rest), RollingKVCache(rolling, *rest))
        self.max_tokens = config.max_position_embeddings

    def keys_in(self, window: int | None) -> Layout:
        """Return the layout of the keys in layers of a window."""
        return self.parts[part_of(window, 2)].keys_in(window)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of new tokens in the cache of a layer; return those to attend to."""
        part, number = self._places[layer]
        return self.parts[part].update(number, k, v)

    def replace(self, rows: list[int], other: KVCache) -> None:
        """Put the rows of another cache of the same model in place of `rows`."""
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            mine.replace(rows, theirs)
