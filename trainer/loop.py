"""The training loop, one for pretraining, SFT and preferences.

The loss of an optimizer step is the sum of nats over all its terms, targets or pairs of answers (of all
micro-batches and processes), divided by their number, so the same rows give the same update however spread.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

import torch

from dataset.batches import Batch
from model.errors import UserError
from trainer.setup import Setup
from trainer.stopping import StopRequest

Item = TypeVar("Item")
ITEMS_AHEAD = 2
END = object()
MAX_SKIPPED_IN_A_ROW = 5


def train(setup: Setup) -> None:
    """Train in the run directory, from the beginning or its last save, until the end or a request to stop."""
    training, given = Training(setup), setup.given
    with setup.saves.claim():
        training.restore()
        if setup.saves.is_finished(training.progress):
            setup.reporter.say(f"{given.out} is already finished")
            return
        setup.saves.begin(given, training.progress.step, training.validated_step is not None)
        setup.introduce(training.progress)
        with StopRequest(given.max_minutes) as stop, setup.reporter:
            training.run_until(stop.is_asked)
    if stop.signal:
        raise SystemExit(128 + stop.signal)


class Training:
    """A training in progress, on this process."""

    def __init__(self, setup: Setup) -> None:
        """Take up its parts; no file is touched."""
        self.setup, self.settings, self.device = setup, setup.inputs.settings, setup.device
        self.model, self.optimizers = setup.model, setup.optimizers
        self.saves, self.reporter = setup.saves, setup.reporter
        self.progress = setup.beginning
        self.validated_step: int | None = None

    def restore(self) -> None:
        """Go back to the last save, if there is one; raises `UserError` if its settings were others."""
        if saved := self.saves.restore():
            self.progress, self.validated_step = saved, self.saves.validated_step(saved)

    def run_until(self, is_stop_asked: Callable[[], bool]) -> None:
        """Take optimizer steps until the last one, or until a stop is asked on any process."""
        settings, progress, is_stopping = self.settings, self.progress, False
        self.reporter.begin(progress)
        self._validate_if_due()  # a kill may have come between a save and its validation
        for epoch, row, batch in self.reporter.meter.timed(prefetched(self._batches())):
            # `_batches` is steps ahead by now, so each batch brings the place where it was taken.
            progress.epoch, progress.row = epoch, row
            gradient_norm = self._update(batch)
            self.reporter.end_step()
            if progress.step == 1 or self._is_due(settings.log_every_steps):
                rate = settings.optimizer.learning_rate * self.setup.multiplier(progress.step - 1)
                self.reporter.log_training(rate, gradient_norm)
            self.reporter.estimate_if_due()

            # A stop asked of one process stops them all: the others would wait for it forever.
            (is_stopping,) = self.device.summed(is_stop_asked())

            # Save before validating, which takes long and may fail: what was trained is safe by then.
            if is_stopping or self._is_due(settings.save_every_steps, settings.validate_every_steps):
                progress.seconds = self.reporter.seconds
                self.saves.save(progress)
            if is_stopping:
                break
            self._validate_if_due()
        self.saves.close(progress, is_finished=not is_stopping)
        self.reporter.say_end(is_finished=not is_stopping)

    def _batches(self) -> Iterator[tuple[int, int, Batch]]:
        """Yield this process's part of every step that is left, after the epoch and row where it begins."""
        epoch, row, device = self.progress.epoch, self.progress.row, self.device
        steps_left, rows = self.setup.total_steps - self.progress.step, self.setup.rows_per_step
        while steps_left:
            for batch in self.setup.inputs.stream.batches(epoch, row, rows, device.rank, device.world):
                yield epoch, row, batch
                row, steps_left = row + rows, steps_left - 1
                if not steps_left:
                    return
            epoch, row = epoch + 1, 0

    def _update(self, batch: Batch) -> float:
        """Take an optimizer step with `batch`, the rows of this process; return the norm of the gradient."""
        progress, world = self.progress, self.device.world

        # The loss is divided by all terms of the step, on all processes: a mean of the means of rows or of
        # micro-batches would weigh the targets of short answers more. So they are counted beforehand.
        terms, targets, tokens, flops = self.setup.count(batch)
        if not targets:
            raise UserError(f"no target in the step from row {progress.row} of epoch {progress.epoch} on")
        progress.consume(batch, self.setup.rows_per_step, tokens, targets, flops)

        if world > 2 and self.reporter.meter.steps == 0:
            self._settle_buckets(batch)

        # DDP takes the mean over processes; times `world` it is a sum. In float16 the loss is scaled besides,
        # and the gradients are scaled back before they are clipped.
        sums = self.device.summed(*self._backward(batch, scale=world / terms * progress.loss_scale))
        gradient_norm = self.optimizers.clip(progress.loss_scale)

        # A gradient that is not finite would spoil every weight, so its step is skipped.
        is_finite = math.isfinite(sums[0]) and math.isfinite(gradient_norm)
        if is_finite:
            self.optimizers.step(self.setup.multiplier(progress.step - 1))
        self.optimizers.zero_grad()
        self._conclude(batch, sums, terms, is_finite)
        return gradient_norm

    def _conclude(self, batch: Batch, sums: list[float], terms: int, is_finite: bool) -> None:
        """Count a step that was taken, or skipped as its loss or gradient was not finite; give up after many.

        In float16 a skipped step with a finite loss is usual: the loss scale was too large and is halved.
        """
        progress = self.progress
        is_overflow = not is_finite and math.isfinite(sums[0]) and progress.loss_scale > 1
        progress.conclude(sums if is_finite or is_overflow else None, terms, not is_finite)
        if self.device.dtype == torch.float16:
            progress.adapt_scale(is_finite)
        if not is_finite:
            self.reporter.say_skipped(is_overflow)
        if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            self.saves.give_up(batch, progress)

    def _backward(self, batch: Batch, scale: float) -> list[float]:
        """Run all micro-batches; return sums, nats first. Only the last one sums gradients over processes."""
        device, total = self.device.accelerator.device, 0.0
        parts = zip(
            *(tensor.chunk(self.settings.gradient_accumulation) for tensor in batch.tensors), strict=True
        )
        micro_batches = [Batch(*part).to(device) for part in parts]
        for rows in micro_batches:
            is_last = rows is micro_batches[-1]
            with nullcontext() if is_last else self.device.without_exchange(self.model):
                sums = self.setup.objective(self.model, rows)
                self.device.accelerator.backward(sums[0] * scale)
            total += sums.detach()
        return total.tolist()

    def _settle_buckets(self, batch: Batch) -> None:
        """Run a backward pass without effect, after which DDP groups the gradients into its final buckets.

        The buckets decide in which order the gradients of three or more processes are summed. They must be
        final from the first step on, or a resumed run would not end with the same bits.
        """
        self._backward(batch, scale=0.0)
        self.optimizers.zero_grad()

    def _validate_if_due(self) -> None:
        """Measure the loss on every validation store and draw samples, unless done at this step."""
        step = self.progress.step
        if not self._is_due(self.settings.validate_every_steps) or step == self.validated_step:
            return
        self.reporter.log_validation(step, *self.setup.validation.measure_all())
        self.validated_step = step
        self.saves.prune()  # which keeps the best

    def _is_due(self, *intervals: int) -> bool:
        """Say whether this is the end of one of the intervals (in steps), or of the training."""
        step = self.progress.step
        return step > 0 and (step == self.setup.total_steps or any(step % every == 0 for every in intervals))


def prefetched(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items in their order, while a thread prepares up to `ITEMS_AHEAD` more.

    The thread ends when the receiver does. An error in it is raised here, after the items before it.
    """
    thread = ThreadPoolExecutor(max_workers=1)
    try:
        ahead = deque(thread.submit(next, items, END) for _ in range(ITEMS_AHEAD))
        while (item := ahead.popleft().result()) is not END:
            ahead.append(thread.submit(next, items, END))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
