"""What a strategy makes of a conversation: blocks, parts of marked passages, and positions that parts share.

Blocks are the strategy's alone. Passages are options of a question, demonstrations or texts that were found
for it, in no order that means anything; what their parts see is the rule's (`model/masks.py`). Positions are
such that no number of the model knows that order: passages of a set begin where the set does, isolated ones
at 0, and what follows goes on after the longest.

    tokens      S S a a a b b U U A        a set            S S a a a b b U U A        isolated
    parts       - - 0 0 0 1 1 - - -                         - - -2 -2 -2 -3 -3 - - -
    positions   0 1 2 3 4 2 3 5 6 7                         0 1 0 1 2 0 1 3 4 5

So an isolated passage has the same states in every conversation, as they are: keys that were turned to other
positions would be equal up to rounding only, and learned positions cannot be turned.
"""

from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from model.masks import Layout
from model.strategies import CAUSAL, NO_PART, strategy_named

FIRST_ISOLATED = -2
"""part of the first isolated passage of a document; those that follow count down"""


def prompt_blocks(prompt_mask: str, answers: Tensor, starts: Tensor) -> Tensor:
    """Return the block id (n,) of every token of one conversation under a strategy.

    `answers` (n,) bool marks answer tokens with their end marker, `starts` (n,) bool the first token of every
    message that is not an answer. Raises `UserError` for an unknown name.
    """
    strategy, is_answer = strategy_named(prompt_mask), answers.numpy()

    # A message opens where `starts` says so, and where an answer begins or ends.
    opens = starts.numpy().copy()
    opens[:1] = True
    opens[1:] |= is_answer[1:] != is_answer[:-1]
    first = np.flatnonzero(opens)
    roles = "".join("A" if is_answer[index] else "U" for index in first)

    # The strategy names the block of each message; blocks are renumbered 0, 1, … in order of appearance.
    blocks = [strategy.block(roles, i) for i in range(len(roles))]
    numbers = {CAUSAL: CAUSAL}
    for block in blocks:
        numbers.setdefault(block, len(numbers) - 1)
    of_message = np.array([numbers[block] for block in blocks], dtype=np.int64)

    # Every token gets the block of its message.
    return torch.from_numpy(np.repeat(of_message, np.diff(first, append=len(opens))))


def blocks_before_answer(prompt_mask: str, answers: Tensor, starts: Tensor) -> Tensor:
    """Return the block ids (n,) of a prompt whose answer is still to come, the same as training gave it."""
    answer = answers.new_ones(1)
    return prompt_blocks(prompt_mask, torch.cat((answers, answer)), torch.cat((starts, ~answer)))[:-1]


def parts_of(prompt_mask: str, passages: np.ndarray) -> np.ndarray | None:
    """Return the part (n,) of every token of one conversation under a strategy, None where all are in none.

    `passages` (n,) numbers the marked passages 0, 1, … in order of appearance; -1 = in none.
    """
    kind = strategy_named(prompt_mask).passages
    if kind == "open" or not (passages >= 0).any():
        return None
    return passages if kind == "set" else np.where(passages >= 0, FIRST_ISOLATED - passages, NO_PART)


def positions_of(parts: np.ndarray | None, count: int) -> np.ndarray:
    """Return the position (count,) of every token of one document."""
    positions = np.arange(count)
    if parts is None:
        return positions
    index = begin = end = 0  # of a run: its place, its first position; one after the largest position so far
    was_in_set = False
    for part, run in groupby(parts.tolist()):
        length, is_in_set = len([*run]), part > NO_PART
        if part <= FIRST_ISOLATED:
            begin = 0
        elif not (is_in_set and was_in_set):  # adjacent parts of a set begin together
            begin = end
        positions[index : index + length] -= index - begin
        index, end, was_in_set = index + length, max(end, begin + length), is_in_set
    return positions


def conversation_layout(prompt_mask: str, answers: Tensor, starts: Tensor, passages: np.ndarray) -> Layout:
    """Return the layout (1, n) of one conversation under a strategy."""
    return document_layout(prompt_blocks(prompt_mask, answers, starts), parts_of(prompt_mask, passages))


def document_layout(block_ids: Tensor, parts: np.ndarray | None = None) -> Layout:
    """Return the layout (1, n) of one document by the blocks and parts (n,) of its tokens."""
    positions = torch.from_numpy(positions_of(parts, len(block_ids)))[None]
    part_ids = None if parts is None else torch.from_numpy(parts.astype(np.int64))[None]
    return Layout(torch.zeros_like(positions), positions, block_ids[None], part_ids)
