"""The tokens of earlier answers by what was said before: clients send back texts, not what was sampled."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from threading import Lock

from dataset.chat_form import Message

MOST_ANSWERS = 1024


class Remembered:
    """Finds for the answers of a conversation the tokens that were sampled, where it has them.

    Without it, a text that another tokenization also spells would be read in another way than it was said,
    and nothing computed for it could be reused. An answer that comes back without its thought gets it again.
    """

    def __init__(self) -> None:
        self._answers: OrderedDict[bytes, Message] = OrderedDict()
        self._lock = Lock()

    def add(self, messages: Sequence[Message], answer: Message) -> None:
        """Remember an answer, with its `ids`, to a conversation."""
        said = sha256()
        for message in messages:
            said.update(_digest(message))
        said.update(_digest(answer))
        with self._lock:
            self._answers[said.digest()] = answer
            if len(self._answers) > MOST_ANSWERS:
                self._answers.popitem(last=False)

    def recall(self, messages: Sequence[Message]) -> list[Message]:
        """Return a conversation whose answers have their tokens where they are known."""
        said, recalled = sha256(), []
        for message in messages:
            said.update(_digest(message))
            known = self._answers.get(said.digest()) if message.role == "assistant" else None
            if known is not None and message.thought in ("", known.thought):
                message = replace(message, ids=known.ids)
            recalled.append(message)
        return recalled


def _digest(message: Message) -> bytes:
    """Return what a client sends of a message as bytes of one length; a thought it may leave out."""
    said = (message.role, message.content, message.passages, message.tool_calls, message.tools)
    return sha256(repr(said).encode()).digest()
