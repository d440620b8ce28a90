"""Measure what time and memory grow with, and as which power of it: python -m scripts.bench growth …"""

import math
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from model.errors import UserError
from scripts.bench.data import MEGABYTE, write_edited
from scripts.bench.measuring import Figures, PlaceSettings, bench, call, refuse_below, spread

AXES = ("lengths", "rows", "documents", "layers", "vocabularies")
"""of models; the others are of preparations"""
SMALLEST = dict(zip(AXES, (64, 1, 1, 1, 300), strict=True))
"""what any training holds the memory of"""
PANELS = 3  # side by side in the picture
Turn = dict[str, float]
"""figures of one thing that was measured once, by their names in tables"""


@dataclass(frozen=True, kw_only=True)
class GrowthBenchSettings(PlaceSettings):
    """What `scripts.bench growth` is asked for; where one axis grows, others stand at their first value."""

    preset: str = "tiny"
    """shape of the model, whose weights are random"""
    sliding_window: int | None = 128
    """last keys that tokens of all layers see; null for all"""
    attention_sinks: int | None = None
    """first tokens of a document that are seen beside the window"""
    blocks: bool = False
    """whether the first half of each document is a block, as a prefix mask makes it of a prompt"""
    lengths: tuple[int, ...] = (512, 2048, 8192, 32768)
    """tokens of a row in training, and of a prompt"""
    rows: tuple[int, ...] = (1, 2, 4, 8)
    """rows of a step, and prompts that are answered together"""
    documents: tuple[int, ...] = (1, 4, 16, 64)
    """documents that share a row, all of one length"""
    layers: tuple[int, ...] = (2, 4, 8, 16)
    """layers of the model"""
    vocabularies: tuple[int, ...] = (6400, 12800, 25600, 51200)
    """rows of its embedding; the first is also the size of the tokenizer that data is prepared with"""
    data: tuple[str, ...] = ()
    """.jsonl files of chats under "conversations", repeated with edits and prepared; none leaves that out"""
    megabytes: tuple[int, ...] = (10, 30, 100)
    """of chats that are prepared"""
    processes: tuple[int, ...] = (1, 2)
    """processes that prepare them"""
    rounds: int = 5
    """how often all values of an axis take their turns, of which medians are taken"""
    new_tokens: int = 16
    """tokens that are decoded behind a prompt in a turn"""
    compile: bool = False
    """whether training is compiled"""

    def __post_init__(self) -> None:
        axes = (*AXES, "megabytes", "processes")
        refuse_below(self, **dict.fromkeys((*axes, "rounds", "new_tokens"), 1) | {"lengths": 2})
        for axis in axes:
            if len({*(values := getattr(self, axis))}) < len(values):
                raise UserError(f"--{axis}: expected each value once, got {values}")
        if max(len(getattr(self, axis)) for axis in (axes if self.data else AXES)) < 2:
            raise UserError(f"expected two values or more of one of --{', --'.join(AXES)}")
        if max(self.documents) > (most := self.lengths[0] // 2):
            raise UserError(f"--documents: expected {most} or less in rows of {self.lengths[0]}")


@dataclass(frozen=True)
class Growth:
    """What grew along an axis."""

    axis: str
    values: tuple[int, ...]
    turns: list[list[Turn]]
    """of each round, what was measured for each value"""

    @property
    def medians(self) -> dict[str, list[float]]:
        """Return each figure for each value."""
        columns, names = [*zip(*self.turns, strict=True)], self.turns[0][0]
        return {n: [statistics.median(at[n] for at in column) for column in columns] for n in names}

    @property
    def exponents(self) -> dict[str, tuple[float, float, float]]:
        """Return the power of the axis that each figure grows as: median, least and most of the rounds."""
        turns, names = self.turns, self.turns[0][0]
        return {n: spread(exponent(self.values, [at[n] for at in turn]) for turn in turns) for n in names}

    def table(self) -> Iterator[tuple[str, list[str]]]:
        """Yield what is printed of it."""
        yield self.axis, [*self.medians]
        for n, value in enumerate(self.values):
            yield f"{value:,}", [rounded(each[n]) for each in self.medians.values()]
        for n, word in enumerate(("exponent", "  least", "  most")):
            yield word, [f"{powers[n]:.2f}" for powers in self.exponents.values()]


def main() -> None:
    """Measure time and memory by all that they grow with."""
    bench(GrowthBenchSettings, "Measure how time and memory grow, along one axis after the other.", _find)


def _find(settings: GrowthBenchSettings, work: Path) -> Figures:
    grown = [*_of_models(settings), *(_of_preparations(settings, work) if settings.data else ())]
    if not grown:
        raise UserError(f"expected two values or more of one of {', '.join(AXES)}")
    draw(grown, Path(settings.out) / "growth.png")
    record = {each.axis: asdict(each) | {"exponents": each.exponents} for each in grown}
    return Figures(record, (), [line for each in grown for line in each.table()])


def _measured(axis: str, values: tuple[int, ...], ways: Sequence[Callable[[], Turn]], rounds: int) -> Growth:
    """Let the values of an axis take turns."""
    print(f"{axis} …", file=sys.stderr)
    return Growth(axis, values, [[way() for way in ways] for _ in range(rounds)])


def _of_models(settings: GrowthBenchSettings) -> Iterator[Growth]:
    """Yield what steps and answers cost; each value has a training of its own, in a process of its own."""
    from trainer.device import keep_freed_memory

    keep_freed_memory()  # as trainings do, which make the masks
    with ExitStack() as stack:
        base = _way(settings, SMALLEST, 0, stack)()["step MB"]
    first = {axis: getattr(settings, axis)[0] for axis in AXES}
    for axis in AXES:
        if len(values := getattr(settings, axis)) > 1:
            with ExitStack() as stack:
                ways = [_way(settings, first | {axis: value}, base, stack) for value in values]
                grown = _measured(axis, values, ways, settings.rounds)
            yield grown


def _way(
    settings: GrowthBenchSettings, shape: dict[str, int], base: float, stack: ExitStack
) -> Callable[[], Turn]:
    """Begin a training and answers, so far that nothing is done for the first time any more.

    Return what measures a step, its masks, and a token of each row; memory is what is held beyond `base`.
    """
    import torch

    from model.config import from_preset
    from model.generator import Generator
    from model.prompt import Prompt
    from model.transformer import LanguageModel
    from scripts.bench.step_engines import Conditions, our_engine, started
    from scripts.bench.train import full_rows

    length, rows, documents, layers, vocabulary = shape.values()
    longest = length + (settings.rounds + 1) * settings.new_tokens
    sizes = {"vocab_size": vocabulary, "num_hidden_layers": layers, "max_position_embeddings": longest}
    sizes |= {"sliding_window": settings.sliding_window, "attention_sinks": settings.attention_sinks}
    config = from_preset(settings.preset, **sizes)
    conditions = Conditions(config, torch.device("cpu"), torch.float32, settings.compile)
    batches = full_rows(rows, length, vocabulary, documents, settings.blocks)
    worker = stack.enter_context(started(our_engine, conditions))
    worker.seconds(next(batches))

    model = LanguageModel(config)
    generator, cache = Generator(model, stop_ids=()), model.new_cache(rows)
    generator.prefill(cache, [Prompt((1,) * length, (-1,) * length)] * rows)
    token = partial(generator.decode, cache, [1] * rows)
    token()
    held = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
    masks = partial(model.model.visibilities, (batch := next(batches)).ids, batch.layout)

    def measure() -> Turn:
        seconds = worker.seconds(next(batches))
        return {
            "tokens/s": rows * length / seconds,
            "s/step": seconds,
            "masks ms": 1000 * (of_masks := _seconds(masks)),
            "masks %": 100 * of_masks / seconds,
            "token ms": 1000 * statistics.median(_seconds(token) for _ in range(settings.new_tokens)),
            "step MB": max(1.0, worker.megabytes - base),  # less is noise
            "cache MB": held / MEGABYTE,
        }

    return measure


def _seconds(act: Callable[[], object]) -> float:
    began = perf_counter()
    act()
    return perf_counter() - began


def _of_preparations(settings: GrowthBenchSettings, work: Path) -> Iterator[Growth]:
    """Yield what it costs to prepare more data, and the same data with more processes."""
    sizes, tokenizer, store = settings.megabytes, work / "tokenizer", work / "store"
    for size in sizes:
        write_edited(settings.data, work / f"{size}.jsonl", size * MEGABYTE)
    sample = work / f"{sizes[0]}.jsonl"
    call("scripts.train_tokenizer", data=sample, vocab_size=settings.vocabularies[0], out=tokenizer)

    def prepare(size: int, processes: int) -> Turn:
        flags = {"tokenizer": tokenizer, "out": store, "num_workers": processes}
        cost = call("scripts.prepare_data", kind="sft", data=work / f"{size}.jsonl", **flags)
        shutil.rmtree(store)
        return {"MB/s": size / cost.seconds, "s": cost.seconds, "peak MB": cost.peak_bytes / MEGABYTE}

    by_size = [partial(prepare, size, settings.processes[0]) for size in sizes]
    by_number = [partial(prepare, sizes[0], number) for number in settings.processes]
    for axis, ways in (("megabytes", by_size), ("processes", by_number)):
        if len(ways) > 1:
            yield _measured(axis, getattr(settings, axis), ways, settings.rounds)


def exponent(values: Sequence[float], figures: Sequence[float]) -> float:
    """Return the power of the values that figures grow as: the slope of the line through their logarithms."""
    logs = ([math.log(each) for each in numbers] for numbers in (values, figures))
    return statistics.linear_regression(*logs).slope


def rounded(value: float) -> str:
    """Return a number with three digits or all before the point."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def draw(grown: Sequence[Growth], path: Path) -> None:
    """Draw each figure over each axis, by what it is at the first value, into a PNG file."""
    from matplotlib.figure import Figure

    from eval.loss_curves import HUES, STYLES
    from trainer.loss_picture import save_picture

    columns, lines = min(PANELS, len(grown)), math.ceil(len(grown) / PANELS)
    figure = Figure(figsize=(4.6 * columns, 3.8 * lines), layout="constrained")
    for place, each in enumerate(grown, start=1):
        axes = figure.add_subplot(lines, columns, place, xscale="log", xlabel=each.axis)
        axes.set_xticks(each.values, [f"{value:,}" for value in each.values])
        axes.set_xticks([], minor=True)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        for n, (name, figures) in enumerate(each.medians.items()):
            points = sorted((value, at / figures[0]) for value, at in zip(each.values, figures, strict=True))
            look = {"color": HUES[n % len(HUES)], "linestyle": STYLES[n % len(STYLES)], "marker": "."}
            axes.plot(*zip(*points, strict=True), **look, label=f"{name}: {each.exponents[name][0]:.2f}")
        axes.legend(title="exponent", fontsize=8)
    save_picture(figure, path)
