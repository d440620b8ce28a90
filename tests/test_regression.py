"""In-context linear regression: what arms share to the bit, and what only a second layer can tell apart."""

import json
from dataclasses import replace

import pytest
import torch
from forked_commands import call

from eval.in_context import Regression, draw_tasks, find, generator_of, train_and_save
from eval.regression import RegressionSettings, main
from eval.running import ON_CPU
from model.errors import UserError

SHORT = RegressionSettings(
    out="", hidden_size=32, max_steps=12, batch_size=8, evaluation_tasks=50, log_every_steps=5, device="cpu"
)


def trained(**changes) -> Regression:
    regression = Regression(replace(SHORT, **changes))
    regression.train()
    return regression


def both_arms(**changes) -> tuple[Regression, Regression]:
    return trained(prompt_mask="causal", **changes), trained(prompt_mask="prefix", **changes)


def is_equal(a: Regression, b: Regression) -> bool:
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_one_layer_learns_and_answers_the_same_to_the_bit_under_both_masks(optimizer):
    causal, prefix = both_arms(num_hidden_layers=1, optimizer=replace(SHORT.optimizer, name=optimizer))
    assert is_equal(causal, prefix) and causal.curve == prefix.curve
    assert causal.measure() == prefix.measure()


def test_more_layers_tell_the_masks_apart_and_nothing_else_differs():
    causal, prefix = both_arms(num_hidden_layers=2)
    assert causal.ledger == prefix.ledger
    assert not is_equal(causal, prefix) and causal.measure() != prefix.measure()


def test_a_seed_decides_weights_and_rows_but_not_what_is_measured():
    first, again, other = trained(), trained(), trained(seed=1)
    assert is_equal(first, again) and first.ledger == again.ledger
    assert first.ledger.initial_weights != other.ledger.initial_weights
    assert first.ledger.rows != other.ledger.rows
    tasks = [draw_tasks(generator_of("evaluation"), 50, replace(SHORT, seed=seed)) for seed in (0, 1)]
    assert torch.equal(tasks[0].ids, tasks[1].ids)


def test_depths_train_on_the_same_rows():
    shallow, deep = trained(num_hidden_layers=1), trained(num_hidden_layers=2)
    assert shallow.ledger.rows == deep.ledger.rows and shallow.ledger.targets == deep.ledger.targets


def test_least_squares_finds_every_value_from_the_examples_and_the_query_does_not_tell_its_own():
    tasks = draw_tasks(generator_of("a test"), 200, replace(SHORT, prompt_mask="prefix"))
    tokens = tasks.ids.double()
    assert tokens.shape == (200, SHORT.examples + 1, SHORT.dimensions + 1)
    lines = torch.linalg.lstsq(tokens[:, :-1, :-1], tokens[:, :-1, -1:]).solution  # (200, dimensions, 1)
    values = (tokens[:, -1:, :-1] @ lines).flatten()
    assert torch.allclose(values, tasks.labels[:, -1].double(), atol=1e-4)
    assert (tasks.labels[:, :-1] == -100).all() and (tokens[:, -1, -1] == 0).all()
    assert tasks.block_ids[0].tolist() == [0] * SHORT.examples + [-1]
    assert 0.7 < tasks.labels[:, -1].var() < 1.4


def test_a_little_training_beats_a_guess_of_zero():
    faster = replace(SHORT.optimizer, learning_rate=1e-2)
    changes = {"num_hidden_layers": 1, "dimensions": 2, "optimizer": faster, "log_every_steps": 25}
    curve = trained(max_steps=100, batch_size=32, **changes).curve
    assert curve[-1]["loss"] < 0.6 < 0.9 < curve[0]["loss"]


def test_the_command_leaves_items_curve_and_proof_and_is_not_repeated(tmp_path):
    flags = "--num_hidden_layers 1 --hidden_size 32 --max_steps 12 --batch_size 8 --evaluation_tasks 50"
    line = ["eval.regression", *flags.split(), "--log_every_steps", "5", "--out", f"{tmp_path}/run"]
    done = [call(line, **variables) for variables in (ON_CPU, {})]
    assert [each.returncode for each in done] == [0, 0], done
    items = json.loads((tmp_path / "run" / "items.json").read_text())
    scores = items["tasks"]["regression"]["metrics"]["negative_squared_error"]
    assert items["tasks"]["regression"]["clusters"] == list(range(50)) and items["losses"] == {}
    assert len(scores) == 50 and max(scores) <= 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["mean_squared_error"] == pytest.approx(-sum(scores) / 50, abs=1e-6)
    assert summary["tokens"] == 12 * 8 * 17 and summary["targets"] == 12 * 8 and summary["flops"] > 0
    assert set(summary["proof"]) == {"initial_weights", "rows", "targets"}
    curve = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert curve == [5, 10, 12]
    assert "already" in done[1].stdout and done[1].stdout.endswith(done[0].stdout)


def test_a_run_with_other_settings_is_not_taken_for_this_one(tmp_path):
    settings = replace(SHORT, out=str(tmp_path / "run"))
    assert find(settings) is None
    train_and_save(settings)
    assert find(replace(settings, device="auto", log_every_steps=1))["steps"] == 12
    with pytest.raises(UserError, match="holds a run with seed 0, asked was 1; choose another --out"):
        find(replace(settings, seed=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "--seed: expected 0 to"),
        ({"examples": 0}, "--examples: expected 1 or a multiple of it, up to 1,000,000, got 0"),
        ({"orders": 10**18}, "--orders: expected 0, or 2 to 1,000,000 to compare"),
        ({"num_hidden_layers": 10**18}, "--num_hidden_layers: expected 1 or a multiple of it, up to"),
        ({"hidden_size": 48}, "--hidden_size: expected 32 or a multiple of it, up to 1,000,000, got 48"),
    ],
)
def test_what_cannot_be_drawn_or_built_is_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        replace(SHORT, **changes)


def test_no_order_of_the_examples_changes_what_a_set_of_them_predicts(tmp_path):
    for mask, is_exact in (("causal", False), ("prefix", False), ("sets", True)):
        settings = replace(SHORT, prompt_mask=mask, num_hidden_layers=2, orders=3, out=str(tmp_path / mask))
        train_and_save(settings)
        metrics = json.loads((tmp_path / mask / "items.json").read_text())["tasks"]["regression"]["metrics"]
        assert len(metrics["negative_order_spread"]) == 50
        assert (max(map(abs, metrics["negative_order_spread"])) == 0) is is_exact, mask


def test_examples_of_a_set_share_a_position_and_the_query_follows():
    tasks = draw_tasks(generator_of("a test"), 2, replace(SHORT, prompt_mask="sets"))
    assert tasks.position_ids.tolist() == [[0] * SHORT.examples + [1]] * 2
    assert tasks.part_ids[0].tolist() == [*range(SHORT.examples), -1]


def test_several_processes_are_refused_by_what_the_launcher_says(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "abc")
    monkeypatch.setattr("sys.argv", ["regression", "--out", str(tmp_path / "run")])
    with pytest.raises(UserError, match="takes one process, got WORLD_SIZE='abc'"):
        main()
