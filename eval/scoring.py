"""How probable given continuations of prompts are, in batches that compute once what prompts share."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.errors import UserError
from model.generator import Generator, Prompt, Request
from model.kv_cache import KVCache
from model.prefix_cache import PrefixCache, SharingBatch, row_of

MOST_LOGITS = 2**27
"""that a batch has room for: half a gigabyte in float32"""
PREFIX_BYTES = 64 * 2**20
"""of states that later prompts go on from, such as those of examples before every question"""
Pair = tuple[Prompt, Sequence[int]]


class Scored(NamedTuple):
    """How probable the tokens of a continuation are."""

    log_probabilities: Tensor
    """(n,) in nats"""
    is_greedy: bool
    """whether each of them is the most probable one"""

    @property
    def total(self) -> float:
        """Log-probability of the continuation."""
        return float(self.log_probabilities.sum())


def score(generator: Generator, prompt: Prompt, continuations: Sequence[Sequence[int]]) -> list[Scored]:
    """Score continuations of one prompt, which is computed once; raises as `score_pairs` does."""
    pairs = [(prompt, ids) for ids in continuations]
    return [scored for _, scored in sorted(score_pairs(generator, pairs, len(pairs)), key=lambda s: s[0])]


def score_pairs(
    generator: Generator, pairs: Sequence[Pair], batch_size: int = 16
) -> Iterator[tuple[int, Scored]]:
    """Yield the number of each prompt and continuation with its score.

    Those of like lengths are computed together, `batch_size` at a time where their logits have room. Raises
    `UserError` where a continuation is empty, and for what no prompt can be, before any work; also where a
    continuation does not fit into the context.
    """
    if not all(ids for _, ids in pairs):
        raise UserError("a continuation is empty; it needs at least one token to be scored")
    answers = {prompt: generator.begin(Request(prompt)) for prompt, _ in pairs}
    shared = SharingBatch(generator, PrefixCache(PREFIX_BYTES))
    batches = [*_batches(pairs, batch_size, MOST_LOGITS // generator.model.config.vocab_size)]
    for batch in batches:
        prompts = [*dict.fromkeys(pairs[n][0] for n in batch)]
        cache, logits = shared.prefill([answers[prompt] for prompt in prompts])
        if batch is not batches[-1] and 2 * answers[prompts[-1]].reused_tokens < len(prompts[-1].ids):
            shared.prefixes.keep(prompts[-1], row_of(cache, len(prompts) - 1))
        rows = [prompts.index(pairs[n][0]) for n in batch]
        first = torch.stack([logits[row] for row in rows])
        scores = _score(generator, cache, first, rows, [pairs[n][1] for n in batch])
        yield from zip(batch, scores, strict=True)


def _batches(pairs: Sequence[Pair], batch_size: int, most_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of pairs to compute together: equal prompts and like lengths, longest last."""
    sizes = [(len(prompt.ids), prompt.ids, len(ids)) for prompt, ids in pairs]
    batch, longest = [], 0
    for n in sorted(range(len(pairs)), key=sizes.__getitem__):
        wide = max(longest, len(pairs[n][1]))
        if batch and (len(batch) == batch_size or (len(batch) + 1) * wide > most_tokens):
            yield batch
            batch, wide = [], len(pairs[n][1])
        batch.append(n)
        longest = wide
    if batch:
        yield batch


def _score(
    generator: Generator,
    cache: KVCache,
    first: Tensor,
    rows: Sequence[int],
    continuations: Sequence[Sequence[int]],
) -> Iterator[Scored]:
    """Yield scores of continuations after their rows of the cache; `first` (B, V) are the logits there."""
    rest = first[:, None][:, :0]  # (B, 0, V)
    fed = [Prompt((), ()).append(ids[:-1]) for ids in continuations]
    if any(part.ids for part in fed):
        cache.select(rows)
        rest = generator.feed(cache, fed)
    for row, ids in enumerate(continuations):
        logits = torch.cat((first[row, None], rest[row, : len(ids) - 1]))  # (n, V)
        wide = logits.to(torch.promote_types(torch.float32, logits.dtype)).log_softmax(-1)
        told = torch.tensor(ids, device=wide.device)
        yield Scored(wide.gather(1, told[:, None])[:, 0], bool((wide.argmax(-1) == told).all()))
