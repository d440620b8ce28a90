"""Kinds of models of transformers against that library: logits, gradients, greedy answers, both ways."""

import json
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import export_checkpoint, load_checkpoint, save_checkpoint
from model.config import from_preset
from model.errors import UserError
from model.generator import Generator, Prompt, Request
from model.kinds import KINDS
from model.rope_scaling import RopeScaling
from model.sampling import Sampling
from model.transformer import LanguageModel

CONTEXT = {"max_position_embeddings": 64, "vocab_size": 61}
SIZES = CONTEXT | {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": None,
}
BIASES = {"attention_bias": True}
GEMMA = SIZES | BIASES | {"sliding_window": 5, "query_pre_attn_scalar": 3, "final_logit_softcapping": 2.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SCALED_GEMMA = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
SHAPES = {
    "qwen3": ("Qwen3", SIZES | BIASES | {"rope_parameters": {"rope_theta": 1e4} | YARN}),
    "qwen3_moe": (
        "Qwen3Moe",
        SIZES
        | BIASES
        | {"moe_intermediate_size": 24, "num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": True}
        | {"use_sliding_window": True, "sliding_window": 7},
    ),
    "qwen3_moe_shares": ("Qwen3Moe", SIZES | {"num_experts": 4, "num_experts_per_tok": 3}),
    "llama": ("Llama", SIZES | BIASES | {"mlp_bias": True, "tie_word_embeddings": False}),
    "llama_linear": ("Llama", SIZES | {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "llama_3": ("Llama", SIZES | {"rope_parameters": {"rope_theta": 1e4} | LLAMA3, "hidden_act": "gelu"}),
    "gpt2": (
        "GPT2",
        {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 61}
        | dict.fromkeys(("bos_token_id", "eos_token_id")),
    ),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 1.5}),
    "gemma3": ("Gemma3", GEMMA | {"num_hidden_layers": 7, "rope_parameters": SCALED_GEMMA}),
}


@contextmanager
def in_float64():
    """Let transformers compute norms, angles and softmax as widely as all else, so that nothing is off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def drawn(name: str):
    """A model of transformers whose weights are large enough for all of them to matter."""
    import transformers

    kind, values = SHAPES[name]
    config = getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")(**values)
    model_class = getattr(transformers, f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    config._attn_implementation = config._experts_implementation = "eager"
    with in_float64():
        model = model_class(config).double().eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
            parameter.data = (parameter.data * (parameter.ndim == 1) + noise).to(torch.half).double()
    return model


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    """A drawn model, what we open of it, and the folder."""
    theirs, folder = drawn(request.param), tmp_path_factory.mktemp("models") / request.param
    theirs.save_pretrained(folder)
    return theirs, load_checkpoint(folder).model.double().eval(), folder


def test_logits_and_gradients_equal_those_of_transformers(pair):
    theirs, ours, _ = pair
    ids, results = torch.randint(61, (2, 20)), []
    for model in (theirs, ours):
        model.zero_grad()
        with in_float64():
            logits = theirs(ids).logits if model is theirs else ours(ids)
        logits.square().mean().backward()
        results.append(logits)
    assert (results[0] - results[1]).abs().max() < 1e-9
    [kind] = [each for each in KINDS if each.class_name == type(theirs).__name__]
    gradients = kind.to_ours({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        is_moved = kind.architecture.startswith("gemma") and name.endswith("norm.weight")
        expected = gradients[name] - int(is_moved)
        assert (parameter.grad - expected).norm() <= 1e-9 * (1 + expected.norm()), name


def test_the_loss_in_chunks_equals_that_of_transformers(pair):
    theirs, ours, _ = pair
    ids = torch.randint(61, (2, 20))
    with in_float64():
        mean = theirs(ids, labels=ids).loss
    results = []
    for model, loss in ((theirs, mean), (ours, ours(ids, None, ids) / 38)):
        model.zero_grad()
        loss.backward()
        norm = model.get_input_embeddings().weight if model is theirs else ours.model.embed_tokens.weight
        results.append((loss, norm.grad))
    assert abs(results[0][0] - results[1][0]) < 1e-9
    assert (results[0][1] - results[1][1]).abs().max() < 1e-9


def test_cached_greedy_answers_equal_those_of_transformers(pair):
    theirs, ours, _ = pair
    prompts = [tuple(torch.randint(61, (n,)).tolist()) for n in (1, 9)]
    requests = [Request(Prompt(ids, (-1,) * len(ids)), Sampling(max_new_tokens=16)) for ids in prompts]
    for ids, answer in zip(prompts, Generator(ours, []).generate(requests), strict=True):
        with in_float64():
            made = theirs.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=16,
                do_sample=False,
                pad_token_id=0,
            )
        assert answer.ids == tuple(made[0, len(ids) :].tolist())


def test_what_we_save_and_export_is_the_same_model_for_transformers(pair, tmp_path):
    from transformers import AutoModelForCausalLM

    theirs, ours, folder = pair
    first = load_checkpoint(folder).model
    save_checkpoint(tmp_path / "ours", first, stop_ids=(7,))
    again = load_checkpoint(tmp_path / "ours").model
    assert again.config == first.config
    export_checkpoint(tmp_path / "ours", tmp_path / "theirs")
    back = load_checkpoint(tmp_path / "theirs")
    assert back.model.config == first.config and back.stop_ids == (7,)
    for weight, other in zip(back.model.parameters(), first.parameters(), strict=True):
        assert (weight - other).abs().max() <= 1e-7
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", attn_implementation="eager")
    ids = torch.randint(61, (2, 20))
    with torch.no_grad():
        assert (opened(ids).logits - theirs(ids).logits).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_shards_in_bfloat16_are_read_as_they_are(name, tmp_path):
    theirs = drawn(name)
    for parameter in theirs.parameters():
        parameter.data = parameter.data.bfloat16().double()
    deepcopy(theirs).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="5KB")
    assert len([*tmp_path.glob("model-*-of-*.safetensors")]) > 2
    ours, ids = load_checkpoint(tmp_path).model.double(), torch.randint(61, (2, 9))
    with torch.no_grad(), in_float64():
        assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-9


def rewritten(folder, name: str, changes: dict, dropped: tuple[str, ...] = ()):
    """Save a drawn model in a folder and edit its configuration."""
    model = drawn(name)
    model.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in values.items() if key not in dropped}
    (folder / "config.json").write_text(json.dumps(kept))
    return model


@pytest.mark.parametrize(
    ("name", "changes", "dropped"),
    [
        ("llama", {"rope_theta": 10000.0}, ("rope_parameters",)),
        ("llama_linear", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ("rope_parameters",)),
        ("llama_linear", {"rope_parameters": {"rope_type": "default"}, "rope_scaling": LINEAR}, ()),
        ("gemma2", {}, ("layer_types", "tie_word_embeddings", "hidden_activation")),
        (
            "gemma3",
            {
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "rope_theta": 1e4,
                "rope_local_base_freq": 100.0,
                "sliding_window_pattern": 6,
            },
            ("rope_parameters", "layer_types", "tie_word_embeddings"),
        ),
    ],
)
def test_what_older_files_write_otherwise_or_leave_out_is_read_as_it_was_meant(
    name, changes, dropped, tmp_path
):
    theirs = rewritten(tmp_path, name, changes, dropped)
    ours, ids = load_checkpoint(tmp_path).model.double(), torch.randint(61, (2, 20))
    with torch.no_grad(), in_float64():
        assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-9


def test_the_frequencies_that_old_files_of_llama_hold_are_passed_over(tmp_path):
    drawn("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    assert load_checkpoint(tmp_path).model.config.architecture == "llama"


def test_gpt2_without_its_prefix_and_with_its_old_buffers_is_the_same_model(tmp_path):
    drawn("gpt2").save_pretrained(tmp_path)
    expected = load_checkpoint(tmp_path).model
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
    tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, tmp_path / "model.safetensors")
    model, ids = load_checkpoint(tmp_path).model, torch.randint(61, (1, 9))
    assert torch.equal(model(ids), expected(ids))
    tensors["transformer.wte.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model.embed_tokens.weight is there twice"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True is not"),
        ("gpt2", {"n_layer": 3}, "says 3 n_layer but the weights have 2"),
        (
            "gpt2",
            {"n_positions": 32},
            r"model.embed_positions.weight has shape \(64, 16\), expected \(32, 16",
        ),
        ("gpt2", {"activation_function": "relu"}, "hidden_act: expected one of silu, gelu, gelu"),
        (
            "gemma2",
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention True is not supported",
        ),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not supported"),
        ("gemma3", {"rope_parameters": ["x"]}, "scaled positions in sliding layers"),
        ("gemma3", {"sliding_window_pattern": 0, "layer_types": None}, "sliding_window_pattern must be 1"),
        ("llama", {"rope_scaling": LLAMA3 | {"low_freq_factor": 9.0}}, "rope_scaling llama3: expected"),
        ("gemma3", {"sliding_window": None}, "contradict each other"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step 2 is not supported"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers \[0\] is not supported"),
        ("qwen3_moe", {"num_experts_per_tok": 6}, r"expected 1 up to num_experts \(5\), got 6"),
        ("qwen3_moe", {"num_local_experts": 10**9}, "gate.weight has shape"),
        (
            "gemma3",
            {"model_type": "gemma3"},
            "model_type qwen3, qwen3_moe, llama, gpt2, gemma2, gemma3_text, got 'gemma3'",
        ),
    ],
)
def test_what_a_kind_has_that_we_have_not_is_refused_by_its_name(name, changes, line, tmp_path):
    rewritten(tmp_path, name, changes)
    with pytest.raises(UserError, match=line):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ({"architecture": "llama", "positions": "none"}, "positions none where LlamaForCausalLM has rotary"),
        ({"architecture": "llama", "sliding_window": 5}, "sliding_window 5 where LlamaForCausalLM has None"),
        (
            {"architecture": "gpt2", "num_key_value_heads": 2},
            "num_key_value_heads 2 where GPT2LMHeadModel has 4",
        ),
        (
            {"architecture": "gemma3", "attn_logit_softcapping": 9.0},
            "attn_logit_softcapping 9.0 where Gemma3",
        ),
        ({"qk_norm": False}, "qk_norm False where Qwen3ForCausalLM has True"),
        ({"architecture": "llama", "hidden_size": 65}, "hidden_size 65 where LlamaForCausalLM has 68"),
        ({"architecture": "gpt2", "hidden_size": 66}, "hidden_size 66 where GPT2LMHeadModel has 68"),
        (
            {"architecture": "gemma3", "rope_local_theta": None, "rope_scaling": RopeScaling("linear", 8.0)},
            "rope_local_theta None where Gemma3ForCausalLM has 1000000.0",
        ),
        ({"architecture": "qwen3_moe"}, "router_bias True where Qwen3MoeForCausalLM has False"),
    ],
)
def test_a_model_of_parts_that_its_kind_has_not_is_ours_alone(shape, line, tmp_path):
    model = LanguageModel(from_preset("tiny", vocab_size=61, **shape))
    save_checkpoint(tmp_path / "ours", model)
    assert load_checkpoint(tmp_path / "ours").model.config == model.config
    assert "model_type" not in json.loads((tmp_path / "ours" / "config.json").read_text())
    with pytest.raises(UserError, match=f"cannot be exported: it has {line}"):
        export_checkpoint(tmp_path / "ours", tmp_path / "theirs")
