"""The training loop, one for pretraining and SFT.

The loss of an optimizer step is the sum of nats over all its targets (all micro-batches, all processes)
divided by their number, so the same rows give the same update however they are spread.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
import yaml

from dataset.batches import Batch
from model.checkpoint import TRAINED_ON, load_checkpoint, save_checkpoint
from model.errors import UserError
from model.files import write_json, write_tensors, write_text
from trainer.compilation import compile_if_asked
from trainer.device import Device, compute_in, find_device
from trainer.failures import explaining, has_finite_weights
from trainer.ledger import Ledger, weights_digest
from trainer.loss_scale import first_scale, next_scale, unscale
from trainer.machine import Machine
from trainer.optimizer import Optimizers
from trainer.prefetch import prefetched
from trainer.reporting import Meter, Reporter
from trainer.resuming import check_resumable, keep_rows_per_step, read_saved, was_compiled
from trainer.run_dir import RunDirectory
from trainer.samples import draw_samples
from trainer.schedule import count_steps, multiplier
from trainer.settings import TrainSettings, to_plain
from trainer.sharding import distribute, load_weights, whole, whole_model, without_exchange
from trainer.stopping import StopRequest
from trainer.summary import describe_continuation, describe_task, summarise
from trainer.task import Task
from trainer.training_state import Progress, load_process_state, save_process_state, save_shared_state
from trainer.validation import TextBytes, measure

MAX_SKIPPED_IN_A_ROW = 5


def train(task: Task) -> None:
    """Train in the run directory, from the beginning or its last save, until the end or a request to stop."""
    with explaining(RunDirectory(task.settings.out)):
        device = find_device(task.settings)
        training = Training(keep_rows_per_step(task, device.accelerator.num_processes), device)
        with training.run_dir.claim() if training.is_main_process else nullcontext():
            training.restore()
            if training.is_finished:
                training.reporter.say(f"{task.settings.out} is already finished")
                return
            training.begin(task.settings)
            with StopRequest(task.settings.max_minutes) as stop, training.reporter:
                training.run_until(stop)
    if stop.signal:
        raise SystemExit(128 + stop.signal)


class Training:
    """A task in progress, on this process."""

    def __init__(self, task: Task, device: Device) -> None:
        """Prepare model and optimizers for the device; no file is touched."""
        settings, accelerator = task.settings, device.accelerator
        self.task, self.settings, self.device, self.accelerator = task, settings, device, accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.is_main_process = accelerator.is_main_process
        self.rows_per_step = settings.batch_size * settings.gradient_accumulation * self.world
        self.figures = task.stream.describe(self.rows_per_step)
        self.total_steps = count_steps(settings, self.figures, self.rows_per_step)
        self.run_dir = RunDirectory(settings.out)
        self.reporter = Reporter(self.run_dir, accelerator, settings, self.total_steps)
        most_tokens = self.total_steps * self.rows_per_step * settings.max_seq_len
        self.compilation = compile_if_asked(
            task.start.model, settings, accelerator.device, most_tokens, was_compiled(self.run_dir)
        )
        if settings.gradient_checkpointing:
            task.start.model.enable_gradient_checkpointing()
        compute_in(device.dtype, task.start.model, accelerator.device)
        ledger = Ledger(weights_digest(task.start.model))
        self.model = distribute(task.start.model, accelerator, device.sharding)
        self.optimizers = Optimizers(task.start.model, settings.optimizer, device.dtype)
        self.text_bytes = TextBytes(task.stream.tokenizer)
        self.progress = Progress(processes=self.world, loss_scale=first_scale(device.dtype), ledger=ledger)
        self.meter, self.gradient_norm = Meter(first_compiles=self.compilation.is_on), 0.0
        self.machine = Machine(task.start.model.config, accelerator.device, device.dtype)

    def restore(self) -> None:
        """Go back to the last save, if there is one; raises `UserError` if its settings were others."""
        self.facts = self.task.facts() | {
            "dtype": str(self.device.dtype),
            "compiled": self.compilation.is_on,
            "rows_per_step": self.rows_per_step,
            "total_steps": self.total_steps,
        }
        if self.is_main_process:
            check_resumable(self.run_dir, self.facts, self.settings.schedule, self.settings.resume)
        self.accelerator.wait_for_everyone()
        self.run_dir.check_shared()
        if folder := self.run_dir.latest:
            _, self.progress = read_saved(self.run_dir)
            if not self.is_finished:
                self._load(folder)
        self.restored_step = self.progress.step
        is_validated = self.run_dir.is_validated(self.restored_step, self.task.validation)
        self.validated_step = self.restored_step if is_validated else None
        self.began = time.monotonic() - self.progress.seconds

    @property
    def is_finished(self) -> bool:
        """Whether the last save is the end of this training, and nothing is left to be done after it."""
        return self.progress.step == self.total_steps and self.run_dir.is_finished(self.total_steps)

    def _load(self, folder: Path) -> None:
        """Read what a save holds; raises `UserError` with the way back where it is damaged."""
        try:
            model, own = load_checkpoint(folder).model, self.task.start.model
            if model.config != own.config:
                raise UserError("its model has another shape than that of this training")
            load_weights(own, model.state_dict())
            load_process_state(folder / "training", self.accelerator, self.optimizers)
        except UserError as error:
            raise UserError(f"{folder} is damaged ({error}); {self.run_dir.way_back}") from error

    def run_until(self, stop: StopRequest) -> None:
        """Take optimizer steps until the last one, or until `stop` is asked on any process."""
        settings, is_stopping = self.settings, False
        self._validate_if_due()  # a kill may have come between a save and its validation
        for epoch, row, batch in self.meter.timed(prefetched(self._batches())):
            self.progress.epoch, self.progress.row = epoch, row
            self._update(batch)
            (is_stopping,) = self._summed(stop.is_asked)
            if self.progress.step == 1 or self._is_due(settings.log_every_steps):
                self._log()
            self._estimate_if_due()
            if is_stopping or self._is_due(settings.save_every_steps, settings.validate_every_steps):
                self._save()
            if is_stopping:
                break
            self._validate_if_due()
        self._close(is_finished=not is_stopping)

    def _batches(self) -> Iterator[tuple[int, int, Batch]]:
        """Yield this process's part of every step that is left, after the epoch and row where it begins."""
        epoch, row = self.progress.epoch, self.progress.row
        steps_left = self.total_steps - self.progress.step
        while steps_left:
            for batch in self.task.stream.batches(epoch, row, self.rows_per_step, self.rank, self.world):
                yield epoch, row, batch
                row, steps_left = row + self.rows_per_step, steps_left - 1
                if not steps_left:
                    return
            epoch, row = epoch + 1, 0

    def _update(self, batch: Batch) -> None:
        """Take one optimizer step; where loss or gradient are not finite, leave the weights alone."""
        progress, began = self.progress, time.monotonic()
        targets, tokens, flops = self._summed(batch.num_targets, batch.num_real, self.machine.count(batch))
        if not targets:
            raise UserError(f"no target in the step from row {progress.row} of epoch {progress.epoch} on")
        if progress.step == self.restored_step and self.world > 2:
            self._settle(batch)
        nats = self._backward(batch, scale=self.world / targets * progress.loss_scale)
        unscale(self.model.parameters(), progress.loss_scale)
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.settings.optimizer.max_gradient_norm
        )
        (nats,), self.gradient_norm = self._summed(nats), float(whole(norm))
        is_finite = math.isfinite(nats) and math.isfinite(self.gradient_norm)
        is_overflow = not is_finite and math.isfinite(nats) and progress.loss_scale > 1
        if is_finite:
            self.optimizers.step(multiplier(progress.step, self.total_steps, self.settings.schedule))
        self.optimizers.zero_grad()
        known = nats if is_finite or is_overflow else None
        progress.count(self.rows_per_step, int(tokens), int(targets), known, is_skipped=not is_finite)
        self._adapt_scale(is_finite, is_overflow)
        self.meter.count(int(tokens), int(targets), time.monotonic() - began)
        progress.ledger = progress.ledger and progress.ledger.then(batch, flops)
        seconds_left = self.meter.seconds_left(self.total_steps - progress.step)
        self.reporter.advance(progress.step, seconds_left)
        if known is None:
            self._report_failure(batch)

    def _backward(self, batch: Batch, scale: float) -> float:
        """Run all micro-batches and return their nats; processes exchange gradients with the last one only.

        Accelerate and DDP average over processes and know nothing of targets: `scale` makes up for both.
        """
        total = torch.zeros((), device=self.accelerator.device)
        parts = zip(*(tensor.chunk(self.settings.gradient_accumulation) for tensor in batch), strict=True)
        micro_batches = [Batch(*part).to(self.accelerator.device) for part in parts]
        for rows in micro_batches:
            is_last = rows is micro_batches[-1]
            with nullcontext() if is_last else without_exchange(self.model, self.accelerator):
                nats = self.model(rows.ids, rows.layout, rows.labels)
                self.accelerator.backward(nats * scale)
            total += nats.detach()
        return float(total)

    def _settle(self, batch: Batch) -> None:
        """Let DDP lay its gradients out anew, which it does once, after the first backward pass.

        The layout decides in which order three or more processes are summed, and so the bits of a resumed
        run: it has to be the final one from the first step on.
        """
        self._backward(batch, scale=0.0)
        self.optimizers.zero_grad()

    def _adapt_scale(self, is_finite: bool, is_overflow: bool) -> None:
        """Move the loss scale of float16; a gradient out of its range is usual in the first steps."""
        progress = self.progress
        if self.device.dtype == torch.float16:
            progress.loss_scale, progress.steps_at_scale = next_scale(
                progress.loss_scale, progress.steps_at_scale, is_finite
            )
        if is_overflow:
            self.reporter.say(
                f"step {progress.step}: a gradient left the range of float16, update skipped, loss scale "
                f"halved to {progress.loss_scale:,.0f}"
            )

    def _report_failure(self, batch: Batch) -> None:
        """Say that an update was skipped; raises `UserError` after several in a row, with the batch saved."""
        step, in_a_row = self.progress.step, self.progress.skipped_in_a_row
        self.reporter.say(
            f"step {step}: loss or gradient is not finite, update skipped ({in_a_row} in a row)"
        )
        if in_a_row < MAX_SKIPPED_IN_A_ROW:
            return
        file = self.run_dir.path / f"not_finite-{self.rank}.safetensors"
        write_tensors(file, batch._asdict(), {})
        raise UserError(
            f"loss or gradient was not finite in {in_a_row} steps in a row, up to step {step}; look at "
            f"the batch in {file}, or start anew with a lower --optimizer.learning_rate"
        )

    def _log(self) -> None:
        """Report on the steps since the last log."""
        progress = self.progress
        targets = progress.targets_since_log
        record = {
            "step": progress.step,
            "loss": progress.nats_since_log / targets if targets else None,
            "learning_rate": self.settings.optimizer.learning_rate
            * multiplier(progress.step - 1, self.total_steps, self.settings.schedule),
            "gradient_norm": self.gradient_norm if math.isfinite(self.gradient_norm) else None,
            "skipped_steps": progress.skipped_steps,
            "epoch": progress.epoch,
            "tokens": progress.tokens,
            "targets": progress.targets,
        }
        rates = self.meter.read(self.total_steps - progress.step)
        used = self.machine.read(rates["tokens_per_second"] / self.world)
        self.reporter.log_training(record | rates | used)
        progress.nats_since_log, progress.targets_since_log = 0.0, 0

    def _estimate_if_due(self) -> None:
        """Say how long all takes: after the first step of this process, or the second if that compiles."""
        if self.progress.step == self.restored_step + 1 + self.compilation.is_on:
            seconds_left = self.meter.seconds_left(self.total_steps - self.progress.step)
            self.reporter.say_estimate(seconds_left, time.monotonic() - self.began)

    def _validate_if_due(self) -> None:
        """Measure the loss on every validation store and draw samples, unless done at this step."""
        step = self.progress.step
        if not self._is_due(self.settings.validate_every_steps) or step == self.validated_step:
            return
        rows = self.settings.batch_size * self.world
        results = {}
        for name, stream in self.task.validation.items():
            batches = stream.batches(0, 0, rows, self.rank, self.world)
            results[name] = measure(self.task.start.model, batches, self.text_bytes, self._summed)
        task, model = self.task, whole_model(self.task.start.model)
        if self.is_main_process:
            longest = self.settings.sample_tokens
            samples = draw_samples(model, task.stream.tokenizer, task.sample_prompts, longest)
            self.reporter.log_samples(step, samples)
        self.reporter.log_validation(step, results)
        self.validated_step = step
        self._prune()

    def _save(self) -> None:
        """Write a checkpoint that the run continues from."""
        run_dir, partial, tokenizer = self.run_dir, self.run_dir.partial, self.task.stream.tokenizer
        (is_broken,) = self._summed(not has_finite_weights(self.model))
        if is_broken:
            raise UserError(f"the weights are no longer finite and are not saved; {run_dir.last_save}")
        self.progress.seconds = time.monotonic() - self.began
        if self.is_main_process:
            run_dir.begin_checkpoint()
        self.accelerator.wait_for_everyone()
        start, is_main = self.task.start, self.is_main_process
        save_process_state(partial / "training", self.accelerator, self.optimizers)
        model = whole_model(start.model)
        if is_main:
            trained_on = TRAINED_ON[self.task.stream.kind]
            save_checkpoint(partial, model, tokenizer.stop_ids, trained_on)
            tokenizer.save(partial, model.config.vocab_size)
            save_shared_state(partial / "training", self.progress, self.facts)
        self.accelerator.wait_for_everyone()
        if self.is_main_process:
            run_dir.commit_checkpoint(self.progress.step)
        self._prune()
        self.accelerator.wait_for_everyone()

    def _prune(self) -> None:
        """Remove the checkpoints that are not to be kept."""
        if self.is_main_process:
            self.run_dir.prune(self.settings.keep_checkpoints, next(iter(self.task.validation), None))

    def begin(self, given: TrainSettings) -> None:
        """Write the settings down as they were given, and say what is about to happen."""
        if self.is_main_process:
            recipe = yaml.safe_dump(to_plain(given), sort_keys=False, allow_unicode=True)
            write_text(self.run_dir.path / "settings.yaml", recipe)
            self.run_dir.cut_records(self.restored_step, is_validated=self.validated_step is not None)
            self._prune()
        for line in describe_task(self.task, self.figures, self.total_steps, self.rows_per_step):
            self.reporter.say(line)
        self.reporter.say(f"device     {self.device.description}")
        self.reporter.say(f"compile    {self.compilation.reason}")
        for line in describe_continuation(self.progress, self.world, self.settings.gradient_accumulation):
            self.reporter.say(line)

    def _close(self, is_finished: bool) -> None:
        """Leave `summary.json` and say how to go on."""
        if self.is_main_process:
            summary = summarise(self.task, self.run_dir, self.progress, self.device)
            write_json(self.run_dir.path / "summary.json", {"finished": is_finished} | summary)
        place = f"after step {self.progress.step} of {self.total_steps}"
        stopped = f"stopped and saved {place}; the same command continues from there"
        self.reporter.say(f"finished: {self.settings.out} holds the model" if is_finished else stopped)

    def _is_due(self, *intervals: int) -> bool:
        """Say whether this is the end of one of the intervals (in steps), or of the training."""
        step = self.progress.step
        return step > 0 and (step == self.total_steps or any(step % every == 0 for every in intervals))

    def _summed(self, *numbers: float) -> list[float]:
        """Add numbers up over all processes."""
        if self.world == 1:
            return list(numbers)
        device = self.accelerator.device
        exact = torch.float32 if device.type == "mps" else torch.float64  # which MPS lacks
        tensor = torch.tensor(numbers, dtype=exact, device=device)
        return self.accelerator.reduce(tensor, "sum").tolist()
