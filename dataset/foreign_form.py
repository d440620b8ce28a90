"""The form of a chat template from elsewhere, found by rendering probes and cutting them at their contents.

One whose messages do not stand for themselves is rendered whole for each prompt: it serves chats only.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any, NamedTuple

from dataset.bounded_template import render
from dataset.chat_form import ChatForm, Message
from model.errors import UserError

SPLIT = "\u2060"  # is not seen; within marks that a text spells, so that they are none


def read_form(template: str, named: dict[str, str], marks: set[str]) -> ChatForm:
    """Return the form of a template of `transformers`; `named` are tokens by name, `marks` all of them.

    Raises `UserError` where it writes no prompts at all.
    """
    probe, unknown = _Probe(template, named), ()
    try:
        whole = _read_whole(probe, marks)
    except _UnreadableError as error:
        raise UserError(f"the chat template of the tokenizer cannot be taken over: {error}") from None
    try:
        form = _read_turns(probe, marks)
        for name, part in _PARTS.items():
            try:
                form = _read_part(probe, form, part)
            except _UnreadableError:
                unknown += (name,)
        form = replace(form, unknown=unknown, whole=whole)
        return replace(form, proofs=tuple(_proofs(probe, form)))
    except _UnreadableError as error:
        return replace(whole, fault=str(error))


class _UnreadableError(Exception):
    """A template does not write what was looked for; says so in words."""


ASKED, SAID, AGAIN = ({"role": r, "content": f"P{r}{n}"} for n, r in enumerate(("user", "assistant", "user")))
SYSTEM = {"role": "system", "content": "Psystem"}
THINKING = SAID | {"reasoning_content": "Pthought"}
CALLS = [{"name": name, "arguments": {"key": "value"}} for name in ("Pfirst", "Psecond")]
CALLING = SAID | {"tool_calls": [{"type": "function", "function": call} for call in CALLS]}
RESULTS = [ASKED, CALLING, *({"role": "tool", "content": text} for text in ("Pone", "Pother"))]
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("Pread", "Pwrite")]


@dataclass(frozen=True)
class _Probe:
    """Renders conversations through a template as `transformers` does, and cuts them at known texts."""

    template: str
    named: dict[str, str]

    def text(self, *messages: dict[str, Any], asks: bool = False, tools: list | None = None) -> str:
        try:
            return render(self.template, list(messages), tools, asks, self.named)
        except Exception as error:  # a template is a program of its own, and raises what it likes
            raise _UnreadableError(str(error) or type(error).__name__) from None

    def cut(self, *messages: dict[str, Any], asks: bool = False) -> list[str]:
        return _cut(self.text(*messages, asks=asks), *(message["content"] for message in messages))


def _cut(text: str, *known: str) -> list[str]:
    """Return what stands before, between and after known texts, each of which is there once."""
    pieces = []
    for each in known:
        before, found, text = text.partition(each)
        if not found or each in text:
            raise _UnreadableError("it does not write each content once, in order")
        pieces.append(before)
    return [*pieces, text]


@dataclass(frozen=True)
class WholeForm(ChatForm):
    """A template that is rendered for each prompt: it serves chats, but no training."""

    probe: _Probe | None = None
    any_mark: re.Pattern[str] | None = None
    fault: str = "what it writes of a message, or its tokens, depend on others"

    def write(self, messages: Sequence[Message], in_prompt: bool = False) -> Iterator[tuple[Message, list]]:
        """Yield a prompt as one text of the form; `UserError` for anything else, or what it refuses."""
        self.check(messages)
        if not in_prompt:
            fault = "the chat template of the tokenizer serves chats only"
            raise UserError(f"{fault}, no training: {self.fault}")
        told = [{"role": m.role, "content": self.any_mark.sub(_split, m.content)} for m in messages]
        try:
            text = self.probe.text(*told, asks=True)
        except _UnreadableError as error:
            raise UserError(f"the chat template of the tokenizer refuses the conversation: {error}") from None
        yield Message("user", ""), ["", text]


def _split(mark: re.Match[str]) -> str:
    return mark[0][0] + SPLIT + mark[0][1:]


def _read_whole(probe: _Probe, marks: set[str]) -> WholeForm:
    """Return the form of prompts that are rendered whole; an answer ends with the first mark after it."""
    asked, said = probe.text(ASKED, asks=True), probe.text(ASKED, SAID)
    if ASKED["content"] not in asked or SAID["content"] not in said:
        raise _UnreadableError("it does not write what is said")
    any_mark = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))
    found = any_mark.search(said.rpartition(SAID["content"])[2])
    end = found[0] if found else probe.named.get("eos_token", "")
    if end not in marks:
        raise _UnreadableError("its answers end with no token of their own")
    unknown = ("thoughts", "tool calls", "tool messages", "lists of tools", "passages")
    start = []
    with suppress(_UnreadableError):  # it refuses them by itself
        start = [SYSTEM] * (SYSTEM["content"] in probe.text(SYSTEM, ASKED, asks=True))
        unknown = unknown if start else ("system messages", *unknown)
    head = said.partition(SAID["content"])[0]
    lead = head.removeprefix(commonprefix((head, asked)))  # a prompt may open what the past does not
    names = {"unknown": unknown, "lead": lead, "forgets": _forgotten(probe, start)}
    return WholeForm({}, {"user": ""}, end, "", probe=probe, any_mark=any_mark, **names)


def _forgotten(probe: _Probe, start: list[dict[str, str]]) -> str:
    """Return in words which messages of a long conversation a template leaves out of the prompt."""
    turns = start + [{"role": ("user", "assistant")[n % 2], "content": f"P{n}."} for n in range(19)]
    try:
        text = probe.text(*turns, asks=True)
    except _UnreadableError:  # it refuses them by itself
        return ""
    lost = [turn["role"] for turn in turns if turn["content"] not in text]
    names = {"system": "system messages", "user": "earlier questions", "assistant": "earlier answers"}
    named = " and ".join(names[role] for role in dict.fromkeys(lost))
    return f"{named} ({len(lost)} of {len(turns)} messages)" if lost else ""


def _read_turns(probe: _Probe, marks: set[str]) -> ChatForm:
    """Return the form of questions and answers alone."""
    lead, to_answer, to_question, asking = probe.cut(ASKED, SAID, AGAIN, asks=True)
    footer, ending = probe.cut(ASKED)[-1], probe.cut(ASKED, SAID)[-1]
    end = max(filter(ending.startswith, marks), key=len, default="")
    if not end:
        raise _UnreadableError("its answers end with no token of their own")
    header = to_question.removeprefix(ending)
    past, asked = to_answer.removeprefix(footer), asking.removeprefix(footer)
    shared = commonprefix((past, asked)).partition("<think>")[0]
    padded = [turn | {"content": f" {turn['content']} "} for turn in (ASKED, SAID, AGAIN)]
    return ChatForm(
        headers={"user": header, "assistant": shared},
        footers={"user": footer},
        end=end,
        gap=ending.removeprefix(end),
        begin=lead.removesuffix(header),
        opening=asked.removeprefix(shared),
        past_opening=past.removeprefix(shared),
        trims=probe.text(*padded) == probe.text(ASKED, SAID, AGAIN),
    )


def _read_system(probe: _Probe, form: ChatForm) -> dict[str, Any]:
    to_system, to_user, _ = probe.cut(SYSTEM, ASKED)
    footer, begin, default = to_user.removesuffix(form.headers["user"]), form.begin, ""
    if not to_system.startswith(begin):  # a conversation without one gets one
        if not (begin.startswith(to_system) and begin.endswith(footer)):
            raise _UnreadableError("without a system message it begins in another way")
        begin, default = "", begin.removeprefix(to_system).removesuffix(footer) or None
    headers = form.headers | {"system": to_system.removeprefix(begin)}
    footers = form.footers | {"system": footer}
    return {"headers": headers, "footers": footers, "begin": begin, "default_system": default}


def _read_results(probe: _Probe, form: ChatForm) -> dict[str, Any]:
    before, between, after = _cut(probe.text(*RESULTS, asks=True), "Pone", "Pother")
    header = before.rpartition(form.end + form.gap)[2]
    footer = after.removesuffix(form.headers["assistant"] + form.opening)
    around = {"headers": form.headers | {"tool": header}, "footers": form.footers | {"tool": footer}}
    return around | {"between_results": None if between == footer + header else between}


def _read_tools(probe: _Probe, form: ChatForm) -> dict[str, Any]:
    text = probe.text(SYSTEM, ASKED, tools=TOOLS)
    if "Pread" not in text:
        return {}
    _, lead, between, rest = _cut(text, SYSTEM["content"], *map(json.dumps, TOOLS))
    around = form.footers.get("system", "") + form.headers["user"]
    tail = rest.partition(ASKED["content"])[0].removesuffix(around)
    return {"tool_list": (lead.removeprefix("\n\n").removesuffix(between), between, tail)}


class _Part(NamedTuple):
    """A part of messages, as turns that have it."""

    turns: list[dict[str, Any]]
    asks: bool = True
    read: Callable[[_Probe, ChatForm], dict[str, Any]] | None = None
    tools: list | None = None


_PARTS = {
    "system messages": _Part([SYSTEM, ASKED], read=_read_system),
    "thoughts": _Part([ASKED, THINKING], asks=False),
    "tool calls": _Part([ASKED, CALLING, AGAIN]),
    "tool messages": _Part(RESULTS, read=_read_results),
    "lists of tools": _Part([ASKED], read=_read_tools, tools=TOOLS),
}


def _read_part(probe: _Probe, form: ChatForm, part: _Part) -> ChatForm:
    """Return a form with a part as the template writes it; it keeps ours where the template leaves it out."""
    text = probe.text(*part.turns, asks=part.asks, tools=part.tools)
    messages = [_message(turn, text) for turn in part.turns]
    if part.read is None and not any(message.thought or message.tool_calls for message in messages):
        return form
    form = replace(form, **part.read(probe, form)) if part.read else form
    if listed := tuple(json.dumps(tool) for tool in part.tools or () if tool["function"]["name"] in text):
        messages.insert(0, Message("system", "", tools=listed))
    if _text(form, messages, part.asks) != text:
        raise _UnreadableError("what it writes of a message depends on others")
    return form


def _message(turn: dict[str, Any], text: str) -> Message:
    """Return a turn as a message, without the thought and calls that a text of it leaves out."""
    thought = turn.get("reasoning_content", "")
    calls = [call["function"] for call in turn.get("tool_calls", ())]
    written = tuple(json.dumps(call) for call in calls if call["name"] in text)
    return Message(turn["role"], turn["content"], thought * (thought in text), written)


def _text(form: ChatForm, messages: list[Message], asks: bool) -> str:
    """Return what a form writes of messages."""
    text, gap = form.begin, ""
    for message, parts in form.write(messages, asks):
        is_answer = message.role == "assistant"
        opening = form.opening * (is_answer and form.is_opened(message, asks))
        text += gap + form.headers.get(message.role, "") + opening + "".join(parts)
        text += form.end if is_answer else form.footers.get(message.role, "")
        gap = form.gap * is_answer
    return text + gap + (form.headers["assistant"] + form.opening) * asks


def _proofs(probe: _Probe, form: ChatForm) -> Iterator[tuple[list[Message], str]]:
    """Yield prompts of several turns and what the template writes of them."""
    starts = [[]] if "system messages" in form.unknown else [[], [SYSTEM]]
    for turns in ([*start, ASKED, SAID, AGAIN, SAID, ASKED] for start in starts):
        said = (f"{(number, 'é', '中')[number % 3]}. Hello" for number in range(len(turns)))
        told = [turn | {"content": content} for turn, content in zip(turns, said, strict=True)]
        yield [Message(**turn) for turn in told], probe.text(*told, asks=True)
