"""A chat template from elsewhere at work: a program of somebody's, whose steps and sizes are bounded.

What it writes is what `transformers` makes of it; the form of conversations is `dataset/foreign_form.py`'s.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from types import FrameType
from typing import Any

MOST_LINES = 10**7  # of Python that a template may run for a prompt: seconds
MOST_ROOM = 10**8  # characters of all texts that it makes, items of a list
BIT = 100  # characters that a bit of a number counts for, as large numbers take long
FILTERS = ("jinja2.filters", "transformers.utils.chat_template_utils")
FORMATS = ("format", "format_map", "do_format")
# For ever, as a form is the same tomorrow. The end of the line goes with the tag (`trim_blocks`).
DATE = "{%- macro strftime_now(format) %}26 Jul 2024{% endmacro %}\n"


def render(template: str, messages: list[dict[str, Any]], tools: list | None, asks: bool, named: Any) -> str:
    """Return what a template writes; raises what it raises, and `ValueError` where it goes on or grows."""
    renderer, asked = _renderer(), {"add_generation_prompt": asks, **named}
    with _bounded():
        (text,), _ = renderer([messages], tools, None, DATE + template, **asked)
    return text


class _TooMuchError(BaseException):
    """Ends a template, whose compiler passes over what any other error says of its constants."""


@contextmanager
def _bounded() -> Iterator[None]:
    """Count the lines that run and the characters that functions return, until there are too many."""
    former, lines, room = sys.gettrace(), 0, 0

    def watch(frame: FrameType, event: str, argument: object) -> Callable:
        nonlocal lines, room
        lines += 1
        if lines > MOST_LINES:
            raise _TooMuchError("it goes on and on")
        if event == "call" and frame.f_globals.get("__name__") in FILTERS:
            filtered, *given = [*frame.f_locals.values()] or [None]
            _check_widths(frame.f_code.co_name, filtered, given)
        if event == "return" and isinstance(argument, str):
            room += len(argument)
            _check(room)
        return watch

    sys.settrace(watch)
    try:
        yield
    except _TooMuchError as error:
        raise ValueError(str(error)) from None
    finally:
        sys.settrace(former)


@cache
def _renderer() -> Callable:
    """Return the renderer of `transformers`, in whose sandbox no operator and no method makes huge things."""
    from transformers.utils import chat_template_utils

    class Sandbox(chat_template_utils.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "%" and isinstance(left, str):
                _check_widths("format", left, [right])
            _check(_room(operator, left, right))
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, called: Any, /, *given: Any, **named: Any) -> Any:
            method = getattr(called, "__wrapped__", called)  # `str.format` is wrapped
            if isinstance(text := getattr(method, "__self__", None), str):
                _check_widths(method.__name__, text, [*given, *named.values()])
            return super().call(context, called, *given, **named)

    chat_template_utils.ImmutableSandboxedEnvironment = Sandbox
    return chat_template_utils.render_jinja_template


def _room(operator: str, left: Any, right: Any) -> int:
    """Return how large the result of an operator may be."""
    numbers = [each for each in (left, right) if isinstance(each, int)]
    if operator == "**":
        return _size(left) * right if len(numbers) == 2 else 0
    if operator == "*" and len(numbers) == 1:
        return max(_size(each) for each in (left, right) if each is not numbers[0]) * numbers[0]
    return _size(left) + _size(right)


def _size(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length() * BIT
    return len(value) if hasattr(value, "__len__") else 0


def _check_widths(name: str, text: Any, given: Iterable[Any]) -> None:
    """Refuse to fill up a text by far: a number beside it, or within it where it is a format, is a width."""
    flat = chain.from_iterable(each if isinstance(each, tuple) else (each,) for each in given)
    widths = [each for each in flat if isinstance(each, int)]
    if name in FORMATS and isinstance(text, str):
        widths += map(int, re.findall(r"\d+", text))
    _check(*widths)


def _check(*sizes: int) -> None:
    if max(sizes, default=0) > MOST_ROOM:
        raise _TooMuchError(f"it makes something larger than {MOST_ROOM:,} characters")
