"""What the cells of an experiment have left, and the proof that arms differ in what they name alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eval.cells import Cell, Trial
from eval.experiment import Experiment, Primary
from eval.records import PROOF
from model.errors import UserError

PROOFS = tuple(PROOF)
ROWS = ("max_seq_len", "packing", "batch_size", "gradient_accumulation", "max_steps", "epochs", "max_tokens")
REGRESSION_ROWS = ("dimensions", "examples")
MAY_CHANGE = {
    "seed": {*PROOFS},
    "data": {*PROOFS},  # weights, too: its tokenizer may have another vocabulary
    **dict.fromkeys((*ROWS, *REGRESSION_ROWS), {"rows", "targets"}),
    **dict.fromkeys(("init", "num_hidden_layers", "hidden_size"), {"initial_weights"}),
    "supervise": {"targets"},
}
"""which of the proofs a setting of a training explains where arms differ in it; others explain nothing"""
SHAPE = "model."
"""beginning of the settings that change the shape of new weights"""


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

    def whole(self, arm: str) -> dict[int, Trial]:
        """Return the trials of an arm of which every cell has left its record, by seed."""
        own = [trial for trial in self.trials if trial.arm == arm]
        telling = [[cell.address for cell in trial.cells.values() if cell.tells] for trial in own]
        found = zip(own, telling, strict=True)
        return {trial.seed: trial for trial, cells in found if {*cells} <= self.records.keys()}

    def lost(self, arm: str) -> list[int]:
        """Return the seeds that an arm was to be measured with, and was not."""
        whole = self.whole(arm)
        return [trial.seed for trial in self.trials if trial.arm == arm and trial.seed not in whole]

    def paired(self, arm: str, baseline: str) -> list[tuple[Trial, Trial]]:
        """Return the trials of both with every seed that both were measured with."""
        ours, theirs = self.whole(arm), self.whole(baseline)
        return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]

    def result(self, cell: Cell) -> dict[str, Any]:
        """Return what came of a finished cell."""
        return self.records[cell.address]["result"]

    def trainings(self, trial: Trial) -> dict[str, dict[str, Any]]:
        """Return the results of the trainings of a trial, by stage."""
        return {stage: self.result(cell) for stage, cell in trial.cells.items() if cell.program.trains}


def scores_of(trial: Trial, records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what a trial was measured on, by task: clusters of items, and metrics with a score per item.

    `records` are those of finished cells by address. The loss on a store is a task of one item, in which
    `targets` tells what each metric is of, if the record does. Where several stages measure, a task is named
    after its stage, too. Raises `UserError` for a task named like a loss.
    """
    found = {}
    for cell in trial.measured:
        items = records[cell.address]["result"]["items"]
        losses = {}
        for store, loss in items["losses"].items():
            scores = {f"negative_{name}": [-value] for name, value in loss.items() if value is not None}
            counts = items.get("targets", {}).get(store)
            targets = {"negative_nats_per_token": counts, "negative_bits_per_byte": counts and counts[1:]}
            losses[f"loss {store}"] = {"clusters": [0], "metrics": scores, "targets": targets}
        if both := items["tasks"].keys() & losses:
            raise UserError(f"{cell.address}: a split is named like the {min(both)}; rename it")
        stage = f"{cell.stage}: " if len(trial.measured) > 1 else ""
        found |= {stage + task: scores for task, scores in (items["tasks"] | losses).items()}
    return found


def primary_of(trial: Trial, records: dict[str, dict[str, Any]], primary: Primary) -> dict[str, Any]:
    """Return clusters, questions, targets and scores of the task that decides, else raise `UserError`."""
    tasks = scores_of(trial, records)
    if primary.task not in tasks:
        raise UserError(f"primary: expected a task of {', '.join(tasks)}, got {primary.task}")
    found, metrics = tasks[primary.task], tasks[primary.task]["metrics"]
    if primary.metric not in metrics:
        wanted = f"a metric of {primary.task} ({', '.join(metrics)})"
        raise UserError(f"primary: expected {wanted}, got {primary.metric}")
    targets = found.get("targets", {}).get(primary.metric)
    return found | {"scores": metrics[primary.metric], "targets": targets}


def prove(evidence: Evidence, arm: str, baseline: str) -> dict[str, dict[str, str]]:
    """Return for each training whether arms had equal initial weights, rows and targets, with every seed.

    Raises `UserError` where they differ, and nothing that an arm names may be the reason.
    """
    found: dict[str, dict[str, str]] = {}
    for one, other in evidence.paired(arm, baseline):
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
        if what in MAY_CHANGE.get(key, {"initial_weights"} if key.startswith(SHAPE) else ()):
            return
    advice = "; name supervise, so that all arms have the targets of one" if what == "targets" else ""
    raise UserError(
        f"arms {one.arm} and {other.arm} differ in the {what.replace('_', ' ')} of stage {stage} (seed "
        f"{one.seed}), which neither names: their difference would not be that of what they name{advice}"
    )


def _differing(a: Cell, b: Cell) -> list[str]:
    return [key for key in a.settings | b.settings if a.settings.get(key) != b.settings.get(key)]


def differences(evidence: Evidence, arm: str, baseline: str) -> list[str]:
    """Return in words what the settings of an arm's cells differ in from the baseline's, stage by stage."""
    one, other = next(iter((a.cells, b.cells) for a, b in evidence.paired(arm, baseline)))
    found = []
    for stage in evidence.experiment.stages:
        if (stage in one) != (stage in other):
            found.append(f"{stage}: {'only here' if stage in one else 'not here'}")
        elif stage in one:
            a, b = one[stage], other[stage]
            keys = [key for key in _differing(a, b) if "@" not in f"{a.settings.get(key)}"]
            found += [f"{stage}.{key}: {a.settings.get(key)}, not {b.settings.get(key)}" for key in keys]
            found += [f"{stage}.threads: {a.threads}, not {b.threads}"] if a.threads != b.threads else []
    return found


def mixtures(evidence: Evidence) -> list[str]:
    """Return in words where cells of one stage were not made alike, which no setting of theirs says."""
    found = []
    for stage in evidence.experiment.stages:
        records = [r for r in evidence.records.values() if r["stage"] == stage]
        ways = {
            "commits": {str(record.get("commit")) for record in records},
            "machines": {record["machine"] for record in records},
            "processors": {record.get("processor") for record in records} - {None},
            "versions": {str(record["versions"]) for record in records},
            "devices": {*devices(records)},
        }
        several = {what: len(each) for what, each in ways.items() if len(each) > 1}
        found += [f"cells of stage {stage} are of {count} {what}" for what, count in several.items()]
    return found


def devices(records: Iterable[dict[str, Any]]) -> list[str]:
    """Return what computed trainings, as their records tell it."""
    told = ((record["result"].get("training") or {}).get("device") for record in records)
    return sorted({*told} - {None})


def shared(evidence: Evidence) -> list[str]:
    """Return the trainings that all seeds of an arm share, so that seeds say nothing of their luck."""
    trials = list(evidence.whole(evidence.experiment.baseline).values())
    if len(trials) < 2:
        return []
    first, second = (trial.cells for trial in trials[:2])
    return [s for s, cell in first.items() if cell.program.trains and cell.address == second[s].address]
