"""Measure tokenizer training, preparation and batches: python -m scripts.bench data …"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from model.errors import UserError
from scripts.bench.measuring import Cost, Figures, PeakMemory, TurnSettings, bench, call, measure

MEGABYTE = 1_000_000
HEADER = ("MB", "seconds", "documents/s", "MB/s", "peak MB")


@dataclass(frozen=True, kw_only=True)
class DataBenchSettings(TurnSettings):
    """What `scripts.bench data` is asked for."""

    data: tuple[str, ...]
    """.jsonl files of chats under "conversations", repeated with edits until they are as large as wanted"""
    size: int = 2000
    """megabytes that are prepared at once"""
    slice_size: int = 30
    """megabytes that both ways prepare in turn"""
    max_seq_len: int = 512
    """tokens in a row of the batches"""
    batch_seconds: float = 20.0
    """how long batches are drawn"""
    documents: int = 3_000_000
    """in each of the stores whose order is measured"""


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    name: str
    documents: int
    megabytes: float
    seconds: float
    peak_megabytes: float

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the line as text."""
        rates = f"{self.documents / self.seconds:,.0f}", f"{self.megabytes / self.seconds:.2f}"
        return f"{self.megabytes:,.0f}", f"{self.seconds:,.1f}", *rates, f"{self.peak_megabytes:,.0f}"


def main() -> None:
    """Measure the data path, beside datasets.map."""
    bench(DataBenchSettings, "Measure the data path, beside datasets.map in the same run.", _find)


def _find(settings: DataBenchSettings, work: Path) -> Figures:
    lines, orders = list(_lines(settings, work)), list(_orders(settings, work))
    after = [f"{line.name}: {size:.0f} bytes a document" for line, size in orders]
    lines += [line for line, _ in orders]
    record = [asdict(line) for line in lines]
    return Figures(record, HEADER, [(line.name, line.cells) for line in lines], after=after)


def _orders(settings: DataBenchSettings, work: Path) -> Iterator[tuple[Line, float]]:
    from scripts.bench.orders import order_cost

    for kind, name in (("sft", "order of chats"), ("pretrain", "order of texts")):
        cost, bytes_each = order_cost(kind, settings.documents, work)
        yield _line(name, settings.documents, 0, cost), bytes_each


def _lines(settings: DataBenchSettings, work: Path) -> Iterator[Line]:
    large, small, tokenizer = work / "large.jsonl", work / "small.jsonl", work / "tokenizer"
    documents = write_edited(settings.data, large, settings.size * MEGABYTE)
    few = write_edited(settings.data, small, settings.slice_size * MEGABYTE)
    sample = {"vocab_size": settings.vocab_size, "max_bytes": settings.slice_size * MEGABYTE}
    cost = call("scripts.train_tokenizer", data=large, out=tokenizer, **sample)
    yield _line(f"train_tokenizer on {settings.slice_size} MB of", documents, large.stat().st_size, cost)
    for name, costs in _in_turns(settings, small, tokenizer, work).items():
        seconds = statistics.median(cost.seconds for cost in costs)
        peak = max(cost.peak_bytes for cost in costs)
        yield _line(name, few, small.stat().st_size, Cost(seconds, peak))
    store = work / "store"
    cost = call("scripts.prepare_data", kind="sft", data=large, tokenizer=tokenizer, out=store)
    yield _line("prepare_data", documents, large.stat().st_size, cost)
    yield _deliver(settings, store)


def _in_turns(settings: DataBenchSettings, data: Path, tokenizer: Path, work: Path) -> dict[str, list[Cost]]:
    """Return what each way costs on the same data, in every round one after the other."""
    costs: dict[str, list[Cost]] = {}
    for number in range(settings.rounds):
        store = work / "small"
        ours = call("scripts.prepare_data", kind="sft", data=data, tokenizer=tokenizer, out=store)
        costs.setdefault("prepare_data, in turn", []).append(ours)
        shutil.rmtree(store)
        for processes in ("1", "2"):
            cache = work / f"cache{number}-{processes}"
            words = [str(data), str(tokenizer), str(cache), processes]
            theirs = measure([sys.executable, "-m", "scripts.bench.datasets_map", *words])
            costs.setdefault(f"datasets.map, num_proc={processes}", []).append(theirs)
            shutil.rmtree(cache)
    return costs


def _line(name: str, documents: int, num_bytes: float, cost: Cost) -> Line:
    return Line(name, documents, num_bytes / MEGABYTE, cost.seconds, cost.peak_bytes / MEGABYTE)


def write_edited(paths: tuple[str, ...], out: Path, size: int) -> int:
    """Repeat records, each time with other digits and a number of their own; return how many there are."""
    lines = [line for path in paths for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
    if not lines:
        raise UserError(f"no records in {', '.join(paths)}")
    number = written = 0
    with open(out, "w", encoding="utf-8") as file:
        while written < size:
            line = _edited(lines[number % len(lines)], number, number // len(lines))
            file.write(line)
            written += len(line.encode())
            number += 1
    return number


def _edited(line: str, number: int, edition: int) -> str:
    digits = "0123456789"
    others = str.maketrans(digits, digits[edition % 10 :] + digits[: edition % 10])
    try:
        record = json.loads(line)
        for turn in record["conversations"]:
            turn["content"] = f"{turn['content'].translate(others)} {number}"
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'expected a chat under "conversations" in each line, got {line[:60]}') from None
    return json.dumps(record, ensure_ascii=False) + "\n"


def _deliver(settings: DataBenchSettings, path: Path) -> Line:
    """Draw packed batches from a store for some seconds."""
    from dataset.batch_settings import BatchSettings
    from dataset.batches import BatchStream
    from dataset.documents import documents_of
    from dataset.token_store import open_stores

    choice, documents, tokens = BatchSettings(max_seq_len=settings.max_seq_len, prompt_mask="prefix"), 0, 0
    with PeakMemory() as memory:
        stream = BatchStream(documents_of(stores := open_stores([path]), choice))
        plan = stream.plan(0)
        started = time.monotonic()
        for step, batch in enumerate(stream.batches(epoch=0, rows_per_step=16)):
            tokens += batch.num_real
            documents += sum(len(plan[row]) for row in range(16 * step, min(16 * (step + 1), len(plan))))
            if time.monotonic() - started > settings.batch_seconds:
                break
        seconds = time.monotonic() - started
    megabytes = tokens * stores[0].manifest["bytes"] / stores[0].num_tokens / MEGABYTE
    return Line("batches", documents, megabytes, seconds, memory.added_bytes / MEGABYTE)
