"""The laws of the masks on whole models, in float64: influence, backends, packing, padding, depth one."""

from itertools import product

import pytest
import torch
from torch.nn.functional import cross_entropy

from eval.look import attention_maps
from model.architectures import model_of
from model.attention import Scoring, Visibility, eager_attention
from model.backends import BACKENDS, ClassicAttention, attend, blockwise_attention, by_documents, choose
from model.bands import in_bands
from model.config import from_preset
from model.errors import UserError
from model.flex_rows import flex_rows
from model.layouts import prompt_blocks
from model.loss import summed_cross_entropy
from model.masks import Layout, causal_layout, is_readable, visible_mask
from model.pattern import Pattern
from model.transformer import LanguageModel
from tests.conftest import STRATEGIES, check_influence, one_document, tiny_model, turns, windowed
from tests.test_masks import random_layout

CONVERSATION = "Ss Uu Aa Uu Aa"


def prefix_layout(length: int, prefix: int) -> Layout:
    return one_document(torch.where(torch.arange(length) < prefix, 0, -1))


def logits_of(model, ids, layout, backend="auto"):
    model.set_attention(backend)
    return model(ids, layout)


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("windows", [(None, None), (2, 2), (3, 3), (3, None), (None, 3)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_token_influences_exactly_the_logits_that_the_mask_lets_it(strategy, windows, both_sides):
    model = tiny_model(**windowed(*windows, both_sides=both_sides))
    layout = one_document(prompt_blocks(strategy, *turns(CONVERSATION)))
    check_influence(model, layout, *(Pattern(window, both_sides) for window in windows))


@pytest.mark.parametrize("bounds", [{"sinks": 2}, {"chunk": 3}, {"sinks": 1, "chunk": 2}])
def test_sinks_and_chunks_let_a_token_influence_what_their_mask_lets_it(bounds):
    model = tiny_model(**windowed(4, None, **bounds))
    layout = one_document(prompt_blocks("segment", *turns(CONVERSATION)))
    near, everything = model.config.layer_patterns
    assert near.sinks == bounds.get("sinks", 0) and near.chunk == bounds.get("chunk")
    check_influence(model, layout, near, everything)


@pytest.mark.parametrize(
    ("windows", "moved"),
    [
        ((3, 3), ["111...", "11111."]),
        ((3, None), ["111...", "111111"]),
        ((None, 3), ["111111", "111111"]),
    ],
)
def test_a_far_token_reaches_through_a_full_layer_and_not_through_a_sliding_one(windows, moved):
    """The rows that move behind each layer when token 0 changes."""
    model, states = tiny_model(**windowed(*windows)), [[], []]
    for layer, seen in zip(model.model.layers, states, strict=True):
        layer.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
    for first in (1, 2):
        model(torch.tensor([[first, 3, 4, 5, 6, 7]]))
    for (before, after), rows in zip(states, moved, strict=True):
        changes = (after - before).abs().amax(-1)[0] > 1e-9
        assert "".join("1" if change else "." for change in changes) == rows


def seen_as(kind: str, length: int) -> tuple[Visibility, torch.Tensor, torch.Tensor]:
    """A mask of a kind over rows of some length, the same as a tensor, and which queries are real."""
    layout = random_layout(3, length) if length > 1 else causal_layout(3, 1)
    everything = torch.ones(3, 1, length, length, dtype=torch.bool)
    real, mask = everything[:, 0, 0], visible_mask(layout)[:, None]
    if kind == "none":
        return Visibility(), everything, real
    if kind == "causal":
        return Visibility(is_causal=True), everything.tril(), real
    if kind == "bands":
        layout, near = causal_layout(3, length), Pattern(max(1, length // 4), sinks=1)
        return in_bands(layout, near), visible_mask(layout, near)[:, None], real
    if kind == "flex":
        near = Pattern(5, sinks=1)
        return flex_rows(layout, near), visible_mask(layout, near)[:, None], real
    seen = by_documents(layout) if kind == "documents" else Visibility(mask)
    return seen, mask, layout.document_ids >= 0


@pytest.mark.parametrize(
    ("name", "kind", "softcap"),
    [
        pytest.param(name, kind, softcap, marks=[pytest.mark.long] * (kind == "flex"))  # whose import is slow
        for name, backend in BACKENDS.items()
        for kind in backend.masks
        for softcap in ([None, 0.8] if backend.bends else [None])
    ],
)
def test_every_backend_equals_the_dense_predicate_in_outputs_and_gradients(name, kind, softcap, monkeypatch):
    monkeypatch.setattr("model.backends.SHORTEST_SHARED_ROW", 1)
    monkeypatch.setattr("model.backends.SHORTEST_SPAN", 1)
    monkeypatch.setattr("model.bands.WIDEST_SHARE", 100)
    backend, scoring, tried = BACKENDS[name], Scoring(0.3, softcap), 0
    for length in (1, 24, 300):
        heads = (4, 2, 2)
        inputs = [torch.randn(3, h, length, 6, dtype=torch.float64, requires_grad=True) for h in heads]
        noise, (seen, mask, real) = torch.randn(3, 4, length, 6, dtype=torch.float64), seen_as(kind, length)
        for gradients in backend.gradients:
            with torch.set_grad_enabled(gradients):
                if not backend.serves(inputs[0], seen, scoring):
                    continue
                results = []
                for way, told in ((backend.attend, seen), (eager_attention, Visibility(mask))):
                    y = way(*inputs, told, scoring).transpose(1, 2)[real]
                    results.append([y])
                    if gradients:
                        results[-1] += torch.autograd.grad(y, inputs, noise.transpose(1, 2)[real])
            for one, other in zip(*results, strict=True):
                assert (one - other).abs().max() < 1e-9 if one.numel() else True
            tried += 1
    assert tried


def test_the_first_backend_that_serves_is_chosen_and_eager_takes_all():
    q, scorings = torch.randn(3, 4, 24, 6), (Scoring(0.3), Scoring(0.3, 5.0))
    for kind, scoring in product(("none", "causal", "dense"), scorings):
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                seen = seen_as(kind, 24)[0]
                serving = [backend for backend in BACKENDS.values() if backend.serves(q, seen, scoring)]
                assert choose(q, seen, scoring) is serving[0]
                assert BACKENDS["eager"] in serving
                assert (BACKENDS["fused"] in serving) is (scoring.softcap is None)
    with pytest.raises(UserError, match="unknown attention backend 'quick'; choose one of auto, .*one_query"):
        tiny_model().set_attention("quick")


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("windows", [(None, None), (3, 3), (None, 3)])
def test_backends_agree_on_outputs_and_gradients(windows, key_heads):
    model = tiny_model(num_key_value_heads=key_heads, **windowed(*windows))
    layout, ids = random_layout(4, 20), torch.randint(97, (4, 20))
    real = layout.document_ids >= 0
    results = []
    for backend in ("eager", "auto"):
        logits = logits_of(model, ids, layout, backend)[real]
        model.zero_grad()
        logits.square().sum().backward()
        results.append((logits.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    (eager, eager_grads), (fused, fused_grads) = results
    assert (eager - fused).abs().max() < 1e-9
    for a, b in zip(eager_grads, fused_grads, strict=True):
        assert (a - b).norm() <= 1e-6 * a.norm()


def test_documents_attended_one_by_one_equal_all_at_once_in_outputs_and_gradients(monkeypatch):
    monkeypatch.setattr("model.backends.SHORTEST_SHARED_ROW", 1)
    monkeypatch.setattr("model.backends.SHORTEST_SPAN", 1)
    model, layout, ids = tiny_model(), random_layout(4, 24), torch.randint(97, (4, 24))
    real, results = layout.document_ids >= 0, []
    assert model.model.visibilities(ids, layout)[0].kind == "documents"
    for backend in ("eager", "auto"):
        model.zero_grad()
        logits = logits_of(model, ids, layout, backend)[real]
        logits.square().sum().backward()
        results.append((logits, [parameter.grad.clone() for parameter in model.parameters()]))
    (dense, dense_grads), (one_by_one, grads) = results
    assert (dense - one_by_one).abs().max() < 1e-9
    for a, b in zip(dense_grads, grads, strict=True):
        assert (a - b).abs().max() < 1e-9 * (1 + a.abs().max())


def test_short_rows_and_many_short_documents_attend_all_at_once():
    model, ids = tiny_model(max_position_embeddings=512), torch.zeros(1, 512, dtype=torch.long)
    for length, size, is_one_by_one in ((512, 64, True), (512, 16, False), (128, 64, False)):
        documents = torch.arange(length)[None] // size
        layout = Layout(documents, torch.arange(length)[None] % size, torch.full_like(documents, -1))
        seen = model.model.visibilities(ids[:, :length], layout)[0]
        assert (seen.kind == "documents") is is_one_by_one


@pytest.mark.parametrize("attend", [eager_attention, attend])
def test_attention_equals_the_textbook_formula(attend):
    q, k, v = (torch.randn(2, heads, 7, 6, dtype=torch.float64) for heads in (4, 2, 2))
    mask = visible_mask(random_layout(2, 7))[:, None]
    got = attend(q, k, v, Visibility(mask), Scoring(6**-0.5))
    for b in range(2):
        for h in range(4):
            scores = q[b, h] @ k[b, h // 2].T / 6**0.5
            weights = scores.exp() * mask[b, 0]
            expected = (weights / weights.sum(-1, keepdim=True)) @ v[b, h // 2]
            assert (got[b, h] - expected).abs().max() < 1e-12


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 11])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_causal_blocks_of_queries_equal_the_triangle_in_outputs_and_gradients(key_heads, length):
    heads = (4, key_heads, key_heads)
    inputs = [torch.randn(2, h, length, 6, dtype=torch.float64, requires_grad=True) for h in heads]
    noise, results = torch.randn(2, 4, length, 6, dtype=torch.float64), []
    for way, seen in (
        (blockwise_attention, Visibility(is_causal=True)),
        (eager_attention, Visibility(torch.ones(length, length, dtype=torch.bool).tril()[None, None])),
    ):
        y = way(*inputs, seen, Scoring(0.3))
        results.append([y, *torch.autograd.grad(y, inputs, noise)])
    for in_blocks, expected in zip(*results, strict=True):
        assert in_blocks.dtype == torch.float64
        assert (in_blocks - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    "length, is_training, is_causal, in_blocks",
    [
        (255, True, True, False),
        (256, True, True, True),
        (4096, True, True, True),
        (4097, True, True, False),  # two rows of two heads have more than MOST_PAIRS
        (256, False, True, False),
        (256, True, False, False),
    ],
)
def test_only_causal_rows_of_some_length_are_trained_in_blocks(length, is_training, is_causal, in_blocks):
    mask = None if is_causal else torch.ones(1, 1, length, length, dtype=torch.bool)
    with torch.set_grad_enabled(is_training):
        q, seen = torch.randn(2, 2, length, 2), Visibility(mask, is_causal)
        assert BACKENDS["blocks"].serves(q, seen, Scoring(1.0)) is in_blocks


@pytest.mark.parametrize("softcap", [None, 0.8])
def test_one_query_and_many_queries_attend_alike(softcap):
    scoring = Scoring(0.3, softcap)
    q, k, v = (torch.randn(3, heads, 5, 6, dtype=torch.float64) for heads in (4, 2, 2))
    mask = visible_mask(random_layout(3, 5))[:, None]
    whole = eager_attention(q, k, v, Visibility(mask), scoring)
    with torch.no_grad():
        for t in range(5):
            one = attend(q[:, :, t : t + 1], k, v, Visibility(mask[:, :, t : t + 1]), scoring)
            assert (one - whole[:, :, t : t + 1]).abs().max() < 1e-12


def test_the_shortcut_without_a_mask_equals_the_dense_mask():
    model, ids = tiny_model(), torch.randint(97, (2, 9))
    dense = Layout(*causal_layout(2, 9)[:2], torch.arange(9).expand(2, 9))  # blocks of one token
    assert (model(ids) - model(ids, dense)).abs().max() < 1e-9


@pytest.mark.parametrize("length", [0, 1])
def test_a_prefix_of_no_or_one_token_is_causal_to_the_bit(length):
    model, ids = tiny_model(), torch.randint(97, (1, 9))
    layout = prefix_layout(9, length)
    assert torch.equal(logits_of(model, ids, layout, "eager"), logits_of(model, ids, None, "eager"))


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("window", [9, 10, 1000])
def test_a_window_as_long_as_the_row_is_no_window_to_the_bit(window, both_sides):
    ids = torch.randint(97, (2, 9))
    for layout in (None, random_layout(2, 9)):
        windowed = tiny_model(sliding_window=window, window_both_sides=both_sides)
        assert torch.equal(windowed(ids, layout), tiny_model()(ids, layout))


def test_a_causal_model_has_the_same_window_on_both_sides_to_the_bit():
    one, both = (tiny_model(**windowed(3, None, both_sides=both_sides)) for both_sides in (False, True))
    ids, layout = torch.randint(97, (2, 9)), random_layout(2, 9)
    assert torch.equal(both(ids), one(ids))
    assert not torch.equal(both(ids, layout), one(ids, layout))


def test_no_mask_reaches_farther_than_the_causal_one_where_windows_bound_both_sides():
    """Farthest key, counted in tokens, that moves a logit: what is behind two layers of window 3."""
    blocks, ids = torch.tensor([0] * 10 + [-1] * 2), torch.randint(97, (1, 12))
    for both_sides, farthest in ((False, 9), (True, 4)):
        model = tiny_model(**windowed(3, 3, both_sides=both_sides))
        changed = ids.clone()
        changed[0, 9] = (ids[0, 9] + 1) % 97
        moved = (model(changed, one_document(blocks)) - model(ids, one_document(blocks))).abs().amax(-1)
        assert 9 - int((moved[0] > 1e-9).int().argmax()) == farthest


def test_at_depth_one_causal_and_prefix_give_the_same_answer_logits_to_the_bit():
    ids, prompt = torch.randint(97, (1, 12)), 7
    one, two = tiny_model(num_hidden_layers=1), tiny_model(num_hidden_layers=2)
    causal, prefix = (logits_of(one, ids, prefix_layout(12, n), "eager") for n in (0, prompt))
    assert torch.equal(causal[:, prompt - 1 :], prefix[:, prompt - 1 :])
    assert not torch.equal(causal[:, : prompt - 1], prefix[:, : prompt - 1])
    causal, prefix = (logits_of(two, ids, prefix_layout(12, n), "eager") for n in (0, prompt))
    assert (causal[:, prompt - 1 :] - prefix[:, prompt - 1 :]).abs().max() > 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_leak_rule_drops_exactly_the_labels_that_a_model_could_read(strategy):
    model = tiny_model()
    layout = one_document(prompt_blocks(strategy, *turns(CONVERSATION)))
    ids = torch.randint(97, (1, 10))
    readable = is_readable(layout.block_ids)[0]
    for t in range(1, 10):
        changed = ids.clone()
        changed[0, t] = (ids[0, t] + 1) % 97
        moved = (model(changed, layout) - model(ids, layout))[0, t - 1].abs().max()
        assert (moved > 1e-9) == readable[t]


@pytest.mark.parametrize("shape", [{}, windowed(3, None), windowed(3, None, both_sides=True)])
def test_packed_rows_equal_separate_documents(shape):
    model, ids, layout = tiny_model(**shape), torch.randint(97, (4, 20)), random_layout(4, 20)
    packed = model(ids, layout)
    for row in range(4):
        for document in range(int(layout.document_ids[row].max()) + 1):
            here = layout.document_ids[row] == document
            alone = one_document(layout.block_ids[row, here], parts=layout.part_ids[row, here])
            assert (model(ids[row, here][None], alone)[0] - packed[row, here]).abs().max() < 1e-9


@pytest.mark.parametrize("blocks", [[0, 0, 0, -1, -1], [-1] * 5])
def test_left_padded_right_padded_and_unpadded_rows_agree(blocks):
    model, ids, alone = tiny_model(), torch.randint(97, (1, 5)), one_document(torch.tensor(blocks))
    expected = model(ids, alone)
    for left, right in ((0, 3), (3, 0), (2, 2)):
        padded = Layout(
            torch.nn.functional.pad(alone.document_ids, (left, right), value=-1),
            torch.nn.functional.pad(alone.position_ids, (left, right)),
            torch.nn.functional.pad(alone.block_ids, (left, right), value=-1),
        )
        for _ in range(2):  # whatever the padding says
            noise = torch.randint(97, (1, 5 + left + right))
            noise[:, left : left + 5] = ids
            assert (model(noise, padded)[:, left : left + 5] - expected).abs().max() < 1e-9


def test_a_row_in_a_batch_equals_the_row_alone():
    model, ids, layout = tiny_model(), torch.randint(97, (4, 20)), random_layout(4, 20)
    together = model(ids, layout)
    for row in range(4):
        alone = model(ids[row : row + 1], Layout(*(field[row : row + 1] for field in layout)))[0]
        real = layout.document_ids[row] >= 0
        assert torch.allclose(alone[real], together[row, real], rtol=0, atol=1e-9)


def test_the_loss_is_the_sum_over_targets_of_the_row_before_them():
    model, ids = tiny_model(), torch.randint(97, (3, 8))
    labels = torch.where(torch.rand(3, 8) < 0.5, ids, -100)
    logits = model(ids)
    expected = sum(
        cross_entropy(logits[b, t - 1], labels[b, t])
        for b in range(3)
        for t in range(1, 8)
        if labels[b, t] >= 0
    )
    assert abs(model(ids, None, labels) - expected) < 1e-9


def test_prompt_logits_get_no_gradient():
    model, ids = tiny_model(), torch.randint(97, (1, 8))
    labels = ids.clone()
    labels[:, :5] = -100
    hidden = model.model(ids).detach().requires_grad_()
    cross_entropy(model.lm_head(hidden)[0, :-1], labels[0, 1:], reduction="sum", ignore_index=-100).backward()
    reference = hidden.grad.clone()
    hidden.grad = None
    summed_cross_entropy(hidden, model.lm_head.weight, labels).backward()
    assert (hidden.grad[:, :4] == 0).all()
    assert (hidden.grad[:, 4:7] != 0).any(-1).all()
    assert (hidden.grad - reference).abs().max() < 1e-12


def test_rows_longer_than_the_registered_triangle_are_covered():
    model, ids = tiny_model(max_position_embeddings=8), torch.randint(97, (1, 20))
    parts = torch.arange(20)[None].clip(max=3) - 1  # without them, no mask is sliced from it
    layout = prefix_layout(20, 12)._replace(part_ids=parts)
    grown = model(ids, layout)
    assert len(model.model.causal_mask) == 32
    assert (grown - tiny_model(max_position_embeddings=64)(ids, layout)).abs().max() < 1e-12


def test_the_mask_buffer_is_registered_once_and_not_saved():
    model = tiny_model()
    buffers = dict(model.named_buffers())
    assert list(buffers) == ["model.causal_mask"] and buffers["model.causal_mask"].dtype == torch.bool
    assert not any("mask" in name for name in model.state_dict())


def test_attention_maps_are_the_probabilities_under_the_mask():
    model, ids, layout = tiny_model(), torch.randint(97, (2, 9)), random_layout(2, 9)
    before = model(ids, layout)
    maps = attention_maps(model, ids, layout)
    assert len(maps) == 2 and maps[0].shape == (2, 4, 9, 9)
    for probabilities in maps:
        assert torch.equal(probabilities > 0, visible_mask(layout)[:, None].expand(2, 4, 9, 9))
        assert (probabilities.sum(-1) - 1).abs().max() < 1e-12
    assert torch.equal(model(ids, layout), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_computed_again_in_the_backward_pass_give_the_same_gradients_to_the_bit(dtype):
    ids, layout = torch.randint(97, (2, 9)), random_layout(2, 9)
    results = []
    for recomputes in (False, True):
        model, calls = tiny_model().float(), []
        if recomputes:
            model.enable_gradient_checkpointing()
        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            nats = model(ids, layout, ids)
        nats.backward()
        assert len(calls) == (4 if recomputes else 2)
        results.append([nats, *(parameter.grad for parameter in model.parameters())])
        with torch.no_grad():
            model(ids, layout)
        assert calls[-2:] == [False, False]
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("windows", [(3, None), (None, 3)])
def test_attention_maps_of_a_mixed_model_show_the_window_of_each_layer(windows, both_sides):
    layout, model = random_layout(2, 9), tiny_model(**windowed(*windows, both_sides=both_sides))
    maps = attention_maps(model, torch.randint(97, (2, 9)), layout)
    for probabilities, window in zip(maps, windows, strict=True):
        mask = visible_mask(layout, Pattern(window, both_sides))
        assert torch.equal(probabilities[:, :1] > 0, mask[:, None])


def test_a_model_takes_over_windows_and_prompt_mask_and_keeps_its_weights():
    model = tiny_model()
    other = tiny_model(prompt_mask="segment", **windowed(3, None, both_sides=True))
    other.load_state_dict(model.state_dict())
    ids = torch.randint(97, (1, 10))
    before = model(ids)
    model.set_masks(other.config)
    assert model.config == model.model.config == other.config
    assert torch.equal(model(ids), other(ids)) and not torch.equal(model(ids), before)
    model.set_masks(tiny_model().config)
    assert torch.equal(model(ids), before)


def test_what_layers_add_begins_smaller_than_their_other_matrices_by_the_number_of_additions():
    model = LanguageModel(from_preset("quickstart", vocab_size=97))
    for layer in model.model.layers:
        for matrix, std in (
            (layer.self_attn.v_proj, 0.02),
            (layer.self_attn.o_proj, 0.02 / 8),
            (layer.mlp.up_proj, 0.02),
            (layer.mlp.down_proj, 0.02 / 8),
        ):
            assert matrix.weight.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize(("family", "per_layer"), [("qwen3_moe", 2), ("encoder_decoder", 3), ("merged", 2)])
def test_experts_are_one_addition_and_reading_a_source_is_another(family, per_layer):
    model = model_of(from_preset("tiny", vocab_size=97, architecture=family))
    for name, matrix in model.model.layers.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            assert matrix.std().item() == pytest.approx(0.02 / (2 * per_layer), rel=0.1), name


def test_the_triangle_of_books_is_a_buffer_of_the_model_that_is_not_saved_and_gives_the_same_logits():
    model, ids = tiny_model(architecture="gpt2"), torch.randint(97, (2, 30))
    expected, names = logits_of(model, ids, None), [*model.state_dict()]
    triangle = ClassicAttention(64)
    model.set_attention(triangle)
    assert (model(ids) - expected).abs().max() < 1e-12
    assert any(name.endswith("attend.future") for name, _ in model.named_buffers())
    assert [*model.state_dict()] == names
    assert triangle.future[:3, :3].int().tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert not BACKENDS["classic"].serves(
        torch.zeros(1, 1, 1025, 2), Visibility(is_causal=True), Scoring(1.0)
    )


def test_a_model_whose_rows_are_longer_than_the_triangle_of_books_attends_otherwise():
    model, ids = tiny_model(max_position_embeddings=2048), torch.randint(97, (1, 1030))
    with torch.no_grad():
        assert torch.equal(logits_of(model, ids, None, "classic"), logits_of(model, ids, None))
