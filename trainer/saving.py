"""What a training leaves in its run directory, whether it may go on from there, and how.

Its results stay what they would have been without the interruption.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from dataset.batches import Batch
from dataset.yaml_file import as_yaml
from model.checkpoint import TRAINED_ON, load_checkpoint, save_checkpoint
from model.errors import UserError
from model.files import own, write_json, write_tensors, write_text
from model.typed_json import read_as
from trainer.device import Device
from trainer.inputs import Inputs
from trainer.optimizer import Optimizers, multiplier
from trainer.placement import load_weights, whole, whole_model
from trainer.run_dir import RunDirectory, step_of
from trainer.settings import ScheduleSettings, TrainSettings, to_plain
from trainer.stopping import explaining
from trainer.summary import summarise
from trainer.training_state import (
    FORMER,
    Progress,
    load_process_state,
    read_progress,
    save_process_state,
    save_shared_state,
)


class Saves:
    """The saves of one training; every process calls what is not said to be the main one's."""

    def __init__(self, inputs: Inputs, device: Device, optimizers: Optimizers, facts: dict[str, Any]) -> None:
        """Name them; `facts` are what a training that goes on from them has to agree with."""
        self.run_dir = RunDirectory(inputs.settings.out)
        self._inputs, self._device, self._optimizers, self._facts = inputs, device, optimizers, facts
        self._accelerator, self._is_main = device.accelerator, device.accelerator.is_main_process

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the run directory against other trainings; what goes wrong meanwhile says what is saved."""
        with explaining(self.run_dir), self.run_dir.claim() if self._is_main else nullcontext():
            yield

    def restore(self) -> Progress | None:
        """Go back to the last save and return how far it was; None before the first one.

        Raises `UserError` if its settings were others, or with the way back where it is damaged.
        """
        settings = self._inputs.settings
        if self._is_main:
            check_resumable(self.run_dir, self._facts, settings.schedule, settings.resume)
        self._accelerator.wait_for_everyone()
        self.run_dir.check_shared()
        if (folder := self.run_dir.latest) is None:
            return None
        _, progress = read_saved(self.run_dir)
        if not self.is_finished(progress):
            self._load(folder)
        return progress

    def _load(self, folder: Path) -> None:
        try:
            if adapter := self._inputs.start.adapter:
                adapter.load(folder)
            else:
                self._load_weights(folder)
            load_process_state(folder / "training", self._accelerator, self._optimizers)
        except UserError as error:
            raise UserError(f"{folder} is damaged ({error}); {self.run_dir.way_back}") from error

    def _load_weights(self, folder: Path) -> None:
        model, own = load_checkpoint(folder).model, self._inputs.start.model
        if model.config != own.config:
            raise UserError("its model has another shape than that of this training")
        load_weights(own, model.state_dict())

    def is_finished(self, progress: Progress) -> bool:
        """Say whether a save is the end of this training, and nothing is left to be done after it."""
        total_steps = self._facts["total_steps"]
        return progress.step == total_steps and self.run_dir.is_finished(total_steps)

    def validated_step(self, progress: Progress) -> int | None:
        """Return the step of a save if it was validated before the training ended."""
        is_validated = self.run_dir.is_validated(progress.step, self._inputs.validation)
        return progress.step if is_validated else None

    def begin(self, given: TrainSettings, step: int, is_validated: bool) -> None:
        """Write the settings down as they were given, and take away what is about to be done again."""
        if self._is_main:
            write_text(self.run_dir.path / "settings.yaml", as_yaml(to_plain(given)))
            self.run_dir.cut_records(step, is_validated)
        self.prune()

    def save(self, progress: Progress) -> None:
        """Write a checkpoint that the training continues from."""
        run_dir, partial, documents = self.run_dir, self.run_dir.partial, self._inputs.stream.documents
        weights = self._inputs.start.model.parameters()
        is_broken = not all(bool(whole(each.isfinite().all())) for each in weights)
        if any(self._device.summed(is_broken)):
            raise UserError(f"the weights are no longer finite and are not saved; {run_dir.last_save}")
        if self._is_main:
            run_dir.begin_checkpoint()
        self._accelerator.wait_for_everyone()
        save_process_state(partial / "training", self._accelerator, self._optimizers)
        model = whole_model(self._inputs.start.model)
        if self._is_main:
            room, tokenizer = model.config.vocab_size, documents.tokenizer
            stop_ids = [i for i in tokenizer.stop_ids if i < room]
            if adapter := self._inputs.start.adapter:
                adapter.save(partial, stop_ids, TRAINED_ON[documents.kind])
            else:
                save_checkpoint(partial, model, stop_ids, TRAINED_ON[documents.kind])
            highest_id = max(store.highest_id for store in documents.stores)
            tokenizer.save(partial, room == tokenizer.vocab_size or highest_id >= tokenizer.own_vocab_size)
            save_shared_state(partial / "training", progress, self._facts)
        self._accelerator.wait_for_everyone()  # all of it is there before it gets its name
        if self._is_main:
            run_dir.commit_checkpoint(progress.step)
        self.prune()
        self._accelerator.wait_for_everyone()

    def prune(self) -> None:
        """Remove the checkpoints that are not to be kept."""
        if self._is_main:
            best_on = next(iter(self._inputs.validation), None)
            self.run_dir.prune(self._inputs.settings.keep_checkpoints, best_on)

    def close(self, progress: Progress, is_finished: bool) -> None:
        """Leave `summary.json`."""
        if self._is_main:
            summary = summarise(self._inputs, self.run_dir, progress, self._device)
            write_json(self.run_dir.path / "summary.json", {"finished": is_finished} | summary)

    def give_up(self, batch: Batch, progress: Progress) -> NoReturn:
        """Keep the batch after which nothing was finite for several steps; raises `UserError`."""
        file = self.run_dir.path / f"not_finite-{self._accelerator.process_index}.safetensors"
        write_tensors(own(file), {k: v for k, v in batch._asdict().items() if v is not None}, {})
        raise UserError(
            f"loss or gradient was not finite in {progress.skipped_in_a_row} steps in a row, up to step "
            f"{progress.step}; look at the batch in {file}, or start anew with a lower "
            "--optimizer.learning_rate"
        )


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
        fault = f"--out {settings.out} takes {rows} rows a step, which {world} processes cannot share evenly"
        raise UserError(f"{fault}; start a number of processes that divides {rows} (it was {first_world})")
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
        fault = f"--out {run_dir.path} holds a run"
        raise UserError(f"{fault}; choose another folder, or --resume auto to continue it")
    (saved, progress), given = read_saved(run_dir), json.loads(json.dumps(facts))
    if is_length_free(progress.step, saved["total_steps"], given["total_steps"], schedule):
        saved["total_steps"] = given["total_steps"]
    differing = [key for key in saved | given if saved.get(key) != given.get(key)]
    if differing:
        changes = "; ".join(f"{key} was {saved.get(key)}, is {given.get(key)}" for key in differing)
        fault = f"--out {run_dir.path} holds a run with other settings ({changes})"
        raise UserError(f"{fault}; choose another folder")


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
        sizes = read_as({"rows_per_step": int, "total_steps": int}, facts, "settings.json")
        if not (sizes["rows_per_step"] and sizes["total_steps"]):
            raise ValueError("settings.json: expected rows_per_step and total_steps above 0")
        if progress.step != step_of(folder):
            raise ValueError(f"it tells of step {progress.step}")
    except ValueError as error:
        raise UserError(f"{folder} is damaged ({error}); {run_dir.way_back}") from error
    return facts, progress
