"""The prompt masks: which messages of a conversation are blocks, whose tokens see each other both ways.

A conversation is a word here, with a letter for each message: A for an answer, U for any other (of the
system, a user or a tool). A strategy is a function from such a word and the number of a message to the block
of its tokens. Its docstring draws, and says in words, what that makes of the conversation UUAUA, whose
messages (of the system, a user, an answer …) have two tokens each:

    S S U U A A U U A A

A new strategy is one more function and one more line of the table; everything else, help texts and tests
included, goes by the table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from model.errors import UserError, brief

CAUSAL = -1
"""The block of tokens that see only what comes before them."""


def causal(talk: str, n: int) -> int:
    """. . . . . . . . . .  none."""
    return CAUSAL


def prefix(talk: str, n: int) -> int:
    """0 0 0 0 . . . . . .  everything before the first answer (Raffel et al. 2020, arXiv 1910.10683)."""
    return 0 if n < talk.find("A") else CAUSAL


def segment(talk: str, n: int) -> int:
    """0 0 1 1 . . 2 2 . .  each message that is no answer, by itself (Katz et al. 2024, arXiv 2412.18487)."""
    return n if n < talk.rfind("A") and talk[n] != "A" else CAUSAL


def history(talk: str, n: int) -> int:
    """0 0 0 0 0 0 0 0 . .  everything before the last answer."""
    return 0 if n < talk.rfind("A") else CAUSAL


@dataclass(frozen=True)
class Strategy:
    """A prompt mask, and what follows from its blocks."""

    block: Callable[[str, int], int]
    """maps a conversation and the number of a message to its block, any number; tokens after the last answer,
    and conversations without one, are causal"""
    losses: tuple[str, ...]
    """what may carry loss in conversations, the default first: nothing that a token before it sees"""
    text_losses: tuple[str, ...] = ()
    """the same in texts of pretraining, whose prefix is a message and whose rest is an answer; none = not for
    texts"""
    survives_turns: bool = True
    """whether what was computed of a conversation serves when a turn is added: no block grows or goes"""

    @property
    def name(self) -> str:
        """Its name in settings."""
        return self.block.__name__

    @property
    def drawing(self) -> str:
        """Its blocks over the example, a letter a token."""
        return self.block.__doc__.partition("  ")[0]


STRATEGIES: dict[str, Strategy] = {
    each.name: each
    for each in (
        Strategy(causal, ("answers", "last", "all"), ("all", "suffix")),
        Strategy(prefix, ("answers", "last"), ("suffix",)),
        Strategy(segment, ("answers", "last")),
        Strategy(history, ("last",), survives_turns=False),
    )
}
PromptMask = Literal[tuple(STRATEGIES)]
TextMask = Literal[tuple(name for name, strategy in STRATEGIES.items() if strategy.text_losses)]


def strategy_named(name: object) -> Strategy:
    """Return a strategy; raises `UserError` for a name that is not in the table."""
    if name not in tuple(STRATEGIES):
        raise UserError(f"unknown prompt_mask {brief(name)}; choose one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
