"""All that stands around the loop of a training, put together from its settings."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from dataset.batches import Batch
from dataset.token_store import open_stores
from model.errors import UserError
from model.weights import weights_digest
from trainer.device import Device, find_device
from trainer.inputs import Inputs, make_inputs, make_start
from trainer.objective import NATS, Objective, Preference
from trainer.optimizer import Optimizers, count_steps, first_scale, multiplier
from trainer.placement import Compilation, model_flops, place
from trainer.reporting import Reporter
from trainer.run_dir import RunDirectory
from trainer.saving import Saves, keep_rows_per_step, was_compiled
from trainer.settings import DpoSettings, PretrainSettings, SftSettings, TrainSettings
from trainer.stopping import explaining
from trainer.summary import describe_continuation, describe_inputs
from trainer.training_state import Ledger, Progress
from trainer.validation import Validation


@dataclass(frozen=True)
class Setup:
    """The parts of a training on this process, which its loop sets in motion."""

    given: TrainSettings
    """as the user gave them; those of `inputs` keep the rows of a step on another number of processes"""
    inputs: Inputs
    device: Device
    figures: dict[str, Any]
    """of an epoch, as `BatchStream.describe` has them"""
    rows_per_step: int
    total_steps: int
    objective: Objective
    model: nn.Module
    """the model of the inputs, as it runs on all processes"""
    compilation: Compilation
    optimizers: Optimizers
    saves: Saves
    reporter: Reporter
    validation: Validation
    beginning: Progress

    def multiplier(self, step: int) -> float:
        """Return the factor on the peak learning rate for the update that follows `step` finished ones."""
        return multiplier(step, self.total_steps, self.inputs.settings.schedule)

    def count(self, batch: Batch) -> tuple[int, int, int, float]:
        """Return the terms of the loss, targets, real tokens and operations of a step, of all processes."""
        start = self.inputs.start
        num_factors = start.adapter.num_parameters if start.adapter else 0
        flops = model_flops(start.model.config, batch, num_factors)
        counts = (self.objective.count(batch), batch.num_targets, batch.num_real, flops)
        *counts, flops = self.device.summed(*counts)
        return *map(int, counts), flops

    def introduce(self, progress: Progress) -> None:
        """Say what is about to happen."""
        settings, adapter = self.inputs.settings, self.inputs.start.adapter
        going_on = (progress, self.device.world, settings.gradient_accumulation)
        for line in (
            *describe_inputs(self.inputs, self.figures, self.total_steps, self.rows_per_step),
            *(adapter.describe(self.optimizers.state()) if adapter else ()),
            f"device     {self.device.description}",
            f"compile    {self.compilation.reason}",
            *(describe_continuation(*going_on) if progress.step else ()),
        ):
            self.reporter.say(line)


def prepare(settings: PretrainSettings | SftSettings, kind: str) -> Setup:
    """Open the data and the model, find the devices, and put a training together; no file is touched."""
    stores = open_stores(settings.data)
    inputs = make_inputs(settings, kind, stores, make_start(settings, stores))
    with explaining(RunDirectory(settings.out)):
        device = find_device(settings)
        if inputs.start.adapter and device.sharding:
            raise UserError("--lora.rank: expected --sharding none with it, got fsdp")
        return set_up(keep_rows_per_step(inputs, device.world), device, settings)


def set_up(inputs: Inputs, device: Device, given: TrainSettings) -> Setup:
    """Prepare model and optimizers for the device."""
    settings, model = inputs.settings, inputs.start.model
    rows_per_step = settings.batch_size * settings.gradient_accumulation * device.world
    figures = inputs.stream.describe(rows_per_step)
    total_steps = count_steps(settings, figures, rows_per_step)

    # The digest of the first weights is taken before they are cut up, and the optimizers come after it.
    beginning = Progress(
        processes=device.world, loss_scale=first_scale(device.dtype), ledger=Ledger(weights_digest(model))
    )
    objective = Preference(model, settings, device) if isinstance(settings, DpoSettings) else NATS
    most_tokens = total_steps * rows_per_step * settings.max_seq_len
    placed, compilation = place(model, settings, device, most_tokens, was_compiled(settings.out))
    optimizers = Optimizers(model, settings.optimizer, device.dtype, device.summed)

    facts = inputs.facts() | {
        "dtype": str(device.dtype),
        "compiled": compilation.is_on,
        "rows_per_step": rows_per_step,
        "total_steps": total_steps,
    }
    return Setup(
        given,
        inputs,
        device,
        figures,
        rows_per_step,
        total_steps,
        objective,
        placed,
        compilation,
        optimizers,
        Saves(inputs, device, optimizers, facts),
        Reporter(settings, device, total_steps, compilation.is_on, optimizers.balance),
        Validation(inputs, device, objective),
        beginning,
    )
