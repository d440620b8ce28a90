"""What the pages of the project say: their blocks, spans and links, and the command lines in them."""

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from string import Template
from typing import Any, NamedTuple, get_type_hints

import pytest

from dataset import command_line

ROOT = Path(__file__).parent.parent
WRITTEN = sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "report.md")
"""pages that people wrote; reports are written by the code, and docs/results/README.md leads to each"""
PAGES = [ROOT / "README.md", *WRITTEN]
CODE = ("model", "dataset", "trainer", "eval", "scripts")
LAUNCHERS = ("python", "accelerate", "torchrun", "srun")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LOOP = re.compile(r"for (\w+) in (.*); do")
VARIABLE = re.compile(r'(\w+)="(.*)"')


class Command(NamedTuple):
    """A command line of ours on a page."""

    module: str
    flags: list[str]
    launcher: list[str]


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of code of a page that are in a language."""
    return [text for name, text in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def spans(page: Path) -> list[str]:
    """Return what stands in backquotes; where another project's commands stand in a column, without these."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8")).replace("\\|", "¦")
    if page.name == "coming_from.md":
        text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


def commands(page: Path) -> Iterator[Command]:
    """Yield our commands in the shell blocks of a page, in order, loops unrolled and variables filled in."""
    for line in _lines("\n".join(blocks(page, "bash"))):
        words = shlex.split(line, comments=True)
        if words and words[0] in LAUNCHERS and "-m" in words:
            at = words.index("-m")
            yield _command(words[at + 1], words[at + 2 :], words[:at])


def _command(module: str, flags: list[str], launcher: list[str]) -> Command:
    if module == "scripts.bench":  # whose first word says which
        return Command(f"{module}.{flags[0]}", flags[1:], launcher)
    return Command(module, flags, launcher)


def _lines(text: str) -> Iterator[str]:
    variables, loop, body = {}, None, []
    for line in map(str.strip, text.replace("\\\n", " ").splitlines()):
        if begins := LOOP.fullmatch(line):
            loop, body = begins, []
        elif loop and line == "done":
            for value in loop[2].split():
                yield from (_filled(each, variables | {loop[1]: value}) for each in body)
            loop = None
        elif loop:
            body.append(line)
        elif variable := VARIABLE.fullmatch(line):
            variables[variable[1]] = variable[2]
        else:
            yield _filled(line, variables)


def _filled(line: str, variables: dict[str, str]) -> str:
    return Template(line).safe_substitute(variables)


@cache
def settings_of(module: str) -> type:
    """Return the class of settings that a command of ours reads its line as."""
    main, parse, asked = import_module(module).main, command_line.parse, []

    def stop(settings: type, *_: Any) -> None:
        asked.append(settings)
        raise StopIteration

    with pytest.MonkeyPatch.context() as patch:
        for each in list(sys.modules.values()):
            if vars(each).get("parse") is parse:
                patch.setattr(each, "parse", stop)
        with pytest.raises(StopIteration):
            main()
    return asked[0]


def read(command: Command) -> Any:
    """Return the settings that a command line stands for; raises `UserError` as the command would."""
    return command_line.read(settings_of(command.module), command.flags)


def programs() -> list[str]:
    """Return the modules that are commands."""
    files = [file for folder in CODE for file in sorted((ROOT / folder).rglob("*.py"))]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    found = [file for file, text in texts.items() if re.search(r"def main\(\)(.|\n)* (parse|bench)\(", text)]
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in found]


def flags_of(settings: type, prefix: str = "") -> Iterator[str]:
    """Yield the flags of a class of settings."""
    hints = get_type_hints(settings)
    for field in fields(settings):
        name = f"{prefix}{field.name}"
        if is_dataclass(hints[field.name]):
            yield from flags_of(hints[field.name], f"{name}.")
        else:
            yield f"--{name}"


def anchors(page: Path) -> set[str]:
    """Return the names that links to the headings of a page have on GitHub."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[tuple[Path, str]]:
    """Return the files, and the headings in them, that relative links and pictures of a page lead to."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    inside = [target.partition("#") for target in targets if "://" not in target]
    return [((page.parent / path).resolve() if path else page, name) for path, _, name in inside]


def code_text() -> str:
    """Return all our code, texts that are written in parts as one."""
    files = [file for folder in CODE for file in sorted((ROOT / folder).rglob("*.py"))]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text(encoding="utf-8") for file in files))
