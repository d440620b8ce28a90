"""States of isolated passages, computed once and put into every conversation that holds them.

A passage that sees itself alone, from position 0 on, has the same keys and values wherever it stands (Sun et
al. 2024, arXiv 2409.15355; positions: `model/layouts.py`), so they are copied into a cache as they are.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from model.generator import Generator
from model.kv_cache import KVCache
from model.layouts import FIRST_ISOLATED
from model.prompt import Prompt, as_rows

States = list[tuple[Tensor, Tensor]]
"""keys and values (1, Hkv, n, D) of each layer"""
MOST_TOKENS = 2**16
"""tokens of passages that are kept; beyond, the one that was used least lately goes"""


class PassageGenerator(Generator):
    """A generator that computes an isolated passage once for all prompts that are prefilled one by one."""

    @cached_property
    def _kept(self) -> dict[tuple[int, ...], States]:
        """States by the ids of their passage, the least lately used first."""
        return {}

    @torch.no_grad()
    def prefill(self, cache: KVCache, prompts: Sequence[Prompt]) -> Tensor:
        """Feed non-empty prompts; return the logits (B, V) after each, as any generator does."""
        self.copied_tokens = 0
        if len(prompts) > 1:
            return super().prefill(cache, prompts)
        *runs, last = _runs(prompts[0])
        for run in runs:
            if run.places and run.places[0][0] == 0 and run.places[0][1] <= FIRST_ISOLATED:
                self._copy(cache, run)
            else:
                super().prefill(cache, [run])
        return super().prefill(cache, [last])

    def _copy(self, cache: KVCache, passage: Prompt) -> None:
        """Put the states of a whole passage behind those that a cache of one row holds."""
        if passage.ids in self._kept:
            self.copied_tokens += len(passage.ids)
        states = self._kept.pop(passage.ids, None) or self._computed(passage)
        self._kept[passage.ids] = states
        while sum(map(len, self._kept)) > MOST_TOKENS and len(self._kept) > 1:
            del self._kept[next(iter(self._kept))]
        cache.extend(as_rows([passage], cache.ends)[1])
        for layer, (k, v) in enumerate(states):
            cache.update(layer, k, v)

    def _computed(self, passage: Prompt) -> States:
        alone, n = self.model.new_cache(1), len(passage.ids)
        super().prefill(alone, [passage])
        return [
            (k[:, :, :n].clone(), v[:, :, :n].clone()) for k, v in zip(alone.keys, alone.values, strict=True)
        ]


def _runs(prompt: Prompt) -> Iterator[Prompt]:
    """Yield the parts of a prompt, and what stands between them, in order."""
    begin = 0
    for _, run in groupby(prompt.placed(), lambda place: place[1]):
        end = begin + len([*run])
        yield prompt.part(begin, end)
        begin = end
