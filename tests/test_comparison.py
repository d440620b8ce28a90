"""Evaluations beside each other: pairs of answers, losses on equal targets, and how that is shown."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import pytest

from dataset.preparation import PreparationSettings, write_store
from eval import evaluation, plots
from eval.answers import Tally, tabulate
from eval.comparison import compare, open_runs, shortest_question, telling_questions
from eval.comparison_report import paired_tables, scores
from eval.evaluation import Found
from eval.looks import add_looks
from eval.loss_curves import by_step, by_tokens, draw_losses, save_losses
from eval.served_model import open_model
from eval.serving_settings import EvaluationSettings
from eval.statistics import PairedCounts
from eval.tables import Table, as_markdown, as_text, score_table
from model.errors import UserError
from scripts import compare as command
from tests.serving import chat_question, save_model, small_tokenizer, write_lines

QUESTIONS = [chat_question(f"Peru {n}?", "Lima", kind="odd" if n % 2 else "even") for n in range(12)]


def evaluate_into(model: Path, *data: str, **settings) -> Path:
    asked = EvaluationSettings(
        model=str(model),
        data=data,
        out=str(model / "evaluation"),
        max_new_tokens=2,
        overwrite=True,
        **settings,
    )
    evaluation.save(asked.out, evaluation.evaluate(open_model(model), asked))
    return model


def mark_right(run: Path, *right: int) -> None:
    """Let an evaluation hold that these of its answers were right."""
    folder = run / "evaluation"
    predictions = [
        replace(prediction, is_correct=n in right)
        for n, prediction in enumerate(evaluation.load_predictions(folder))
    ]
    kept = replace(evaluation.load(folder), cells=tuple(tabulate(predictions)))
    evaluation.save(folder, Found(kept, tuple(predictions)))


def metrics_of(tokens_per_step: int) -> list[dict]:
    """Metrics of a training that validates between two logged steps."""
    logged = [
        {"step": step, "loss": 9.0 - step, "learning_rate": 0.1, "tokens": step * tokens_per_step}
        for step in (2, 4)
    ]
    return [logged[0], {"step": 3, "validation": "chats", "nats_per_token": 5.0}, logged[1]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Two run directories, evaluated on the same twelve questions."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_lines(folder / "q.jsonl", *QUESTIONS)
    for mask in ("causal", "prefix"):
        evaluate_into(save_model(folder / mask, mask), data)
    mark_right(folder / "causal", 0, 1, 2)
    mark_right(folder / "prefix", 0, 3, 4, 5, 6, 7, 8)
    (folder / "causal/summary.json").write_text('{"seconds": 61.4}')
    write_lines(folder / "causal/metrics.jsonl", *metrics_of(10))
    return folder


@pytest.fixture
def runs(trained, tmp_path) -> list[Path]:
    return [copytree(trained / mask, tmp_path / mask) for mask in ("causal", "prefix")]


def test_pairs_count_the_questions_that_one_run_alone_answered_rightly(runs):
    found = compare(runs)
    assert [run.label for run in found.runs] == ["causal", "prefix"]
    pairs = {(each.split, each.kind): each.counts for each in found.pairings}
    assert pairs == {
        ("q", ""): PairedCounts(1, 2, 6, 3),
        ("q", "even"): PairedCounts(1, 1, 3, 1),
        ("q", "odd"): PairedCounts(0, 1, 3, 2),
    }
    [table] = paired_tables(found)
    assert table.rows[0] == ("q", "12", "2", "6", "+33.3 (-13.1 to +70.2)", "0.29")


def test_several_runs_are_each_paired_with_the_first(runs, tmp_path):
    third = copytree(runs[1], tmp_path / "other")
    found = compare([*runs, third])
    assert [run.label for run in found.runs] == ["causal", "prefix", "other"]
    assert {(each.first, each.second) for each in found.pairings} == {
        ("causal", "prefix"),
        ("causal", "other"),
    }
    assert len(paired_tables(found)) == 2


def test_only_questions_that_all_were_asked_are_compared_and_that_is_said(runs, tmp_path):
    fewer = write_lines(tmp_path / "q.jsonl", *QUESTIONS[:4], chat_question("New?", "Lima"))
    evaluate_into(runs[1], fewer)
    mark_right(runs[1], 0, 3)
    found = compare(runs)
    assert [len(run.predictions) for run in found.runs] == [4, 4]
    assert found.notes == ("q: 4 questions were asked of all and are compared (causal 12, prefix 5)",)
    assert found.pairings[0].counts == PairedCounts(1, 2, 1, 0)
    evaluate_into(runs[1], write_lines(tmp_path / "q.jsonl", chat_question("New?", "Lima")))
    with pytest.raises(UserError, match="nothing to compare: q: 0 questions were asked of all"):
        compare(runs)


def test_a_model_that_has_changed_since_it_was_evaluated_is_said(runs):
    assert not any("another model" in note for note in compare(runs).notes)
    weights = runs[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    said = f"prefix: {runs[1]} is another model now than was evaluated; evaluate it again"
    assert said in compare(runs).notes


def test_evaluations_under_other_settings_are_said_to_be_so(runs):
    folder = runs[1] / "evaluation"
    there = evaluation.load(folder)
    facts = replace(there.facts, settings=there.facts.settings | {"max_new_tokens": 9})
    evaluation.save(folder, Found(replace(there, facts=facts), evaluation.load_predictions(folder)))
    assert "they were evaluated with different --max_new_tokens (2, 9)" in compare(runs).notes


def test_a_question_that_is_asked_twice_pairs_with_itself_in_order(runs, tmp_path):
    twice = write_lines(tmp_path / "q.jsonl", QUESTIONS[0], QUESTIONS[0])
    for run, right in zip(runs, ((0,), (1,)), strict=True):
        evaluate_into(run, twice)
        mark_right(run, *right)
    assert compare(runs).pairings[0].counts == PairedCounts(0, 1, 1, 0)


def test_evaluations_are_found_wherever_they_lie(runs, tmp_path):
    moved = runs[1].rename(tmp_path / "moved") / "evaluation"
    found = compare([runs[0], moved])
    assert [run.model for run in found.runs] == [runs[0], tmp_path / "moved"]
    alone = moved.rename(tmp_path / "somewhere")
    found = compare([runs[0], alone])
    assert found.runs[1].model.name == "prefix" and found.runs[1].label == "prefix"
    with pytest.raises(UserError, match="no evaluation"):
        compare([runs[0], tmp_path])
    with pytest.raises(UserError, match="one of them twice"):
        compare([runs[0], runs[0] / "evaluation"])


def stores(folder: Path) -> list[str]:
    """Two stores of chats with two answers each."""
    small_tokenizer().save(folder / "tokenizer")
    made = []
    for name, answer in (("one", "Lima"), ("two", "巴黎")):
        turns = [{"role": role, "content": answer} for role in ("user", "assistant") * 2]
        data = write_lines(folder / f"{name}.jsonl", {"messages": turns}, {"messages": turns[:2]})
        write_store(PreparationSettings("sft", (data,), str(folder / "tokenizer"), str(folder / name)))
        made.append(str(folder / name))
    return made


def test_losses_alone_are_compared_over_equal_targets_and_a_missing_row_has_its_reason(tmp_path):
    one, two = stores(tmp_path)
    runs = [save_model(tmp_path / mask, mask) for mask in ("causal", "history")]
    for run in runs:
        evaluate_into(run, loss_data=(one,), supervise="last")
    found = compare(runs)
    assert list(found.losses) == [one] and not found.notes and not found.pairings
    losses = [evaluation.load(run / "evaluation").losses[one] for run in runs]
    text = as_text(scores(found), 80)
    for loss in losses:
        assert f"{loss.nats_per_token:.4f}" in text and f"{loss.bits_per_byte:.4f}" in text
    evaluate_into(runs[0], loss_data=(one, two), supervise="last")
    assert compare(runs).notes == ("loss on two is left out: this store was not measured with history",)
    evaluate_into(runs[0], loss_data=(one,))
    with pytest.raises(UserError, match=r"targets differ \(causal 9, history 6\).*the same --supervise"):
        compare(runs)
    evaluate_into(runs[0], loss_data=(one,), supervise="last", max_seq_len=64)
    with pytest.raises(UserError, match="rows differ"):
        compare(runs)


def test_a_run_without_questions_is_named(runs, tmp_path):
    [store, _] = stores(tmp_path)
    data = write_lines(tmp_path / "q.jsonl", *QUESTIONS)
    evaluate_into(runs[0], data, loss_data=(store,))
    evaluate_into(runs[1], loss_data=(store,))
    found = compare(runs)
    assert found.notes == ("prefix was evaluated without questions (scripts.evaluate --data)",)
    assert len(found.losses) == 1 and not found.pairings


def test_questions_without_a_generated_answer_are_counted_and_said(runs, tmp_path):
    choices = {"question": "Peru?", "choices": ["Lima", "Cuzco"], "answer": 0}
    data = write_lines(tmp_path / "q.jsonl", *QUESTIONS[:3], choices)
    for run in runs:
        evaluate_into(run, data, answers="none")
    found = compare(runs)
    words = "3 questions without a generated answer (--answers none) are not compared"
    assert found.notes == (f"causal: {words}", f"prefix: {words}")
    assert [len(run.predictions) for run in found.runs] == [1, 1]
    for run in runs:
        evaluate_into(run, write_lines(tmp_path / "q.jsonl", *QUESTIONS[:3]), answers="none")
    with pytest.raises(UserError, match="nothing to compare: causal: 3 questions without a generated answer"):
        compare(runs)


def test_results_that_do_not_count_their_own_predictions_are_refused(runs):
    file = runs[0] / "evaluation/predictions.jsonl"
    file.write_text(file.read_text().replace('"is_correct": false', '"is_correct": true', 1))
    with pytest.raises(UserError, match="counts other predictions"):
        open_runs(runs)
    (runs[0] / "summary.json").write_text('{"seconds": "soon"}')
    mark_right(runs[0], 1)
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        open_runs(runs)


def test_the_questions_shown_are_those_that_tell_most(runs):
    found = compare(runs)
    assert telling_questions(found.runs, 3) == [1, 2, 3]
    assert shortest_question(found.runs[0].predictions).messages[0].content == "Peru 0?"


def test_the_mask_of_an_arm_is_drawn_where_no_answer_was_generated_too(runs, tmp_path):
    data = write_lines(tmp_path / "q.jsonl", *QUESTIONS)
    evaluate_into(runs[0], data, answers="none")
    copytree(runs[0] / "evaluation", tmp_path / "scores-1/scores")
    trial = SimpleNamespace(arm="causal", measured=[SimpleNamespace(address="scores-1")])
    results = {"experiment": {"hash": ""}, "arms": [{"name": "causal"}]}
    add_looks(results, [trial], tmp_path, tmp_path / "results.json")
    assert "Peru" in "".join(results["arms"][0]["mask"]["labels"])


def run_command(monkeypatch, capsys, *flags: str) -> str:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, flags)])
    command.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 40, 24])
def test_the_score_table_comes_last_and_fits_any_width_with_every_figure(
    runs, tmp_path, width, monkeypatch, capsys
):
    monkeypatch.setattr(plots, "_write", lambda figure, path: None)  # slow; others look at them
    monkeypatch.setattr("eval.loss_curves.save_picture", lambda figure, path: None)
    monkeypatch.setenv("COLUMNS", str(width))
    text = run_command(monkeypatch, capsys, "--runs", *runs, "--out", tmp_path / "out")
    last = text[text.index("exact match") :]
    for figure in ("25.0 (9-53)", "58.3 (32-81)", "0:01:01"):
        assert figure in last
    tables = text[text.index(f"model {runs[1]}") + len(str(runs[1])) + 6 :]
    assert max(map(len, tables.split("\n"))) <= max(width, 36)  # a name beside one whole figure
    assert "…" not in text and "Some answers" not in text and "Who sees whom" not in text
    assert "+33.3 (-13.1 to +70.2)" in text and "nothing about their masks" in last.replace("\n", " ")


def test_a_comparison_is_written_as_json_and_as_a_page(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "MOST_LABELS", 0)  # which take longest to draw
    run_command(monkeypatch, capsys, "--runs", *runs, "--out", tmp_path / "out")
    values = json.loads((tmp_path / "out/comparison.json").read_text())
    assert [run["label"] for run in values["runs"]] == ["causal", "prefix"]
    assert values["runs"][0]["scores"][0]["exact_match"] == 3 / 12
    pair = values["paired"][0]
    assert (pair["only_first"], pair["only_second"], pair["both"], pair["neither"]) == (2, 6, 1, 3)
    assert pair["p_value"] == pytest.approx(74 / 256) and pair["difference"] == 4 / 12
    page = re.sub(" +", " ", (tmp_path / "out/comparison.md").read_text())  # columns are straight
    assert "| q | 12 | 25.0 (9-53) | 58.3 (32-81) |" in page
    assert "| q | 12 | 2 | 6 | +33.3 (-13.1 to +70.2) | 0.29 |" in page
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("comparison.json", "comparison.md", "losses.png", "masks.png", "attention.png")
    }


def test_a_comparison_is_only_replaced_where_that_is_asked_for_and_then_as_a_whole(
    runs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(plots, "_write", lambda figure, path: None)
    out = tmp_path / "out"
    out.mkdir()
    (out / "comparison.md").touch()
    (out / "attention.png").touch()
    flags = "--runs", *runs, "--out", out
    with pytest.raises(UserError, match="out exists already; .*--overwrite"):
        run_command(monkeypatch, capsys, *flags)
    run_command(monkeypatch, capsys, *flags, "--overwrite")
    assert not (out / "attention.png").exists() and "prefix" in (out / "comparison.md").read_text()
    (out / "notes.txt").touch()
    with pytest.raises(UserError, match="holds something else"):
        run_command(monkeypatch, capsys, *flags, "--overwrite")


def test_losses_of_all_runs_are_drawn_into_one_picture_and_a_run_without_any_is_named(runs, tmp_path, capsys):
    command.draw_losses(open_runs(runs), tmp_path)
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert (
        f"losses.png is without prefix: no losses in {runs[1] / 'metrics.jsonl'}" in capsys.readouterr().out
    )
    panels = draw_losses({"a": metrics_of(10), "b $x$": metrics_of(10), "c": []}).axes
    assert [panel.get_title() for panel in panels] == ["training", "validation chats"]
    lines = panels[1].lines
    assert [line.get_label() for line in lines] == ["a, best 5.000", "b $x$, best 5.000"]
    assert (
        lines[0].get_color() != lines[1].get_color() and lines[0].get_linestyle() != lines[1].get_linestyle()
    )


def test_losses_that_leave_no_room_for_an_axis_leave_a_gap_in_the_picture(tmp_path):
    losses = enumerate((1e308, 2.0, 1.0, -1e308), start=1)
    save_losses(tmp_path / "x.png", {"a": [{"step": n, "loss": x, "learning_rate": x} for n, x in losses]})
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_losses_are_drawn_by_tokens_too_where_steps_of_runs_read_different_numbers_of_them():
    metrics = {"a": metrics_of(10), "b": metrics_of(100)}
    curves = by_step(metrics)
    assert curves["training"] == {run: [(2, 7.0), (4, 5.0)] for run in "ab"}
    assert by_tokens(curves, metrics) == {
        "training": {"a": [(20, 7.0), (40, 5.0)], "b": [(200, 7.0), (400, 5.0)]},
        "validation chats": {"a": [(30, 5.0)], "b": [(300, 5.0)]},
    }
    units = [panel.get_xlabel() for panel in draw_losses(metrics).axes]
    assert units == ["optimizer step", "optimizer step", "tokens", "tokens"]


def test_answers_and_masks_are_printed_on_request_and_nothing_steers_the_terminal(
    runs, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(plots, "_write", lambda figure, path: None)
    evil = chat_question("\x1b[2Jask\x07", "\x9b31mred", split="s\x1b[1m", kind="k\u202e")
    data = write_lines(tmp_path / "evil.jsonl", evil)
    for run in runs:
        evaluate_into(run, data)
    folder = runs[0].rename(tmp_path / "run\x1b]0;x\x07")
    flags = ("--num_answers", "3", "--show_masks")
    text = run_command(monkeypatch, capsys, "--runs", folder, runs[1], "--out", tmp_path / "out", *flags)
    page = (tmp_path / "out/comparison.md").read_text()
    for shown in (text, page):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown) and "\\x1b" in shown
    assert "Who sees whom" in text and "Some answers" in text and "\\x1b[2Jask" in text


def test_a_comparison_without_models_says_why_nothing_is_drawn(runs, tmp_path, monkeypatch, capsys):
    for run in runs:
        (run / "model.safetensors").unlink()
    text = run_command(monkeypatch, capsys, "--runs", *runs, "--out", tmp_path / "out")
    assert "Masks are not drawn" in text and "58.3 (32-81)" in text


def test_figures_are_never_shortened_and_columns_without_room_come_further_down():
    table = Table(
        ("name", "first run", "second"), (("long 名字 " * 3, "1" * 20, "2" * 20), (), ("b", "3", "4"))
    )
    for width in (10, 30, 45, 200):
        text = as_text(table, width)
        assert "1" * 20 in text and "2" * 20 in text and "…" not in text
    assert as_text(table, 200).count("\n") == 4
    assert as_text(table, 30).index("1" * 20) < as_text(table, 30).index("second")
    shown = "| a\\|b |   n |\n| ---- | --: |\n| x    |   1 |"
    assert as_markdown(Table(("a|b", "n"), (("x", "1"),))) == shown


def test_the_score_table_has_a_column_per_name_and_a_row_per_split_and_kind():
    cells = [Tally("s", "", "", 4, 1, 4, 0), Tally("s", "", "k", 2, 1, 2, 0)]
    table = score_table({"a": cells, "b": cells[:1]})
    assert table.header == ("exact match, %", "n", "a", "b")
    assert table.rows == (("s", "4", "25.0 (5-70)", "25.0 (5-70)"), ("  k", "2", "50.0 (9-91)", ""))
