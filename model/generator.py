"""Ids in, ids out: prefill under the model's own mask, decode one token per row and step, sample.

Knows no tokenizer and no text; `eval/chat.py` puts text on top.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.errors import UserError
from model.kv_cache import KVCache
from model.masks import Layout, longest_cut
from model.transformer import LanguageModel

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Prompt:
    """What one row is asked with."""

    ids: tuple[int, ...]
    block_ids: tuple[int, ...]
    """block of each token under the model's prompt mask; -1 = causal"""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop."""

    max_new_tokens: int = 256
    """most tokens to generate"""
    temperature: float = 0.0
    """divides the logits; 0 takes the most probable token"""
    top_k: int | None = None
    """keep only this many most probable tokens"""
    top_p: float = 1.0
    """keep the most probable tokens that reach this much probability together"""
    seed: int = 0
    """of the random choice; the same seed gives the same answer, whatever else is in the batch"""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise UserError(f"max_new_tokens must be at least 0, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be a number of at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1, got {self.top_k}")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p must be between 0 and 1, got {self.top_p}")


@dataclass(frozen=True)
class Completion:
    """One answer: its ids without the stop id, and why it ended."""

    ids: tuple[int, ...]
    finish_reason: FinishReason


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the distribution (V,) to draw from: temperature, top-k, top-p (Holtzman et al. 2020)."""
    scaled = logits.to(torch.promote_types(torch.float32, logits.dtype)) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(scaled):
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k).values[-1], float("-inf"))
    distribution, order = scaled.softmax(dim=-1).sort(descending=True)
    beyond = distribution.cumsum(0) - distribution >= sampling.top_p  # mass before the token suffices already
    beyond[0] = False
    return torch.zeros_like(scaled).scatter(0, order, distribution.masked_fill(beyond, 0.0))


class Answer:
    """An answer in the making: samples its own tokens and knows when it is done."""

    def __init__(self, sampling: Sampling, room: int, stop_ids: frozenset[int]) -> None:
        self.sampling, self.stop_ids = sampling, stop_ids
        self.budget = min(sampling.max_new_tokens, room)
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None if self.budget else "length"
        self._random = torch.Generator().manual_seed(sampling.seed)

    def take(self, logits: Tensor) -> None:
        """Choose the next token from its logits (V,) and see whether it ends the answer."""
        token = self._choose(logits)
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return
        self.ids.append(token)
        if len(self.ids) == self.budget:
            self.finish_reason = "length"

    def _choose(self, logits: Tensor) -> int:
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(probabilities(logits, self.sampling).cpu(), 1, generator=self._random))


class Generator:
    """Batched generation with a model and its stop ids.

    generator = Generator(checkpoint.model, checkpoint.stop_ids)
    [completion] = generator.generate([prompt], Sampling(max_new_tokens=32))
    """  # noqa: D214

    def __init__(self, model: LanguageModel, stop_ids: Iterable[int]) -> None:
        self.model = model.eval()
        self.stop_ids = frozenset(stop_ids)
        self.max_tokens = model.config.max_position_embeddings

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Answer prompts of any lengths as one batch, in their order; rows that are done leave the batch.

        Raises `UserError` for a prompt that is empty or longer than the model's context.
        """
        answers = [self.begin(prompt, sampling) for prompt in prompts]
        active = [n for n, answer in enumerate(answers) if answer.finish_reason is None]
        cache = self.new_cache(len(active))
        logits = self.prefill(cache, [prompts[n] for n in active]) if active else None
        while active:
            for n, row_logits in zip(active, logits, strict=True):
                answers[n].take(row_logits)
            going = [row for row, n in enumerate(active) if answers[n].finish_reason is None]
            if len(going) < len(active):
                cache.keep(going)
                active = [active[row] for row in going]
            if active:
                logits = self.decode(cache, [answers[n].ids[-1] for n in active])
        return [Completion(tuple(answer.ids), answer.finish_reason) for answer in answers]

    def begin(self, prompt: Prompt, sampling: Sampling) -> Answer:
        """Check a prompt and return its answer, still empty."""
        if not prompt.ids:
            raise UserError("the prompt is empty; a model needs at least one token to continue")
        if len(prompt.ids) > self.max_tokens:
            raise UserError(
                f"prompt has {len(prompt.ids)} tokens but the model takes {self.max_tokens}; "
                "shorten it or raise max_position_embeddings"
            )
        return Answer(sampling, self.max_tokens - len(prompt.ids) + 1, self.stop_ids)

    def new_cache(self, batch: int) -> KVCache:
        """Return an empty cache for `batch` rows in the model's dtype."""
        weight = self.model.lm_head.weight
        return KVCache(self.model.config, batch, weight.dtype, weight.device)

    @torch.inference_mode()
    def prefill(self, cache: KVCache, chunks: Sequence[Prompt]) -> Tensor:
        """Feed one non-empty chunk of tokens per row, of any lengths; return the logits (B, V) after it.

        Raises `ValueError` when a chunk continues a block that the cache already holds a part of.
        """
        device = cache.lengths.device
        longest = max(len(chunk.ids) for chunk in chunks)
        ids, blocks = (
            torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], device=device)
            for rows, fill in (([c.ids for c in chunks], 0), ([c.block_ids for c in chunks], -1))
        )
        counts = torch.tensor([len(chunk.ids) for chunk in chunks], device=device)
        index = torch.arange(longest, device=device)
        documents = torch.where(index < counts[:, None], 0, -1)
        layout = Layout(documents, cache.lengths[:, None] + index, blocks)
        hidden = self.model.model(ids, layout, cache)
        return self.model.lm_head(hidden[torch.arange(len(chunks)), counts - 1])

    @torch.inference_mode()
    def decode(self, cache: KVCache, ids: Sequence[int]) -> Tensor:
        """Feed one causal token per row; return the logits (B, V) after it."""
        tokens = torch.tensor(ids, device=cache.lengths.device)[:, None]
        layout = Layout(torch.zeros_like(tokens), cache.lengths[:, None], torch.full_like(tokens, -1))
        return self.model.lm_head(self.model.model(tokens, layout, cache)[:, 0])


class Session:
    """One conversation over one cache: each reply computes only what the cut rule does not let it reuse."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._cache = self.generator.new_cache(1)
        self._ids: list[int] = []
        self._block_ids: list[int] = []
        self.reused_tokens = self.prefilled_tokens = 0
        self.last: Completion | None = None

    def reply(self, prompt: Prompt, sampling: Sampling) -> Iterator[int]:
        """Yield the answer to the whole conversation so far, id by id; `last` is the completion afterwards.

        Closing the iterator cancels the answer. Raises `UserError` for a prompt that is empty or too long.
        """
        answer = self.generator.begin(prompt, sampling)
        self.last = None
        try:
            logits = self._prefill(prompt) if answer.finish_reason is None else None
            while answer.finish_reason is None:
                answer.take(logits[0])
                if answer.finish_reason != "stop":
                    yield answer.ids[-1]
                if answer.finish_reason is None:
                    logits = self._decode(answer.ids[-1])
        finally:
            self.last = Completion(tuple(answer.ids), answer.finish_reason or "cancelled")

    def _prefill(self, prompt: Prompt) -> Tensor:
        agree = next(
            (n for n, (old, new) in enumerate(zip(self._ids, prompt.ids, strict=False)) if old != new),
            min(len(self._ids), len(prompt.ids)),
        )
        cut = longest_cut(
            torch.tensor(self._block_ids, dtype=torch.long),
            torch.tensor(prompt.block_ids),
            min(agree, len(prompt.ids) - 1),
        )
        self._cache.cut(torch.tensor([cut]))
        self._ids, self._block_ids = self._ids[:cut], self._block_ids[:cut]
        self.reused_tokens, self.prefilled_tokens = cut, len(prompt.ids) - cut
        logits = self.generator.prefill(self._cache, [Prompt(prompt.ids[cut:], prompt.block_ids[cut:])])
        self._ids, self._block_ids = list(prompt.ids), list(prompt.block_ids)
        return logits

    def _decode(self, token: int) -> Tensor:
        logits = self.generator.decode(self._cache, [token])
        self._ids.append(token)
        self._block_ids.append(-1)
        return logits
