"""One model against question files and token stores: what was found, kept, and not computed twice."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from dataset.batch_settings import BatchSettings
from dataset.batches import Batch, BatchStream
from dataset.documents import documents_of
from dataset.formats import read_columns
from dataset.messages import shown
from dataset.printing import NOTE
from dataset.sources import check_sources, describe_source
from dataset.token_store import TokenStore, read_manifest
from eval.answers import Prediction, Tally, answer_questions, read_prediction, score_answers, tabulate
from eval.items import losses_of, means, targets_of, tasks_of
from eval.questions import LeftOut, Question, QuestionSet, load_questions
from eval.served_model import ServedModel
from eval.serving_settings import OF_TASKS, QUESTION_KEYS, EvaluationSettings, TextSampling
from model.adapter import base_folders
from model.errors import UserError
from model.files import as_json, check_place, whole_folder
from model.strategies import STRATEGIES
from model.typed_json import read_file, read_lines
from trainer.validation import Likelihood, TextBytes, left_out, measure

RESULTS, PREDICTIONS, REJECTS = "results.json", "predictions.jsonl", "rejects.jsonl"
ITEMS = "items.json"
FILES = (RESULTS, PREDICTIONS, REJECTS, ITEMS)
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")
"""what decides answers beside weights"""
AGAIN = "evaluate again, with --overwrite"
NO_FACTS = {"model", "data", "loss_data", "out", "overwrite", "device", "prompt_lookup", "tasks", *OF_TASKS}
"""settings that decide no result, or are told by the content of files"""
STATES = {(True, True): "has changed", (False, True): "is new", (True, False): "is no longer given"}
"""what has become of a file that was there before or not, and is there now or not"""


@dataclass(frozen=True)
class Facts:
    """Everything that decides a result; with equal ones nothing needs to be computed again."""

    model: dict[str, str]
    """sha256 of each file of the model"""
    data: dict[str, str]
    """sha256 of each question file"""
    loss_data: dict[str, str]
    """sha256 of each token store's list of files with their checksums"""
    settings: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What was found."""

    model: str
    """directory of the model"""
    prompt_mask: str
    facts: Facts
    cells: tuple[Tally, ...]
    losses: dict[str, Likelihood]
    """by token store"""
    unanswerable: int = 0
    """questions that were left out, as they have no answer"""
    broken: int = 0
    """records of question files that could not be read"""
    means: dict[str, dict[str, float]] = field(default_factory=dict)
    """of each metric by task: a split, or split/kind"""
    unscored: int = 0
    """questions whose right answer does not fit into the context with them, and has no log-likelihood"""
    notes: tuple[str, ...] = ()
    """what was told of questions and stores of which a part is not measured"""

    def __post_init__(self) -> None:
        """Refuse what no evaluation finds (`ValueError`)."""
        if self.prompt_mask not in STRATEGIES or any(loss.nats < 0 for loss in self.losses.values()):
            raise ValueError("prompt_mask or nats have impossible values")


@dataclass(frozen=True)
class Found:
    """An evaluation with all that it was found from."""

    evaluation: Evaluation
    predictions: tuple[Prediction, ...]
    left_out: tuple[LeftOut, ...] = ()


def evaluate(
    served: ServedModel,
    settings: EvaluationSettings,
    report: Callable[[str, int], None] = lambda what, count: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Found:
    """Answer the questions and measure the stores.

    `report` gets what was done, and how many of it; `tell` lines about what is going to be done. Raises
    `UserError` for unusable questions or stores before anything is computed, and for what changes meanwhile.
    """
    facts = facts_of(served, settings)
    stores = {path: TokenStore(path, served.tokenizer) for path in settings.loss_data}
    length = min(settings.max_seq_len, served.model.config.max_position_embeddings)
    batches = BatchSettings(length, prompt_mask=served.prompt_mask, supervise=settings.supervise)
    for store in stores.values():
        batches.resolved(store.kind)
        if store.kind == "preference":
            raise UserError(f"{store.path} holds pairs of answers; expected texts or chats in --loss_data")
    most, columns = settings.max_reject_fraction, read_columns(settings.columns, QUESTION_KEYS)
    asked = load_questions(settings.data, settings.question_position, most, settings.max_questions, columns)
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        tell(f"{NOTE}{line}")

    if (free := sum(not question.choices for question in asked.questions)) and settings.answers == "generate":
        tell(f"answers to generate: {free:,}, of up to {settings.max_new_tokens} tokens each")
    for line in announcements(asked):
        note(line)
    if any(len(question.messages) > 2 for question in asked.questions) and served.forgets:
        note(served.forgets)
    predictions = _predict(served, asked.questions, settings, report)
    losses = {
        path: store_likelihood(
            served, store, batches, settings.batch_size, partial(report, f"targets of {path}"), note
        )
        for path, store in stores.items()
    }
    if changes := differences(facts, facts_of(served, settings)):
        raise UserError(f"{'; '.join(changes)} while it was measured; evaluate again what no longer changes")
    broken = sum(record.is_broken for record in asked.left_out)
    evaluation = Evaluation(
        str(served.path),
        served.prompt_mask,
        facts,
        tuple(tabulate(predictions)),
        losses,
        len(asked.left_out) - broken,
        broken,
        means(tasks_of(predictions)),
        sum(prediction.log_likelihood is None for prediction in predictions),
        tuple(notes),
    )
    return Found(evaluation, tuple(predictions), asked.left_out)


def _predict(
    served: ServedModel,
    questions: Sequence[Question],
    settings: EvaluationSettings,
    report: Callable[[str, int], None],
) -> list[Prediction]:
    """Answer the questions, and find how probable the right answers are."""
    sampling = TextSampling(settings.max_new_tokens, stop_strings=settings.stop_strings)
    sampling = sampling if settings.answers == "generate" else None
    answered = partial(report, f"of {len(questions)} questions answered")
    rows = settings.batch_size
    ways = settings.choice_by, settings.prompt_lookup
    predictions = answer_questions(served, questions, sampling, rows, answered, *ways)
    free = [n for n, question in enumerate(questions) if not question.choices]
    scored = partial(report, f"of {len(free)} right answers scored")
    for n, score in zip(free, score_answers(served, [questions[n] for n in free], rows, scored), strict=True):
        predictions[n] = replace(predictions[n], log_likelihood=score)
    return predictions


def store_likelihood(
    served: ServedModel,
    store: TokenStore,
    settings: BatchSettings,
    rows: int,
    report: Callable[[int], None] = lambda targets: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Likelihood:
    """Return the likelihood of a token store's targets, those that a training with these settings would have.

    `rows` rows are computed at a time, then `report` gets the number of their targets, and `tell` what is
    too long to be measured. Raises `UserError` for a store that does not go with the settings.
    """
    stream = BatchStream(documents_of([store], settings))
    if words := left_out(stream.describe()):
        tell(f"{store.path}: {words}; rows have {stream.settings.max_seq_len} tokens")

    def reported() -> Iterator[Batch]:
        for batch in stream.batches(epoch=0, rows_per_step=rows):
            yield batch
            report(batch.num_targets)

    return measure(served.model, reported(), TextBytes(served.tokenizer))


def announcements(asked: QuestionSet) -> Iterator[str]:
    """Yield what a user is to know of the questions: what is not asked, and how the others are read."""
    if asked.from_chats:
        yield f"chats whose last answer is taken as the right one: {asked.from_chats:,}"
    if asked.not_asked:
        yield f"questions not asked, as --max_questions says: {asked.not_asked:,}"
    if asked.unread_keys:
        yield f"keys that are not read: {shown(asked.unread_keys)}"
    if asked.absent_columns:
        yield f"keys of --columns that no record has: {shown(asked.absent_columns)}"
    for is_broken, what in ((False, "without an answer"), (True, "broken")):
        if group := [record for record in asked.left_out if record.is_broken == is_broken]:
            first = f"{group[0].file} line {group[0].line}: {group[0].reason}"
            yield f"records left out, {what}: {len(group):,} (first: {first}); {REJECTS} in --out lists them"


def facts_of(served: ServedModel, settings: EvaluationSettings) -> Facts:
    """Return everything that decides the result: weights, tokenizer, mask, data and settings."""
    check_sources(settings.data)
    values = {name: value for name, value in asdict(settings).items() if name not in NO_FACTS}
    values["prompt_mask"] = served.prompt_mask
    stores = {path: json.dumps(read_manifest(path)["files"], sort_keys=True) for path in settings.loss_data}
    return Facts(
        model_facts(served.path),
        {path: describe_source(path)["sha256"] for path in settings.data},
        {path: sha256(listed.encode()).hexdigest() for path, listed in stores.items()},
        json.loads(json.dumps(values)),
    )


def model_facts(path: Path) -> dict[str, str]:
    """Return digests of the files of a model directory, and of those that it adapts."""
    files = {file.name: file for file in _deciding(path)}
    files |= {f"base/{file.name}": file for each in base_folders(path) for file in _deciding(each)}
    return {name: describe_source(str(file))["sha256"] for name, file in files.items()}


def _deciding(folder: Path) -> list[Path]:
    """Return the files of a model directory that decide what it answers."""
    named = [folder / name for name in ("adapter_config.json", *MODEL_FILES)]
    if not named[-1].is_file():  # the chat template may stand elsewhere
        named.append(folder / "tokenizer_config.json")
    return [*sorted(folder.glob("*model*.safetensors")), *filter(Path.is_file, named)]


def differences(there: Facts, wanted: Facts) -> list[str]:
    """Return in words where two evaluations differ, settings as flags."""
    found = [
        f"--{name} was {_shown(there.settings.get(name))}, now {_shown(wanted.settings.get(name))}"
        for name in sorted(there.settings.keys() | wanted.settings)
        if there.settings.get(name) != wanted.settings.get(name)
    ]
    for kind, what in (("model", "file"), ("data", "--data"), ("loss_data", "--loss_data")):
        before, after = getattr(there, kind), getattr(wanted, kind)
        others = [name for name in before | after if before.get(name) != after.get(name)]
        found += [f"{what} {name} {STATES[name in before, name in after]}" for name in others]
    return found


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def check_out(folder: str | Path, *own: str) -> None:
    """Raise `UserError` when a folder holds anything but files of `own` patterns, which would be replaced."""
    folder = Path(folder)
    check_place(folder)
    names = [file.name for file in folder.iterdir()] if folder.exists() else []
    if others := [name for name in names if not any(fnmatchcase(name, each) for each in own)]:
        raise UserError(f"--out {folder} holds something else ({min(others)}); choose a new folder")


def save(folder: str | Path, found: Found, overwrite: bool = True) -> None:
    """Write results, predictions, items and, for what was left out, `rejects.jsonl`: all or none."""
    check_out(folder, *FILES)
    with whole_folder(folder, overwrite or not (Path(folder) / RESULTS).is_file()) as written:
        _write_lines(written / PREDICTIONS, [prediction.record() for prediction in found.predictions])
        if found.left_out:
            _write_lines(written / REJECTS, [asdict(record) for record in found.left_out])
        tasks, losses = tasks_of(found.predictions), found.evaluation.losses
        items = {"tasks": tasks, "losses": losses_of(losses), "targets": targets_of(losses)}
        (written / ITEMS).write_text(as_json(items) + "\n", encoding="utf-8")
        text = as_json(asdict(found.evaluation), indent=2) + "\n"
        (written / RESULTS).write_text(text, encoding="utf-8")


def _write_lines(file: Path, records: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(as_json(record) + "\n" for record in records), encoding="utf-8")


def find(served: ServedModel, settings: EvaluationSettings) -> Evaluation | None:
    """Return the evaluation in `out` if it is the requested one.

    Raises `UserError` for a folder that holds something else: another evaluation only goes with `overwrite`.
    """
    if settings.out is None:
        return None
    check_out(settings.out, *FILES)
    if not (Path(settings.out) / RESULTS).is_file():
        return None
    wanted = facts_of(served, settings)
    try:
        there = load(settings.out)
    except UserError:
        if settings.overwrite:
            return None
        raise
    if there.facts == wanted or settings.overwrite:
        return there if there.facts == wanted else None
    fault = f"--out {settings.out} holds another evaluation: {'; '.join(differences(there.facts, wanted))}"
    raise UserError(f"{fault}; choose another folder, or replace it with --overwrite")


def load(folder: str | Path) -> Evaluation:
    """Read what `save` wrote; `UserError` where there is nothing of the kind."""
    file = Path(folder) / RESULTS
    if not file.is_file():
        raise UserError(f"no evaluation in {folder}; python -m scripts.evaluate --out {folder} … makes one")
    return read_file(Evaluation, file, AGAIN)


def load_predictions(folder: str | Path) -> tuple[Prediction, ...]:
    """Read the predictions that `save` wrote, in the order of the question files."""
    return tuple(read_lines(read_prediction, Path(folder) / PREDICTIONS, AGAIN))
