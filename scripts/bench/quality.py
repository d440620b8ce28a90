"""Measure what some minutes of training reach beside what others reach: python -m scripts.bench quality …"""

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import ModelConfig, from_preset
from model.errors import UserError
from scripts.bench.measuring import BenchSettings, Figures, bench, call, refuse_below, spread

if TYPE_CHECKING:
    from scripts.bench.reference_loop import Recipe

VALIDATION_SHARE = 0.05
PROBES = 5, 30
"""steps of the two short trainings by which ours is told how many it has time for"""
WARM_UP_STEPS = 20
"""of ours, of which one is spent on raising the rate"""
HEADER = ("minutes", "steps", "bits/byte", "least", "most", "seeds")
CACHE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True, kw_only=True)
class QualityBenchSettings(BenchSettings):
    """What `scripts.bench quality` is asked for."""

    data: tuple[str, ...]
    """text files, as prepare_data --kind pretrain takes them; a twentieth of the texts is held out"""
    preset: str = "small"
    """shape of all models; small is that of 30M parameters"""
    minutes: float = 10.0
    """that the other loops train, from the start of the process on, compilation included"""
    shares: tuple[float, ...] = (0.125, 0.5)
    """parts of these minutes that our trainings take, each with a schedule of its own"""
    seeds: int = 3
    """trainings of each kind; with the first one, each is tried with all that follows"""
    config: str = "configs/pretrain_cpu.yaml"
    """recipe of our trainings, but for shape, rows, steps and warm-up"""
    own_batch_sizes: tuple[int, ...] = (8, 4)
    """rows of a step that ours is tried with"""
    max_seq_len: int = 340
    """tokens of a row, for all"""
    batch_sizes: tuple[int, ...] = (8, 32, 256)
    """rows of a step that minimind's loop is tried with; 256 is what it publishes"""
    learning_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    """peaks that the compiled loop around transformers is tried with, at eight rows a step"""

    def __post_init__(self) -> None:
        refuse_below(self, seeds=1, own_batch_sizes=1, batch_sizes=1, max_seq_len=16)
        for name in ("minutes", "shares", "learning_rates"):
            value = getattr(self, name)
            if not all(0 < each < math.inf for each in (value if isinstance(value, tuple) else (value,))):
                raise UserError(f"--{name}: expected finite numbers above 0, got {value}")
        self.shape()

    def shape(self) -> ModelConfig:
        """Return the shape of all models."""
        return from_preset(self.preset, vocab_size=self.vocab_size, max_position_embeddings=self.max_seq_len)


@dataclass(frozen=True)
class Line:
    """A training, and what it reached."""

    name: str
    minutes: float
    steps: int
    bits_per_byte: float


def main() -> None:
    """Train with ours and with what others run, and say what each reaches."""
    bench(QualityBenchSettings, "Measure what some minutes of training reach, beside others.", _find)


def _find(settings: QualityBenchSettings, work: Path) -> Figures:
    rivals, lines = _rivals(settings), []
    split = {"validation_fraction": VALIDATION_SHARE, "tokenizer": work / "tokenizer"}
    sizes = {"vocab_size": settings.vocab_size, "out": work / "tokenizer"}
    call("scripts.train_tokenizer", data=settings.data, **sizes)
    call("scripts.prepare_data", kind="pretrain", data=settings.data, out=work / "stores", **split)
    kinds = [[partial(_ours, share, rows) for rows in settings.own_batch_sizes] for share in settings.shares]
    kinds += [[partial(_theirs, recipe) for recipe in recipes] for recipes in rivals]
    for seed in range(settings.seeds):
        for place, tries in enumerate(kinds):
            tried = [train(settings, work, seed) for train in tries]
            kinds[place] = [min(zip(tried, tries, strict=True), key=lambda each: each[0].bits_per_byte)[1]]
            lines += tried
    names = dict.fromkeys(line.name for line in lines)
    rows = [(name, _cells([line for line in lines if line.name == name])) for name in names]
    return Figures([asdict(line) for line in lines], HEADER, rows)


def _rivals(settings: QualityBenchSettings) -> list[list["Recipe"]]:
    """Return what the other loops are tried with; raises `UserError` where nothing can be compiled."""
    import torch

    from model.systems import compiler_fault
    from scripts.bench.reference_loop import Recipe
    from scripts.bench.step_engines import Conditions, hardware

    (device, dtype), shape = hardware("auto"), settings.shape()
    if fault := compiler_fault(device):
        raise UserError(f"nothing can be compiled here ({fault}); install g++")
    plain = Conditions(shape, device, torch.float32 if device.type == "cpu" else dtype, is_compiled=False)
    fast = Conditions(shape, device, dtype, is_compiled=True)
    return [
        [Recipe(f"minimind's, {rows} rows", 5e-4, rows, plain, False) for rows in settings.batch_sizes],
        [Recipe(f"transformers, {rate:g}", rate, 8, fast, True) for rate in settings.learning_rates],
    ]


def _theirs(recipe: "Recipe", settings: QualityBenchSettings, work: Path, seed: int) -> Line:
    from scripts.bench.reference_loop import train

    with _nothing_compiled(work) as out:
        print(f"{recipe.name}, seed {seed} …", flush=True)
        steps = train(recipe, work / "stores", work / "tokenizer", out, settings.minutes, seed)
        return Line(recipe.name, settings.minutes, steps, _bits_per_byte(work, out))


def _ours(share: float, rows: int, settings: QualityBenchSettings, work: Path, seed: int) -> Line:
    """Train for about a share of the minutes, in the form that takes more steps in them."""
    seconds = 60 * settings.minutes * share
    costs = {form: _costs(settings, work, rows, form) for form in ("always", "never")}
    steps, form = max((max(1, int((seconds - rest) / step)), form) for form, (step, rest) in costs.items())
    with _nothing_compiled(work) as out:
        took = _run(settings, work, out, steps, batch_size=rows, compile=form, seed=seed)
        return Line(f"ours, {share:g}, {rows} rows", took / 60, steps, _bits_per_byte(work, out))


@cache
def _costs(settings: QualityBenchSettings, work: Path, rows: int, form: str) -> tuple[float, float]:
    """Return the seconds of a step of ours, and of all else that a training takes."""
    walls = []
    for steps in PROBES:
        with _nothing_compiled(work) as out:
            walls.append(_run(settings, work, out, steps, batch_size=rows, compile=form))
    step = max(1e-3, (walls[1] - walls[0]) / (PROBES[1] - PROBES[0]))
    return step, walls[0] - PROBES[0] * step


def _run(settings: QualityBenchSettings, work: Path, out: Path, steps: int, **own: str | int) -> float:
    """Train as a user does, and return the seconds it took."""
    flags = {"model.preset": settings.preset, "model.max_position_embeddings": settings.max_seq_len}
    flags |= {"max_seq_len": settings.max_seq_len, "max_steps": steps, "config": settings.config}
    flags |= {"schedule.warmup_steps": steps // WARM_UP_STEPS, **own}
    return call("trainer.pretrain", data=work / "stores", out=out, samples=0, **flags).seconds


def _bits_per_byte(work: Path, model: Path) -> float:
    """Return the loss of a model on the texts that are held out."""
    from trainer.validation import Likelihood

    store, out = work / "stores/validation", work / "evaluation"
    call("scripts.evaluate", model=model, loss_data=store, out=out, overwrite=True)
    [loss] = json.loads((out / "results.json").read_text())["losses"].values()
    return Likelihood(**loss).bits_per_byte


@contextmanager
def _nothing_compiled(work: Path) -> Iterator[Path]:
    """Give a folder for a training, which finds nothing in the compiler's cache, as the first one does."""
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory(prefix="run-", dir=work) as folder:
        os.environ[CACHE] = f"{folder}/compiled"
        try:
            yield Path(folder) / "run"
        finally:
            os.environ.pop(CACHE) if before is None else os.environ.update({CACHE: before})


def _cells(lines: list[Line]) -> tuple[str, ...]:
    """Return what is printed of the trainings of one kind."""
    names = ("minutes", "steps", "bits_per_byte")
    minutes, steps, bits = (spread(getattr(line, name) for line in lines) for name in names)
    return f"{minutes[0]:.1f}", f"{steps[0]:.0f}", *(f"{each:.4f}" for each in bits), f"{len(lines)}"
