"""An experiment from its file to its report: tuning, the grid of cells look by look, findings."""

from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import Any

from dataset.printing import tell
from eval.cells import Cell, Trial, plan, trial_of
from eval.evidence import Evidence, primary_of
from eval.experiment import Experiment
from eval.findings import analyse, cells_of
from eval.grid import Grid, Show, Workers
from eval.places import Places
from eval.verdicts import DECIDED
from model.errors import UserError


def run_experiment(
    experiment: Experiment,
    places: Places,
    workers: Workers,
    command: str,
    show: Show,
    former: Sequence[str] = (),
) -> tuple[dict[str, Any], list[Trial]]:
    """Run what is missing; return what results.json holds, and the trials that it is about.

    Ends after the first look that decides, or the last; `former` are the hashes of experiments whose results
    were looked at before. Raises `UserError` where a stage refuses its settings, before anything runs, and
    where an arm was measured with no seed.
    """
    planned = plan(experiment, range(experiment.looks[-1]), {})
    if idle := experiment.stages.keys() - {stage for trial in planned for stage in trial.cells}:
        tell(f"not run, as nothing that is measured uses them: {', '.join(sorted(idle))}")
    tuned, tuning, failed = tune(experiment, places, workers, show)
    remarks = [f"in tuning {address} failed ({words})" for address, words in failed.items()]
    for look in experiment.looks:
        trials = plan(experiment, range(look), tuned)
        grid = Grid(trials, places, workers)
        grid.run(checking(experiment, trials[0], places, show))
        evidence = Evidence(experiment, trials, places.records_of(trials), grid.failed, tuned)
        results = analyse(evidence, command, former, remarks) | {"tuning": tuning}
        if all(each["verdict"] in DECIDED for each in results["comparisons"] if each["is_primary"]):
            break
    return results, trials


def checking(experiment: Experiment, first: Trial, places: Places, show: Show) -> Show:
    """Return `show`, which raises `UserError` once the first trial is measured, if that decides nothing."""

    def shown(grid: Grid, ended: Cell | None) -> None:
        show(grid, ended)
        if ended in first.measured:
            _primary_score(experiment, first, places)

    return shown


def tune(
    experiment: Experiment, places: Places, workers: Workers, show: Show
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], dict[str, str]]:
    """Return the settings that each arm does best with on the tuning seed, by the primary metric.

    Beside them what was tried, as results.json holds it, and what cells said that failed, by address; an
    arm of which all failed is a `UserError`.
    """
    if not experiment.tune:
        return {}, {"tried": [], "cells": []}, {}
    values = [dict(zip(experiment.tune, each, strict=True)) for each in product(*experiment.tune.values())]
    tried = {
        arm: [trial_of(experiment.stages, arm, named | each, experiment.tuning_seed) for each in values]
        for arm, named in experiment.named.items()
    }
    every = [trial for trials in tried.values() for trial in trials]
    grid = Grid(every, places, workers)
    grid.run(show)
    best, told = {}, []
    for arm, trials in tried.items():
        scores = [_primary_score(experiment, trial, places) for trial in trials]
        known = [(score, n) for n, score in enumerate(scores) if score is not None]
        if not known:
            raise UserError(f"tuning of arm {arm}: every value failed; " + "; ".join(grid.failed.values()))
        best[arm] = values[max(known, key=lambda each: each[0])[1]]
        told += [
            {"arm": arm, "settings": each, "score": score, "cells": [cell.address for cell in trial.measured]}
            for each, score, trial in zip(values, scores, trials, strict=True)
        ]
    cells = cells_of(Evidence(experiment, every, places.records_of(every), grid.failed, best))
    return best, {"tried": told, "cells": list(cells)}, grid.failed


def _primary_score(experiment: Experiment, trial: Trial, places: Places) -> float | None:
    """Return the mean over items of what decides, None where a cell failed."""
    records = places.records_of([trial])
    if not all(cell.address in records for cell in trial.measured):
        return None
    scores = primary_of(trial, records, experiment.primary)["scores"]
    known = [score for score in scores if score is not None]
    if not known:
        raise UserError(f"primary: expected scores on {experiment.primary.task}, got none for any item")
    return fmean(known)
