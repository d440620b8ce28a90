"""Measure what grows with the length of rows, and how fast: python -m scripts.bench growth …"""

import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from scripts.bench.measuring import BenchSettings, Figures, bench

if TYPE_CHECKING:
    from dataset.batches import Batch
    from model.transformer import LanguageModel
    from scripts.bench.step_engines import Worker

TIMES = ("step_seconds", "mask_seconds", "token_seconds")
MEMORIES = ("step_megabytes", "cache_megabytes")
HEADER = ("s/step", "masks ms", "token ms", "step MB", "cache MB", "masks/step")
FEWEST_TOKENS = 64
"""of rows whose memory is taken from that of longer ones: what any training holds"""


@dataclass(frozen=True, kw_only=True)
class GrowthBenchSettings(BenchSettings):
    """What `scripts.bench growth` is asked for."""

    preset: str = "tiny"
    """shape of the model, whose weights are random"""
    sliding_window: int | None = 128
    """last keys that tokens of all layers see; null for all"""
    lengths: tuple[int, ...] = (2048, 4096, 8192, 16384)
    """tokens of a row in training, and of a prompt, in this order"""
    rounds: int = 5
    """how often all lengths take their turns, of which medians are taken"""
    new_tokens: int = 64
    """tokens that are decoded behind a prompt in a turn"""
    compile: bool = False
    """whether training is compiled"""

    def __post_init__(self) -> None:
        if min(self.rounds, self.new_tokens) < 1:
            raise UserError("--rounds, --new_tokens: expected 1 or more")
        if len(set(self.lengths)) < 2 or min(self.lengths) <= FEWEST_TOKENS:
            raise UserError(
                f"--lengths: expected two or more, each above {FEWEST_TOKENS}, got {self.lengths}"
            )


@dataclass
class Way:
    """A length, and what is done on a row of it; a training has a process of its own."""

    length: int
    worker: "Worker"
    rows: "Iterator[Batch]"
    masks: Callable[[], object]
    token: Callable[[], object]
    base_megabytes: float
    """what the training held after a short row"""
    cache_megabytes: float
    """keys and values that are held behind a prompt"""

    def turn(self, new_tokens: int) -> dict[str, float]:
        """Return what a step, its masks and a token take in seconds."""
        tokens = statistics.median(_seconds(self.token) for _ in range(new_tokens))
        return dict(
            zip(TIMES, (self.worker.seconds(next(self.rows)), _seconds(self.masks), tokens), strict=True)
        )

    def memory(self) -> dict[str, float]:
        """Return what the training added at the most, and the cache holds."""
        added = self.worker.megabytes - self.base_megabytes
        return dict(zip(MEMORIES, (added, self.cache_megabytes), strict=True))


def main() -> None:
    """Measure time and memory by the length of a row."""
    bench(GrowthBenchSettings, "Measure how time and memory grow with the length of rows.", _find)


def _find(settings: GrowthBenchSettings, work: Path) -> Figures:
    from model.config import from_preset
    from model.transformer import LanguageModel
    from trainer.device import keep_freed_memory

    keep_freed_memory()  # as trainings do, which make the masks
    tokens = max(settings.lengths) + (settings.rounds + 1) * settings.new_tokens
    shape = {"vocab_size": settings.vocab_size, "max_position_embeddings": tokens}
    model = LanguageModel(from_preset(settings.preset, **shape, sliding_window=settings.sliding_window))
    with ExitStack() as stack:
        ways = [_way(settings, model, length, stack) for length in settings.lengths]
        turns = [[way.turn(settings.new_tokens) for way in ways] for _ in range(settings.rounds)]
    lines = [
        {"length": way.length}
        | {name: statistics.median(turn[n][name] for turn in turns) for name in TIMES}
        | way.memory()
        for n, way in enumerate(ways)
    ]
    found = _exponents(settings.lengths, turns, lines)
    rows = [(f"{line['length']} tokens", _cells(line)) for line in lines]
    rows.append(("exponent", [f"{power:.2f}" for power, *_ in found.values()]))
    for n, name in ((1, "  least"), (2, "  most")):
        rows.append((name, [f"{found[time][n]:.2f}" for time in TIMES]))
    return Figures({"lines": lines, "exponents": found}, HEADER, rows)


def _way(settings: GrowthBenchSettings, model: "LanguageModel", length: int, stack: ExitStack) -> Way:
    """Begin a training and an answer, so far that nothing is done for the first time any more."""
    import torch

    from model.generator import Generator
    from model.prompt import Prompt
    from scripts.bench.step_engines import Conditions, our_engine, started
    from scripts.bench.train import full_rows

    print(f"{length} tokens …", file=sys.stderr)
    conditions = Conditions(model.config, torch.device("cpu"), torch.float32, settings.compile)
    worker = stack.enter_context(started(our_engine, conditions))
    worker.seconds(next(full_rows(1, FEWEST_TOKENS, settings.vocab_size)))
    base, rows = worker.megabytes, full_rows(1, length, settings.vocab_size)
    worker.seconds(next(rows))

    generator, prompt = Generator(model, stop_ids=()), Prompt((1,) * length, (-1,) * length)
    cache = model.new_cache(1)
    generator.prefill(cache, [prompt])
    generator.decode(cache, [1])
    held = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values)) / 1e6
    batch = next(rows)
    masks = partial(model.model.visibilities, batch.ids, batch.layout)
    return Way(length, worker, rows, masks, partial(generator.decode, cache, [1]), base, held)


def _seconds(act: Callable[[], object]) -> float:
    began = perf_counter()
    act()
    return perf_counter() - began


def _exponents(
    lengths: Sequence[int], turns: list[list[dict[str, float]]], lines: list[dict[str, float]]
) -> dict[str, tuple[float, ...]]:
    """Return the exponent of each figure: of times the median, least and most of the turns."""
    found: dict[str, tuple[float, ...]] = {}
    for name in TIMES:
        powers = [exponent(lengths, [each[name] for each in turn]) for turn in turns]
        found[name] = (statistics.median(powers), min(powers), max(powers))
    return found | {name: (exponent(lengths, [line[name] for line in lines]),) for name in MEMORIES}


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """Return the power of the length that values grow as: the slope of the line through their logarithms."""
    logs = ([math.log(max(value, 1e-9)) for value in each] for each in (lengths, values))
    return statistics.linear_regression(*logs).slope


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    """Return what is printed of a record."""
    return (
        f"{line['step_seconds']:.3f}",
        f"{line['mask_seconds'] * 1000:.1f}",
        f"{line['token_seconds'] * 1000:.2f}",
        f"{line['step_megabytes']:,.0f}",
        f"{line['cache_megabytes']:.2f}",
        f"{line['mask_seconds'] / line['step_seconds']:.2%}",
    )
