"""Ids in, ids out: prefill under the model's own mask, then decode one token per row and step.

`model/sampling.py` chooses the tokens. Tokenizer and text are not known here; `eval/chat.py` adds them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor

from model.errors import UserError
from model.kv_cache import KVCache
from model.prompt import Prompt, as_rows
from model.sampling import Answer, Completion, Sampling
from model.transformer import LanguageModel


@dataclass(frozen=True)
class Request:
    """A prompt and how it is to be answered."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
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
        step: Callable[[Tensor, KVCache], Tensor] | None = None,
    ) -> None:
        """Decode with `step` where a faster one than `model.step` is given (`model/decoding.py`)."""
        self.model = model.eval()
        self.step = step or model.step
        self.stop_ids = frozenset(stop_ids)
        self.max_tokens = model.config.max_position_embeddings
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.copied_tokens = 0
        """of the last prefill, tokens whose states were there from other prompts"""

    def generate(self, requests: Sequence[Request], batch_size: int = 16) -> list[Completion]:
        """Answer requests of any lengths, in their order, `batch_size` at a time.

        Raises `UserError` for a prompt that is empty or longer than the model's context, before any work.
        """
        return [completion for _, completion in sorted(self.stream(requests, batch_size), key=lambda c: c[0])]

    def stream(
        self, requests: Sequence[Request], batch_size: int = 16, batch: "RunningBatch | None" = None
    ) -> Iterator[tuple[int, Completion]]:
        """Yield the number of each request with its completion, in the order in which they finish.

        A row whose answer is finished takes the next request, so no row of the batch waits for another. It
        may be a `batch` that shares what prompts begin with (`model/prefix_cache.py`).
        """
        answers = [self.begin(request) for request in requests]
        number = {answer: n for n, answer in enumerate(answers)}
        yield from ((n, answer.completion()) for answer, n in number.items() if answer.finish_reason)
        batch = batch or RunningBatch(self)
        waiting = deque(answer for answer in answers if not answer.finish_reason)
        while waiting or batch.num_going:
            room = batch_size - batch.num_going
            for answer, _ in batch.step([waiting.popleft() for _ in range(min(room, len(waiting)))]):
                if answer.finish_reason:
                    yield number[answer], answer.completion()

    def begin(self, request: Request) -> Answer:
        """Check a prompt and return its answer, still empty."""
        prompt = request.prompt
        if not prompt.ids:
            raise UserError("the prompt is empty; a model needs at least one token to continue")
        known = self.model.config.vocab_size
        if strange := [token for token in prompt.ids if not 0 <= token < known]:
            raise UserError(
                f"the prompt holds token {strange[0]} but the model knows {known}; fine-tune it on "
                "conversations with it, which makes room, or leave it out (--raw writes no marks of turns)"
            )
        if len(prompt.ids) > self.max_tokens:
            fault = f"prompt has {len(prompt.ids)} tokens but the model takes {self.max_tokens}"
            raise UserError(f"{fault}; shorten it or raise max_position_embeddings")
        room = self.max_tokens - len(prompt.ids) + 1  # the last token of an answer is never fed
        return Answer(request.sampling, prompt, room, self.stop_ids, request.is_stop)

    @torch.no_grad()
    def prefill(self, cache: KVCache, prompts: Sequence[Prompt]) -> Tensor:
        """Feed non-empty prompts of any lengths, one per row; return the logits (B, V) after each.

        Long ones are fed in chunks. Raises `ValueError` when a prompt continues a block of which the cache
        already holds a part.
        """
        last = [None] * len(prompts)  # hidden state (C,) of the last token fed so far, per row
        chunks = [prompt.chunks(self.prefill_chunk_tokens) for prompt in prompts]
        for parts in zip_longest(*chunks, fillvalue=Prompt((), ())):
            hidden = self._hidden(cache, parts)
            for row, part in enumerate(parts):
                if part.ids:
                    last[row] = hidden[row, len(part.ids) - 1]
        return self.model.logits(torch.stack(last))

    @torch.no_grad()
    def decode(self, cache: KVCache, ids: Sequence[int]) -> Tensor:
        """Feed one causal token per row; return the logits (B, V) after it."""
        return self.step(torch.tensor([[token] for token in ids], device=cache.lengths.device), cache)

    @torch.no_grad()
    def feed(self, cache: KVCache, parts: Sequence[Prompt]) -> Tensor:
        """Feed parts of any lengths, not all empty, one per row; return the logits (B, T, V) after each."""
        return self.model.logits(self._hidden(cache, parts))

    def _hidden(self, cache: KVCache, parts: Sequence[Prompt]) -> Tensor:
        """Feed parts of any lengths, at least one of them not empty; return hidden states (B, T, C)."""
        ids, layout = as_rows(parts, cache.ends)
        return self.model.model(ids, layout, cache)


class RunningBatch:
    """Answers in the making, one in each row of a cache; others may join between any two steps.

    step    1   2   3   4   5   6
    row 0   A   a   .   a   .   a       capitals are prompts, small letters one token each
    row 1   B   b   D   d   .   d       B is finished, so D takes its row; with no one waiting it is dropped
    row 2                   E   e       E joins by a row of its own
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.answers: list[Answer] = []
        """the answer in each row of the cache, going on or finished"""
        self.cache: KVCache | None = None

    @property
    def num_going(self) -> int:
        """Number of answers that are not finished."""
        return sum(not answer.finish_reason for answer in self.answers)

    def step(self, fresh: Sequence[Answer] = ()) -> list[tuple[Answer, Tensor]]:
        """Prefill the prompts of `fresh` answers, or decode a token of all others; add a token to each.

        Returns the answers that got one, with the logits (V,) that it was chosen from.
        """
        if fresh:
            begun, logits = self.prefill(fresh)
            self._place(fresh, begun)
        elif self._drop_finished():
            logits = self.generator.decode(self.cache, [answer.ids[-1] for answer in self.answers])
        else:
            return []
        chosen = list(zip(fresh or self.answers, logits.cpu(), strict=True))  # one copy for all rows
        for answer, row_logits in chosen:
            answer.add_token(row_logits)
        return chosen

    def prefill(self, fresh: Sequence[Answer]) -> tuple[KVCache, Tensor]:
        """Return a cache that holds the prompts of answers, and the logits (B, V) after each."""
        begun = self.generator.model.new_cache(len(fresh))
        return begun, self.generator.prefill(begun, [answer.prompt for answer in fresh])

    def _place(self, fresh: Sequence[Answer], begun: KVCache) -> None:
        """Put the rows of `begun` in place of finished ones, and behind the last where there are too few."""
        if self.cache is None:  # the first ones bring it
            self.cache, self.answers = begun, list(fresh)
            return
        old = range(len(self.answers))
        rows = [row for row in old if self.answers[row].finish_reason][: len(fresh)]
        if missing := fresh[len(rows) :]:
            self.cache.select([*old, *(0 for _ in missing)])  # copies of any row, which are replaced
            rows += range(len(old), len(old) + len(missing))
            self.answers += missing
        self.cache.replace(rows, begun)
        for row, answer in zip(rows, fresh, strict=True):
            self.answers[row] = answer

    def _drop_finished(self) -> bool:
        """Take finished rows out of the cache, so that no step computes them; say whether any stay."""
        going = [row for row, answer in enumerate(self.answers) if not answer.finish_reason]
        if not going:
            self.cache = None
        elif len(going) < len(self.answers):
            self.cache.select(going)
        self.answers = [self.answers[row] for row in going]
        return bool(going)
