"""Measure generation beside that of others on the same weights: python -m scripts.bench decode …"""

import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from model.config import Weights
from scripts.bench.measuring import Figures, PeakMemory, TurnSettings, bench, refuse_below, spread

if TYPE_CHECKING:
    from torch import Tensor

    from model.config import ModelConfig
    from scripts.bench.engines import Engine

BANDWIDTH_BYTES, READS = 2**29, 12
SHORTEST, LONGEST = 8, 256  # tokens of prompts and of answers in the queue
QUEUE_ROWS = 16
BYTES = {"float32": (4, 4), "bfloat16": (2, 2), "int8": (1, 2)}  # of a weight, of a cached number
HEADER = ("first ms", "tokens/s", "peak MB", "of limit", "sooner", "least-most", "ratio", "least-most")


@dataclass(frozen=True, kw_only=True)
class DecodeBenchSettings(TurnSettings):
    """What `scripts.bench decode` is asked for."""

    preset: str = "small"
    """shape of the model, whose weights are random; small is that of 30M parameters"""
    dtype: Weights = "bfloat16"
    """form of our weights; theirs are bfloat16 beside int8"""
    compile: bool = True
    """compile our decoding where that is measured to be faster"""
    batches: tuple[int, ...] = (1, 4, 16, 64)
    """rows that are answered together"""
    contexts: tuple[int, ...] = (64, 256, 1024, 2048)
    """tokens of their prompts"""
    new_tokens: int = 64
    """tokens of their answers"""
    queue: int = 200
    """prompts and answers of 8 to 256 tokens that go 16 at a time; 0 leaves them out"""

    def __post_init__(self) -> None:
        refuse_below(self, batches=1, contexts=1, new_tokens=2, queue=0, rounds=1)


@dataclass(frozen=True)
class Workload:
    """Prompts to answer."""

    prompts: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    """tokens of each answer"""
    rows: int
    """how many are answered together"""


class Speed(NamedTuple):
    """What one engine needed for a task."""

    first_seconds: float
    """until the first token of every row of the first batch"""
    tokens_per_second: float
    """of all rows together, after those first tokens; only tokens that were asked for count"""
    added_megabytes: float
    """memory held at the most, beyond what was there before"""


def main() -> None:
    """Measure generation, beside transformers and llama.cpp."""
    bench(DecodeBenchSettings, "Measure generation, beside others in the same run.", _find)


def _find(settings: DecodeBenchSettings, work: Path) -> Figures:
    import torch

    from model.config import from_preset
    from scripts.bench.engines import make_engines

    longest = max(max(settings.contexts) + settings.new_tokens, 2 * LONGEST)
    config = from_preset(settings.preset, vocab_size=settings.vocab_size, max_position_embeddings=longest)
    engines, form = make_engines(config, settings.dtype, settings.compile, work)
    columns = 2**13
    matrix = torch.ones(BANDWIDTH_BYTES // 4 // columns, columns)
    for engine in engines.values():  # the first call loads and allocates what the others find
        engine(_equal_task(settings, 1, SHORTEST), lambda number: None)
    lines = []
    for context in settings.contexts:
        for batch in settings.batches:
            task, name = _equal_task(settings, batch, context), f"batch {batch}, context {context}"
            line = _compare(name, engines, task, settings.rounds, matrix)
            limit = batch * line["bytes_per_second"] / _step_bytes(settings, config, batch, context)
            lines.append(line | {"limit_tokens_per_second": limit})
    if settings.queue:
        task = _queue_task(settings)
        lines.append(_compare(f"queue of {settings.queue}", engines, task, settings.rounds, matrix))
    bandwidth = statistics.median(line["bytes_per_second"] for line in lines)
    machine = {"threads": torch.get_num_threads(), "GB/s": round(bandwidth / 1e9, 1), "ours": form}
    rows = [row for line in lines for row in _rows(line)]
    above = "  ".join(f"{name} {value}" for name, value in machine.items())
    return Figures({"machine": machine, "lines": lines}, HEADER, rows, before=[above])


def _bandwidth(matrix: "Tensor") -> float:
    """Return the bytes a second that products of a matrix (m, n) and a vector read."""
    vector, started = matrix.new_ones(matrix.shape[1]), perf_counter()
    for _ in range(READS):
        matrix @ vector
    return READS * matrix.nbytes / (perf_counter() - started)


def _step_bytes(settings: DecodeBenchSettings, config: "ModelConfig", batch: int, context: int) -> int:
    """Return what a step has to read: all weights, and the keys and values half-way through the answers."""
    import torch

    from model.transformer import LanguageModel

    with torch.device("meta"):
        model = LanguageModel(config)
    is_extra = not config.tie_word_embeddings  # one row of the embedding is read, all of the output layer
    weights = model.num_parameters() - is_extra * config.vocab_size * config.hidden_size
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    weight_bytes, cache_bytes = BYTES[settings.dtype]
    tokens = batch * (context + settings.new_tokens // 2)
    return weight_bytes * weights + cache_bytes * tokens * per_token


def _equal_task(settings: DecodeBenchSettings, batch: int, context: int) -> Workload:
    noise = random.Random(context)
    prompts = tuple(tuple(noise.choices(range(settings.vocab_size), k=context)) for _ in range(batch))
    return Workload(prompts, (settings.new_tokens,) * batch, batch)


def _queue_task(settings: DecodeBenchSettings) -> Workload:
    noise = random.Random(0)
    sizes = [noise.randint(SHORTEST, LONGEST) for _ in range(settings.queue)]
    prompts = tuple(tuple(noise.choices(range(settings.vocab_size), k=size)) for size in sizes)
    lengths = tuple(noise.randint(SHORTEST, LONGEST) for _ in prompts)
    return Workload(prompts, lengths, min(QUEUE_ROWS, settings.queue))


def _compare(
    name: str, engines: "dict[str, Engine]", task: Workload, rounds: int, matrix: "Tensor"
) -> dict[str, Any]:
    """Let the engines answer a task in turns, and read a matrix; return the medians of what each needed."""
    print(f"{name} …", file=sys.stderr)
    if task.rows > 1:  # llama.cpp is asked for one answer at a time
        engines = {who: engine for who, engine in engines.items() if who != "llama.cpp"}
    turns, bandwidths = [], []
    for _ in range(rounds):
        turns.append({who: measure_engine(engine, task) for who, engine in engines.items()})
        bandwidths.append(_bandwidth(matrix))
    line = {"name": name, "bytes_per_second": statistics.median(bandwidths)}
    for who in engines:
        pairs = [(turn["ours"], turn[who]) for turn in turns]
        medians = map(statistics.median, zip(*(its for _, its in pairs), strict=True))
        line[who] = dict(zip(Speed._fields, medians, strict=True)) | {
            "sooner": spread(its.first_seconds / ours.first_seconds for ours, its in pairs),
            "ratio": spread(ours.tokens_per_second / its.tokens_per_second for ours, its in pairs),
        }
    return line


def measure_engine(engine: "Engine", task: Workload) -> Speed:
    """Return what an engine needs for a task."""
    moments: list[tuple[float, int]] = []  # when tokens were told, and how many
    with PeakMemory() as memory:
        started = perf_counter()
        engine(task, lambda number: moments.append((perf_counter(), number)))
    known = accumulate(number for _, number in moments)
    first = next(moment for (moment, _), n in zip(moments, known, strict=False) if n >= task.rows)
    speed = (sum(task.lengths) - task.rows) / (moments[-1][0] - first)
    return Speed(first - started, speed, memory.added_bytes / 1e6)


def _rows(line: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield what is printed of a record: our line, then the others with our times their speed."""
    for who in (who for who in ("ours", "theirs", "llama.cpp") if who in line):
        speed, limit = line[who], line.get("limit_tokens_per_second")
        cells = [f"{speed['first_seconds'] * 1000:,.0f}"]
        cells += [f"{speed[name]:,.0f}" for name in ("tokens_per_second", "added_megabytes")]
        cells.append(f"{speed['tokens_per_second'] / limit:.0%}" if limit else "")
        for median, least, most in (speed["sooner"], speed["ratio"]) if who != "ours" else ():
            cells += [f"{median:.2f}", f"{least:.2f}-{most:.2f}"]
        yield line["name"] if who == "ours" else f"  {who}", cells
