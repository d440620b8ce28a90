"""How probable a model finds given continuations of prompts."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from model.errors import UserError
from model.generator import Generator, Prompt, Request
from model.kv_cache import KVCache


def score(generator: Generator, prompt: Prompt, continuations: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the log-probability of every token (n,) of each continuation; the prompt is computed once.

    Raises `UserError` where a continuation is empty or does not fit into the context.
    """
    _check(generator, [prompt], continuations)
    cache = generator.model.new_cache(1)
    first = generator.prefill(cache, [prompt])
    cache.select([0] * len(continuations))
    return _scores(generator, cache, first.expand(len(continuations), -1), continuations)


def score_pairs(
    generator: Generator, pairs: Sequence[tuple[Prompt, Sequence[int]]], batch_size: int = 16
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each prompt and continuation with the log-probability of its tokens (n,).

    Those of like lengths are computed together, `batch_size` at a time. Raises as `score` does, before any
    work but where a continuation does not fit.
    """
    _check(generator, *([pair[side] for pair in pairs] for side in (0, 1)))
    by_length = sorted(range(len(pairs)), key=lambda n: len(pairs[n][0].ids) + len(pairs[n][1]))
    for begin in range(0, len(pairs), batch_size):
        numbers = by_length[begin : begin + batch_size]
        cache = generator.model.new_cache(len(numbers))
        first = generator.prefill(cache, [pairs[n][0] for n in numbers])
        scores = _scores(generator, cache, first, [pairs[n][1] for n in numbers])
        yield from zip(numbers, scores, strict=True)


def _check(generator: Generator, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]]) -> None:
    if not all(continuations):
        raise UserError("a continuation is empty; it needs at least one token to be scored")
    for prompt in prompts:
        generator.begin(Request(prompt))


def _scores(
    generator: Generator, cache: KVCache, first: Tensor, continuations: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Score a continuation per row after what the cache holds; `first` (B, V) are the logits there."""
    fed = [Prompt((), ()).append(ids[:-1]) for ids in continuations]
    rest = generator.feed(cache, fed) if any(part.ids for part in fed) else first[:, None][:, :0]
    scores = []
    for row, ids in enumerate(continuations):
        logits = torch.cat((first[row, None], rest[row, : len(ids) - 1]))  # (n, V)
        wide = logits.to(torch.promote_types(torch.float32, logits.dtype)).log_softmax(-1)
        scores.append(wide.gather(1, torch.tensor(ids, device=wide.device)[:, None])[:, 0])
    return scores
