"""Answers generated and chosen, and the table of how many are right."""

import json

import pytest
import tokenizers
import torch

from dataset.conversation import Message, render
from dataset.tokenizer import Tokenizer
from eval import answers
from eval.answers import Prediction, answer_questions, read_prediction
from eval.chat import TextSampling
from eval.questions import parse_question
from model.layouts import prompt_blocks
from model.masks import Layout, causal_layout
from tests.serving import chat_question, saying_model, served_model, small_tokenizer

SHORT = TextSampling(max_new_tokens=6)


def predicted(split: str, language: str, kind: str, is_correct: bool, reason: str = "stop") -> Prediction:
    record = chat_question("Q", "A", split=split, language=language, kind=kind)
    question = parse_question(record, "name", "file")
    return Prediction(question, "A" if is_correct else "B", reason, is_correct)


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
        assert prediction.scores["sum"] == pytest.approx(scores, abs=1e-4)  # float32 sums of up to 30 terms
        assert prediction.text == question.choices[scores.index(max(scores))]
        assert prediction.is_correct == (prediction.text == question.answers[0])
        assert read_prediction(json.loads(json.dumps(prediction.record()))) == prediction
    [cell] = answers.tabulate(predictions)
    assert (cell.chosen, cell.stopped) == (3, 0)


def answer_score(served, question, text: str) -> float:
    """The log-probability of an answer and its end marker, by one pass over the rendered conversation."""
    rendered = render([*question.messages, Message("assistant", text)], served.tokenizer)
    ids = torch.from_numpy(rendered.ids.astype("int64"))[None]
    marks = (torch.from_numpy(bits) for bits in (rendered.targets, rendered.starts))
    documents, positions, *_ = causal_layout(*ids.shape)
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


def test_stop_strings_end_answers_and_do_not_belong_to_them():
    served = saying_model("世国的来Lima", "prefix", loops=True)
    asked = [parse_question(chat_question("Q", "世国的"), "n", "s")]
    [prediction] = answer_questions(served, asked, TextSampling(64, stop_strings=("来L",)), 1)
    assert (prediction.text, prediction.finish_reason, prediction.is_correct) == (
        "世国的",
        "stop_string",
        True,
    )


def test_an_answer_that_ends_inside_its_thought_is_wrong_and_counted():
    served = saying_model("<think>Lima", "prefix", loops=True)
    asked = [parse_question(chat_question("Q", "Lima"), "n", "s")]
    [prediction] = answer_questions(served, asked, TextSampling(max_new_tokens=9), 1)
    assert prediction.text.startswith("<think>Lima") and prediction.finish_reason == "length"
    [cell] = answers.tabulate([prediction])
    assert (cell.correct, cell.unfinished) == (0, 1)


def test_a_thought_is_known_from_an_answer_where_the_tokenizer_makes_its_tags_special(tmp_path):
    backend = tokenizers.Tokenizer.from_str(small_tokenizer()._backend.to_str())
    backend.add_special_tokens(["<think>", "</think>"])
    tokenizer = Tokenizer(backend)
    ids = [tokenizer.special("<think>"), *tokenizer.encode("hm"), tokenizer.special("</think>")]
    assert tokenizer.decode([*ids, *tokenizer.encode("7")], skip_special_tokens=True) == "<think>hm</think>7"


def test_choices_are_compared_by_their_sum_or_by_its_mean_over_characters_or_tokens():
    served, choices = served_model("prefix"), ["Lima", "巴黎 and Lima, the capital of Peru", "法国", "x"]
    question = parse_question({"question": "Capital?", "choices": choices, "answer": 1}, "n", "s")
    sums = [answer_score(served, question, text) for text in choices]
    sizes = {
        "sum": [1] * 4,
        "character": [len(text) for text in choices],
        "token": [len(served.tokenizer.encode(text)) + 1 for text in choices],
    }
    chosen = set()
    for rule, counts in sizes.items():
        [prediction] = answer_questions(served, [question], SHORT, 1, choice_by=rule)
        means = [total / count for total, count in zip(sums, counts, strict=True)]
        assert prediction.scores[rule] == pytest.approx(means, abs=1e-4)
        assert prediction.text == choices[means.index(max(means))]
        assert prediction.scores.keys() == sizes.keys()
        chosen.add(prediction.text)
    assert len(chosen) > 1
