"""States of earlier answers, from which prompts that begin alike take what the masks allow (the cut rule)."""

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from model.generator import Generator, Prompt, RunningBatch
from model.kv_cache import KVCache
from model.sampling import Answer
from model.session import reusable

MOST_ENTRIES = 64


class Kept(NamedTuple):
    """The computed tokens of a prompt and its answer."""

    tokens: Prompt
    cache: KVCache
    num_bytes: int


class PrefixCache:
    """Keeps rows of caches, up to a number of bytes; those that were not used for longest go first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.kept: list[Kept] = []  # the latest last

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values that are kept."""
        return sum(kept.num_bytes for kept in self.kept)

    def keep(self, tokens: Prompt, cache: KVCache) -> None:
        """Keep a cache of one row that holds these tokens, in place of those that it goes on from."""
        self.kept = [kept for kept in self.kept if tokens.part(0, len(kept.tokens.ids)) != kept.tokens]
        stores = [store for part in cache.parts for store in (*part.keys, *part.values)]
        self.kept.append(Kept(tokens, cache, sum(store.nbytes for store in stores)))
        while self.num_bytes > self.max_bytes or len(self.kept) > MOST_ENTRIES:
            del self.kept[0]

    def longest(self, prompt: Prompt) -> tuple[int, KVCache | None]:
        """Return how many tokens of a prompt can be reused, and a cache of one row that holds them."""
        best, most = None, 0
        for kept in reversed(self.kept):
            if kept.tokens.ids[: most + 1] == prompt.ids[: most + 1]:  # others cannot be better
                cut = reusable(kept.tokens, kept.cache, prompt)
                best, most = (kept, cut) if cut > most else (best, most)
        if best is None:
            return 0, None
        self.kept = [*(kept for kept in self.kept if kept is not best), best]
        found = row_of(best.cache, 0)
        found.truncate(most)
        return most, found


class SharingBatch(RunningBatch):
    """A batch whose prompts are computed from where an earlier one, or its answer, went another way."""

    def __init__(self, generator: Generator, prefixes: PrefixCache) -> None:
        super().__init__(generator)
        self.prefixes = prefixes

    def step(self, fresh: Sequence[Answer] = ()) -> list[tuple[Answer, Tensor]]:
        """Do a step, and keep the rows of answers that are finished by it."""
        chosen = super().step(fresh)
        for answer, _ in chosen:
            if answer.finish_reason:
                self.keep(answer)
        return chosen

    def prefill(self, fresh: Sequence[Answer]) -> tuple[KVCache, Tensor]:
        """Return a cache that holds the prompts of answers, and the logits (B, V) after each.

        Several answers to one prompt have it computed once.
        """
        prompts = [*{answer.prompt: None for answer in fresh}]
        begun, cuts = self.generator.model.new_cache(len(prompts)), []
        for row, prompt in enumerate(prompts):
            cut, there = self.prefixes.longest(prompt)
            if there is not None:
                begun.replace([row], there)
            cuts.append(cut)
        parts = [prompt.part(cut) for prompt, cut in zip(prompts, cuts, strict=True)]
        logits = self.generator.prefill(begun, parts)
        rows = [prompts.index(answer.prompt) for answer in fresh]
        for answer, row in zip(fresh, rows, strict=True):
            answer.reused_tokens = cuts[row]
        if len(rows) > len(prompts):
            begun.select(rows)
        return begun, torch.stack([logits[row] for row in rows])

    def keep(self, answer: Answer) -> None:
        """Keep the states of a finished answer in the batch."""
        row = row_of(self.cache, self.answers.index(answer))
        tokens = answer.prompt.append(answer.ids)
        self.prefixes.keep(tokens.part(0, int(row.lengths[0])), row)  # the last token may not have been fed


def row_of(cache: KVCache, row: int) -> KVCache:
    """Return a copy of one row, which takes no more room than it needs."""
    found = copy(cache)
    if len(cache.parts) > 1:
        found.parts = tuple(map(copy, cache.parts))
    found.select([row])
    for part in found.parts:
        if part.ring is None:
            part.trim()
    return found
