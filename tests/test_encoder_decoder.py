"""Encoder and decoder, merged or not: their masks as drawings, and equality with models of other hands."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from dataset.batches import Batch
from eval.look import attention_maps
from eval.plots import model_panels
from model.architectures import model_of
from model.config import WITH_ENCODER, from_preset
from model.encoder_decoder import between, sides
from model.errors import UserError
from model.generator import Generator, Prompt
from model.layouts import prompt_blocks
from model.masks import Layout, dense_mask, draw_text
from model.rope_scaling import RopeScaling
from tests.conftest import one_document, tiny_model, turns
from trainer.placement import model_flops

PLAIN = dict(
    architecture="encoder_decoder",
    norm="layer",
    rms_norm_eps=1e-5,
    positions="none",
    hidden_act="gelu",
    gated_mlp=False,
    mlp_bias=True,
    attention_bias=True,
    qk_norm=False,
    num_key_value_heads=4,
)
"""parts of which torch.nn.Transformer is made"""
IN_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def row(*documents: tuple[str, int]) -> Layout:
    """The layout (1, T) of documents, as blocks in digits and dots, with padding behind."""
    fields, begun = [], 0
    for number, (drawing, padding) in enumerate(documents):
        blocks = [begun + int(mark) if mark.isdigit() else -1 for mark in drawing]
        begun += 1 + max((int(mark) for mark in drawing if mark.isdigit()), default=-1)
        fields += [(number, place, block) for place, block in enumerate(blocks)]
        fields += [(-1, 0, -1)] * padding
    return Layout(*torch.tensor(fields).T[:, None])


def drawings(layout: Layout) -> list[list[str]]:
    """The masks of the encoder, of the decoder over the source, and over the target."""
    mask = dense_mask(torch.ones(layout.block_ids.shape[1], layout.block_ids.shape[1]).tril().bool(), layout)
    source, target = sides(layout)
    masks = (between(mask, q, k)[0] for q, k in ((source, source), (target, source), (target, target)))
    return [draw_text(each).replace(" ", "").split("\n") for each in masks]


def test_documents_that_share_a_row_are_read_by_themselves():
    assert drawings(row(("000..", 0), ("00.", 1))) == [
        ["11.", "11.", "..1"],
        ["11.", "11.", "11.", "..1", "..1"],
        ["1....", "11...", "111..", "...1.", "...11"],
    ]


def test_later_blocks_read_earlier_ones_but_no_answers():
    layout = one_document(prompt_blocks("segment", *turns("Ss Uu Aa Uuu Aa")))
    assert drawings(layout) == [
        ["1...", "11..", "1111", "1111"],
        ["1...", "11..", "11..", "11..", "1111", "1111", "1111"],
        ["1......", "11.....", "111....", "1111...", "11111..", "111111.", "1111111"],
    ]


def test_rows_with_fewer_tokens_on_a_side_end_with_none():
    both = Layout(*map(torch.cat, zip(row(("0000.", 1))[:3], row(("00....", 0))[:3], strict=True)))
    source, target = sides(both)
    assert source.real.tolist() == [[True] * 3, [True, False, False]]
    assert target.real.tolist() == [[True] * 2 + [False] * 3, [True] * 5]
    assert target.spread(torch.ones(2, 5, 1), 6)[..., 0].tolist() == [[0, 0, 0, 1, 1, 0], [0] + [1] * 5]


def of_torch(model) -> nn.Transformer:
    """torch.nn.Transformer with the weights of a model of ours."""
    config = model.config
    sizes, depths = (config.hidden_size, 4), (config.num_encoder_layers, config.num_hidden_layers)
    options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    options |= {"dim_feedforward": config.intermediate_size, "dtype": torch.float64}
    layer, norm = nn.TransformerEncoderLayer(*sizes, **options), nn.LayerNorm(sizes[0], dtype=torch.float64)
    encoder = nn.TransformerEncoder(layer, depths[0], norm, enable_nested_tensor=False)
    theirs = nn.Transformer(*sizes, *depths, custom_encoder=encoder, **options)
    theirs.load_state_dict(as_torch_has_them(dict(model.model.named_parameters())))
    return theirs


def as_torch_has_them(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters of our bodies, or anything of their shapes, under the names of torch."""
    theirs = {}
    for name, values in ours.items():
        if name.startswith("embed"):
            continue
        name = name if name.startswith("encoder.") else f"decoder.{name}"
        name = name.replace("cross_attn.", "multihead_attn.").replace("o_proj", "out_proj")
        last = "norm3" if name.startswith("decoder") else "norm2"
        for here, there in (
            ("input_layernorm", "norm1"),
            ("cross_attention_layernorm", "norm2"),
            ("post_attention_layernorm", last),
            ("mlp.up_proj", "linear1"),
            ("mlp.down_proj", "linear2"),
        ):
            name = name.replace(here, there)
        module, _, leaf = name.rpartition(".")
        if module.endswith(IN_PROJECTIONS):
            name = f"{module.rpartition('.')[0]}.in_proj_{leaf}"
            values = torch.cat((theirs[name], values)) if name in theirs else values
        theirs[name] = values
    return theirs


@pytest.mark.parametrize("layers", [(2, 2), (3, 1)])
def test_packed_rows_equal_torch_on_single_documents_in_logits_and_gradients(layers):
    encoder, decoder = layers
    model = tiny_model(**PLAIN, num_encoder_layers=encoder, num_hidden_layers=decoder)
    for name, parameter in model.named_parameters():  # biases begin as zeros, norms as ones
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.2)
    theirs, lengths = of_torch(model), ((4, 3), (2, 5), (6, 1))
    layout = row(*(("0" * source + "." * target, source % 3) for source, target in lengths))
    ids, begin, nats = torch.randint(97, layout.block_ids.shape), 0, 0
    logits, labels = model(ids, layout), torch.full_like(ids, -100)
    table = model.lm_head.weight.detach().clone().requires_grad_()
    for source, target in lengths:
        end = begin + source + target
        x = nn.functional.embedding(ids[:, begin:end], table)
        causal = nn.Transformer.generate_square_subsequent_mask(target + 1, dtype=torch.float64)
        states = theirs(x[:, : source - 1], x[:, source - 1 :], tgt_mask=causal, tgt_is_causal=True)
        wanted = (states @ table.T)[0]
        assert (logits[0, begin + source - 1 : end] - wanted).abs().max() < 1e-9
        nats = nats + cross_entropy(wanted[:-1], ids[0, begin + source : end], reduction="sum")
        labels[0, begin + source : end] = ids[0, begin + source : end]
        begin = end + source % 3
    ours = model(ids, layout, labels)
    assert abs(float((ours - nats).detach())) < 1e-9
    ours.backward()
    nats.backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    got = as_torch_has_them({name: each.grad for name, each in model.model.named_parameters()})
    assert got.keys() == expected.keys()
    pairs = [(got[name], expected[name]) for name in expected]
    for mine, other in [*pairs, (model.lm_head.weight.grad, table.grad)]:
        assert (mine - other).norm() <= 1e-6 * (other.norm() + 1e-6)


def test_the_merged_form_is_that_of_t5gemma_2():
    from transformers.models.t5gemma2 import modeling_t5gemma2 as t5
    from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2DecoderConfig, T5Gemma2TextConfig

    shape = dict(hidden_act="gelu_pytorch_tanh", post_norms=True, scale_embeddings=True)
    model = tiny_model(architecture="merged", num_encoder_layers=3, initializer_range=0.05, **shape).float()
    sizes = {
        name: getattr(model.config, name)
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")
        + ("num_key_value_heads", "head_dim")
    }
    sizes |= {"query_pre_attn_scalar": 16, "attn_implementation": "eager", "dropout_rate": 0.0}

    def config(form, layers: int):
        return form(**sizes, num_hidden_layers=layers, layer_types=["full_attention"] * layers)

    encoder = t5.T5Gemma2TextEncoder(config(T5Gemma2TextConfig, 3)).eval()
    decoder = t5.T5Gemma2Decoder(config(T5Gemma2DecoderConfig, 2)).eval()
    copy_to_t5gemma(model.model.encoder, encoder, model.model.embed_tokens.weight)
    copy_to_t5gemma(model.model, decoder, model.model.embed_tokens.weight)
    ids, layout = torch.randint(1, 97, (1, 12)), row(("0000000.....", 0))
    with torch.no_grad():
        memory = encoder(ids[:, :6]).last_hidden_state
        places = torch.arange(6, 12)[None]
        theirs = decoder(ids[:, 6:], position_ids=places, encoder_hidden_states=memory, use_cache=False)
        assert (model.model(ids, layout)[:, 6:] - theirs.last_hidden_state).abs().max() < 1e-4


@torch.no_grad()
def copy_to_t5gemma(ours: nn.Module, theirs: nn.Module, table: torch.Tensor) -> None:
    """Copy the weights of a stack, whose norms add 1 there."""
    names = {
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "attention_output_layernorm": "post_self_attn_layernorm",
        "mlp_output_layernorm": "post_feedforward_layernorm",
        "input_layernorm": "pre_self_attn_layernorm",
    }
    state = theirs.state_dict()
    state["embed_tokens.weight"].copy_(table)
    copied = {"embed_tokens.weight", "embed_tokens.eoi_embedding"}
    for name, value in ours.state_dict().items():
        if not name.startswith(("layers", "norm")):
            continue
        for here, there in names.items():
            if here in name:
                name = name.replace(here, there)
                break
        state[name].copy_(value - 1 if "norm" in name else value)
        copied.add(name)
    assert copied == state.keys()


@pytest.mark.parametrize("family", WITH_ENCODER)
def test_pictures_show_what_each_layer_sees(family):
    model = tiny_model(architecture=family, num_encoder_layers=1)
    blocks = row(("000..", 0), ("00.", 1)).block_ids[0][:5]
    [panel] = model_panels("both", one_document(blocks), model.config)
    drawn = ["11...", "11...", "111..", "1111.", "11111"]
    assert draw_text(panel.mask).replace(" ", "").split("\n") == drawn
    encoder, *decoder = attention_maps(model, torch.randint(97, (1, 5)), one_document(blocks))
    assert torch.equal(encoder[0, 0] > 0, panel.mask & (torch.arange(5) < 2)[:, None])
    for each in decoder:
        assert torch.equal(each[0, 0] > 0, panel.mask & (torch.arange(5) >= 2)[:, None])
        softmaxes = 1 if family == "merged" else 2
        assert (each.sum(-1)[..., 2:] - softmaxes).abs().max() < 1e-9


@pytest.mark.parametrize("family", WITH_ENCODER)
def test_without_a_source_it_is_a_decoder_to_the_bit(family):
    model, plain = tiny_model(architecture=family), tiny_model()
    shared = {name: value for name, value in model.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(shared)
    ids = torch.randint(97, (2, 9))
    for layout in (None, row((".........", 0)), row(("0........", 0))):
        expected = plain(
            ids, None if layout is None else Layout(*(each.expand(2, -1) for each in layout[:3]))
        )
        assert (
            model(ids, layout and Layout(*(each.expand(2, -1) for each in layout[:3]))) - expected
        ).abs().max() < 1e-12


@pytest.mark.parametrize("family", WITH_ENCODER)
def test_the_source_is_encoded_once_however_long_the_answer(family):
    model, encoded = tiny_model(architecture=family), []
    model.model.encoder.norm.register_forward_hook(lambda *_: encoded.append(1))
    generator, cache = Generator(model, []), model.new_cache(1)
    generator.prefill(cache, [Prompt((1, 2, 3, 4), (0, 0, 0, 0))])
    kept = [keys[:, :, :3].clone() for keys in cache.keys]
    for token in (5, 6, 7):
        generator.decode(cache, [token])
    assert len(encoded) == 1
    assert all(torch.equal(keys[:, :, :3], former) for keys, former in zip(cache.keys, kept, strict=True))


@pytest.mark.parametrize("family", WITH_ENCODER)
def test_what_was_taken_back_is_no_part_of_a_block_beside_a_longer_row(family):
    model = tiny_model(architecture=family)
    generator, cache = Generator(model, []), model.new_cache(2)
    former, short, long = (Prompt((*range(length),), (0,) * length) for length in (9, 5, 8))
    generator.prefill(cache, [former, former])
    cache.truncate(0)
    both = generator.prefill(cache, [short, long])
    assert (both[:1] - generator.prefill(model.new_cache(1), [short])).abs().max() < 1e-9


@pytest.mark.parametrize("family", WITH_ENCODER)
def test_positions_that_are_scaled_afterwards_are_scaled_in_the_encoder_too(family):
    scaling = RopeScaling("linear", factor=4.0)
    model, scaled = tiny_model(architecture=family), tiny_model(architecture=family, rope_scaling=scaling)
    model.set_masks(scaled.config)
    ids, layout = torch.randint(97, (1, 7)), row(("0000...", 0))
    assert torch.equal(model(ids, layout), scaled(ids, layout))


@pytest.mark.parametrize("family", WITH_ENCODER)
def test_the_arithmetic_is_what_torch_counts(family):
    config = from_preset("tiny", vocab_size=97, architecture=family, num_encoder_layers=3)
    model, layout = model_of(config), row(("0" * 41 + "." * 24, 0))
    model.set_attention("eager")
    ids = torch.randint(97, (1, 65))
    labels = ids.where(layout.block_ids < 0, -100)
    with FlopCounterMode(display=False) as counter:
        model(ids, layout, labels).backward()
    source, target = 40, 25
    invisible = 3 * (source * (source - 1) // 2) + 2 * (target * (target - 1) // 2)
    counted = model_flops(config, Batch(ids, labels, *layout))
    assert counter.get_total_flops() == counted + 12 * 64 * invisible


def test_packed_documents_work_as_much_as_apart():
    config = from_preset("tiny", vocab_size=97, architecture="merged")

    def flops(*documents: tuple[str, int]) -> int:
        layout = row(*documents)
        ids = torch.zeros_like(layout.block_ids)
        return model_flops(config, Batch(ids, ids - 100, *layout))

    together = flops(("0000..", 0), ("111..", 2), ("....", 0))
    assert together == sum(flops((each, 0)) for each in ("0000..", "000..", "...."))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"architecture": "merged", "sliding_window": 8}, "sliding_window: architecture merged has none"),
        ({"architecture": "merged", "num_experts": 4, "num_experts_per_tok": 1}, "num_experts: .* has none"),
        ({"num_encoder_layers": 2}, "num_encoder_layers: architecture qwen3 has no encoder"),
    ],
)
def test_what_has_no_effect_is_refused_by_name(values, said):
    with pytest.raises(UserError, match=said):
        from_preset("tiny", vocab_size=97, **values)


def test_as_many_layers_encode_as_decode_where_nothing_is_said():
    config = from_preset("tiny", vocab_size=97, architecture="merged")
    assert config.num_encoder_layers == 2 and replace(config, num_encoder_layers=2) == config
