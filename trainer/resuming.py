"""Whether a run may go on in its directory, and how, so that its results stay what they would have been."""

import json
from dataclasses import replace
from typing import Any

from model.errors import UserError
from model.files import is_count
from trainer.inputs import Inputs
from trainer.run_dir import RunDirectory, step_of
from trainer.schedule import multiplier
from trainer.settings import ScheduleSettings
from trainer.training_state import FORMER, Progress, read_progress


def keep_rows_per_step(inputs: Inputs, world: int) -> Inputs:
    """Return the inputs with as many rows per step as the run in --out began with on other processes.

    The rows of a step and their order stay, so does the update (to rounding). Raises `UserError` where
    --batch_size does not allow it.
    """
    settings, run_dir = inputs.settings, RunDirectory(inputs.settings.out)
    if run_dir.latest is None:
        return inputs
    facts, progress = read_saved(run_dir)
    rows, first_world = facts["rows_per_step"], progress.processes
    at_once = settings.batch_size * world
    if world == first_world or rows == at_once * settings.gradient_accumulation:
        return inputs
    if rows % world:
        raise UserError(
            f"--out {settings.out} takes {rows} rows a step, which {world} processes cannot share evenly; "
            f"start a number of processes that divides {rows} (it was {first_world})"
        )
    if rows % at_once:
        raise UserError(
            f"--out {settings.out} takes {rows} rows a step: expected a --batch_size that divides the "
            f"{rows // world} of each of {world} processes, got {settings.batch_size}"
        )
    return replace(inputs, settings=replace(settings, gradient_accumulation=rows // at_once))


def was_compiled(out: str) -> bool | None:
    """Return whether the layers of the run in a directory are compiled, None where there is no run yet."""
    run_dir = RunDirectory(out)
    return None if run_dir.latest is None else read_saved(run_dir)[0].get("compiled")


def check_resumable(
    run_dir: RunDirectory, facts: dict[str, Any], schedule: ScheduleSettings, resume: str
) -> None:
    """Raise `UserError` unless a run with these facts (dotted key to value) may start or go on here."""
    if run_dir.latest is None:
        return
    if resume == "never":
        raise UserError(
            f"--out {run_dir.path} holds a run; choose another folder, or --resume auto to continue it"
        )
    (saved, progress), given = read_saved(run_dir), json.loads(json.dumps(facts))
    saved = _in_words_of_today(saved)
    if is_length_free(progress.step, saved["total_steps"], given["total_steps"], schedule):
        saved["total_steps"] = given["total_steps"]
    differing = [key for key in saved | given if saved.get(key) != given.get(key)]
    if differing:
        changes = "; ".join(f"{key} was {saved.get(key)}, is {given.get(key)}" for key in differing)
        raise UserError(
            f"--out {run_dir.path} holds a run with other settings ({changes}); choose another folder"
        )


def _in_words_of_today(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier version saved as this one names it."""
    if "model.preset" not in facts:
        return facts
    renamed = {"model.preset": "124m"} if facts["model.preset"] == "gpt2" else {}
    return {"model.architecture": "qwen3"} | facts | renamed


def is_length_free(step: int, former: int, total: int, schedule: ScheduleSettings) -> bool:
    """Say whether the finished steps had the learning rates that they have in a run of `total` steps.

    So it is under wsd before the decay of both lengths, and in the warmup of any schedule.
    """
    return step <= total and all(
        multiplier(done, former, schedule) == multiplier(done, total, schedule) for done in range(step)
    )


def read_saved(run_dir: RunDirectory) -> tuple[dict[str, Any], Progress]:
    """Return the facts and the progress of the last checkpoint; raises `UserError` for what is damaged."""
    folder = run_dir.latest
    if any((folder / "training" / name).exists() for name in FORMER):
        raise UserError(
            f"{folder} was saved by an earlier version, in files that may hold code, which are not read "
            f"any more; choose another --out, and --init {folder} to begin with its weights"
        )
    facts, values = (run_dir.read_training(name) for name in ("settings.json", "progress.json"))
    try:
        progress = read_progress(values)
        for name in ("rows_per_step", "total_steps"):
            if not is_count(facts.get(name)) or not facts[name]:
                raise UserError(
                    f"settings.json: {name} must be a number above 0, got {facts.get(name)!r:.40}"
                )
        if progress.step != step_of(folder):
            raise UserError(f"it tells of step {progress.step}")
    except UserError as error:
        raise UserError(f"{folder} is damaged ({error}); {run_dir.way_back}") from error
    return facts, progress
