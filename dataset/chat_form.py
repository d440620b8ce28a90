"""Messages, and how a model's conversations are written: a record of headers and end marks, ours by default.

`dataset/foreign_form.py` finds that of another template. Ids, roles and targets are
`dataset/conversation.py`'s.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from model.errors import UserError

ROLES = ("system", "user", "assistant", "tool")

TRAINING_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
"""our form as a template that marks what answers say, `{% generation %}`, which plain jinja2 refuses"""
CHAT_TEMPLATE = re.sub(r"\{%- (end)?generation %\}\n", "", TRAINING_TEMPLATE)
"""the same without marks: every engine reads it"""

_CONTENT = "{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}\n"
_COPY = "{%- if message.role == 'user' %}\n{{- '\\n' + (message.content or '') }}\n{%- endif %}\n"
MOST_COPIES = 8


def our_templates(prompt_copies: int) -> tuple[str, str]:
    """Return our template without and with marks, where texts of users stand that many times."""
    content = _CONTENT + _COPY * (prompt_copies - 1)
    return CHAT_TEMPLATE.replace(_CONTENT, content), TRAINING_TEMPLATE.replace(_CONTENT, content)


MARKS_PASSAGES = Path(__file__).with_name("passages.jinja").read_text(encoding="utf-8")
"""stands before a template where other programs are to find passages: puts a mark at either end of each"""
COPIES_OF = {text: copies for copies in range(1, MOST_COPIES + 1) for text in our_templates(copies)}
COPIES_OF |= {MARKS_PASSAGES + text: copies for text, copies in COPIES_OF.items()}
"""how often each of our templates writes the text of a user"""

OUR_FOOTERS = dict.fromkeys(("system", "user", "tool"), "<|im_end|>\n")
THOUGHT = ("<think>\n", "\n</think>\n\n")
"""around what an answer thinks first"""


class Passage(str):
    """A part of a text that some prompt masks keep from others: an option, a demonstration, a document."""


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
    """whether an answer carries loss, any other message under `--supervise all`; masks and truncation find
    the same answers either way"""
    ids: tuple[int, ...] | None = None
    """the tokens of an answer as they were sampled"""
    passages: tuple[tuple[int, int], ...] = ()
    """where passages stand in the content: the place of the first character, and after the last"""

    def holds(self) -> list[str]:
        """Return what a form must know to write the message, by the names of `ChatForm.unknown`."""
        parts = {"thoughts": self.thought, "tool calls": self.tool_calls, "lists of tools": self.tools}
        parts["passages"] = self.passages
        return [f"{self.role} messages", *(name for name, part in parts.items() if part)]


@dataclass(frozen=True)
class ChatForm:
    """The text around the contents of a conversation; ours by default."""

    headers: dict[str, str] = field(default_factory=lambda: {role: f"<|im_start|>{role}\n" for role in ROLES})
    """before the content of each role"""
    footers: dict[str, str] = field(default_factory=OUR_FOOTERS.copy)
    """after it, of all but answers"""
    end: str = "<|im_end|>"
    """the token that ends an answer, and is a target"""
    gap: str = "\n"
    """between an answer and what follows"""
    begin: str = ""
    """before the first message"""
    default_system: str | None = ""
    """the system message of a conversation without one; "" where there is none, None where it says nothing"""
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
    trims: bool = field(default=False, repr=False)
    """whether white space around contents is left out"""
    lead: str = field(default="", repr=False)
    """what an answer begins with that is no part of its content"""
    forgets: str = field(default="", repr=False)
    """what of earlier turns it leaves out of prompts, in words"""
    whole: "ChatForm | None" = field(default=None, repr=False, compare=False)
    """writes whole prompts as a template from elsewhere does, in place of this form where `proofs` fail"""
    proofs: tuple[tuple[list[Message], str], ...] = field(default=(), repr=False, compare=False)
    """prompts with the text that the template writes of them"""

    @property
    def closing(self) -> str:
        """What an answer without a thought begins with where `opening` has begun one: its end."""
        return THOUGHT[1] if "<think>" in self.opening and "</think>" not in self.opening else ""

    def write(self, messages: Sequence[Message], in_prompt: bool = False) -> Iterator[tuple[Message, list]]:
        """Yield messages with their `parts`; results of tools that share a message are parts of the last.

        `in_prompt` says that an answer follows. Raises `UserError` for what the form cannot write.
        """
        self.check(messages)
        head = [message for message in messages[:1] if message.role == "system"]
        if self.default_system != "" and not any(message.content for message in head):
            first = replace(head[0] if head else Message("system", ""), content=self.default_system or "")
            messages = [first, *messages[len(head) :]]
        results: list[str] = []
        for message, following in zip_longest(messages, messages[1:]):
            opening = self.past_opening if in_prompt else self.closing
            parts = results + self.parts(message, opening * (message.role == "assistant"))
            if self.between_results is not None and message.role == "tool" == getattr(following, "role", ""):
                results = [*parts, self.between_results]
            else:
                yield message, parts if message.ids is None else [message.ids]
                results = []

    def is_opened(self, message: Message, in_prompt: bool) -> bool:
        """Say whether an answer has `opening` after its header, as one that is asked for has.

        One inside a prompt begins with `past_opening` in its place, one that brings a thought with that.
        """
        return message.ids is not None or not (in_prompt or message.thought)

    def parts(self, message: Message, opening: str = "") -> list[str]:
        """Return what a message says between header and footer; every second part is text of the form.

        `opening` begins an answer without a thought.
        """
        content = message.content.strip() if self.trims and not message.passages else message.content
        copies = self.prompt_copies if message.role == "user" else 1
        if message.thought:
            begin, end = (text.strip() for text in THOUGHT)
            parts = ["", begin, f"\n{message.thought}\n", end, f"\n\n{content}"]
        elif opening:
            tags = opening.rstrip()
            parts = ["", tags, opening.removeprefix(tags) + content]
        else:
            parts = _divided(content, message.passages, copies)
        before, each, after = self.tool_list
        for number, tool in enumerate(message.tools):
            parts += [each if number else ("\n\n" if message.content else "") + before + each, tool]
        parts += [after, ""] if message.tools and after else []
        for number, call in enumerate(message.tool_calls):
            parts[-1] += "\n" if number or message.content else ""
            parts += ["<tool_call>", f"\n{call}\n", "</tool_call>", ""]
        return parts

    def check(self, messages: Sequence[Message]) -> None:
        """Raise `UserError` if this form cannot write one of the messages."""
        if unknown := [part for part in self.unknown if any(part in each.holds() for each in messages)]:
            names = ", ".join(unknown)
            fault = f"no form of {names} can be taken over from the chat template of the tokenizer"
            raise UserError(f"{fault}; leave them out, or use another tokenizer")


def _divided(content: str, passages: Sequence[tuple[int, int]], copies: int) -> list[str]:
    """Return copies of a text below each other, cut at its passages; every second part is "", of the form."""
    text, size = "\n".join([content] * copies), len(content) + 1
    parts, at = [], 0
    for begin, end in (
        (n * size + first, n * size + last) for n in range(copies) for first, last in passages
    ):
        parts += [text[at:begin], "", Passage(text[begin:end]), ""]
        at = end
    return [*parts, text[at:]]


OURS = ChatForm()
