"""Questions from files, answers in batches or chosen by likelihood, and the table of how many are right."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from dataset.conversation import Message, render
from dataset.formats import QuestionPosition, RecordError, parse_messages, read_answers
from dataset.prompts import prompt_of
from dataset.records import read_records
from dataset.sources import check_sources
from eval.answer_text import AnswerText
from eval.chat import TextSampling
from eval.served_model import ServedModel
from eval.statistics import wilson_interval
from model.errors import UserError
from model.generator import Generator, Prompt, Request

FINAL_PUNCTUATION = " .。!?,;:、…"


@dataclass(frozen=True)
class Question:
    """A conversation that ends before an answer, and the answers that count as right."""

    id: str
    split: str
    language: str
    kind: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    """answers of which the most probable is taken; empty where the model is to answer freely"""


@dataclass(frozen=True)
class Prediction:
    """What a model said to a question, and whether that is right."""

    question: Question
    text: str
    finish_reason: str
    """that of a completion, `chosen` among choices, or `too_long`"""
    is_correct: bool
    scores: tuple[float, ...] = ()
    """log-probability of each choice in nats"""

    def record(self) -> dict[str, Any]:
        """Return the line of `predictions.jsonl`."""
        said = {"prediction": self.text, "finish_reason": self.finish_reason, "is_correct": self.is_correct}
        return asdict(self.question) | said | ({"scores": self.scores} if self.scores else {})

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Prediction":
        """Return what `record` wrote."""
        values = {field.name: record[field.name] for field in fields(Question) if field.name in record}
        texts = {name: tuple(values.get(name, ())) for name in ("answers", "choices")}
        messages = tuple(
            Message(
                **{name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
            )
            for said in values["messages"]
        )
        question = Question(**values | texts | {"messages": messages})
        said = (record[name] for name in ("prediction", "finish_reason", "is_correct"))
        return cls(question, *said, tuple(record.get("scores", ())))


@dataclass(frozen=True)
class Cell:
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

    @property
    def exact_match(self) -> float:
        """Share of right answers."""
        return self.correct / self.questions

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of `exact_match`."""
        return wilson_interval(self.correct, self.questions)

    @property
    def stop_rate(self) -> float:
        """Share of free answers that ended by themselves; 0 where there are none."""
        return self.stopped / max(1, self.questions - self.chosen)


def normalise(text: str) -> str:
    """Return what is compared: Unicode NFKC, one case, single spaces, no final punctuation.

    "  Paris. " and "paris" are equal, "10%" and "10" are not.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip(FINAL_PUNCTUATION) or plain


def is_exact_match(text: str, answers: Iterable[str]) -> bool:
    """Say whether a text equals one of the accepted answers after `normalise`."""
    return normalise(text) in {normalise(answer) for answer in answers}


def load_questions(path: str | Path, question_position: QuestionPosition = "last") -> list[Question]:
    """Read the questions of a `.jsonl` file; raises `UserError` that names the line at fault."""
    check_sources([str(path)])
    questions = []
    for record in read_records([str(path)]):
        name = f"{path}:{record.line}"
        try:
            if record.value is None:
                raise RecordError(record.fault)
            questions.append(parse_question(record.value, name, Path(path).stem, question_position))
        except RecordError as error:
            raise UserError(f"{path}, line {record.line}: {error}") from None
    if not questions:
        raise UserError(f"{path} holds no questions; expected one JSON object per line")
    return questions


def parse_question(
    record: dict[str, Any], name: str, split: str, question_position: QuestionPosition = "last"
) -> Question:
    """Return the question of a record; `name` and `split` stand in for those that it lacks.

        {"conversations": […, user], "answers": […]}            also under "messages"
        {"conversations": […, user, assistant]}                 its last message is the accepted answer
        {"context": …, "question": …, "answers": […]}
        {"context"?: …, "question": …, "choices": […], "answer": 0}   or a conversation that ends with a user

    "answer" is the place of the right choice, counted from 0; the model is not shown the choices. Without it
    "answers" are those of a free question, whatever choices it carries. Raises `RecordError` with the reason.
    """
    choices = _choices(record)
    answers = _accepted(record, choices)
    if choices and "question" in record and "context" not in record:
        record = record | {"conversations": [{"role": "user", "content": record["question"]}]}
    turns = record.get("conversations") or record.get("messages")
    if answers and isinstance(turns, list):
        record = record | {"conversations": [*turns, {"role": "assistant", "content": answers[0]}]}
    elif choices:
        record = record | {"answers": answers}
    *messages, last = parse_messages(record, question_position)
    if last.role != "assistant" or not messages or messages[-1].role == "assistant":
        raise RecordError("expected a question before one answer")
    return Question(
        str(record.get("id", name)),
        str(record.get("split", split)),
        str(record.get("language", "")),
        str(record.get("kind", record.get("task", ""))),
        tuple(messages),
        tuple(answers or [last.content]),
        choices,
    )


def _choices(record: dict[str, Any]) -> tuple[str, ...]:
    choices, answer = record.get("choices"), record.get("answer")
    if not choices or (answer is None and record.get("answers")):
        return ()
    if not isinstance(choices, list) or not all(map(_is_text, choices)) or len(set(choices)) < 2:
        raise RecordError("choices are not a list of two or more texts")
    if len(set(choices)) < len(choices):
        raise RecordError("a choice stands twice")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise RecordError(f"answer is not the place of a choice, 0 to {len(choices) - 1}")
    return tuple(choices)


def _accepted(record: dict[str, Any], choices: tuple[str, ...]) -> list[str] | None:
    """Return the answers that count as right, None where a conversation is to end with the one that does."""
    if choices:
        return [choices[record["answer"]]]
    if record.get("answers") is None:
        return None
    answers = read_answers(record["answers"])
    if not all(map(_is_text, answers)):
        raise RecordError("answers are not a list of texts")
    return answers


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def answer_questions(
    served: ServedModel,
    questions: Sequence[Question],
    sampling: TextSampling,
    batch_size: int,
    report: Callable[[int], None] = lambda answered: None,
) -> list[Prediction]:
    """Answer all questions, in their order: the free ones `batch_size` at a time, the others by likelihood.

    A prompt longer than the context is a wrong answer with finish_reason `too_long`. `report` is called with
    the number of questions that were just done.
    """
    prompts = [prompt_of(render(q.messages, served.tokenizer, True), served.prompt_mask) for q in questions]
    capacity = served.model.config.max_position_embeddings
    generator, predictions = served.generator(), [Prediction(q, "", "too_long", False) for q in questions]
    free = [n for n, q in enumerate(questions) if not q.choices and len(prompts[n].ids) <= capacity]
    texts = [AnswerText(served.tokenizer, sampling.stop_strings) for _ in free]
    requests = [Request(prompts[n], sampling, text.is_stop) for n, text in zip(free, texts, strict=True)]
    for number, completion in generator.stream(requests, batch_size):
        n, text = free[number], texts[number].finish()
        correct = is_exact_match(text, questions[n].answers)
        predictions[n] = Prediction(questions[n], text, completion.finish_reason, correct)
        report(1)
    for n, question in enumerate(questions):
        if question.choices:
            predictions[n] = choose(served, generator, question, prompts[n])
            report(1)
    return predictions


def choose(served: ServedModel, generator: Generator, question: Question, prompt: Prompt) -> Prediction:
    """Take the choice that the model most probably answers: its tokens and the end marker after them.

    A question whose longest choice does not fit the context is `too_long`.
    """
    encoded = [[*served.tokenizer.encode(text), served.tokenizer.im_end_id] for text in question.choices]
    if len(prompt.ids) + max(map(len, encoded)) - 1 > generator.max_tokens:
        return Prediction(question, "", "too_long", False)
    scores = tuple(float(tokens.sum()) for tokens in generator.score(prompt, encoded))
    text = question.choices[scores.index(max(scores))]
    return Prediction(question, text, "chosen", text in question.answers, scores)


def tabulate(predictions: Sequence[Prediction]) -> list[Cell]:
    """Count right answers for each split, and in it for each language, kind and both if there are several."""
    languages, kinds = defaultdict(set), defaultdict(set)
    for question in (prediction.question for prediction in predictions):
        languages[question.split].add(question.language)
        kinds[question.split].add(question.kind)
    groups = defaultdict(list)
    for prediction in predictions:
        question = prediction.question
        named_languages = {"", question.language} if len(languages[question.split]) > 1 else {""}
        named_kinds = {"", question.kind} if len(kinds[question.split]) > 1 else {""}
        for language, kind in product(named_languages, named_kinds):
            groups[question.split, language, kind].append(prediction)
    return [_count(name, group) for name, group in sorted(groups.items())]


def _count(name: tuple[str, str, str], group: Sequence[Prediction]) -> Cell:
    correct = sum(prediction.is_correct for prediction in group)
    reasons = [prediction.finish_reason for prediction in group]
    counts = {"stopped": "stop", "too_long": "too_long", "chosen": "chosen"}
    counted = {field: reasons.count(reason) for field, reason in counts.items()}
    return Cell(*name, questions=len(group), correct=correct, **counted)
