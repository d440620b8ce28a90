"""Where a model looks: the attention probabilities of its layers."""

import torch
from torch import Tensor

from model.attention import Visibility, eager_attention, eager_probabilities
from model.masks import Layout
from model.transformer import LanguageModel


@torch.no_grad()
def attention_maps(model: LanguageModel, ids: Tensor, layout: Layout | None = None) -> list[Tensor]:
    """Return the attention probabilities (B, H, T, T) of every layer; the model stays as it is."""
    maps: list[Tensor] = []

    def recording(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scale: float) -> Tensor:
        maps.append(eager_probabilities(q, k, seen, scale))
        return eager_attention(q, k, v, seen, scale)

    former = model.model.layers[0].self_attn.attend
    model.set_attention(recording)
    try:
        model(ids, layout)
    finally:
        model.set_attention(former)
    return maps
