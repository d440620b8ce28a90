"""Text in and text out on top of the generator's session of ids: conversations, and raw text continued."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from dataset.chat_form import Message
from dataset.conversation import Rendered, render
from dataset.prompts import layout_of, prompt_of, raw_prompt
from dataset.tokenizer import Tokenizer
from eval.answer_text import AnswerText
from eval.served_model import ServedModel
from eval.serving_settings import TextSampling
from model.errors import UserError
from model.generator import Prompt, Request
from model.masks import Layout
from model.sampling import Completion
from model.session import Session


@dataclass(frozen=True)
class Turn:
    """A question and the ids that answer it, as they were sampled or forced, never encoded from text."""

    question: str
    answer_ids: tuple[int, ...]
    answer: str = ""
    """the text that was shown: a stop string that ended it is left out"""


@dataclass(frozen=True)
class ReplyStatistics:
    """What an answer cost and how it ended."""

    completion: Completion
    prefill_seconds: float
    """until the first token was known"""
    decode_seconds: float
    prefilled_tokens: int
    reused_tokens: int

    @property
    def tokens(self) -> int:
        """Number of tokens that were sampled."""
        return len(self.completion.ids)

    @property
    def finish_reason(self) -> str:
        """Why the answer ended."""
        return self.completion.finish_reason

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 when there was no second one."""
        steps = self.tokens - (self.finish_reason != "stop")  # a stop id is a step, too
        return steps / self.decode_seconds if steps > 0 else 0.0


class TextSession:
    """Streams answers to prompts as text and remembers what the last one cost."""

    def __init__(self, served: ServedModel, sampling: TextSampling) -> None:
        self.served, self.sampling = served, sampling
        self.last: ReplyStatistics | None = None
        self._session = Session(served.generator())

    def change_sampling(self, **changes: Any) -> None:
        """Replace sampling settings by name; `UserError` when the result makes no sense."""
        self.sampling = replace(self.sampling, **changes)

    def _stream(
        self, prompt: Prompt, is_cancelled: Callable[[], bool], beginning: Sequence[int] = ()
    ) -> Iterator[str]:
        """Yield an answer in whole characters, its forced beginning first.

        `is_cancelled` is looked at after each token.
        """
        text = AnswerText(self.served.tokenizer, self.sampling.stop_strings, beginning)
        started = perf_counter()
        first = None
        reply = self._session.reply(Request(prompt.append(beginning), self.sampling, text.is_stop))
        for _ in reply:
            first = first or perf_counter()
            yield text.take()
            if is_cancelled():
                reply.close()
                break
        yield text.finish()
        ended = perf_counter()
        self.last = ReplyStatistics(
            completion=self._session.last,
            prefill_seconds=(first or ended) - started,
            decode_seconds=ended - (first or ended),
            prefilled_tokens=self._session.prefilled_tokens,
            reused_tokens=self._session.reused_tokens,
        )


class RawSession(TextSession):
    """Continues texts as a pretrained model does, each on its own."""

    def ask(self, text: str, is_cancelled: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Yield the continuation of `text`; `UserError` when it does not fit the context."""
        prompt = raw_prompt(text, self.served.tokenizer, self.served.prompt_mask)
        yield from self._stream(prompt, is_cancelled)


class ChatSession(TextSession):
    """Several turns with one model; keeps what was sampled, and the computed states where the mask allows it.

    session = ChatSession(open_model("out/sft"), TextSampling())
    for piece in session.ask("What is the capital of Peru?"):
        print(piece, end="", flush=True)

    An answer enters the conversation with its last piece. One that was cancelled stays in it; one that raises
    `UserError` (the question alone does not fit) or is not read to its end leaves everything as it was.
    """

    def __init__(
        self, served: ServedModel, sampling: TextSampling, system: str = "", answer_prefix: str = ""
    ) -> None:
        super().__init__(served, sampling)
        self.system = system
        self.answer_prefix = answer_prefix
        """text that every answer is made to begin with; part of the answer, so causal under every mask"""
        self.turns: list[Turn] = []
        self.dropped_turns = 0
        """whole oldest turns that the last question pushed out of the context"""

    def ask(self, question: str, is_cancelled: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Yield the answer to the next question of the conversation."""
        beginning = tuple(self.served.tokenizer.encode(self.answer_prefix))
        yield from self._answer(self.turns, question, beginning, is_cancelled)

    def retry(self, is_cancelled: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Yield another answer to the last question, drawn with the next seed; `UserError` without a turn."""
        question, sampling = self.last_turn().question, self.sampling
        beginning = tuple(self.served.tokenizer.encode(self.answer_prefix))
        try:
            self.change_sampling(seed=sampling.seed + 1)
            yield from self._answer(self.turns[:-1], question, beginning, is_cancelled)
        except UserError:
            self.sampling = sampling
            raise

    def proceed(self, is_cancelled: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Yield the last answer again and let it go on from where it ended; `UserError` without a turn."""
        turn = self.last_turn()
        yield from self._answer(self.turns[:-1], turn.question, turn.answer_ids, is_cancelled)

    def last_turn(self) -> Turn:
        """Return the last turn; `UserError` when there is none."""
        if not self.turns:
            raise UserError("there is no turn yet")
        return self.turns[-1]

    def undo(self) -> Turn:
        """Forget the last turn and return it; `UserError` when there is none."""
        turn = self.last_turn()
        self.restore(self.system, self.turns[:-1])
        return turn

    def reset(self) -> None:
        """Forget all turns and computed states; system message and sampling stay."""
        self.restore(self.system, [])
        self.last = None
        self._session.reset()

    def restore(self, system: str, turns: Sequence[Turn]) -> None:
        """Take up a conversation at this point; states that were computed for the same tokens are reused."""
        self.system, self.turns, self.dropped_turns = system, list(turns), 0

    def layout(self) -> tuple[np.ndarray, Layout]:
        """Return the ids (n,) of the conversation so far and its layout (1, n) under the model's mask."""
        rendered = render_turns(self.served.tokenizer, self.system, self.turns)
        return rendered.ids, layout_of(rendered, self.served.prompt_mask)

    def _answer(
        self, turns: list[Turn], question: str, beginning: tuple[int, ...], is_cancelled: Callable[[], bool]
    ) -> Iterator[str]:
        """Yield the answer to a question after `turns`, and make all of it the conversation."""
        kept, pieces = self._turns_that_fit(turns, question, len(beginning)), []
        for piece in self._stream(self._prompt(kept, question), is_cancelled, beginning):
            pieces.append(piece)
            yield piece
        self.dropped_turns = len(turns) - len(kept)
        self.turns = [*kept, Turn(question, beginning + self.last.completion.ids, "".join(pieces))]

    def _prompt(self, turns: Sequence[Turn], question: str) -> Prompt:
        rendered = render_turns(self.served.tokenizer, self.system, turns, question)
        return prompt_of(rendered, self.served.prompt_mask)

    def _turns_that_fit(self, turns: list[Turn], question: str, begun_tokens: int) -> list[Turn]:
        """Return the turns left after dropping oldest ones until there is room in the context to answer."""
        capacity = self.served.model.config.max_position_embeddings
        needed = begun_tokens + min(self.sampling.max_new_tokens, capacity // 4)

        def fits(dropped: int) -> bool:
            return len(self._prompt(turns[dropped:], question).ids) + needed <= capacity

        return list(turns) if fits(0) else turns[bisect_left(range(len(turns)), True, key=fits) :]


def render_turns(
    tokenizer: Tokenizer, system: str, turns: Sequence[Turn], question: str | None = None
) -> Rendered:
    """Render a conversation with its answers as they were sampled, and a question whose answer is to come."""
    messages = [Message("system", system)] if system else []
    for turn in turns:
        messages += [Message("user", turn.question), Message("assistant", turn.answer, ids=turn.answer_ids)]
    messages += [] if question is None else [Message("user", question)]
    return render(messages, tokenizer, generation_prompt=question is not None)
