"""What an experiment has found: from the records of its cells to `results.json`, with nothing left to taste.

What is compared, by which number, and when a difference counts, stands in the experiment. How it is shown is
`eval/report.py`'s.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import fmean
from typing import Any

import numpy as np

from eval.effects import compare_paired, holm, look_level
from eval.evidence import Evidence, devices, differences, mixtures, prove, scores_of, shared
from eval.experiment import A_A
from eval.records import notes_of
from eval.tables import grouped
from eval.verdicts import INCOMPLETE, UNITS, sentence, verdict
from model.errors import UserError

FAMILY = ("metric", "arm", "baseline")
"""what comparisons share whose p are corrected together"""


@dataclass(frozen=True)
class Scores:
    """The scores of every item of one task by one metric; higher is better."""

    clusters: list[int]
    by_trial: dict[tuple[str, int], list[float | None]]
    """(arm, seed) to a score per item; None for an item that could not be scored"""

    def of(self, arms: Sequence[str], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return (arms, seeds, items) of the items that all have a score, and their clusters (items,)."""
        scores = np.array([[self.by_trial[arm, seed] for seed in seeds] for arm in arms], float)
        kept = ~np.isnan(scores).any(axis=(0, 1))
        return scores[:, :, kept], np.array(self.clusters)[kept]


def analyse(
    evidence: Evidence, command: str, former: Sequence[str] = (), notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the content of results.json; `former` are the hashes of experiments looked at before.

    `notes` are told beside the answer.

    Raises `UserError` where arms differ in what they do not name, or were not asked the same questions.
    """
    experiment = evidence.experiment
    if empty := [arm for arm in experiment.named if not evidence.whole(arm)]:
        raise UserError(f"no seed was measured with {empty[0]}; " + "; ".join(evidence.failed.values()))
    looks, alpha = experiment.decision.looks, experiment.decision.alpha
    alpha = look_level(looks, alpha) if looks else alpha
    scores = _scores(evidence)
    comparisons = [each for pair in experiment.pairs for each in _compare(evidence, scores, pair, alpha)]
    decided = {(each["arm"], each["baseline"]) for each in comparisons if each["is_primary"]}
    if missing := [" and ".join(pair) for pair in experiment.pairs if tuple(pair) not in decided]:
        scores = f"{experiment.primary.metric} of {experiment.primary.task}"
        raise UserError(f"primary: {missing[0]} have no {scores} in common")
    _adjust(evidence, comparisons, alpha)
    a_a = list(_compare(evidence, scores, (A_A, experiment.baseline), alpha)) if evidence.whole(A_A) else []
    _adjust(evidence, a_a, alpha)
    for each in a_a:
        each["is_primary"] = False
    said = [sentence(each, experiment) for each in comparisons if each["is_primary"]]
    remarks = [*notes, *mixtures(evidence), *_remarks(evidence, scores, former)]
    made_by = next(iter(evidence.records.values()))
    return {
        "experiment": {
            "name": experiment.name,
            "question": experiment.question,
            "hash": experiment.hash,
            "command": command,
            "seeds": list(evidence.whole(experiment.baseline)),
            "decision": asdict(experiment.decision)
            | {"looks": list(experiment.looks), "alpha_of_look": alpha},
            "primary": asdict(experiment.primary),
            "tuned": evidence.tuned,
            "remarks": remarks,
            "notes": notes_of(evidence.records.values()),
        },
        "answer": " ".join([*said, *(f"Note: {remark}." for remark in remarks)]),
        "arms": [_arm(evidence, name, named) for name, named in experiment.named.items()],
        "comparisons": comparisons,
        "a_a": a_a,
        "scores": list(_means(scores)),
        "curves": list(_curves(evidence)),
        "disagreements": _disagreements(evidence),
        "cells": list(cells_of(evidence)),
        **{key: made_by.get(key) for key in ("machine", "processor", "python", "versions")},
        "devices": devices(evidence.records.values()),
        "statistics": {name: version(name) for name in ("numpy", "scipy", "statsmodels")},
    }


def _remarks(evidence: Evidence, scores: dict[tuple[str, str], Scores], old: Sequence[str]) -> Iterable[str]:
    """Yield what is missing, what no comparison holds, and what makes its proof weaker."""
    arms = (*evidence.experiment.named, A_A)
    for arm in arms:
        if lost := evidence.lost(arm):
            yield f"{arm} lacks seeds {', '.join(map(str, lost))}"
    trials = {(arm, seed) for arm in arms for seed in evidence.whole(arm)}
    tasks = [f"{task} ({metric})" for (task, metric), each in scores.items() if trials - each.by_trial.keys()]
    if tasks:
        yield f"not every arm was measured, or on other targets, on {', '.join(tasks)}"
    if others := [each for each in old if each != evidence.experiment.hash]:
        yield f"{len(others)} other experiments were run here before ({', '.join(others)})"
    if noted := notes_of(evidence.records.values()):
        yield f"of their data, commands noted what the report lists as left out or cut ({len(noted)} lines)"
    for stage in shared(evidence):
        yield f"all seeds share one training {stage}"


def _scores(evidence: Evidence) -> dict[tuple[str, str], Scores]:
    """Return the scores by (task, metric); raises `UserError` where trials were asked other questions."""
    found: dict[tuple[str, str], Scores] = {}
    asked: dict[Any, Any] = {}
    for arm in (*evidence.experiment.named, A_A):
        for seed, trial in evidence.whole(arm).items():
            for task, measured in scores_of(trial, evidence.records).items():
                questions = (measured["clusters"], measured.get("questions"))
                if asked.setdefault(task, questions) != questions:
                    raise UserError(f"{task}: arms were asked different questions ({arm}, seed {seed})")
                for metric, values in measured["metrics"].items():
                    targets = measured.get("targets", {}).get(metric)
                    if targets and asked.setdefault((task, metric), targets) != targets:
                        continue  # as if it were not measured, which is told
                    scores = found.setdefault((task, metric), Scores(measured["clusters"], {}))
                    scores.by_trial[arm, seed] = values
    return found


def _compare(
    evidence: Evidence, scores: dict[tuple[str, str], Scores], pair: Sequence[str], alpha: float
) -> Iterable[dict[str, Any]]:
    """Yield a pair of arms on each task by each metric that both have, the primary one first.

    Raises `UserError` where the pair differs in what neither names.
    """
    (arm, baseline), primary = pair, evidence.experiment.primary
    if arm != A_A:
        prove(evidence, arm, baseline)
    bound, tests = evidence.experiment.decision.equivalence, len(evidence.experiment.pairs)
    seeds = [one.seed for one, _ in evidence.paired(arm, baseline)]
    for task, metric in sorted(scores, key=lambda key: key != (primary.task, primary.metric)):
        each, is_primary = scores[task, metric], (task, metric) == (primary.task, primary.metric)
        if not seeds or any((name, seed) not in each.by_trial for name in pair for seed in seeds):
            continue
        values, clusters = each.of((baseline, arm), seeds)
        if not len(clusters):
            continue
        effect = compare_paired(values[0], values[1], clusters, alpha, tests if is_primary else 1)
        yield {
            "task": task,
            "metric": metric,
            "unit": UNITS.get(metric, ""),
            "is_primary": is_primary,
            "is_kind": task.rpartition("/")[0] in {name for name, _ in scores},
            "is_identical": bool((values[0] == values[1]).all()),
            "baseline": baseline,
            "arm": arm,
            "tuned_apart": _tuned_apart(evidence.tuned, arm, baseline),
            **asdict(effect),
            "items_left_out": len(each.clusters) - len(clusters),
            "p_holm": None,
            "equivalence_p": effect.equivalence(bound) if is_primary and bound else None,
            "verdict": "",
        }


def _tuned_apart(tuned: dict[str, dict[str, Any]], arm: str, baseline: str) -> str:
    """Return in words what tuning chose for an arm that it did not choose for its baseline."""
    ours, theirs = tuned.get(arm, {}), tuned.get(baseline, {})
    apart = [f"{key} {ours[key]}, not {theirs[key]}" for key in ours if ours[key] != theirs[key]]
    return "tuned: " + ", ".join(apart) if apart else ""


def _adjust(evidence: Evidence, comparisons: list[dict[str, Any]], alpha: float) -> None:
    """Correct p for what was tried, and say what follows.

    The primary metric is corrected over the pairs, all else over the tasks of its metric; the kinds of a
    split describe it, and are no claims.
    """
    claims = [each for each in comparisons if each["is_primary"] or not each["is_kind"]]
    families = grouped(claims, lambda each: each["is_primary"] or tuple(map(each.get, FAMILY)))
    for family in families.values():
        for name, corrected in (("p_value", "p_holm"), ("equivalence_p", "equivalence_p")):
            if all(each[name] is not None for each in family):
                for each, p in zip(family, holm([one[name] for one in family]), strict=True):
                    each[corrected] = p
        for each in family:
            is_whole = not (evidence.lost(each["arm"]) or evidence.lost(each["baseline"]))
            each["verdict"] = verdict(each, alpha) if is_whole else INCOMPLETE


def _arm(evidence: Evidence, name: str, named: dict[str, Any]) -> dict[str, Any]:
    against = dict(reversed(evidence.experiment.pairs)).get(name, evidence.experiment.baseline)
    return {
        "name": name,
        "named": named,
        "against": against,
        "cost": _cost(evidence, name),
        "proof": prove(evidence, name, against),
        "differs_because": differences(evidence, name, against),
        "mask": None,
        "attention": [],
    }


def _cost(evidence: Evidence, arm: str) -> dict[str, float]:
    """Return what an arm costs for one seed, all of its trainings together."""
    results = [evidence.trainings(trial).values() for trial in evidence.whole(arm).values()]
    trials = [[each["training"] for each in trainings] for trainings in results]
    summed = ("flops", "tokens", "seconds")
    costs = {key: fmean(sum(each[key] for each in trainings) for trainings in trials) for key in summed}
    return costs | {"parameters": max((each["parameters"] for each in trials[0]), default=0)}


def _means(scores: dict[tuple[str, str], Scores]) -> Iterable[dict[str, Any]]:
    """Yield the mean of each arm on each task, with its interval over seeds."""
    for (task, metric), each in scores.items():
        for arm in dict.fromkeys(arm for arm, _ in each.by_trial):
            seeds = [seed for name, seed in each.by_trial if name == arm]
            values, clusters = each.of((arm,), seeds)
            if not len(clusters):
                continue
            own = compare_paired(np.zeros_like(values[0]), values[0], clusters)
            names = {"task": task, "metric": metric, "unit": UNITS.get(metric, ""), "arm": arm}
            counts = {"seeds": own.seeds, "items": own.items}
            yield names | {"mean": own.arm_mean, "interval": own.interval} | counts


def _curves(evidence: Evidence) -> Iterable[dict[str, Any]]:
    """Yield the course of each training of each arm: mean and range over seeds."""
    for arm in evidence.experiment.named:
        courses: dict[str, dict[int, list[float]]] = {}
        trials = evidence.whole(arm).values()
        for trial in trials:
            for stage, result in evidence.trainings(trial).items():
                for step, loss in _course(result["curve"]):
                    courses.setdefault(stage, {}).setdefault(step, []).append(loss)
        for stage, course in courses.items():
            lines = {
                name: [summary(losses) for losses in course.values()]
                for name, summary in (("mean", fmean), ("low", min), ("high", max))
            }
            yield {"stage": stage, "arm": arm, "steps": list(course), **lines, "seeds": len(trials)}


def _course(curve: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """Return steps and losses: of the first validation store if it was measured often, else of training."""
    stores = [point["validation"] for point in curve if "validation" in point]
    own = [
        (point["step"], point["nats_per_token"])
        for point in curve
        if point.get("validation") in stores[:1] and "nats_per_token" in point
    ]
    if len(own) > 2:
        return own
    return [(point["step"], point["loss"]) for point in curve if point.get("loss") is not None]


def _disagreements(evidence: Evidence) -> list[dict[str, Any]]:
    """Return questions that arms answer differently with the first seed."""
    trials = {arm: next(iter(evidence.whole(arm).values())) for arm in evidence.experiment.named}
    results = {arm: [evidence.result(cell) for cell in trial.measured] for arm, trial in trials.items()}
    said = {arm: [each for one in of for each in one.get("said") or ()] for arm, of in results.items()}
    found = []
    for together in zip(*said.values(), strict=False):
        answers = {arm: each["answer"] for arm, each in zip(said, together, strict=True)}
        if len({each["question"] for each in together}) == 1 and len({*answers.values()}) > 1:
            asked = {key: together[0][key] for key in ("task", "question", "expected")}
            found.append(asked | {"answers": answers})
    return found


def cells_of(evidence: Evidence) -> Iterable[dict[str, Any]]:
    """Yield every cell that says something, once, with the arms that it serves."""
    served = [(cell, trial) for trial in evidence.trials for cell in trial.cells.values()]
    for address, group in grouped(served, lambda each: each[0].address).items():
        cell, first = group[0]
        record, fault = evidence.records.get(address, {}), evidence.failed.get(address)
        if not (record or cell.tells or fault):
            continue
        yield {
            "address": address,
            "stage": cell.stage,
            "arms": list(dict.fromkeys(trial.arm for _, trial in group)),
            "seed": first.seed if cell.tells else None,
            "status": "finished" if record else "failed" if fault else "missing",
            "seconds": record.get("seconds"),
            "commit": record.get("commit"),
            "command": record.get("command", ""),
            "threads": record.get("threads"),
            "error": fault,
        }
