"""The sampling settings of a chat as text: what `/set` reads and shows."""

import json
from collections.abc import Callable
from typing import Any

from eval.settings import TextSampling
from model.errors import UserError


def parse_setting(name: str, text: str) -> Any:
    """Return the value of a sampling setting; `UserError` for an unknown name or a wrong type."""
    if name not in SETTINGS:
        raise UserError(f"unknown setting {name!r}; choose one of {', '.join(SETTINGS)}")
    read, expected = SETTINGS[name]
    try:
        return read(text)
    except (ValueError, KeyError):
        raise UserError(f"{name}: expected {expected}, got {text!r}") from None


def describe_sampling(sampling: TextSampling) -> str:
    """Return the sampling settings on one line, as `parse_setting` reads them."""
    return ", ".join(f"{name} {_written(getattr(sampling, name))}" for name in SETTINGS)


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else str(value).lower()


def _texts(text: str) -> tuple[str, ...]:
    values = json.loads(text) if text.startswith("[") else [text]
    if not all(isinstance(value, str) for value in values):
        raise ValueError
    return tuple(values)


SETTINGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "temperature": (float, "a number"),
    "top_k": (lambda text: None if text == "none" else int(text), "a whole number or none"),
    "top_p": (float, "a number"),
    "min_p": (float, "a number"),
    "repetition_penalty": (float, "a number"),
    "seed": (int, "a whole number"),
    "max_new_tokens": (int, "a whole number"),
    "stop_strings": (_texts, 'a text, or a list such as ["\\n", "User:"] or []'),
    "log_probabilities": ({"true": True, "false": False}.__getitem__, "true or false"),
}
