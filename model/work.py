"""The arithmetic that layers need for rows of tokens, counted by what a body is made of; computes nothing."""

from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.masks import Layout
from model.moe import MixtureOfExperts
from model.pattern import Pattern
from model.transformer import Decoder


@singledispatch
def work(body: Decoder, layout: Layout) -> tuple[int, int]:
    """Return how often a weight of a product meets a token, and a query a key that it sees causally.

    Padding counts nothing; a body of another form registers a count of its own.
    """
    places = layout.position_ids if layout.part_ids is None else _places(layout)
    places, memory = places[layout.document_ids >= 0], body.config.memory_tokens or 0
    pairs = sum(int((_keys_seen(places, each) + memory).sum()) for each in body.config.layer_patterns)
    return weights_of_products(body.layers) * len(places), pairs


def _places(layout: Layout) -> Tensor:
    """Return how many tokens of its document stand before each (B, T), where parts share positions."""
    documents = layout.document_ids
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    goes_on = F.pad(documents[:, 1:] == documents[:, :-1], (1, 0))
    return index - index.masked_fill(goes_on, 0).cummax(1).values


def _keys_seen(places: Tensor, pattern: Pattern) -> Tensor:
    """Return how many keys causal tokens at these places of a document see."""
    near = seen = places + 1
    if pattern.window:
        near = near.clamp(max=pattern.window)
    if pattern.chunk:
        near = near.minimum(places % pattern.chunk + 1)
    return near + (seen - near).clamp(max=pattern.sinks)


def weights_of_products(part: nn.Module) -> int:
    """Return the number of weights that a token is multiplied with in a part of a model: of its matrices."""
    mixtures = (each for each in part.modules() if isinstance(each, MixtureOfExperts))
    return _matrix_weights(part) - sum(_matrix_weights(mixture.idle) for mixture in mixtures)


def _matrix_weights(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
