"""What experiments leave, damaged by a stranger: a line that names the file, or no harm, and no traceback."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from quick_cell import QuickSettings

from eval.cells import PROGRAMS, Cell, Program, plan
from eval.evidence import Evidence
from eval.experiment import Experiment, Primary
from eval.findings import analyse
from eval.grid import Grid, Workers
from eval.in_context import find
from eval.judging import Rule, fix, place_of
from eval.looks import _kept
from eval.places import Places, note_experiment
from eval.regression import RegressionSettings
from eval.running import run_cell
from model.errors import UserError

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
OTHERS = [-1, "x", [], {}, [3], {"x": 3}, float("inf"), 1e308]
PROOF = {"initial_weights": "a", "rows": "b", "targets": "c"}
RESULT = {
    "training": {"proof": PROOF, "flops": 1e9, "tokens": 9, "seconds": 1.0, "parameters": 1, "device": "CPU"},
    "curve": [{"step": 1, "loss": 2.0}, {"step": 2, "validation": "v", "nats_per_token": 1.0}],
    "items": {
        "tasks": {"t": {"questions": "q", "clusters": [0, 1], "metrics": {"log_likelihood": [-1.0, -2.0]}}},
        "losses": {"s": {"nats_per_token": 1.5, "bits_per_byte": None}},
    },
    "said": [{"task": "t", "question": "Q", "expected": ["A"], "answer": "B"}],
}


def places_in(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value within a value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places_in(inner, (*path, key))


def damaged(values: dict) -> Iterator[tuple[tuple, Any, dict]]:
    """Yield the values with one of them damaged, in four ways each, with what was damaged and how."""
    for number, path in enumerate(places_in(values)):
        for damage in (DEEP, KeyError, None, OTHERS[number % len(OTHERS)]):
            changed = copy.deepcopy(values)
            *above, last = path
            inner = changed
            for key in above:
                inner = inner[key]
            if damage is KeyError:
                del inner[last]
            else:
                inner[last] = damage
            yield path, damage, changed


def record_of(cell: Cell, result: dict = RESULT) -> dict:
    """The record of a cell that was never run."""
    made_by = {"machine": "m", "python": "3", "versions": {"torch": "2"}, "commit": "c"}
    named = {"address": cell.address, "stage": cell.stage, "run": cell.run, "settings": cell.settings}
    return named | made_by | {"command": "c", "threads": 1, "seconds": 1.0, "result": result}


def check(file: Path, values: dict, read: Callable[[], Any], unread: set[str]) -> None:
    """Let `read` read the file damaged in every way; what is read at all is refused where it is too deep."""
    for path, damage, changed in damaged(values):
        file.write_text(json.dumps(changed))
        said = ""
        try:
            read()
        except UserError as error:
            said = str(error)
        assert "\n" not in said, path
        if damage is DEEP and not unread & {*path}:
            assert str(file) in said and "expected" in said, path


@pytest.fixture
def experiment(monkeypatch) -> Experiment:
    monkeypatch.setitem(PROGRAMS, "quick", Program("quick_cell", QuickSettings, trains=True, measures=True))
    arms = {"plain": {}, "better": {"only.gain": 0.5}}
    return Experiment("name", "Which?", {"only": {"run": "quick"}}, Primary("t"), arms, seeds=1)


def test_a_damaged_record_of_a_cell_is_one_line(tmp_path, experiment):
    trials, store = plan(experiment, range(1), {}), Places(tmp_path / "cells", tmp_path / "work")
    store.records.mkdir()
    cells = [trial.cells["only"] for trial in trials]
    for cell in cells:
        store.record(cell.address).write_text(json.dumps(record_of(cell)))

    def read() -> None:
        json.dumps(analyse(Evidence(experiment, trials, store.records_of(trials), {}, {}), "command"))

    read()
    check(store.record(cells[1].address), record_of(cells[1]), read, {"python", "threads"})


def test_a_damaged_judgement_is_one_line(tmp_path):
    rule, primary = Rule(), Primary("t")
    file = place_of(tmp_path, "pair", rule, 0)
    fix(file, rule, primary)
    check(file, json.loads(file.read_text()), lambda: place_of(tmp_path, "pair", rule, 64), set())
    check(file, json.loads(file.read_text()), lambda: fix(file, rule, primary), set())


def test_damaged_results_and_notes_of_an_experiment_are_one_line(tmp_path, experiment):
    mask = {"title": "causal", "labels": ["a"], "rows": ["1"]}
    arm = {"name": "plain", "mask": mask, "attention": [{"layer": 0, "labels": ["a"], "weights": [[1.0]]}]}
    file = tmp_path / "results.json"
    results = {"experiment": {"hash": "h"}, "arms": [arm]}
    check(file, results, lambda: _kept(file, "h"), set())
    notes = {"h": {"name": "before"}}
    check(tmp_path / "experiments.json", notes, lambda: note_experiment(tmp_path, experiment), set())


def test_a_damaged_summary_of_a_regression_is_one_line(tmp_path):
    settings = RegressionSettings(out=str(tmp_path))
    summary = {"settings": asdict(settings), "mean_squared_error": 0.5, "seconds": 1.0}
    check(tmp_path / "summary.json", summary, lambda: find(settings), set())


def test_a_mark_in_the_folder_of_a_cell_is_no_record_of_it(tmp_path, experiment):
    trials = plan(experiment, range(1), {})
    grid = Grid(trials, Places(tmp_path / "cells", tmp_path / "work"), Workers())
    [address, *_] = grid.waiting
    folder = tmp_path / "work" / address
    folder.mkdir(parents=True)
    (folder / "done").touch()
    (folder / "failed.txt").write_text("it fell\n")
    grid.running[address] = None
    grid._end(address)
    assert grid.failed == {address: "it fell"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", '{"proof": {}}'),
        ("metrics.jsonl", '{"step": "one"}\n'),
        ("items.json", '{"tasks": {"t": {"clusters": [0], "metrics": {"f1": ["x"]}}}, "losses": {}}'),
        ("predictions.jsonl", "{br\n"),
        ("predictions.jsonl", "[" * 3000 + "]" * 3000),
    ],
)
def test_what_a_command_leaves_damaged_fails_its_cell_with_a_line(tmp_path, name, content):
    out = tmp_path / "out"
    out.mkdir()
    cell = {"address": "only-1", "stage": "only", "run": "quick", "settings": {}}
    places = {"record": str(tmp_path / "record.json"), "output": str(out)}
    job = {"cell": cell, "command": ["python", "-c", ""], "threads": 1, "measures": True, "trains": True}
    (tmp_path / "job.json").write_text(json.dumps(job | places | {"files": {}}))
    for file, values in (("summary.json", RESULT["training"]), ("items.json", RESULT["items"])):
        (out / file).write_text(json.dumps(values))
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    (out / name).write_text(content)
    (tmp_path / "done").touch()  # of a record that was taken away
    with pytest.raises(UserError, match=f"{name} is damaged.*run the cell again"):
        run_cell(str(tmp_path))
    assert name in (tmp_path / "failed.txt").read_text() and not (tmp_path / "record.json").exists()
    assert not (tmp_path / "done").exists()
    (tmp_path / "log.txt").unlink()
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        run_cell(str(tmp_path))


def test_what_a_command_said_last_is_left_as_a_terminal_may_show_it(tmp_path):
    says = ["python", "-c", "raise SystemExit('error: \\33[2J is gone')"]
    places = {"record": str(tmp_path / "record.json"), "output": str(tmp_path)}
    cell = {"address": "only-1", "stage": "only", "run": "quick", "settings": {}}
    job = {"cell": cell, "command": says, "threads": 1, "measures": True, "trains": True}
    (tmp_path / "job.json").write_text(json.dumps(job | places | {"files": {}}))
    with pytest.raises(UserError, match="is gone"):
        run_cell(str(tmp_path))
    assert (tmp_path / "failed.txt").read_text() == "error: \\x1b[2J is gone\n"
