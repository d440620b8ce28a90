"""Every question with its figures, for statistics over many evaluations: `items.json`.

    {"tasks": {"stories": {"questions": "5fd1…", "clusters": [0, 0, 1], "metrics":
                           {"log_likelihood": [-0.2, -1.5, null], …}}, …},
     "losses": {"validation": {"nats_per_token": 1.2, "bits_per_byte": 0.9}},
     "targets": {"validation": [5210, 9134]}, "left_out": 0}

Higher is better for every metric; null stands where a question has no figure. A loss is that of so many
targets, which stand for so many bytes of text. Records that are no questions with answers are left out.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from eval.answers import Prediction
from eval.questions import Question
from trainer.validation import Likelihood

Tasks = dict[str, dict[str, Any]]


def tasks_of(predictions: Sequence[Prediction]) -> Tasks:
    """Return clusters and metrics of the questions of each split, and of each kind where it has several.

    Questions of one text or fact have one cluster, whatever the task.
    """
    groups, kinds = defaultdict(list), defaultdict(set)  # of places by (split, kind), () for all kinds
    for n, question in enumerate(prediction.question for prediction in predictions):
        groups[question.split, ""].append(n)
        groups[question.split, f"/{question.kind}"].append(n)
        kinds[question.split].add(question.kind)
    clusters = number_clusters([prediction.question for prediction in predictions])
    several = {split for split, names in kinds.items() if len(names) > 1}
    return {
        split + kind: {
            "questions": digest_of([predictions[n].question for n in places]),
            "clusters": [clusters[n] for n in places],
            "metrics": _metrics([predictions[n] for n in places]),
        }
        for (split, kind), places in sorted(groups.items())
        if not kind or (split in several and (split + kind, "") not in groups)
    }


def digest_of(questions: Sequence[Question]) -> str:
    """Return what tells questions from others: right answers, choices and clusters, however they are put."""
    named = [[question.answers, question.choices, question.cluster] for question in questions]
    return sha256(json.dumps(named).encode()).hexdigest()[:16]


def number_clusters(questions: Sequence[Question]) -> list[int]:
    """Return a number for the cluster of each question; one without a name is a cluster of its own."""
    names = [question.cluster or n for n, question in enumerate(questions)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


def _metrics(predictions: Sequence[Prediction]) -> dict[str, list[float | None]]:
    """Return the figures of each metric that at least one of the questions has."""
    figures = {
        "log_likelihood": [_rounded(prediction.log_likelihood) for prediction in predictions],
        "exact_match": [None if p.is_correct is None else int(p.is_correct) for p in predictions],
        "f1": [_rounded(prediction.f1) for prediction in predictions],
    }
    return {name: values for name, values in figures.items() if any(v is not None for v in values)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def means(tasks: Tasks) -> dict[str, dict[str, float]]:
    """Return the mean of each metric of each task, over the questions that have it."""
    return {
        task: {
            name: fmean(value for value in values if value is not None)
            for name, values in entry["metrics"].items()
        }
        for task, entry in tasks.items()
    }


def losses_of(losses: Mapping[str, Likelihood]) -> dict[str, dict[str, float | None]]:
    """Return the losses by the names of the stores' folders, or by paths where folders share a name."""
    return {
        name: {"nats_per_token": _rounded(loss.nats_per_token), "bits_per_byte": _rounded(loss.bits_per_byte)}
        for name, loss in _named(losses).items()
    }


def targets_of(losses: Mapping[str, Likelihood]) -> dict[str, list[int]]:
    """Return by the same names how many targets, and bytes of text, the losses are of."""
    return {name: [loss.targets, loss.text_bytes] for name, loss in _named(losses).items()}


def _named(losses: Mapping[str, Likelihood]) -> dict[str, Likelihood]:
    names = [Path(path).name for path in losses]
    named = names if len({*names}) == len(names) else list(losses)
    return dict(zip(named, losses.values(), strict=True))
