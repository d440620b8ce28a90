"""The prompt masks: which messages of a conversation form blocks, whose tokens see each other both ways.

A strategy is a function that returns the block of message `i` of a conversation. Of the conversation it gets
`roles`, one letter per message: A for an answer, U for any other (system, user or tool). Its docstring draws
the blocks, and names them, for `roles` UUAUA: system, user, answer, user, answer, with two tokens each.

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
NO_PART = -1
"""The part of tokens that are in no passage which others do not see."""


def causal(roles: str, i: int) -> int:
    """. . . . . . . . . .  none."""
    return CAUSAL


def prefix(roles: str, i: int) -> int:
    """0 0 0 0 . . . . . .  everything before the first answer (Raffel et al. 2020, arXiv 1910.10683)."""
    return 0 if i < roles.find("A") else CAUSAL


def segment(roles: str, i: int) -> int:
    """0 0 1 1 . . 2 2 . .  each message but the answers, by itself (Katz et al. 2024, arXiv 2412.18487)."""
    return i if i < roles.rfind("A") and roles[i] != "A" else CAUSAL


def history(roles: str, i: int) -> int:
    """0 0 0 0 0 0 0 0 . .  everything before the last answer."""
    return 0 if i < roles.rfind("A") else CAUSAL


def sets(roles: str, i: int) -> int:
    """. . . . . . . . . .  none; passages marked in a prompt do not see each other."""
    return CAUSAL


def isolated(roles: str, i: int) -> int:
    """. . . . . . . . . .  none; a marked passage sees itself alone (Sun et al. 2024, arXiv 2409.15355)."""
    return CAUSAL


@dataclass(frozen=True)
class Strategy:
    """A prompt mask, and what follows from its blocks."""

    block: Callable[[str, int], int]
    """maps `roles` and `i` to the block of that message, any number; messages after the last answer are
    causal, and so are all of a conversation without answers"""
    losses: tuple[str, ...]
    """what may carry loss in conversations, the default first: no token that the one before it sees"""
    text_losses: tuple[str, ...] = ()
    """the same in pretraining texts, which are a message (the prefix) and an answer (the rest); empty = not
    for texts"""
    passages: Literal["open", "set", "isolated"] = "open"
    """what marked passages of a prompt see: what any token does; all that but other passages, with which they
    share positions; themselves alone, from position 0 on"""
    survives_turns: bool = True
    """whether keys and values computed so far stay valid when a turn is added: no block grows or ends"""

    @property
    def name(self) -> str:
        """Its name in settings."""
        return self.block.__name__

    @property
    def drawing(self) -> str:
        """The blocks of the example above, one character per token."""
        return self.block.__doc__.partition("  ")[0]


STRATEGIES: dict[str, Strategy] = {
    each.name: each
    for each in (
        Strategy(causal, ("answers", "last", "all"), ("all", "suffix")),
        Strategy(prefix, ("answers", "last"), ("suffix",)),
        Strategy(segment, ("answers", "last")),
        Strategy(history, ("last",), survives_turns=False),
        Strategy(sets, ("answers", "last"), passages="set"),
        Strategy(isolated, ("answers", "last"), passages="isolated"),
    )
}
PromptMask = Literal[tuple(STRATEGIES)]
TextMask = Literal[tuple(name for name, strategy in STRATEGIES.items() if strategy.text_losses)]


def strategy_named(name: object) -> Strategy:
    """Return a strategy; raises `UserError` for a name that is not in the table."""
    if not isinstance(name, str) or name not in STRATEGIES:
        raise UserError(f"unknown prompt_mask {brief(name)}; choose one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
