"""What has to be known of a kind of model of `transformers` to open and to export it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import UserError
from model.weights import Shapes

Values = dict[str, Any]
Weights = dict[str, Tensor]


def pairs(text: str) -> dict[str, str]:
    """Return names of theirs and ours, written `theirs:ours`, or once where they are the same."""
    return {name.partition(":")[0]: name.rpartition(":")[2] for name in text.split()}


def _unchanged(name: str, tensor: Tensor) -> Weights:
    return {name: tensor}


@dataclass(frozen=True)
class Kind:
    """A kind of model of `transformers`, and the architecture of ours that it is."""

    model_type: str
    architecture: str
    class_name: str
    keys: dict[str, str]
    """its keys for single fields of ours"""
    read: Callable[[Values, str], Values]
    """returns other fields of ours from its values"""
    write: Callable[[ModelConfig], Values]
    """returns its values for those, and values of its own"""
    varies: tuple[str, ...]
    """the fields that these two are about"""
    defaults: Values = field(default_factory=dict)
    """what `transformers` takes for keys that are left out, where it is not what the architecture has"""
    demands: Values = field(default_factory=dict)
    """keys that we do not have, with the only values that are understood"""
    sizes: Callable[[ModelConfig], Values] = lambda config: {}
    """returns fields that are the same in all of it, or that it derives from others"""
    modules: dict[str, str] = field(default_factory=dict)
    """its modules that we name otherwise; * is the number of a layer"""
    unpack: Callable[[str, Tensor], Weights] = _unchanged
    """lays a weight of its out as we do, under the name that it has here"""
    pack: Callable[[Weights], Weights] = dict
    """does the reverse with all weights of a model"""
    is_transposed: bool = False
    """whether its linear layers lie as (in, out)"""
    buffers: str = "$^"
    """pattern of names under which it has stored what is no weight"""

    @property
    def has_our_weights(self) -> bool:
        """Whether its names and layout are ours, so that every causal model is saved as one of its kind."""
        return self.pack is dict and not self.modules

    def to_ours(self, tensors: Weights) -> Weights:
        """Return its weights under our names and in our layout."""
        ours: Weights = {}
        for name, tensor in tensors.items():
            unpacked = self.unpack(_moved(name, self.modules), tensor)
            if twice := ours.keys() & unpacked.keys():
                raise UserError(f"{min(twice)} is there twice, once as {name}")
            ours |= unpacked
        return ours

    def to_theirs(self, tensors: Weights) -> Weights:
        """Return weights of ours as it names and lays them out."""
        return {_moved(name, self._back): tensor for name, tensor in self.pack(tensors).items()}

    def their_module(self, ours: str) -> str:
        """Return the name of its module that a linear layer of ours is, or is a third of."""
        for name in (re.sub(r"[qkv]_proj$", "qkv_proj", ours), ours):
            if (theirs := _moved(f"{name}.weight", self._back)) != f"{name}.weight":
                return theirs.removesuffix(".weight")
        return ours

    @property
    def _back(self) -> dict[str, str]:
        return {ours: theirs for theirs, ours in self.modules.items()}

    def our_shapes(self, shapes: Shapes) -> Shapes:
        """Return what shapes its weights of these shapes have here, by our names."""
        blank = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        return {name: tuple(tensor.shape) for name, tensor in self.to_ours(blank).items()}


def _moved(name: str, modules: dict[str, str]) -> str:
    """Return the name of a tensor whose module is called otherwise."""
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    pattern = f"{name[: number.start()]}*{name[number.end() :]}" if number else name
    module, dot, leaf = pattern.rpartition(".")
    moved = modules.get(module, module) + dot + leaf
    return moved.replace("*", number[0]) if number else moved
