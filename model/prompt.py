"""Prompts: ids with what the rule needs to know of each, one by one or as the rows of a call."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from model.masks import Layout, legal_cuts
from model.strategies import CAUSAL, NO_PART


@dataclass(frozen=True)
class Prompt:
    """The tokens that an answer follows; a forced beginning of the answer comes last and is causal."""

    ids: tuple[int, ...]
    block_ids: tuple[int, ...]
    """block of each token under the model's prompt mask; -1 = causal"""
    places: tuple[tuple[int, int], ...] = ()
    """position and part of each token; empty where none is in a part, and positions go on by one"""

    def part(self, start: int, stop: int | None = None) -> "Prompt":
        """Return the tokens from `start` to before `stop`."""
        return Prompt(self.ids[start:stop], self.block_ids[start:stop], self.places[start:stop])

    def append(self, ids: Sequence[int]) -> "Prompt":
        """Return the prompt with causal tokens at its end."""
        added = Prompt(tuple(ids), (CAUSAL,) * len(ids))
        end = max((position for position, _ in self.places), default=-1) + 1
        places = (*self.places, *added.placed(end)) if self.places else ()
        return Prompt(self.ids + added.ids, self.block_ids + added.block_ids, places)

    def placed(self, begin: int = 0) -> tuple[tuple[int, int], ...]:
        """Return position and part of each token; where there are no parts, positions go on from `begin`."""
        return self.places or tuple((begin + n, NO_PART) for n in range(len(self.ids)))

    def chunks(self, most_tokens: int) -> list["Prompt"]:
        """Return parts of at most so many tokens, split at legal cuts; blocks stay whole."""
        if len(self.ids) <= most_tokens:
            return [self]
        legal = (legal_cuts(torch.tensor(self.block_ids)).nonzero().flatten() + 1).tolist()
        bounds = [0]
        # Cut as late as possible: where the part would be too long at the next legal cut.
        for cut, following in pairwise([*legal, math.inf]):
            if following - bounds[-1] > most_tokens:
                bounds.append(cut)
        return [self.part(begin, end) for begin, end in pairwise(bounds)]

    def num_shared(self, other: "Prompt") -> int:
        """Return how many tokens two whole prompts begin with, in the same places."""
        one, two = (list(zip(prompt.ids, prompt.placed(), strict=True)) for prompt in (self, other))
        pairs = enumerate(zip(one, two, strict=False))
        return next((n for n, (old, new) in pairs if old != new), min(len(one), len(two)))


def as_rows(parts: Sequence[Prompt], ends: Tensor) -> tuple[Tensor, Layout]:
    """Return ids (B, T) and layout of parts of any lengths, which go on at the positions `ends` (B,)."""
    longest = max(len(part.ids) for part in parts)

    def padded(rows: Iterable[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=ends.device)

    ids = padded((part.ids for part in parts), 0)
    blocks = padded((part.block_ids for part in parts), CAUSAL)
    documents = padded(([0] * len(part.ids) for part in parts), -1)
    if not any(part.places for part in parts):
        return ids, Layout(documents, ends[:, None] + torch.arange(longest, device=ends.device), blocks)
    rows = [part.placed(end) for part, end in zip(parts, ends.tolist(), strict=True)]
    positions, part_ids = (padded(([at[n] for at in row] for row in rows), NO_PART) for n in (0, 1))
    return ids, Layout(documents, positions, blocks, part_ids)
