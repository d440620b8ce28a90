"""Adapters in the format of `peft`: read, checked, and merged into the weights that they were trained beside.

adapter_config.json          where these weights, the base, lie, and how much an adapter counts
adapter_model.safetensors    two factors for each adapted weight, by the names that `transformers` has

A weight W (out, in) becomes W + alpha / r * B A with B (out, r) and A (r, in) (LoRA: Hu et al. 2021, arXiv
2106.09685, section 4.1). `trainer/adapters.py` trains them.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from model.errors import UserError, brief
from model.files import open_tensors, read_object, replacing, write_json, write_tensors
from model.hugging_face import kind_for
from model.transformer import LanguageModel
from model.typed_json import read_values
from model.weights import as_weight, check_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base_model_name_or_path"
NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
DEMANDS: dict[str, Any] = {"peft_type": "LORA", "bias": "none"}
DEMANDS |= dict.fromkeys(("use_dora", "use_rslora", "use_qalora", "lora_bias"), False)
DEMANDS |= dict.fromkeys(("modules_to_save", "target_parameters", "trainable_token_indices"))
DEMANDS |= dict.fromkeys(("layer_replication", "alora_invocation_tokens", "velora_config", "kasa_config"))
DEMANDS |= dict.fromkeys(("use_bdlora", "arrow_config", "monteclora_config"))
"""kinds of adapters of `peft` that are no plain factors, with the only values that are understood"""
INITS = (True, False, None, "gaussian", "orthogonal", "eva")
"""beginnings of factors that leave the weights beside them as they are; `pissa` and others take from these"""


class Factors(NamedTuple):
    """What is learnt of a weight (out, in): their product is added to it."""

    a: Tensor
    """(r, in)"""
    b: Tensor
    """(out, r)"""


@dataclass(frozen=True)
class Adapter:
    """Factors by the module of `transformers` that they adapt, and the configuration of `peft` for them."""

    factors: dict[str, Factors]
    values: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write both files; raises `OSError` where the disk does not take them."""
        tensors = {
            f"base_model.model.{module}.lora_{letter}.weight": tensor
            for module, factors in self.factors.items()
            for letter, tensor in zip("AB", factors, strict=True)
        }
        with replacing(folder / WEIGHTS) as partial:
            write_tensors(partial, tensors, {"format": "pt"})
        write_json(folder / CONFIG, self.values)

    @torch.no_grad()
    def merge_into(self, model: LanguageModel, source: Path) -> None:
        """Add the products of factors to the weights of a model; raises `UserError` where they do not fit."""
        kind = kind_for(model.config)
        step = -1 if kind and kind.is_transposed else 1  # (in, out) there
        shapes = {f"{name}.weight": (len(b), a.shape[1])[::step] for name, (a, b) in self.factors.items()}
        shapes = kind.our_shapes(shapes) if kind else shapes
        matrices = {name: each for name, each in model.named_parameters() if ".layers." in name}
        check_shapes({n: tuple(matrices[n].shape) for n in shapes.keys() & matrices.keys()}, shapes, source)

        deltas = {}
        for module, (a, b) in self.factors.items():
            delta = b @ a * (self._alpha(module) / len(a))  # (out, in)
            deltas[f"{module}.weight"] = delta.T if step < 0 else delta
        for name, delta in (kind.to_ours(deltas) if kind else deltas).items():
            matrices[name] += as_weight(f"{source}: the product for {name}", delta)

    def _alpha(self, module: str) -> float:
        """Return what stands for a module, by a pattern of the end of its name as in `peft`, or for all."""
        for end, alpha in (self.values.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({end})$", module):
                return alpha
        return self.values["lora_alpha"]


def is_adapter(folder: Path) -> bool:
    """Say whether a directory holds an adapter instead of whole weights."""
    return (folder / CONFIG).is_file()


def read_adapter(folder: Path) -> Adapter:
    """Open a directory of an adapter.

    Raises `UserError` for one that is damaged, or of another kind than plain factors.
    """
    source = folder / CONFIG
    if whole := [file.name for file in folder.glob("model*.safetensors")]:
        raise UserError(f"{source} adapts another model, but {whole[0]} lies there, too; take one away")
    values = read_object(source, "copy the adapter again")
    for key, demanded in DEMANDS.items():
        if values.get(key, demanded) not in (demanded, None):
            raise UserError(f"{source}: {key} {brief(values[key])} is not supported; expected {demanded}")
    if (begun := values.get("init_lora_weights")) not in INITS:
        raise UserError(
            f"{source}: init_lora_weights {brief(begun)} is not supported, as it changes the weights beside; "
            "save the adapter by peft with path_initial_model_for_weight_conversion"
        )
    patterns = values.get("alpha_pattern") or {}
    alphas = [values.get("lora_alpha"), *(patterns.values() if isinstance(patterns, dict) else [None])]
    if not all(type(alpha) in (int, float) and 0 < alpha < 1e6 for alpha in alphas):
        raise UserError(f"{source}: expected a number above 0 as each lora_alpha, got {brief(alphas)}")
    for pattern in patterns:
        _check_pattern(pattern, source)
    factors = _read_factors(folder)
    told = read_values({"r": int, "rank_pattern?": dict[str, int]}, values, source, "copy the adapter again")
    ranks = {told["r"], *(told.get("rank_pattern") or {}).values()}
    if odd := [module for module, (a, _) in factors.items() if len(a) not in ranks]:
        raise UserError(f"{source} says rank {brief(sorted(ranks))}, but {odd[0]} has another")
    return Adapter(factors, values)


def _check_pattern(pattern: str, source: Path) -> None:
    """Raise `UserError` for what is no pattern, and for one that could be compared for ever."""
    counts = len(pattern) // 100, pattern.count("("), len(re.findall("[*+?{]", pattern))
    if max(counts) > 2 or re.search(r"\)[*+?{]", pattern):
        raise UserError(f"{source}: alpha_pattern {brief(pattern)} repeats or joins too much to be compared")
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise UserError(f"{source}: alpha_pattern {brief(pattern)} is no pattern ({error})") from None


def base_of(adapter: Adapter, source: Path) -> Path:
    """Return the model directory that an adapter was trained beside; raises `UserError` if it is gone."""
    base, advice = adapter.values.get(BASE), f"write where it is into {BASE} of {source / CONFIG}"
    if not isinstance(base, str) or not Path(base).is_dir():
        raise UserError(f"{source} adapts {base}, which is not there; {advice}")
    if is_adapter(Path(base)):
        raise UserError(f"{source} adapts {base}, an adapter itself; expected whole weights; {advice}")
    return Path(base)


def base_folders(path: Path) -> list[Path]:
    """Return the base of a model directory that holds an adapter, nothing of others."""
    return [base_of(read_adapter(path), path)] if is_adapter(path) else []


def tokenizer_folder(path: str | Path) -> Path:
    """Return where the tokenizer of a model directory lies: there, or with the base of an adapter."""
    path = Path(path)
    return path if (path / "tokenizer.json").is_file() else (*base_folders(path), path)[0]


def _read_factors(folder: Path) -> dict[str, Factors]:
    """Return the factors by module; raises `UserError` for other tensors, and for factors without a match."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    try:
        with open_tensors(folder / WEIGHTS) as file:
            for name in file.keys():  # noqa: SIM118 - safe_open cannot be iterated
                if (match := NAME.fullmatch(name)) is None:
                    fault = f"{folder}: unknown {name}"
                    raise UserError(f"{fault}; expected factors of layers, lora_A and lora_B")
                found[match[1]][match[2]] = as_weight(name, file.get_tensor(name))
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read ({error}); copy the adapter again") from error
    if not found:
        raise UserError(f"{folder / WEIGHTS} holds no factors; copy the adapter again")
    for module, pair in found.items():
        shapes = [tuple(pair[letter].shape) if letter in pair else () for letter in "AB"]
        if any(len(shape) != 2 for shape in shapes) or not 0 < shapes[0][0] == shapes[1][1]:
            raise UserError(f"{folder}: expected (r, in) and (out, r) as factors of {module}, got {shapes}")
    return {module: Factors(pair["A"], pair["B"]) for module, pair in found.items()}
