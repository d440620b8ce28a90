"""The loss on text that is not trained on."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dataset.batches import Batch
from dataset.tokenizer import Tokenizer
from model.transformer import LanguageModel


@dataclass(frozen=True)
class Likelihood:
    """What a model assigns to the targets of some text."""

    nats: float
    targets: int
    text_bytes: int
    """bytes of text that the targets stand for; special tokens have none"""

    @property
    def nats_per_token(self) -> float:
        """Mean loss of a target."""
        return self.nats / max(self.targets, 1)

    @property
    def bits_per_byte(self) -> float | None:
        """Loss that does not depend on the tokenizer; None where the targets hold no text."""
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else None


@torch.no_grad()
def measure(
    model: LanguageModel,
    batches: Iterable[Batch],
    bytes_of_token: Tensor,
    summed: Callable[..., list[float]] = lambda *numbers: list(numbers),
) -> Likelihood:
    """Return the likelihood of all targets of `batches`; `summed` adds up numbers over processes."""
    nats, targets, text_bytes = 0.0, 0, 0
    device = next(model.parameters()).device
    for batch in batches:
        labels = batch.labels[batch.labels >= 0]
        targets += len(labels)
        text_bytes += int(bytes_of_token[labels].sum())
        batch = batch.to(device)
        nats += float(model(batch.ids, batch.layout, batch.labels))
    nats, targets, text_bytes = summed(nats, targets, text_bytes)
    return Likelihood(nats, int(targets), int(text_bytes))


def bytes_of_tokens(tokenizer: Tokenizer) -> Tensor:
    """Return the bytes of text that each id stands for, int64 (V,); special tokens stand for none."""
    special = tokenizer.special_ids
    sizes = [0 if i in special else len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
    return torch.tensor(sizes)
