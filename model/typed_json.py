"""JSON that a user may have damaged: values have the types that they ought to have, or are named.

A form is a dataclass, which takes no other keys, a type, or a picture of what is read of an object:
{"name": str, "scores": list[float], "note?": str}, where ? allows null and none; other keys stay.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar

from model.errors import UserError
from model.files import read_object

Parsed = TypeVar("Parsed")
Number = typing.NewType("Number", float)
"""one that may not be finite, as that of a training that diverged"""
UNIONS = (UnionType, typing.Union)
LARGEST = 2**63  # what no whole number reaches
DEEPEST = 20  # levels of lists and objects in a value that may be anything


def read_as(form: type[Parsed], value: Any, name: str = "value") -> Parsed:
    """Return what JSON says in a form.

    Whole numbers are counts, from 0 on; other numbers are finite; keys that a dataclass does not have are
    refused, as are missing ones without a default. Raises `ValueError` that names the value at fault.
    """
    origin, arguments = typing.get_origin(form), typing.get_args(form)
    if isinstance(form, dict):
        return _read_picture(form, value, name)
    if dataclasses.is_dataclass(form):
        return _read_dataclass(form, value, name)
    if origin in UNIONS:
        return None if value is None and NoneType in arguments else read_as(arguments[0], value, name)
    if origin in (tuple, list) and isinstance(value, list | tuple):
        if all(_is_plain(arguments[0], each) for each in value):  # at once: lists of numbers are long
            return origin(value)
        return origin(read_as(arguments[0], each, f"{name}[{n}]") for n, each in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: read_as(arguments[1], each, f"{name}.{key}") for key, each in value.items()}
    if _is_plain(form, value):
        return value
    wanted = f"no more than {DEEPEST} levels" if form is Any else getattr(form, "__name__", form)
    wanted = f"one of {', '.join(arguments)}" if origin is typing.Literal else wanted
    raise ValueError(f"{name}: expected {wanted}, got {json.dumps(value)[:40]}")


_hints = cache(typing.get_type_hints)


def _is_plain(form: Any, value: Any) -> bool:
    if typing.get_origin(form) in UNIONS:
        return any(_is_plain(each, value) for each in typing.get_args(form))
    if typing.get_origin(form) is typing.Literal:
        return type(value) is str and value in typing.get_args(form)
    if form is Any:
        return _is_flat(value, DEEPEST)
    is_whole = type(value) is int and abs(value) < LARGEST
    if form in (float, Number):
        return (is_whole or type(value) is float) and (form is Number or math.isfinite(value))
    return is_whole and value >= 0 if form is int else type(value) is form


def _is_flat(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(levels > 0 and _is_flat(each, levels - 1) for each in inner)


def _read_picture(form: dict[str, Any], value: Any, name: str) -> dict[str, Any]:
    _check_keys(value, [key for key in form if not key.endswith("?")], name)
    named = {key.removesuffix("?"): (inner, key.endswith("?")) for key, inner in form.items()}
    there = {key: inner for key, (inner, free) in named.items() if not (free and value.get(key) is None)}
    return {**value, **{key: read_as(inner, value[key], f"{name}.{key}") for key, inner in there.items()}}


def _read_dataclass(form: type[Parsed], value: Any, name: str) -> Parsed:
    hints, nothing = _hints(form), dataclasses.MISSING
    fields = dataclasses.fields(form)
    wanted = [each.name for each in fields if each.default is each.default_factory is nothing]
    _check_keys(value, wanted, name)
    if unknown := value.keys() - hints:
        raise ValueError(f"{name}: unknown key {min(map(str, unknown))}")
    return form(**{key: read_as(hints[key], each, f"{name}.{key}") for key, each in value.items()})


def _check_keys(value: Any, wanted: list[str], name: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected an object, got {json.dumps(value)[:40]}")
    if missing := [key for key in wanted if key not in value]:
        raise ValueError(f"{name}: {missing[0]} is missing")


def read_file(form: type[Parsed], file: Path, advice: str) -> Parsed:
    """Return the object in a JSON file as `read_as` does; raises `UserError`, which ends with `advice`."""
    return read_values(form, read_object(file, advice), file, advice)


def read_values(form: type[Parsed], values: dict[str, Any], file: Path, advice: str) -> Parsed:
    """Return the object that a JSON file holds, in the same way."""
    try:
        return read_as(form, values, file.stem)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged, or of another version ({error}); {advice}") from None


def read_lines(parse: Callable[[Any], Parsed], file: Path, advice: str) -> list[Parsed]:
    """Return what is made of the lines of a .jsonl file.

    Raises `UserError`, which names the line at fault and ends with `advice`.
    """
    found, place = [], ""
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
            place = f"line {number}: "  # splitlines would cut at U+2028 too
            found += [parse(json.loads(line))] if line else []
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({place}{error}); {advice}") from None
    return found
