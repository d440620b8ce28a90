"""Configurations of `transformers` and ours, both ways, by the table of `model/kinds.py`."""

from dataclasses import fields

from model.config import ARCHITECTURES, ModelConfig, from_dict
from model.errors import UserError, brief
from model.kind import Kind, Values
from model.kinds import KINDS

MASKED = "sightline_"
"""Stands before the type of a model that brings its prompt mask along, under the key `sightline`."""


def kind_of(values: Values, source: str) -> Kind:
    """Return the kind of a configuration; ours without one goes with Qwen3's.

    Raises `UserError` for an unknown one.
    """
    named = values.get("model_type", "qwen3" if "prompt_mask" in values else None)
    for kind in KINDS:
        if named in (kind.model_type, f"{MASKED}{kind.model_type}"):
            return kind
    known = ", ".join(kind.model_type for kind in KINDS)
    raise UserError(f"{source}: expected a Sightline model or model_type {known}, got {brief(named)}")


def kind_for(config: ModelConfig) -> Kind | None:
    """Return the kind as which a model of ours is exported; None for an architecture that none is of."""
    return next((kind for kind in KINDS if kind.architecture == config.architecture), None)


def excess_of(config: ModelConfig) -> str | None:
    """Say in words what a causal model has that its kind has not; None if there is nothing."""
    if (kind := kind_for(config)) is None:
        return f"architecture {config.architecture}, for which no other program has a kind of model"
    free = {*kind.keys.values(), *kind.varies, "architecture", "prompt_mask", "window_both_sides"}
    expected = {each.name: each.default for each in fields(ModelConfig) if each.name not in free}
    expected |= {key: value for key, value in ARCHITECTURES[kind.architecture].items() if key not in free}
    for name, value in (expected | kind.sizes(config)).items():
        if getattr(config, name) != value:
            return f"{name} {getattr(config, name)} where {kind.class_name} has {value}"
    return None


def read_config(values: Values, source: str) -> ModelConfig:
    """Return the configuration from values of `config.json`, ours or those of `transformers`.

    Raises `UserError` for what we do not have.
    """
    kind = kind_of(values, source)
    if "prompt_mask" in values:
        return from_dict(values | kind.read(values, source), source)
    theirs = kind.defaults | values
    for key, demanded in kind.demands.items():
        if theirs.get(key) not in (demanded, None):
            raise UserError(f"{source}: {key} {brief(theirs[key])} is not supported")
    ours = {name: theirs[key] for key, name in kind.keys.items() if key in theirs}
    mask = values.get("sightline", {})
    if not isinstance(mask, dict):
        raise UserError(f"{source}: expected a prompt mask and its marks as sightline, got {brief(mask)}")
    ours |= {key: mask[key] for key in ("prompt_mask", "window_both_sides") if key in mask}
    ours |= kind.read(theirs, source) | {"architecture": kind.architecture}
    return from_dict(ARCHITECTURES[kind.architecture] | _completed(ours), source)


def write_config(config: ModelConfig) -> Values:
    """Return the values by which `transformers` opens a causal model that has nothing in excess."""
    kind = kind_for(config)
    values = {key: getattr(config, name) for key, name in kind.keys.items()}
    named = {"model_type": kind.model_type, "architectures": [kind.class_name]}
    return named | values | kind.write(config)


def _completed(ours: Values) -> Values:
    """Return values with those that follow from others where there are none."""
    width, heads = ours.get("hidden_size"), ours.get("num_attention_heads")
    derived = {"num_key_value_heads": heads}
    if type(width) is int and type(heads) is int and heads > 0:
        derived |= {"head_dim": width // heads, "intermediate_size": 4 * width}
    return ours | {key: value for key, value in derived.items() if ours.get(key) is None}
