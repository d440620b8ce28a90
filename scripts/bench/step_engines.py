"""Two ways to take an optimizer step, each in a process of its own: our own, and that of transformers."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from dataset.batches import Batch
from model.config import ModelConfig
from model.errors import UserError
from model.transformer import LanguageModel
from trainer.device import choose_precision, finish, keep_freed_memory, native_precision, peak_megabytes
from trainer.optimizer import Optimizers
from trainer.placement import compile_layers
from trainer.settings import OptimizerSettings

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

MAX_GRADIENT_NORM = 1.0
OPTIMIZER = OptimizerSettings(learning_rate=1e-4)
"""for both; where it leads to is not measured"""


@dataclass(frozen=True)
class Conditions:
    """What both have in common."""

    config: ModelConfig
    device: torch.device
    dtype: torch.dtype
    """of matrix products; weights are float32"""
    is_compiled: bool


def hardware(dtype: str) -> tuple[torch.device, torch.dtype]:
    """Return where trainings run here, and the precision of their products, `auto` as trainings choose it."""
    uses_cpu = not torch.accelerator.is_available()
    device = torch.device("cpu") if uses_cpu else torch.accelerator.current_accelerator()
    return device, choose_precision(dtype, "no", native_precision(uses_cpu)).dtype


Engine = Callable[[Batch], None]
"""takes an optimizer step"""


def our_engine(conditions: Conditions) -> Engine:
    """Step as `trainer/loop.py` does."""
    if conditions.device.type == "cpu":
        keep_freed_memory()
    model = LanguageModel(conditions.config).to(conditions.device)
    if conditions.is_compiled:
        compile_layers(model, lengths_vary=False)
    optimizers = Optimizers(model, OPTIMIZER, conditions.dtype)

    def step(batch: Batch) -> None:
        with _autocast(conditions):
            nats = model(batch.ids, batch.layout, batch.labels)
        (nats / batch.num_targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizers.step(1.0)
        optimizers.zero_grad()

    return step


def their_engine(conditions: Conditions) -> Engine:
    """Step as a loop around `transformers.Qwen3ForCausalLM` does; a batch holds one document per row."""
    model, loss_of = their_model(conditions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIMIZER.learning_rate, fused=True)

    def step(batch: Batch) -> None:
        loss_of(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return step


def their_model(conditions: Conditions) -> tuple[torch.nn.Module, Callable[[Batch], torch.Tensor]]:
    """Return a fresh model of transformers, and what gives its mean loss on a batch."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = conditions.config.to_dict() | {"use_cache": False}
    model = Qwen3ForCausalLM(Qwen3Config(**shape)).to(conditions.device)
    forward = torch.compile(model) if conditions.is_compiled else model

    def loss_of(batch: Batch) -> torch.Tensor:
        real = batch.document_ids >= 0
        mask = None if bool(real.all()) else real.long()
        with _autocast(conditions):
            return forward(input_ids=batch.ids, attention_mask=mask, labels=batch.labels).loss

    return model, loss_of


def _autocast(conditions: Conditions) -> torch.autocast:
    return torch.autocast(conditions.device.type, conditions.dtype, enabled=conditions.dtype != torch.float32)


class Worker:
    """An engine in its own process, which waits for batches: memory is its own, and it rests between them."""

    def __init__(self, connection: "Connection") -> None:
        """Talk through `connection`."""
        self._connection = connection
        self.megabytes = 0.0

    def seconds(self, batch: Batch) -> float:
        """Return how long a step takes."""
        self._connection.send([tensor.numpy() for tensor in batch.tensors])
        try:
            seconds, self.megabytes = self._connection.recv()
        except EOFError:
            raise UserError("a measured process ended early; its last words are above") from None
        return seconds


@contextmanager
def started(make: Callable[[Conditions], Engine], conditions: Conditions) -> Iterator[Worker]:
    """Start a worker, and end it."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, make, conditions), daemon=True)
    process.start()
    its.close()
    try:
        yield Worker(ours)
    finally:
        ours.close()
        process.join()


def _serve(connection: "Connection", make: Callable[[Conditions], Engine], conditions: Conditions) -> None:
    torch.manual_seed(0)
    step = make(conditions)
    while True:
        try:
            arrays = connection.recv()
        except EOFError:
            return
        batch = Batch(*map(torch.from_numpy, arrays)).to(conditions.device)
        finish(conditions.device)
        began = perf_counter()
        step(batch)
        finish(conditions.device)
        connection.send((perf_counter() - began, peak_megabytes(conditions.device)))
