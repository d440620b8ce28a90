"""Text in and text out on top of the generator's session of ids: conversations, and raw text continued."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch

from dataset.conversation import Rendered, Renderer
from dataset.tokenizer import TextStream, Tokenizer
from eval.served_model import ServedModel
from model.errors import UserError
from model.generator import Prompt, Request, Session
from model.masks import blocks_before_answer, prompt_blocks
from model.sampling import Sampling


@dataclass(frozen=True)
class Turn:
    """A question and the ids that were sampled for it; they are never encoded again from text."""

    question: str
    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class ReplyStatistics:
    """What an answer cost and how it ended."""

    tokens: int
    prefill_seconds: float
    """until the first token was known"""
    decode_seconds: float
    prefilled_tokens: int
    reused_tokens: int
    finish_reason: str

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 when there was no second one."""
        steps = self.tokens - (self.finish_reason != "stop")  # a stop id is a step, too
        return steps / self.decode_seconds if steps > 0 else 0.0


class TextSession:
    """Streams answers to prompts as text and remembers what the last one cost."""

    def __init__(self, served: ServedModel, sampling: Sampling) -> None:
        self.served, self.sampling = served, sampling
        self.last: ReplyStatistics | None = None
        self._session = Session(served.generator())

    def change_sampling(self, **changes: float | int | None) -> None:
        """Replace sampling settings by name; `UserError` when the result makes no sense."""
        self.sampling = replace(self.sampling, **changes)

    def _stream(self, prompt: Prompt, is_cancelled: Callable[[], bool]) -> Iterator[str]:
        """Yield an answer in whole characters; `is_cancelled` is looked at after each token."""
        stream = TextStream(self.served.tokenizer)
        started = perf_counter()
        first = None
        reply = self._session.reply(Request(prompt, self.sampling))
        for token_id in reply:
            first = first or perf_counter()
            yield stream.feed(token_id)
            if is_cancelled():
                reply.close()
                break
        yield stream.flush()
        ended = perf_counter()
        self.last = ReplyStatistics(
            tokens=len(self._session.last.ids),
            prefill_seconds=(first or ended) - started,
            decode_seconds=ended - (first or ended),
            prefilled_tokens=self._session.prefilled_tokens,
            reused_tokens=self._session.reused_tokens,
            finish_reason=self._session.last.finish_reason,
        )


class RawSession(TextSession):
    """Continues texts as a pretrained model does, each on its own."""

    def ask(self, text: str, is_cancelled: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Yield the continuation of `text`; `UserError` when it does not fit the context."""
        prompt = raw_prompt(text, self.served.tokenizer, self.served.prompt_mask)
        yield from self._stream(prompt, is_cancelled)


class ChatSession(TextSession):
    """Several turns with one model; keeps what was sampled, and the computed states where the mask allows it.

    session = ChatSession(open_model("out/sft"), Sampling())
    for piece in session.ask("What is the capital of Peru?"):
        print(piece, end="", flush=True)
    """

    def __init__(self, served: ServedModel, sampling: Sampling, system: str = "") -> None:
        super().__init__(served, sampling)
        self.system = system
        self.turns: list[Turn] = []
        self.dropped_turns = 0
        """whole oldest turns that the last question pushed out of the context"""

    def ask(self, question: str, is_cancelled: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Yield the answer to the next question of the conversation.

        What was said until a cancellation stays in the conversation. A `UserError` (the question alone does
        not fit) leaves the conversation as it was.
        """
        kept = self._turns_that_fit(question)
        yield from self._stream(self._prompt(kept, question), is_cancelled)
        self.dropped_turns = len(self.turns) - len(kept)
        self.turns = [*kept, Turn(question, self._session.last.ids)]

    def retry(self, is_cancelled: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Yield another answer to the last question, drawn with the next seed; `UserError` without a turn."""
        turn, sampling = self.undo(), self.sampling
        try:
            self.change_sampling(seed=sampling.seed + 1)
            yield from self.ask(turn.question, is_cancelled)
        except UserError:
            self.turns.append(turn)
            self.sampling = sampling
            raise

    def undo(self) -> Turn:
        """Forget the last turn and return it; `UserError` when there is none."""
        if not self.turns:
            raise UserError("there is no turn to take back")
        return self.turns.pop()

    def reset(self) -> None:
        """Forget all turns and computed states; system message and sampling stay."""
        self.turns, self.dropped_turns, self.last = [], 0, None
        self._session.reset()

    def layout(self) -> tuple[np.ndarray, torch.Tensor]:
        """Return the ids (n,) of the conversation so far and the block of each under the model's mask."""
        rendered = render_turns(self.served.tokenizer, self.system, self.turns)
        answers, starts = torch.from_numpy(rendered.targets), torch.from_numpy(rendered.starts)
        return rendered.ids, prompt_blocks(self.served.prompt_mask, answers, starts)

    def _prompt(self, turns: Sequence[Turn], question: str) -> Prompt:
        rendered = render_turns(self.served.tokenizer, self.system, turns, question)
        return prompt_of(rendered, self.served.prompt_mask)

    def _turns_that_fit(self, question: str) -> list[Turn]:
        """Return the turns left after dropping oldest ones until there is room in the context to answer."""
        capacity, kept = self.served.model.config.max_position_embeddings, list(self.turns)
        reserve = min(self.sampling.max_new_tokens, capacity // 4)
        while kept and len(self._prompt(kept, question).ids) + reserve > capacity:
            kept.pop(0)
        return kept


def render_turns(
    tokenizer: Tokenizer, system: str, turns: Sequence[Turn], question: str | None = None
) -> Rendered:
    """Render a conversation with its answers as they were sampled, and a question whose answer is to come."""
    roles, contents = (["system"], [tokenizer.encode(system)]) if system else ([], [])
    for turn in turns:
        roles += ["user", "assistant"]
        contents += [tokenizer.encode(turn.question), list(turn.answer_ids)]
    if question is not None:
        roles.append("user")
        contents.append(tokenizer.encode(question))
    return Renderer(tokenizer).assemble(roles, contents, generation_prompt=question is not None)


def raw_prompt(text: str, tokenizer: Tokenizer, prompt_mask: str) -> Prompt:
    """Return the prompt that a pretrained model continues: one document, one block unless it is causal."""
    ids = (tokenizer.endoftext_id, *tokenizer.encode(text))
    return Prompt(ids, (-1 if prompt_mask == "causal" else 0,) * len(ids))


def prompt_of(rendered: Rendered, prompt_mask: str) -> Prompt:
    """Return a conversation that ends before an answer as a prompt, with the blocks that training gave it."""
    answers, starts = torch.from_numpy(rendered.targets), torch.from_numpy(rendered.starts)
    blocks = blocks_before_answer(prompt_mask, answers, starts)
    return Prompt(tuple(rendered.ids.tolist()), tuple(blocks.tolist()))
