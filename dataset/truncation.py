"""Which tokens of a conversation stay when it is longer than a row."""

import numpy as np

from dataset.conversation import ROLES, START, TARGET, Rendered, Renderer


def shorten(document: Rendered, limit: int, renderer: Renderer) -> tuple[Rendered | None, int]:
    """Return what is left of a conversation in `limit` tokens, and how many answers were too long for it.

    The system message stays. The oldest questions and answers go first, then content of the last prompt from
    the left, never its headers. An answer that does not fit even so is left out, and the ones before it are
    tried. None where no answer fits.

        limit 16:  S S U U U A A U U U U U U A A A A        18 tokens, two rounds
                   S S       . . U U U U U U A A A A
    """
    edges = np.flatnonzero(np.diff(document.targets.astype(np.int8), prepend=0, append=0))
    answer_begins, answer_ends = edges[::2], edges[1::2]
    system = _system_length(document, renderer)
    newline = len(renderer.newline)  # the one that an answer leaves to the message after it
    round_begins = np.concatenate(([system], answer_ends[:-1] + newline))
    for last in range(len(answer_ends) - 1, -1, -1):
        end, room = answer_ends[last], limit - system
        first = np.searchsorted(round_begins, end - room)
        if first <= last:
            kept = np.arange(round_begins[first], end)
        else:
            kept = _without_content(document, round_begins[last], answer_begins[last], end, room, renderer)
        if kept is not None:
            return _select(document, system, kept, renderer), len(answer_ends) - 1 - last
    return None, len(answer_ends)


def _system_length(document: Rendered, renderer: Renderer) -> int:
    if document.roles[0] != ROLES.index("system"):
        return 0
    return int(np.argmax(document.ids == renderer.tokenizer.im_end_id)) + 1 + len(renderer.newline)


def _without_content(
    document: Rendered, begin: int, answer: int, end: int, room: int, renderer: Renderer
) -> np.ndarray | None:
    """Return the indices of one round without the left of its prompt's content, None if too few go."""
    excess = end - begin - room
    messages = begin + np.flatnonzero(document.ids[begin:answer] == renderer.tokenizer.im_start_id)
    footer = 1 + len(renderer.newline)
    contents = [
        np.arange(opening + len(renderer.headers[ROLES[document.roles[opening]]]), following - footer)
        for opening, following in zip(messages, messages[1:], strict=False)
    ]
    content = np.concatenate([np.arange(0), *contents])
    if len(content) < excess:
        return None
    return np.setdiff1d(np.arange(begin, end), content[:excess], assume_unique=True)


def _select(document: Rendered, system: int, kept: np.ndarray, renderer: Renderer) -> Rendered:
    """Return the system message and the kept tokens, which now begin with the start of a message.

    A header of an answer that now follows the system message belongs to it, as rendering has it.
    """
    indices = np.concatenate((np.arange(system), kept))
    ids, codes = document.ids[indices], document.codes[indices]
    answer = int(np.argmax(codes & TARGET > 0))
    if system and np.count_nonzero(ids[system:answer] == renderer.tokenizer.im_start_id) == 1:
        codes[system:answer] = ROLES.index("system")
    else:
        codes[system] |= START
    return Rendered(ids, codes)
