"""What the cells of an experiment have left, and the proof that arms differ in what they name alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.cells import Cell, Trial
from eval.experiment import Experiment, Primary
from eval.places import Places
from model.errors import UserError

PROOFS = ("initial_weights", "rows", "targets")
"""hashes that a training leaves of what it began with and was given"""
NAMED_FOR = {
    "prompt_mask": {"targets"},
    "supervise": {"targets"},
    "init": {"initial_weights"},
    **dict.fromkeys(("dtype", "compile", "isolate_documents", "gradient_checkpointing"), set()),
}
"""what of it a setting may change; others may change all"""
NAMED_FOR_NOTHING = ("optimizer.", "schedule.", "model.sliding", "model.window", "log_", "save_", "validat")


@dataclass(frozen=True)
class Evidence:
    """Everything that the analysis reads."""

    experiment: Experiment
    trials: Sequence[Trial]
    records: dict[str, dict[str, Any]]
    """of finished cells, by address"""
    failed: dict[str, str]
    """what the others said, by address"""
    tuned: dict[str, dict[str, Any]]
    """settings that each arm takes from its tuning"""

    @property
    def seeds(self) -> list[int]:
        """The seeds with which every arm was measured: those that are paired."""
        broken = {trial.seed for trial in self.trials if not self._is_whole(trial)}
        return [seed for seed in dict.fromkeys(trial.seed for trial in self.trials) if seed not in broken]

    def _is_whole(self, trial: Trial) -> bool:
        return all(cell.address in self.records for cell in trial.cells.values() if cell.tells)

    @property
    def whole(self) -> list[Trial]:
        """The trials of paired seeds."""
        seeds = self.seeds
        return [trial for trial in self.trials if trial.seed in seeds]

    def of(self, arm: str) -> list[Trial]:
        """Return the trials of an arm with paired seeds."""
        return [trial for trial in self.whole if trial.arm == arm]

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """What came of finished cells, by address."""
        return {address: record["result"] for address, record in self.records.items()}

    def trainings(self, trial: Trial) -> dict[str, dict[str, Any]]:
        """Return the results of the trainings of a trial, by stage."""
        return {
            stage: self.results[cell.address] for stage, cell in trial.cells.items() if cell.program.trains
        }


def scores_of(trial: Trial, results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what a trial was measured on, by task: clusters of items, and metrics with a score per item.

    `results` are those of finished cells by address. The loss on a store is a task of one item. Where several
    stages measure, a task is named after its stage, too.
    """
    found = {}
    for cell in trial.measured:
        items = results[cell.address]["items"]
        losses = {
            f"loss {store}": {
                "clusters": [0],
                "metrics": {
                    f"negative_{name}": [-value] for name, value in loss.items() if value is not None
                },
            }
            for store, loss in items["losses"].items()
        }
        stage = f"{cell.stage}: " if len(trial.measured) > 1 else ""
        found |= {stage + task: scores for task, scores in (items["tasks"] | losses).items()}
    return found


def primary_of(
    trial: Trial, results: dict[str, dict[str, Any]], primary: Primary
) -> tuple[list[int], list[float | None]]:
    """Return clusters and scores of the items that decide; raises `UserError` where there are none."""
    scores = scores_of(trial, results)
    if primary.task not in scores or primary.metric not in scores[primary.task]["metrics"]:
        raise UserError(f"primary: expected a task of {', '.join(scores)} and its metric, got {primary}")
    return scores[primary.task]["clusters"], scores[primary.task]["metrics"][primary.metric]


def gather(
    experiment: Experiment,
    trials: Sequence[Trial],
    places: Places,
    failed: dict[str, str],
    tuned: dict[str, dict[str, Any]],
) -> Evidence:
    """Read the records of all cells of the trials."""
    cells = {cell.address: cell for trial in trials for cell in trial.cells.values()}
    found = {address: places.finished(cell) for address, cell in cells.items()}
    return Evidence(experiment, trials, {a: record for a, record in found.items() if record}, failed, tuned)


def prove(evidence: Evidence, arm: str, baseline: str) -> dict[str, dict[str, str]]:
    """Return for each training whether arms had equal initial weights, rows and targets, with every seed.

    Raises `UserError` where they differ, and nothing that an arm names may be the reason.
    """
    found: dict[str, dict[str, str]] = {}
    for one, other in zip(evidence.of(arm), evidence.of(baseline), strict=True):
        ours, theirs = evidence.trainings(one), evidence.trainings(other)
        for stage in ours.keys() & theirs:
            state = found.setdefault(stage, dict.fromkeys(PROOFS, "equal"))
            for what in PROOFS:
                if ours[stage]["training"]["proof"][what] != theirs[stage]["training"]["proof"][what]:
                    state[what] = "differs"
                    _check_explained(one, other, stage, what)
    return {stage: found[stage] for stage in evidence.experiment.stages if stage in found}


def _check_explained(one: Trial, other: Trial, stage: str, what: str) -> None:
    for key in _differing(one.cells[stage], other.cells[stage]):
        if not key.startswith(NAMED_FOR_NOTHING) and what in NAMED_FOR.get(key, PROOFS):
            return
    raise UserError(
        f"arms {one.arm} and {other.arm} differ in the {what.replace('_', ' ')} of stage {stage} (seed "
        f"{one.seed}), which neither names: their difference would not be that of what they name"
    )


def _differing(a: Cell, b: Cell) -> list[str]:
    return [key for key in a.settings | b.settings if a.settings.get(key) != b.settings.get(key)]


def differences(evidence: Evidence, arm: str, baseline: str) -> list[str]:
    """Return in words what the settings of an arm's cells differ in from the baseline's, stage by stage."""
    one, other = evidence.of(arm)[0].cells, evidence.of(baseline)[0].cells
    found = []
    for stage in evidence.experiment.stages:
        if (stage in one) != (stage in other):
            found.append(f"{stage}: {'only here' if stage in one else 'not here'}")
        elif stage in one:
            a, b = one[stage], other[stage]
            keys = [key for key in _differing(a, b) if "@" not in f"{a.settings.get(key)}"]
            found += [f"{stage}.{key}: {a.settings.get(key)}, not {b.settings.get(key)}" for key in keys]
    return found
