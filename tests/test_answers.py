"""Exact match, its table and interval, the loss of stores, and evaluations that are kept."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dataset.conversation import Message, render
from dataset.formats import RecordError
from dataset.preparation import PreparationSettings, write_store
from dataset.token_store import TokenStore
from eval import answers, evaluation
from eval.answers import (
    Prediction,
    answer_questions,
    is_exact_match,
    load_questions,
    normalise,
    parse_question,
)
from eval.chat import TextSampling
from eval.comparison import open_runs, shortest_question, telling_questions
from eval.likelihood import store_likelihood
from eval.served_model import open_model
from eval.settings import EvaluationSettings
from eval.statistics import wilson_interval
from model.errors import UserError
from model.masks import Layout, causal_layout, prompt_blocks
from tests.serving import save_model, saying_model, served_model, small_tokenizer

SHORT = TextSampling(max_new_tokens=6)


def write_lines(path: Path, *records: dict) -> str:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return str(path)


def chat_question(text: str, *answers: str, **fields: str) -> dict:
    return {"conversations": [{"role": "user", "content": text}], "answers": list(answers), **fields}


def predicted(split: str, language: str, kind: str, is_correct: bool, reason: str = "stop") -> Prediction:
    record = chat_question("Q", "A", split=split, language=language, kind=kind)
    question = parse_question(record, "name", "file")
    return Prediction(question, "A" if is_correct else "B", reason, is_correct)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris.", "paris"),
        ("  the   Sol !", "The sol"),
        ("巴黎。", "巴黎"),
        ("ＡＢＣ", "abc"),
        ("１２", "12"),
        ("Straße", "STRASSE"),
        ("e\u0301", "é"),
        ("?", "?"),
    ],
)
def test_form_does_not_count(text, answer):
    assert is_exact_match(text, ["something else", answer])


@pytest.mark.parametrize(
    ("text", "answer"), [("10%", "10"), ("Paris, France", "Paris"), ("", "A"), ("-1", "1")]
)
def test_substance_counts(text, answer):
    assert not is_exact_match(text, [answer])
    assert normalise(text) != normalise(answer)


def test_wilson_intervals_equal_published_ones():
    # Newcombe 1998 (Statistics in Medicine 17), table I: 81 of 263 and 0 of 20 and 1 of 29
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_questions_are_read_from_chats_and_from_reading_comprehension(tmp_path):
    reading = {"id": 7, "context": "C", "question": "Q", "answers": ["A", "B"]}
    chat = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    path = write_lines(
        tmp_path / "dev.jsonl", reading, chat_question("Q", "A", split="s", language="zh"), chat
    )
    first, second, third = load_questions(path)
    assert (first.id, first.split, first.answers) == ("7", "dev", ("A", "B"))
    assert (second.split, second.language, second.messages[-1].content) == ("s", "zh", "Q")
    assert third.answers == ("A",) and [m.role for m in third.messages] == ["user"]
    assert first.messages[0].content.index("C") < first.messages[0].content.index("Q")
    squad = reading | {"answers": {"text": ["A", "B"], "answer_start": [0, 3]}}
    assert parse_question(squad, "name", "dev") == first
    turned = load_questions(path, "first")[0].messages[0].content
    assert turned.index("Q") < turned.index("C")


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [{"role": "user", "content": "Q"}]},
        {"conversations": [{"role": "user", "content": "Q"}], "answers": []},
        {"conversations": [{"role": "user", "content": "Q"}], "answers": ["A", 3]},
        {"conversations": [], "answers": ["A"]},
        {"conversations": [{"role": "assistant", "content": "A"}]},
        {"context": "C", "question": "Q", "answers": "A"},
        {"text": "T"},
    ],
)
def test_what_is_no_question_is_named_with_its_line(record, tmp_path):
    with pytest.raises(RecordError):
        parse_question(record, "name", "file")
    path = write_lines(tmp_path / "q.jsonl", chat_question("Q", "A"), record)
    with pytest.raises(UserError, match=r"q\.jsonl, line 2"):
        load_questions(path)


def test_batches_and_order_change_no_answer():
    served = served_model("prefix", stops=True)
    asked = [parse_question(chat_question("Lima " * n, "A"), str(n), "s") for n in (3, 9, 1, 6, 2)]
    together = answer_questions(served, asked, SHORT, batch_size=3)
    alone = [answer_questions(served, [question], SHORT, batch_size=1)[0] for question in asked]
    assert together == alone and len({p.text for p in together}) > 1


def test_a_question_longer_than_the_context_is_wrong_and_counted():
    served = served_model("causal", context=64)
    asked = [parse_question(chat_question(text, "A"), "n", "s") for text in ("Lima", "Lima " * 60)]
    [cell] = answers.tabulate(answer_questions(served, asked, SHORT, batch_size=8))
    assert (cell.questions, cell.correct, cell.too_long) == (2, 0, 1)


def test_the_table_counts_each_split_with_the_languages_and_kinds_it_has_several_of():
    predictions = [
        predicted("a", "zh", "where", True),
        predicted("a", "en", "where", False, "length"),
        predicted("a", "en", "who", True),
        predicted("b", "zh", "who", True),
        predicted("c", "zh", "", True),
        predicted("c", "en", "", True),
    ]
    counts = {
        (c.split, c.language, c.kind): (c.correct, c.questions, c.stopped)
        for c in answers.tabulate(predictions)
    }
    assert counts == {
        ("a", "", ""): (2, 3, 2),
        ("a", "", "where"): (1, 2, 1),
        ("a", "", "who"): (1, 1, 1),
        ("a", "en", ""): (1, 2, 1),
        ("a", "zh", ""): (1, 1, 1),
        ("a", "zh", "where"): (1, 1, 1),
        ("a", "en", "where"): (0, 1, 0),
        ("a", "en", "who"): (1, 1, 1),
        ("b", "", ""): (1, 1, 1),
        ("c", "", ""): (2, 2, 2),
        ("c", "zh", ""): (1, 1, 1),
        ("c", "en", ""): (1, 1, 1),
    }


@pytest.mark.parametrize("strategy", ["causal", "prefix"])
def test_the_choice_that_the_full_forward_finds_most_probable_is_taken(strategy):
    served = served_model(strategy)
    choices = ["Lima", "巴黎", "The sol.", "x"]
    records = [
        {"question": "Capital of Peru?", "choices": choices, "answer": 0},
        {"context": "Lima. " * 9, "question": "Where?", "choices": choices[::-1], "answer": 3},
        {**chat_question("它的货币呢？"), "choices": choices, "answer": 2},
    ]
    records[2].pop("answers")
    asked = [parse_question(record, str(n), "s") for n, record in enumerate(records)]
    predictions = answer_questions(served, asked, SHORT, batch_size=2)
    for question, prediction in zip(asked, predictions, strict=True):
        scores = [answer_score(served, question, text) for text in question.choices]
        assert prediction.scores == pytest.approx(scores, abs=1e-4)  # float32 sums of up to 30 terms
        assert prediction.text == question.choices[scores.index(max(scores))]
        assert prediction.is_correct == (prediction.text == question.answers[0])
        assert Prediction.from_record(json.loads(json.dumps(prediction.record()))) == prediction
    [cell] = answers.tabulate(predictions)
    assert (cell.chosen, cell.stop_rate) == (3, 0)


def answer_score(served, question, text: str) -> float:
    """The log-probability of an answer and its end marker, by one pass over the rendered conversation."""
    rendered = render([*question.messages, Message("assistant", text)], served.tokenizer)
    ids = torch.from_numpy(rendered.ids.astype("int64"))[None]
    marks = (torch.from_numpy(bits) for bits in (rendered.targets, rendered.starts))
    documents, positions, _ = causal_layout(*ids.shape)
    layout = Layout(documents, positions, prompt_blocks(served.prompt_mask, *marks)[None])
    with torch.no_grad():
        table = served.model(ids, layout)[0].log_softmax(-1)
    return float(sum(table[t - 1, ids[0, t]] for t in rendered.targets.nonzero()[0]))


def test_a_choice_that_does_not_fit_the_context_makes_its_question_too_long():
    record = {"question": "Q", "choices": ["Lima", "Lima " * 60], "answer": 0}
    [prediction] = answer_questions(
        served_model("causal", context=64), [parse_question(record, "n", "s")], SHORT, 1
    )
    assert (prediction.finish_reason, prediction.is_correct) == ("too_long", False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"choices": ["A"]}, "two or more"),
        ({"choices": "AB"}, "two or more"),
        ({"choices": ["A", " "]}, "two or more"),
        ({"choices": ["A", "A", "B"]}, "twice"),
        ({"answer": 2}, "0 to 1"),
        ({"answer": "A"}, "0 to 1"),
        ({"answer": True}, "0 to 1"),
        ({"question": 3}, "not a string"),
    ],
)
def test_a_choice_without_sense_is_refused_with_its_reason(change, reason):
    record = {"question": "Q", "choices": ["A", "B"], "answer": 0}
    with pytest.raises(RecordError, match=reason):
        parse_question(record | change, "n", "s")


@pytest.mark.parametrize(
    "others", [{"choices": []}, {"choices": {"A": "x"}}, {"choices": ["B"], "answer": None}]
)
def test_a_question_with_answers_is_free_whatever_choices_it_carries(others):
    question = parse_question({"context": "C", "question": "Q", "answers": ["A", "a"]} | others, "n", "s")
    assert (question.answers, question.choices) == (("A", "a"), ())
    assert parse_question(chat_question("Q", "A") | others, "n", "s").choices == ()


def test_stop_strings_end_answers_and_do_not_belong_to_them():
    served = saying_model("世国的来Lima", "prefix", loops=True)
    asked = [parse_question(chat_question("Q", "世国的"), "n", "s")]
    [prediction] = answer_questions(served, asked, TextSampling(64, stop_strings=("来L",)), 1)
    assert (prediction.text, prediction.finish_reason, prediction.is_correct) == (
        "世国的",
        "stop_string",
        True,
    )


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
    found = store_likelihood(served, store, max_seq_len=64, rows=3)
    nats = targets = 0
    for n in range(len(store)):
        ids = torch.from_numpy(store[n].ids.astype("int64"))[None]
        marks = (torch.from_numpy(bits) for bits in (store[n].targets, store[n].starts))
        documents, positions, _ = causal_layout(*ids.shape)
        layout = Layout(documents, positions, prompt_blocks(strategy, *marks)[None])
        with torch.no_grad():
            log_probabilities = served.model(ids, layout)[0].log_softmax(-1)
        for t in store[n].targets.nonzero()[0]:
            nats -= float(log_probabilities[t - 1, ids[0, t]])
            targets += 1
    assert found.targets == targets
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / (len(store) * len("巴黎 Lima".encode())))


def request(out: Path, *data: str, **settings) -> EvaluationSettings:
    return EvaluationSettings(model="", data=data, out=str(out), max_new_tokens=4, batch_size=8, **settings)


def test_an_evaluation_is_kept_and_found_until_anything_changes(tmp_path, store):
    questions = chat_question("Q\u2028", "A"), chat_question("R", "B", language="zh")
    model, data = save_model(tmp_path / "model", "prefix"), write_lines(tmp_path / "q.jsonl", *questions)
    served, asked = open_model(model), request(tmp_path / "out", data, loss_data=(str(store.path),))
    assert evaluation.find(served, asked) is None
    found, predictions = evaluation.evaluate(served, asked)
    evaluation.save(asked.out, found, predictions)
    assert evaluation.find(served, asked) == found
    assert evaluation.load_predictions(asked.out) == predictions
    assert evaluation.find(served, replace(asked, max_new_tokens=5)) is None
    assert evaluation.find(served, replace(asked, dtype="int8")) is None
    assert evaluation.find(replace(served, prompt_mask="causal"), asked) is None
    write_lines(Path(data), questions[0])
    assert evaluation.find(served, asked) is None
    write_lines(Path(data), *questions)
    assert evaluation.find(served, asked) == found
    with open(Path(asked.out) / "predictions.jsonl", "a") as file:
        file.write("{br")
    with pytest.raises(UserError, match="predictions.jsonl is damaged"):
        evaluation.load_predictions(asked.out)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert evaluation.find(served, asked) is None


def test_a_folder_that_holds_anything_else_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        evaluation.check_out(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        evaluation.check_out(tmp_path / "thesis.tex")


def test_runs_are_compared_over_the_same_questions_only(tmp_path):
    data = write_lines(tmp_path / "q.jsonl", chat_question("法国？", "巴黎"), chat_question("Peru", "Lima"))
    for mask in ("causal", "prefix"):
        evaluate_into(save_model(tmp_path / mask, mask), data)
    runs = open_runs([tmp_path / "causal", tmp_path / "prefix"])
    assert [run.label for run in runs] == ["causal", "prefix"]
    assert shortest_question(runs[0].predictions).answers == ("Lima",)
    right = replace(runs[0].predictions[1], is_correct=True)
    differing = [runs[0], replace(runs[1], predictions=(runs[1].predictions[0], right))]
    assert telling_questions(runs, 5) == [0, 1] and telling_questions(differing, 1) == [1]
    write_lines(Path(data), chat_question("Peru", "Lima"))
    evaluate_into(tmp_path / "causal", data)
    with pytest.raises(UserError, match="different questions"):
        open_runs([tmp_path / "causal", tmp_path / "prefix"])
    with pytest.raises(UserError, match="no evaluation"):
        open_runs([tmp_path])


def evaluate_into(model: Path, data: str) -> None:
    asked = request(model / "evaluation", data)
    evaluation.save(asked.out, *evaluation.evaluate(open_model(model), asked))
