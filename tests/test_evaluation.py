"""The loss of stores, and evaluations that are kept."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dataset.batch_settings import BatchSettings
from dataset.preparation import PreparationSettings, write_store
from dataset.token_store import TokenStore
from eval import evaluation
from eval.evaluation import store_likelihood
from eval.served_model import open_model
from eval.serving_settings import EvaluationSettings
from model.errors import UserError
from model.layouts import prompt_blocks
from model.masks import Layout, causal_layout
from scripts import evaluate as command
from tests.serving import chat_question, save_model, served_model, small_tokenizer, write_lines


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    folder = tmp_path_factory.mktemp("store")
    small_tokenizer().save(folder / "tokenizer")
    chats = (
        {
            "conversations": [
                {"role": "user", "content": "Q " * n},
                {"role": "assistant", "content": "巴黎 Lima"},
            ]
        }
        for n in range(1, 8)
    )
    data = write_lines(folder / "chats.jsonl", *chats)
    write_store(PreparationSettings("sft", (data,), str(folder / "tokenizer"), str(folder / "sft")))
    return TokenStore(folder / "sft")


@pytest.mark.parametrize("strategy", ["causal", "prefix"])
def test_the_loss_of_a_store_is_that_of_its_conversations_one_by_one(strategy, store):
    served = served_model(strategy)
    found = store_likelihood(served, store, BatchSettings(64, prompt_mask=strategy), rows=3)
    nats = targets = 0
    for n in range(len(store)):
        ids = torch.from_numpy(store[n].ids.astype("int64"))[None]
        marks = (torch.from_numpy(bits) for bits in (store[n].targets, store[n].starts))
        documents, positions, *_ = causal_layout(*ids.shape)
        layout = Layout(documents, positions, prompt_blocks(strategy, *marks)[None])
        with torch.no_grad():
            log_probabilities = served.model(ids, layout)[0].log_softmax(-1)
        for t in store[n].targets.nonzero()[0]:
            nats -= float(log_probabilities[t - 1, ids[0, t]])
            targets += 1
    assert found.targets == targets
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / (len(store) * len("巴黎 Lima".encode())))


def test_what_is_too_long_to_be_measured_is_told(store):
    told, length = [], int(sorted(store.lengths)[3])
    settings = BatchSettings(length, prompt_mask="causal")
    store_likelihood(served_model("causal"), store, settings, rows=3, tell=told.append)
    assert told == [f"{store.path}: documents shortened 3; rows have {length} tokens"]


def request(out: Path, *data: str, **settings) -> EvaluationSettings:
    return EvaluationSettings(model="", data=data, out=str(out), max_new_tokens=4, batch_size=8, **settings)


def kept_evaluation(folder: Path, store: TokenStore, *questions: dict):
    """A served model, what it was asked, and what was found and saved."""
    model, data = save_model(folder / "model", "prefix"), write_lines(folder / "q.jsonl", *questions)
    served, asked = open_model(model), request(folder / "out", data, loss_data=(str(store.path),))
    assert evaluation.find(served, asked) is None
    found = evaluation.evaluate(served, asked)
    evaluation.save(asked.out, found)
    return served, asked, found


def test_an_evaluation_is_found_again_and_another_one_is_refused_by_what_differs(tmp_path, store):
    questions = chat_question("Q\u2028", "A"), chat_question("R", "B", language="zh")
    served, asked, found = kept_evaluation(tmp_path, store, *questions)
    assert evaluation.find(served, asked) == found.evaluation
    assert evaluation.load_predictions(asked.out) == found.predictions
    before = {file.name: file.read_bytes() for file in Path(asked.out).iterdir()}
    for change, words in (
        ({"max_new_tokens": 5}, "--max_new_tokens was 4, now 5"),
        ({"dtype": "int8"}, "--dtype was float32, now int8"),
        ({"stop_strings": ("a", "b")}, "--stop_strings was none, now a b"),
        ({"supervise": "last"}, "--supervise was None, now last"),
        ({"loss_data": ()}, f"--loss_data {store.path} is no longer given"),
    ):
        with pytest.raises(UserError, match=f"holds another evaluation: {words};.*--overwrite"):
            evaluation.find(served, replace(asked, **change))
        assert evaluation.find(served, replace(asked, overwrite=True, **change)) is None
    served.model.set_masks(replace(served.model.config, prompt_mask="causal"))
    with pytest.raises(UserError, match="--prompt_mask was prefix, now causal"):
        evaluation.find(served, asked)
    served.model.set_masks(replace(served.model.config, prompt_mask="prefix"))
    write_lines(Path(asked.data[0]), questions[0])
    with pytest.raises(UserError, match=r"--data .*q\.jsonl has changed"):
        evaluation.find(served, asked)
    write_lines(Path(asked.data[0]), *questions)
    assert evaluation.find(served, replace(asked, overwrite=True)) == found.evaluation
    weights = served.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"file model\.safetensors has changed"):
        evaluation.find(served, asked)
    assert before == {file.name: file.read_bytes() for file in Path(asked.out).iterdir()}


def test_what_changes_while_it_is_measured_makes_no_result(tmp_path, store):
    model, data = (
        save_model(tmp_path / "model", "prefix"),
        write_lines(tmp_path / "q.jsonl", chat_question("Q", "A")),
    )
    asked, served = request(tmp_path / "out", data), open_model(model)
    weights = model / "model.safetensors"
    for file, change in (
        (Path(data), b'{"question": "R", "answer": "B"}\n'),
        (weights, weights.read_bytes()),
    ):

        def meanwhile(what: str, count: int, file=file, change=change) -> None:
            file.write_bytes(change[:-1] + b"\n")

        with pytest.raises(UserError, match=f"{file.name} has changed while it was measured; evaluate again"):
            evaluation.evaluate(served, asked, meanwhile)
    assert not (tmp_path / "out").exists()


def test_another_evaluation_that_came_meanwhile_is_not_replaced(tmp_path, store):
    _, asked, found = kept_evaluation(tmp_path, store, chat_question("Q", "A"))
    before = (Path(asked.out) / "results.json").read_bytes()
    with pytest.raises(UserError, match="exists already.*--overwrite"):
        evaluation.save(asked.out, found, asked.overwrite)
    assert (Path(asked.out) / "results.json").read_bytes() == before
    evaluation.save(asked.out, found, overwrite=True)


def test_a_template_among_the_settings_of_a_tokenizer_decides_a_result_too(tmp_path):
    model = save_model(tmp_path / "model", "causal")
    asked = EvaluationSettings(
        model=str(model), data=(write_lines(tmp_path / "q.jsonl", chat_question("Q", "A")),)
    )
    assert "tokenizer_config.json" not in evaluation.facts_of(open_model(model), asked).model
    (model / "chat_template.jinja").unlink()
    assert "tokenizer_config.json" in evaluation.facts_of(open_model(model), asked).model


def test_what_is_left_out_is_counted_and_listed_beside_the_results(tmp_path, store):
    unanswerable, broken = {"question": "Who?", "answers": []}, {"nothing": 1}
    chat = {"messages": [{"role": role, "content": role} for role in ("user", "assistant")]}
    served, asked, found = kept_evaluation(
        tmp_path, store, chat_question("Q", "A"), unanswerable, broken, chat
    )
    told = []
    evaluation.evaluate(served, asked, tell=told.append)
    assert told[0] == "answers to generate: 2, of up to 4 tokens each"
    assert told[1] == "note: chats whose last answer is taken as the right one: 1"
    assert "without an answer: 1 (first: " in told[2] and "q.jsonl line 2: its question" in told[2]
    assert (
        "broken: 1 (first: " in told[3]
        and "line 3: no question and answers under the keys nothing" in told[3]
    )
    assert (found.evaluation.unanswerable, found.evaluation.broken) == (1, 1)
    assert [f"note: {line}" for line in evaluation.load(asked.out).notes] == told[1:4]
    lines = (Path(asked.out) / "rejects.jsonl").read_text().splitlines()
    assert [(record["line"], record["is_broken"]) for record in map(json.loads, lines)] == [
        (2, False),
        (3, True),
    ]


@pytest.mark.parametrize("strategy", ["causal", "prefix"])
def test_arms_are_measured_on_the_same_targets_where_these_are_named(tmp_path, store, strategy):
    model = save_model(tmp_path / "model", strategy)
    asked = EvaluationSettings(model=str(model), loss_data=(str(store.path),), supervise="last")
    [loss] = evaluation.evaluate(open_model(model), asked).evaluation.losses.values()
    assert loss.targets == sum(int(store[n].targets.sum()) for n in range(len(store)))
    with pytest.raises(UserError, match="supervise suffix does not go with prompt_mask"):
        evaluation.evaluate(open_model(model), replace(asked, supervise="suffix"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (("cells", 0, "correct", "1"), r"cells\[0\].correct: expected int, got \"1\""),
        (("cells", 0, "correct", -1), "expected int, got -1"),
        (("cells", 0, "correct", 9), "9 of 1 questions"),
        (("cells", 0, "questions", 0), "0 questions"),
        (("cells", 0, "questions", True), "expected int, got true"),
        (("cells", 0, "split", None), "split: expected str, got null"),
        (("cells", 0, "other", 1), "unknown key other"),
        (("cells", None), "cells: expected tuple"),
        (("losses", 3), "losses: expected dict"),
        (("facts", []), "facts: expected an object"),
        (("prompt_mask", 7), "prompt_mask: expected str, got 7"),
        (("prompt_mask", "sideways"), "prompt_mask"),
    ],
)
def test_a_damaged_result_is_one_line(tmp_path, store, damage, words):
    _, asked, _ = kept_evaluation(tmp_path, store, chat_question("Q", "A"))
    file = Path(asked.out) / "results.json"
    values = place = json.loads(file.read_text())
    *keys, last, value = damage
    for key in keys:
        place = place[key]
    place[last] = value
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"results\.json is damaged.*{words}"):
        evaluation.load(asked.out)


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-1.5", '"1"', "[" * 3000 + "]" * 3000, "7" * 400, "7" * 5000]
)
def test_a_loss_that_is_no_number_is_one_line(tmp_path, store, number):
    _, asked, found = kept_evaluation(tmp_path, store, chat_question("Q", "A"))
    file = Path(asked.out) / "results.json"
    [loss] = found.evaluation.losses.values()
    file.write_text(file.read_text().replace(f'"nats": {loss.nats!r}', f'"nats": {number}'))
    with pytest.raises(UserError, match=r"results\.json is"):
        evaluation.load(asked.out)


@pytest.mark.parametrize(
    "line",
    [
        "{br",
        "[]",
        '{"prediction": 3}',
        "[" * 3000 + "]" * 3000,
        '{"id": ' + "7" * 5000 + "}",
        '{"is_correct": 1}',
        '{"answers": []}',
        '{"messages": [{"role": "king", "content": ""}]}',
        '{"scores": {"sum": [NaN]}}',
    ],
)
def test_a_damaged_prediction_is_one_line(tmp_path, store, line):
    _, asked, _ = kept_evaluation(tmp_path, store, chat_question("Q", "A"))
    file = Path(asked.out) / "predictions.jsonl"
    good = json.loads(file.read_text())
    if line.startswith("{") and line.endswith("}") and len(line) < 1000:
        line = json.dumps(good | json.loads(line))
    with open(file, "a") as end:
        end.write(line + "\n")
    with pytest.raises(UserError, match=r"predictions\.jsonl is damaged \(line 2: "):
        evaluation.load_predictions(asked.out)


def test_a_folder_that_holds_anything_else_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        evaluation.check_out(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        evaluation.check_out(tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "nothing to measure: give --data .questions., --loss_data .stores. or --tasks"),
        ({"tasks": ("a",), "data": ("b",), "answers": "none"}, "--data, --answers: nothing .* with --tasks"),
        ({"data": ("b",), "limit": 3}, "--limit: nothing is changed by it without --tasks"),
        ({"tasks": ("a",), "limit": 0}, "--limit: expected at least 1, got 0"),
    ],
)
def test_settings_that_measure_nothing_or_change_nothing_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        EvaluationSettings(model="m", **given)


def test_tasks_without_the_harness_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    flags = ["--model", str(save_model(tmp_path / "m", "causal")), "--tasks", "arc_easy"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *flags])
    with pytest.raises(UserError, match="pip install -r requirements-optional.txt"):
        command.main()
