"""The words before a training and the file after it."""

import math
import os
from typing import Any

from dataset.printing import NOTE
from model.config import ModelConfig
from model.pattern import ALL
from model.systems import num_cores
from trainer.device import Device, peak_megabytes
from trainer.inputs import Inputs
from trainer.optimizer import warmup_steps
from trainer.provenance import provenance
from trainer.run_dir import METRICS, RunDirectory
from trainer.settings import TrainSettings
from trainer.training_state import Progress
from trainer.validation import left_out

FEW_STEPS = 100
"""below which a training is told how to get more"""


def describe_inputs(
    inputs: Inputs, figures: dict[str, Any], total_steps: int, rows_per_step: int
) -> list[str]:
    """Return the lines that say what is about to be trained on what; `figures` describe an epoch."""
    settings, start, config = inputs.settings, inputs.start, inputs.start.model.config
    sliding = [number for number, pattern in enumerate(config.layer_patterns) if pattern != ALL]
    noun = inputs.stream.documents.noun
    streams = {"the data": figures} | {name: each.describe() for name, each in inputs.validation.items()}
    return [
        f"data       {figures['documents']:,} {noun}, {figures['tokens']:,} tokens in "
        f"{figures['rows']:,} rows of {settings.max_seq_len}",
        f"           {figures['real_share']:.1%} real, {figures['target_share']:.1%} with loss, "
        f"rows without target {figures['rows_without_target']:,}",
        *(f"{NOTE}of {name}, {words}" for name, each in streams.items() if (words := left_out(each))),
        f"model      {start.model.num_parameters():,} parameters ({start.origin}), mask {start.prompt_mask}"
        + (_windows(config, sliding) if sliding else "")
        + (f", {config.num_experts_per_tok} of {config.num_experts} experts" if config.num_experts else ""),
        f"training   {total_steps:,} steps of {rows_per_step} rows, {settings.optimizer.name}, "
        f"{settings.schedule.name} schedule",
        *_short(settings, figures, total_steps, rows_per_step),
        *busy(os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, num_cores()),
    ]


def busy(load: float, cores: int) -> list[str]:
    """Return a line if a load average says that other work takes the cores."""
    words = f"load       {load:.1f} on {cores} cores: other work takes them, and steps will take longer"
    return [words] if load >= cores else []


def _short(settings: TrainSettings, figures: dict[str, Any], total: int, rows_per_step: int) -> list[str]:
    """Return what a short training has to be told: a shorter warmup, and few steps of little data."""
    lines, warmup = [], warmup_steps(total, settings.schedule)
    if warmup < settings.schedule.warmup_steps:
        lines.append(f"warmup     {warmup} steps instead of {settings.schedule.warmup_steps}: a tenth of all")
    if settings.max_steps is None and total < FEW_STEPS:
        fewer_rows = max(1, settings.batch_size * total // FEW_STEPS)
        lines += [
            f"few steps  an epoch is {math.ceil(figures['rows'] / rows_per_step)}; {total} may teach little",
            f"           --max_steps {FEW_STEPS} makes more, over again; or --batch_size {fewer_rows}",
        ]
    return lines


def _windows(config: ModelConfig, layers: list[int]) -> str:
    sides = " on both sides" if config.window_both_sides else ""
    words = {
        f"window {config.sliding_window}{sides}": config.sliding_window,
        f"chunks of {config.attention_chunk_size}": config.attention_chunk_size,
        f"{config.attention_sinks} sinks": config.attention_sinks,
    }
    named = ", ".join(text for text, value in words.items() if value)
    return f", {named} in layers {', '.join(map(str, layers))}"


def describe_continuation(progress: Progress, world: int, gradient_accumulation: int) -> list[str]:
    """Return the lines that say from where a training goes on."""
    lines = [f"continuing after step {progress.step}"]
    if progress.processes != world:
        lines.append(
            f"{world} processes instead of {progress.processes}: gradient_accumulation is "
            f"{gradient_accumulation}, which keeps the rows of a step"
        )
    return lines


def summarise(inputs: Inputs, run_dir: RunDirectory, progress: Progress, device: Device) -> dict[str, Any]:
    """Return what `summary.json` tells of a training: its size, its results, its costs, what it ran on.

    Memory is the most that the last process held. Neither flops nor proof are told where an earlier version
    began the training.
    """
    validation: dict[str, dict[str, Any]] = {}
    for record in run_dir.read_records(METRICS):
        if "validation" in record:
            result = {key: value for key, value in record.items() if key != "validation"}
            entry = validation.setdefault(record["validation"], {"best": result})
            entry["best"] = min(entry["best"], result, key=lambda each: each["nats_per_token"])
            entry["last"] = result
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "targets": progress.targets,
        "skipped_steps": progress.skipped_steps,
        "seconds": round(progress.seconds, 3),
        "tokens_per_second": round(progress.tokens / max(progress.seconds, 1e-3), 1),
        "memory_megabytes": round(peak_megabytes(device.accelerator.device), 1),
        **progress.ledger.summary(),
        "parameters": inputs.start.model.num_parameters(),
        "prompt_mask": inputs.start.prompt_mask,
        "validation": validation,
        "device": device.description,
        **provenance(),
    }
