"""What a training leaves in its run directory, and how it goes on from there."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from dataset.batches import Batch
from dataset.yaml_file import as_yaml
from model.checkpoint import TRAINED_ON, load_checkpoint, save_checkpoint
from model.errors import UserError
from model.files import write_json, write_tensors, write_text
from trainer.device import Device
from trainer.failures import explaining, has_finite_weights
from trainer.inputs import Inputs
from trainer.optimizer import Optimizers
from trainer.resuming import check_resumable, read_saved
from trainer.run_dir import RunDirectory
from trainer.settings import TrainSettings, to_plain
from trainer.sharding import load_weights, whole_model
from trainer.summary import summarise
from trainer.training_state import Progress, load_process_state, save_process_state, save_shared_state


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
            model, own = load_checkpoint(folder).model, self._inputs.start.model
            if model.config != own.config:
                raise UserError("its model has another shape than that of this training")
            load_weights(own, model.state_dict())
            load_process_state(folder / "training", self._accelerator, self._optimizers)
        except UserError as error:
            raise UserError(f"{folder} is damaged ({error}); {self.run_dir.way_back}") from error

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
        run_dir, partial, tokenizer = self.run_dir, self.run_dir.partial, self._inputs.stream.tokenizer
        (is_broken,) = self._device.summed(not has_finite_weights(self._inputs.start.model))
        if is_broken:
            raise UserError(f"the weights are no longer finite and are not saved; {run_dir.last_save}")
        if self._is_main:
            run_dir.begin_checkpoint()
        self._accelerator.wait_for_everyone()
        save_process_state(partial / "training", self._accelerator, self._optimizers)
        model = whole_model(self._inputs.start.model)
        if self._is_main:
            trained_on = TRAINED_ON[self._inputs.stream.kind]
            stores, room = self._inputs.stream.documents.stores, model.config.vocab_size
            save_checkpoint(partial, model, [i for i in tokenizer.stop_ids if i < room], trained_on)
            highest_id = max(store.highest_id for store in stores)
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
        write_tensors(file, batch._asdict(), {})
        raise UserError(
            f"loss or gradient was not finite in {progress.skipped_in_a_row} steps in a row, up to step "
            f"{progress.step}; look at the batch in {file}, or start anew with a lower "
            "--optimizer.learning_rate"
        )
