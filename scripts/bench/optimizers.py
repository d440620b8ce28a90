"""Measure how many steps Muon needs for what AdamW reaches: python -m scripts.bench optimizers …"""

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from model.config import from_preset
from model.errors import UserError
from scripts.bench.measuring import BenchSettings, Figures, bench, call
from trainer.settings import OptimizerSettings

VALIDATION_SHARE = 0.05
WARMUP_STEPS = 20
HEADER = ("steps", "rate", "nats/token", "by AdamW's")


@dataclass(frozen=True, kw_only=True)
class OptimizerBenchSettings(BenchSettings):
    """What `scripts.bench optimizers` is asked for."""

    data: tuple[str, ...]
    """text files, as prepare_data --kind pretrain takes them; a twentieth of the texts is for validation"""
    preset: str = "quickstart"
    """shape of the models"""
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
    """Train with both over the same learning rates, and say what they reach."""
    bench(OptimizerBenchSettings, "Measure how many steps Muon needs for what AdamW reaches.", _find)


def _find(settings: OptimizerBenchSettings, work: Path) -> Figures:
    lines = _train_all(settings, work)
    best = {line.name: line for line in sorted(lines, key=lambda line: -line.nats_per_token)}
    goal, reached = best["adamw"].nats_per_token, best["muon"].nats_per_token
    verdict = "reaches" if reached <= goal and reached < math.inf else "does not reach"
    share = settings.muon_steps / settings.steps
    below = f"muon {verdict} AdamW's best loss in {share:.0%} of its steps"
    rows = [(line.name, _cells(line, goal)) for line in lines]
    return Figures([asdict(line) for line in lines], HEADER, rows, after=[below])


def _train_all(settings: OptimizerBenchSettings, work: Path) -> list[Line]:
    """Train as many models at a time as there are cores: losses do not depend on how fast it goes."""
    tokenizer, stores = str(work / "tokenizer"), work / "stores"
    call("scripts.train_tokenizer", data=settings.data, vocab_size=settings.vocab_size, out=tokenizer)
    split = {"validation_fraction": VALIDATION_SHARE, "tokenizer": tokenizer, "out": stores}
    call("scripts.prepare_data", kind="pretrain", data=settings.data, **split)
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
        call("trainer.pretrain", **flags)
    except UserError:
        if not list(run_dir.glob("not_finite*")):
            raise
        return Line(name, steps, rate, math.inf)
    [validation] = json.loads((run_dir / "summary.json").read_text())["validation"].values()
    return Line(name, steps, rate, validation["last"]["nats_per_token"])


def _cells(line: Line, goal: float) -> tuple[str, ...]:
    """Return what is printed of a line."""
    loss = line.nats_per_token
    return f"{line.steps}", f"{line.learning_rate:g}", f"{loss:.4f}", f"{loss - goal:+.4f}"
