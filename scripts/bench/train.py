"""Measure training steps beside those of transformers on the same shape: python -m scripts.bench train …"""

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model.errors import UserError
from scripts.bench.measuring import Figures, TurnSettings, bench, call, refuse_below

if TYPE_CHECKING:
    from dataset.batches import Batch
    from scripts.bench.step_engines import Conditions, Worker

HEADER = ("tokens/s", "s/step", "of peak", "padding", "peak MB", "ratio")
FORMULA = "of peak = (6 W real tokens + 6 V C targets + 12 L H D causal pairs) / seconds / peak of products"
WARM_UP_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class TrainBenchSettings(TurnSettings):
    """What `scripts.bench train` is asked for."""

    data: tuple[str, ...]
    """files of chats, as prepare_data --kind sft takes them"""
    preset: str = "small"
    """shape of the model, whose weights are random; small is that of 30M parameters"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """of matrix products, on both sides; auto: bfloat16 where the hardware multiplies it natively"""
    compile: bool = True
    """whether both sides are compiled"""
    batch_size: int = 32
    """rows of a batch; the more, the more padding where rows are padded to the longest of a batch"""
    max_seq_len: int = 512
    """tokens of a row at the most"""
    rounds: int = 5
    steps: int = 1
    """optimizer steps in a turn; more where a step takes a fraction of a second"""

    def __post_init__(self) -> None:
        refuse_below(self, batch_size=1, max_seq_len=1, rounds=1, steps=1)


@dataclass
class Way:
    """Something that is measured: an engine and what it is fed; the figures of its turns."""

    name: str
    worker: "Worker"
    batches: Iterator["Batch"]
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    flops: int = 0
    positions: int = 0

    def warm_up(self) -> None:
        """Let everything be compiled."""
        print(f"{self.name} …", file=sys.stderr)
        for _ in range(WARM_UP_STEPS):
            self.worker.seconds(next(self.batches))

    def take_turn(self, conditions: "Conditions", steps: int) -> None:
        """Take some steps and write down what they cost."""
        from trainer.placement import model_flops

        batches = [next(self.batches) for _ in range(steps)]
        self.seconds.append(sum(map(self.worker.seconds, batches)))
        self.tokens.append(sum(batch.num_real for batch in batches))
        self.flops += sum(model_flops(conditions.config, batch) for batch in batches)
        self.positions += sum(batch.ids.numel() for batch in batches)

    def record(self, peak: float, steps: int) -> dict[str, Any]:
        """Return the figures; rates are medians over the turns."""
        turns = zip(self.tokens, self.seconds, strict=True)
        speed = statistics.median(tokens / seconds for tokens, seconds in turns)
        return {
            "name": self.name,
            "tokens_per_second": speed,
            "seconds_per_step": statistics.median(self.seconds) / steps,
            "peak_share": self.flops / sum(self.tokens) * speed / peak,
            "padding_share": 1 - sum(self.tokens) / self.positions,
            "peak_megabytes": self.worker.megabytes,
        }


def main() -> None:
    """Measure training steps, beside transformers."""
    bench(TrainBenchSettings, "Measure training steps, beside transformers in the same run.", _find)


def _find(settings: TrainBenchSettings, work: Path) -> Figures:
    import torch

    from scripts.bench.step_engines import our_engine, started, their_engine
    from trainer.device import peak_flops

    store, conditions = _prepare(settings, work), _conditions(settings)
    peak = peak_flops(conditions.device, conditions.dtype)
    with started(our_engine, conditions) as ours, started(their_engine, conditions) as theirs:
        groups = [_compare(settings, conditions, ways, peak) for ways in _ways(settings, store, ours, theirs)]
    machine = {
        "device": str(conditions.device),
        "threads": torch.get_num_threads(),
        "dtype": str(conditions.dtype).removeprefix("torch."),
        "compiled": conditions.is_compiled,
        "GFLOP/s": round(peak / 1e9),
    }
    rows = [(line["name"], _cells(line)) for lines in groups for line in lines]
    above = "  ".join(f"{name} {value}" for name, value in machine.items())
    return Figures({"machine": machine, "groups": groups}, HEADER, rows, before=[above, FORMULA])


def _conditions(settings: TrainBenchSettings) -> "Conditions":
    from model.config import from_preset
    from model.systems import compiler_fault
    from scripts.bench.step_engines import Conditions, hardware

    device, dtype = hardware(settings.dtype)
    config = from_preset(settings.preset, vocab_size=settings.vocab_size)
    if settings.max_seq_len > config.max_position_embeddings:
        raise UserError(f"--max_seq_len: expected {config.max_position_embeddings} or less for this preset")
    if settings.compile and (fault := compiler_fault(device)):
        raise UserError(f"nothing can be compiled here ({fault}); install g++, or give --compile false")
    return Conditions(config, device, dtype, settings.compile)


def _prepare(settings: TrainBenchSettings, work: Path) -> Path:
    """Train a tokenizer on the chats and prepare them."""
    data, tokenizer, store = settings.data, work / "tokenizer", work / "store"
    call("scripts.train_tokenizer", data=data, vocab_size=settings.vocab_size, out=tokenizer)
    call("scripts.prepare_data", kind="sft", data=data, tokenizer=tokenizer, out=store)
    return store


def _ways(settings: TrainBenchSettings, store: Path, ours: "Worker", theirs: "Worker") -> Iterator[list[Way]]:
    """Yield what is compared with each other, the way to beat last."""
    size = settings.batch_size, settings.max_seq_len, settings.vocab_size
    yield [
        Way("full rows, ours", ours, full_rows(*size)),
        Way("full rows, transformers", theirs, full_rows(*size)),
    ]
    yield [
        Way("chats, ours packed", ours, _chats(settings, store, "pack", "causal")),
        Way("chats, transformers padded", theirs, _chats(settings, store, "none", "causal")),
    ]
    yield [
        Way("packed chats, prefix", ours, _chats(settings, store, "pack", "prefix")),
        Way("packed chats, causal", ours, _chats(settings, store, "pack", "causal")),
    ]


def full_rows(
    rows: int, length: int, vocab_size: int, documents: int = 1, has_blocks: bool = False
) -> Iterator["Batch"]:
    """Yield batches of rows of random tokens that all carry loss, but the first ones and blocks of documents.

    A block is the first half of its document.
    """
    import torch

    from dataset.batches import Batch
    from model.masks import causal_layout

    noise, layout, size = (
        torch.Generator().manual_seed(0),
        causal_layout(rows, length),
        -(-length // documents),
    )
    places = layout.position_ids
    layout = layout._replace(document_ids=places // size, position_ids=places % size)
    if has_blocks:
        is_answer = layout.position_ids >= size // 2
        layout = layout._replace(block_ids=layout.document_ids.masked_fill(is_answer, -1))
    is_given = (layout.position_ids == 0) | (layout.block_ids >= 0)
    while True:
        ids = torch.randint(vocab_size, (rows, length), generator=noise)
        yield Batch(ids, ids.masked_fill(is_given, -100), *layout)


def _chats(
    settings: TrainBenchSettings, store: Path, packing: Literal["pack", "none"], prompt_mask: str
) -> Iterator["Batch"]:
    """Yield the rows of the chats, in the same order under every prompt mask."""
    from dataset.batch_settings import BatchSettings
    from dataset.batches import BatchStream
    from dataset.documents import documents_of
    from dataset.token_store import open_stores

    choice = BatchSettings(max_seq_len=settings.max_seq_len, packing=packing, prompt_mask=prompt_mask)
    stream = BatchStream(documents_of(open_stores([store]), choice))
    for epoch in count():
        yield from stream.batches(epoch, rows_per_step=settings.batch_size)


def _compare(
    settings: TrainBenchSettings, conditions: "Conditions", ways: list[Way], peak: float
) -> list[dict[str, Any]]:
    """Let ways take turns; return their records, with the ratio of real tokens per second to the last one."""
    for way in ways:
        way.warm_up()
    for _ in range(settings.rounds):
        for way in ways:
            way.take_turn(conditions, settings.steps)
    records = [way.record(peak, settings.steps) for way in ways]
    for each in records:
        each["ratio"] = each["tokens_per_second"] / records[-1]["tokens_per_second"]
    return records


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    """Return what is printed of a record."""
    return (
        f"{line['tokens_per_second']:,.0f}",
        f"{line['seconds_per_step']:.3f}",
        f"{line['peak_share']:.1%}",
        f"{line['padding_share']:.1%}",
        f"{line['peak_megabytes']:,.0f}",
        f"{line['ratio']:.2f}",
    )
