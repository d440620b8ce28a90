"""Judgements: a rule fixed beforehand, its error rate, and recipes whose cells never run twice."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import scipy
import yaml
from quick_cell import QuickSettings

from eval.cells import PROGRAMS, Program
from eval.experiment import Primary, Recipe, load_recipe
from eval.judging import (
    Measured,
    Rule,
    details,
    fix,
    judge,
    place_of,
    scores_of_pair,
    sentence,
    trials_of,
)
from eval.places import Places
from eval.running import write_json
from model.errors import UserError
from scripts.judge import main
from tests.test_damaged_records import RESULT, record_of

ROOT = Path(__file__).parent.parent
PRIMARY = Primary("stories")
GAINS = {"A": 0.0, "B": 1.0}
RULE = Rule(looks=(8,))


def measuring(differences, asked: list[int] | None = None, left_out: int = 0):
    """What seeds measure whose differences are given (seeds,), on three items; A spreads by 1."""
    base = np.random.default_rng(0).normal(size=(len(differences), 1)) + np.zeros(3)

    def measure(seeds: int):
        if asked is not None:
            asked.append(seeds)
        b = base[:seeds] + np.array(differences)[:seeds, None]
        return Measured(base[:seeds], b, np.arange(3), left_out)

    return measure


def test_recipes_that_are_as_good_are_told_apart_no_more_often_than_alpha_over_all_looks(monkeypatch):
    monkeypatch.setattr("eval.judging.seeds_needed", lambda *given: None)  # half of the time; decides nothing
    rng, rule = np.random.default_rng(0), Rule(looks=(8, 9), bound=1.0)
    nulls = [judge(rule, measuring(rng.normal(size=9))) for _ in range(500)]
    found = [each.verdict in ("higher", "lower") for each in nulls]
    assert sum(found) <= scipy.stats.binom.ppf(0.995, 500, 0.05)
    planted = [judge(rule, measuring(rng.normal(1.5, 1, size=9))).verdict for _ in range(40)]
    assert planted.count("higher") > 30 and "lower" not in planted


def test_a_difference_as_large_as_the_bound_is_called_smaller_no_more_often_than_alpha(monkeypatch):
    monkeypatch.setattr("eval.judging.seeds_needed", lambda *given: None)
    rng, rule = np.random.default_rng(1), Rule(looks=(8, 9), bound=2.0)
    found = [judge(rule, measuring(rng.normal(2, 3, size=9))).verdict for _ in range(200)]
    assert found.count("equal within the bound") <= scipy.stats.binom.ppf(0.995, 200, 0.05)


def test_a_judgement_ends_at_the_first_look_that_decides_and_asks_for_no_further_seeds():
    clear, asked = np.array([1.0, 2, 1, 2, 1, 2, 1, 2, 1]), []
    assert judge(Rule(looks=(8, 9)), measuring(clear, asked)).verdict == "higher" and asked == [8]
    asked.clear()
    assert judge(Rule(looks=(8, 9)), measuring(-clear, asked)).verdict == "lower" and asked == [8]
    asked.clear()
    rule = Rule(looks=(8, 9), bound=0.5)
    found = judge(rule, measuring([0.01, -0.01, 0.02, -0.02, 0, 0, 0, 0, 0], asked))
    assert found.verdict == "equal within the bound" and asked == [8]
    assert "No difference larger than 0.500 nats" in sentence(found, rule, PRIMARY)


def test_a_p_that_would_decide_alone_does_not_decide_among_several_looks():
    eight = [1.0, 2, 1, 2, 1, 2, -0.3, -0.6]  # p = 8 / 256 = 0.031
    assert judge(Rule(looks=(8,)), measuring(eight)).verdict == "higher"
    asked, rule = [], Rule(looks=(8, 10, 18))
    found = judge(rule, measuring([*eight, *[-1.0, -2] * 5], asked))
    assert found.verdict == "undecided" and asked == [8, 10, 18]
    assert found.effect.alpha == rule.level < 0.03, "which its interval covers, too"


def test_what_is_undecided_says_what_it_could_see_and_how_many_seeds_it_lacks():
    rule = Rule(looks=(8,))
    found = judge(rule, measuring([1.0, -1, 2, -1, 1, -1, 2, 0]))
    assert sentence(found, rule, PRIMARY).startswith("Undecided: B less A is +0.375 nats in log-likelihood")
    said = dict(details(found, rule, PRIMARY))
    assert found.seeds_needed > 8 and said["more seeds needed"].startswith(f"{found.seeds_needed - 8},")
    a = measuring([0.0] * 8)(8)[0]
    assert found.spread_of_a == pytest.approx(a[:, 0].std(ddof=1))
    assert said["seen 8 times in 10"] != "nothing"
    for metric, said in (
        ("exact_match", "+37.5 points in exact match"),
        ("f1", "+37.5 points in F1"),
        ("negative_nats_per_token", "+0.375 in negative nats per token"),
    ):
        assert f"{said} on stories, not told" in sentence(found, rule, Primary("stories", metric))


WRONG = [{"looks": (9, 9)}, {"looks": ()}, {"looks": (7, 8)}, {"alpha": 1.0}, {"bound": 0.0}]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_rule_that_cannot_end_or_decides_too_early_is_refused(wrong):
    with pytest.raises(UserError, match=f"--rule.{next(iter(wrong))}: expected"):
        Rule(**wrong)


def test_items_without_a_score_are_told(tmp_path, monkeypatch):
    monkeypatch.setitem(PROGRAMS, "quick", Program("quick_cell", QuickSettings, trains=True, measures=True))
    recipes = {
        name: Recipe({"only": {"run": "quick", "gain": gain}}, PRIMARY) for name, gain in GAINS.items()
    }
    trials, places = trials_of(recipes, range(2)), Places(tmp_path, tmp_path)
    scores = {"clusters": [0, 1, 2], "metrics": {"log_likelihood": [-1.0, None, -2.0]}}
    result = RESULT | {"items": {"tasks": {PRIMARY.task: scores}, "losses": {}}, "notes": ["rejected: 2"]}
    for cell in (cell for trial in trials for cell in trial.measured):
        write_json(places.record(cell.address), record_of(cell, result))
    measured = scores_of_pair(trials, places, PRIMARY)
    assert measured.left_out == 1 and measured.notes == ["only, 4 of 4 cells: rejected: 2"]
    assert measured.a.tolist() == [[-1.0, -2.0]] * 2
    found = judge(RULE, measuring([0.0] * 8, left_out=1))
    assert dict(details(found, RULE, PRIMARY))["items without a score, left out"] == "1"


def test_a_rule_cannot_change_after_it_is_written_down(tmp_path):
    file, rule = tmp_path / "a-b.json", Rule(looks=(8, 16), bound=0.1)
    fixed = fix(file, rule, PRIMARY)
    assert fix(file, rule, PRIMARY) == fixed
    assert json.loads(file.read_text())["fixed"] == json.loads(json.dumps(asdict(fixed)))
    for other, primary in ((Rule(), PRIMARY), (rule, Primary("facts"))):
        with pytest.raises(UserError, match="a rule that changes after a look proves nothing"):
            fix(file, other, primary)
    with pytest.raises(UserError, match="8 seeds cannot tell recipes apart: p must be at most 0.001"):
        fix(tmp_path / "new.json", Rule(looks=(8,), alpha=0.001), PRIMARY)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Judge recipes of quick cells, given as settings of their only stage; return what is printed."""
    monkeypatch.setitem(PROGRAMS, "quick", Program("quick_cell", QuickSettings, trains=True, measures=True))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))

    def run(a: dict, b: dict, *flags: str) -> str:
        words = ["judge", "--out", str(tmp_path / "out"), "--rule.looks", "8", "9", *flags]
        for name, settings in (("a", a), ("b", b)):
            recipe = {"stages": {"only": {"run": "quick"} | settings}, "primary": {"task": "task"}}
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
            words += [f"--{name}", str(tmp_path / f"{name}.yaml")]
        monkeypatch.setattr(sys, "argv", words)
        main()
        return capsys.readouterr().out

    return run


def begun(folder: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in folder.rglob("begun"))


def test_a_better_recipe_is_found_and_no_cell_of_any_judgement_runs_twice(command, tmp_path):
    said = command({}, {"gain": 0.5})
    assert said.startswith("B is better than A in log-likelihood on task, by +0.500 nats.\n")
    assert begun(tmp_path) == 16, "eight seeds of two recipes"
    assert command({}, {"gain": 0.5}) == said and begun(tmp_path) == 16
    with pytest.raises(UserError, match="a rule that changes after a look"):
        command({}, {"gain": 0.5}, "--rule.alpha", "0.2")
    assert "2 judgements lie there" in command({}, {"gain": -0.5}) and begun(tmp_path) == 24


def test_recipes_that_cannot_be_judged_are_refused_before_anything_runs(command, tmp_path):
    with pytest.raises(UserError, match="A and B do the same"):
        command({"gain": 1.0}, {"gain": 1.0})
    with pytest.raises(UserError, match="trainings that take the seed"):
        command({}, {"seed": 3})
    assert not (tmp_path / "out").exists()


def test_other_seeds_are_another_judgement_and_may_not_overlap(tmp_path):
    rule = Rule(looks=(8, 16))
    file = place_of(tmp_path, "pair", rule, 0)
    fix(file, rule, PRIMARY)
    (tmp_path / "pair-1x.json").touch()  # of somebody's
    assert place_of(tmp_path, "pair", rule, 0) == file != place_of(tmp_path, "pair", rule, 16)
    assert place_of(tmp_path, "others", rule, 4).name == "others-4.json"
    with pytest.raises(UserError, match="same recipes with seeds 0 to 15; expected seeds .* as 16"):
        place_of(tmp_path, "pair", rule, 15)


def test_a_recipe_may_say_only_what_it_changes_of_another(tmp_path):
    full, short = tmp_path / "a.yaml", tmp_path / "b.yaml"
    one, primary = {"run": "quick", "gain": 1.0}, {"task": "task"}
    full.write_text(yaml.safe_dump({"stages": {"only": one}, "primary": primary}))
    changed = {"stages_of": str(full), "stages": {"only": {"gain": 2.0}}, "primary": primary}
    short.write_text(yaml.safe_dump(changed))
    assert load_recipe(str(short)).stages == {"only": one | {"gain": 2.0}}


def test_recipes_that_were_asked_other_questions_are_not_compared(command):
    with pytest.raises(UserError, match="expected the same questions for A and B"):
        command({}, {"items": 19})


def test_a_cell_that_fails_ends_the_judgement_with_its_words(command, tmp_path):
    with pytest.raises(UserError, match="it was told to fail; .*log.txt says more"):
        command({}, {"fails": True}, "--threads", "1")
    assert begun(tmp_path) == 1, "the first seed of A"
