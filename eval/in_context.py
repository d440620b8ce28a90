"""Decoders that read continuous numbers: trained to predict the value of a query from the examples before it.

Owns the tasks, the model and the loop of in-context linear regression (Garg et al. 2022, arXiv 2208.01066).
Under a causal mask an example is read in the light of those before it only, which costs accuracy from the
second layer on (Ding et al. 2023, arXiv 2308.06912).
"""

import json
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataset.batches import Batch
from eval.evaluation import ITEMS
from eval.regression import RegressionSettings
from model.config import from_preset
from model.errors import UserError
from model.files import check_free, whole_folder
from model.layouts import document_layout, parts_of
from model.loss import NO_TARGET
from model.serving import choose_device, describe_device
from model.strategies import CAUSAL, NO_PART
from model.transformer import LanguageModel
from model.typed_json import Number, read_file
from model.weights import weights_digest
from trainer.device import is_cpu_asked
from trainer.optimizer import Optimizers, multiplier
from trainer.placement import model_flops
from trainer.run_dir import METRICS
from trainer.training_state import Ledger

SUMMARY = "summary.json"
FREE = {"out", "device", "log_every_steps"}
"""settings that decide no result"""
LINE_EVERY_SECONDS = 10.0
READ = {"settings": dict[str, Any], "mean_squared_error": Number, "seconds": float}
"""what is read of the summary that lies there"""


class RegressionModel(LanguageModel):
    """The language model with rows of numbers for ids, and one number for logits.

    An embedding multiplies rows that hold a single 1; these are multiplied as they are. Attention takes the
    one form that computes every mask alike, so that one on which no prediction depends changes no bit.
    """

    def __init__(self, settings: RegressionSettings) -> None:
        """Draw weights from torch's global generator."""
        size = settings.hidden_size
        super().__init__(
            from_preset(
                "tiny",
                vocab_size=1,
                hidden_size=size,
                intermediate_size=2 * size,
                num_hidden_layers=settings.num_hidden_layers,
                num_attention_heads=size // 16,
                num_key_value_heads=size // 32,
                tie_word_embeddings=False,
            )
        )
        self.model.embed_tokens = nn.Linear(settings.dimensions + 1, size, bias=False)
        self.set_attention("eager")

    def errors(self, tasks: Batch) -> Tensor:
        """Return the squared error (B,) of the value that the last token of every task asks for."""
        return (self(tasks.ids, tasks.layout)[:, -1, 0] - tasks.labels[:, -1]).square()


def draw_tasks(generator: torch.Generator, count: int, settings: RegressionSettings) -> Batch:
    """Draw rows of float tokens (count, examples + 1, dimensions + 1); labels hold the value of the query.

    tokens      labels    block under `prefix`    part under `sets`
    x1 y1       -100      0                       0     y = w x without noise, each row with a w of its own;
    x2 y2       -100      0                       1     x is normal, and so is y, both of variance 1
    x3 0        y3        -1                      -1    the query, which predicts its own label
    """
    x = torch.randn(count, settings.examples + 1, settings.dimensions, generator=generator)
    w = torch.randn(count, settings.dimensions, 1, generator=generator) * settings.dimensions**-0.5
    y = (x @ w)[..., 0]  # (count, examples + 1)
    labels = torch.full_like(y, NO_TARGET)
    labels[:, -1], y[:, -1] = y[:, -1], 0.0
    passages = np.append(np.arange(settings.examples), NO_PART)
    layout = document_layout(torch.full((len(passages),), CAUSAL), parts_of(settings.prompt_mask, passages))
    if settings.prompt_mask == "prefix":
        layout.block_ids[:, :-1] = 0
    rows = (ids.expand(count, -1) for ids in layout if ids is not None)
    return Batch(torch.cat((x, y[..., None]), dim=2), labels, *rows)


def generator_of(purpose: str) -> torch.Generator:
    """Return a generator on the CPU whose numbers no other purpose gets."""
    return torch.Generator().manual_seed(Random(purpose).getrandbits(63))


class Regression:
    """A model that learns from the tasks of its seed, its curve, and what proves what it learned from."""

    def __init__(self, settings: RegressionSettings) -> None:
        """Draw the weights."""
        uses_cpu = settings.device == "auto" and is_cpu_asked()  # by the launcher
        self.settings, self.device = settings, choose_device("cpu" if uses_cpu else settings.device)
        torch.manual_seed(settings.seed)
        self.model = RegressionModel(settings)
        self.ledger = Ledger(weights_digest(self.model))
        self.model.to(self.device)
        self.curve: list[dict[str, Any]] = []

    def train(self) -> None:
        """Take all optimizer steps; says every few seconds how far it is."""
        settings, losses, due = self.settings, [], time.monotonic() + LINE_EVERY_SECONDS
        optimizers = Optimizers(self.model, settings.optimizer, torch.float32)
        for step, batch in enumerate(self._batches(), start=1):
            loss = self.model.errors(batch).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.optimizer.max_gradient_norm)
            optimizers.step(multiplier(step - 1, settings.max_steps, settings.schedule))
            optimizers.zero_grad()
            losses.append(loss.detach())
            if step % settings.log_every_steps == 0 or step == settings.max_steps:
                self.curve.append({"step": step, "loss": round(float(torch.stack(losses).mean()), 6)})
                losses.clear()
                if time.monotonic() >= due:
                    due = time.monotonic() + LINE_EVERY_SECONDS
                    print(f"step {step:,}/{settings.max_steps:,} loss {self.curve[-1]['loss']}", flush=True)

    def _batches(self) -> Iterator[Batch]:
        generator = generator_of(f"training {self.settings.seed}")
        for _ in range(self.settings.max_steps):
            batch = draw_tasks(generator, self.settings.batch_size, self.settings)
            self.ledger = self.ledger.then(batch, model_flops(self.model.config, batch))
            yield batch.to(self.device)

    @torch.no_grad()
    def measure(self) -> list[float]:
        """Return the squared error of every task that is measured, the same ones for every model."""
        tasks = draw_tasks(generator_of("evaluation"), self.settings.evaluation_tasks, self.settings)
        return self.model.errors(tasks.to(self.device)).tolist()

    @torch.no_grad()
    def spreads(self) -> list[float]:
        """Return how far predictions of every task are apart, as a standard deviation, over random orders.

        Measured in float64, in which sums of another order are apart by less than what is written of it.
        """
        tasks = draw_tasks(generator_of("evaluation"), self.settings.evaluation_tasks, self.settings)
        model = deepcopy(self.model).cpu().double()
        random, found = generator_of("orders"), []
        for _ in range(self.settings.orders):
            order = torch.randperm(self.settings.examples, generator=random)
            ids = torch.cat((tasks.ids[:, :-1][:, order], tasks.ids[:, -1:]), dim=1)
            found.append(model(ids.double(), tasks.layout)[:, -1, 0])
        return torch.stack(found).std(0).tolist()

    def summary(self, seconds: float, errors: list[float]) -> dict[str, Any]:
        """Return what stands in `summary.json`."""
        rows = self.settings.max_steps * self.settings.batch_size
        return {
            "finished": True,
            "steps": self.settings.max_steps,
            "tokens": rows * (self.settings.examples + 1),
            "targets": rows,
            "seconds": round(seconds, 3),
            **self.ledger.summary(),
            "parameters": self.model.num_parameters(),
            "prompt_mask": self.settings.prompt_mask,
            "mean_squared_error": sum(errors) / len(errors),
            "device": describe_device(self.device),
            "settings": asdict(self.settings),
        }


def find(settings: RegressionSettings) -> dict[str, Any] | None:
    """Return the summary of this very run if it lies in --out; raises `UserError` if something else does."""
    file = Path(settings.out) / SUMMARY
    if not file.exists():
        check_free(settings.out)
        return None
    summary = read_file(READ, file, "choose another --out")
    wanted, there = json.loads(json.dumps(asdict(settings))), summary["settings"]
    for name in wanted.keys() - FREE:
        if there.get(name) != wanted[name]:
            fault = f"{settings.out} holds a run with {name} {there.get(name)}, asked was {wanted[name]}"
            raise UserError(f"{fault}; choose another --out")
    return summary


def train_and_save(settings: RegressionSettings) -> dict[str, Any]:
    """Train, measure, and write `items.json`, `metrics.jsonl` and the summary, which is returned."""
    began = time.monotonic()
    regression = Regression(settings)
    regression.train()
    errors = regression.measure()
    summary = regression.summary(time.monotonic() - began, errors)
    scores = {"negative_squared_error": [round(-error, 6) for error in errors]}
    if settings.orders:
        scores["negative_order_spread"] = [0.0 - round(spread, 6) for spread in regression.spreads()]
    asked = f"{settings.evaluation_tasks} of {settings.dimensions} dimensions, {settings.examples} examples"
    tasks = {"regression": {"questions": asked, "clusters": list(range(len(errors))), "metrics": scores}}
    with whole_folder(settings.out) as folder:
        (folder / ITEMS).write_text(json.dumps({"tasks": tasks, "losses": {}}) + "\n", encoding="utf-8")
        (folder / METRICS).write_text("".join(json.dumps(point) + "\n" for point in regression.curve))
        (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary
