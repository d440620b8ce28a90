"""Messages, and how a model's conversations are written: a record of headers and end marks, ours by default.

A tokenizer from elsewhere keeps its own template. What that writes is found by rendering probes and cutting
them at their contents. Ids, roles and targets are `dataset/conversation.py`'s.
"""

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from os.path import commonprefix
from pathlib import Path
from types import FrameType
from typing import Any

from model.errors import UserError

ROLES = ("system", "user", "assistant", "tool")

TRAINING_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
"""our form as a template that marks what answers say, `{% generation %}`, which plain jinja2 refuses"""
CHAT_TEMPLATE = re.sub(r"\{%- (end)?generation %\}\n", "", TRAINING_TEMPLATE)
"""the same without marks: every engine reads it"""

_CONTENT = "{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}\n"
_COPY = "{%- if message.role == 'user' %}\n{{- '\\n' + (message.content or '') }}\n{%- endif %}\n"
MOST_COPIES = 8
MOST_LINES = 10**7  # of Python that a template may run for a prompt: seconds


def our_templates(prompt_copies: int) -> tuple[str, str]:
    """Return our template without and with marks, where texts of users stand that many times."""
    content = _CONTENT + _COPY * (prompt_copies - 1)
    return CHAT_TEMPLATE.replace(_CONTENT, content), TRAINING_TEMPLATE.replace(_CONTENT, content)


COPIES_OF = {text: copies for copies in range(1, MOST_COPIES + 1) for text in our_templates(copies)}
"""how often each of our templates writes the text of a user"""

THOUGHT = ("<think>\n", "\n</think>\n\n")
"""around what an answer thinks first"""


@dataclass(frozen=True)
class Message:
    """One message of a conversation; its texts are any, also empty or with special tokens spelt out."""

    role: str
    content: str
    thought: str = ""
    """what an answer thinks first, `<think>…</think>`"""
    tool_calls: tuple[str, ...] = ()
    """tool calls of an answer, each the JSON of name and arguments, `<tool_call>…</tool_call>`"""
    tools: tuple[str, ...] = ()
    """tools that may be called, each as JSON; listed below the content"""
    is_trained: bool = True
    """whether an answer carries loss; one that does not is still an answer, for masks and for truncation"""

    def texts(self) -> tuple[str, ...]:
        """Return what a person wrote of the message, without anything of a form."""
        return self.content, self.thought, *self.tool_calls, *self.tools


@dataclass(frozen=True)
class ChatForm:
    """The text around the contents of a conversation; ours by default."""

    headers: dict[str, str] = field(default_factory=lambda: {role: f"<|im_start|>{role}\n" for role in ROLES})
    """before the content of each role"""
    footers: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys(("system", "user", "tool"), "<|im_end|>\n")
    )
    """after it, of all but answers"""
    end: str = "<|im_end|>"
    """the token that ends an answer, and is a target"""
    gap: str = "\n"
    """between an answer and what follows"""
    begin: str = ""
    """before the first message"""
    default_system: str = ""
    """the system message of a conversation without one"""
    opening: str = ""
    """what follows the header of an answer that is asked for, and belongs to the prompt"""
    past_opening: str = ""
    """the same in an answer that a prompt holds"""
    between_results: str | None = None
    """between two results of tools, where they share a message"""
    tool_list: tuple[str, str, str] = ("# Tools", "\n", "")
    """before the list of tools, before each, and after the last"""
    unknown: tuple[str, ...] = ()
    """parts of messages whose form is not one of ours"""
    prompt_copies: int = field(default=1, repr=False)
    """how often the text of a user's message stands in it, each copy on a line of its own; of our form only
    (prompt repetition: arXiv 2512.14982)"""

    @property
    def closing(self) -> str:
        """What an answer without a thought begins with where `opening` has begun one: its end."""
        return THOUGHT[1] if "<think>" in self.opening and "</think>" not in self.opening else ""

    def parts(self, message: Message, opening: str = "") -> list[str]:
        """Return what a message says between header and footer; every second part is text of the form.

        `opening` begins an answer without a thought. Raises `UserError` for what the form cannot write.
        """
        has = {
            "thoughts": message.thought,
            "tool calls": message.tool_calls,
            "lists of tools": message.tools,
        }
        self.check([part for part, value in has.items() if value])
        content = self.written(message.role, message.content)
        if message.thought:
            begin, end = (text.strip() for text in THOUGHT)
            parts = ["", begin, f"\n{message.thought}\n", end, f"\n\n{content}"]
        elif opening:
            tags = opening.rstrip()
            parts = ["", tags, opening.removeprefix(tags) + content]
        else:
            parts = [content]
        before, each, after = self.tool_list
        for number, tool in enumerate(message.tools):
            parts += [each if number else ("\n\n" if message.content else "") + before + each, tool]
        parts += [after, ""] if message.tools and after else []
        for number, call in enumerate(message.tool_calls):
            parts[-1] += "\n" if number or message.content else ""
            parts += ["<tool_call>", f"\n{call}\n", "</tool_call>", ""]
        return parts

    def written(self, role: str, content: str) -> str:
        """Return what stands of the content of a message between its header and footer."""
        return "\n".join([content] * self.prompt_copies) if role == "user" else content

    def check(self, parts: Collection[str]) -> None:
        """Raise `UserError` if this form cannot write one of the parts that a message has."""
        if unknown := [part for part in self.unknown if part in parts]:
            raise UserError(
                f"the chat template of the tokenizer has no form of {', '.join(unknown)} that can be taken "
                "over; leave them out, or use another tokenizer"
            )


OURS = ChatForm()


def read_form(template: str, marks: dict[str, str], tokens: set[str]) -> ChatForm:
    """Return the form of a template of `transformers`; `marks` names its tokens, `tokens` are all added ones.

    Raises `UserError` where conversations of questions and answers cannot be taken over from it.
    """
    if template in COPIES_OF:
        return ChatForm(prompt_copies=COPIES_OF[template])
    probe, unknown = _Probe(template, marks), ()
    try:
        form = _read_turns(probe, tokens)
        for part, read in _PARTS.items():
            try:
                form = replace(form, **read(probe, form))
            except _UnreadableError:
                unknown += (part,)
        form = replace(form, unknown=unknown)
        _compare(probe, form)
    except _UnreadableError as error:
        raise UserError(f"the chat template of the tokenizer cannot be taken over: {error}") from None
    return form


class _UnreadableError(Exception):
    """A template does not write what was looked for; says so in words."""


@contextmanager
def _bounded() -> Iterator[None]:
    """Let a template take so many lines of Python: it is a program, which may go on for ever."""
    former, lines = sys.gettrace(), count()

    def watch(frame: FrameType, event: str, argument: object) -> Callable:
        if next(lines) > MOST_LINES:
            raise _UnreadableError("it goes on and on")
        return watch

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(former)


ASKED, SAID, AGAIN = ({"role": r, "content": f"P{r}{n}"} for n, r in enumerate(("user", "assistant", "user")))
SYSTEM = {"role": "system", "content": "Psystem"}
THINKING = SAID | {"reasoning_content": "Pthought"}
CALLS = [{"name": name, "arguments": {"key": "value"}} for name in ("Pfirst", "Psecond")]
CALLING = SAID | {"tool_calls": [{"type": "function", "function": call} for call in CALLS]}
RESULTS = [{"role": "tool", "content": text} for text in ("Pone", "Pother")]
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("Pread", "Pwrite")]


@dataclass(frozen=True)
class _Probe:
    """Renders conversations through a template as `transformers` does, and cuts them at known texts."""

    template: str
    marks: dict[str, str]

    def text(self, *messages: dict[str, Any], asks: bool = False, tools: list | None = None) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            with _bounded():
                (text,), _ = render_jinja_template(
                    [list(messages)], tools, None, self.template, add_generation_prompt=asks, **self.marks
                )
        except Exception as error:  # a template is a program of its own, and raises what it likes
            raise _UnreadableError(str(error) or type(error).__name__) from None
        return text

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


def _after(text: str, start: str) -> str:
    if not text.startswith(start):
        raise _UnreadableError("what it writes of a message depends on what follows")
    return text[len(start) :]


def _before(text: str, end: str) -> str:
    if not text.endswith(end):
        raise _UnreadableError("what it writes of a message depends on what precedes")
    return text[: len(text) - len(end)]


def _read_turns(probe: _Probe, tokens: set[str]) -> ChatForm:
    """Return the form of questions and answers alone."""
    lead, to_answer, to_question, asking = probe.cut(ASKED, SAID, AGAIN, asks=True)
    footer, ending = probe.cut(ASKED)[-1], probe.cut(ASKED, SAID)[-1]
    end = max(filter(ending.startswith, tokens), key=len, default="")
    if not end:
        raise _UnreadableError("expected answers that end with a token of their own")
    header, past, asked = _after(to_question, ending), _after(to_answer, footer), _after(asking, footer)
    shared = commonprefix((past, asked)).partition("<think>")[0]
    return ChatForm(
        headers={"user": header, "assistant": shared},
        footers={"user": footer},
        end=end,
        gap=ending[len(end) :],
        begin=_before(lead, header),
        opening=_after(asked, shared),
        past_opening=_after(past, shared),
    )


def _compare(probe: _Probe, form: ChatForm) -> None:
    """Raise `_UnreadableError` where form and template write prompts of several turns differently."""
    for turns in ([ASKED, SAID, AGAIN, SAID, ASKED], [SYSTEM, ASKED, SAID, ASKED]):
        if turns[0] is SYSTEM and "system messages" in form.unknown:
            continue
        after = form.footers | {"assistant": form.end + form.gap}
        written = form.begin
        if form.default_system and turns[0] is not SYSTEM:
            written += form.headers["system"] + form.default_system + after["system"]
        for turn in turns:
            written += form.headers[turn["role"]] + form.past_opening * (turn is SAID)
            written += turn["content"] + after[turn["role"]]
        if written + form.headers["assistant"] + form.opening != probe.text(*turns, asks=True):
            raise _UnreadableError("what it writes of a message depends on the others")


def _read_system(probe: _Probe, form: ChatForm) -> dict[str, Any]:
    to_system, to_user, _ = probe.cut(SYSTEM, ASKED)
    footer, found = _before(to_user, form.headers["user"]), {}
    if not to_system.startswith(form.begin):  # a conversation without one gets one
        default = _before(_after(form.begin, to_system), footer)
        found, form = {"default_system": default, "begin": ""}, replace(form, begin="")
    header = _after(to_system, form.begin)
    return found | {
        "headers": form.headers | {"system": header},
        "footers": form.footers | {"system": footer},
    }


def _read_thought(probe: _Probe, form: ChatForm) -> dict[str, Any]:
    text = probe.text(ASKED, THINKING)
    if "Pthought" in text:
        _, before, after, _ = _cut(text, ASKED["content"], "Pthought", SAID["content"])
        if (_after(before, form.footers["user"] + form.headers["assistant"]), after) != THOUGHT:
            raise _UnreadableError("thoughts look otherwise")
    return {}


def _read_calls(probe: _Probe, form: ChatForm) -> dict[str, Any]:
    text = probe.text(ASKED, CALLING)
    written = "".join(f"\n<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in CALLS)
    if "Pfirst" in text and _cut(text, SAID["content"])[-1] != written + form.end + form.gap:
        raise _UnreadableError("calls look otherwise")
    return {}


def _read_results(probe: _Probe, form: ChatForm) -> dict[str, Any]:
    text = probe.text(ASKED, CALLING, *RESULTS, asks=True)
    before, between, after = _cut(text, *(result["content"] for result in RESULTS))
    header = before.rpartition(form.end + form.gap)[2]
    footer = _before(after, form.headers["assistant"] + form.opening)
    return {
        "headers": form.headers | {"tool": header},
        "footers": form.footers | {"tool": footer},
        "between_results": None if between == footer + header else between,
    }


def _read_tools(probe: _Probe, form: ChatForm) -> dict[str, Any]:
    text, alone = probe.text(SYSTEM, ASKED, tools=TOOLS), probe.text(ASKED, tools=TOOLS)
    if "Pread" not in text:
        return {}
    listed = [json.dumps(tool) for tool in TOOLS]
    _, lead, between, rest = _cut(text, SYSTEM["content"], *listed)
    lead = _before(_after(lead, "\n\n"), between)
    tail = _before(_cut(rest, ASKED["content"])[0], form.footers["system"] + form.headers["user"])
    before = f"{form.default_system}\n\n" if form.default_system else ""
    if _cut(alone, *listed)[0] != form.begin + form.headers["system"] + before + lead + between:
        raise _UnreadableError("a list without a system message looks otherwise")
    return {"tool_list": (lead, between, tail)}


_PARTS = {
    "system messages": _read_system,
    "thoughts": _read_thought,
    "tool calls": _read_calls,
    "tool messages": _read_results,
    "lists of tools": _read_tools,
}
