"""What an experiment has found: from the records of its cells to `results.json`, with nothing left to taste.

What is compared, by which number, and when a difference counts, stands in the experiment. How it is shown is
`eval/report.py`'s.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from eval.cells import Cell
from eval.effects import Effect, compare_paired, holm, look_level
from eval.evidence import Evidence, differences, prove, scores_of
from eval.experiment import A_A, Experiment
from eval.verdicts import UNITS, answer, verdict
from model.errors import UserError


@dataclass(frozen=True)
class Scores:
    """The scores of every item of one task by one metric; higher is better."""

    clusters: list[int]
    by_trial: dict[tuple[str, int], list[float | None]]
    """(arm, seed) to a score per item; None for an item that could not be scored"""

    def of(self, arm: str, seeds: Iterable[int], kept: np.ndarray) -> np.ndarray:
        """Return (seeds, items) of an arm."""
        return np.array([self.by_trial[arm, seed] for seed in seeds], float)[:, kept]

    def kept(self) -> np.ndarray:
        """Return (items,), True where every trial has a score."""
        return ~np.isnan(np.array(list(self.by_trial.values()), float)).any(axis=0)


def analyse(evidence: Evidence, command: str) -> dict[str, Any]:
    """Return the content of results.json; raises `UserError` where arms differ in what they do not name."""
    experiment, scores = evidence.experiment, _scores(evidence)
    if not scores:
        raise UserError("no seed was measured with every arm; " + "; ".join(evidence.failed.values()))
    _check_primary(experiment, scores)
    looks, alpha = experiment.decision.looks, experiment.decision.alpha
    alpha = look_level(looks, alpha) if looks else alpha
    comparisons = [each for pair in experiment.pairs for each in _compare(evidence, scores, pair, alpha)]
    _adjust(comparisons, alpha, experiment.decision.equivalence)
    has_a_a = any(trial.arm == A_A for trial in evidence.whole)
    a_a = list(_compare(evidence, scores, (A_A, experiment.baseline), alpha)) if has_a_a else []
    for each in a_a:
        each["is_primary"] = False
    return {
        "experiment": {
            "name": experiment.name,
            "question": experiment.question,
            "hash": experiment.hash,
            "command": command,
            "seeds": evidence.seeds,
            "decision": asdict(experiment.decision)
            | {"looks": list(experiment.looks), "alpha_of_look": alpha},
            "primary": asdict(experiment.primary),
            "tuned": evidence.tuned,
        },
        "answer": answer(experiment, comparisons),
        "arms": [_arm(evidence, name, named) for name, named in experiment.named.items()],
        "comparisons": comparisons,
        "a_a": a_a,
        "scores": list(_means(evidence, scores)),
        "curves": list(_curves(evidence)),
        "disagreements": _disagreements(evidence),
        "cells": list(_cells(evidence)),
        "machine": _first(evidence, "machine"),
        "versions": _first(evidence, "versions"),
    }


def _scores(evidence: Evidence) -> dict[tuple[str, str], Scores]:
    """Return the scores by (task, metric), of tasks that every trial was measured on."""
    found: dict[tuple[str, str], Scores] = {}
    for trial in evidence.whole:
        for task, measured in scores_of(trial, evidence.results).items():
            for metric, values in measured["metrics"].items():
                scores = found.setdefault((task, metric), Scores(measured["clusters"], {}))
                scores.by_trial[trial.arm, trial.seed] = values
    return {
        key: scores
        for key, scores in found.items()
        if len(scores.by_trial) == len(evidence.whole) and scores.kept().any()
    }


def _check_primary(experiment: Experiment, scores: dict[tuple[str, str], Scores]) -> None:
    primary = experiment.primary
    if (primary.task, primary.metric) not in scores:
        there = "; ".join(f"{task} {metric}" for task, metric in scores)
        raise UserError(f"primary: expected a task and metric that all arms have ({there}), got {primary}")


def _compare(
    evidence: Evidence, scores: dict[tuple[str, str], Scores], pair: Sequence[str], alpha: float
) -> Iterable[dict[str, Any]]:
    """Yield a pair of arms on each task by each metric, the primary one first."""
    (arm, baseline), primary = pair, evidence.experiment.primary
    bound = evidence.experiment.decision.equivalence
    order = sorted(scores, key=lambda key: key != (primary.task, primary.metric))
    for task, metric in order:
        each = scores[task, metric]
        kept, seeds = each.kept(), evidence.seeds
        effect = compare_paired(
            each.of(baseline, seeds, kept), each.of(arm, seeds, kept), np.array(each.clusters)[kept], alpha
        )
        is_primary = (task, metric) == (primary.task, primary.metric)
        yield {
            "task": task,
            "metric": metric,
            "unit": UNITS.get(metric, ""),
            "is_primary": is_primary,
            "baseline": baseline,
            "arm": arm,
            **asdict(effect),
            "p_holm": None,
            "equivalence_p": effect.equivalence(bound) if is_primary and bound else None,
            "verdict": verdict(effect, effect.p_value, None, alpha),
        }


def _adjust(comparisons: list[dict[str, Any]], alpha: float, bound: float | None) -> None:
    """Correct p for what was tried: the primary metric over pairs, all else over the tasks of its metric."""
    families: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for each in comparisons:
        if each["is_primary"]:
            families.setdefault(("primary",), []).append(each)
        elif "/" not in each["task"]:  # the kinds of a split describe it, and are no claims
            families.setdefault((each["metric"], each["arm"], each["baseline"]), []).append(each)
    for family in families.values():
        for each, p in zip(family, holm([one["p_value"] for one in family]), strict=True):
            each["p_holm"] = p
            each["verdict"] = verdict(Effect(**_effect(each)), p, each["equivalence_p"], alpha)


def _effect(comparison: dict[str, Any]) -> dict[str, Any]:
    return {name: comparison[name] for name in Effect.__dataclass_fields__}


def _arm(evidence: Evidence, name: str, named: dict[str, Any]) -> dict[str, Any]:
    base = evidence.experiment.baseline
    return {
        "name": name,
        "named": named,
        "cost": _cost(evidence, name),
        "proof": prove(evidence, name, base),
        "differs_because": differences(evidence, name, base),
        "mask": None,
        "attention": [],
    }


def _cost(evidence: Evidence, arm: str) -> dict[str, float]:
    """Return what an arm costs for one seed, all of its trainings together."""
    trials = [[each["training"] for each in evidence.trainings(trial).values()] for trial in evidence.of(arm)]
    sums = {
        key: fmean(sum(each[key] for each in trial) for trial in trials)
        for key in ("flops", "tokens", "seconds")
    }
    return sums | {"parameters": max((each["parameters"] for each in trials[0]), default=0)}


def _means(evidence: Evidence, scores: dict[tuple[str, str], Scores]) -> Iterable[dict[str, Any]]:
    """Yield the mean of each arm on each task, with its interval over seeds."""
    for (task, metric), each in scores.items():
        kept = each.kept()
        for arm in dict.fromkeys(trial.arm for trial in evidence.whole):
            values = each.of(arm, evidence.seeds, kept)
            own = compare_paired(np.zeros_like(values), values, np.array(each.clusters)[kept])
            yield {
                "task": task,
                "metric": metric,
                "unit": UNITS.get(metric, ""),
                "arm": arm,
                "mean": own.arm_mean,
                "interval": own.interval,
                "seeds": own.seeds,
                "items": own.items,
            }


def _curves(evidence: Evidence) -> Iterable[dict[str, Any]]:
    """Yield the course of each training of each arm: mean and range over seeds."""
    for arm in evidence.experiment.named:
        courses: dict[str, dict[int, list[float]]] = {}
        for trial in evidence.of(arm):
            for stage, result in evidence.trainings(trial).items():
                for step, loss in _course(result["curve"]):
                    courses.setdefault(stage, {}).setdefault(step, []).append(loss)
        for stage, course in courses.items():
            lines = {
                name: [summary(losses) for losses in course.values()]
                for name, summary in (("mean", fmean), ("low", min), ("high", max))
            }
            yield {"stage": stage, "arm": arm, "steps": list(course), **lines, "seeds": len(evidence.seeds)}


def _course(curve: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """Return steps and losses: of the first validation store if it was measured often, else of training."""
    stores = [point["validation"] for point in curve if "validation" in point]
    own = [
        (point["step"], point["nats_per_token"]) for point in curve if point.get("validation") in stores[:1]
    ]
    if len(own) > 2:
        return own
    return [(point["step"], point["loss"]) for point in curve if point.get("loss") is not None]


def _disagreements(evidence: Evidence) -> list[dict[str, Any]]:
    """Return questions that arms answer differently with the first seed."""
    first = evidence.seeds[0]
    trials = {t.arm: t for t in evidence.whole if t.seed == first and t.arm in evidence.experiment.named}
    said = {
        arm: [each for cell in trial.measured for each in evidence.results[cell.address].get("said", [])]
        for arm, trial in trials.items()
    }
    found = []
    for together in zip(*said.values(), strict=False):
        if (
            len({each["question"] for each in together}) == 1
            and len({each["answer"] for each in together}) > 1
        ):
            answers = dict(zip(said, (each["answer"] for each in together), strict=True))
            found.append(
                {key: together[0][key] for key in ("task", "question", "expected")} | {"answers": answers}
            )
    return found


def _cells(evidence: Evidence) -> Iterable[dict[str, Any]]:
    """Yield every cell that says something, once, with the arms that it serves."""
    arms: dict[str, list[str]] = {}
    cells: dict[str, tuple[Cell, int]] = {}
    for trial in evidence.trials:
        for cell in trial.cells.values():
            cells.setdefault(cell.address, (cell, trial.seed))
            arms.setdefault(cell.address, []).append(trial.arm)
    for address, (cell, seed) in cells.items():
        record, fault = evidence.records.get(address, {}), evidence.failed.get(address)
        if not (record or cell.tells or fault):
            continue
        yield {
            "address": address,
            "stage": cell.stage,
            "arms": list(dict.fromkeys(arms[address])),
            "seed": seed if cell.tells else None,
            "status": "finished" if record else "failed" if fault else "missing",
            "seconds": record.get("seconds"),
            "commit": record.get("commit"),
            "command": record.get("command", ""),
            "error": fault,
        }


def _first(evidence: Evidence, key: str) -> Any:
    return next(record[key] for record in evidence.records.values())
