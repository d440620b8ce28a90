"""Model directories: `config.json`, `model.safetensors`, `generation_config.json`; strict in both directions.

A causal model's directory is also one that `transformers` opens. Any other pattern leaves `model_type` and
`architectures` out: a stock engine would run it causally without a word.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig, from_dict
from model.errors import UserError, brief, hub_advice
from model.files import read_object, replacing, write_json, write_tensors
from model.transformer import LanguageModel
from model.weights import Shapes, WeightFiles, check_shapes, read_pth

FORMAT_VERSION = 1
TRAINED_ON = {"pretrain": "texts", "sft": "chats"}
"""what a checkpoint says of its training, by kind of data"""
ROTARY_TABLES = ("model.freqs_cos", "model.freqs_sin")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was saved; its configuration says what attention pattern it was trained under."""

    model: LanguageModel
    stop_ids: tuple[int, ...]
    path: Path
    trained_on: str | None = None
    """texts or chats, whichever came last; None where nothing says so"""


def save_checkpoint(
    path: str | Path,
    model: LanguageModel,
    stop_ids: Sequence[int] = (),
    trained_on: str | None = None,
) -> None:
    """Write a model directory without a tokenizer, whole or not at all.

    Raises `OSError` where the disk does not take it.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    with replacing(path / "model.safetensors") as partial:
        write_tensors(partial, tensors, {"format": "pt"})
    values = describe(model.config) | ({"trained_on": trained_on} if trained_on else {})
    write_json(path / "config.json", values)
    write_json(path / "generation_config.json", {"eos_token_id": list(stop_ids)})


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model directory of ours, or a causal Qwen3 of `transformers`, in float32.

    Raises `UserError` that names the fault: no model, an architecture that is not ours, or the tensors
    that are missing, unknown or misshapen.
    """
    path = Path(path)
    values, kind = _read_json(path / "config.json"), str(path / "config.json")
    check_architecture(values, kind)
    weights = WeightFiles(path)
    layers = values.get("num_hidden_layers")
    if type(layers) is int and layers != weights.num_layers:
        raise UserError(f"{kind} says {layers} num_hidden_layers but the weights have {weights.num_layers}")
    model = build(read_config(values, kind), weights.shapes, weights.read, path)
    trained_on = values.get("trained_on")
    if trained_on not in (*TRAINED_ON.values(), None):
        raise UserError(f"{kind}: trained_on must be one of {', '.join(TRAINED_ON.values())}")
    return Checkpoint(model, _stop_ids(path, values), path, trained_on)


def build_from_pth(file: str | Path, config: ModelConfig) -> LanguageModel:
    """Return a model of this shape with the weights of another project's `.pth` file.

    Tables of rotary angles in it are left out: they follow from the shape. Raises `UserError` for weights
    that do not fit.
    """
    tensors = {name: tensor for name, tensor in read_pth(file).items() if name not in ROTARY_TABLES}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return build(config, shapes, lambda: tensors, Path(file))


def build(
    config: ModelConfig, shapes: Shapes, read: Callable[[], dict[str, Tensor]], path: Path
) -> LanguageModel:
    """Return a model with weights that are read once their shapes are known to fit.

    An output layer may be stored beside the embedding which it equals. Raises `UserError` for what does not
    fit.
    """
    _check_sizes(config, shapes, path)
    with torch.device("meta"):
        model = LanguageModel(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings and HEAD not in shapes:
        del expected[HEAD]
    check_shapes(expected, shapes, path)
    tensors = read()
    if config.tie_word_embeddings and not torch.equal(
        tensors.get(HEAD, tensors[EMBEDDING]), tensors[EMBEDDING]
    ):
        raise UserError(f"{path}: unknown {HEAD}, another one than the embedding that it is tied to")
    model.load_state_dict({HEAD: tensors[EMBEDDING]} | tensors, assign=True)
    _restore_after_meta(model)
    return model


def _check_sizes(config: ModelConfig, shapes: Shapes, path: Path) -> None:
    """Raise `UserError` unless the sizes of a configuration are those of a few weights that are there.

    A model of sizes that nobody holds cannot even be laid out.
    """
    width, attention = config.hidden_size, "model.layers.0.self_attn"
    expected = {
        EMBEDDING: (config.vocab_size, width),
        f"{attention}.q_norm.weight": (config.head_dim,),
        f"{attention}.q_proj.weight": (config.num_attention_heads * config.head_dim, width),
        f"{attention}.k_proj.weight": (config.num_key_value_heads * config.head_dim, width),
        "model.layers.0.mlp.up_proj.weight": (config.intermediate_size, width),
    }
    check_shapes(expected, {name: shapes[name] for name in expected if name in shapes}, path)


def export_checkpoint(source: str | Path, target: str | Path) -> None:
    """Copy a causal model without its training state, ready for `transformers.Qwen3ForCausalLM`.

    Raises `UserError` for a model with another prompt mask: causal engines would not reproduce it.
    """
    checkpoint = load_checkpoint(source)
    if (prompt_mask := checkpoint.model.config.prompt_mask) != "causal":
        raise UserError(
            f"{source} was trained with prompt_mask {prompt_mask!r}; causal engines would give "
            "other answers than ours, so only causal models are exported"
        )
    if Path(target).exists() and any(Path(target).iterdir()):
        raise UserError(f"{target} is not empty; name a new folder for the export")
    save_checkpoint(target, checkpoint.model, checkpoint.stop_ids, checkpoint.trained_on)


def describe(config: ModelConfig) -> dict[str, Any]:
    """Return the values of `config.json`; with those of `transformers` for causal models."""
    ours = {
        "format_version": FORMAT_VERSION,
        "prompt_mask": config.prompt_mask,
        "dtype": "float32",
    } | config.to_dict()
    if config.prompt_mask != "causal":
        return ours
    kinds = ["sliding_attention" if window else "full_attention" for window in config.layer_windows]
    windowed = "sliding_attention" in kinds
    return ours | {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": windowed,
        "max_window_layers": kinds.index("sliding_attention") if windowed else len(kinds),
        "layer_types": kinds,
    }


def read_config(values: dict[str, Any], source: str) -> ModelConfig:
    """Return the configuration from `config.json` values, ours or those of `transformers`.

    Raises `UserError` for whatever this architecture does not have.
    """
    check_architecture(values, source)
    values = values | _rope(values, source) | _window(values, source)
    if values.get("attention_bias") or values.get("hidden_act", "silu") != "silu":
        raise UserError(f"{source}: attention biases and activations other than silu are not supported")
    return from_dict(values, source)


def check_architecture(values: dict[str, Any], source: str) -> None:
    """Raise `UserError` unless `config.json` values are of our format or of a Qwen3 of `transformers`."""
    version, kind = values.get("format_version", FORMAT_VERSION), values.get("model_type")
    if version != FORMAT_VERSION:
        raise UserError(f"{source} has format_version {brief(version)}; this version reads {FORMAT_VERSION}")
    if "prompt_mask" not in values and kind != "qwen3":
        raise UserError(f"{source}: expected a Sightline model or model_type qwen3, got {brief(kind)}")


def _rope(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Read the rotary base where either generation of `transformers` writes it."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(f"{source}: scaled rotary positions ({brief(rope)}) are not supported")
    theta = values.get("rope_theta", rope.get("rope_theta"))
    return {} if theta is None else {"rope_theta": theta}


def _window(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Read the window as `transformers` means it: off unless it is switched on, then in the sliding layers.

    Where only our own keys are, they mean what `ModelConfig` says.
    """
    kinds, window = values.get("layer_types"), values.get("sliding_window")
    if not isinstance(kinds, list | None):
        raise UserError(f"{source}: layer_types must be a list, got {brief(kinds)}")
    if "prompt_mask" in values and "use_sliding_window" not in values:
        return {}
    is_on = values.get("use_sliding_window", False) and window is not None
    if kinds is None and is_on:
        kinds = _layer_types_by_depth(values)
    is_used = is_on and (kinds is None or any(kind != "full_attention" for kind in kinds))
    return {"sliding_window": window if is_used else None, "layer_types": kinds}


def _layer_types_by_depth(values: dict[str, Any]) -> list[str] | None:
    """Return what `transformers` takes for missing `layer_types`: `max_window_layers` of them see all."""
    layers, full = values.get("num_hidden_layers"), values.get("max_window_layers", 28)
    if type(layers) is not int or type(full) is not int:
        return None
    return ["sliding_attention" if n >= full else "full_attention" for n in range(layers)]


def _restore_after_meta(model: LanguageModel) -> None:
    """Build what a checkpoint does not hold: the mask buffer, and the tie that assignment has cut."""
    decoder = model.model
    decoder.register_triangle()
    if model.config.tie_word_embeddings:
        model.lm_head.weight = decoder.embed_tokens.weight


def _stop_ids(path: Path, values: dict[str, Any]) -> tuple[int, ...]:
    """Return the ids that end an answer; `generation_config.json` wins over `config.json`."""
    generation = path / "generation_config.json"
    stops = (_read_json(generation) if generation.is_file() else {}).get("eos_token_id")
    stops = values.get("eos_token_id") if stops is None else stops
    stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
    if not all(type(stop) is int and 0 <= stop < values["vocab_size"] for stop in stops):
        raise UserError(f"{path}: eos_token_id must be ids below {values['vocab_size']}, got {brief(stops)}")
    return tuple(stops)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        advice = hub_advice(path.parent)
        raise UserError(f"{path} not found; expected a model directory with {path.name}{advice}")
    return read_object(path, "copy the model again")
