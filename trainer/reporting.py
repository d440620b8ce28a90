"""What a training says: lines, a bar, `metrics.jsonl`, trackers; only the main process speaks."""

import secrets
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from model.errors import UserError
from trainer.loss_picture import LossPicture
from trainer.run_dir import METRICS, SAMPLES, RunDirectory
from trainer.samples import in_one_line
from trainer.settings import TrainSettings, flatten, to_plain
from trainer.validation import Likelihood

Item = TypeVar("Item")
HANG_UP_AFTER_SECONDS = 0.5
"""lets gloo's thread forget the last barrier, for which it needs Python's lock: closing holds that lock and
waits for the thread"""
MOST_SECONDS = 10**9
"""where `time_left` stops counting"""


class Reporter:
    """Shows the steps of a training while it is entered."""

    def __init__(
        self, run_dir: RunDirectory, accelerator: Accelerator, settings: TrainSettings, total_steps: int
    ) -> None:
        """Report on a training of `total_steps` optimizer steps."""
        self._run_dir, self._accelerator, self._settings = run_dir, accelerator, settings
        self._total_steps, self._speaks = total_steps, accelerator.is_main_process
        self._picture = LossPicture(run_dir)
        columns = (BarColumn(), MofNCompleteColumn(), "steps", TimeRemainingColumn())
        self._bar = Progress(*columns, disable=not (self._speaks and sys.stdout.isatty()))
        self._task = self._bar.add_task("", total=total_steps)

    def __enter__(self) -> "Reporter":
        """Open the trackers and show the bar."""
        values, wandb = flatten(to_plain(self._settings)), {}
        if self._settings.tracker != "wandb":  # most others take only text for what is no number
            values = {key: str(value) for key, value in values.items()}
        elif self._speaks:
            wandb = {"dir": self._settings.out, "name": Path(self._settings.out).name}
            wandb |= {"id": _wandb_id(Path(self._settings.out) / "wandb/run_id"), "resume": "allow"}
        try:
            self._accelerator.init_trackers("sightline", config=values, init_kwargs={"wandb": wandb})
        except Exception as error:  # every tracker raises errors of its own
            raise UserError(f"--tracker {self._settings.tracker} cannot be used: {error}") from error
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Take the bar away, and close trackers and connections."""
        self._bar.stop()
        if kind is None:
            self._accelerator.wait_for_everyone()  # who hangs up first leaves the others hanging
            if self._accelerator.num_processes > 1:
                time.sleep(HANG_UP_AFTER_SECONDS)
            self._accelerator.end_training()

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if not self._bar.disable:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        elif self._speaks:
            print(line, flush=True)

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step)

    def log_training(self, record: dict[str, Any]) -> None:
        """Record and print where the training stands; `loss` and `gradient_norm` are None if not finite."""
        loss, norm = (
            "not finite" if record[name] is None else f"{record[name]:.4g}"
            for name in ("loss", "gradient_norm")
        )
        self._record(
            record,
            f"loss {loss}  lr {record['learning_rate']:.2e}  gradient norm {norm}  "
            f"{record['tokens_per_second']:,.0f} tokens/s  {record['targets_per_second']:,.0f} targets/s  "
            f"waiting {record['waiting_share']:.1%}  {record['model_flop_utilisation']:.0%} of peak  "
            f"{record['memory_megabytes']:,.0f} MB  {time_left(record['seconds_left'])} left",
        )
        if self._speaks:
            self._picture.draw_if_due()

    def log_validation(self, step: int, results: dict[str, Likelihood]) -> None:
        """Record and print the loss on every validation store, and draw the curves anew."""
        for name, likelihood in results.items():
            numbers = {"nats_per_token": likelihood.nats_per_token, "bits_per_byte": likelihood.bits_per_byte}
            in_bytes = (
                "" if likelihood.bits_per_byte is None else f"  {likelihood.bits_per_byte:.4f} bits/byte"
            )
            line = f"validation {name}  {likelihood.nats_per_token:.4f} nats/token{in_bytes}"
            self._record({"step": step, "validation": name} | numbers, line)
        if self._speaks:
            self._picture.draw()

    def log_samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        """Record and print what the model says; on the main process."""
        if samples:
            self._run_dir.append_records(SAMPLES, [{"step": step} | sample for sample in samples])
        for sample in samples:
            self.say(f"sample     {in_one_line(sample)}")

    def _record(self, record: dict[str, Any], line: str) -> None:
        step, group = record["step"], record.get("validation", "training")
        if self._speaks:
            self._run_dir.append_records(METRICS, [record])
        numbers = {f"{group}/{key}": value for key, value in record.items() if isinstance(value, int | float)}
        self._accelerator.log(numbers, step=step)
        self.say(f"step {step:>{len(str(self._total_steps))}}/{self._total_steps}  {line}")


def _wandb_id(file: Path) -> str:
    """Return the name of a run at wandb, which it keeps when it is continued."""
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(secrets.token_hex(4))
    return file.read_text()


class Meter:
    """Measures optimizer steps and the waiting for their data; saves and validations do not count."""

    def __init__(self) -> None:
        """Start measuring."""
        self._waited = self._computed = 0.0
        self._steps = self._tokens = self._targets = 0

    def timed(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Pass batches through and add up the time that they take to come."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def count(self, tokens: int, targets: int, seconds: float) -> None:
        """Count one optimizer step that took `seconds`."""
        self._steps += 1
        self._tokens += tokens
        self._targets += targets
        self._computed += seconds

    def read(self, steps_left: int) -> dict[str, float]:
        """Return the rates since the last reading, and start anew."""
        seconds = self._waited + self._computed
        rates = {
            "tokens_per_second": self._tokens / seconds,
            "targets_per_second": self._targets / seconds,
            "waiting_share": self._waited / seconds,
            "seconds_left": steps_left * seconds / self._steps,
        }
        self.__init__()
        return rates


def time_left(seconds: float) -> str:
    """Return hours, minutes and seconds, at most 31 years: --max_steps may be any number."""
    return str(timedelta(seconds=min(round(seconds), MOST_SECONDS)))
