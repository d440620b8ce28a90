"""The shape of a new model as flags; of --init, those parts that no weight depends on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from model.config import Activation, Architecture, LayerType, ModelConfig, Norm, Positions, from_preset
from model.errors import UserError
from model.pattern import ALL
from model.rope_scaling import longer

WINDOWS = ("sliding_window", "sliding_layers", "window_both_sides", "attention_sinks", "attention_chunk_size")
WEIGHTLESS = (*WINDOWS, "rope_scaling")
"""Settings of a model's shape that no weight depends on: those of --init may get others."""


@dataclass(frozen=True)
class ModelSettings:
    """Shape of a new model: a preset, and values that replace its; or windows and positions for --init."""

    described_by: ClassVar[tuple[type, ...]] = (ModelConfig,)  # what has no words here

    architecture: Architecture = "qwen3"
    preset: str = "quickstart"
    """size of the model: tiny, quickstart, small, minimind3, 124m or medium"""
    vocab_size: int | None = None
    """rows of the embedding; the tokenizer's number of tokens if not given"""
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_encoder_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int | None = None
    rope_theta: float | None = None
    rms_norm_eps: float | None = None
    initializer_range: float | None = None
    tie_word_embeddings: bool | None = None
    norm: Norm | None = None
    post_norms: bool | None = None
    hidden_act: Activation | None = None
    gated_mlp: bool | None = None
    mlp_bias: bool | None = None
    num_experts: int | None = None
    num_experts_per_tok: int | None = None
    norm_topk_prob: bool | None = None
    router_bias: bool | None = None
    attention_bias: bool | None = None
    qk_norm: bool | None = None
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    scale_embeddings: bool | None = None
    positions: Positions | None = None
    rope_local_theta: float | None = None
    rope_scaling: str | None = None
    """linear:N, yarn:N or llama3:N spread rotary positions over a context N times as long, also of --init"""
    value_residual: bool | None = None
    memory_tokens: int | None = None
    sliding_window: int | None = None
    """number of keys up to itself that a token sees in sliding layers, and in a bidirectional block all that
    follow there: by itself, the window bounds blocks on the left only; default: all keys, or as in --init"""
    sliding_layers: tuple[int, ...] | None = None
    """numbers of the layers, from 0, that see only the window or chunk; default: those of the architecture"""
    window_both_sides: bool | None = None
    """whether the window bounds what follows in a block as well, so that no mask reaches farther than the
    causal one; default: false for a window that is given, else as in --init"""
    attention_sinks: int | None = None
    """number of first tokens of a document that sliding layers see besides; default: none, or as in --init"""
    attention_chunk_size: int | None = None
    """tokens of the chunks of a document, of which a token in sliding layers sees its own alone; default: as
    with sliding_window, which may bound them further"""

    def config(self, num_tokens: int) -> ModelConfig:
        """Return the configuration; raises `UserError` for too small a vocabulary or wrong layers."""
        ours = ("preset", *WEIGHTLESS)
        given = {name: value for name, value in vars(self).items() if value is not None and name not in ours}
        if self.vocab_size is not None and self.vocab_size < num_tokens:
            fault = f"--model.vocab_size: the tokenizer has {num_tokens} tokens"
            raise UserError(f"{fault}, got room for {self.vocab_size}")
        config = self.placed(from_preset(self.preset, **({"vocab_size": num_tokens} | given)))
        self._check_effects(config)
        return config

    def _check_effects(self, config: ModelConfig) -> None:
        """Raise `UserError` for what was given and does nothing in a new model."""
        if self.rope_theta and config.positions != "rotary":
            raise UserError(f"--model.rope_theta: expected rotary positions with it, got {config.positions}")
        if self.rope_local_theta and config.local_pattern == ALL:
            raise UserError("--model.rope_local_theta: expected sliding layers with it, got none")
        if (chunk := self.attention_chunk_size) and (self.sliding_window or 0) >= chunk:
            raise UserError(
                f"--model.sliding_window {self.sliding_window}: expected fewer than "
                f"--model.attention_chunk_size ({chunk}), beyond which no token sees"
            )
        if config.num_experts_per_tok == 1 and config.norm_topk_prob:
            raise UserError(
                "--model.num_experts_per_tok 1: expected --model.norm_topk_prob false with it; else "
                "the weight of the one expert is always 1, of which its router learns nothing"
            )

    def placed(self, config: ModelConfig) -> ModelConfig:
        """Return a configuration with the windows and scaled positions given here, or as it is without."""
        if self.rope_scaling is not None:
            if former := config.rope_scaling:
                raise UserError(
                    f"--model.rope_scaling {self.rope_scaling}: expected a model without scaled positions, "
                    f"got one scaled by {former.rope_type}:{former.factor:g}; leave the flag out"
                )
            scaling = longer(self.rope_scaling, config.max_position_embeddings)
            context = int(config.max_position_embeddings * scaling.factor)
            config = replace(config, rope_scaling=scaling, max_position_embeddings=context)
        if self.sliding_window is self.attention_chunk_size is self.sliding_layers is None:
            names = ("window_both_sides", "attention_sinks")
            given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
            return replace(config, **given)
        layers = config.usual_layer_types and (config.layer_types or config.usual_layer_types)
        if self.sliding_layers is not None:
            layers = self._layer_types(config.num_hidden_layers)
        return replace(
            config,
            sliding_window=self.sliding_window,
            layer_types=layers,
            window_both_sides=bool(self.window_both_sides),
            attention_sinks=self.attention_sinks,
            attention_chunk_size=self.attention_chunk_size,
        )

    def _layer_types(self, num_layers: int) -> tuple[LayerType, ...]:
        layers = self.sliding_layers
        if self.sliding_window is self.attention_chunk_size is None:
            raise UserError("--model.sliding_layers: expected --model.sliding_window with it, got none")
        if len(set(layers)) < len(layers):
            raise UserError(f"--model.sliding_layers: expected each layer once, got {_words(layers)}")
        if not layers or not set(layers) <= set(range(num_layers)):
            wanted = f"--model.sliding_layers: expected layers from 0 to {num_layers - 1}"
            raise UserError(f"{wanted}, got {_words(layers)}")
        return tuple("sliding_attention" if n in layers else "full_attention" for n in range(num_layers))


def _words(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
