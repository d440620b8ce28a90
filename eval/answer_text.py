"""The text of one answer as its ids come: whole characters, and never a stop string; and how it is shown."""

from collections.abc import Sequence

from dataset.printing import printable
from dataset.tokenizer import TextStream, Tokenizer


class AnswerText:
    """Watches an answer for stop strings, across tokens too, and gives the text that may be shown.

        stop string   "的来"
        tokens        世  国  的  是  的  来      "的" may begin it and waits for what follows
        shown         世  国  .   的是  .   .

    `is_stop` is what a `Request` wants; `take` gives what has become ready since the last call.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop_strings: Sequence[str] = (), beginning: Sequence[int] = ()
    ) -> None:
        """Begin with the ids of a forced beginning, in which a stop string ends nothing."""
        self._stream, self._stop_strings = TextStream(tokenizer), stop_strings
        self._ready, self._held = "", ""
        for token_id in beginning:
            self._hold(self._held + self._stream.feed(token_id))

    def is_stop(self, token_id: int) -> bool:
        """Read the next token and say whether it completes a stop string; the first to be complete counts."""
        text = self._held + self._stream.feed(token_id)
        found = [(at + len(stop), at) for stop in self._stop_strings if (at := text.find(stop)) >= 0]
        if not found:
            self._hold(text)
            return False
        self._ready, self._held = self._ready + text[: min(found)[1]], ""
        self._stream.flush()  # nothing after a stop string is shown
        return True

    def take(self) -> str:
        """Return the text that has become ready."""
        ready, self._ready = self._ready, ""
        return ready

    def finish(self) -> str:
        """Return what waited in vain: a beginning of a stop string, an unfinished character (U+FFFD)."""
        rest, self._held = self._held, ""
        return self.take() + rest + self._stream.flush()

    def _hold(self, text: str) -> None:
        """Let go of all but the longest end that may begin a stop string."""
        stops = [stop[: len(text) + 1] for stop in self._stop_strings]  # one may be as long as a book
        lengths = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        cut = len(text) - max(lengths, default=0)
        self._ready, self._held = self._ready + text[:cut], text[cut:]


def shown(text: str) -> str:
    """Return an answer as a terminal takes it: of what would steer it, only line ends and tabs stay."""
    return printable(text, keep="\n\t")
