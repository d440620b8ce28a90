"""One conversation after the other over one cache, of which each reply reuses as much as the masks allow."""

from collections.abc import Iterator

import torch
from torch import Tensor

from model.generator import Generator, Request
from model.kv_cache import KVCache
from model.masks import reusable_prefix
from model.prompt import Prompt
from model.sampling import Completion


class Session:
    """One conversation over one cache: each reply reuses as much of it as the masks allow."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._cache = self.generator.model.new_cache(1)
        self._cached = Prompt((), ())
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
                answer.add_token(logits[0])
                if answer.finish_reason != "stop":
                    yield answer.ids[-1]
                if not answer.finish_reason:
                    logits = self._decode(answer.ids[-1])
        finally:
            self.last = answer.completion()

    def _prefill(self, prompt: Prompt) -> Tensor:
        cut = reusable(self._cached, self._cache, prompt)
        self._cache.truncate(cut)
        self._cached = self._cached.part(0, cut)
        logits = self.generator.prefill(self._cache, [prompt.part(cut)])
        self._cached = prompt
        self.reused_tokens = cut + self.generator.copied_tokens
        self.prefilled_tokens = len(prompt.ids) - self.reused_tokens
        return logits

    def _decode(self, token: int) -> Tensor:
        logits = self.generator.decode(self._cache, [token])
        self._cached = self._cached.append([token])
        return logits


def reusable(cached: Prompt, cache: KVCache, prompt: Prompt) -> int:
    """Return how many tokens of a prompt need not be computed where `cache` holds those of `cached`.

    The last one always is, for its logits.
    """
    blocks = (torch.tensor(each.block_ids, dtype=torch.long) for each in (cached, prompt))
    cut = reusable_prefix(*blocks, min(cached.num_shared(prompt), len(prompt.ids) - 1))
    return cut if cache.can_truncate(cut) else 0
