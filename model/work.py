"""The arithmetic that layers need for rows of tokens, counted by what a body is made of; computes nothing."""

from functools import singledispatch

from torch import nn

from model.masks import Layout
from model.moe import MixtureOfExperts
from model.transformer import Decoder


@singledispatch
def work(body: Decoder, layout: Layout) -> tuple[int, int]:
    """Return how often a weight of a product meets a token, and a query a key that it sees causally.

    Padding counts nothing; a body of another form registers a count of its own.
    """
    seen = layout.position_ids[layout.document_ids >= 0] + 1
    pairs = sum(int(seen.clamp(max=window or 2**40).sum()) for window in body.config.layer_windows)
    return weights_of_products(body.layers) * len(seen), pairs


def weights_of_products(part: nn.Module) -> int:
    """Return the number of weights that a token is multiplied with in a part of a model: of its matrices."""
    mixtures = (each for each in part.modules() if isinstance(each, MixtureOfExperts))
    return _matrix_weights(part) - sum(_matrix_weights(mixture.idle) for mixture in mixtures)


def _matrix_weights(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
