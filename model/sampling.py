"""From logits to the next token of one answer, and when that answer is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from model.sampling_settings import Sampling

if TYPE_CHECKING:
    from model.generator import Prompt

SMALLEST_TEMPERATURE = 1e-6  # below it logits / temperature overflows; its limit is greedy

FinishReason = Literal["stop", "length", "stop_string", "cancelled"]


@dataclass(frozen=True)
class Completion:
    """One answer: its ids without the stop id, why it ended, on request the log-probability of each id."""

    ids: tuple[int, ...]
    finish_reason: FinishReason
    log_probabilities: tuple[float, ...] | None = None


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Return logits (V,) with those of `seen` ids moved down (Keskar et al. 2019, arXiv 1909.05858)."""
    values = logits[seen]
    return logits.scatter(0, seen, torch.where(values > 0, values / penalty, values * penalty))


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return weights (V,) to draw from: temperature, then top-k, min-p and top-p.

    Top-p: Holtzman et al. 2020 (arXiv 1904.09751); min-p: Nguyen et al. 2024 (arXiv 2407.01082). The
    weights need not sum to 1.
    """
    scaled = (logits - logits.max()) / sampling.temperature  # at most 0: no temperature is too small
    if sampling.top_k is not None and sampling.top_k < len(scaled):
        best = scaled.topk(sampling.top_k)
        scaled = torch.full_like(scaled, float("-inf")).scatter(0, best.indices, best.values)
    distribution = scaled.softmax(dim=-1)
    if sampling.min_p:
        distribution = distribution * (distribution >= sampling.min_p * distribution.max())
    if sampling.top_p < 1:
        ordered, order = distribution.sort(descending=True)
        sufficed = ordered.cumsum(0) - ordered >= sampling.top_p  # by the mass before the token
        sufficed[0] = False
        distribution = torch.zeros_like(distribution).scatter(0, order, ordered.masked_fill(sufficed, 0.0))
    return distribution


class Answer:
    """An answer in the making: samples its own tokens and knows when it is done.

    Tokens are chosen on the CPU, wherever the model is, so that a seed draws alike everywhere.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Prompt,
        room: int,
        stop_ids: frozenset[int],
        is_stop: Callable[[int], bool] | None = None,
    ) -> None:
        self.sampling, self.stop_ids, self.is_stop = sampling, stop_ids, is_stop
        self.budget = min(sampling.max_new_tokens, room)
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None if self.budget else "length"
        self._log_probabilities: list[float] = []
        self.prompt = prompt
        self.reused_tokens = 0
        """tokens of the prompt whose states were there already (`model/prefix_cache.py`)"""
        self._random = torch.Generator().manual_seed(sampling.seed)

    def add_token(self, logits: Tensor) -> None:
        """Choose the next token from its logits (V,) and see whether it ends the answer."""
        logits = logits.to("cpu", torch.promote_types(torch.float32, logits.dtype))
        token = self._choose(logits)
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return
        self.ids.append(token)
        if self.sampling.log_probabilities:
            self._log_probabilities.append(float(logits.log_softmax(-1)[token]))
        if self.is_stop is not None and self.is_stop(token):
            self.finish_reason = "stop_string"
        elif len(self.ids) == self.budget:
            self.finish_reason = "length"

    def completion(self) -> Completion:
        """Return what there is so far."""
        scores = tuple(self._log_probabilities) if self.sampling.log_probabilities else None
        return Completion(tuple(self.ids), self.finish_reason or "cancelled", scores)

    def _choose(self, logits: Tensor) -> int:
        if self.sampling.repetition_penalty != 1:
            seen = torch.tensor([*{*self.prompt.ids, *self.ids}])
            logits = penalise(logits, seen, self.sampling.repetition_penalty)
        if self.sampling.temperature < SMALLEST_TEMPERATURE:
            return int(logits.argmax())
        return int(torch.multinomial(probabilities(logits, self.sampling), 1, generator=self._random))
