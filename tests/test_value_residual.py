"""The highway across layers: against its formula written out, and that whatever runs layers keeps to it."""

import pytest
import torch

from model.attention import Visibility, eager_attention
from model.checkpoint import describe, load_checkpoint, save_checkpoint
from model.config import from_preset
from model.errors import UserError
from model.hugging_face import excess_of
from model.layers import layer_angles, rotate
from model.layouts import prompt_blocks
from model.masks import causal_layout, visible_mask
from tests.conftest import one_document, tiny_model, turns, windowed


def highway_model(**overrides):
    model = tiny_model(**{"num_hidden_layers": 3, "value_residual": True, **overrides})
    for number, layer in enumerate(model.model.layers[1:]):
        layer.value_mix.data = torch.tensor([0.3, 0.9], dtype=torch.float64) + number
    return model


def by_hand(model, ids, mask):
    """Logits of a Qwen3 whose values, from the second layer on, are weighted sums (arXiv 2410.17897)."""
    decoder, first = model.model, None
    x, positions = decoder.embed_tokens(ids), causal_layout(*ids.shape).position_ids
    for layer, angles in zip(decoder.layers, layer_angles(model.config, positions, x.dtype), strict=True):
        attention, y = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (
            project(y).unflatten(-1, (-1, model.config.head_dim))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k, v = attention.q_norm(q).transpose(1, 2), attention.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        first = v if first is None else first
        v = v if v is first else layer.value_mix[0] * first + layer.value_mix[1] * v
        y = eager_attention(
            rotate(q, angles), rotate(k, angles), v, Visibility(mask[:, None]), attention.scoring
        )
        x = x + attention.o_proj(y.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(decoder.norm(x))


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_later_values_are_weighted_sums_of_their_own_and_those_of_the_first_layer(layers):
    model, ids = highway_model(num_hidden_layers=layers), torch.randint(97, (2, 10))
    layout = one_document(prompt_blocks("segment", *turns("Ss Uu Aa Uu Aa")), batch=2)
    assert (model(ids, layout) - by_hand(model, ids, visible_mask(layout))).abs().max() < 1e-12


def test_without_a_share_of_the_first_values_a_model_is_the_plain_one_to_the_bit():
    model, plain, ids = highway_model(), tiny_model(num_hidden_layers=3), torch.randint(97, (2, 10))
    plain.load_state_dict(model.state_dict(), strict=False)
    assert not torch.equal(model(ids), plain(ids))
    for layer in model.model.layers[1:]:
        layer.value_mix.data = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.equal(model(ids), plain(ids))


def test_recomputed_layers_give_the_same_gradients_and_every_weight_has_one():
    ids, results = torch.randint(97, (2, 10)), []
    for recomputes in (False, True):
        model = highway_model()
        if recomputes:
            model.enable_gradient_checkpointing()
        model(ids, labels=ids).backward()
        results.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) and pair[0].abs().max() > 0 for pair in zip(*results, strict=True))


def test_a_highway_is_saved_with_its_weights_and_is_no_model_of_transformers(tmp_path):
    model = highway_model().float()
    save_checkpoint(tmp_path / "model", model, [0], None)
    loaded, ids = load_checkpoint(tmp_path / "model").model, torch.randint(97, (2, 10))
    assert torch.equal(loaded(ids), model(ids))
    assert excess_of(model.config) == "value_residual True where Qwen3ForCausalLM has False"
    assert "model_type" not in describe(model.config)


def test_a_cache_of_full_and_sliding_layers_gives_the_logits_of_the_whole_row():
    model, ids = highway_model(**windowed(3, None)), torch.randint(97, (1, 12))
    cache = model.new_cache(1)
    with torch.no_grad():
        last = [model.step(ids[:, n : n + 1], cache) for n in range(12)][-1]
    assert (last - model(ids)[:, -1]).abs().max() < 1e-9


def test_a_highway_needs_two_layers():
    with pytest.raises(UserError, match="expected two layers or more .* got 1 num_hidden_layers"):
        from_preset("tiny", vocab_size=97, num_hidden_layers=1, value_residual=True)
    merged = {"architecture": "merged", "num_encoder_layers": 1, "value_residual": True}
    with pytest.raises(UserError, match="expected two layers or more .* got 1 num_encoder_layers"):
        from_preset("tiny", vocab_size=97, **merged)
