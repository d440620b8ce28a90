"""Dataclasses from JSON that a user may have damaged: values have the types of their fields, or are named."""

import dataclasses
import json
import math
import typing
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar

from model.files import is_count, is_number

Parsed = TypeVar("Parsed")


def read_as(form: type[Parsed], value: Any, name: str = "value") -> Parsed:
    """Return what JSON says as a dataclass, tuple, dict or plain type.

    Whole numbers are counts, from 0 on; other numbers are finite; keys that a dataclass does not have are
    refused, as are missing ones without a default. Raises `ValueError` that names the value at fault.
    """
    origin, arguments = typing.get_origin(form), typing.get_args(form)
    if dataclasses.is_dataclass(form):
        return _read_dataclass(form, value, name)
    if origin in (UnionType, typing.Union):
        forms = [each for each in arguments if (each is NoneType) == (value is None)]
        return read_as(forms[0], value, name)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(read_as(arguments[0], each, f"{name}[{n}]") for n, each in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: read_as(arguments[1], each, f"{name}.{key}") for key, each in value.items()}
    if form is Any or _is_plain(form, value):
        return value
    raise ValueError(f"{name}: expected {getattr(form, '__name__', form)}, got {json.dumps(value)[:40]}")


_hints = cache(typing.get_type_hints)


def _is_plain(form: type, value: Any) -> bool:
    if form is float:
        return is_number(value) and math.isfinite(value)
    return is_count(value) if form is int else type(value) is form


def _read_dataclass(form: type[Parsed], value: Any, name: str) -> Parsed:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected an object, got {json.dumps(value)[:40]}")
    hints, fields = _hints(form), {field.name: field for field in dataclasses.fields(form)}
    if unknown := value.keys() - fields:
        raise ValueError(f"{name}: unknown key {min(unknown)}")
    nothing = dataclasses.MISSING
    for key, field in fields.items():
        if key not in value and field.default is nothing and field.default_factory is nothing:
            raise ValueError(f"{name}: {key} is missing")
    return form(**{key: read_as(hints[key], each, f"{name}.{key}") for key, each in value.items()})


def read_lines(parse: Callable[[Any], Parsed], file: Path) -> list[Parsed]:
    """Return the lines of a .jsonl file; raises `ValueError` that names the one at fault, `OSError`."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        try:  # splitlines would cut at U+2028 too
            found += [parse(json.loads(line))] if line else []
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from None
    return found
