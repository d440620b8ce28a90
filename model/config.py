"""The architecture as plain values with Hugging Face's names; knows no torch, so help texts load fast."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from model.errors import UserError, brief
from model.pattern import ALL, Pattern
from model.rope_scaling import RopeScaling
from model.strategies import strategy_named
from model.typed_json import read_as

Weights = Literal["float32", "bfloat16", "int8"]
"""Forms in which the weights of a model that answers can be stored."""
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
"""Where a model that answers is computed; auto is the accelerator where there is one."""
LayerType = Literal["full_attention", "sliding_attention"]
Architecture = Literal["qwen3", "qwen3_moe", "llama", "gpt2", "gemma2", "gemma3", "encoder_decoder", "merged"]
Norm = Literal["rms", "layer", "layer_without_bias"]
Activation = Literal["silu", "gelu", "gelu_pytorch_tanh"]
Positions = Literal["rotary", "learned", "none"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape and parts of a dense decoder with norms before attention and feed-forward, and grouped queries.

    The parts are by default those of Qwen3 (Yang et al. 2025, arXiv 2505.09388). Raises `UserError` for what
    cannot be built.
    """

    vocab_size: int
    """rows of the embedding; ids reach from 0 to vocab_size - 1"""
    hidden_size: int = 512
    """width of the residual stream"""
    intermediate_size: int = 1408
    """width inside the feed-forward layer, or inside each expert"""
    num_hidden_layers: int = 8
    """number of decoder layers"""
    num_encoder_layers: int | None = None
    """number of encoder layers, for architectures that have any; null for as many as the decoder has"""
    num_attention_heads: int = 8
    """number of query heads"""
    num_key_value_heads: int = 4
    """number of key and value heads; each serves num_attention_heads / num_key_value_heads query heads"""
    head_dim: int = 64
    """width of one head; even where positions are rotary, which turns pairs"""
    max_position_embeddings: int = 2048
    """longest document in tokens that the model is meant to see"""
    rope_theta: float = 1e6
    """base of the rotary wavelengths"""
    rms_norm_eps: float = 1e-6
    """added to the mean square before the root in every norm, or to the variance"""
    tie_word_embeddings: bool = True
    """whether the output layer is the embedding itself"""
    sliding_window: int | None = None
    """number of keys that a token sees in sliding layers, itself included; null sees everything"""
    layer_types: tuple[LayerType, ...] | None = None
    """whether each layer sees everything, or is bounded as the next fields say; null where all are alike"""
    window_both_sides: bool = False
    """whether the window bounds the later keys of a bidirectional block, too"""
    attention_sinks: int | None = None
    """number of first tokens of a document that sliding layers see besides; null for none"""
    attention_chunk_size: int | None = None
    """tokens of the chunks of a document; in sliding layers, a token sees its own chunk; null for none"""
    prompt_mask: str = "causal"
    """strategy whose blocks the weights are trained under, and served with"""
    initializer_range: float = 0.02
    """standard deviation of fresh weights; smaller by their number for what layers add to the stream"""
    architecture: Architecture = "qwen3"
    """form of the model: the parts that are not given are those of this family, as which it is exported"""
    norm: Norm = "rms"
    """form of the norms: rms, or layer, which takes the mean out and adds a bias, or the same without bias"""
    post_norms: bool = False
    """whether what attention and feed-forward add to the stream has norms of its own"""
    hidden_act: Activation = "silu"
    """what bends values inside the feed-forward layer; gelu_pytorch_tanh is a formula close to gelu"""
    gated_mlp: bool = True
    """whether the feed-forward layer multiplies the bent values by a second projection"""
    mlp_bias: bool = False
    """whether projections of the feed-forward layer add a bias"""
    num_experts: int | None = None
    """number of feed-forward layers of which a token passes a few; null for one that all tokens pass"""
    num_experts_per_tok: int | None = None
    """number of experts that a token passes"""
    norm_topk_prob: bool = True
    """whether the weights of these add up to 1; else they are shares of the scores of all experts"""
    router_bias: bool = False
    """whether a bias, which training moves so that all experts are busy, helps to choose those of a token"""
    attention_bias: bool = False
    """whether projections of attention add a bias"""
    qk_norm: bool = True
    """whether the queries and keys of each head go through a norm"""
    query_pre_attn_scalar: float | None = None
    """attention scores are divided by its square root; null takes head_dim"""
    attn_logit_softcapping: float | None = None
    """bound of attention scores, which are bent by tanh to stay below it; null for none"""
    final_logit_softcapping: float | None = None
    """the same of logits"""
    scale_embeddings: bool = False
    """whether embeddings are multiplied by the square root of their width"""
    positions: Positions = "rotary"
    """how a token knows its place: rotary turns queries and keys, learned adds a vector, none does nothing"""
    rope_local_theta: float | None = None
    """base of the rotary wavelengths in sliding layers, which are not scaled then; null takes rope_theta"""
    rope_scaling: RopeScaling | None = None
    """how rotary positions are spread over a longer context than they were made for; null for as they are"""
    value_residual: bool = False
    """whether later layers mix the values of the first layer into theirs (Zhou et al. 2024)"""
    memory_tokens: int | None = None
    """number of keys and values that each layer learns, seen by all tokens through any window; null: none"""

    def __post_init__(self) -> None:
        strategy_named(self.prompt_mask)
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) in (int, float) and not 0 < value < 2**40:
                raise UserError(f"{field.name} must be greater than 0 and below 2^40, got {value}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2 and self.positions == "rotary":
            raise UserError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        for name in ("rope_local_theta", "rope_scaling"):
            if self.positions != "rotary" and getattr(self, name) is not None:
                raise UserError(f"{name}: expected rotary positions with it, got {self.positions}")
        if self.rope_theta <= 1:  # of which no position would turn slower than another
            raise UserError(f"rope_theta must be greater than 1, got {self.rope_theta}")
        if self.window_both_sides and self.sliding_window is None:
            raise UserError("window_both_sides: expected a sliding_window with it, got none")
        if self.attention_sinks and self.local_pattern.reach is None:
            raise UserError("attention_sinks: expected a sliding_window or attention_chunk_size, got none")
        self._check_experts()
        self._check_encoder()
        for name in ("num_hidden_layers", "num_encoder_layers"):
            if self.value_residual and getattr(self, name) == 1:
                raise UserError(f"value_residual: expected two layers or more to mix values of, got 1 {name}")
        if self.layer_types is not None:
            self._check_layer_types()
            if len(set(self.layer_types)) == 1:  # equal models have equal configurations
                object.__setattr__(self, "layer_types", None)

    @property
    def usual_layer_types(self) -> tuple[LayerType, ...] | None:
        """Which layers of this family see only a window; None where none do by default."""
        if self.architecture not in LOCAL_PATTERNS:
            return None
        (period, _), last = LOCAL_PATTERNS[self.architecture], self.num_hidden_layers
        is_full = [n % period == 0 or 1 < n == last for n in range(1, last + 1)]
        return tuple("full_attention" if full else "sliding_attention" for full in is_full)

    @property
    def query_scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5

    @property
    def local_pattern(self) -> Pattern:
        """What sliding layers see of what the rule makes visible."""
        sinks, chunk = self.attention_sinks or 0, self.attention_chunk_size
        return Pattern(self.sliding_window, self.window_both_sides, sinks, chunk)

    @property
    def layer_patterns(self) -> tuple[Pattern, ...]:
        """The same of each layer."""
        kinds = self.layer_types or ("sliding_attention",) * self.num_hidden_layers
        return tuple(self.local_pattern if kind == "sliding_attention" else ALL for kind in kinds)

    def _check_experts(self) -> None:
        total, taken = self.num_experts, self.num_experts_per_tok
        if (total is None) != (taken is None) or total and taken > total:
            raise UserError(f"num_experts_per_tok: expected 1 up to num_experts ({total}), got {taken}")
        if total is None and (self.router_bias or not self.norm_topk_prob):
            raise UserError("router_bias and norm_topk_prob: expected num_experts with them, got none")

    def _check_encoder(self) -> None:
        if self.architecture not in WITH_ENCODER:
            if self.num_encoder_layers is not None:
                raise UserError(f"num_encoder_layers: architecture {self.architecture} has no encoder")
            return
        for name in ("sliding_window", "attention_chunk_size", "num_experts", "memory_tokens"):
            if getattr(self, name) is not None:
                raise UserError(f"{name}: architecture {self.architecture} has none; leave it out")
        if strategy_named(self.prompt_mask).passages != "open":
            raise UserError(
                f"prompt_mask {self.prompt_mask}: architecture {self.architecture} reads blocks by its "
                "encoder; expected a mask that has blocks, as prefix"
            )
        if self.num_encoder_layers is None:  # equal models have equal configurations
            object.__setattr__(self, "num_encoder_layers", self.num_hidden_layers)

    def _check_layer_types(self) -> None:
        if len(self.layer_types) != self.num_hidden_layers:
            raise UserError(
                f"layer_types names {len(self.layer_types)} layers but num_hidden_layers is "
                f"{self.num_hidden_layers}; name every layer"
            )
        if (self.local_pattern == ALL) == ("sliding_attention" in self.layer_types):
            fault = f"sliding_window ({self.sliding_window}) and layer_types contradict each other"
            raise UserError(f"{fault}: a window or chunks need sliding layers, and they need one of these")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        values = asdict(self)
        if self.rope_scaling:  # transformers asks what a key that it does not expect is for
            scaling = values["rope_scaling"].items()
            values["rope_scaling"] = {key: value for key, value in scaling if value is not None}
        return {key: value for key, value in values.items() if value != UNUSUAL.get(key, ...)}


ALWAYS_WRITTEN = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "rope_theta", "rms_norm_eps"),
    "tie_word_embeddings",
}
"""what every configuration on disk holds; other values came later and have defaults"""
UNUSUAL = dict(num_experts=None, num_experts_per_tok=None, norm_topk_prob=True, router_bias=False)
UNUSUAL |= dict(attention_sinks=None, attention_chunk_size=None)
"""what is written where it is otherwise alone: engines take a model for a mixture, say, that has such keys"""
PATTERN_PARTS = ("sliding_window", "layer_types", "window_both_sides")
PATTERN_PARTS += ("attention_sinks", "attention_chunk_size")
"""what the patterns of layers are made of; no weight depends on it"""
_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "max_position_embeddings"),
)
PRESETS: dict[str, dict[str, int]] = {
    name: dict(zip(_SIZES, sizes, strict=True))
    for name, *sizes in (
        #              hidden inner layers heads key_heads head_dim context
        ("tiny",           64,  192,     2,    4,        2,      16,    512),
        ("quickstart",    128,  256,     4,    4,        2,      32,    512),
        ("small",         512, 1408,     8,    8,        4,      64,   2048),
        ("minimind3",     768, 2432,     8,    8,        4,      96,  32768),
        ("124m",          768, 2048,    12,   12,       12,      64,   1024),
        ("medium",       1024, 3072,    24,   16,        8,      64,   4096),
    )
}  # fmt: skip
"""Named shapes, all but the vocabulary, by size: tiny (for tests), quickstart (0.8M), small (30M),
minimind3 (64M), 124m, medium (0.3B)."""


_GPT2 = dict(norm="layer", rms_norm_eps=1e-5, positions="learned", num_key_value_heads=None)
_GPT2_MLP = dict(hidden_act="gelu_pytorch_tanh", gated_mlp=False, mlp_bias=True)
_GEMMA = dict(hidden_act="gelu_pytorch_tanh", post_norms=True, scale_embeddings=True)
_SOFT_CAPS = dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3_moe": dict(num_experts=8, num_experts_per_tok=2, router_bias=True),
    "llama": dict(qk_norm=False, rope_theta=1e4, rms_norm_eps=1e-5),
    "gpt2": _GPT2 | _GPT2_MLP | dict(attention_bias=True, qk_norm=False),
    "gemma2": _GEMMA | _SOFT_CAPS | dict(qk_norm=False, rope_theta=1e4),
    "gemma3": _GEMMA | dict(rope_theta=1e6, rope_local_theta=1e4),
    "encoder_decoder": {},
    "merged": {},
}
"""What families have that Qwen3 has not; as many key heads as query heads where there is no number.

Touvron et al. 2023 (arXiv 2302.13971); Radford et al. 2019; Gemma 2 and 3 reports (2408.00118, 2503.19786).
"""
WITH_ENCODER = ("encoder_decoder", "merged")
"""architectures that read a prompt by an encoder (`model/encoder_decoder.py`)"""
LOCAL_PATTERNS = {"gemma2": (2, 2), "gemma3": (6, 8)}
"""one layer in so many, and the last one, sees everything; the others such a part of the context"""


def from_preset(name: str, **overrides: Any) -> ModelConfig:
    """Build the named shape; `overrides` (at least `vocab_size`) replace its values.

    An `architecture` among them brings its parts. Raises `UserError` for an unknown name.
    """
    family = overrides.get("architecture", "qwen3")
    for kind, known, given in (("preset", PRESETS, name), ("architecture", ARCHITECTURES, family)):
        if given not in known:
            raise UserError(f"unknown model {kind} {brief(given)}; choose one of {', '.join(known)}")
    shape = {**PRESETS[name], **ARCHITECTURES[family]}
    if not overrides.get("gated_mlp", shape.get("gated_mlp", True)):  # two matrices as large as three
        shape["intermediate_size"] = shape["intermediate_size"] * 3 // 2
    if taken := {**shape, **overrides}.get("num_experts_per_tok"):  # together as wide as one would be
        shape["intermediate_size"] = max(shape["intermediate_size"] // taken, 1)
    shape |= overrides
    shape["num_key_value_heads"] = shape["num_key_value_heads"] or shape["num_attention_heads"]
    config = ModelConfig(**shape)
    if config.usual_layer_types is None or "layer_types" in overrides:
        return config
    window = config.sliding_window or max(1, config.max_position_embeddings // LOCAL_PATTERNS[family][1])
    return replace(config, layer_types=config.usual_layer_types, sliding_window=window)


def from_dict(values: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """Build a configuration from `config.json` values and take nothing in silence.

    Raises `UserError` that names missing keys and wrong types; `source` says where they stood.
    """
    known = [field.name for field in fields(ModelConfig)]
    missing = sorted(ALWAYS_WRITTEN - values.keys())
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}; is it a model configuration?")
    try:
        return read_as(ModelConfig, {name: values[name] for name in known if name in values}, "model")
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
