"""The architecture as plain values with Hugging Face's names; knows no torch, so help texts load fast."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin

from model.errors import UserError, brief
from model.strategies import strategy_named

Weights = Literal["float32", "bfloat16", "int8"]
"""Forms in which the weights of a model that answers can be stored."""
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
"""Where a model that answers is computed; auto is the accelerator where there is one."""
LayerType = Literal["full_attention", "sliding_attention"]
LAYER_TYPES: tuple[str, ...] = get_args(LayerType)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a dense decoder like Qwen3's (Yang et al. 2025, arXiv 2505.09388).

    Pre-norm RMSNorm, rotary positions, grouped queries, q/k norm, SwiGLU, no biases. Raises `UserError` for a
    shape that cannot be built.
    """

    vocab_size: int
    """rows of the embedding; ids reach from 0 to vocab_size - 1"""
    hidden_size: int = 512
    """width of the residual stream"""
    intermediate_size: int = 1408
    """width inside the SwiGLU feed-forward layer"""
    num_hidden_layers: int = 8
    """number of decoder layers"""
    num_attention_heads: int = 8
    """number of query heads"""
    num_key_value_heads: int = 4
    """number of key and value heads; each serves num_attention_heads / num_key_value_heads query heads"""
    head_dim: int = 64
    """width of one head; even, because RoPE turns pairs"""
    max_position_embeddings: int = 2048
    """longest document in tokens that the model is meant to see"""
    rope_theta: float = 1e6
    """base of the rotary wavelengths"""
    rms_norm_eps: float = 1e-6
    """added to the mean square before the root in every RMSNorm"""
    tie_word_embeddings: bool = True
    """whether the output layer is the embedding itself"""
    sliding_window: int | None = None
    """number of keys that a token sees in sliding layers, itself included; null sees everything"""
    layer_types: tuple[LayerType, ...] | None = None
    """whether each layer sees everything or the window; null where all layers are alike"""
    window_both_sides: bool = False
    """whether the window bounds the later keys of a bidirectional block, too"""
    prompt_mask: str = "causal"
    """strategy whose blocks the weights are trained under, and served with"""
    initializer_range: float = 0.02
    """standard deviation of fresh weights; of what layers add to the stream by twice their number smaller"""

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
        if self.head_dim % 2:
            raise UserError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if self.window_both_sides and self.sliding_window is None:
            raise UserError("window_both_sides: expected a sliding_window with it, got none")
        if self.layer_types is not None:
            self._check_layer_types()
            if len(set(self.layer_types)) == 1:  # equal models have equal configurations
                object.__setattr__(self, "layer_types", None)

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """The number of keys that a token sees in each layer; None where it sees everything."""
        kinds = self.layer_types or ("sliding_attention",) * self.num_hidden_layers
        return tuple(self.sliding_window if kind == "sliding_attention" else None for kind in kinds)

    def _check_layer_types(self) -> None:
        if any(kind not in LAYER_TYPES for kind in self.layer_types):
            raise UserError(
                f"layer_types: expected {' or '.join(LAYER_TYPES)}, got {brief(self.layer_types)}"
            )
        if len(self.layer_types) != self.num_hidden_layers:
            raise UserError(
                f"layer_types names {len(self.layer_types)} layers but num_hidden_layers is "
                f"{self.num_hidden_layers}; name every layer"
            )
        if (self.sliding_window is None) == ("sliding_attention" in self.layer_types):
            raise UserError(
                f"sliding_window ({self.sliding_window}) and layer_types contradict each other: a window "
                "needs sliding layers, and they need it"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)


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


def from_preset(name: str, **overrides: Any) -> ModelConfig:
    """Build the named shape; `overrides` (at least `vocab_size`) replace its values.

    Raises `UserError` for a name that is not in `PRESETS`.
    """
    if name not in PRESETS:
        raise UserError(f"unknown model preset {name!r}; choose one of {', '.join(PRESETS)}")
    return ModelConfig(**{**PRESETS[name], **overrides})


def from_dict(values: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """Build a configuration from `config.json` values and take nothing in silence.

    Raises `UserError` that names missing keys and wrong types; `source` says where they stood.
    """
    known = {field.name: field for field in fields(ModelConfig)}
    later = {"sliding_window", "layer_types", "window_both_sides", "prompt_mask", "initializer_range"}
    missing = sorted(known.keys() - later - values.keys())
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}; is it a model configuration?")
    chosen = {name: values[name] for name in known if name in values}
    if isinstance(chosen.get("layer_types"), list):
        chosen["layer_types"] = tuple(chosen["layer_types"])
    for name, value in chosen.items():
        if not _has_type(value, known[name].type):
            expected = getattr(known[name].type, "__name__", str(known[name].type))
            raise UserError(f"{source}: {name} must be {expected}, got {brief(value)}")
    try:
        return ModelConfig(**chosen)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _has_type(value: Any, expected: Any) -> bool:
    if isinstance(value, bool):
        return expected is bool
    kinds = (int, float) if expected is float else get_args(expected) or (expected,)
    return isinstance(value, tuple(get_origin(kind) or kind for kind in kinds))
