"""Answers as clients of OpenAI's interface read them: whole, or as the events of a stream."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from dataset.chat_form import Message
from dataset.tokenizer import Tokenizer
from eval.answer_parts import parts_of
from eval.answering import Job, Token

Record = dict[str, Any]
REASONS = {"stop_string": "stop", "cancelled": "stop"}


@dataclass
class Choice:
    """One of the answers to a request, and how much of it has been sent."""

    index: int
    job: Job
    opening: str = ""
    """the beginning of the answer that stands in the prompt"""
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    sent: Message = Message("assistant", "")
    sent_tokens: int = 0
    has_begun: bool = False
    is_finished: bool = False
    """whether all of it has been sent"""

    def read(self) -> bool:
        """Take what came since the last time; say whether the answer is whole."""
        is_whole = self.job.is_done  # before the rest is taken: afterwards nothing comes
        for piece in self.job.take():
            self.text += piece.text
            self.tokens += piece.tokens
        return is_whole

    @property
    def said(self) -> Message:
        """The answer taken apart, with its tokens."""
        return parts_of(self.opening + self.text)

    @property
    def finish_reason(self) -> str:
        """Why it ended, in OpenAI's words."""
        reason = self.job.answer.finish_reason
        return REASONS.get(reason, reason)


@dataclass(frozen=True)
class Reply:
    """Everything that is told about the answers to one request, but not what they say."""

    model: str
    prompt_mask: str
    tokenizer: Tokenizer
    choices: Sequence[Choice]
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    kind, chunk_kind, prefix = "", "", ""

    @property
    def is_finished(self) -> bool:
        """Whether all has been sent."""
        return all(choice.is_finished for choice in self.choices)

    def whole(self) -> Record:
        """Return all answers, which are done."""
        return self._head(self.kind) | {
            "choices": [self.choice(choice) for choice in self.choices],
            "usage": self.usage(),
        }

    def events(self, wants_usage: bool) -> Iterator[Record]:
        """Yield what has come since the last time, as events of a stream; after the end also the usage."""
        for choice in self.choices:
            if not choice.is_finished:
                is_whole = choice.read()
                for part in () if choice.job.error else self.changes(choice, is_whole):  # none of a failure
                    yield self._head(self.chunk_kind) | {"choices": [part]}
                choice.is_finished = is_whole
        if wants_usage and self.is_finished:
            yield self._head(self.chunk_kind) | {"choices": [], "usage": self.usage()}

    def choice(self, choice: Choice) -> Record:
        """Return a whole answer."""
        raise NotImplementedError

    def changes(self, choice: Choice, is_whole: bool) -> Iterator[Record]:
        """Yield what is new in an answer."""
        raise NotImplementedError

    def scores(self, tokens: Sequence[Token]) -> Record:
        """Return the log-probabilities of tokens."""
        raise NotImplementedError

    def usage(self) -> Record:
        """Return how many tokens were read and written."""
        answers = [choice.job.answer for choice in self.choices]
        prompts = {id(answer.prompt): answer for answer in answers}.values()  # n answers share one
        read = sum(len(answer.prompt.ids) for answer in prompts)
        reused = sum(answer.reused_tokens for answer in prompts)
        written = sum(len(answer.ids) for answer in answers)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": reused},
        }

    def _head(self, kind: str) -> Record:
        said = {"id": f"{self.prefix}-{self.id}", "object": kind, "created": self.created}
        return said | {"model": self.model, "system_fingerprint": f"prompt_mask={self.prompt_mask}"}

    def _end(self, choice: Choice, tokens: Sequence[Token], reason: str | None) -> Record:
        scores = None if choice.job.top is None else self.scores(tokens)
        return {"index": choice.index, "logprobs": scores, "finish_reason": reason}

    def _unsent(self, choice: Choice) -> Sequence[Token]:
        tokens = choice.tokens[choice.sent_tokens :]
        choice.sent_tokens = len(choice.tokens)
        return tokens


class ChatReply(Reply):
    """Answers to a conversation: thoughts and calls apart from what is said."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, choice: Choice) -> Record:
        """Return a whole answer."""
        message = {"role": "assistant"} | self._delta(choice, Message("assistant", ""), choice.said)
        message |= {"content": message.get("content", None if "tool_calls" in message else "")}
        reason = "tool_calls" if "tool_calls" in message else choice.finish_reason
        for call in message.get("tool_calls", ()):
            del call["index"]
        return {"message": message} | self._end(choice, choice.tokens, reason)

    def changes(self, choice: Choice, is_whole: bool) -> Iterator[Record]:
        """Yield what is new in an answer, at first its role, at last why it ended."""
        said = choice.said if is_whole else parts_of(choice.opening + choice.text, False)
        role = {} if choice.has_begun else {"role": "assistant"}
        delta, tokens = role | self._delta(choice, choice.sent, said), self._unsent(choice)
        choice.has_begun = True
        choice.sent = said
        if delta or (tokens and choice.job.top is not None):
            yield {"delta": delta} | self._end(choice, tokens, None)
        if is_whole:
            reason = "tool_calls" if said.tool_calls else choice.finish_reason
            yield {"delta": {}} | self._end(choice, (), reason)

    def scores(self, tokens: Sequence[Token]) -> Record:
        """Return the log-probabilities of tokens."""
        tops = [[self._score(*each) for each in token.top] for token in tokens]
        own = [self._score(token.id, token.log_probability) for token in tokens]
        return {"content": [one | {"top_logprobs": top} for one, top in zip(own, tops, strict=True)]}

    def _score(self, token_id: int, log_probability: float) -> Record:
        text = self.tokenizer.token_bytes(token_id)
        shown = text.decode("utf-8", "replace")
        return {"token": shown, "logprob": log_probability, "bytes": [*text]}

    def _delta(self, choice: Choice, sent: Message, said: Message) -> Record:
        """Return what an answer says beyond what was sent of it."""
        new = {
            "reasoning_content": said.thought[len(sent.thought) :],
            "content": said.content[len(sent.content) :],
            "tool_calls": [self._call(choice, n, call) for n, call in enumerate(said.tool_calls)],
        }
        return {key: value for key, value in new.items() if value}

    def _call(self, choice: Choice, number: int, call: str) -> Record:
        read = json.loads(call)
        arguments = json.dumps(read["arguments"], ensure_ascii=False)
        name = f"call_{self.id[:16]}_{choice.index}_{number}"
        function = {"name": read["name"], "arguments": arguments}
        return {"index": number, "id": name, "type": "function", "function": function}


class TextReply(Reply):
    """Texts that go on from a prompt."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def choice(self, choice: Choice) -> Record:
        """Return a whole answer."""
        return {"text": choice.text} | self._end(choice, choice.tokens, choice.finish_reason)

    def changes(self, choice: Choice, is_whole: bool) -> Iterator[Record]:
        """Yield what is new in an answer, with its last piece why it ended."""
        text, tokens = choice.text[len(choice.sent.content) :], self._unsent(choice)
        choice.sent = Message("assistant", choice.text)
        if text or is_whole or (tokens and choice.job.top is not None):
            yield {"text": text} | self._end(choice, tokens, choice.finish_reason if is_whole else None)

    def scores(self, tokens: Sequence[Token]) -> Record:
        """Return the log-probabilities of tokens."""
        shown = self._shown
        return {
            "tokens": [shown(token.id) for token in tokens],
            "token_logprobs": [token.log_probability for token in tokens],
            "top_logprobs": [{shown(n): score for n, score in token.top} for token in tokens],
        }

    def _shown(self, token_id: int) -> str:
        return self.tokenizer.token_bytes(token_id).decode("utf-8", "replace")
