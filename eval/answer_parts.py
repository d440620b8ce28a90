"""An answer's text taken apart: what it thinks, what it says and what it calls, also while it is written."""

from dataset.chat_form import Message
from dataset.messages import RecordError, split_calls
from dataset.unread_keys import of_texts

THINK, END_OF_THOUGHT, CALL = "<think>", "</think>", "<tool_call>"


def parts_of(text: str, is_whole: bool = True) -> Message:
    """Return an answer as a message; of one that is not whole, what cannot change any more.

        <think>            thought ""                       the tags may come in pieces
        <think>\\nPeru, so  thought "Peru, so"
        … </think>\\n\\nLi    thought "Peru, so"  content "Li"
        … Lima <tool_c     thought "Peru, so"  content "Lima"

    Calls are told when the answer is whole; what is no call is content.
    """
    thought, rest = _thought(text, is_whole)
    if not is_whole:
        before, begins, _ = rest.partition(CALL)
        return Message("assistant", before.rstrip() if begins else _certain(rest, CALL), thought)
    try:
        content, calls = split_calls(rest, ())
    except RecordError:
        content, calls = rest, ()
    if calls and of_texts("", rest):  # a call takes no other keys along
        content, calls = rest, ()
    return Message("assistant", content, thought, calls)


def _thought(text: str, is_whole: bool) -> tuple[str, str]:
    """Return the thought that an answer begins with, and what follows it."""
    begun = text.lstrip()
    if not begun.startswith(THINK):
        return "", "" if not is_whole and THINK.startswith(begun) else text
    thought, ends, rest = begun.removeprefix(THINK).partition(END_OF_THOUGHT)
    if ends or is_whole:
        return thought.strip(), rest.lstrip()
    return _certain(thought, END_OF_THOUGHT).lstrip(), ""


def _certain(text: str, mark: str) -> str:
    """Return a text without an end that may begin a mark, and without white space, which may precede one."""
    lengths = (n for n in range(1, len(mark)) if text.endswith(mark[:n]))
    return text[: len(text) - max(lengths, default=0)].rstrip()
