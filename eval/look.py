"""What a model sees of one conversation and where it looks, and the same as the page draws it."""

import base64
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dataset.chat_form import ROLES
from dataset.conversation import Rendered
from dataset.prompts import layout_of
from eval.plots import MaskPanel, model_panels
from eval.served_model import ServedModel
from model.attention import Scoring, Visibility, eager_attention, eager_probabilities
from model.config import WITH_ENCODER, ModelConfig
from model.encoder_decoder import sides
from model.masks import Layout, causal_layout
from model.transformer import LanguageModel

LEVELS = 255


@torch.no_grad()
def attention_maps(model: LanguageModel, ids: Tensor, layout: Layout | None = None) -> list[Tensor]:
    """Return the attention probabilities (B, H, T, T) of every layer; the model stays as it is.

    Where there is an encoder, its layers come first, and those of the decoder show where they look in source
    and target.
    """
    maps: list[Tensor] = []

    def recording(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
        maps.append(eager_probabilities(q, k, seen, scoring))
        return eager_attention(q, k, v, seen, scoring)

    former = model.model.layers[0].self_attn.attend
    model.set_attention(recording)
    try:
        model(ids, layout)
    finally:
        model.set_attention(former)
    if model.config.architecture not in WITH_ENCODER:
        return [each[..., -ids.shape[1] :] for each in maps]  # without memory tokens, which come first
    return _over_rows(maps, model.config, layout or causal_layout(*ids.shape, device=ids.device))


def _over_rows(maps: list[Tensor], config: ModelConfig, layout: Layout) -> list[Tensor]:
    """Return a map over whole rows for each layer, from those of its calls, each over sides alone."""
    length, count = layout.block_ids.shape[1], config.num_encoder_layers
    source, target = (one_hot(s.places, length) * s.real[..., None] for s in sides(layout))  # (B, n, T)
    calls = [(target, torch.cat((source, target), dim=1))]
    if config.architecture == "encoder_decoder":
        calls = [(target, target), (target, source)]
    pairs = [(source, source)] * count + calls * config.num_hidden_layers
    whole = [
        torch.einsum("bqt,bhqk,bks->bhts", q.to(each.dtype), each, k.to(each.dtype))
        for each, (q, k) in zip(maps, pairs, strict=True)
    ]
    decoder = whole[count:]
    return whole[:count] + [sum(decoder[n : n + len(calls)]) for n in range(0, len(decoder), len(calls))]


class Look(NamedTuple):
    """A conversation in the eyes of a model."""

    tokens: list[str]
    panels: list[MaskPanel]
    maps: list[Tensor]
    """attention probabilities (1, H, T, T) of each layer"""


def look(served: ServedModel, rendered: Rendered, prompt_mask: str, title: str) -> Look:
    """Return what a model sees of a conversation under a mask, and where it looks."""
    layout = layout_of(rendered, prompt_mask)
    ids = torch.from_numpy(rendered.ids.astype("int64"))[None]
    on_device = Layout(*(each.to(served.device) for each in layout if each is not None))
    maps = attention_maps(served.model, ids.to(served.device), on_device)
    tokens = [served.tokenizer.token_text(token_id) for token_id in rendered.ids.tolist()]
    return Look(tokens, model_panels(title, layout, served.model.config), maps)


def view(served: ServedModel, rendered: Rendered, prompt_mask: str) -> dict[str, Any]:
    """Return a look as the page takes it: attention is the mean of heads, 255 times its root, in base64."""
    seen = look(served, rendered, prompt_mask, prompt_mask)
    patterns, local = served.model.config.layer_patterns, served.model.config.local_pattern
    kinds = [int(len(seen.panels) > 1 and pattern == local) for pattern in patterns]  # full, or sliding
    kinds = [0] * (len(seen.maps) - len(kinds)) + kinds  # an encoder's layers come first
    layers = [
        {"mask": kind, "weights": _packed(heads[0].mean(0))}
        for kind, heads in zip(kinds, seen.maps, strict=True)
    ]
    roles = [ROLES[role] for role in rendered.roles.tolist()]
    return mask_view(prompt_mask, seen.panels, seen.tokens, roles) | {"layers": layers}


def mask_view(title: str, panels: list[MaskPanel], tokens: list[str], roles: list[str]) -> dict[str, Any]:
    """Return masks over a conversation as the page takes them, without a model that looks."""
    masks = [
        {
            "name": panel.title.removeprefix(title).strip(", "),
            "rows": ["".join("01"[cell] for cell in row) for row in panel.mask.int().tolist()],
        }
        for panel in panels
    ]
    blocks = panels[0].block_ids.tolist()
    return {"title": title, "tokens": tokens, "roles": roles, "blocks": blocks, "masks": masks, "layers": []}


def _packed(weights: Tensor) -> str:
    levels = (weights.float().sqrt() * LEVELS).round().to(torch.uint8).cpu()
    return base64.b64encode(levels.numpy().tobytes()).decode()
