"""Models by the architecture that their configuration names: what is no plain decoder stands in a table."""

from collections.abc import Callable

import torch

from model.config import ModelConfig
from model.encoder_decoder import EncoderDecoder, Merged
from model.transformer import Decoder, LanguageModel

BODIES: dict[str, Callable[[ModelConfig], Decoder]] = {"encoder_decoder": EncoderDecoder, "merged": Merged}


def model_of(config: ModelConfig) -> LanguageModel:
    """Return a model with fresh weights."""
    return LanguageModel(config, BODIES.get(config.architecture, Decoder))


def model_without_memory(config: ModelConfig) -> LanguageModel:
    """Return a model whose weights are shapes alone."""
    with torch.device("meta"):
        return model_of(config)
