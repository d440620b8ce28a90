"""Grids of cells: what runs, what is found, what a failure and a kill leave, and what comes out of it."""

import json
import os
import random
import shlex
import shutil
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml
from forked_runs import MOST_SECONDS, SERVER, start_server
from quick_cell import QuickSettings

from eval.ablation import run_experiment
from eval.cells import PROGRAMS, Program, _content, plan
from eval.evidence import Evidence
from eval.experiment import load_experiment
from eval.findings import analyse
from eval.grid import Grid, Workers
from eval.places import Places, note_experiment
from eval.running import _record, write_json
from eval.verdicts import INCOMPLETE
from model.errors import UserError
from scripts.ablate import main as ablate

ROOT = Path(__file__).parent.parent
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
QUICK = Program("quick_cell", QuickSettings, trains=True, measures=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setitem(PROGRAMS, "quick", QUICK)
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)


def experiment_in(folder: Path, **changes):
    content = {
        "question": "Which?",
        "stages": {"first": {"run": "quick"}, "second": {"run": "quick", "model": "@first"}},
        "arms": {"plain": {}, "better": {"second.gain": 0.5}},
        "seeds": 3,
        "primary": {"task": "second: task"},
    }
    file = folder / "quick.yaml"
    file.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return load_experiment(str(file))


def test_the_time_left_is_that_of_a_stage_before_or_that_of_trainings_by_their_steps(tmp_path):
    experiment = load_experiment(str(ROOT / "configs" / "quickstart" / "quickstart.yaml"))
    grid = Grid(plan(experiment, range(1), {}), Places(tmp_path / "cells", tmp_path / "work"), Workers(2))
    trainings = {cell.stage: cell for cell in grid.waiting.values() if cell.settings.get("max_steps")}
    for cell in [*grid.waiting.values()]:
        if cell.stage not in trainings:
            grid._note(grid.waiting.pop(cell.address), 4.0)
    assert grid.seconds_left is None
    grid._note(grid.waiting.pop(trainings["drill-lists"].address), 100.0)  # 400 steps
    assert grid.seconds_left == (350 + 1100 + 2 * 1400) * 100 / 400 / 2
    grid._note(grid.waiting.pop(trainings["sft"].address), 700.0)
    assert grid.seconds_left == ((350 + 1100) * (100 / 400 + 700 / 1400) / 2 + 700) / 2


def test_the_command_of_a_record_is_one_that_a_shell_takes_as_it_was_given():
    cell = dict.fromkeys(("address", "stage", "run", "settings"), "x")
    job = {"cell": cell, "command": ["python", "-m", "x", "--note=$(date) `a` 中"], "threads": 1}
    assert shlex.split(_record(job)["command"]) == job["command"]


def run_in(folder: Path, experiment, workers: Workers | None = None):
    places = Places(folder / "cells", folder / "work")
    ended = []
    results, _ = run_experiment(
        experiment,
        places,
        workers or Workers(4),
        "the command",
        lambda grid, cell: ended.append(cell.address) if cell else None,
    )
    return results, ended


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Places:
    """Where cells lie that several tests look at."""
    folder = tmp_path_factory.mktemp("store")
    return Places(folder / "cells", folder / "work")


def given_in(folder: Path, experiment, store: Places):
    """Give a folder the records of an experiment, making none twice for all tests; return its results."""
    results, _ = run_experiment(experiment, store, Workers(4), "the command", lambda grid, cell: None)
    (folder / "cells").mkdir()
    for cell in results["cells"]:
        shutil.copy(store.record(cell["address"]), folder / "cells")
    return results


def begun(folder: Path) -> int:
    """How often any cell has done its work."""
    return sum(len(file.read_text().splitlines()) for file in folder.rglob("begun"))


def test_a_planted_difference_is_found_at_its_size_and_a_second_run_computes_nothing(tmp_path):
    results, ended = run_in(tmp_path, experiment_in(tmp_path))
    [primary] = [each for each in results["comparisons"] if each["is_primary"]]
    assert primary["difference"] == pytest.approx(0.5) and primary["interval"][0] > 0.499
    assert primary["p_value"] == 0.25, "three seeds allow no less"
    assert len(ended) == begun(tmp_path) == 15, "two arms share their first cell, A/A has its own"
    again, ended = run_in(tmp_path, experiment_in(tmp_path))
    assert again == results and not ended and begun(tmp_path) == 15


def test_a_record_counts_as_finished_where_nothing_else_of_the_cell_is_there(tmp_path):
    results, _ = run_in(tmp_path, experiment_in(tmp_path))
    shutil.rmtree(tmp_path / "work")
    again, ended = run_in(tmp_path, experiment_in(tmp_path))
    assert again == results and not ended
    more, ended = run_in(tmp_path, experiment_in(tmp_path, arms={"plain": {}, "more": {"second.gain": 1.0}}))
    assert len(ended) == 6, "what the new arm needs is made again, and its record stays"
    assert more["scores"][0] == results["scores"][0]


def test_a_cell_that_fails_is_reported_and_stops_only_what_needs_it(tmp_path):
    arms = {"plain": {}, "better": {"second.gain": 0.5}, "broken": {"first.fails": True}}
    with pytest.raises(UserError, match="it was told to fail"):
        run_in(tmp_path, experiment_in(tmp_path, arms=arms))
    assert begun(tmp_path) == 15, "everything else was done"
    arms["broken"] = {"second.gain": 1.0}
    results, ended = run_in(tmp_path, experiment_in(tmp_path, arms=arms))
    assert len(ended) == 3 and {each["status"] for each in results["cells"]} == {"finished"}


def test_a_grid_ends_where_all_that_is_left_needs_what_failed(tmp_path):
    stages = {"first": {"run": "quick", "fails": True}, "second": {"run": "quick", "model": "@first"}}
    with pytest.raises(UserError, match="first-[0-9a-f]*, which failed"):
        run_in(tmp_path, experiment_in(tmp_path, stages=stages, seeds=1))


def test_a_stage_that_nothing_measured_uses_is_named(tmp_path, capsys):
    stages = {"first": {"run": "quick"}, "idle": {"run": "build_world"}}
    arms, primary = {"a": {}, "b": {"first.gain": 1.0}}, {"task": "task"}
    run_in(tmp_path, experiment_in(tmp_path, stages=stages, arms=arms, primary=primary, seeds=1))
    assert "not run, as nothing that is measured uses them: idle" in capsys.readouterr().err


def test_a_file_that_changes_before_its_cell_ends_fails_the_cell_and_counts_as_it_was(tmp_path):
    file, places = tmp_path / "mine.jsonl", Places(tmp_path / "cells", tmp_path / "work")
    file.write_text("eight")
    stages = {"first": {"run": "quick", "data": str(file), "seconds": 0.5}}
    arms, primary = {"a": {}, "b": {"first.gain": 1.0}}, {"task": "task"}
    experiment = experiment_in(tmp_path, stages=stages, arms=arms, primary=primary, seeds=1)

    def change(grid: Grid, cell: object) -> None:
        file.write_text("three" if grid.running else "eight")

    with pytest.raises(UserError, match="mine.jsonl changed while it was read; run the same command again"):
        run_experiment(experiment, places, Workers(4), "the command", change)
    assert not list(places.records.glob("*")) and begun(tmp_path) == 2
    _content.cache_clear()  # as in another process
    assert len(run_in(tmp_path, experiment)[1]) == 2 and begun(tmp_path) == 4


def test_scores_of_a_file_with_another_name_are_those_of_another_task(tmp_path, store):
    given_in(tmp_path, experiment_in(tmp_path), store)
    file = next((tmp_path / "cells").glob("second-*.json"))
    record = json.loads(file.read_text())
    record["settings"]["data"] = "elsewhere/hub:same"
    file.write_text(json.dumps(record))
    run_in(tmp_path, experiment_in(tmp_path))
    record["settings"]["data"] = "hub:other"
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="was made with data hub:other, which is hub:same now; take it away"):
        run_in(tmp_path, experiment_in(tmp_path))


def test_an_arm_that_lacks_a_seed_is_no_ground_for_a_claim_and_others_keep_theirs(tmp_path, store):
    arms = {"plain": {}, "better": {"second.gain": 0.5}, "other": {"second.gain": 1}}
    experiment = experiment_in(tmp_path, arms=arms, seeds=8)
    given_in(tmp_path, experiment, store)
    lost = next(trial for trial in plan(experiment, range(8), {}) if (trial.arm, trial.seed) == ("other", 3))
    file = tmp_path / "cells" / f"{lost.cells['second'].address}.json"
    record = json.loads(file.read_text())
    file.unlink()
    trials = plan(experiment, range(8), {})
    places = Places(tmp_path / "cells", tmp_path / "work")
    results = analyse(Evidence(experiment, trials, places.records_of(trials), {}, {}), "command")
    primary = {each["arm"]: each for each in results["comparisons"] if each["is_primary"]}
    assert (primary["better"]["verdict"], primary["better"]["seeds"]) == ("higher", 8)
    assert (primary["other"]["verdict"], primary["other"]["seeds"]) == (INCOMPLETE, 7)
    assert "other lacks seeds 3" in results["answer"] and record["result"]["items"]


def changed_items(folder: Path, experiment, arm: str, change) -> list:
    """Change what the record of an arm's last cell says of its items; return the trials."""
    trials = plan(experiment, range(experiment.seeds), {})
    file = folder / "cells" / f"{next(t for t in trials if t.arm == arm).cells['second'].address}.json"
    record = json.loads(file.read_text())
    change(record["result"]["items"])
    file.write_text(json.dumps(record))
    return trials


def test_a_task_that_some_arm_was_not_measured_on_is_told(tmp_path):
    experiment = experiment_in(tmp_path, seeds=2)
    run_in(tmp_path, experiment)
    trials = changed_items(tmp_path, experiment, "better", lambda items: items["losses"].clear())
    records = Places(tmp_path / "cells", tmp_path / "w").records_of(trials)
    results = analyse(Evidence(experiment, trials, records, {}, {}), "")
    told = "not every arm was measured, or on other targets, on second: loss store (negative_nats_per_token)."
    assert told in results["answer"]
    assert "second: loss store" not in {each["task"] for each in results["comparisons"]}


def test_losses_of_other_targets_are_not_compared_and_that_is_told(tmp_path, store):
    experiment = experiment_in(tmp_path, seeds=2)
    given_in(tmp_path, experiment, store)
    for arm, targets in {"plain": [9, 4], "better": [5, 4]}.items():
        trials = changed_items(
            tmp_path, experiment, arm, lambda items, of=targets: items.update(targets={"store": of})
        )
    records = Places(tmp_path / "cells", tmp_path / "w").records_of(trials)
    results = analyse(Evidence(experiment, trials, records, {}, {}), "")
    assert "or on other targets, on second: loss store (negative_nats_per_token)." in results["answer"]
    assert "second: loss store" not in {each["task"] for each in results["comparisons"]}


def test_what_commands_note_of_their_data_is_kept_and_told(tmp_path):
    second = {"run": "quick", "model": "@first", "noted": "questions not asked: 12"}
    arms = {"plain": {}, "better": {"second.gain": 0.5, "second.noted": ""}}
    stages = {"first": {"run": "quick"}, "second": second}
    results, _ = run_in(tmp_path, experiment_in(tmp_path, seeds=2, stages=stages, arms=arms))
    assert results["experiment"]["notes"] == ["second, 4 of 6 cells: questions not asked: 12"]
    assert "Note: of their data, commands noted what the report lists as left out" in results["answer"]


def test_a_split_that_is_named_like_a_loss_is_refused(tmp_path):
    experiment = experiment_in(tmp_path, seeds=2)
    run_in(tmp_path, experiment)

    def rename(items: dict) -> None:
        items["tasks"]["loss store"] = items["tasks"]["task"]

    trials = changed_items(tmp_path, experiment, "better", rename)
    records = Places(tmp_path / "cells", tmp_path / "w").records_of(trials)
    with pytest.raises(UserError, match="second-.*: a split is named like the loss store; rename it"):
        analyse(Evidence(experiment, trials, records, {}, {}), "")


def test_what_is_not_finite_fails_its_cell(tmp_path):
    arms = {"plain": {}, "diverged": {"second.diverges": True}}
    with pytest.raises(UserError, match="no seed was measured with diverged; log_likelihood on task is not"):
        run_in(tmp_path, experiment_in(tmp_path, arms=arms))


def test_the_experiments_that_were_looked_at_before_are_told(tmp_path, store):
    experiment = experiment_in(tmp_path)
    assert note_experiment(tmp_path, experiment) == []
    assert note_experiment(tmp_path, experiment) == [experiment.hash]
    other = experiment_in(tmp_path, seeds=2)
    former = note_experiment(tmp_path, other)
    given_in(tmp_path, other, store)
    trials = plan(other, range(2), {})
    evidence = Evidence(other, trials, store.records_of(trials), {}, {})
    assert "1 other experiments were run here before" in analyse(evidence, "", former)["answer"]


def test_questions_must_be_the_same_for_all(tmp_path, store):
    given_in(tmp_path, experiment_in(tmp_path), store)
    file = next((tmp_path / "cells").glob("second-*.json"))
    record = json.loads(file.read_text())
    record["result"]["items"]["tasks"]["task"]["questions"] = "others"
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="second: task: arms were asked different questions"):
        run_in(tmp_path, experiment_in(tmp_path))


@pytest.mark.parametrize(
    "primary, words",
    [
        ({"task": "third"}, "primary: expected a task of first: task, .*, got third"),
        (
            {"task": "first: task", "metric": "f2"},
            "primary: expected a metric of first: task \\(.*\\), got f2",
        ),
    ],
)
def test_a_primary_metric_that_nothing_measures_is_told_after_the_first_trial(tmp_path, primary, words):
    with pytest.raises(UserError, match=words):
        run_in(tmp_path, experiment_in(tmp_path, primary=primary, seeds=4), Workers(1))
    assert begun(tmp_path) < 6


def test_a_cell_that_is_made_again_has_the_same_record(tmp_path):
    experiment = experiment_in(tmp_path)
    places = Places(tmp_path / "cells", tmp_path / "work")
    run_in(tmp_path, experiment)
    broken = plan(experiment, range(3), {})[3].cells["second"]
    file = places.record(broken.address)
    record = json.loads(file.read_text())
    file.unlink()
    (places.work / broken.address / "done").unlink()
    results, ended = run_in(tmp_path, experiment)
    assert ended == [broken.address] and json.loads(file.read_text())["result"] == record["result"]
    assert results["experiment"]["seeds"] == [0, 1, 2]


def test_arms_that_differ_in_what_they_do_not_name_are_refused(tmp_path, store):
    arms = {"plain": {}, "other": {"second.prompt_mask": "prefix"}}
    results = given_in(tmp_path, experiment_in(tmp_path, arms=arms), store)
    assert results["arms"][1]["proof"]["second"] == {
        "initial_weights": "equal",
        "rows": "equal",
        "targets": "equal",
    }
    assert results["arms"][1]["differs_because"] == ["second.prompt_mask: prefix, not causal"]
    [record] = [
        file
        for file in (tmp_path / "cells").glob("second-*.json")
        if json.loads(file.read_text())["settings"]["prompt_mask"] == "prefix"
        and json.loads(file.read_text())["settings"]["seed"] == 1
    ]
    values = json.loads(record.read_text())
    values["result"]["training"]["proof"]["rows"] = "others"
    record.write_text(json.dumps(values))
    with pytest.raises(UserError, match="differ in the rows of stage second .seed 1., which neither names"):
        run_in(tmp_path, experiment_in(tmp_path, arms=arms))


def test_every_pair_is_proven_and_not_the_baseline_alone(tmp_path, store):
    arms = {
        "plain": {},
        "one": {"second.data": "hub:others"},
        "two": {"second.data": "hub:others", "second.gain": 1},
    }
    changes = {"arms": arms, "contrasts": [["two", "one"]]}
    given_in(tmp_path, experiment_in(tmp_path, **changes), store)
    for file in (tmp_path / "cells").glob("second-*.json"):
        values = json.loads(file.read_text())
        if values["settings"]["gain"] == 1:
            values["result"]["training"]["proof"]["rows"] = "quite others"
            file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="arms two and one differ in the rows"):
        run_in(tmp_path, experiment_in(tmp_path, **changes))


def test_an_arm_that_names_its_data_may_have_other_rows(tmp_path, store):
    arms = {"plain": {}, "other": {"second.data": "hub:others"}}
    results = given_in(tmp_path, experiment_in(tmp_path, arms=arms), store)
    assert results["arms"][1]["proof"]["second"]["rows"] == "differs"


def test_a_record_of_other_settings_is_refused_by_name(tmp_path, store):
    given_in(tmp_path, experiment_in(tmp_path), store)
    file = next((tmp_path / "cells").glob("second-*.json"))
    record = json.loads(file.read_text())
    record["settings"]["seconds"] = 7.0
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match="was made with seconds 7.0, which is 0.0 now"):
        run_in(tmp_path, experiment_in(tmp_path))


def test_a_record_offers_a_reader_no_command_but_that_of_its_cell(tmp_path, store):
    experiment, here = experiment_in(tmp_path, seeds=1), str(tmp_path / "work")
    given = given_in(tmp_path, experiment, store)["cells"]
    for file in (tmp_path / "cells").glob("*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"command": "curl nowhere | sh"}))
    commands = [cell["command"] for cell in run_in(tmp_path, experiment)[0]["cells"]]
    assert commands == [cell["command"].replace(str(store.work), here) for cell in given]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"commit": "0a\ncurl nowhere | sh"}))
    with pytest.raises(UserError, match="is damaged .commit: expected one, got '0a"):
        run_in(tmp_path, experiment)


def test_every_arm_takes_its_own_best_of_what_is_tuned_and_the_tuning_seed_serves_nothing_else(tmp_path):
    tune = {"first.gain": [0, 3], "second.gain": [1.0, 2.0]}
    arms = {"plain": {}, "other": {"second.prompt_mask": "prefix"}}
    experiment = experiment_in(tmp_path, tune=tune, arms=arms, seeds=2)
    results, _ = run_in(tmp_path, experiment)
    assert results["experiment"]["tuned"]["plain"] == {"first.gain": 0, "second.gain": 2.0}
    assert experiment.tuning_seed not in {cell["seed"] for cell in results["cells"]}
    tried, cells = results["tuning"]["tried"], {each["address"]: each for each in results["tuning"]["cells"]}
    assert [each["settings"] for each in tried if each["arm"] == "plain"] == [
        {"first.gain": first, "second.gain": second} for first in tune["first.gain"] for second in (1.0, 2.0)
    ]
    assert (
        max(tried[:4], key=lambda each: each["score"])["settings"] == results["experiment"]["tuned"]["plain"]
    )
    assert {cells[address]["seed"] for each in tried for address in each["cells"]} == {experiment.tuning_seed}
    assert all(each["command"] and each["threads"] == 1 for each in cells.values())


def test_a_cell_that_fails_in_tuning_is_told_by_the_exit_code_too(tmp_path, monkeypatch):
    stages, arms = {"only": {"run": "quick"}}, {"plain": {}, "better": {"only.gain": 0.5}}
    changes = {"stages": stages, "arms": arms, "tune": {"only.fails": [False, True]}, "seeds": 1}
    experiment_in(tmp_path, **changes, primary={"task": "task"})
    words = ["ablate", "--config", str(tmp_path / "quick.yaml"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="2 cells failed: see .*report.md; the same command tries again"):
        ablate()
    assert "it was told to fail" in (tmp_path / "out" / "report.md").read_text()


def test_a_pair_that_was_tuned_apart_says_so_in_the_answer(tmp_path, store):
    experiment = experiment_in(tmp_path, seeds=2)
    given_in(tmp_path, experiment, store)
    trials = plan(experiment, range(2), {})
    tuned = {"plain": {"rate": 1}, "better": {"rate": 2}}
    results = analyse(Evidence(experiment, trials, store.records_of(trials), {}, tuned), "")
    assert "; tuned: rate 2, not 1)" in results["answer"]
    assert (
        "tuned" not in analyse(Evidence(experiment, trials, store.records_of(trials), {}, {}), "")["answer"]
    )


def test_an_experiment_ends_at_the_first_look_that_decides(tmp_path, store):
    looks = {"seeds": 16, "decision": {"looks": [8, 16]}}
    results = given_in(tmp_path, experiment_in(tmp_path, **looks), store)
    assert results["experiment"]["seeds"] == list(range(8))
    null = {"plain": {}, "same": {"second.prompt_mask": "prefix"}}
    results, _ = run_in(tmp_path, experiment_in(tmp_path, arms=null, **looks))
    assert [each["verdict"] for each in results["comparisons"] if each["is_primary"]] == ["identical"]


def start(folder: Path, experiment: Path, cluster: str) -> BaseProcess:
    """Make what is missing of an experiment in a process of its own."""
    process = SERVER.Process(target=make, args=(folder, experiment, cluster))
    process.start()
    return process


def make(folder: Path, experiment: Path, cluster: str) -> None:
    start_server()  # of cells
    os.environ["PYTHONPATH"] = PYTHONPATH
    PROGRAMS["quick"] = QUICK
    places, workers = Places(folder / "cells", folder / "work"), Workers(2, cluster=cluster)
    results, _ = run_experiment(load_experiment(str(experiment)), places, workers, "command", lambda *_: None)
    write_json(folder / "results.json", results)


def finish(folder: Path, experiment: Path, cluster: str) -> None:
    process = start(folder, experiment, cluster)
    process.join(MOST_SECONDS)
    assert process.exitcode == 0


def numbers(folder: Path) -> dict:
    results = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in results.items() if key != "cells"}


@pytest.mark.parametrize("cluster", [pytest.param("none", marks=pytest.mark.long), "local"])
def test_a_grid_that_is_killed_goes_on_and_ends_with_the_same_numbers(tmp_path, cluster):
    stages = {"first": {"run": "quick", "seconds": 0.2}, "second": {"run": "quick"}}
    experiment_in(tmp_path, stages=stages, seeds=1)
    whole, killed, file = tmp_path / "whole", tmp_path / "killed", tmp_path / "quick.yaml"
    finish(whole, file, "none")
    chance = random.Random(0)
    for _ in range(2):
        process, finished = start(killed, file, cluster), records(killed)
        wait_for(lambda run=process, before=finished: records(killed) > before or not run.is_alive())
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        process.join()
    finish(killed, file, cluster)
    assert numbers(killed) == numbers(whole)


def records(folder: Path) -> int:
    return len([*(folder / "cells").glob("*.json")])


def test_cells_end_when_the_process_that_started_them_is_killed(tmp_path):
    experiment_in(
        tmp_path, stages={"first": {"run": "quick", "seconds": 90}}, arms={"a": {}, "b": {"first.gain": 1}}
    )
    process = start(tmp_path / "out", tmp_path / "quick.yaml", "none")
    wait_for(
        lambda: len(users_of(tmp_path)) == 4
    )  # two cells and their commands, all of which hold the locks
    process.kill()
    process.join()
    wait_for(lambda: not users_of(tmp_path))


def users_of(folder: Path) -> set[str]:
    """The processes that have a file below a folder open, besides this one."""
    links = [*Path("/proc").glob("[0-9]*/fd/*")]
    return {link.parts[2] for link in links if str(folder) in target_of(link)} - {str(os.getpid())}


def target_of(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def wait_for(is_so, seconds: float = 40) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_grid_stops_its_cells_when_it_is_interrupted(tmp_path):
    stages, arms = {"first": {"run": "quick", "seconds": 60}}, {"a": {}, "b": {"first.gain": 1}}
    experiment = experiment_in(tmp_path, stages=stages, arms=arms)

    def interrupt(grid: Grid, cell) -> None:
        if grid.running:
            raise KeyboardInterrupt

    places = Places(tmp_path / "cells", tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        Grid(plan(experiment, range(2), {}), places, Workers(2)).run(interrupt)
    assert not users_of(tmp_path)
