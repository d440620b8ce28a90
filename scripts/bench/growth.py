"""Measure what grows with the length of rows, and how fast: python -m scripts.bench growth …"""

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from scripts.bench.measuring import BenchSettings, Figures, PeakMemory, bench

if TYPE_CHECKING:
    from model.config import ModelConfig

NAMES = ("step_seconds", "step_megabytes", "mask_seconds", "token_seconds", "answer_megabytes")
HEADER = ("s/step", "step MB", "masks ms", "of step", "token ms", "answer MB")
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
    """steps, and rows whose masks are made, of which medians are taken"""
    new_tokens: int = 64
    """tokens that are decoded behind a prompt"""
    compile: bool = False
    """whether training is compiled"""

    def __post_init__(self) -> None:
        if min(self.rounds, self.new_tokens) < 1:
            raise UserError("--rounds, --new_tokens: expected 1 or more")
        if len(set(self.lengths)) < 2 or min(self.lengths) <= FEWEST_TOKENS:
            raise UserError(
                f"--lengths: expected two or more, each above {FEWEST_TOKENS}, got {self.lengths}"
            )


def main() -> None:
    """Measure time and memory by the length of a row."""
    bench(GrowthBenchSettings, "Measure how time and memory grow with the length of rows.", _find)


def _find(settings: GrowthBenchSettings, work: Path) -> Figures:
    from model.config import from_preset

    context = max(settings.lengths) + settings.new_tokens
    shape = {"vocab_size": settings.vocab_size, "max_position_embeddings": context}
    config = from_preset(settings.preset, **shape, sliding_window=settings.sliding_window)
    lines = []
    for length in settings.lengths:
        print(f"{length} tokens …", file=sys.stderr)
        line = {"length": length} | _step(settings, config, length) | _answer(settings, config, length)
        lines.append(line | {"share": line["mask_seconds"] / line["step_seconds"]})
    exponents = {name: exponent(settings.lengths, [line[name] for line in lines]) for name in NAMES}
    rows = [(f"{line['length']} tokens", _cells(line)) for line in lines]
    powers = [f"{power:.2f}" for power in exponents.values()]
    rows.append(("exponent", [*powers[:3], "", *powers[3:]]))
    return Figures({"lines": lines, "exponents": exponents}, HEADER, rows)


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """Return the power of the length that values grow as: the slope of the line through their logarithms."""
    logs = ([math.log(max(value, 1e-9)) for value in each] for each in (lengths, values))
    return statistics.linear_regression(*logs).slope


def _step(settings: GrowthBenchSettings, config: "ModelConfig", length: int) -> dict[str, float]:
    """Return what a training step on one row costs, in a process of its own, and the masks in it."""
    import torch

    from model.transformer import LanguageModel
    from scripts.bench.step_engines import Conditions, our_engine, started
    from scripts.bench.train import full_rows

    conditions = Conditions(config, torch.device("cpu"), torch.float32, settings.compile)
    short, rows = (full_rows(1, tokens, settings.vocab_size) for tokens in (FEWEST_TOKENS, length))
    with started(our_engine, conditions) as worker:
        worker.seconds(next(short))
        base = worker.megabytes
        worker.seconds(next(rows))  # the first step allocates, and compiles
        seconds = statistics.median(worker.seconds(next(rows)) for _ in range(settings.rounds))
        added = worker.megabytes - base
    batch, body = next(rows), LanguageModel(config).model
    masks = _median_seconds(settings.rounds, partial(body.visibilities, batch.ids, batch.layout))
    return {"step_seconds": seconds, "step_megabytes": added, "mask_seconds": masks}


def _median_seconds(rounds: int, act: partial) -> float:
    """Return how long it takes to do something, which is done once before."""
    seconds = []
    for _ in range(1 + rounds):
        began = perf_counter()
        act()
        seconds.append(perf_counter() - began)
    return statistics.median(seconds[1:])


def _answer(settings: GrowthBenchSettings, config: "ModelConfig", length: int) -> dict[str, float]:
    """Return what a token behind a prompt costs, and what prompt and answer add to this process."""
    from model.generator import Generator
    from model.prompt import Prompt
    from model.transformer import LanguageModel

    generator = Generator(LanguageModel(config), stop_ids=())
    prompt = Prompt((1,) * length, (-1,) * length)
    with PeakMemory() as memory:
        cache = generator.model.new_cache(1)
        generator.prefill(cache, [prompt])
        seconds = _median_seconds(settings.new_tokens - 1, partial(generator.decode, cache, [1]))
    return {"token_seconds": seconds, "answer_megabytes": memory.added_bytes / 1e6}


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    """Return what is printed of a record."""
    return (
        f"{line['step_seconds']:.3f}",
        f"{line['step_megabytes']:,.0f}",
        f"{line['mask_seconds'] * 1000:.1f}",
        f"{line['share']:.2%}",
        f"{line['token_seconds'] * 1000:.2f}",
        f"{line['answer_megabytes']:.1f}",
    )
