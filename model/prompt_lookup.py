"""Answers that copy: what follows the same tokens in the prompt is guessed, and a call checks all guesses.

    prompt     … the old town of Bern lies …
    answer     … town                            "of Bern lies" is guessed, which stands behind "town"
    one call   town of Bern lies                 gives the tokens after each: "of", "Bern", "."
    answer     … town of Bern .                  two guesses were right, and the token after them is known

Every token is chosen from its own logits, as without guesses, so answers are the same, sampled ones too. Only
rounding differs, as a call of several tokens sums in another order: of two near-ties it may choose the other.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch import Tensor

from model.generator import Generator, Request
from model.kv_cache import KVCache
from model.prompt import Prompt
from model.sampling import Answer, Completion
from model.strategies import CAUSAL

LONGEST = 3
"""tokens before a guess that must be the same in the prompt; where they are not, two, then one"""


def answers_by_lookup(
    generator: Generator, requests: Iterable[Request], most: int
) -> Iterator[tuple[int, Completion]]:
    """Yield the number of each request with its completion, one by one; a call checks up to `most` guesses.

    Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding), a form of speculative
    decoding (Leviathan et al. 2022, arXiv 2211.17192) without a second model.
    """
    for number, request in enumerate(requests):
        answer = generator.begin(request)
        if not answer.finish_reason:
            _finish(generator, answer, most)
        yield number, answer.completion()


def _finish(generator: Generator, answer: Answer, most: int) -> None:
    cache, ids = generator.model.new_cache(1), np.array(answer.prompt.ids)
    answer.add_token(generator.prefill(cache, [answer.prompt])[0])
    while not answer.finish_reason:
        room = answer.budget - len(answer.ids) - 1  # the last token is never fed
        guesses = following(ids, answer.ids, min(most, room))
        logits = _feed(generator, cache, [answer.ids[-1], *guesses]).cpu()
        right = 0
        for row, guess in zip(logits, [*guesses, None], strict=True):
            answer.add_token(row)
            if answer.finish_reason or answer.ids[-1] != guess:
                break
            right += 1
        cache.truncate(cache.used - (len(guesses) - right))


def _feed(generator: Generator, cache: KVCache, ids: Sequence[int]) -> Tensor:
    """Return the logits (n, V) after each of n causal tokens."""
    if len(ids) == 1:
        return generator.decode(cache, ids)
    return generator.feed(cache, [Prompt(tuple(ids), (CAUSAL,) * len(ids))])[0]


def following(prompt: np.ndarray, answer: Sequence[int], most: int) -> list[int]:
    """Return up to `most` tokens that stand in a prompt (n,) behind the first place of an answer's end."""
    for length in range(min(LONGEST, len(answer), len(prompt) - 1), 0, -1):
        starts = len(prompt) - length  # a token follows
        is_there = np.ones(starts, dtype=bool)
        for place, token in enumerate(answer[-length:]):
            is_there &= prompt[place : place + starts] == token
        if is_there.any():
            begin = int(is_there.argmax()) + length
            return prompt[begin : begin + max(most, 0)].tolist()
    return []
