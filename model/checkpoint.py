"""Model directories: `config.json`, `model.safetensors`, `generation_config.json`; strict in both directions.

A causal model's directory is also one that `transformers` opens, if weights have the same names there
(`model/kinds.py`). Any other leaves `model_type` and `architectures` out: a stock engine would run it
causally without a word.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.adapter import Adapter, base_of, is_adapter, read_adapter
from model.architectures import model_without_memory
from model.config import ModelConfig
from model.errors import UserError, brief, hub_advice
from model.files import read_object, replacing, write_json, write_tensors
from model.hugging_face import excess_of, kind_for, kind_of, read_config, write_config
from model.kind import Kind, Values
from model.moe import drop_router_biases
from model.transformer import LanguageModel
from model.weights import Shapes, WeightFiles, check_shapes, num_layers, read_pth, weights_digest

FORMAT_VERSION = 1
TRAINED_ON = {"pretrain": "texts", "sft": "chats", "preference": "chats"}
"""what a checkpoint says of its training, by kind of data"""
ROTARY_TABLES = ("model.freqs_cos", "model.freqs_sin")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ENCODER = "model.encoder.layers."


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was saved; its configuration says what attention pattern it was trained under."""

    model: LanguageModel
    stop_ids: tuple[int, ...]
    path: Path
    trained_on: str | None = None
    """texts or chats, whichever came last; None where nothing says so"""

    @property
    def fingerprint(self) -> str:
        """Digits that change when a weight does, which a path does not show."""
        return weights_digest(self.model)[:12]


def save_checkpoint(
    path: str | Path, model: LanguageModel, stop_ids: Sequence[int] = (), trained_on: str | None = None
) -> None:
    """Write a model directory without a tokenizer, whole or not at all.

    Raises `OSError` where the disk does not take it.
    """
    values = describe(model.config) | ({"trained_on": trained_on} if trained_on else {})
    _write(Path(path), _stored(model), values, stop_ids)


def save_adapter(
    path: Path,
    adapter: Adapter,
    config: ModelConfig,
    base_fingerprint: str,
    stop_ids: Sequence[int],
    trained_on: str,
) -> None:
    """Write a directory that holds an adapter instead of weights; `config` is that of the adapted model."""
    path.mkdir(parents=True, exist_ok=True)
    adapter.write(path)
    values = {"trained_on": trained_on, "base_fingerprint": base_fingerprint}
    _write_words(path, describe(config) | values, stop_ids)


def _stored(model: LanguageModel) -> dict[str, Tensor]:
    """Return the weights of a model, a tied output layer as the embedding alone."""
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        del tensors[HEAD]
    return tensors


def _write(path: Path, tensors: dict[str, Tensor], values: dict[str, Any], stop_ids: Sequence[int]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    with replacing(path / "model.safetensors") as partial:
        write_tensors(partial, tensors, {"format": "pt"})
    _write_words(path, values, stop_ids)


def _write_words(path: Path, values: dict[str, Any], stop_ids: Sequence[int]) -> None:
    write_json(path / "config.json", values)
    write_json(path / "generation_config.json", {"eos_token_id": list(stop_ids)})


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model directory of ours, or a causal model of a kind of `transformers`, in float32.

    An adapter is merged into its base. Raises `UserError` that names the fault: no model, a kind that is not
    in the table, or the tensors that are missing, unknown or misshapen.
    """
    if is_adapter(path := Path(path)):
        return _load_adapted(path)
    values, source = _read_values(path), str(path / "config.json")
    kind, trained_on = kind_of(values, source), values.get("trained_on")
    weights = WeightFiles(path, kind.buffers)
    shapes = kind.our_shapes(weights.shapes)
    for key in (key for key, name in kind.keys.items() if name == "num_hidden_layers"):
        if type(values.get(key)) is int and values[key] != num_layers(shapes):
            raise UserError(f"{source} says {values[key]} {key} but the weights have {num_layers(shapes)}")
    config = read_config(values, source)
    model = build(config, shapes, lambda: kind.to_ours(weights.read()), path)
    return Checkpoint(model, _stop_ids(path, values, config.vocab_size), path, trained_on)


def _load_adapted(path: Path) -> Checkpoint:
    """Open the base of an adapter under the masks of the adapter, and merge that.

    One that `peft` has trained elsewhere brings no `config.json`, and leaves the masks as they are. Raises
    `UserError` where the base is another than in training.
    """
    adapter = read_adapter(path)
    base = load_checkpoint(base_of(adapter, path))
    if (path / "config.json").is_file():
        values, source = _read_values(path), str(path / "config.json")
        if (wanted := values.get("base_fingerprint")) not in (found := base.fingerprint, None):
            raise UserError(
                f"{path} adapts {base.path}, whose weights have changed since (fingerprint was "
                f"{brief(wanted)}, is {found}); expected those that it was trained beside"
            )
        config = read_config(values, source)
        base.model.set_masks(config)
        if base.model.config != config:
            raise UserError(f"{source} tells of another shape than {base.path} has")
        stop_ids = _stop_ids(path, values, config.vocab_size)
        base = replace(base, stop_ids=stop_ids, trained_on=values.get("trained_on"))
    adapter.merge_into(base.model, path)
    return replace(base, path=path)


def _read_values(path: Path) -> dict[str, Any]:
    """Return the values of a directory's `config.json`; raises `UserError` for those of another version."""
    file = path / "config.json"
    values = _read_json(file)
    if (version := values.get("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
        raise UserError(f"{file} has format_version {brief(version)}; this version reads {FORMAT_VERSION}")
    if values.get("trained_on") not in (*TRAINED_ON.values(), None):
        raise UserError(f"{file}: trained_on must be one of {', '.join(TRAINED_ON.values())}")
    return values


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
    if (depth := num_layers(shapes, ENCODER)) != (config.num_encoder_layers or 0):
        raise UserError(f"{path}: num_encoder_layers is {config.num_encoder_layers}, in the weights {depth}")
    model = model_without_memory(config)
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
    model.model.register_triangle()  # no checkpoint holds it, and assignment has cut the tie
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def _check_sizes(config: ModelConfig, shapes: Shapes, path: Path) -> None:
    """Raise `UserError` unless the sizes of a configuration are those of a few weights that are there.

    A model of sizes that nobody holds cannot even be laid out.
    """
    width, attention = config.hidden_size, "model.layers.0.self_attn"
    expected = {
        EMBEDDING: (config.vocab_size, width),
        f"{attention}.q_proj.weight": (config.num_attention_heads * config.head_dim, width),
        f"{attention}.k_proj.weight": (config.num_key_value_heads * config.head_dim, width),
    }
    mlp, is_mixture = "model.layers.0.mlp", bool(config.num_experts)
    expected |= {f"{mlp}.gate.weight": (config.num_experts, width)} if is_mixture else {}
    one = f"{mlp}.experts.0" if is_mixture else mlp
    expected |= {f"{one}.up_proj.weight": (config.intermediate_size, width)}
    memory = (2, config.num_key_value_heads, config.memory_tokens, config.head_dim)
    expected |= {"model.layers.0.memory": memory} if config.memory_tokens else {}
    check_shapes(expected, {name: shapes[name] for name in expected if name in shapes}, path)


def export_checkpoint(
    source: str | Path, target: str | Path, drops_router_bias: bool = False, values: Values | None = None
) -> Kind:
    """Copy a model without its training state, as its kind of `transformers`, which is returned.

    The biases of routers, for which `transformers` has no place, are dropped where that is asked for. A model
    with another prompt mask than causal needs `values` for `config.json` that tell how the mask is applied.
    Raises `UserError` without them, as causal engines would not reproduce it, and for a model with parts that
    its kind has not.
    """
    checkpoint = load_checkpoint(source)
    if drops_router_bias:
        drop_router_biases(checkpoint.model)
    config, kind = checkpoint.model.config, kind_for(checkpoint.model.config)
    if kind and config.prompt_mask != "causal" and not values:
        raise UserError(
            f"{source} was trained with prompt_mask {config.prompt_mask!r}; causal engines would give "
            "other answers than ours, so only causal models are exported"
        )
    if excess := excess_of(config):
        raise UserError(f"{source} cannot be exported: it has {excess}")
    if Path(target).exists() and any(Path(target).iterdir()):
        raise UserError(f"{target} is not empty; name a new folder for the export")
    if kind.has_our_weights and not values:
        save_checkpoint(target, checkpoint.model, checkpoint.stop_ids, checkpoint.trained_on)
    else:
        tensors = kind.to_theirs(_stored(checkpoint.model))
        values = write_config(config) | {"dtype": "float32"} | (values or {})
        _write(Path(target), tensors, values, checkpoint.stop_ids)
    return kind


def describe(config: ModelConfig) -> dict[str, Any]:
    """Return the values of `config.json`; with those of `transformers` where it opens what is saved."""
    ours = {"format_version": FORMAT_VERSION, "dtype": "float32"} | config.to_dict()
    is_stock = config.prompt_mask == "causal" and not excess_of(config) and kind_for(config).has_our_weights
    return ours | write_config(config) if is_stock else ours


def _stop_ids(path: Path, values: dict[str, Any], vocab_size: int) -> tuple[int, ...]:
    """Return the ids that end an answer; `generation_config.json` wins over `config.json`."""
    generation = path / "generation_config.json"
    stops = (_read_json(generation) if generation.is_file() else {}).get("eos_token_id")
    stops = values.get("eos_token_id") if stops is None else stops
    stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
    if not all(type(stop) is int and 0 <= stop < vocab_size for stop in stops):
        raise UserError(f"{path}: eos_token_id must be ids below {vocab_size}, got {brief(stops)}")
    return tuple(stops)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        advice = hub_advice(path.parent)
        raise UserError(f"{path} not found; expected a model directory with {path.name}{advice}")
    return read_object(path, "copy the model again")
