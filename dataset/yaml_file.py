"""YAML files of users, which may be damaged, or made to do harm: keys and values alone."""

import reprlib
from pathlib import Path
from typing import Any

import yaml
from yaml.events import CollectionEndEvent, CollectionStartEvent, ScalarEvent

from model.errors import UserError
from model.files import is_seen

DEEPEST = 8
"""levels of a recipe, of which the settings have two"""


def read_yaml(path: str, what: str = "", as_text: bool = False) -> dict[str, Any]:
    """Return the keys and values of a YAML file, `as_text` as they are written, but null.

    Raises `UserError`, which begins with `what`.
    """
    try:
        content = _loaded(Path(path).read_text(encoding="utf-8"), _TextLoader if as_text else _Loader)
    except OSError as error:
        raise UserError(f"{what}cannot read {path}: {error.strerror}") from None
    except Exception as error:  # of numbers and dates the library raises whatever int() and date() raise
        raise UserError(f"{what}{path} is not YAML: {error}") from None
    if not isinstance(content, dict | None):
        raise UserError(f"{what}expected keys and values in {path}, got {reprlib.repr(content)}")
    return content or {}


def as_yaml(values: dict[str, Any]) -> str:
    """Return values as YAML that a terminal may show: with escapes where a text holds what is not seen."""
    texts = (yaml.safe_dump(values, sort_keys=False, allow_unicode=unicode) for unicode in (True, False))
    return next(text for text in texts if all(c == "\n" or is_seen(c) for c in text))


def _loaded(text: str, loader: "type[_Loader]") -> Any:
    """Return the content of YAML; raises `ValueError` for what makes little text large or deep."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, ScalarEvent) and "\0" in event.value:
            raise ValueError("a text holds the character NUL, which no name or flag can have")
        if isinstance(event, ScalarEvent) and (event.value, event.style) == ("<<", None):
            raise ValueError("keys that << merges are not read; write them again")
        starts, ends = (isinstance(event, kind) for kind in (CollectionStartEvent, CollectionEndEvent))
        depth += starts - ends
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"aliases such as *{event.anchor} are not read; write the value again")
        if depth > DEEPEST:
            raise ValueError(f"expected at most {DEEPEST} levels, one inside another")
    return yaml.load(text, loader)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for name, line in ((str(key.value), key.start_mark.line + 1) for key, _ in node.value):
            if name in lines:
                raise ValueError(f"{name} stands twice, in lines {lines[name]} and {line}; keep one of them")
            lines[name] = line
        values = super().construct_mapping(node, deep)
        if len(values) < len(node.value):  # yes and true are one key
            fault = f"a key stands twice in what begins in line {node.start_mark.line + 1}"
            raise ValueError(f"{fault}; keep one")
        return values


class _TextLoader(_Loader):
    """Takes values for texts: 007, 1.10, no, 12:30 and dates stay what they are."""

    yaml_implicit_resolvers = {
        first: [resolver for resolver in resolvers if resolver[0] == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
