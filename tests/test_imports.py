"""The arrows between folders, and that help is quick because nothing heavy is imported for it."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from training_runs import SHAPE, SHORT, data, line

ROOT = Path(__file__).parent.parent
FOLDERS = ("model", "dataset", "trainer", "eval", "scripts")  # each may import itself and those before it
COMMANDS = sorted(f"scripts.{file.stem}" for file in (ROOT / "scripts").glob("[!_]*.py"))
SUBJECTS = ("data", "decode", "train", "quality", "growth", "entered", "agreement")
COMMANDS += [f"scripts.bench {subject}" for subject in SUBJECTS]
COMMANDS += ["trainer.pretrain", "trainer.sft", "eval.regression"]
HEAVY = ("torch", "transformers", "matplotlib", "datasets", "accelerate", "wandb")


def modules(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


@cache
def imports(file: Path) -> list[tuple[str, ast.stmt]]:
    """Every module that a file imports, wherever in it, and the statement."""
    found: list[tuple[str, ast.stmt]] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.append((node.module, node))
        elif isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
    return found


def test_imports_point_one_way():
    for rank, folder in enumerate(FOLDERS):
        for file in modules(folder):
            for name, _ in imports(file):
                top = name.partition(".")[0]
                if top == "scripts":
                    assert file.parent == ROOT / "scripts/bench", f"{file} imports another command, {name}"
                elif top in FOLDERS:
                    assert FOLDERS.index(top) <= rank, f"{file} imports {name}"


@cache
def direct(file: Path) -> tuple[Path, ...]:
    """Every file of ours that a file names in an import."""
    others = {ROOT / f"{name.replace('.', '/')}.py" for name, _ in imports(file)}
    return tuple(sorted(filter(Path.is_file, others)))


def reached(file: Path) -> set[Path]:
    """Every file of ours that a file imports, directly or through others."""
    found, waiting = set(), [file]
    while waiting:
        others = [other for other in direct(waiting.pop()) if other not in found]
        found.update(others)
        waiting += others
    return found


def test_chat_imports_nothing_of_the_trainer():
    files = reached(ROOT / "scripts/chat.py") | reached(ROOT / "eval/chat.py")
    assert ROOT / "eval/served_model.py" in files
    assert not [file for file in files if file.parent == ROOT / "trainer"]


def test_no_file_imports_itself_through_others():
    assert not [file for file in modules("dataset", "trainer") if file in reached(file)]


def test_the_model_needs_torch_safetensors_numpy_and_the_standard_library_only():
    allowed = {"model", "torch", "safetensors", "numpy", *sys.stdlib_module_names}
    foreign = {(file.name, name) for file in modules("model") for name, _ in imports(file)}
    assert {pair for pair in foreign if pair[1].partition(".")[0] not in allowed} == set()


def test_hub_datasets_are_imported_in_one_function_of_one_file_and_by_what_it_is_measured_against():
    for file in set(modules(*FOLDERS)) - {ROOT / "scripts/bench/datasets_map.py"}:
        for name, node in imports(file):
            if name.partition(".")[0] == "datasets":
                assert file == ROOT / "dataset" / "tables.py" and node.col_offset > 0, file


TRAINING = """
import sys
from trainer.pretrain import main
main()
heavy = {"torch._dynamo", "torch.distributed.tensor", "sympy"}
sys.exit(bool(heavy & sys.modules.keys()))
"""


def test_a_model_learns_and_answers_without_importing_compiler_or_sharding(data, tmp_path):
    places = {"--data": data / "pretrain", "--out": tmp_path / "run", "--optimizer.name": "muon"}
    words = line(places | SHAPE | SHORT, "--max_steps", 2, "--samples", 1, "--prompt_mask", "prefix")
    done = subprocess.run([sys.executable, "-c", TRAINING, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "sample " in done.stdout, done.stderr


def test_trackers_are_reached_through_accelerate():
    assert not [file for file in modules(*FOLDERS) for name, _ in imports(file) if name.startswith("wandb")]


def test_nothing_hides_the_builtin_eval():
    for file in modules(*FOLDERS, "tests"):
        for _, node in imports(file):
            assert not (
                isinstance(node, ast.Import) and "eval" in [a.asname or a.name for a in node.names]
            ), file


def test_packages_hold_nothing_but_a_docstring():
    for file in modules(*FOLDERS):
        if file.name == "__init__.py":
            [only] = ast.parse(file.read_text(encoding="utf-8")).body
            assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant), file


@pytest.fixture(scope="module")
def imported_for_help() -> dict[str, list[str]]:
    """What `--help` of every command exits with and imports, found by one process that forks for each."""
    code = f"""
import os, runpy, sys
import dataset.command_line  # as each of them does
sys.stdout = sys.stderr = open(os.devnull, "w")
for command in {COMMANDS!r}:
    if os.fork() == 0:
        module, *words = command.split()
        sys.argv = [module, *words, "--help"]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            heavy = [name for name in {HEAVY!r} if name in sys.modules]
            os.write(1, f"{{command}}: {{end.code}} {{' '.join(heavy)}}\\n".encode())
        os._exit(0)
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = (line.split(": ") for line in done.stdout.splitlines())
    return {command: found.split() for command, found in lines}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_succeeds_without_importing_torch(command, imported_for_help):
    assert imported_for_help[command] == ["0"]
