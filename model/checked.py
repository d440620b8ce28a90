"""Records made of JSON values, which may be of any type."""

from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin

from model.errors import UserError, brief

Record = TypeVar("Record")


def build_record(cls: type[Record], values: dict[str, Any], source: str) -> Record:
    """Return a record of checked values; raises `UserError` for wrong ones."""
    types = {field.name: field.type for field in fields(cls)}
    for name, value in values.items():
        if not _has_type(value, types[name]):
            raise UserError(f"{source}: {name} must be {_type_name(types[name])}, got {brief(value)}")
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _has_type(value: Any, expected: Any) -> bool:
    if get_origin(expected) is Literal:
        return isinstance(value, str) and value in get_args(expected)
    if isinstance(value, bool):
        return expected is bool
    kinds = get_args(expected) or (expected,)
    kinds += (int,) if float in kinds else ()
    return isinstance(value, tuple(get_origin(kind) or kind for kind in kinds))


def _type_name(expected: Any) -> str:
    if get_origin(expected) is Literal:
        return f"one of {', '.join(get_args(expected))}"
    return getattr(expected, "__name__", str(expected))
