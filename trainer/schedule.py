"""The learning rate as a pure function of the step."""

import math
from typing import Any

from trainer.settings import ScheduleSettings, TrainSettings


def count_steps(settings: TrainSettings, figures: dict[str, Any], rows_per_step: int) -> int:
    """Return the optimizer steps that the settings ask for, given the `rows` and `tokens` of an epoch."""
    steps_per_epoch = math.ceil(figures["rows"] / rows_per_step)
    if settings.max_steps is not None:
        return settings.max_steps
    if settings.epochs is not None:
        return math.ceil(settings.epochs * steps_per_epoch)
    return math.ceil(settings.max_tokens * steps_per_epoch / figures["tokens"])


def warmup_steps(total_steps: int, schedule: ScheduleSettings) -> int:
    """Return the steps of the warmup: a tenth of all steps where it would be over a third of them."""
    return schedule.warmup_steps if 3 * schedule.warmup_steps <= total_steps else total_steps // 10


def multiplier(step: int, total_steps: int, schedule: ScheduleSettings) -> float:
    """Return the factor on the peak learning rate for the update that follows `step` finished ones.

    1       ____________          wsd rises, stays, and decays linearly in the last part
           /            \\         (Hu et al. 2024, arXiv 2404.06395); cosine (Loshchilov and
    0  ___/              \\___     Hutter 2017, arXiv 1608.03983) and linear have no flat part.
    """
    warmup = warmup_steps(total_steps, schedule)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    start = warmup
    if schedule.name == "wsd":
        start = max(warmup, round(total_steps * (1 - schedule.decay_fraction)))
    done = max(0.0, (step - start) / max(1, total_steps - start))
    falling = (1 + math.cos(math.pi * done)) / 2 if schedule.name == "cosine" else 1 - done
    return schedule.final_fraction + (1 - schedule.final_fraction) * falling
