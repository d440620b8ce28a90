"""Frozen dataclasses as command lines: flags, YAML recipes, help, and one-line errors.

jsonargparse checks the types and writes the help. A recipe is read as flags that stand before those of the
line, so that these win wherever they stand, also over others that they exclude. Owns nothing of what the
settings mean, and imports neither torch nor anything that does: `--help` is instant.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import json
import os
import re
import reprlib
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

import model.systems  # noqa: F401 - every command says here which systems it does not run on
from dataset.printing import clear_environment, prepare_streams, printable, show_traceback
from dataset.yaml_file import read_yaml
from model.errors import UserError, brief, in_a_line

clear_environment()  # before anything is imported that prints variables
Settings = TypeVar("Settings")
_Words = dict[str, list[str]]
_Rivals = Callable[[str, str], Iterable[str]]
TRACEBACK = "--traceback"
"""flag of every command that shows what is behind a one-line error"""
PARENT = os.getppid()
"""process that started this one: where it ends, another number takes its place"""


def parse(settings_class: type[Settings], description: str, argv: Sequence[str] | None = None) -> Settings:
    """Read a frozen dataclass from the command line.

    A field is a flag; a field that is itself a dataclass is a group (`--model.preset`); a list or tuple takes
    several values; a bool may stand without a value. `--config recipe.yaml` holds the same keys, nested or
    dotted, unless the class has a field of that name. `rivals(key, value)` of the class, if it has one, names
    the keys that do not go with this one: a flag takes them out of recipes. A string below a field is its
    help. An error is one line and exit code 2.
    """
    try:
        return read(settings_class, list(sys.argv[1:] if argv is None else argv), description)
    except UserError as error:
        fail(str(error))


def read(settings_class: type[Settings], line: list[str], description: str = "") -> Settings:
    """Do the same with the words of a line; raises `UserError` for what `parse` ends with."""
    flags = {flag.key: flag for flag in _flags(settings_class)}
    parser = _parser(settings_class, _program(), description)
    if {"-h", "--help"} & {*line}:
        print(parser.format_help(), end="", flush=True)
        raise SystemExit(0)
    words = _with_recipes(line, flags, getattr(settings_class, "rivals", lambda key, value: ()))
    required = [key for key, flag in flags.items() if flag.default is dataclasses.MISSING]
    if missing := [f"--{key}" for key in required if key not in words]:
        raise UserError(f"required, but not given: {', '.join(missing)}")
    try:
        all_words = [word for key, each in words.items() for word in _line(flags[key], each)]
        given = parser.parse_args(all_words, defaults=False)  # to look them over takes ten times as long
    except ArgumentError as error:
        raise UserError(_one_line(str(error), flags)) from None
    except Exception as error:  # of numbers and dates the library raises whatever float() and date() raise
        raise UserError(f"a value among the flags cannot be read ({error})") from None
    return _instance(settings_class, given, flags)


def words_of(settings_class: type, keys: dict[str, Any]) -> list[str]:
    """Return dotted keys and their values as the words of a line; raises `UserError` for an unknown one."""
    flags, line = {flag.key: flag for flag in _flags(settings_class)}, []
    for key, value in keys.items():
        if key not in flags:
            raise UserError(f"unknown setting {key}{_suggestion(key, flags)}")
        if words := _as_words(flags[key], value):
            line += _line(flags[key], words)
    return line


def run(main: Callable[[], None], stdout_is_log: bool = False) -> None:
    """Call `main` as a program: what users can cause is one line and exit code 2, Ctrl-C is exit code 130.

    Where standard output is a log, lines that cannot be written are dropped.
    """
    prepare_streams(stdout_is_log and not {"-h", "--help"} & {*sys.argv})
    # threads that spin while they wait are many times slower beside other load; read when torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        try:
            main()
        except SystemExit:
            sys.stdout.flush()  # of --help; at exit nobody could catch what goes wrong
            raise
        sys.stdout.flush()
    except Exception as error:
        if (line := in_a_line(error)) is None:
            raise
        has_more_behind = error.__context__ or not isinstance(error, UserError)
        fail(f"{line} ({TRACEBACK} shows where)" if has_more_behind else line)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def fail(message: str) -> NoReturn:
    """Print one line on stderr and exit with code 2; `--traceback` shows above it where it came from."""
    if TRACEBACK in sys.argv and (error := sys.exception()):
        _show_chain(error)
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(2)


def _show_chain(error: BaseException) -> None:
    """Print an error and all that led to it, also what `from None` keeps out of the one line."""
    link: BaseException | None = error
    while link:
        link.__suppress_context__ = False
        link = link.__cause__ or link.__context__
    show_traceback(error)


@dataclasses.dataclass(frozen=True)
class _Flag:
    key: str
    hint: Any  # of the value, or of one element where there may be many
    many: type | None  # list or tuple
    default: Any
    help: str
    group: tuple[str, str] | None

    @property
    def takes_text(self) -> bool:
        return any(kind is str or typing.get_origin(kind) is typing.Literal for kind in _members(self.hint))


def _flags(cls: type, given: Any = None, prefix: str = "", group: tuple | None = None) -> Iterator[_Flag]:
    hints, helps = typing.get_type_hints(cls), _field_docstrings(cls)
    for field in dataclasses.fields(cls):
        hint, default = hints[field.name], getattr(given, field.name, field.default)
        if dataclasses.is_dataclass(hint):
            title = (f"{prefix}{field.name}", inspect.getdoc(hint) or "")
            yield from _flags(hint, default, f"{prefix}{field.name}.", title)
            continue
        many, element = _elements(hint)
        yield _Flag(prefix + field.name, element or hint, many, default, helps.get(field.name, ""), group)


def _elements(hint: Any) -> tuple[type | None, Any]:
    """Return list or tuple and the type of an element (also of an optional one), None for anything else."""
    for member in _members(hint):
        if typing.get_origin(member) in (list, tuple):
            return typing.get_origin(member), typing.get_args(member)[0]
    return None, None


def _members(hint: Any) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


@functools.cache
def _field_docstrings(cls: type) -> dict[str, str]:
    """Return the string literal below each field, of a class and of those it extends or is `described_by`."""
    helps = {}
    for base in (*getattr(cls, "described_by", ()), *reversed(cls.__mro__[:-1])):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for statement, follower in zip(body, body[1:], strict=False):
            is_text = isinstance(follower, ast.Expr) and isinstance(follower.value, ast.Constant)
            if isinstance(statement, ast.AnnAssign) and is_text:
                helps[statement.target.id] = inspect.cleandoc(follower.value.value)
    return helps


def _program() -> str:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {module.name.removesuffix('.__main__')}" if module else Path(sys.argv[0]).name


@functools.cache  # it takes as long as reading a line, and an experiment reads those of many cells
def _parser(settings_class: type, program: str, description: str) -> ArgumentParser:
    words = {"prog": program, "usage": f"{program} [flags]", "description": description}
    parser = ArgumentParser(**words, exit_on_error=False, allow_abbrev=False)
    groups = {}
    required_first = sorted(_flags(settings_class), key=lambda flag: flag.default is not dataclasses.MISSING)
    if "config" not in [flag.key for flag in required_first]:
        parser.add_argument("--config", type=str, help="YAML file with any of these keys; flags win over it")
    parser.add_argument(TRACEBACK, action="store_true", help="show what is behind a one-line error")
    for flag in required_first:
        if flag.group and flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(*flag.group)
        options: dict[str, Any] = {"type": flag.hint, "help": flag.help}
        default = list(flag.default) if isinstance(flag.default, tuple) else flag.default
        options |= {"required": True} if default is dataclasses.MISSING else {"default": default}
        if flag.many:
            options["nargs"] = "+"
        elif bool in _members(flag.hint):
            options |= {"nargs": "?", "const": True}
        groups.get(flag.group, parser).add_argument(f"--{flag.key}", **options)
    return parser


def _with_recipes(line: list[str], flags: dict[str, _Flag], rivals: _Rivals) -> _Words:
    """Return the words of each key that a line gives, and of those in the recipes that it names.

    What a later recipe or the line itself gives takes its rivals out of the recipes before.
    """
    recipe, given = {}, {}
    for key, words in _each_flag(line):
        if key == "config" and "config" not in flags:
            if len(words) != 1:
                raise UserError(f"--config: expected a YAML file, got {' '.join(words) or 'nothing'}")
            recipe = _over(recipe, _recipe_words(words[0], flags), rivals)
        elif f"--{key}" == TRACEBACK and not words:
            continue
        elif key not in flags:
            raise UserError(f"unknown argument --{key}{_suggestion(key, flags, '--')}")
        elif key in given:
            raise UserError(f"--{key} is given twice; give it once (a list takes several values)")
        else:
            given[key] = words
    return _over(recipe, given, rivals)


def _each_flag(line: list[str]) -> list[tuple[str, list[str]]]:
    """Return the keys of the flags in a line, each with the words behind it."""
    found: list[tuple[str, list[str]]] = []
    for token in line:
        if token.startswith("--"):
            key, has_value, value = token.removeprefix("--").partition("=")
            found.append((key, [value] if has_value else []))
        elif found:
            found[-1][1].append(token)
        else:
            raise UserError(f"unknown argument {token}; --help lists them all")
    return found


def _over(former: _Words, later: _Words, rivals: _Rivals) -> _Words:
    """Return words by key: the later ones, and those of the former ones that go with them."""

    def excludes(key: str, words: list[str], other: str) -> bool:
        value = words[-1] if words else ""
        return value != "null" and other in rivals(key, value)

    def goes_with(key: str, words: list[str]) -> bool:
        return not any(excludes(each, later[each], key) and excludes(key, words, each) for each in later)

    return {key: words for key, words in former.items() if goes_with(key, words)} | later


def _recipe_words(path: str, flags: dict[str, _Flag]) -> _Words:
    """Return the words of each key of a recipe."""
    leaves, words = [*_leaves(read_yaml(path, "--config: "), flags)], {}
    written = dict(_leaves(read_yaml(path, as_text=True), flags))
    for key, value in leaves:
        if key not in flags:
            raise UserError(f"unknown key {key} in {path}{_suggestion(key, flags)}")
        if key in words:
            raise UserError(f"{key} stands twice in {path}; keep one of them")
        words[key] = _as_words(flags[key], written[key] if flags[key].takes_text else value)
    return {key: each for key, each in words.items() if each}


def _leaves(content: dict, flags: dict[str, _Flag], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in flags:
            yield from _leaves(value, flags, f"{key}.")
        elif members := [other for other in flags if other.startswith(f"{key}.")]:
            raise UserError(f"{key}: expected a group with keys like {members[0]}, got {reprlib.repr(value)}")
        else:
            yield key, value


def _as_words(flag: _Flag, value: Any) -> list[str]:
    """Return what a line would say for a value of YAML; nothing for an empty list that is the default."""
    nothing = [] if flag.default == () else flag.default
    if flag.many and not value and value == nothing:  # a saved recipe names every key, also the empty ones
        return []
    values = value if flag.many and isinstance(value, list) and value else [value]
    for each in values:
        may_be_none = each is value and types.NoneType in _members(flag.hint)
        if isinstance(each, list | dict) or (each is None and not may_be_none):
            raise UserError(_unexpected(flag, reprlib.repr(value)))
        if flag.takes_text and not isinstance(each, str | None):  # no, 007 and 1.10 would be other texts
            raise UserError(_unexpected(flag, f"{reprlib.repr(value)}; write a text in quotes"))
    return [json.dumps(each) if each is None or isinstance(each, bool) else str(each) for each in values]


def _line(flag: _Flag, words: list[str]) -> list[str]:
    """Return a flag and the words behind it as words of a line; a bool may have none.

    Of many words, none may begin with a dash: the parser would take it for a flag.
    """
    if not words or (flag.many and len(words) > 1):
        if dashed := [word for word in words if word.startswith("-") and not word[1:2].isdigit()]:
            raise UserError(_unexpected(flag, f"{brief(dashed[0])}, which can only be given alone"))
        return [f"--{flag.key}", *words]
    if len(words) > 1:
        raise UserError(_unexpected(flag, brief(" ".join(words))))
    return [f"--{flag.key}={words[0]}"]


def _unexpected(flag: _Flag, got: str) -> str:
    names = ["null" if member is types.NoneType else _type_name(member) for member in _members(flag.hint)]
    expected = ("one or more of " if flag.many else "") + " or ".join(names)
    return f"--{flag.key}: expected {expected}, got {got}"


def _instance(cls: type[Settings], given: Any, flags: dict[str, _Flag], prefix: str = "") -> Settings:
    hints, arguments = typing.get_type_hints(cls), {}
    for name in (field.name for field in dataclasses.fields(cls)):
        key = f"{prefix}{name}"
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = _instance(hints[name], given, flags, f"{key}.")
        else:
            value = given.get(key, flags[key].default)
            numbers = [each for each in (value if flags[key].many else [value]) or () if type(each) is int]
            if max(map(abs, numbers), default=0) >= 2**63:
                raise UserError(f"--{key}: expected a number below 2^63, got more")
            arguments[name] = tuple(value) if flags[key].many is tuple and value is not None else value
    return cls(**arguments)


def _one_line(message: str, flags: dict[str, _Flag]) -> str:
    """Turn a message of jsonargparse into `--key: expected X, got Y`."""
    key = re.search(r'(?:key "|argument --)([\w.]+)', message)
    if key is None or key[1] not in flags:
        return message
    got = re.search(r"(?:Got|Given) value: (.*)", message, re.DOTALL)
    return _unexpected(flags[key[1]], repr(got[1]) if got else "nothing")


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return getattr(hint, "__name__", str(hint))


def _suggestion(name: str, names: Iterable[str], before: str = "") -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {before}{close[0]}?)" if close else "; --help lists them all"
