"""Answers to questions, generated in batches or chosen by likelihood, and the table of how many are right."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from typing import Any

from dataset.conversation import render
from dataset.prompts import prompt_of
from eval.answer_text import AnswerText
from eval.matching import f1, final_answer, is_exact_match
from eval.questions import Question
from eval.scoring import score, score_pairs
from eval.served_model import ServedModel
from eval.serving_settings import ChoiceBy, TextSampling
from eval.statistics import wilson_interval
from model.generator import Generator, Prompt, Request
from model.prompt_lookup import answers_by_lookup
from model.typed_json import read_as


@dataclass(frozen=True)
class Prediction:
    """What a model said to a question, and whether that is right."""

    question: Question
    text: str
    finish_reason: str
    """that of a completion, `chosen` among choices, `too_long`, or `unanswered` where none was generated"""
    is_correct: bool | None
    """None where no answer was generated"""
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """log-probability of each choice in nats: by `sum`, and by its mean over each `character` and `token`"""
    log_likelihood: float | None = None
    """log-probability in nats of the first accepted answer and its end marker; None where it does not fit"""

    @property
    def f1(self) -> float | None:
        """Return the share of words that are right; None where no answer was generated."""
        return None if self.is_correct is None else f1(self.text, self.question.answers)

    @property
    def is_unfinished(self) -> bool:
        """Say whether the answer ends inside its thought, before it says anything."""
        return final_answer(self.text) is None

    def record(self) -> dict[str, Any]:
        """Return the line of `predictions.jsonl`."""
        said = {"prediction": self.text, "finish_reason": self.finish_reason, "is_correct": self.is_correct}
        measured = {"log_likelihood": self.log_likelihood, "f1": self.f1}
        return asdict(self.question) | said | measured | ({"scores": self.scores} if self.scores else {})


def read_prediction(record: Any) -> Prediction:
    """Return what `Prediction.record` wrote; raises `ValueError` that names the value at fault."""
    given = dict(read_as(dict[str, Any], record, "line"))
    given.pop("f1", None)  # for readers of the file; told again from the text
    asked = {each.name: given.pop(each.name) for each in fields(Question) if each.name in given}
    said = {"text" if name == "prediction" else name: value for name, value in given.items()}
    return read_as(Prediction, said | {"question": asked}, "line")


@dataclass(frozen=True)
class Tally:
    """One line of the result table; `language` and `kind` are empty where all are counted together."""

    split: str
    language: str
    kind: str
    questions: int
    correct: int
    stopped: int
    """answers that ended by themselves"""
    too_long: int
    """questions that do not fit the context; they count as wrong"""
    chosen: int = 0
    """questions with choices, which end no answer"""
    unfinished: int = 0
    """answers that end inside their thought; they count as wrong"""

    def __post_init__(self) -> None:
        """Refuse counts that are those of no table (`ValueError`)."""
        counts = (self.correct, self.stopped, self.too_long, self.chosen, self.unfinished)
        if self.questions < max(1, *counts):
            raise ValueError(f"{max(counts)} of {self.questions} questions")

    @property
    def exact_match(self) -> float:
        """Share of right answers."""
        return self.correct / self.questions

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of `exact_match`."""
        return wilson_interval(self.correct, self.questions)


def answer_questions(
    served: ServedModel,
    questions: Sequence[Question],
    sampling: TextSampling | None,
    batch_size: int,
    report: Callable[[int], None] = lambda answered: None,
    choice_by: ChoiceBy = "sum",
    prompt_lookup: int = 0,
) -> list[Prediction]:
    """Answer all questions, in their order: the free ones `batch_size` at a time, the others by likelihood.

    A prompt longer than the context is a wrong answer with finish_reason `too_long`. Without `sampling` the
    free ones stay `unanswered`. `report` is called with the number of questions that were just done.
    With `prompt_lookup` the free ones are answered one by one, with so many guesses a call.
    """
    prompts = _prompts(served, questions)
    capacity = served.model.config.max_position_embeddings
    without = ("", "too_long", False) if sampling else ("", "unanswered", None)
    generator, predictions = served.generator(), [Prediction(q, *without) for q in questions]
    free = [n for n, q in enumerate(questions) if not q.choices and len(prompts[n].ids) <= capacity]
    free = free if sampling else []
    form = served.tokenizer.form
    opened = form.opening if form.closing else ""  # the beginning of a thought, which stands in the prompt
    texts = [AnswerText(served.tokenizer, sampling.stop_strings) for _ in free]
    requests = [Request(prompts[n], sampling, text.is_stop) for n, text in zip(free, texts, strict=True)]
    stream = generator.stream(requests, batch_size)
    if prompt_lookup:
        stream = answers_by_lookup(generator, requests, prompt_lookup)
    for number, completion in stream:
        n, text = free[number], opened + texts[number].finish()
        correct = is_exact_match(text, questions[n].answers)
        predictions[n] = Prediction(questions[n], text, completion.finish_reason, correct)
        report(1)
    for n, question in enumerate(questions):
        if question.choices:
            predictions[n] = choose(served, generator, question, prompts[n], choice_by)
            report(1)
    return predictions


def score_answers(
    served: ServedModel,
    questions: Sequence[Question],
    batch_size: int,
    report: Callable[[int], None] = lambda scored: None,
) -> list[float | None]:
    """Return the log-probability in nats of the first accepted answer of each question, with its end marker.

    None where they do not fit into the context. `report` is called with the number of questions just done.
    """
    prompts, scores = _prompts(served, questions), [None] * len(questions)
    encoded = [_encode_answer(served, question.answers[0]) for question in questions]
    generator = served.generator()
    fits = [n for n, ids in enumerate(encoded) if len(prompts[n].ids) + len(ids) - 1 <= generator.max_tokens]
    for place, scored in score_pairs(generator, [(prompts[n], encoded[n]) for n in fits], batch_size):
        scores[fits[place]] = scored.total
        report(1)
    return scores


def _prompts(served: ServedModel, questions: Sequence[Question]) -> list[Prompt]:
    return [prompt_of(render(q.messages, served.tokenizer, True), served.prompt_mask) for q in questions]


def _encode_answer(served: ServedModel, text: str) -> list[int]:
    tokenizer = served.tokenizer
    return [*tokenizer.encode(tokenizer.form.lead + text), tokenizer.im_end_id]


def choose(
    served: ServedModel, generator: Generator, question: Question, prompt: Prompt, choice_by: ChoiceBy = "sum"
) -> Prediction:
    """Take the choice that the model most probably answers: its tokens and the end marker after them.

    `choice_by` compares their log-probability, or its mean over the characters of the choice or over these
    tokens, which favour no short one. A question whose longest choice does not fit the context is `too_long`.
    """
    encoded = [_encode_answer(served, text) for text in question.choices]
    if len(prompt.ids) + max(map(len, encoded)) - 1 > generator.max_tokens:
        return Prediction(question, "", "too_long", False)
    sums = [each.total for each in score(generator, prompt, encoded)]
    sizes = {"sum": [1] * len(sums), "character": map(len, question.choices), "token": map(len, encoded)}
    scores = {
        name: tuple(total / size for total, size in zip(sums, of, strict=True)) for name, of in sizes.items()
    }
    text = question.choices[scores[choice_by].index(max(scores[choice_by]))]
    right = sums[question.choices.index(question.answers[0])]
    return Prediction(question, text, "chosen", text in question.answers, scores, right)


def tabulate(predictions: Sequence[Prediction]) -> list[Tally]:
    """Count right answers for each split, and in it for each language, kind and both if there are several.

    Questions without an answer generated are not counted.
    """
    answered = [prediction for prediction in predictions if prediction.is_correct is not None]
    languages, kinds = defaultdict(set), defaultdict(set)
    for question in (prediction.question for prediction in answered):
        languages[question.split].add(question.language)
        kinds[question.split].add(question.kind)
    groups = defaultdict(list)
    for prediction in answered:
        question = prediction.question
        named_languages = {"", question.language} if len(languages[question.split]) > 1 else {""}
        named_kinds = {"", question.kind} if len(kinds[question.split]) > 1 else {""}
        for language, kind in product(named_languages, named_kinds):
            groups[question.split, language, kind].append(prediction)
    return [_count(name, group) for name, group in sorted(groups.items())]


def _count(name: tuple[str, str, str], group: Sequence[Prediction]) -> Tally:
    correct = sum(prediction.is_correct for prediction in group)
    reasons = [prediction.finish_reason for prediction in group]
    counts = {"stopped": "stop", "too_long": "too_long", "chosen": "chosen"}
    counted = {field: reasons.count(reason) for field, reason in counts.items()}
    unfinished = sum(prediction.is_unfinished for prediction in group)
    return Tally(*name, questions=len(group), correct=correct, unfinished=unfinished, **counted)
