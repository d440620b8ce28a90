"""What a training says: lines, a bar, `metrics.jsonl`, trackers; only the main process speaks."""

import math
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from dataset.printing import Bars, about, printable
from model.errors import UserError, brief
from model.files import own
from trainer.balance import Balance
from trainer.device import MEGABYTE, Device, peak_flops, peak_megabytes
from trainer.loss_picture import LossPicture
from trainer.objective import rewards_in_short, rewards_of
from trainer.run_dir import METRICS, SAMPLES, TAKE_AWAY, RunDirectory
from trainer.settings import FRESH, TrainSettings, flatten, to_plain
from trainer.training_state import Progress
from trainer.validation import Likelihood, in_one_line

Item = TypeVar("Item")
HANG_UP_AFTER_SECONDS = 0.5
"""lets gloo's thread forget the last barrier, for which it needs Python's lock: closing holds that lock and
waits for the thread"""
PROJECT = "sightline"
"""name for trackers; tensorboard's is that of a folder in the run directory"""
PATIENCE = 10 * 3600
"""seconds of a pretraining on a CPU from which on a shorter one is pointed to"""


class Reporter:
    """Shows the steps of a training while it is entered."""

    def __init__(
        self,
        settings: TrainSettings,
        device: Device,
        total_steps: int,
        first_compiles: bool,
        balance: Balance | None,
    ) -> None:
        """Report on a training of `total_steps` optimizer steps, whose experts `balance` counts, if any."""
        self._settings, self._device, self._accelerator = settings, device, device.accelerator
        self._total_steps, self._first_compiles = total_steps, first_compiles
        self._balance = balance
        self._run_dir, self._speaks = RunDirectory(settings.out), self._accelerator.is_main_process
        self._picture, self._bars = LossPicture(self._run_dir), Bars(sys.stdout)

    def __enter__(self) -> "Reporter":
        """Open the tracker, if one is asked for."""
        if self._settings.tracker != "none":
            self._open_tracker(self._settings.tracker)
        return self

    def _open_tracker(self, tracker: str) -> None:
        values = flatten(to_plain(self._settings))
        if tracker != "wandb":  # most others take only text for what is no number
            values = {key: str(value) for key, value in values.items()}
        options = _options(self._settings) if self._speaks else {}
        if tracker == "tensorboard":
            self.say(f"tracker    tensorboard --logdir {printable(str(self._run_dir.path / PROJECT))}")
        try:
            self._accelerator.init_trackers(PROJECT, config=values, init_kwargs=options)
        except Exception as error:  # every tracker raises errors of its own
            raise UserError(f"--tracker {tracker} cannot be used: {error}") from error

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Leave the bar as it is, and close trackers and connections."""
        self._bars.close()
        if kind is None:
            self._accelerator.wait_for_everyone()  # who hangs up first leaves the others hanging
            if self._accelerator.num_processes > 1:
                time.sleep(HANG_UP_AFTER_SECONDS)
            self._accelerator.end_training()

    def say(self, line: str) -> None:
        """Print a line, in which foreign names may stand, above the bar if there is one."""
        if self._speaks:
            self._bars.say(line)

    def begin(self, progress: Progress) -> None:
        """Start the clocks of a training that stands where `progress` says, and follow it from here on."""
        self._progress, self._began = progress, time.monotonic() - progress.seconds
        self.meter = Meter(progress, self._first_compiles)

    def end_step(self) -> None:
        """Measure an optimizer step, and move the bar, which comes with the first."""
        self.meter.end_step()
        if self._speaks:
            step, total, seconds_left = self._progress.step, self._total_steps, self._seconds_left
            left = "" if seconds_left is None else f", {about(seconds_left)} left"
            self._bars.show("training", step, total, f"{step}/{total} steps{left}")

    @property
    def seconds(self) -> float:
        """Time of the whole training, without that between an end and going on."""
        return time.monotonic() - self._began

    @property
    def _seconds_left(self) -> float | None:
        return self.meter.seconds_left(self._total_steps - self._progress.step)

    def log_training(self, learning_rate: float, gradient_norm: float) -> None:
        """Record and print what happened since the last call, and draw the curves now and then."""
        progress, device, rates = self._progress, self._accelerator.device, self.meter.read()
        targets, flops = progress.targets_since_log, rates.pop("flops_per_second") / self._device.world
        record = {
            "step": progress.step,
            "loss": progress.nats_since_log / targets if targets else None,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm if math.isfinite(gradient_norm) else None,
            "skipped_steps": progress.skipped_steps,
            "epoch": progress.epoch,
            "tokens": progress.tokens,
            "targets": progress.targets,
            **rates,
            **(self._balance.figures() if self._balance else {}),
            **rewards_of(progress.sums_since_log, targets),
            "seconds_left": self._seconds_left,
            "model_flop_utilisation": flops / peak_flops(device, self._device.dtype),
            "memory_megabytes": peak_megabytes(device),
        }
        progress.clear_log()
        self._record(record, in_short(record))
        if self._speaks:
            self._picture.draw(at_once=False)

    def estimate_if_due(self) -> None:
        """Say how long all takes: after the first step of this process, or the second if that compiles."""
        if self.meter.steps == 1 + self._first_compiles:
            self.say_estimate(self._seconds_left, self.seconds)

    def say_estimate(self, seconds_left: float, seconds: float) -> None:
        """Say how long a training takes that took `seconds` so far, and how a long one takes less."""
        self.say(f"estimate   about {about(seconds + seconds_left)} in all, {about(seconds_left)} left")
        is_on_cpu = self._accelerator.device.type == "cpu"
        if self._settings.init == FRESH and is_on_cpu and seconds_left > PATIENCE:
            self.say("           --config configs/pretrain_cpu.yaml takes about half an hour on two cores")

    def say_skipped(self, is_overflow: bool) -> None:
        """Say that an update was skipped, and why."""
        scale, in_a_row = self._progress.loss_scale, self._progress.skipped_in_a_row
        reason = f"loss or gradient is not finite, update skipped ({in_a_row} in a row)"
        if is_overflow:
            reason = "a gradient left the range of float16, update skipped, "
            reason += f"loss scale halved to {scale:,.0f}"
        self.say(f"step {self._progress.step}: {reason}")

    def log_validation(
        self, step: int, results: dict[str, Likelihood], samples: list[dict[str, Any]]
    ) -> None:
        """Record and print what the model says and its loss on every store, and draw the curves if due."""
        if samples:
            self._run_dir.append_records(SAMPLES, [{"step": step} | sample for sample in samples])
        for sample in samples:
            self.say(f"sample     {in_one_line(sample)}")
        for name, likelihood in results.items():
            numbers = {"nats_per_token": likelihood.nats_per_token, "bits_per_byte": likelihood.bits_per_byte}
            rewards = rewards_of(likelihood.others, likelihood.targets)
            in_bytes = (
                "" if likelihood.bits_per_byte is None else f" {likelihood.bits_per_byte:.4f} bits/byte"
            )
            unit = "pair" + rewards_in_short(rewards) if rewards else "token"
            line = f"validation {name} {likelihood.nats_per_token:.4f} nats/{unit}{in_bytes}"
            self._record({"step": step, "validation": name} | numbers | rewards, line)
        if self._speaks:
            self._picture.draw(at_once=False)

    def say_end(self, is_finished: bool) -> None:
        """Say how it ended, and how to go on; draw the curves of what is finished."""
        if self._speaks:
            self._picture.draw(at_once=is_finished)
        place = f"after step {self._progress.step} of {self._total_steps}"
        stopped = f"stopped and saved {place}; the same command continues from there"
        self.say(f"finished: {self._settings.out} holds the model" if is_finished else stopped)

    def _record(self, record: dict[str, Any], line: str) -> None:
        step, group = record["step"], record.get("validation", "training")
        if self._speaks:
            self._run_dir.append_records(METRICS, [record])
        numbers = {f"{group}/{key}": value for key, value in record.items() if isinstance(value, int | float)}
        self._accelerator.log(numbers, step=step)
        self.say(f"step {step:>{len(str(self._total_steps))}}/{self._total_steps} {line}")


def _options(settings: TrainSettings) -> dict[str, dict[str, str]]:
    """Return what some trackers are told: the name and place of a run, and that it may go on."""
    out, tracker = Path(settings.out), settings.tracker
    if tracker not in ("wandb", "swanlab", "trackio"):
        return {}
    run_id = _run_id(out / tracker / "run_id")
    named = {"name": out.name, "id": run_id}
    options = {
        "wandb": {"dir": settings.out, **named},
        "swanlab": {"log_dir": str(out / tracker), **named},
        "trackio": {"name": f"{out.name}-{run_id}"},  # by which alone it knows a run
    }
    return {tracker: options[tracker] | {"resume": "allow"}}


def _run_id(file: Path) -> str:
    """Return the name of a run at a tracker, which it keeps when it is continued."""
    if not own(file).exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(secrets.token_hex(4))
    if not (run_id := file.read_text(errors="replace")).isalnum():
        raise UserError(f"{file} is damaged (no name of a run, {brief(run_id)}); {TAKE_AWAY}")
    return run_id


class Meter:
    """Measures what a process adds to the progress of a training, and how long all that is left will take.

    Saves and validations count only in the latter.
    """

    def __init__(self, progress: Progress, first_compiles: bool) -> None:
        """Start measuring; a first step that compiles says nothing of the others."""
        self._progress, self._first_compiles, self.steps = progress, first_compiles, 0
        self._start()

    def _start(self) -> None:
        self._waited = self._computed = 0.0
        self._before = replace(self._progress)

    def timed(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Pass batches through and add up the time that they take to come."""
        while True:
            asked = time.monotonic()
            if self.steps <= 1:
                self._began = asked
            batch = next(batches, None)
            self._came = time.monotonic()
            self._waited += self._came - asked
            if batch is None:
                return
            yield batch

    def end_step(self) -> None:
        """Count one optimizer step, which began when its batch came."""
        self.steps, self._ended = self.steps + 1, time.monotonic()
        self._computed += self._ended - self._came

    def seconds_left(self, steps_left: int) -> float | None:
        """Return the time of the steps that are left, by the mean over this process's; None if not known yet.

        The first step, which warms up, counts only while there is no other.
        """
        if self._first_compiles and self.steps == 1:
            return None
        return steps_left * (self._ended - self._began) / max(1, self.steps - 1)

    def read(self) -> dict[str, float]:
        """Return the rates since the last reading, of all processes, and start anew."""
        now, before, seconds = self._progress, self._before, self._waited + self._computed
        rates = {
            "tokens_per_second": (now.tokens - before.tokens) / seconds,
            "targets_per_second": (now.targets - before.targets) / seconds,
            "flops_per_second": (now.ledger.flops - before.ledger.flops) / seconds,
            "waiting_share": self._waited / seconds,
        }
        self._start()
        return rates


def in_short(record: dict[str, Any]) -> str:
    """Return a training record in a line of 100 columns; None is what is not finite, or not known."""
    loss, norm = (
        "not finite" if record[name] is None else f"{record[name]:.{digits}g}"
        for name, digits in (("loss", 4), ("gradient_norm", 2))
    )
    rates = "/".join(_rounded(record[f"{name}_per_second"]) for name in ("tokens", "targets"))
    left = "?" if record["seconds_left"] is None else about(record["seconds_left"])
    return (
        f"loss {loss}{rewards_in_short(record)} lr {record['learning_rate']:.1e} norm {norm} {rates} tok/s "
        f"wait {record['waiting_share']:.0%} peak {record['model_flop_utilisation']:.0%} "
        f"{_rounded(record['memory_megabytes'] * MEGABYTE)}B {left} left"
    ).replace("e-0", "e-")


def _rounded(number: float) -> str:
    """Return a number in two or three digits: 642, 5.3k, 12k, 1.2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.{int(number < 9.95 * size)}f}{unit}"
    return f"{number:.0f}"
