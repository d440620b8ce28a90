"""Measure how many steps Muon needs for what AdamW reaches: python -m scripts.bench optimizers …"""

import sys

if not __package__:
    print("error: run python -m scripts.bench.optimizers from the repository root", file=sys.stderr)
    sys.exit(2)

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from dataset.command_line import parse, run
from model.config import from_preset
from model.errors import UserError
from scripts.bench.measuring import measure, print_table, scratch_folder, write_figures
from trainer.settings import OptimizerSettings

VALIDATION_SHARE = 0.05
WARMUP_STEPS = 20
HEADER = ("steps", "rate", "nats/token", "by AdamW's")


@dataclass(frozen=True)
class OptimizerBenchSettings:
    """What `scripts.bench optimizers` is asked for."""

    data: tuple[str, ...]
    """text files, as prepare_data --kind pretrain takes them; a twentieth of the texts is for validation"""
    out: str
    """folder for the trainings, which are removed at the end, and for optimizers.json"""
    preset: str = "quickstart"
    """shape of the models"""
    vocab_size: int = 6400
    """tokens of the tokenizer that is trained for it"""
    steps: int = 600
    """optimizer steps of AdamW"""
    share: float = 0.75
    """part of them that Muon gets, with a schedule of that length"""
    learning_rates: tuple[float, ...] = (0.001, 0.002, 0.004, 0.008)
    """peaks that both are tried with"""
    batch_size: int = 8
    """rows of a step"""
    max_seq_len: int = 256
    """tokens of a row"""

    def __post_init__(self) -> None:
        from_preset(self.preset, vocab_size=self.vocab_size)
        for rate in self.learning_rates:
            OptimizerSettings(learning_rate=rate)
        if len(set(map("{:g}".format, self.learning_rates))) < max(1, len(self.learning_rates)):
            raise UserError("--learning_rates: expected one or more, each of them once")
        if not 0 < self.share <= 1 or self.muon_steps <= WARMUP_STEPS:
            raise UserError(
                f"expected a --share between 0 and 1, and more than {WARMUP_STEPS} steps for Muon, "
                f"got {self.share:g} of {self.steps}"
            )

    @property
    def muon_steps(self) -> int:
        """Return how many steps Muon takes."""
        return round(self.share * self.steps)


@dataclass(frozen=True)
class Line:
    """A training and what it reached."""

    name: str
    steps: int
    learning_rate: float
    nats_per_token: float
    """infinite where it diverged"""


def main() -> None:
    """Train with both over the same learning rates; print what they reach and write it as JSON."""
    settings = parse(OptimizerBenchSettings, "Measure how many steps Muon needs for what AdamW reaches.")
    with scratch_folder(settings.out) as work:
        lines = _train_all(settings, work)
    best = {line.name: line for line in sorted(lines, key=lambda line: -line.nats_per_token)}
    write_figures(settings.out, "optimizers", [asdict(line) for line in lines])
    goal = best["adamw"].nats_per_token
    print_table(HEADER, [(line.name, _cells(line, goal)) for line in lines])
    reached = best["muon"].nats_per_token
    verdict = "reaches" if reached <= goal and reached < math.inf else "does not reach"
    print(f"muon {verdict} AdamW's best loss in {settings.muon_steps / settings.steps:.0%} of its steps")


def _train_all(settings: OptimizerBenchSettings, work: Path) -> list[Line]:
    """Train as many models at a time as there are cores: losses do not depend on how fast it goes."""
    tokenizer, stores = str(work / "tokenizer"), work / "stores"
    _call("scripts.train_tokenizer", data=settings.data, vocab_size=settings.vocab_size, out=tokenizer)
    split = {"validation_fraction": VALIDATION_SHARE, "tokenizer": tokenizer, "out": stores}
    _call("scripts.prepare_data", kind="pretrain", data=settings.data, **split)
    rates = settings.learning_rates
    wanted = [("adamw", settings.steps, rate) for rate in rates]
    wanted += [("muon", settings.muon_steps, rate) for rate in rates]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda line: _train(settings, work, *line), wanted))


def _train(settings: OptimizerBenchSettings, work: Path, name: str, steps: int, rate: float) -> Line:
    run_dir = work / f"{name}-{rate:g}"
    flags = dict(
        data=work / "stores",
        validation=work / "stores/validation",
        out=run_dir,
        compile="never",
        samples=0,
        max_steps=steps,
        **{name: getattr(settings, name) for name in ("batch_size", "max_seq_len")},
        **{"model.preset": settings.preset, "optimizer.name": name, "optimizer.learning_rate": rate},
        **{"schedule.warmup_steps": WARMUP_STEPS},
    )
    try:
        _call("trainer.pretrain", **flags)
    except UserError:
        if not list(run_dir.glob("not_finite*")):
            raise
        return Line(name, steps, rate, math.inf)
    [validation] = json.loads((run_dir / "summary.json").read_text())["validation"].values()
    return Line(name, steps, rate, validation["last"]["nats_per_token"])


def _call(module: str, **flags: object) -> None:
    """Run a command of the project; raises `UserError` with its last words if it fails."""
    words: list[str] = []
    for name, value in flags.items():
        words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    print(f"{module} {' '.join(words)} …", file=sys.stderr)
    measure([sys.executable, "-m", module, *words])


def _cells(line: Line, goal: float) -> tuple[str, ...]:
    """Return what is printed of a line."""
    loss = line.nats_per_token
    return f"{line.steps}", f"{line.learning_rate:g}", f"{loss:.4f}", f"{loss - goal:+.4f}"


if __name__ == "__main__":
    run(main)
