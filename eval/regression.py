"""In-context linear regression: `python -m eval.regression --prompt_mask prefix --out out/regression`."""

import sys

if not __package__:
    print("error: run python -m eval.regression from the repository root", file=sys.stderr)
    sys.exit(2)

import os
from dataclasses import dataclass
from typing import Literal

from dataset.command_line import parse, run
from dataset.printing import printable
from model.config import DeviceName
from model.errors import UserError, brief
from trainer.settings import OptimizerSettings, ScheduleSettings


@dataclass(frozen=True, kw_only=True)
class RegressionSettings:
    """Which model learns to fit lines from examples (Garg et al. 2022, arXiv 2208.01066), and how."""

    out: str
    """folder for items.json, summary.json and metrics.jsonl; a finished run there is not repeated"""
    prompt_mask: Literal["causal", "prefix", "sets"] = "causal"
    """prefix: the examples see each other in both directions; sets: none sees another, and they share a
    position; the query sees all of them in any case"""
    seed: int = 0
    """of fresh weights and of the tasks trained on; those measured are the same for every seed"""
    num_hidden_layers: int = 3
    """number of decoder layers"""
    hidden_size: int = 64
    """width of the residual stream; a multiple of 32, as heads have 16 dimensions and share keys in pairs"""
    dimensions: int = 4
    """numbers in an input"""
    examples: int = 16
    """pairs of input and value before the query"""
    max_steps: int = 800
    """length of the training in optimizer steps"""
    batch_size: int = 64
    """tasks of a step, each with a line of its own"""
    evaluation_tasks: int = 1000
    """tasks to measure afterwards, which no training draws"""
    orders: int = 0
    """random orders of the examples of a measured task, over which predictions are compared, too; 0: none"""
    optimizer: OptimizerSettings = OptimizerSettings(name="muon", learning_rate=5e-3, weight_decay=0.0)
    schedule: ScheduleSettings = ScheduleSettings(decay_fraction=0.5)
    log_every_steps: int = 50
    """optimizer steps between two records of metrics.jsonl"""
    device: DeviceName = "auto"
    """where it is computed; auto: on the accelerator where there is one, else on the CPU"""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn or built."""
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed: expected 0 to 2^63 - 1, got {self.seed}")
        for name, least in MULTIPLES.items():
            if not least <= (value := getattr(self, name)) <= MOST or value % least:
                wanted = f"{least} or a multiple of it, up to {MOST:,}"
                raise UserError(f"--{name}: expected {wanted}, got {value}")
        if not 0 <= self.orders <= MOST or self.orders == 1:
            raise UserError(f"--orders: expected 0, or 2 to {MOST:,} to compare, got {self.orders}")


COUNTS = "dimensions examples max_steps batch_size evaluation_tasks log_every_steps num_hidden_layers"
MULTIPLES = {"hidden_size": 32} | dict.fromkeys(COUNTS.split(), 1)
"""what settings must be multiples of"""
MOST = 10**6
"""that any of them may be"""


def main() -> None:
    """Train and measure, unless that is done, and print the error."""
    settings = parse(RegressionSettings, "Train a decoder on in-context linear regression, and measure it.")
    if (number := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(f"in-context regression takes one process, got WORLD_SIZE={brief(number)}")
    from eval.in_context import find, train_and_save

    if summary := find(settings):
        print(printable(f"{settings.out} holds this run already"))
    summary = summary or train_and_save(settings)
    print(f"mean squared error {summary['mean_squared_error']:.4f}, {summary['seconds']:.0f} s")


if __name__ == "__main__":
    run(main, stdout_is_log=True)
