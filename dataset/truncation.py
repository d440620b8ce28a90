"""Which tokens of a conversation stay when it is longer than a row, and how many that is for many at once."""

import numpy as np

from dataset.conversation import ROLES, START, TARGET, Rendered, Renderer, are_trained
from dataset.token_store import Part


def shorten(document: Rendered, limit: int, renderer: Renderer) -> tuple[Rendered | None, int]:
    """Return what is left of a conversation in `limit` tokens, and how many answers were too long for it.

    The system message stays. The oldest questions and answers go first, then the middle of the last prompt's
    content, never its headers: what is asked stands at an end of a prompt, before or after a long text. An
    answer that does not fit even so is left out, and the ones before it are tried that carry loss. None where
    no answer fits.

        limit 12:  S S U U U A A U U U U U U A A A A        17 tokens, two rounds
                   S S           U U U U U U A A A A
    """
    edges = np.flatnonzero(np.diff(document.targets.astype(np.int8), prepend=0, append=0))
    answer_begins, answer_ends = edges[::2], edges[1::2]
    system = _system_length(document, renderer)
    newline = len(renderer.newline)  # the one that an answer leaves to the message after it
    round_begins = np.concatenate(([system], answer_ends[:-1] + newline))
    for last in range(len(answer_ends) - 1, -1, -1):
        if not document.trained[answer_begins[last]]:
            continue
        end, room = answer_ends[last], limit - system
        first = np.searchsorted(round_begins, end - room)
        if first <= last:
            kept = np.arange(round_begins[first], end)
        else:
            kept = _without_content(document, round_begins[last], answer_begins[last], end, room, renderer)
        if kept is not None:
            return _select(document, system, kept, renderer), len(answer_ends) - 1 - last
    return None, len(answer_ends)


def measure_shortened(
    part: Part, limit: int, renderer: Renderer, supervise: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `shorten` leaves of each conversation (D,): tokens, targets, and answers that it drops.

    The same rule on whole arrays: millions of conversations are measured in seconds, none is rendered.
    """
    answers = _Answers(part, renderer)
    room = limit - answers.system[answers.document]
    excess = answers.end - answers.round_begin - room
    number = np.arange(len(excess))
    last = np.full(len(part.lengths), -1)
    is_trained = are_trained(part.codes[answers.begin])
    fitting = (excess <= answers.content) & is_trained
    np.maximum.at(last, answers.document, np.where(fitting, number, -1))
    per_document = np.bincount(answers.document, minlength=len(last))
    following = np.cumsum(per_document)  # the number of the first answer of the next document
    dropped = np.where(last < 0, per_document, following - 1 - last)

    fits = np.flatnonzero(last >= 0)
    last = last[fits]
    first = np.searchsorted(answers.round_begin, answers.end[last] - room[last])
    first = np.maximum(first, (following - per_document)[fits])
    is_whole, first = first <= last, np.minimum(first, last)
    lengths, targets = np.zeros((2, len(part.lengths)), dtype=np.int64)
    whole_length = answers.system[fits] + answers.end[last] - answers.round_begin[first]
    lengths[fits] = np.where(is_whole, whole_length, limit)
    sizes = answers.end - answers.begin
    trained, untrained = (np.append(0, np.cumsum(sizes * of)) for of in (is_trained, ~is_trained))
    if supervise == "all":
        targets[fits] = lengths[fits] - 1 - (untrained[last + 1] - untrained[first])
    else:
        targets[fits] = trained[last + 1] - trained[first if supervise == "answers" else last]
    return lengths, targets, dropped


class _Answers:
    """The answers (A,) of many conversations: where each begins and ends, and what precedes it."""

    def __init__(self, part: Part, renderer: Renderer) -> None:
        ends = np.cumsum(part.lengths, dtype=np.int64)
        begins = ends - part.lengths
        targets = part.codes & TARGET > 0
        first_of_document = np.zeros(len(targets), dtype=bool)
        first_of_document[begins] = True
        begins_here, ends_here = targets.copy(), targets.copy()
        begins_here[1:] &= ~targets[:-1] | first_of_document[1:]
        ends_here[:-1] &= ~targets[1:] | first_of_document[1:]
        self.begin, self.end = np.flatnonzero(begins_here), np.flatnonzero(ends_here) + 1
        self.document = np.searchsorted(ends, self.begin, side="right")
        newline = len(renderer.newline)
        im_ends = np.flatnonzero(part.ids == renderer.tokenizer.im_end_id)
        first_end = im_ends[np.minimum(np.searchsorted(im_ends, begins), len(im_ends) - 1)]
        is_system = part.codes[begins] & 15 == ROLES.index("system")
        self.system = np.where(is_system, first_end - begins + 1 + newline, 0)
        is_first = np.diff(self.document, prepend=-1) > 0
        after_answer = np.append(0, self.end[:-1]) + newline
        self.round_begin = np.where(is_first, (begins + self.system)[self.document], after_answer)
        self.content = self._content(part, renderer)

    def _content(self, part: Part, renderer: Renderer) -> np.ndarray:
        """Return how many tokens the contents of each prompt hold (A,)."""
        headers = np.array([len(renderer.headers[role]) for role in ROLES])
        openings = np.flatnonzero(part.ids == renderer.tokenizer.im_start_id)
        prompt = np.searchsorted(self.begin, openings, side="right")
        known = prompt < len(self.begin)
        openings, prompt = openings[known], prompt[known]
        inside = openings >= self.round_begin[prompt]
        openings, prompt = openings[inside], prompt[inside]
        footer = 1 + len(renderer.newline)
        sizes = np.diff(openings) - headers[part.codes[openings[:-1]] & 15] - footer
        same = prompt[1:] == prompt[:-1]
        content = np.bincount(prompt[:-1][same], sizes[same].clip(0), minlength=len(self.begin))
        return content.astype(np.int64)


def _system_length(document: Rendered, renderer: Renderer) -> int:
    if document.roles[0] != ROLES.index("system"):
        return 0
    return int(np.argmax(document.ids == renderer.tokenizer.im_end_id)) + 1 + len(renderer.newline)


def _without_content(
    document: Rendered, begin: int, answer: int, end: int, room: int, renderer: Renderer
) -> np.ndarray | None:
    """Return the indices of one round without the middle of its prompt's content, None if too few go."""
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
    kept_at_begin = (len(content) - excess) // 2
    cut = content[kept_at_begin : kept_at_begin + excess]
    return np.setdiff1d(np.arange(begin, end), cut, assume_unique=True)


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
