"""Memory tokens: that they are what real tokens in front would be, and what each token sees of them."""

import pytest
import torch

from eval.look import attention_maps
from model.attention import Visibility
from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import from_preset
from model.errors import UserError
from model.hugging_face import excess_of
from model.layouts import prompt_blocks
from model.masks import causal_layout, draw_text, visible_mask
from model.memory_tokens import widened
from model.pattern import Pattern
from tests.conftest import one_document, tiny_model, turns, windowed


def remembering(model, ids, layers: int = 2):
    """A model of the weights of a plain one whose memory are the states of tokens in front of a document."""
    cache = model.new_cache(1)
    with torch.no_grad():
        model.model(ids, causal_layout(*ids.shape), cache)
    other = tiny_model(num_hidden_layers=layers, memory_tokens=ids.shape[1])
    other.load_state_dict(model.state_dict(), strict=False)
    for number, layer in enumerate(other.model.layers):
        states = (each[number][0, :, : ids.shape[1]] for each in (cache.keys, cache.values))
        layer.memory.data = torch.stack(tuple(states))
    return other


def test_memory_tokens_are_the_states_of_tokens_in_front_of_every_document():
    model, memory, ids = tiny_model(), torch.randint(97, (1, 3)), torch.randint(97, (2, 7))
    layout = causal_layout(2, 7)
    behind = layout._replace(position_ids=layout.position_ids + 3)
    expected = model(torch.cat((memory.expand(2, -1), ids), 1), causal_layout(2, 10))[:, 3:]
    assert (remembering(model, memory)(ids, behind) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("windows", [(None, None), (2, None), (2, 2)])
@pytest.mark.parametrize("strategy", ["causal", "segment"])
def test_every_token_sees_them_in_every_layer_and_what_the_mask_shows_else(strategy, windows):
    model = tiny_model(memory_tokens=2, **windowed(*windows))
    layout = one_document(prompt_blocks(strategy, *turns("Ss Uu Aa Uu Aa")))
    seen = []
    model.set_attention(lambda q, k, v, mask, scoring: seen.append(mask) or torch.zeros_like(q))
    model(torch.randint(97, (1, 10)), layout)
    for mask, window in zip(seen, windows, strict=True):
        own = visible_mask(layout, Pattern(window and model.config.sliding_window))
        assert torch.equal(mask.mask.expand(1, 1, 10, 12)[:, 0, :, 2:], own)
        assert mask.mask[..., :2].all() and not mask.is_causal and mask.rows is None


def test_the_picture_is_the_one_that_the_module_draws():
    stream = torch.zeros(1, 3, 8)
    of_rows = widened(Visibility(is_causal=True), 2, stream)
    assert draw_text(of_rows.mask[0, 0]) == "1 1 1 . .\n1 1 1 1 .\n1 1 1 1 1"
    windowed_rows = Visibility(visible_mask(causal_layout(1, 3), Pattern(2))[:, None])
    assert draw_text(widened(windowed_rows, 2, stream).mask[0, 0]) == "1 1 1 . .\n1 1 1 1 .\n1 1 . 1 1"
    assert widened(Visibility(), 2, stream) == Visibility()


def test_memory_learns_is_saved_and_is_left_out_of_pictures(tmp_path):
    model, ids = tiny_model(memory_tokens=3).float(), torch.randint(97, (2, 9))
    model(ids, labels=ids).backward()
    assert all(layer.memory.grad.abs().max() > 0 for layer in model.model.layers)
    save_checkpoint(tmp_path / "model", model, [0], None)
    assert torch.equal(load_checkpoint(tmp_path / "model").model(ids), model(ids))
    assert excess_of(model.config) == "memory_tokens 3 where Qwen3ForCausalLM has None"
    assert all(each.shape == (2, 4, 9, 9) for each in attention_maps(model, ids))


def test_an_encoder_has_no_memory_tokens():
    with pytest.raises(UserError, match="memory_tokens: architecture merged has none"):
        from_preset("tiny", vocab_size=97, architecture="merged", memory_tokens=2)
