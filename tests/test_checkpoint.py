"""Model directories: what is saved comes back, transformers reads causal ones, every fault has its line."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.architectures import model_of
from model.checkpoint import export_checkpoint, load_checkpoint, save_checkpoint
from model.config import ARCHITECTURES, PRESETS, from_preset
from model.errors import UserError
from model.transformer import LanguageModel
from tests.conftest import windowed, windows_of


def saved(path, prompt_mask="causal", **overrides) -> LanguageModel:
    torch.manual_seed(0)
    overrides = {"vocab_size": 97, "initializer_range": 0.2, "prompt_mask": prompt_mask, **overrides}
    model = model_of(from_preset("tiny", **overrides)).eval()
    save_checkpoint(path, model, stop_ids=(2, 0))
    return model


def edit_config(path, **changes):
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | changes))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("prompt_mask", ["causal", "segment"])
def test_a_saved_model_comes_back_to_the_bit(tmp_path, prompt_mask, family, tied):
    model = saved(tmp_path, prompt_mask, tie_word_embeddings=tied, architecture=family)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.model.config == model.config and checkpoint.stop_ids == (2, 0)
    assert checkpoint.model.config.prompt_mask == prompt_mask
    ids = torch.randint(97, (2, 30))
    assert torch.equal(checkpoint.model(ids), model(ids))
    assert checkpoint.model.num_parameters() == model.num_parameters()


@pytest.mark.parametrize(
    "overrides",
    [
        {"rope_theta": 5e3},
        {"tie_word_embeddings": False},
        windowed(5, 5),
        windowed(5, None),
        windowed(None, 5),
        windowed(5, None, None, 5),
        windowed(5, None, both_sides=True),  # a causal model has no block whose later keys it would bound
    ],
)
def test_transformers_opens_a_causal_model_and_we_open_what_it_saves(tmp_path, overrides):
    from transformers import Qwen3ForCausalLM

    model = saved(tmp_path, **overrides)
    theirs = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(97, (2, 30))
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids)).abs().max() < 1e-4
    theirs.save_pretrained(tmp_path / "theirs")
    back = load_checkpoint(tmp_path / "theirs")
    assert torch.equal(back.model(ids), model(ids)) and back.model.config.prompt_mask == "causal"
    assert back.model.config == load_checkpoint(tmp_path).model.config == model.config


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, (None, 5, 5)),
        ({"max_window_layers": 0}, (5, 5, 5)),
        ({"max_window_layers": 3}, (None, None, None)),
        ({"max_window_layers": 1, "use_sliding_window": False}, (None, None, None)),
        ({"layer_types": ["full_attention"] * 3}, (None, None, None)),
    ],
)
def test_the_window_of_a_qwen3_directory_is_where_transformers_has_it(tmp_path, changes, windows):
    from transformers import Qwen3ForCausalLM

    saved(tmp_path, **windowed(None, 5, 5))
    values = json.loads((tmp_path / "config.json").read_text())
    del values["layer_types"], values["prompt_mask"], values["format_version"]
    (tmp_path / "config.json").write_text(json.dumps(values | changes))
    model = load_checkpoint(tmp_path).model
    assert windows_of(model.config) == windows
    theirs = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(97, (2, 30))
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids)).abs().max() < 1e-4


def test_files_from_before_layer_types_keep_the_window_in_every_layer(tmp_path):
    model = saved(tmp_path, "prefix", sliding_window=5)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["layer_types"], values["window_both_sides"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_checkpoint(tmp_path).model.config == model.config
    assert windows_of(model.config) == (5, 5)


def test_a_mixed_model_under_a_prompt_mask_comes_back_to_the_bit(tmp_path):
    model = saved(tmp_path, "segment", **windowed(None, 5, both_sides=True))
    back, ids = load_checkpoint(tmp_path).model, torch.randint(97, (2, 30))
    assert back.config == model.config and torch.equal(back(ids), model(ids))


def test_only_causal_models_look_like_qwen3_to_other_tools(tmp_path):
    saved(tmp_path / "prefix", "prefix")
    values = json.loads((tmp_path / "prefix" / "config.json").read_text())
    assert "model_type" not in values and "architectures" not in values
    with pytest.raises(UserError, match="only causal models are exported"):
        export_checkpoint(tmp_path / "prefix", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_an_export_is_the_same_model_and_overwrites_nothing(tmp_path):
    model = saved(tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "exported")
    ids = torch.randint(97, (1, 9))
    assert torch.equal(load_checkpoint(tmp_path / "exported").model(ids), model(ids))
    with pytest.raises(UserError, match="not empty"):
        export_checkpoint(tmp_path / "run", tmp_path / "exported")


def test_tied_weights_are_stored_once_and_buffers_never(tmp_path):
    saved(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "lm_head.weight" not in names and not any("mask" in name for name in names)
    assert all(name.startswith("model.") for name in names)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (lambda t: t.pop("model.norm.weight"), "missing model.norm.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"shape \(3,\), expected \(64,\)"),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_named(tmp_path, fault, line):
    saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    fault(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=line):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prompt_mask": "sideways"}, "config.json: unknown prompt_mask 'sideways'; choose one of causal, "),
        ({"format_version": 99}, "format_version 99"),
        ({"hidden_size": "wide"}, 'hidden_size: expected int, got "wide"'),
        ({"hidden_size": None}, "hidden_size: expected int, got null"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_scaling: factor is missing"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "expected one of linear, llama3, yarn",
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "expected factor of at least 1"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3.0}}, "expected factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor, high_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "not supported"),
        ({"attention_bias": True}, "missing model.layers.0.self_attn.k_proj.bias"),
        ({"vocab_size": -5}, "vocab_size: expected int, got -5"),
        ({"vocab_size": 0}, "vocab_size must be greater than 0"),
        ({"vocab_size": 2**60}, "below 2"),
        ({"vocab_size": 2**70}, "vocab_size: expected int, got"),
        ({"rope_scaling": ["yarn"]}, "rope_scaling: expected an object"),
        ({"rope_theta": "abc"}, "rope_theta: expected float"),
        ({"rope_theta": float("nan")}, "rope_theta: expected float, got NaN"),
        ({"rope_theta": -1.0}, "rope_theta must be greater than 0"),
        (
            {"sliding_window": "wide", "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2},
            "sliding_window: expected int",
        ),
        ({"hidden_act": "relu"}, "hidden_act: expected one of silu, gelu, gelu_pytorch_tanh, got .relu"),
        ({"positions": "learned", "rope_scaling": {"type": "linear", "factor": 2}}, "expected rotary"),
        ({"layer_types": 5}, "layer_types must be a list"),
        (
            {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
            r"sliding_window \(None\) and layer_types contradict",
        ),
        (
            {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention"]},
            "layer_types names 1 layers but num_hidden_layers is 2",
        ),
        (
            {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention", ["x"]]},
            r"layer_types\[1\]: expected one of full_attention, sliding_attention",
        ),
    ],
)
def test_a_configuration_that_we_cannot_build_is_refused(tmp_path, changes, line):
    saved(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(UserError, match=line):
        load_checkpoint(tmp_path)


def test_directories_that_are_no_models_get_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="not found"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "vocab_size": 10}')
    with pytest.raises(
        UserError, match="model_type qwen3, qwen3_moe, llama, gpt2, gemma2, gemma3_text, got 'mamba'"
    ):
        load_checkpoint(tmp_path)


def test_a_weights_file_cut_short_is_one_clear_line(tmp_path):
    saved(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or cut short"):
        load_checkpoint(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="no model.safetensors"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["rope_theta", "rms_norm_eps", "tie_word_embeddings", "head_dim"])
def test_no_value_of_an_architecture_is_guessed(tmp_path, name):
    saved(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"lacks {name}"):
        load_checkpoint(tmp_path)


def test_only_the_models_own_file_is_read(tmp_path):
    model = saved(tmp_path)
    save_file({"model.norm.weight": torch.zeros(64)}, tmp_path / "model_backup.safetensors")
    assert torch.equal(load_checkpoint(tmp_path).model.model.norm.weight, model.model.norm.weight)


def test_a_tied_output_layer_may_be_stored_beside_its_embedding(tmp_path):
    model = saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert load_checkpoint(tmp_path).model.num_parameters() == model.num_parameters()
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="unknown lm_head.weight"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, wrong):
    saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][3] = wrong
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model.norm.weight holds values that are no weights"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("generation", "config", "stops"),
    [(0, None, (0,)), ([3, 0], 1, (3, 0)), (None, 5, (5,)), (None, None, ())],
)
def test_every_way_to_write_stop_ids_is_read(tmp_path, generation, config, stops):
    saved(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    edit_config(tmp_path, eos_token_id=config)
    assert load_checkpoint(tmp_path).stop_ids == stops


@pytest.mark.parametrize("wrong", ["2", ["a"], 97, -1, True, {"a": 1}])
def test_stop_ids_that_are_no_tokens_are_refused(tmp_path, wrong):
    saved(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(UserError, match="eos_token_id must be ids below 97"):
        load_checkpoint(tmp_path)


def test_presets_have_the_sizes_that_their_names_promise():
    def millions(name, vocab_size):
        with torch.device("meta"):
            return LanguageModel(from_preset(name, vocab_size=vocab_size)).num_parameters() / 1e6

    assert 0.8 < millions("quickstart", 2000) < 0.9
    assert 63 < millions("minimind3", 6400) < 65
    assert 120 < millions("124m", 50257) < 127
    assert 280 < millions("medium", 6400) < 330
    with pytest.raises(UserError, match="choose one of"):
        from_preset("huge", vocab_size=10)
    assert set(PRESETS) >= {"tiny", "quickstart", "small", "minimind3", "medium"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_hidden_layers": 10**12}, "says 1000000000000 num_hidden_layers but the weights have 2"),
        ({"num_hidden_layers": 10**4}, "says 10000 num_hidden_layers but the weights have 2"),
        ({"hidden_size": 2**39, "vocab_size": 2**39}, "does not fit its configuration: model.embed_tokens"),
        ({"intermediate_size": 2**39}, r"has shape \(192, 64\), expected \(549755813888, 64\)"),
        ({"num_attention_heads": 2**38}, "q_proj.weight has shape"),
        (
            {
                "layer_types": ["full_attention"] * 10**5,
                "use_sliding_window": True,
                "sliding_window": 3,
            },
            "layer_types",
        ),
        (
            {"layer_types": ["\x1b[31m" * 10**5], "use_sliding_window": True, "sliding_window": 3},
            "layer_types",
        ),
        ({"model_type": "q" * 10**6}, "expected a Sightline model or model_type qwen3, .* got 'qqq"),
        ({"prompt_mask": "q" * 10**6}, "unknown prompt_mask"),
        ({"memory_tokens": 2**39}, "missing model.layers.0.memory"),
        ({"num_hidden_layers": [[[]]] * 10**5}, "num_hidden_layers: expected int"),
    ],
)
def test_a_configuration_that_no_machine_could_build_is_a_short_line_at_once(tmp_path, changes, line):
    saved(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(UserError, match=line) as error:
        load_checkpoint(tmp_path)
    assert len(str(error.value).replace(str(tmp_path), "")) < 400


def with_header(path, **shapes: list[int]):
    """Add tensors of zeros to the weights; of a shape that holds nothing, a header may tell any size."""
    content = (path / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header, end_of_data = json.loads(content[8:end]), len(content) - end
    for name, shape in shapes.items():
        begin, end_of_data = end_of_data, end_of_data + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end_of_data]}
    text, data = json.dumps(header).encode(), content[end:].ljust(end_of_data, b"\0")
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    ("name", "shape", "changes", "line"),
    [
        ("x", [0, 2**62, 2**62], {}, "x holds no values"),
        ("x", [0, 2**63], {}, "x holds no values"),
        ("model.layers.0.mlp.experts.up_proj", [10**9, 0, 0], {"model_type": "qwen3_moe"}, "holds no values"),
        ("model.layers." + "9" * 5000 + ".x", [1], {}, "says 2 num_hidden_layers but the weights have 3"),
        ("model.layers.999999.x", [1], {"num_hidden_layers": 10**6}, "but the weights have 3"),
        ("h.0.attn.c_attn.weight", [], {"model_type": "gpt2", "n_layer": 2}, "does not fit|lacks"),
    ],
    ids=range(6),
)
def test_names_and_shapes_in_a_header_that_no_machine_could_build_are_one_line(
    tmp_path, name, shape, changes, line
):
    saved(tmp_path)
    with_header(tmp_path, **{name: shape})
    edit_config(tmp_path, **changes)
    with pytest.raises(UserError, match=line):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[" * 3000, "nested too deeply"),
        ('{"a":' * 3000, "nested too deeply"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "a number has thousands of digits"),
        ("[]", "must hold a JSON object"),
        ("\udcff", "not valid JSON"),
    ],
)
def test_json_made_to_break_its_reader_is_one_line(tmp_path, text, line):
    saved(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=line):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.bool, torch.complex64]
)
def test_numbers_that_are_no_weights_are_named_before_any_is_read(tmp_path, dtype):
    saved(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model.norm.weight holds values that are no weights"):
        load_checkpoint(tmp_path)


def test_weights_larger_than_memory_are_refused_by_their_header(tmp_path):
    """A sparse file of 2.5 TB: its header is true, nothing of it can be read."""
    saved(tmp_path)
    rows, width = 10**10, 64
    header = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [rows, width]}}
    position = 4 * rows * width
    header["model.embed_tokens.weight"]["data_offsets"] = [0, position]
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        if name not in header:
            end = position + tensor.nbytes
            header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [position, end]}
            position = end
    text = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        try:
            file.truncate(8 + len(text) + position)
        except OSError:
            pytest.skip("this file system holds no file of 2.5 TB")
    edit_config(tmp_path, vocab_size=rows)
    with pytest.raises(
        UserError, match=r"needs 2,560.0 GB of memory as float32 but|too large for the memory"
    ):
        load_checkpoint(tmp_path)


def test_a_header_that_lies_is_a_damaged_file(tmp_path):
    saved(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    for old, new in ((b'"shape":[64]', b'"shape":[65]'), (b'"F32"', b'"F16"'), (b'"dtype"', b'"dtipe"')):
        weights.write_bytes(content.replace(old, new, 1))
        with pytest.raises(UserError, match="damaged or cut short"):
            load_checkpoint(tmp_path)


def in_shards(path) -> dict[str, str]:
    """Divide the weights into two files with an index; return its map."""
    tensors = load_file(path / "model.safetensors")
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    parts = sorted(tensors)[::2], sorted(tensors)[1::2]
    for name, part in zip(names, parts, strict=True):
        save_file({each: tensors[each] for each in part}, path / name)
    (path / "model.safetensors").unlink()
    return {each: name for name, part in zip(names, parts, strict=True) for each in part}


def test_shards_are_one_model_and_every_fault_of_theirs_has_its_line(tmp_path):
    model, index = saved(tmp_path), tmp_path / "model.safetensors.index.json"
    shards = in_shards(tmp_path)
    index.write_text(json.dumps({"weight_map": shards}))
    ids = torch.randint(97, (1, 9))
    assert torch.equal(load_checkpoint(tmp_path).model(ids), model(ids))
    for wrong in (["a"], {"a": 5}, {"a": "../model.safetensors"}, {"a": ""}, None):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(UserError, match="weight_map must name a file of this folder"):
            load_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": shards | {"extra": "model-3.safetensors"}}))
    with pytest.raises(UserError, match=r"model-3.safetensors cannot be read"):
        load_checkpoint(tmp_path)
    index.unlink()
    first, second = sorted(set(shards.values()))
    save_file(load_file(tmp_path / first) | load_file(tmp_path / second), tmp_path / second)
    with pytest.raises(UserError, match=f"is in {first} and in {second}"):
        load_checkpoint(tmp_path)


def test_a_generation_config_of_other_types_is_a_short_line(tmp_path):
    saved(tmp_path)
    for text in ("[]", "5", "{", json.dumps({"eos_token_id": ["2"] * 10**5}), '{"eos_token_id": 1e99}'):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(UserError) as error:
            load_checkpoint(tmp_path)
        assert len(str(error.value).replace(str(tmp_path), "")) < 200
