"""Two loops that people would run instead of ours, each for some minutes in a process of its own.

One is minimind's (github.com/jingyaogong/minimind, `trainer/train_pretrain.py` of August 2026): AdamW at
5e-4, a cosine down to a tenth, a text in each row, no compilation, float32 on CPUs. The other is a compiled
model of transformers on full rows of joined texts, in the precision that suits the machine, with a warm-up.
Schedules follow the share of the minutes that is gone, so that they end together.
"""

import math
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

from dataset.batch_settings import BatchSettings
from dataset.batches import Batch, BatchStream
from dataset.documents import documents_of
from dataset.token_store import open_stores
from dataset.tokenizer import Tokenizer
from model.checkpoint import save_checkpoint
from model.config import ModelConfig
from model.errors import UserError
from model.transformer import LanguageModel
from scripts.bench.step_engines import MAX_GRADIENT_NORM, Conditions, their_model

MOST_ROWS = 32
"""of a backward pass; a step of more has several"""
WARM_UP = 0.02
"""of the minutes, in which the rate of the compiled loop rises"""


@dataclass(frozen=True)
class Recipe:
    """What a loop is tried with."""

    name: str
    learning_rate: float
    batch_size: int
    """rows of a step"""
    conditions: Conditions
    joins_texts: bool
    """whether rows are full of texts that see one another; else each holds one, and padding"""

    def rate(self, progress: float) -> float:
        """Return the learning rate when a share of the minutes is gone."""
        rise = min(1.0, progress / WARM_UP) if self.conditions.is_compiled else 1.0
        return self.learning_rate * rise * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

    def batches(self, store: Path, seed: int, length: int) -> Iterator[Batch]:
        """Yield what the backward passes of a training read, epoch after epoch."""
        packing = "pack" if self.joins_texts else "none"
        chosen = BatchSettings(length, packing, isolate_documents=not self.joins_texts, seed=seed)
        stream = BatchStream(documents_of(open_stores([store]), chosen))
        for n in count():
            yield from stream.batches(n, rows_per_step=self.batch_size // -(-self.batch_size // MOST_ROWS))


def train(recipe: Recipe, store: Path, tokenizer: Path, out: Path, minutes: float, seed: int) -> int:
    """Train for so many minutes and save the model; return the number of steps.

    Raises `UserError` if it fails.
    """
    context = multiprocessing.get_context("spawn")
    steps, began = context.Value("i", 0), time.time()
    span = began, began + 60 * minutes
    process = context.Process(target=_train, args=(recipe, store, tokenizer, out, span, seed, steps))
    process.start()
    process.join()
    if process.exitcode:
        raise UserError(f"{recipe.name} ended early; its last words are above")
    return steps.value


def _train(
    recipe: Recipe,
    store: Path,
    tokenizer: Path,
    out: Path,
    span: tuple[float, float],
    seed: int,
    steps: "multiprocessing.sharedctypes.Synchronized[int]",
) -> None:
    torch.manual_seed(seed)
    model, loss_of = their_model(recipe.conditions)
    optimizer = torch.optim.AdamW(model.parameters(), fused=recipe.conditions.is_compiled)
    config, (began, end) = recipe.conditions.config, span
    passes = -(-recipe.batch_size // MOST_ROWS)
    for number, batch in enumerate(recipe.batches(store, seed, config.max_position_embeddings), 1):
        (loss_of(batch.to(recipe.conditions.device)) / passes).backward()
        if (now := time.time()) >= end:
            break
        if number % passes == 0:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate((now - began) / (end - began))
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()
            steps.value += 1
    _save(config, model, tokenizer, out)


def _save(config: ModelConfig, model: torch.nn.Module, tokenizer: Path, out: Path) -> None:
    """Write a model of ours with the weights of theirs, whose names are the same."""
    ours, words = LanguageModel(config), Tokenizer.load(tokenizer)
    ours.load_state_dict(model.state_dict())
    words.save(out)
    save_checkpoint(out, ours, words.stop_ids, "texts")
