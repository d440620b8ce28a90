"""Measure perplexity by place in a text, positions scaled and not: python -m scripts.bench lengths …"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.batch_settings import BatchSettings
from dataset.batches import Batch, BatchStream
from dataset.documents import documents_of
from dataset.token_store import TokenStore
from eval.served_model import ServedModel, open_model
from model.errors import UserError
from model.loss import NO_TARGET
from model.transformer import LanguageModel
from scripts.bench.measuring import Figures, PlaceSettings, bench
from trainer.model_settings import ModelSettings

AS_IT_IS = "as it is"
FIRST_PLACES = 64
"""of a text, which are one column; the next ones are twice as wide each"""


@dataclass(frozen=True, kw_only=True)
class LengthBenchSettings(PlaceSettings):
    """What `scripts.bench lengths` is asked for."""

    model: str
    """directory of a model with rotary positions"""
    data: str
    """token store of texts that it was not trained on"""
    scalings: tuple[str, ...] = ("linear:4", "yarn:4")
    """how positions are spread over a longer context, without training: linear:N, yarn:N or llama3:N"""
    max_seq_len: int = 512
    """tokens that are measured of a text; shorter ones are left out, so that all columns are of the same"""
    batch_size: int = 4
    """texts that are computed at a time"""

    def __post_init__(self) -> None:
        if min(self.max_seq_len - FIRST_PLACES, self.batch_size) < 1:
            raise UserError(f"expected --max_seq_len above {FIRST_PLACES} and a --batch_size of 1 or more")


def main() -> None:
    """Measure a model under each form of its positions."""
    bench(LengthBenchSettings, "Measure perplexity by the place of a token in its text.", _find)


def _find(settings: LengthBenchSettings, work: Path) -> Figures:
    served, length = open_model(settings.model), settings.max_seq_len
    config = served.model.config
    forms = {AS_IT_IS: config}
    forms |= {text: ModelSettings(rope_scaling=text).placed(config) for text in settings.scalings}
    edges = [0, FIRST_PLACES]
    while edges[-1] < length:
        edges.append(min(2 * edges[-1], length))
    rows, record = [], {}
    for name, form in forms.items():
        context = max(length, form.max_position_embeddings)
        served.model.set_masks(replace(form, max_position_embeddings=context))
        nats, texts = _nats_by_place(served.model, _long_texts(served, settings))
        means = [float(nats[max(begin, 1) : end].mean()) for begin, end in pairwise(edges)]
        record[name] = {"nats_per_token": means, "texts": texts}
        rows.append((name, [f"{math.exp(mean):.1f}" for mean in means]))
    header = [f"{begin}-{end - 1}" for begin, end in pairwise(edges)]
    trained = f"trained on texts of up to {config.max_position_embeddings} tokens"
    return Figures(record, header, rows, before=[f"perplexity by place, {texts} texts, a model {trained}"])


def _long_texts(served: ServedModel, settings: LengthBenchSettings) -> Iterator[Batch]:
    """Yield batches of texts that fill their rows, each cut to the length that is measured."""
    store = TokenStore(settings.data, served.tokenizer)
    chosen = BatchSettings(settings.max_seq_len, packing="none", prompt_mask=served.prompt_mask)
    stream = BatchStream(documents_of([store], chosen))
    for batch in stream.batches(epoch=0, rows_per_step=settings.batch_size):
        is_full = (batch.document_ids >= 0).all(1)
        if batch.ids.shape[1] == settings.max_seq_len and is_full.any():
            yield Batch(*(tensor[is_full] for tensor in batch.tensors))


@torch.no_grad()
def _nats_by_place(model: LanguageModel, batches: Iterator[Batch]) -> tuple[Tensor, int]:
    """Return the mean nats (T,) of the targets at each place, the first of which has none, and the texts."""
    nats, targets, texts = torch.zeros(1), torch.zeros(1), 0
    for batch in batches:
        logits = model(batch.ids, batch.layout)[:, :-1].transpose(1, 2)  # (B, V, T - 1)
        each = F.cross_entropy(logits, batch.labels[:, 1:], ignore_index=NO_TARGET, reduction="none")
        nats = nats + F.pad(each.sum(0), (1, 0))
        targets = targets + (batch.labels != NO_TARGET).sum(0)
        texts += len(batch.ids)
    if not texts:
        raise UserError("--data: expected texts of --max_seq_len tokens or more, found none; lower it")
    return nats / targets.clamp(min=1), texts
