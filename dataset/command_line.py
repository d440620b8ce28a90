"""Frozen dataclasses as command lines: flags, YAML recipes, help, and one-line errors.

jsonargparse checks the types and writes the help. The YAML form becomes flags that stand before those of
the line, so that explicit flags win wherever they stand, also over others that they exclude. Owns nothing of
what the settings mean, and imports neither torch nor anything that does: `--help` is instant.
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
from dataset.printing import prepare_streams, printable, show_traceback
from dataset.yaml_file import read_yaml
from model.errors import UserError, in_a_line

Settings = TypeVar("Settings")
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
    parser = _parser(flags.values(), description)
    # argparse's own keeps quiet where it cannot write
    parser.print_help = lambda file=None: print(parser.format_help(), end="", file=file, flush=True)
    rivals = getattr(settings_class, "rivals", lambda key, value: ())
    try:
        return _instance(settings_class, parser.parse_args(_with_recipes(line, flags, rivals)))
    except OverflowError as error:  # of 400 digits where a fraction is expected
        raise UserError(f"a number among the flags is too large ({error})") from None
    except ArgumentError as error:
        raise UserError(_one_line(str(error), flags)) from None


def words_of(settings_class: type, keys: dict[str, Any]) -> list[str]:
    """Return dotted keys and their values as the words of a line; raises `UserError` for an unknown one."""
    flags, words = {flag.key: flag for flag in _flags(settings_class)}, []
    for key, value in keys.items():
        if key not in flags:
            raise UserError(f"unknown setting {key}{_suggestion(key, flags)}")
        words += _as_flag(flags[key], value)
    return words


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
    hint: Any  # of the value, or of one element where `many`
    many: bool
    default: Any
    help: str
    group: tuple[str, str] | None

    @property
    def takes_text(self) -> bool:
        return any(kind is str or typing.get_origin(kind) is typing.Literal for kind in _members(self.hint))


def _flags(cls: type, instance: Any = None, prefix: str = "", group: tuple | None = None) -> Iterator[_Flag]:
    hints, helps = typing.get_type_hints(cls), _field_docstrings(cls)
    for field in dataclasses.fields(cls):
        hint, default = hints[field.name], _default(field, instance)
        if dataclasses.is_dataclass(hint):
            title = (f"{prefix}{field.name}", inspect.getdoc(hint) or "")
            yield from _flags(hint, default, f"{prefix}{field.name}.", title)
            continue
        element = _element(hint)
        help_text = helps.get(field.name, "")
        yield _Flag(prefix + field.name, element or hint, element is not None, default, help_text, group)


def _default(field: dataclasses.Field, instance: Any) -> Any:
    if instance not in (None, dataclasses.MISSING):
        return getattr(instance, field.name)
    return field.default_factory() if callable(field.default_factory) else field.default


def _element(hint: Any) -> Any:
    """Return the element type of a list or tuple (also an optional one), None for anything else."""
    for member in _members(hint):
        if typing.get_origin(member) in (list, tuple):
            return typing.get_args(member)[0]
    return None


def _members(hint: Any) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


@functools.cache
def _field_docstrings(cls: type) -> dict[str, str]:
    """Return the string literal below each field, of a dataclass and of those that it extends or is
    `described_by`."""
    helps = {}
    for base in (*getattr(cls, "described_by", ()), *reversed(cls.__mro__[:-1])):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for statement, follower in zip(body, body[1:], strict=False):
            is_text = isinstance(follower, ast.Expr) and isinstance(follower.value, ast.Constant)
            if isinstance(statement, ast.AnnAssign) and is_text:
                helps[statement.target.id] = inspect.cleandoc(follower.value.value)
    return helps


def _parser(flags: Iterable[_Flag], description: str) -> ArgumentParser:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    prog = f"python -m {module.name.removesuffix('.__main__')}" if module else Path(sys.argv[0]).name
    parser = ArgumentParser(
        prog=prog, usage=f"{prog} [flags]", description=description, exit_on_error=False, allow_abbrev=False
    )
    groups, flags = (
        {},
        sorted(flags, key=lambda flag: flag.default is not dataclasses.MISSING),
    )  # required first
    if "config" not in [flag.key for flag in flags]:
        parser.add_argument("--config", type=str, help="YAML file with any of these keys; flags win over it")
    parser.add_argument(TRACEBACK, action="store_true", help="show what is behind a one-line error")
    for flag in flags:
        if flag.group and flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(*flag.group)
        options = {"type": flag.hint, "help": flag.help}
        if flag.default is dataclasses.MISSING:
            options["required"] = True
        else:
            options["default"] = list(flag.default) if isinstance(flag.default, tuple) else flag.default
        if flag.many:
            options["nargs"] = "+"
        elif bool in _members(flag.hint):
            options |= {"nargs": "?", "const": True}
        groups.get(flag.group, parser).add_argument(f"--{flag.key}", **options)
    return parser


def _with_recipes(line: list[str], flags: dict[str, _Flag], rivals: _Rivals) -> list[str]:
    """Replace each `--config FILE` by the file's flags, moved to the front of the line.

    What a later recipe or the line itself gives takes its rivals out of the recipes before.
    """
    recipe, explicit, given = {}, [], {}
    tokens, name = iter(line), ""
    for token in tokens:
        name, has_value, value = token.partition("=") if token.startswith("--") else (name, "", token)
        if name == "--config" and "config" not in flags:
            path = value if has_value else next(tokens, None)
            if path is None:
                raise UserError("--config: expected a YAML file, got nothing")
            recipe = _over(recipe, _recipe_flags(path, flags), rivals)
            continue
        if token.startswith("--") and name in given:
            raise UserError(f"{name} is given twice; give it once (a list takes several values)")
        given[name] = [f"{name}={value}"]
        explicit.append(token)
    recipe = _over(recipe, {name.removeprefix("--"): words for name, words in given.items()}, rivals)
    return [word for key, words in recipe.items() if f"--{key}" not in given for word in words] + explicit


def _over(former: dict[str, list[str]], later: dict[str, list[str]], rivals: _Rivals) -> dict[str, list[str]]:
    """Return flags by key: the later ones, and those of the former ones that go with them."""

    def excluded_by(key: str, flags: dict[str, list[str]]) -> set[str]:
        value = flags[key][-1].partition("=")[2]
        return set() if value == "null" else set(rivals(key, value))

    excluded = {
        key
        for key in former
        if any(key in excluded_by(each, later) and each in excluded_by(key, former) for each in later)
    }
    return {key: words for key, words in former.items() if key not in excluded} | later


def _recipe_flags(path: str, flags: dict[str, _Flag]) -> dict[str, list[str]]:
    """Return the words of each key of a recipe."""
    leaves, words = [*_leaves(read_yaml(path, "--config: "), flags)], {}
    written = dict(_leaves(read_yaml(path, as_text=True), flags))
    for key, value in leaves:
        if key not in flags:
            raise UserError(f"unknown key {key} in {path}{_suggestion(key, flags)}")
        if key in words:
            raise UserError(f"{key} stands twice in {path}; keep one of them")
        words[key] = _as_flag(flags[key], written[key] if flags[key].takes_text else value)
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


def _as_flag(flag: _Flag, value: Any) -> list[str]:
    nothing = [] if flag.default == () else flag.default
    if flag.many and not value and value == nothing:  # a saved recipe names every key, also the empty ones
        return []
    if flag.many and isinstance(value, list) and value and not any(isinstance(v, list | dict) for v in value):
        return [f"--{flag.key}", *map(str, value)]
    if isinstance(value, list | dict) or (value is None and types.NoneType not in _members(flag.hint)):
        raise UserError(f"--{flag.key}: expected {_expected(flag)}, got {reprlib.repr(value)}")
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    return [f"--{flag.key}", text] if flag.many else [f"--{flag.key}={text}"]


def _instance(cls: type[Settings], values: Any) -> Settings:
    arguments = {}
    hints = typing.get_type_hints(cls)
    for name in (field.name for field in dataclasses.fields(cls)):
        hint, value = hints[name], values[name]
        if dataclasses.is_dataclass(hint):
            value = _instance(hint, value)
        elif any(typing.get_origin(member) is tuple for member in _members(hint)) and value is not None:
            value = tuple(value)
        arguments[name] = value
    return cls(**arguments)


def _one_line(message: str, flags: dict[str, _Flag]) -> str:
    """Turn a message of jsonargparse into `--key: expected X, got Y`."""
    if unknown := re.search(r"unrecognized arguments: (.*)", message):
        name = unknown[1].split()[0].partition("=")[0]
        return f"unknown argument {name}{_suggestion(name, [f'--{key}' for key in flags])}"
    if missing := re.search(r"arguments are required: (.*)", message):
        return f"required, but not given: {', '.join('--' + key for key in missing[1].split(', '))}"
    key = re.search(r'(?:key "|argument --)([\w.]+)', message)
    if key is None or key[1] not in flags:
        return message
    got = re.search(r"(?:Got|Given) value: (.*)", message, re.DOTALL)
    return f"--{key[1]}: expected {_expected(flags[key[1]])}, got {repr(got[1]) if got else 'nothing'}"


def _expected(flag: _Flag) -> str:
    names = ["null" if member is types.NoneType else _type_name(member) for member in _members(flag.hint)]
    return ("one or more of " if flag.many else "") + " or ".join(names)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return getattr(hint, "__name__", str(hint))


def _suggestion(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]}?)" if close else "; --help lists them all"
