"""The cache of layers that see what is near: it keeps the last tokens, and sinks if there are any."""

from dataclasses import replace
from functools import partialmethod
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kv_cache import KVCache, slot_layout
from model.masks import Layout
from model.pattern import ALL, Pattern
from model.strategies import strategy_named

UNDO_TOKENS = 64
"""tokens kept beyond the window, so that as many may be taken back"""


class Ring(NamedTuple):
    """Slots that tokens take again and again, behind those of the first tokens, which keep theirs."""

    sinks: int
    length: int


def slots_of(index: Tensor | int, ring: Ring | None) -> Tensor | int:
    """Return the slots of tokens by their index in a row; without a ring, none is taken twice."""
    if ring is None:
        return index
    behind = (index - ring.sinks) * (index >= ring.sinks)
    return index - behind + behind % ring.length


def new_cache(config: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str) -> KVCache:
    """Return an empty cache for `batch` rows, which rolls in layers that see no farther than a window.

    Where passages share positions, a window holds any number of tokens, and all are kept.
    """
    patterns = {pattern.within(config.max_position_embeddings) for pattern in config.layer_patterns}
    if patterns == {ALL} or strategy_named(config.prompt_mask).passages != "open":
        return KVCache(config, batch, dtype, device)
    return (RollingKVCache if len(patterns) == 1 else MixedKVCache)(config, batch, dtype, device)


def part_of(pattern: Pattern, num_parts: int) -> int:
    """Return which part of a cache is that of layers of a pattern."""
    return int(num_parts > 1 and pattern != ALL)


class RollingKVCache(KVCache):
    """Keeps what a sliding window can still see, and a little more so that a few tokens may be taken back.

    The slot of a token is its position modulo the number of slots. A call of several tokens attends to the
    old keys and its own before anything is overwritten:

        window 3, 4 slots, tokens 0 … 4 seen       slots  4 1 2 3
        a call of tokens 5 6 attends to                   4 1 2 3 + 5 6      (1 and 2 lie outside the window)
        and leaves                                        4 5 6 3

    The first tokens of a document have slots of their own before these, if the layers always see them.
    """

    def __init__(
        self, config: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(config, batch, dtype, device)
        self.reach, sinks = config.local_pattern.reach, config.local_pattern.sinks
        self.ring = Ring(sinks, min(self.reach + UNDO_TOKENS, self.max_tokens))
        self.slots = sum(self.ring)
        self._grow(self.slots)
        self._longest = self.lengths.clone()
        """longest that each row was before a truncation: behind sinks, all but the last tokens that the ring
        has room for are overwritten"""

    def extend(self, layout: Layout) -> None:
        """Make room for tokens at the end of each row, as a cache that keeps every token does.

        Raises `ValueError` for parts, too, which may share positions.
        """
        if layout.part_ids is not None:
            raise ValueError("a rolling cache holds no parts; expected one of a model whose mask has them")
        self._one_token = layout.position_ids.shape[1] == 1
        places = (self.positions[:, : self.slots], self.block_ids[:, : self.slots])
        old = None if self._one_token else slot_layout(*(x.clone() for x in places))
        super().extend(layout)
        self._keys = slot_layout(*places)
        if not self._one_token:
            self._keys = Layout(*(torch.cat(each, dim=1) for each in zip(old[:3], layout[:3], strict=True)))

    def keys_in(self, pattern: Pattern) -> Layout:
        """Return the layout (B, Tk) of the keys that `update` returns."""
        return self._keys

    def index_in(self, pattern: Pattern) -> Tensor:
        """Return the index (B, Tk) of these keys in their row, which is their position."""
        return self._keys.position_ids

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, Hkv, T, D) of new tokens; return those to attend to (B, Hkv, Tk, D)."""
        if self._one_token:  # the slot it takes lies outside its window
            self._store(layer, k, v)
            return self.keys[layer][:, :, : self.slots], self.values[layer][:, :, : self.slots]
        keys, values = (
            torch.cat((store[layer][:, :, : self.slots], new.to(store[layer].dtype)), dim=2)
            for store, new in ((self.keys, k), (self.values, v))
        )
        self._store(layer, k, v)
        return keys, values

    def can_truncate(self, length: int) -> bool:
        """Say whether all keys that the token after the first `length` of a row sees are still there.

        So must be the token before it, even if it is not seen: its block tells whether a cut is legal.
        """
        lost = torch.maximum(self._longest, self.lengths) - self.ring.length  # overwritten up to there
        needed = max(self.reach - 1, 1)
        return length <= self.used and bool((lost <= max(self.ring.sinks, length - needed)).all())

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on in every row, where the cache `can_truncate` to it."""
        longest = torch.maximum(self._longest, self.lengths)
        super().truncate(length)
        self._longest = longest if length else self.lengths.clone()

    def select(self, rows: list[int]) -> None:
        """Keep only the given rows, in the given order; a row may be given more than once."""
        super().select(rows)
        self._longest = self._longest[self._index_of(rows)]

    def _make_room(self, used: int) -> None:
        """Do nothing: all slots are there from the start."""

    def _slot_index(self) -> Tensor:
        return self.positions

    def _slots_of(self, index: Tensor | int) -> Tensor | int:
        return slots_of(index, self.ring)

    def _choose_slots(self, index: Tensor, real: Tensor) -> None:
        """Decide where tokens are stored; one whose slot a later one of the same call takes is not."""
        stays = (index >= self.lengths[:, None] - self.ring.length) | (index < self.ring.sinks)
        super()._choose_slots(index, real & stays)

    def _tensors(self) -> list[Tensor]:
        return [*super()._tensors(), self._longest]


class MixedKVCache(KVCache):
    """The caches of a model some of whose layers see everything: one that keeps all, and one that rolls."""

    parts: tuple[KVCache, ...] = ()
    lengths = property(lambda self: self.parts[0].lengths)
    ends = property(lambda self: self.parts[0].ends)
    used = property(lambda self: self.parts[0].used)

    def _in_both(self, name: str, *inputs: object) -> bool:
        """Do the same in both caches, and say no where one of them does."""
        return all([getattr(part, name)(*inputs) is not False for part in self.parts])

    extend, reserve = partialmethod(_in_both, "extend"), partialmethod(_in_both, "reserve")
    can_truncate, truncate = partialmethod(_in_both, "can_truncate"), partialmethod(_in_both, "truncate")
    select = partialmethod(_in_both, "select")

    def __init__(self, config: ModelConfig, *rest: int | torch.dtype | torch.device | str) -> None:
        kinds = [part_of(pattern, 2) for pattern in config.layer_patterns]
        self._places = [(kind, kinds[:n].count(kind)) for n, kind in enumerate(kinds)]
        alike = replace(config, layer_types=None, value_residual=False)
        bounds = dict.fromkeys(("sliding_window", "attention_sinks", "attention_chunk_size"))
        full = replace(alike, **bounds, window_both_sides=False, num_hidden_layers=kinds.count(0))
        rolling = replace(alike, num_hidden_layers=kinds.count(1))
        self.parts = (KVCache(full, *rest), RollingKVCache(rolling, *rest))
        self.max_tokens = config.max_position_embeddings

    def keys_in(self, pattern: Pattern) -> Layout:
        """Return the layout of the keys in layers of a pattern."""
        return self.parts[part_of(pattern, 2)].keys_in(pattern)

    def index_in(self, pattern: Pattern) -> Tensor:
        """Return the index of these keys."""
        return self.parts[part_of(pattern, 2)].index_in(pattern)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of new tokens in the cache of a layer; return those to attend to."""
        part, number = self._places[layer]
        return self.parts[part].update(number, k, v)

    def replace(self, rows: list[int], other: KVCache) -> None:
        """Put the rows of another cache of the same model in place of `rows`."""
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            mine.replace(rows, theirs)
