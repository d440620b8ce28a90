"""The figures of every question, and which questions are asked."""

import json
from pathlib import Path

import pytest

from eval import evaluation
from eval.answers import Prediction, answer_questions, score_answers
from eval.items import losses_of, means, number_clusters, targets_of, tasks_of
from eval.questions import Question, load_questions, parse_question
from eval.served_model import open_model
from eval.serving_settings import EvaluationSettings
from model.errors import UserError
from tests.serving import chat_question, save_model, served_model, write_lines
from tests.test_answers import answer_score
from trainer.validation import Likelihood


def asked(record: dict) -> Question:
    return parse_question(record, "name", "file")


@pytest.mark.parametrize("strategy", ["causal", "prefix", "segment"])
def test_the_log_likelihood_is_that_of_the_first_accepted_answer_in_one_pass_under_the_served_mask(strategy):
    served = served_model(strategy)
    questions = [asked(chat_question("Lima " * n, "巴黎", "x")) for n in (3, 1, 9)]
    questions.append(asked({"context": "Lima. " * 5, "question": "Where?", "answers": ["The sol."]}))
    scores = score_answers(served, questions, batch_size=2)
    expected = [answer_score(served, question, question.answers[0]) for question in questions]
    assert scores == pytest.approx(expected, abs=1e-4)  # float32 sums of up to 30 terms
    assert max(scores) < 0


def test_the_log_likelihood_of_a_choice_is_that_of_the_right_one():
    served, choices = served_model("prefix"), ["Lima", "巴黎", "x"]
    question = asked({"question": "Capital?", "choices": choices, "answer": 1})
    [prediction] = answer_questions(served, [question], None, 1)
    assert prediction.log_likelihood == prediction.scores["sum"][1]
    assert prediction.finish_reason == "chosen"


def test_a_right_answer_that_does_not_fit_beside_its_question_has_no_log_likelihood():
    served = served_model("causal", context=64)
    fits, long = chat_question("Q", "Lima"), chat_question("Q", "Lima " * 60)
    scores = score_answers(served, [asked(long), asked(fits)], 8)
    assert scores[0] is None and scores[1] < 0


def test_questions_on_one_text_are_one_cluster_and_others_their_own():
    reading = {"context": "Lima.", "answers": ["A"]}
    records = [
        reading | {"question": "Q"},
        chat_question("Q", "A"),
        chat_question("Q", "A"),
        {"passage": "Lima.", "query": "R", "answer": "A"},
        chat_question("Q", "A", cluster="story"),
        chat_question("R", "A", cluster="story"),
        {"context": "Paris.", "question": "Q", "choices": ["A", "B"], "answer": 0},
    ]
    assert number_clusters(list(map(asked, records))) == [0, 1, 2, 0, 3, 3, 4]


def test_items_have_the_figures_of_each_split_and_of_its_kinds_where_it_has_several():
    def predicted(split: str, kind: str, text: str, score: float | None, cluster: str = "") -> Prediction:
        question = asked(chat_question("Q", "old town", split=split, kind=kind, cluster=cluster))
        return Prediction(question, text, "stop", text == "old town", log_likelihood=score)

    tasks = tasks_of(
        [
            predicted("a", "where", "old town", -0.12345678, "s"),
            predicted("a", "who", "the town", None),
            predicted("a", "where", "Lima", -2.0, "s"),
            predicted("b", "who", "old town", -1.0, "s"),
        ]
    )
    asked_in = {task: each.pop("questions") for task, each in tasks.items()}
    assert len({*asked_in.values()}) == 4, "other questions"
    assert tasks == {
        "a": {
            "clusters": [0, 1, 0],
            "metrics": {
                "log_likelihood": [-0.123457, None, -2.0],
                "exact_match": [1, 0, 0],
                "f1": [1.0, 0.666667, 0.0],
            },
        },
        "a/where": {
            "clusters": [0, 0],
            "metrics": {"log_likelihood": [-0.123457, -2.0], "exact_match": [1, 0], "f1": [1.0, 0.0]},
        },
        "a/who": {
            "clusters": [1],
            "metrics": {"exact_match": [0], "f1": [0.666667]},
        },
        "b": {
            "clusters": [0],
            "metrics": {"log_likelihood": [-1.0], "exact_match": [1], "f1": [1.0]},
        },
    }
    assert means(tasks)["a"] == pytest.approx(
        {"log_likelihood": -1.0617285, "exact_match": 1 / 3, "f1": 0.5555556}
    )


def test_losses_are_named_by_their_folders_where_these_differ():
    loss, without_text = Likelihood(2.0, 4, 1), Likelihood(2.0, 4, 0)
    assert losses_of({"x/val": loss, "y/test": without_text}) == {
        "val": {"nats_per_token": 0.5, "bits_per_byte": 2.88539},
        "test": {"nats_per_token": 0.5, "bits_per_byte": None},
    }
    assert list(losses_of({"x/val": loss, "y/val": loss})) == ["x/val", "y/val"]
    assert targets_of({"x/val": loss, "y/test": without_text}) == {"val": [4, 1], "test": [4, 0]}


def test_a_limit_keeps_every_kind_by_its_share_in_the_order_of_the_file(tmp_path):
    kinds = [*["one"] * 8, "two", "three"] * 20
    records = [chat_question(f"Q{n}", "A", id=str(n), kind=kind) for n, kind in enumerate(kinds)]
    path = write_lines(tmp_path / "q.jsonl", *records)
    found = load_questions([path], max_questions=20)
    places = [int(question.id) for question in found.questions]
    assert places == sorted(set(places)) and len(places) == 20
    counts = {kind: sum(kinds[n] == kind for n in places) for kind in ("one", "two", "three")}
    assert counts == {"one": 16, "two": 2, "three": 2}
    assert load_questions([path], max_questions=999) == load_questions([path])
    assert [q.id for q in load_questions([path], max_questions=1).questions] == ["0"]


def test_chats_that_a_limit_leaves_out_are_not_counted(tmp_path):
    chat = {"messages": [{"role": role, "content": role} for role in ("user", "assistant")]}
    path = write_lines(tmp_path / "q.jsonl", *[chat] * 9)
    assert load_questions([path], max_questions=4).from_chats == 4


def test_without_answers_only_likelihoods_are_found_and_choices_still_made(tmp_path):
    model, data = save_model(tmp_path / "model", "prefix"), tmp_path / "q.jsonl"
    choice = {"question": "Q", "choices": ["Lima", "x"], "answer": 0, "split": "choices"}
    write_lines(data, chat_question("Q", "A", split="free"), choice)
    out = tmp_path / "out"
    settings = EvaluationSettings(model="", data=(str(data),), out=str(out), answers="none")
    found = evaluation.evaluate(open_model(model), settings)
    evaluation.save(out, found)
    tasks = json.loads((out / "items.json").read_text())["tasks"]
    assert {task: set(entry["metrics"]) for task, entry in tasks.items()} == {
        "free": {"log_likelihood"},
        "choices": {"log_likelihood", "exact_match", "f1"},
    }
    assert [cell.split for cell in found.evaluation.cells] == ["choices"]
    assert evaluation.load(out) == found.evaluation
    assert evaluation.load_predictions(out) == found.predictions
    assert found.evaluation.facts.settings["answers"] == "none"
    assert not list(evaluation.announcements(load_questions([str(data)])))


def test_an_evaluation_of_an_earlier_version_is_still_read(tmp_path):
    model, data = save_model(tmp_path / "model", "prefix"), tmp_path / "q.jsonl"
    write_lines(data, chat_question("Q", "A"))
    settings = EvaluationSettings(model="", data=(str(data),), out=str(tmp_path / "out"), max_new_tokens=2)
    served = open_model(model)
    evaluation.save(settings.out, evaluation.evaluate(served, settings))
    forget(Path(settings.out) / "results.json", "means", "unscored")
    forget(Path(settings.out) / "predictions.jsonl", "log_likelihood", "f1", "cluster")
    [prediction] = evaluation.load_predictions(settings.out)
    assert prediction.log_likelihood is None and prediction.is_correct is False
    assert evaluation.find(served, settings) == evaluation.load(settings.out)


def forget(file: Path, *keys: str) -> None:
    values = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in values.items() if key not in keys}) + "\n")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_questions": 0, "data": ("q",)}, "--max_questions: expected at least 1, got 0"),
        ({"max_questions": 3, "loss_data": ("s",)}, "nothing without --data"),
        ({"answers": "none", "loss_data": ("s",)}, "nothing without --data"),
        ({"answers": "none", "compile": True, "data": ("q",)}, "--compile changes nothing"),
    ],
)
def test_settings_that_change_nothing_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        EvaluationSettings(model="m", **given)


def test_columns_name_the_keys_of_questions_and_choices_by_ours(tmp_path):
    theirs = {"stem": "Where?", "text": "Lima.", "right": "B", "options": ["x", "y"], "topic": "t"}
    path = write_lines(tmp_path / "q.jsonl", theirs)
    columns = ("question=stem", "context=text", "answer=right", "choices=options", "cluster=topic")
    settings = EvaluationSettings(model="", data=(path,), columns=columns)
    found = load_questions([path], columns=dict(column.split("=") for column in settings.columns))
    [question], ours = found.questions, {"question": "Where?", "context": "Lima.", "choices": ["x", "y"]}
    assert question == parse_question(ours | {"answer": 1, "cluster": "t"}, question.id, "q")
    assert found.unread_keys == ()
    with pytest.raises(UserError, match=r"columns: expected OURS=THEIRS.*choices.*got colour=red"):
        EvaluationSettings(model="", data=(path,), columns=("colour=red",))


def test_a_split_that_is_named_like_the_kind_of_another_keeps_its_questions():
    def predicted(split: str, kind: str) -> Prediction:
        return Prediction(asked(chat_question("Q", "old town", split=split, kind=kind)), "", "stop", True)

    tasks = tasks_of([predicted("a", "b"), predicted("a", "c"), predicted("a/b", "x"), predicted("a/b", "x")])
    assert {task: len(each["clusters"]) for task, each in tasks.items()} == {"a": 2, "a/b": 2, "a/c": 1}
