"""Exact match: questions from files, answers in batches, and the table of how many are right."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from dataset.conversation import Message, QuestionPosition, RecordError, parse_messages, render
from dataset.sources import check_sources, read_records
from eval.chat import prompt_of
from eval.served_model import ServedModel
from eval.statistics import wilson_interval
from model.errors import UserError
from model.generator import Request
from model.sampling import Sampling

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


@dataclass(frozen=True)
class Prediction:
    """What a model said to a question, and whether that is right."""

    question: Question
    text: str
    finish_reason: str
    is_correct: bool

    def record(self) -> dict[str, Any]:
        """Return the line of `predictions.jsonl`."""
        said = {"prediction": self.text, "finish_reason": self.finish_reason, "is_correct": self.is_correct}
        return asdict(self.question) | said

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Prediction":
        """Return what `record` wrote."""
        values = {field.name: record[field.name] for field in fields(Question)}
        messages = tuple(Message(**message) for message in values["messages"])
        question = Question(**values | {"messages": messages, "answers": tuple(values["answers"])})
        return cls(question, record["prediction"], record["finish_reason"], record["is_correct"])


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
        """Share of answers that ended by themselves."""
        return self.stopped / self.questions


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

    Raises `RecordError` with the reason.
    """
    answers = record.get("answers")
    if answers is not None and not (isinstance(answers, list) and answers and all(map(_is_text, answers))):
        raise RecordError("answers are not a list of texts")
    turns = record.get("conversations", record.get("messages"))
    if answers and isinstance(turns, list):
        record = record | {"conversations": [*turns, {"role": "assistant", "content": answers[0]}]}
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
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def answer_questions(
    served: ServedModel,
    questions: Sequence[Question],
    sampling: Sampling,
    batch_size: int,
    report: Callable[[int], None] = lambda answered: None,
) -> list[Prediction]:
    """Answer all questions, in their order, `batch_size` at a time.

    A prompt longer than the context is a wrong answer with finish_reason `too_long`. `report` is called with
    the number of questions that were just done.
    """
    prompts = [prompt_of(render(q.messages, served.tokenizer, True), served.prompt_mask) for q in questions]
    capacity = served.model.config.max_position_embeddings
    generator, predictions = served.generator(), [Prediction(q, "", "too_long", False) for q in questions]
    fitting = [n for n, prompt in enumerate(prompts) if len(prompt.ids) <= capacity]
    requests = [Request(prompts[n], sampling) for n in fitting]
    for number, completion in generator.stream(requests, batch_size):
        n = fitting[number]
        text = served.tokenizer.decode(completion.ids, skip_special_tokens=True)
        correct = is_exact_match(text, questions[n].answers)
        predictions[n] = Prediction(questions[n], text, completion.finish_reason, correct)
        report(1)
    return predictions


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
    stopped, too_long = reasons.count("stop"), reasons.count("too_long")
    return Cell(*name, questions=len(group), correct=correct, stopped=stopped, too_long=too_long)
