"""What clients of OpenAI's interface ask for, read strictly: what would have no effect is refused by name."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dataset.chat_form import Message
from dataset.formats import with_tools
from dataset.messages import FLAGS, RecordError, held_keys, parse_json, read_turns
from dataset.unread_keys import of_turns
from eval.serving_settings import TextSampling
from model.errors import UserError, brief
from model.strategies import PromptMask

NAMES = ("user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier")
"""keys that say who asks, and nothing of the answer"""
MARKS = ("name", "tool_call_id", "refusal", "annotations", "id")
"""the same of messages"""
IDLE: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "parallel_tool_calls": (True,),
    "store": (False,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
    "functions": ([],),
}
"""keys that clients send and that cannot be served, with the values that ask for nothing"""
MOST_CHOICES, MOST_STOPS, MOST_TOP = 16, 16, 20


class RefusedError(ValueError):
    """Says why a request is not answered, as OpenAI's interface does."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """Return the answer as clients read it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


Body = TypeVar("Body", bound=BaseModel)


STRICT = ConfigDict(strict=True, extra="forbid")


class StreamOptions(BaseModel):
    """What a stream brings beside the answer."""

    model_config = STRICT
    include_usage: bool = False


Count = Annotated[int, Field(ge=1, le=2**31)]


class Asked(BaseModel):
    """What both kinds of requests may say; None is what the server does by default."""

    model_config = ConfigDict(strict=True, extra="allow")
    model: str | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Count | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**62)] | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_mask: PromptMask | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def top(self) -> int | None:
        """How many of the most probable tokens are wanted beside each; None = no log-probabilities."""
        raise NotImplementedError

    def sampling(self, default: TextSampling, seed: int) -> TextSampling:
        """Return how the tokens are chosen; what is not said is as in `default`. Raises `RefusedError`."""
        if self.stream_options and not self.stream:
            raise RefusedError("stream_options: changes nothing without stream", param="stream_options")
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        said = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > MOST_STOPS:
            raise RefusedError(f"stop: expected at most {MOST_STOPS} texts, got {len(stops)}", param="stop")
        length = {"max_new_tokens": self.length} if self.length else {}
        settings = {name: getattr(default, name) for name in ("max_new_tokens", *names)}
        return TextSampling(**settings | said | length, seed=seed, stop_strings=stops)

    @property
    def length(self) -> int | None:
        """Most tokens of an answer."""
        return self.max_tokens


class ChatAsked(Asked):
    """The body of `/v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None

    @property
    def length(self) -> int | None:
        """Most tokens of an answer."""
        lengths = {self.max_completion_tokens, self.max_tokens} - {None}
        if len(lengths) > 1:
            raise RefusedError("max_tokens: expected the same as max_completion_tokens", param="max_tokens")
        return next(iter(lengths), None)

    @property
    def top(self) -> int | None:
        """How many of the most probable tokens are wanted beside each; None = no log-probabilities."""
        if self.top_logprobs and not self.logprobs:
            raise RefusedError("top_logprobs: changes nothing without logprobs", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def conversation(self) -> list[Message]:
        """Return the messages as training reads them; raises `RefusedError` for what is no question."""
        messages = read_messages(self.messages, None if self.tool_choice == "none" else self.tools)
        if not messages or messages[-1].role not in ("user", "tool"):
            raise RefusedError(
                "messages: expected a message of a user or a tool at the end, whose answer is wanted, got "
                + (messages[-1].role if messages else "none"),
                param="messages",
            )
        return messages


class LookAsked(BaseModel):
    """The body of `/look`: a conversation whose mask and attention are drawn."""

    model_config = STRICT
    model: str | None = None
    prompt_mask: PromptMask | None = None
    messages: list[dict[str, Any]]

    def conversation(self) -> list[Message]:
        """Return the messages as training reads them."""
        return read_messages(self.messages)


class TextAsked(Asked):
    """The body of `/v1/completions`: texts, or ids of tokens, that are gone on with."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None

    @property
    def top(self) -> int | None:
        """How many of the most probable tokens are wanted beside each; None = no log-probabilities."""
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """Return each prompt by itself; raises `RefusedError` where there are too many."""
        is_one = isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int))
        prompts = [self.prompt] if is_one else self.prompt
        if not 0 < len(prompts) <= MOST_CHOICES:
            raise RefusedError(f"prompt: expected 1 to {MOST_CHOICES}, got {len(prompts)}", param="prompt")
        return prompts


def read_messages(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> list[Message]:
    """Return messages as training reads them; raises `RefusedError` with the reason."""
    try:
        read = with_tools(read_turns(messages), tools)
    except RecordError as error:
        raise RefusedError(f"messages: {error}", param="messages") from None
    flags = {f"messages.{name}" for turn in messages for name in held_keys(turn) if name in FLAGS}
    if unread := (of_turns("messages", messages) | flags) - {f"messages.{name}" for name in MARKS}:
        name = brief(min(unread))[1:-1]
        raise RefusedError(f"{name}: this server has nothing of the kind; leave it out", param=name)
    return read


def read_body(kind: type[Body], body: bytes) -> Body:
    """Return the body of a request; raises `RefusedError` for the first thing that is wrong with it."""
    try:
        asked = kind.model_validate_json(body)
        parse_json(body, "its parts")
    except ValidationError as error:
        raise _refusal(error) from None
    except RecordError as error:
        raise RefusedError(f"the body: {error}") from None
    for key, value in (asked.model_extra or {}).items():
        if key not in NAMES and value is not None and value not in IDLE.get(key, ()):
            advice = "leave it out" if key in IDLE else f"known are {', '.join(kind.model_fields)}"
            name = brief(key)[1:-1]
            raise RefusedError(f"{name}: this server has nothing of the kind; {advice}", param=name)
    return asked


def _refusal(error: ValidationError) -> RefusedError:
    """Say what is wrong first in a body, without showing much of it."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, str | int))[:80]
    got = "" if first["type"] in ("missing", "json_invalid") else f", got {brief(first['input'])}"
    said = first["msg"] if place else f"the body: {first['msg']}"
    return RefusedError(f"{place}: {said}{got}" if place else said, param=place or None)


def as_refusal(error: UserError) -> RefusedError:
    """Return what a client is told of a request that the model does not take."""
    is_long = "tokens but the model takes" in str(error)
    return RefusedError(str(error), code="context_length_exceeded" if is_long else None)
