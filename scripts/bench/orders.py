"""What the order of an epoch takes: seconds and memory, for stores of many short documents that are drawn."""

import shutil
import time
from pathlib import Path

import numpy as np

from dataset.batch_settings import BatchSettings, Kind
from dataset.batches import BatchStream
from dataset.conversation import ROLES, TARGET
from dataset.documents import documents_of
from dataset.token_store import Part, StoreWriter, open_stores
from dataset.tokenizer import train_tokenizer
from scripts.bench.measuring import Cost, PeakMemory

FEW = 1000  # documents, whose order takes what any does
AT_ONCE = 50_000
LENGTHS, ROW_TOKENS = (5, 36), 64  # about as long beside a row as chats are beside one of 512


def order_cost(kind: Kind, number: int, work: Path) -> tuple[Cost, float]:
    """Return the cost of the order of `number` documents, and bytes for each beside the order of a few."""
    added, seconds = [], 0.0
    for documents in (FEW, number):
        store = write_drawn(work / "drawn", kind, documents)
        began = time.monotonic()
        with PeakMemory() as memory:
            begin_epoch(store)
        seconds = time.monotonic() - began
        added.append(memory.added_bytes)
        shutil.rmtree(store)
    return Cost(seconds, added[1]), (added[1] - added[0]) / max(1, number - FEW)


def begin_epoch(store: Path, **settings: str) -> BatchStream:
    """Open a store, order the rows of its first epoch, and describe them as a training does."""
    stream = BatchStream(
        documents_of(open_stores([store]), BatchSettings(max_seq_len=ROW_TOKENS, **settings))
    )
    stream.describe(rows_per_step=16)
    return stream


def write_drawn(store: Path, kind: Kind, number: int) -> Path:
    """Write a store of `number` documents, whose tokens and lengths are drawn and all trained."""
    random, tokenizer = np.random.default_rng(0), train_tokenizer(["Paris"], 300)
    store.mkdir()
    writer = StoreWriter(store, kind, tokenizer)
    for first in range(0, number, AT_ONCE):
        lengths = random.integers(*LENGTHS, min(AT_ONCE, number - first), dtype=np.uint32)
        ids = random.integers(0, tokenizer.vocab_size, lengths.sum(), dtype=writer.dtype)
        codes = np.full(len(ids), ROLES.index("assistant") | TARGET, np.uint8)
        writer.append(Part(ids, codes if kind == "sft" else None, lengths))
    writer.finish({})
    return store
