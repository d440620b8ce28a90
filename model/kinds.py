"""The kinds of models of `transformers` that open here: keys, windows and weights of each, in a table."""

import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import UserError, brief
from model.kind import Kind, Values, Weights, pairs
from model.pattern import ALL


def _read_rope(values: Values, source: str) -> Values:
    """Read base and scaling of rotary positions where either generation of `transformers` writes them."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        return {"rope_scaling": rope}  # which is refused with its name
    share = values.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1))
    if share not in (1, None):
        raise UserError(f"{source}: heads of which a part turns (partial_rotary_factor) are not supported")
    theta = rope.get("rope_theta", values.get("rope_theta"))
    read = {} if theta is None else {"rope_theta": theta}
    others = ("rope_theta", "partial_rotary_factor", "type")  # the last is a former name
    scaling = {key: value for key, value in rope.items() if key not in others and value is not None}
    scaling["rope_type"] = kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("llama3", "yarn"):
        scaling = {"original_max_position_embeddings": values.get("max_position_embeddings")} | scaling
    return read | {"rope_scaling": None if kind == "default" else scaling}


def _write_rope(config: ModelConfig) -> Values:
    return {"rope_theta": config.rope_theta, "rope_scaling": config.to_dict()["rope_scaling"]}


def _read_qwen3_moe(values: Values, source: str) -> Values:
    """Read the window, which all layers have or none, and the experts under either of their names."""
    return _read_rope(values, source) | {
        "sliding_window": values.get("sliding_window") if values.get("use_sliding_window") else None,
        "num_experts": values.get("num_local_experts", values.get("num_experts")),
        "router_bias": False,
    }


def _write_qwen3_moe(config: ModelConfig) -> Values:
    sizes = {"moe_intermediate_size": config.intermediate_size, "num_experts": config.num_experts}
    dense = {"decoder_sparse_step": 1, "mlp_only_layers": []}  # of its layers, none is
    return _write_qwen3(config) | sizes | dense


def _unpack_experts(name: str, tensor: Tensor) -> Weights:
    """Take the experts of a layer apart where one tensor (E, out, in) holds them all, as in memory."""
    module, _, kind = name.rpartition(".")
    if not module.endswith(".experts") or tensor.ndim != 3:
        return {name: tensor}
    kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
    return {
        f"{module}.{n}.{each}.weight": part.clone()
        for n, expert in enumerate(tensor)
        for each, part in zip(kinds, expert.chunk(len(kinds)), strict=False)
    }


def _whole_heads(config: ModelConfig) -> Values:
    """Return the width that it has: a multiple of the number of heads, whatever their own width."""
    return {"hidden_size": -(-config.hidden_size // config.num_attention_heads) * config.num_attention_heads}


def _gemma3_sizes(config: ModelConfig) -> Values:
    """Return also the base of its sliding layers, whose positions are never scaled."""
    local = config.rope_local_theta or (config.rope_theta if config.rope_scaling else None)
    return _whole_heads(config) | {"rope_local_theta": local}


def _layer_types(config: ModelConfig) -> list[str]:
    return ["full_attention" if pattern == ALL else "sliding_attention" for pattern in config.layer_patterns]


def _read_qwen3_window(values: Values, source: str) -> Values:
    """Read the window as `transformers` means it: off unless it is switched on, then in the sliding layers.

    Where only our own keys are, they mean what `ModelConfig` says.
    """
    kinds, window = values.get("layer_types"), values.get("sliding_window")
    if not isinstance(kinds, list | None):
        raise UserError(f"{source}: layer_types must be a list, got {brief(kinds)}")
    if "prompt_mask" in values and "use_sliding_window" not in values:
        return {}
    is_on = values.get("use_sliding_window", False) and window is not None
    layers, full = values.get("num_hidden_layers"), values.get("max_window_layers", 28)
    if kinds is None and is_on and type(layers) is int and type(full) is int:  # so many layers see all
        kinds = ["sliding_attention" if n >= full else "full_attention" for n in range(layers)]
    is_used = is_on and (kinds is None or any(kind != "full_attention" for kind in kinds))
    return {"sliding_window": window if is_used else None, "layer_types": kinds}


def _write_qwen3(config: ModelConfig) -> Values:
    kinds = _layer_types(config)
    windowed = "sliding_attention" in kinds
    return _write_rope(config) | {
        "use_sliding_window": windowed,
        "sliding_window": config.sliding_window,
        "max_window_layers": kinds.index("sliding_attention") if windowed else len(kinds),
        "layer_types": kinds,
    }


def _read_gemma_window(values: Values, period: int) -> Values:
    """Read the window of the layers that are named, or of all but each one that ends a period."""
    kinds, layers = values.get("layer_types"), values.get("num_hidden_layers")
    if kinds is None and type(layers) is int and type(period) is int:
        kinds = ["full_attention" if (n + 1) % period == 0 else "sliding_attention" for n in range(layers)]
    is_used = isinstance(kinds, list) and "sliding_attention" in kinds
    return {"sliding_window": values.get("sliding_window") if is_used else None, "layer_types": kinds}


def _read_gemma3(values: Values, source: str) -> Values:
    """Read bases by type of layer, nested or side by side; sliding layers are never scaled."""
    nested = values.get("rope_parameters")
    nested = nested if isinstance(nested, dict) else {"sliding_attention": nested}
    full, local = (nested.get(f"{kind}_attention") or {} for kind in ("full", "sliding"))
    if not isinstance(local, dict) or local.get("rope_type", "default") != "default":
        raise UserError(f"{source}: scaled positions in sliding layers ({brief(local)}) are not supported")
    theta = local.get("rope_theta", values.get("rope_local_base_freq"))
    scaling = values.get("rope_scaling") or {}
    scaling = full | scaling if isinstance(scaling, dict) else scaling
    read = _read_rope(values | {"rope_scaling": scaling, "rope_parameters": None}, source)
    read |= {} if theta is None else {"rope_local_theta": theta}
    period = values.get("sliding_window_pattern", 6)
    if type(period) is not int or period < 1:
        raise UserError(f"{source}: sliding_window_pattern must be 1 or more, got {brief(period)}")
    return read | _read_gemma_window(values, period)


def _write_gemma(config: ModelConfig) -> Values:
    scalar = config.query_pre_attn_scalar or config.head_dim
    return _write_rope(config) | {
        "rope_local_base_freq": config.rope_local_theta or config.rope_theta,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "sliding_window": config.sliding_window or GEMMA_DEFAULTS["sliding_window"],
        "layer_types": _layer_types(config),
        **NO_MARKS,
    }


def _unpack_gemma(name: str, tensor: Tensor) -> Weights:
    """Add the 1 that Gemma's norms add to their weights in every step."""
    return {name: tensor + 1 if name.endswith("norm.weight") else tensor}


def _pack_gemma(tensors: Weights) -> Weights:
    return {name: each - 1 if name.endswith("norm.weight") else each for name, each in tensors.items()}


def _read_gpt2(values: Values, source: str) -> Values:
    act = values.get("activation_function", "gelu_new")
    act = "gelu_pytorch_tanh" if act == "gelu_new" else act  # two names of one formula
    return {"hidden_act": act, "rope_theta": 1e6}  # a base of which learned positions make nothing


def _write_gpt2(config: ModelConfig) -> Values:
    act = "gelu_new" if config.hidden_act == "gelu_pytorch_tanh" else config.hidden_act
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)  # there is none here
    return {"activation_function": act} | dropout | NO_MARKS


def _unpack_gpt2(name: str, tensor: Tensor) -> Weights:
    """Turn weights from (in, out) to (out, in), and take queries, keys and values apart."""
    if "_proj." not in name or not tensor.ndim:
        return {name: tensor}
    tensor = tensor.T if tensor.ndim == 2 else tensor
    if "qkv_proj" not in name:
        return {name: tensor.contiguous()}
    parts = zip("qkv", tensor.chunk(3), strict=False)  # a wrong size is found with the others
    form = torch.contiguous_format
    return {name.replace("qkv_", f"{letter}_"): part.clone(memory_format=form) for letter, part in parts}


def _pack_gpt2(tensors: Weights) -> Weights:
    packed: Weights = {}
    for name, tensor in tensors.items():
        if ".q_proj." in name:
            three = [tensors[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            name, tensor = name.replace("q_proj", "qkv_proj"), torch.cat(three)
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        packed[name] = tensor.T if "_proj." in name and tensor.ndim == 2 else tensor
    return packed


NO_MARKS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
"""marks of the vocabulary that a kind has by default; `generation_config.json` tells ours"""
ROPE, WINDOW = ("rope_theta", "rope_scaling"), ("sliding_window", "layer_types")
SHARED = pairs("""
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim max_position_embeddings rms_norm_eps tie_word_embeddings initializer_range attention_bias
""")
GEMMA_DEFAULTS = dict(
    rms_norm_eps=1e-6, tie_word_embeddings=True, query_pre_attn_scalar=256, sliding_window=4096
)
GEMMA = {
    "keys": SHARED | pairs("hidden_activation:hidden_act query_pre_attn_scalar final_logit_softcapping"),
    "write": _write_gemma,
    "varies": (*ROPE, *WINDOW),
    "defaults": GEMMA_DEFAULTS,
    "demands": {"use_bidirectional_attention": False},
    "modules": pairs("""
        model.layers.*.post_attention_layernorm:model.layers.*.attention_output_layernorm
        model.layers.*.pre_feedforward_layernorm:model.layers.*.post_attention_layernorm
        model.layers.*.post_feedforward_layernorm:model.layers.*.mlp_output_layernorm
    """),
    "unpack": _unpack_gemma,
    "pack": _pack_gemma,
}
GPT2_MODULES = pairs("""
    transformer.wte:model.embed_tokens
    transformer.wpe:model.embed_positions
    transformer.ln_f:model.norm
    transformer.h.*.ln_1:model.layers.*.input_layernorm
    transformer.h.*.ln_2:model.layers.*.post_attention_layernorm
    transformer.h.*.attn.c_attn:model.layers.*.self_attn.qkv_proj
    transformer.h.*.attn.c_proj:model.layers.*.self_attn.o_proj
    transformer.h.*.mlp.c_fc:model.layers.*.mlp.up_proj
    transformer.h.*.mlp.c_proj:model.layers.*.mlp.down_proj
""")
KINDS = (
    Kind(
        *("qwen3", "qwen3", "Qwen3ForCausalLM"),
        keys=SHARED | pairs("hidden_act"),
        read=lambda values, source: _read_rope(values, source) | _read_qwen3_window(values, source),
        write=_write_qwen3,
        varies=ROPE + WINDOW,
    ),
    Kind(
        *("qwen3_moe", "qwen3_moe", "Qwen3MoeForCausalLM"),
        keys=SHARED
        | pairs("moe_intermediate_size:intermediate_size hidden_act num_experts_per_tok norm_topk_prob"),
        read=_read_qwen3_moe,
        write=_write_qwen3_moe,
        varies=(*ROPE, "sliding_window", "num_experts"),
        defaults=dict(
            tie_word_embeddings=False,
            norm_topk_prob=False,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
        ),
        demands={"decoder_sparse_step": 1, "mlp_only_layers": []},
        sizes=lambda config: {"router_bias": False},
        unpack=_unpack_experts,
    ),
    Kind(
        *("llama", "llama", "LlamaForCausalLM"),
        keys=SHARED | pairs("hidden_act mlp_bias"),
        read=_read_rope,
        write=lambda config: _write_rope(config) | NO_MARKS,
        varies=ROPE,
        defaults={"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 2048},
        sizes=_whole_heads,
        buffers=r"\.rotary_emb\.inv_freq$",
    ),
    Kind(
        *("gpt2", "gpt2", "GPT2LMHeadModel"),
        keys=pairs("""
            vocab_size n_embd:hidden_size n_inner:intermediate_size n_layer:num_hidden_layers
            n_head:num_attention_heads n_positions:max_position_embeddings layer_norm_epsilon:rms_norm_eps
            tie_word_embeddings initializer_range
        """),
        read=_read_gpt2,
        write=_write_gpt2,
        varies=("hidden_act", "rope_theta"),
        defaults={"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        demands={"scale_attn_weights": True}
        | dict.fromkeys(("scale_attn_by_inverse_layer_idx", "add_cross_attention"), False),
        sizes=lambda config: (
            _whole_heads(config)
            | {
                "num_key_value_heads": config.num_attention_heads,
                "head_dim": config.hidden_size // config.num_attention_heads,
            }
        ),
        modules={name.removeprefix("transformer."): ours for name, ours in GPT2_MODULES.items()}
        | GPT2_MODULES,
        unpack=_unpack_gpt2,
        pack=_pack_gpt2,
        is_transposed=True,
        buffers=r"\.attn\.(masked_)?bias$",
    ),
    Kind(
        *("gemma2", "gemma2", "Gemma2ForCausalLM"),
        **GEMMA | {"keys": GEMMA["keys"] | pairs("attn_logit_softcapping")},
        sizes=_whole_heads,
        read=lambda values, source: _read_rope(values, source) | _read_gemma_window(values, 2),
    ),
    Kind(
        *("gemma3_text", "gemma3", "Gemma3ForCausalLM"),
        **GEMMA
        | {
            "varies": (*ROPE, *WINDOW, "rope_local_theta"),
            "demands": {"use_bidirectional_attention": False, "attn_logit_softcapping": None},
        },
        read=_read_gemma3,
        sizes=_gemma3_sizes,
    ),
)
"""Every kind that opens, and as which models are exported."""
