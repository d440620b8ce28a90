"""Models as GGUF files: weights, tokenizer, chat template, stop ids, and the prompt mask.

A causal model opens in every program on llama.cpp. One with another mask names an architecture that they
refuse, as they would run it causally without a word; `eval/engines/llama_cpp.py` serves both.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from torch import Tensor

from eval.engines.gguf_checks import check_gguf
from eval.engines.gguf_tokenizer import write_tokenizer
from eval.served_model import ServedModel, open_model
from model.config import ModelConfig
from model.errors import UserError
from model.files import replacing
from model.hugging_face import excess_of, kind_for
from model.strategies import strategy_named

Quantize = Literal["f32", "f16", "q8_0", "q4_0"]
MASKED = "sightline-"
"""stands before the architecture of a model with another mask than causal, so that only we open it"""
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
WIDE_IN_4_BITS = ("token_embd.weight", "output.weight")
"""what is looked up or decides between tokens keeps 8 bits where others have 4"""
QUANTIZED_COLUMNS = 32
ARCHITECTURES = {
    "qwen3": {"attention_bias": False, "hidden_act": "silu"},
    "llama": {"hidden_act": "silu"},
    "gpt2": {"hidden_act": "gelu_pytorch_tanh"},
}
"""what is written, with what the graphs of llama.cpp have where our configurations may have something else"""


def export(model: str, out: str, quantize: Quantize, stores: Sequence[str]) -> Iterator[str]:
    """Write a model and yield, in words, what came of it and of its checks.

    Raises `UserError` where something lies at `out`, for what llama.cpp has not, by its name, and for a
    tokenizer that it does not know.
    """
    if Path(out).exists():
        raise UserError(f"--out {out} exists already; choose another")
    served = open_model(model, device="cpu")
    if wide := write_gguf(served, out, quantize):
        yield wide
    yield from check_gguf(served, Path(out), stores, quantize)
    mask, ours = served.prompt_mask, "scripts.chat --engine llama.cpp"
    opens = "every program on llama.cpp" if mask == "causal" else f"under its mask {mask}, {ours}"
    yield f"{out} is written; what opens it: {opens}"


def write_gguf(served: ServedModel, file: str | Path, quantize: Quantize = "f32") -> str:
    """Write a model as a GGUF file, whole or not at all; return what was not done as asked, in words.

    Raises `UserError` for what llama.cpp has not, by its name, and for a tokenizer that it does not know.
    """
    config = served.model.config
    if lacking := lacking_of(config):
        raise UserError(f"{served.path} cannot be a GGUF file: llama.cpp has no {lacking}")
    is_causal = config.prompt_mask == "causal"
    with replacing(Path(file)) as partial:
        writer = gguf.GGUFWriter(partial, ("" if is_causal else MASKED) + config.architecture)
        writer.arch = config.architecture  # of which all other keys are
        write_shape(writer, config)
        writer.add_name(served.path.name)
        writer.add_file_type(LlamaFileType[FILE_TYPES[quantize]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_string("sightline.prompt_mask", config.prompt_mask)
        writer.add_string("sightline.config", json.dumps(config.to_dict()))
        writer.add_array("sightline.stop_ids", [*served.stop_ids])
        writer.add_string("sightline.trained_on", served.trained_on or "")
        write_tokenizer(writer, served.tokenizer, served.stop_ids, config.vocab_size)
        wide = write_tensors(writer, served, quantize)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return wide


def lacking_of(config: ModelConfig) -> str | None:
    """Say what of a model llama.cpp, or this file, has not; None if it has everything."""
    if config.architecture not in ARCHITECTURES:
        return f"form of {config.architecture} that is written here; expected {', '.join(ARCHITECTURES)}"
    if strategy_named(config.prompt_mask).passages != "open":
        return f"passages that see each other as prompt_mask {config.prompt_mask} has it"
    if config.sliding_window:
        return f"sliding windows in its {config.architecture}"
    if config.rope_scaling is not None and config.rope_scaling.rope_type != "linear":
        return f"scaled positions that are written here but linear ones, got {config.rope_scaling.rope_type}"
    for name, value in ARCHITECTURES[config.architecture].items():
        if getattr(config, name) != value:
            return f"{name} {getattr(config, name)} in its {config.architecture}"
    return excess_of(config)


def write_shape(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Write the sizes of a model under the names of llama.cpp."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if config.norm == "layer":
        writer.add_layer_norm_eps(config.rms_norm_eps)
        return
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)


def write_tensors(writer: gguf.GGUFWriter, served: ServedModel, quantize: Quantize) -> str:
    """Write the weights; return which of them are wider than asked for, in words."""
    wide = []
    for name, values in tensors_of(served):
        form = form_of(name, values, quantize)
        writer.add_tensor(name, gguf.quants.quantize(values, form), raw_dtype=form)
        wide += [name] if form == GGMLQuantizationType.F16 and quantize != "f16" else []
    return f"as their rows are no multiple of 32, these are f16: {', '.join(wide)}" if wide else ""


def form_of(name: str, values: np.ndarray, quantize: Quantize) -> GGMLQuantizationType:
    """Return how a weight is stored: vectors and positions in 32 bits, as llama.cpp computes with them."""
    if values.ndim == 1 or name == "position_embd.weight":
        return GGMLQuantizationType.F32
    if quantize in ("q8_0", "q4_0") and values.shape[-1] % QUANTIZED_COLUMNS:
        return GGMLQuantizationType.F16
    if quantize == "q4_0" and name in WIDE_IN_4_BITS:
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType[quantize.upper()]


def tensors_of(served: ServedModel) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weights under the names of llama.cpp, in its layout."""
    config, kind = served.model.config, kind_for(served.model.config)
    ours = served.model.state_dict()
    if config.tie_word_embeddings:
        del ours["lm_head.weight"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config.architecture.upper()], config.num_hidden_layers)
    for name, tensor in kind.to_theirs(ours).items():
        if config.architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            tensor = interleaved(tensor, config.head_dim)
        if config.architecture == "gpt2" and ".c_" in name and tensor.ndim == 2:
            tensor = tensor.T  # from (in, out)
        yield names.get_name(name, (".weight", ".bias")), tensor.float().contiguous().numpy()


def interleaved(tensor: Tensor, head_dim: int) -> Tensor:
    """Return queries or keys (heads * D, …) with the two of each pair that turns beside each other.

    ours         0 1 2 3 | 4 5 6 7      the halves of a head turn together
    llama.cpp's  0 4 1 5 2 6 3 7
    """
    return tensor.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
