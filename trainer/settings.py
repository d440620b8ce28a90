"""What a training can be told: frozen dataclasses whose fields are flags, YAML keys and help texts alike."""

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from dataset.batch_settings import RowSettings
from model.config import Activation, Architecture, LayerType, ModelConfig, Norm, Positions, from_preset
from model.errors import UserError
from model.pattern import ALL
from model.rope_scaling import longer
from model.strategies import PromptMask, TextMask

FRESH = "fresh"
"""What --init says instead of a model directory."""
LENGTHS = ("max_steps", "epochs", "max_tokens")
MOST = 10**15  # of anything counted, so that products of a few stay numbers
WEIGHTLESS = ("sliding_window", "sliding_layers", "window_both_sides", "rope_scaling")
WEIGHTLESS += ("attention_sinks", "attention_chunk_size")
"""Settings of a model's shape that no weight depends on: those of --init may get others."""


def free(default: Any = MISSING) -> Any:
    """Declare a setting that a continued training may change: no result depends on it, or by a fact alone.

    Such facts are compared themselves: the data, the weights of --init, the rows of a step, the dtype.
    """
    return field(default=default, metadata={"is_free": True})


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
            raise UserError(
                f"--model.vocab_size: the tokenizer has {num_tokens} tokens, got room for {self.vocab_size}"
            )
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
            raise UserError(
                f"--model.sliding_layers: expected layers from 0 to {num_layers - 1}, got {_words(layers)}"
            )
        return tuple("sliding_attention" if n in layers else "full_attention" for n in range(num_layers))


@dataclass(frozen=True)
class OptimizerSettings:
    """How gradients become updates."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw for everything, or muon for the matrices of the layers and adamw for the rest"""
    learning_rate: float = 1e-3
    """peak of the schedule; muon's updates are scaled so that both share it"""
    weight_decay: float = 0.1
    """decoupled decay of the layers' matrices; norms and embeddings have none"""
    beta1: float = 0.9
    """decay of adamw's first moment"""
    beta2: float = 0.95
    """decay of adamw's second moment"""
    max_gradient_norm: float = 1.0
    """gradients of a larger norm are scaled down to it"""
    router_bias_rate: float | None = None
    """how far the bias of each expert moves towards equal loads after a step; default: 0.001"""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_gradient_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"--optimizer.{name}: expected more than 0, got {getattr(self, name)}")
        for name in ("weight_decay", "router_bias_rate"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise UserError(f"--optimizer.{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"--optimizer.{name}: expected 0 or more and below 1, got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate moves over the steps: up, then (wsd) constant, then down."""

    name: Literal["wsd", "cosine", "linear"] = "wsd"
    """form of the decay; wsd stays at the peak and decays linearly at the end"""
    warmup_steps: int = 20
    """steps of the linear rise to the peak; a tenth of all steps where this is over a third of them"""
    decay_fraction: float = 0.4
    """share of all steps in which wsd decays; cosine and linear decay from the warmup on"""
    final_fraction: float = 0.0
    """learning rate after the last step, as a share of the peak"""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or not 0 <= self.decay_fraction <= 1 or not 0 <= self.final_fraction <= 1:
            raise UserError("schedule: expected warmup_steps of 0 or more, and fractions between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(RowSettings):
    """What pretraining and SFT have in common."""

    data: tuple[str, ...] = free()
    """token stores to train on"""
    out: str = free()
    """run directory to write, or to continue"""
    validation: tuple[str, ...] = free(())
    """token stores to measure the loss on"""
    init: str = free()
    """model directory to start from (./fresh, if that is its name), with other windows if --model names them;
    fresh: new weights, shaped by --model"""
    model: ModelSettings = ModelSettings()

    batch_size: int = free(16)
    """rows per process and backward pass"""
    gradient_accumulation: int = free(1)
    """backward passes per optimizer step"""
    max_steps: int | None = free(None)
    """length of the training in optimizer steps; give this, epochs or max_tokens"""
    epochs: float | None = free(None)
    """length of the training in passes over the data"""
    max_tokens: int | None = free(None)
    """length of the training in real tokens, padding not counted"""
    max_minutes: float | None = free(None)
    """save and stop after this time, to be continued by the same command; never shapes the schedule"""

    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = free("auto")
    """of matrix products; auto: bfloat16 where the hardware multiplies it natively, float16 with a scaled
    loss on GPUs that multiply only that (weights stay float32)"""
    compile: Literal["auto", "always", "never"] = free("auto")
    """torch.compile of each layer; auto: where a compiler works and the training is long enough, and as it
    began where a run is continued"""
    sharding: Literal["auto", "none", "fsdp"] = free("auto")
    """fsdp: each process keeps a part of weights, gradients and optimizer state (FSDP2); none: all of them;
    auto: fsdp if the launcher's configuration says so"""
    gradient_checkpointing: bool = free(False)
    """compute the inside of each layer again in the backward pass: saves memory and changes no result"""

    log_every_steps: int = free(20)
    """optimizer steps between two log lines, besides that of the first: loss, learning rate, norm of the
    gradient, real tokens/those with loss a second, share of time that waits for data, arithmetic as a share
    of the machine's peak, most memory held, time left"""
    save_every_steps: int = free(500)
    """optimizer steps between two saves; the end is always saved"""
    keep_checkpoints: int = free(2)
    """last saves to keep, besides the one with the least loss on the first store of --validation"""
    validate_every_steps: int = free(500)
    """optimizer steps between two validations; the end is always validated"""
    samples: int = free(3)
    """texts of the (validation) data that the model continues, or questions that it answers, at every
    validation, into samples.jsonl; 0: none"""
    sample_prompts: tuple[str, ...] = free(())
    """texts to continue, or questions to answer, instead of those of the data"""
    sample_tokens: int = free(48)
    """longest sample in tokens"""
    resume: Literal["auto", "never"] = free("auto")
    """auto: continue the run that lies in --out; never: refuse to"""
    tracker: str = free("none")
    """experiment tracker, by its name in accelerate: none, wandb, tensorboard, trackio, swanlab …"""

    @staticmethod
    def rivals(key: str, value: str) -> tuple[str, ...]:
        """Return the keys that do not go with this one: other lengths, or a shape beside --init."""
        shape = tuple(
            f"model.{field.name}" for field in fields(ModelSettings) if field.name not in WEIGHTLESS
        )
        if key in LENGTHS:
            return tuple(name for name in LENGTHS if name != key)
        if key == "init":
            return () if value == FRESH else shape
        return ("init",) if key in shape else ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_length()
        self._check_numbers()
        if self.init != FRESH and replace(self.model, **dict.fromkeys(WEIGHTLESS)) != ModelSettings():
            raise UserError(
                "--model and --init: expected one of them, got both; --init brings its own shape, of which "
                f"{', '.join(f'--model.{name}' for name in WEIGHTLESS)} alone may change"
            )

    def _check_length(self) -> None:
        lengths = {name: getattr(self, name) for name in LENGTHS}
        given = [f"--{name} {value}" for name, value in lengths.items() if value is not None]
        if len(given) != 1:
            names = " or ".join(f"--{name}" for name in lengths)
            raise UserError(
                f"expected one of {names}, got {' and '.join(given) or 'none'}; null takes one back"
            )

    def _check_numbers(self) -> None:
        for name, value in vars(self).items():
            if type(value) not in (int, float) or name == "seed":
                continue
            if value < 0 or value == 0 and name != "samples":
                least = "0 or more" if name == "samples" else "more than 0"
                raise UserError(f"--{name}: expected {least}, got {value}")
            if value > MOST:
                raise UserError(f"--{name}: expected at most {MOST:,}, got more")

    def fixed(self) -> dict[str, Any]:
        """Return what a continued training must keep, dotted key to value."""
        free_names = {field.name for field in fields(self) if field.metadata.get("is_free")}
        return {key: value for key, value in flatten(to_plain(self)).items() if key not in free_names}


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainSettings):
    """Pretraining on text, of a new model or of a saved one."""

    init: str = free(FRESH)
    prompt_mask: TextMask | None = free(None)
    """which tokens of a random beginning of each text see later ones; default: causal, or that of --init"""
    supervise: Literal["all", "suffix"] | None = None
    """tokens that carry loss: all, or those after a random beginning; default: all that may"""


@dataclass(frozen=True, kw_only=True)
class SftSettings(TrainSettings):
    """Supervised fine-tuning on conversations, of a saved model or of a new one."""

    prompt_mask: PromptMask | None = free(None)
    """which prompt tokens see later ones; default: causal, or that of --init"""
    supervise: Literal["answers", "last", "all"] | None = None
    """tokens that carry loss: answers, the last one, or all (causal only); default: the answers that may"""


def _words(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def to_plain(settings: TrainSettings) -> dict[str, Any]:
    """Return settings as values of YAML and JSON."""
    return json.loads(json.dumps(asdict(settings)))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of dotted keys, as flags are written.

    Raises `UserError` for a key that is written in both ways.
    """
    flat = {}
    for key, value in values.items():
        more = flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        if twice := flat.keys() & more:
            raise UserError(f"{min(twice)} stands twice; keep one of them")
        flat |= more
    return flat
