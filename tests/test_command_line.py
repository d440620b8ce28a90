"""The command line: what users type, what they read when it is wrong."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from test_imports import ROOT

from dataset.command_line import parse, run, words_of
from dataset.command_line import read as read_words
from model.errors import LESS_MEMORY, UserError


@dataclass(frozen=True)
class Engine:
    """The engine."""

    power: float = 1.0
    """Power in kilowatt."""
    fuel: Literal["wind", "sun"] | None = None
    """What it burns."""


@dataclass(frozen=True)
class Trip:
    """A trip."""

    data: tuple[str, ...]
    """Files to read."""
    engine: Engine = Engine(power=2.0)
    steps: int = 10
    """Number of steps."""
    name: str | None = None
    """Name of the trip."""
    loud: bool = False
    """Whether to say everything."""
    sizes: list[int] | None = None
    """Sizes to try."""
    stops: tuple[int, ...] = (3, 5)
    """Places to stop at."""

    def __post_init__(self):
        if self.steps < 0:
            raise UserError(f"steps: expected 0 or more, got {self.steps}")


def read(line: str) -> Trip:
    return parse(Trip, "Makes a trip.", line.split())


def error_of(line: str, capsys) -> str:
    with pytest.raises(SystemExit) as caught:
        read(line)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ")
    return err.removeprefix("error: ").rstrip("\n")


def test_several_values_may_be_a_default():
    assert read("--data a").stops == (3, 5) and read("--data a --stops 7").stops == (7,)


def test_a_recipe_may_name_flags_that_have_no_value(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: [a]\nsizes: null\nname: null\n")
    assert read(f"--config {recipe}") == read("--data a")


def test_a_text_of_a_recipe_is_the_text_that_stands_there(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: [No, 007, 1.10, 12:30, 2024-6-1, 0x1f, 'null']\nname: off\nsteps: 1_0\n")
    read_as = Trip(data=("No", "007", "1.10", "12:30", "2024-6-1", "0x1f", "null"), name="off", steps=10)
    assert read(f"--config {recipe}") == read_as


@pytest.mark.parametrize("value", [False, 7, 1.1])
def test_a_value_that_yaml_made_of_a_text_is_no_text(value):
    for key, given in (("name", value), ("data", ["a", value])):
        with pytest.raises(
            UserError, match=f"--{key}: expected .*str.*, got .*{value}.*; write a text in quotes"
        ):
            words_of(Trip, {key: given})
    assert words_of(Trip, {"name": None, "steps": 7, "loud": False}) == [
        "--name=null",
        "--steps=7",
        "--loud=false",
    ]


def test_a_word_of_a_list_that_begins_with_a_dash_is_no_flag(tmp_path):
    assert read("--data=---").data == ("---",) and read("--data a --stops -1 -2").stops == (-1, -2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('data: ["a", "--steps=3"]\n')
    with pytest.raises(UserError, match="--data: expected one or more of str, got '--steps=3', which can"):
        read_words(Trip, ["--config", str(recipe)])


def test_flags_become_the_dataclass_and_defaults_stay():
    assert read("--data a b --engine.power 3 --loud --sizes 1 2") == Trip(
        data=("a", "b"), engine=Engine(power=3.0), loud=True, sizes=[1, 2]
    )
    assert read("--data a") == Trip(data=("a",))


def test_text_is_never_read_as_yaml():
    assert parse(Trip, "", ["--data", "[a, b]", "--name", "{x: 1"]) == Trip(data=("[a, b]",), name="{x: 1")


@pytest.mark.parametrize("line", ["--config {} --steps 5", "--steps 5 --config {}", "--steps=5 --config={}"])
def test_flags_win_over_the_recipe_wherever_they_stand(tmp_path, line):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: 7\ndata: [x, y]\nengine:\n  power: 3e-4\n  fuel: sun\nloud: true\nname: null\n")
    trip = read(line.format(recipe))
    assert trip == Trip(data=("x", "y"), engine=Engine(power=3e-4, fuel="sun"), steps=5, loud=True)


@pytest.mark.parametrize(
    "line, message",
    [
        ("--data a --steps many", "--steps: expected int, got 'many'"),
        ("--data a --steps 1.5", "--steps: expected int, got '1.5'"),
        ("--data a --steps", "--steps: expected int, got nothing"),
        ("--data a --engine.fuel coal", "--engine.fuel: expected one of wind, sun or null, got 'coal'"),
        ("--data a --sizes 1 x", "--sizes: expected one or more of int, got 'x'"),
        ("--data a --loud maybe", "--loud: expected bool, got 'maybe'"),
        ("--data", "--data: expected one or more of str, got nothing"),
        ("--steps 3", "required, but not given: --data"),
        ("--data a --stepps 3", "unknown argument --stepps (did you mean --steps?)"),
        ("--data a --step 3", "unknown argument --step (did you mean --steps?)"),
        ("--data a --zzzzzz 3", "unknown argument --zzzzzz; --help lists them all"),
        (
            "--data a --steps 3 --steps 4",
            "--steps is given twice; give it once (a list takes several values)",
        ),
        ("--data a --steps -1", "steps: expected 0 or more, got -1"),
        ("--data a --config", "--config: expected a YAML file, got nothing"),
        ("--data a --config nowhere.yaml", "--config: cannot read nowhere.yaml: No such file or directory"),
    ],
)
def test_a_wrong_line_is_one_line_that_names_the_key(line, message, capsys):
    assert error_of(line, capsys) == message


@pytest.mark.parametrize(
    "recipe, message",
    [
        ("steps: many", "--steps: expected int, got 'many'"),
        ("stepz: 3", "unknown key stepz in {} (did you mean steps?)"),
        ("engine: {powr: 3}", "unknown key engine.powr in {} (did you mean engine.power?)"),
        ("engine: 3", "engine: expected a group with keys like engine.power, got 3"),
        ("steps: [1, 2]", "--steps: expected int, got [1, 2]"),
        ("sizes: []", "--sizes: expected one or more of int, got []"),
        ("data: [a, null]", "--data: expected one or more of str, got ['a', None]"),
        ("steps:", "--steps: expected int, got None"),
        ("- 1", "--config: expected keys and values in {}, got [1]"),
        ("steps: [1", "--config: {} is not YAML"),
        ("engine: {power: 1}\nengine.power: 2", "engine.power stands twice in {}; keep one of them"),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_the_key(tmp_path, recipe, message, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    assert error_of(f"--data a --config {path}", capsys).startswith(message.format(path))


BOMB = "a: &a {}\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "recipe, message",
    [
        (BOMB, "aliases such as *a are not read; write the value again"),
        ("data: &a [*a]", "aliases such as *a are not read"),
        ("steps: " + "[" * 3000, "expected at most 8 levels, one inside another"),
        ("[" * 100_000, "expected at most 8 levels"),
        ("{a: " * 3000, "expected at most 8 levels"),
        ("steps: " + "9" * 5000, "Exceeds the limit (4300"),
        ("steps: 2026-13-45", "month must be in 1..12"),
        ("steps: !!int x", "invalid literal"),
        ("steps: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("steps: 1\nloud: true\nsteps: 2\n", "steps stands twice, in lines 1 and 3; keep one of them"),
        ("engine: {power: 1, power: 2}", "power stands twice"),
        ("engine: {<<: {power: 1}}", "keys that << merges are not read"),
        ("yes: 1\ntrue: 2", "a key stands twice in what begins in line 1"),
        ('name: "a\\0b"', "a text holds the character NUL"),
    ],
    ids=range(14),
)
def test_a_hostile_recipe_is_one_line(tmp_path, recipe, message, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    error = error_of(f"--data a --config {path}", capsys)
    assert error.startswith(f"--config: {path} is not YAML: ") and message in error


@pytest.mark.parametrize("value", ["!!timestamp x", "!!int ''"])
def test_a_value_with_a_tag_of_yaml_is_one_line(value, capsys):
    with pytest.raises(SystemExit):
        parse(Trip, "A trip.", ["--data", "a", f"--steps={value}"])
    assert "--traceback" not in (error := capsys.readouterr().err) and error.count("\n") == 1


@pytest.mark.parametrize("flag", ["--steps", "--engine.power", "--data a --sizes"])
def test_a_number_without_end_is_one_line(flag, capsys):
    error_of(f"--data a {flag} {'9' * 5000}", capsys)


def test_an_empty_recipe_changes_nothing(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("# nothing yet\n")
    assert read(f"--data a --config {path}") == Trip(data=("a",))


def test_help_comes_from_the_docstrings_of_the_fields(capsys):
    with pytest.raises(SystemExit) as caught:
        read("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for part in (
        "Makes a trip.",
        "The engine.",
        "Power in kilowatt.",
        "--engine.power",
        "Number of steps.",
        "default: 10",
    ):
        assert part in text


def test_a_command_knows_the_process_that_started_it():
    code = "from dataset import command_line; print(command_line.PARENT)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == os.getpid()


@pytest.mark.parametrize("module", ["trainer.pretrain", "trainer.sft"])
def test_help_does_not_import_torch(module):
    command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0 and f"python -m {module} [flags]" in done.stdout
    imported = {row.split("|")[-1].strip() for row in done.stderr.splitlines()}
    assert "dataset.command_line" in imported
    assert not imported & {"torch", "transformers", "accelerate", "matplotlib"}


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("one\ntwo"), 2, "error: one two\n"),
        (
            FileNotFoundError(2, "No such file or directory", "a.txt"),
            2,
            "error: [Errno 2] No such file or directory: 'a.txt' (--traceback shows where)\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 2, f"error: out of memory (of Python); {LESS_MEMORY} (--traceback shows where)\n"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14"),
            2,
            f"error: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB); {LESS_MEMORY} "
            "(--traceback shows where)\n",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            2,
            f"error: out of memory ([enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes); "
            f"{LESS_MEMORY} (--traceback shows where)\n",
        ),
    ],
    ids=range(6),
)
def test_run_turns_errors_into_one_line_and_an_exit_code(error, code, line, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == code and capsys.readouterr().err == line


def reader_of_a_damaged_file():
    try:
        {}["layout"]
    except KeyError:
        raise UserError("a.json is damaged") from None


def test_a_line_says_how_to_see_what_is_behind_it_and_traceback_shows_it(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        run(reader_of_a_damaged_file)
    assert capsys.readouterr().err == "error: a.json is damaged (--traceback shows where)\n"
    monkeypatch.setattr(sys, "argv", ["trip", "--traceback"])
    with pytest.raises(SystemExit) as caught:
        run(reader_of_a_damaged_file)
    shown = capsys.readouterr().err
    assert caught.value.code == 2 and shown.splitlines()[-1].startswith("error: a.json is damaged")
    for part in ("KeyError: 'layout'", "UserError: a.json is damaged", "in reader_of_a_damaged_file"):
        assert part in shown


def test_a_traceback_shows_foreign_text_as_escapes(capsys, monkeypatch):
    def main():
        raise UserError(f"{chr(27)}[2J")

    monkeypatch.setattr(sys, "argv", ["trip", "--traceback"])
    with pytest.raises(SystemExit):
        run(main)
    shown = capsys.readouterr().err
    assert "\x1b" not in shown and shown.count(r"\x1b[2J") == 2


def test_traceback_is_a_flag_of_every_command(capsys, monkeypatch):
    assert read("--data a --traceback") == Trip(data=("a",))
    monkeypatch.setattr(sys, "argv", ["trip", "--data", "a", "--steps", "x", "--traceback"])
    with pytest.raises(SystemExit):
        parse(Trip, "Makes a trip.")
    shown = capsys.readouterr().err
    assert "ValueError" in shown and shown.endswith("error: --steps: expected int, got 'x'\n")


def test_run_lets_our_own_bugs_show_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_a_closed_pipe_is_quiet():
    code = "from dataset.command_line import run\nrun(lambda: [print('x' * 1000) for _ in range(1000)])"
    root = Path(__file__).parent.parent
    shell = f'"{sys.executable}" -c "{code}" | head -n 1'
    done = subprocess.run(shell, shell=True, cwd=root, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("module", ["trainer.pretrain", "scripts.prepare_data"])
def test_a_help_that_finds_no_room_is_one_line(module):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", module, "--help"]
        ended = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: [Errno 28] No space left on device (--traceback shows where)\n",
    )
