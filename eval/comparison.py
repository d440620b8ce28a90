"""Evaluated runs beside each other: questions that all were asked, in pairs, and losses on equal targets.

How this is shown is `eval/comparison_report.py`'s.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

from eval.answers import Prediction, Tally, tabulate
from eval.evaluation import RESULTS, Evaluation, load, load_predictions, model_facts
from eval.questions import Question
from eval.served_model import tell_apart
from eval.statistics import PairedCounts, count_pairs
from eval.tables import grouped
from model.errors import UserError
from model.typed_json import read_file
from trainer.validation import Likelihood


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, and the training that it belongs to where that is known."""

    path: Path
    """as it was named: the folder of a training or of an evaluation"""
    model: Path
    """directory of the model"""
    label: str
    """tells the run from the others: its prompt mask, or its folder's name where masks are the same"""
    evaluation: Evaluation
    predictions: tuple[Prediction, ...]
    seconds: float | None
    """of the training; None where nothing says it"""
    unanswered: int = 0
    """questions for which no answer was generated"""

    @cached_property
    def cells(self) -> list[Tally]:
        """Return the cells of all languages together."""
        return [cell for cell in tabulate(self.predictions) if not cell.language]


@dataclass(frozen=True)
class Pairing:
    """A run against the first one, on the questions of a split and kind; "" counts all kinds together."""

    first: str
    second: str
    split: str
    kind: str
    counts: PairedCounts


@dataclass(frozen=True)
class Comparison:
    """What can be said of runs beside each other."""

    runs: tuple[Evaluated, ...]
    """with the predictions for those questions only that all were asked, in the same order"""
    pairings: tuple[Pairing, ...]
    losses: dict[str, list[Likelihood]]
    """of all runs over the same targets, by store"""
    notes: tuple[str, ...]
    """what is left out, and why"""


def compare(paths: Sequence[str | Path]) -> Comparison:
    """Compare evaluations; `UserError` where one is missing or damaged, or nothing is common to all."""
    runs, notes = with_shared_questions(open_runs(paths))
    losses, missing = _losses(runs)
    notes = (*_doubts(runs), *notes, *missing)
    if not runs[0].predictions and not losses:
        raise UserError(f"nothing to compare: {'; '.join(notes)}")
    return Comparison(runs, tuple(_pairings(runs)), losses, notes)


def open_runs(paths: Sequence[str | Path]) -> list[Evaluated]:
    """Read evaluations: each lies in a folder, or in evaluation/ of a run directory."""
    given = [Path(path) for path in paths]
    folders = [path if (path / RESULTS).is_file() else path / "evaluation" for path in given]
    runs = list(map(_open, given, folders))
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("--runs: expected different runs, got one of them twice")
    labels = tell_apart([run.evaluation.prompt_mask for run in runs], [run.model for run in runs])
    labels = labels if len(set(labels)) == len(labels) else [str(path) for path in given]
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def _open(path: Path, folder: Path) -> Evaluated:
    evaluation, predictions = load(folder), load_predictions(folder)
    if tuple(tabulate(predictions)) != evaluation.cells:
        fault = f"{folder}: {RESULTS} counts other predictions than lie there"
        raise UserError(f"{fault}; evaluate again, with --overwrite")
    answered = tuple(prediction for prediction in predictions if prediction.is_correct is not None)
    unanswered = len(predictions) - len(answered)
    model = path if path != folder else _model_of(folder, evaluation)
    return Evaluated(path, model, "", evaluation, answered, _training_seconds(model), unanswered)


def _model_of(folder: Path, evaluation: Evaluation) -> Path:
    """Return the run directory around an evaluation, else the model's directory as it was named then."""
    around = folder.resolve().parent
    is_run = folder.resolve().name == "evaluation" and (around / "config.json").is_file()
    return around if is_run else Path(evaluation.model)


def _doubts(runs: Sequence[Evaluated]) -> Iterator[str]:
    ways = [run.evaluation.facts.settings for run in runs]
    for name in sorted(set().union(*ways) - {"prompt_mask", "max_seq_len", "supervise"}):
        if len({*(values := [str(way.get(name)) for way in ways])}) > 1:
            yield f"they were evaluated with different --{name} ({', '.join(values)})"
    for run in runs:
        if (run.model / "config.json").is_file() and model_facts(run.model) != run.evaluation.facts.model:
            yield f"{run.label}: {run.model} is another model now than was evaluated; evaluate it again"
        if run.unanswered:
            asked = f"{run.unanswered:,} questions without a generated answer (--answers none)"
            yield f"{run.label}: {asked} are not compared"


def _training_seconds(model: Path) -> float | None:
    file = model / "summary.json"
    advice = "take it away: the comparison only loses the training time"
    if not file.is_file():
        return None
    seconds = read_file({"seconds?": float}, file, advice).get("seconds")
    if seconds is not None and seconds < 0:
        raise UserError(f"{file} is damaged (seconds: {seconds}); {advice}")
    return seconds


def with_shared_questions(runs: Sequence[Evaluated]) -> tuple[tuple[Evaluated, ...], tuple[str, ...]]:
    """Return the runs with the questions that all were asked, in the order of the first; and the others.

    Questions are the same if split, messages, accepted answers and choices are; one that is asked twice pairs
    with itself in order.
    """
    named = [dict(_named(run.predictions)) for run in runs]
    shared = [name for name in named[0] if all(name in each for each in named)]
    without = [run for run in runs if not run.predictions]
    if len(without) == len(runs):
        return tuple(runs), ()
    never = (run.label for run in without if not run.unanswered)
    notes = [f"{label} was evaluated without questions (scripts.evaluate --data)" for label in never]
    for split in [] if without else dict.fromkeys(name[0] for each in named for name in each):
        asked = [sum(name[0] == split for name in each) for each in named]
        paired = sum(name[0] == split for name in shared)
        if max(asked) > paired:
            counts = ", ".join(f"{run.label} {count:,}" for run, count in zip(runs, asked, strict=True))
            notes.append(f"{split}: {paired:,} questions were asked of all and are compared ({counts})")
    pairs = zip(runs, named, strict=True)
    return tuple(replace(run, predictions=tuple(map(of.get, shared))) for run, of in pairs), tuple(notes)


def _named(predictions: Sequence[Prediction]) -> Iterator[tuple[tuple, Prediction]]:
    seen: Counter[tuple] = Counter()
    for prediction in predictions:
        asked = prediction.question
        name = asked.split, asked.messages, asked.answers, asked.choices
        yield (*name, seen[name]), prediction
        seen[name] += 1


def _pairings(runs: Sequence[Evaluated]) -> Iterator[Pairing]:
    first = runs[0]
    for second in runs[1:]:
        pairs = list(zip(first.predictions, second.predictions, strict=True))
        for cell in first.cells:
            group = [
                (one.is_correct, two.is_correct)
                for one, two in pairs
                if one.question.split == cell.split and cell.kind in ("", one.question.kind)
            ]
            yield Pairing(first.label, second.label, cell.split, cell.kind, count_pairs(group))


def _losses(runs: Sequence[Evaluated]) -> tuple[dict[str, list[Likelihood]], list[str]]:
    """Return the losses on stores that all were measured on over the same targets, and what is left out."""
    found, notes, measured = {}, [], [run.evaluation for run in runs]
    contents = [{each.facts.loss_data.get(path, path): path for path in each.losses} for each in measured]
    for content, path in {key: path for each in contents for key, path in each.items()}.items():
        losses = [each.losses.get(paths.get(content)) for each, paths in zip(measured, contents, strict=True)]
        if fault := _fault_of(runs, losses):
            notes.append(f"loss on {Path(path).name} is left out: {fault}")
        else:
            found[path] = losses
    return found, notes


def _fault_of(runs: Sequence[Evaluated], losses: Sequence[Likelihood | None]) -> str:
    """Return why losses on a store do not compare, nothing where they do."""
    if missing := [run.label for run, loss in zip(runs, losses, strict=True) if loss is None]:
        return f"this store was not measured with {', '.join(missing)}"
    if len({(loss.targets, loss.text_bytes) for loss in losses}) > 1:
        counts = (f"{run.label} {loss.targets:,}" for run, loss in zip(runs, losses, strict=True))
        return f"its targets differ ({', '.join(counts)}); evaluate all with the same --supervise"
    lengths = [str(run.evaluation.facts.settings.get("max_seq_len")) for run in runs]
    return f"rows differ (--max_seq_len {', '.join(lengths)})" if len({*lengths}) > 1 else ""


def telling_questions(runs: Sequence[Evaluated], count: int) -> list[int]:
    """Return places in `predictions`: for each split in turn first where runs differ, then any others."""
    first, places = runs[0].predictions, range(len(runs[0].predictions))
    telling = sorted(places, key=lambda n: len({run.predictions[n].is_correct for run in runs}) == 1)
    by_split = grouped(telling, lambda n: first[n].question.split)
    rounds = zip_longest(*by_split.values())
    return [n for each in rounds for n in each if n is not None][:count]


def shortest_question(predictions: Sequence[Prediction]) -> Question:
    """Return the question with the fewest characters, its answer included; an ASCII one if there is one.

    Raises `UserError` where there is none.
    """
    if not predictions:
        raise UserError("there are no questions")

    def size(question: Question) -> tuple[bool, int]:
        text = "".join(m.content for m in question.messages) + question.answers[0]
        return not text.isascii(), len(text)

    return min((prediction.question for prediction in predictions), key=size)
