"""Ids in, ids out: prefill under the model's own mask, decode a token per row and step, score continuations.

Knows no tokenizer and no text; `eval/chat.py` puts text on top. How a token is chosen is
`model/sampling.py`'s.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoding import Steps
from model.errors import UserError
from model.kv_cache import KVCache, new_cache
from model.masks import Layout, longest_cut, reach
from model.sampling import Answer, Completion, Sampling
from model.transformer import LanguageModel


@dataclass(frozen=True)
class Prompt:
    """What one row is asked with; a forced beginning of the answer stands at its end, causal."""

    ids: tuple[int, ...]
    block_ids: tuple[int, ...]
    """block of each token under the model's prompt mask; -1 = causal"""

    def part(self, start: int, stop: int | None = None) -> "Prompt":
        """Return the tokens from `start` on, up to `stop`."""
        return Prompt(self.ids[start:stop], self.block_ids[start:stop])

    def then(self, ids: Sequence[int]) -> "Prompt":
        """Return the prompt with the forced beginning of its answer: causal tokens at its end."""
        return Prompt((*self.ids, *ids), (*self.block_ids, *(-1 for _ in ids)))


@dataclass(frozen=True)
class Request:
    """A prompt and how it is to be answered."""

    prompt: Prompt
    sampling: Sampling = Sampling()
    is_stop: Callable[[int], bool] | None = None
    """called with every token of the answer; True ends it, as a stop string does"""


class Generator:
    """Batched generation with a model and its stop ids.

    generator = Generator(checkpoint.model, checkpoint.stop_ids)
    [completion] = generator.generate([Request(prompt, Sampling(max_new_tokens=32))])
    """

    def __init__(
        self,
        model: LanguageModel,
        stop_ids: Iterable[int],
        prefill_chunk_tokens: int = 512,
        steps: Steps | None = None,
    ) -> None:
        """Take what the steps of decoding go through, by default the model as it is written."""
        self.model = model.eval()
        self.steps = steps or Steps(model)
        self.stop_ids = frozenset(stop_ids)
        self.max_tokens = model.config.max_position_embeddings
        self.prefill_chunk_tokens = prefill_chunk_tokens

    def generate(self, requests: Sequence[Request], batch_size: int = 16) -> list[Completion]:
        """Answer requests of any lengths, in their order, `batch_size` at a time.

        Raises `UserError` for a prompt that is empty or longer than the model's context, before any work.
        """
        return [completion for _, completion in sorted(self.stream(requests, batch_size), key=lambda c: c[0])]

    def stream(self, requests: Sequence[Request], batch_size: int = 16) -> Iterator[tuple[int, Completion]]:
        """Yield the number of each request with its completion, as they are done.

        A row whose answer is done takes the next request, so no row of the batch ever waits for another.
        """
        answers = [self.begin(request) for request in requests]
        yield from ((n, answer.completion()) for n, answer in enumerate(answers) if answer.finish_reason)
        queue = deque(n for n, answer in enumerate(answers) if not answer.finish_reason)
        cache, rows = None, []  # rows[r] is the number of the request in row r of the cache
        while queue or rows:
            free = [row for row, n in enumerate(rows) if answers[n].finish_reason]
            fresh = [queue.popleft() for _ in range(min(len(queue), batch_size - len(rows) + len(free)))]
            if fresh:
                begun = self.new_cache(len(fresh))
                logits = self.prefill(begun, [requests[n].prompt for n in fresh])
                cache, rows = _place(cache, rows, begun, fresh, free)
            elif free:
                going = [row for row in range(len(rows)) if row not in free]
                cache.keep(going)
                rows = [rows[row] for row in going]
                continue
            else:
                logits = self.decode(cache, [answers[n].ids[-1] for n in rows])
            for n, row_logits in zip(fresh or rows, logits.cpu(), strict=True):  # one copy for all rows
                answers[n].take(row_logits)
                if answers[n].finish_reason:
                    yield n, answers[n].completion()

    def begin(self, request: Request) -> Answer:
        """Check a prompt and return its answer, still empty."""
        prompt = request.prompt
        if not prompt.ids:
            raise UserError("the prompt is empty; a model needs at least one token to continue")
        if max(prompt.ids) >= (known := self.model.config.vocab_size):
            raise UserError(
                f"the prompt holds token {max(prompt.ids)} but the model knows {known}; fine-tune it on "
                "conversations with it, which makes room, or leave it out (--raw writes no marks of turns)"
            )
        if len(prompt.ids) > self.max_tokens:
            raise UserError(
                f"prompt has {len(prompt.ids)} tokens but the model takes {self.max_tokens}; "
                "shorten it or raise max_position_embeddings"
            )
        room = self.max_tokens - len(prompt.ids) + 1  # the last token is never fed
        return Answer(request.sampling, prompt.ids, room, self.stop_ids, request.is_stop)

    def score(self, prompt: Prompt, continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the log-probability of every token (n,) of each continuation; the prompt is computed once.

        Raises `UserError` where a continuation is empty or does not fit into the context.
        """
        self._check_scored([prompt], continuations)
        cache = self.new_cache(1)
        first = self.prefill(cache, [prompt])
        cache.keep([0] * len(continuations))
        return self._scores(cache, first.expand(len(continuations), -1), continuations)

    def score_pairs(
        self, pairs: Sequence[tuple[Prompt, Sequence[int]]], batch_size: int = 16
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each prompt and continuation with the log-probability of its tokens (n,).

        Those of like lengths are computed together, `batch_size` at a time. Raises as `score` does, before
        any work but where a continuation does not fit.
        """
        self._check_scored(*([pair[side] for pair in pairs] for side in (0, 1)))
        by_length = sorted(range(len(pairs)), key=lambda n: len(pairs[n][0].ids) + len(pairs[n][1]))
        for begin in range(0, len(pairs), batch_size):
            numbers = by_length[begin : begin + batch_size]
            cache = self.new_cache(len(numbers))
            first = self.prefill(cache, [pairs[n][0] for n in numbers])
            yield from zip(numbers, self._scores(cache, first, [pairs[n][1] for n in numbers]), strict=True)

    def _check_scored(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[int]]) -> None:
        if not all(continuations):
            raise UserError("a continuation is empty; it needs at least one token to be scored")
        for prompt in prompts:
            self.begin(Request(prompt))

    def _scores(self, cache: KVCache, first: Tensor, continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """Score a continuation per row after what the cache holds; `first` (B, V) are the logits there."""
        fed = [Prompt(tuple(ids[:-1]), (-1,) * (len(ids) - 1)) for ids in continuations]
        rest = self.feed(cache, fed) if any(part.ids for part in fed) else first[:, None][:, :0]
        scores = []
        for row, ids in enumerate(continuations):
            logits = torch.cat((first[row, None], rest[row, : len(ids) - 1]))  # (n, V)
            wide = logits.to(torch.promote_types(torch.float32, logits.dtype)).log_softmax(-1)
            scores.append(wide.gather(1, torch.tensor(ids, device=wide.device)[:, None])[:, 0])
        return scores

    def new_cache(self, batch: int) -> KVCache:
        """Return an empty cache for `batch` rows in the model's dtype."""
        weight = self.model.model.embed_tokens.weight
        return new_cache(self.model.config, batch, weight.dtype, weight.device)

    @torch.no_grad()
    def prefill(self, cache: KVCache, prompts: Sequence[Prompt]) -> Tensor:
        """Feed non-empty prompts of any lengths, one per row; return the logits (B, V) after each.

        Long ones go in chunks that end at legal cuts. Raises `ValueError` when a prompt continues a block
        that the cache already holds a part of.
        """
        last = [None] * len(prompts)
        cuts = [self._cuts(prompt) for prompt in prompts]
        begin = [0] * len(prompts)
        while any(cuts):
            ends = [row.popleft() if row else start for row, start in zip(cuts, begin, strict=True)]
            parts = [p.part(a, b) for p, a, b in zip(prompts, begin, ends, strict=True)]
            hidden = self._hidden(cache, parts)
            last = [
                hidden[row, len(part.ids) - 1] if part.ids else former
                for row, (part, former) in enumerate(zip(parts, last, strict=True))
            ]
            begin = ends
        return self.model.lm_head(torch.stack(last))

    @torch.no_grad()
    def decode(self, cache: KVCache, ids: Sequence[int]) -> Tensor:
        """Feed one causal token per row; return the logits (B, V) after it."""
        return self.steps(torch.tensor([[token] for token in ids], device=cache.lengths.device), cache)

    def _cuts(self, prompt: Prompt) -> deque[int]:
        """Return where the chunks of a prompt end: legal cuts, as far apart as the chunk size allows."""
        if len(prompt.ids) <= self.prefill_chunk_tokens:
            return deque([len(prompt.ids)])
        farthest = reach(torch.tensor(prompt.block_ids)).cummax(0).values
        legal = ((farthest == torch.arange(len(farthest))).nonzero().flatten() + 1).tolist()
        cuts, begin = deque(), 0
        for cut, following in zip(legal, [*legal[1:], None], strict=True):
            if following is None or following - begin > self.prefill_chunk_tokens:
                cuts.append(cut)
                begin = cut
        return cuts

    @torch.no_grad()
    def feed(self, cache: KVCache, parts: Sequence[Prompt]) -> Tensor:
        """Feed parts of any lengths, not all empty, one per row; return logits (B, T, V)."""
        return self.model.lm_head(self._hidden(cache, parts))

    def _hidden(self, cache: KVCache, parts: Sequence[Prompt]) -> Tensor:
        """Feed parts of any lengths, at least one of them not empty; return hidden states (B, T, C)."""
        device = cache.lengths.device
        longest = max(len(part.ids) for part in parts)
        ids, blocks = (
            torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=device)
            for rows, fill in (([part.ids for part in parts], 0), ([part.block_ids for part in parts], -1))
        )
        counts = torch.tensor([len(part.ids) for part in parts], device=device)
        index = torch.arange(longest, device=device)
        documents = torch.where(index < counts[:, None], 0, -1)
        return self.model.model(ids, Layout(documents, cache.lengths[:, None] + index, blocks), cache)


def _place(
    cache: KVCache | None, rows: list[int], begun: KVCache, fresh: list[int], free: list[int]
) -> tuple[KVCache, list[int]]:
    """Let fresh requests, begun in a cache of their own, take the free rows; the first bring the cache."""
    if cache is None:
        return begun, fresh
    taken = free[: len(fresh)]
    cache.replace(taken, begun)
    numbers = dict(zip(taken, fresh, strict=True))
    return cache, [numbers.get(row, n) for row, n in enumerate(rows)]


class Session:
    """One conversation over one cache: each reply computes only what the cut rule does not let it reuse."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._cache = self.generator.new_cache(1)
        self._known = Prompt((), ())
        self.reused_tokens = self.prefilled_tokens = 0
        self.last: Completion | None = None

    def reply(self, request: Request) -> Iterator[int]:
        """Yield the answer to the whole conversation so far, id by id; `last` is the completion afterwards.

        Closing the iterator cancels the answer. Raises `UserError` for a prompt that is empty or too long.
        """
        answer = self.generator.begin(request)
        self.last, self.reused_tokens, self.prefilled_tokens = None, 0, 0
        try:
            logits = None if answer.finish_reason else self._prefill(request.prompt)
            while not answer.finish_reason:
                answer.take(logits[0])
                if answer.finish_reason != "stop":
                    yield answer.ids[-1]
                if not answer.finish_reason:
                    logits = self._decode(answer.ids[-1])
        finally:
            self.last = answer.completion()

    def _prefill(self, prompt: Prompt) -> Tensor:
        cut = self._reusable(prompt)
        self._cache.cut(cut)
        self._known = self._known.part(0, cut)
        logits = self.generator.prefill(self._cache, [prompt.part(cut)])
        self._known = prompt
        self.reused_tokens, self.prefilled_tokens = cut, len(prompt.ids) - cut
        return logits

    def _reusable(self, prompt: Prompt) -> int:
        """Return how many tokens need not be computed again; one at least is left, for its logits."""
        pairs = enumerate(zip(self._known.ids, prompt.ids, strict=False))
        same = next((n for n, (old, new) in pairs if old != new), min(len(self._known.ids), len(prompt.ids)))
        known, wanted = (torch.tensor(p.block_ids, dtype=torch.long) for p in (self._known, prompt))
        cut = longest_cut(known, wanted, min(same, len(prompt.ids) - 1))
        return cut if self._cache.holds(cut) else 0

    def _decode(self, token: int) -> Tensor:
        logits = self.generator.decode(self._cache, [token])
        self._known = Prompt((*self._known.ids, token), (*self._known.block_ids, -1))
        return logits
