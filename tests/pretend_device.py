"""A device that stands for an accelerator on machines without one: it holds data, and refuses other tensors.

An operation that mixes its tensors with those of the CPU raises, as on a GPU; numbers without dimensions, and
indices, may come from the CPU there as well. It goes under the name of `meta`, as torch takes no new name.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PLACE = torch.device("meta")
TAKES_OTHERS = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten.copy_.default)


class PretendTensor(Tensor):
    """Data on the CPU that says of itself to be elsewhere."""

    @staticmethod
    def __new__(cls, data_here: Tensor) -> "PretendTensor":
        strides = {"strides": data_here.stride(), "storage_offset": data_here.storage_offset()}
        kind = {"dtype": data_here.dtype, "device": PLACE}
        return Tensor._make_wrapper_subclass(cls, data_here.shape, **kind, **strides)

    def __init__(self, data_here: Tensor) -> None:
        self.data_here = data_here

    def tolist(self) -> Any:
        """Return the numbers, for which torch asks no subclass."""
        return self.data_here.tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Callable, types: Any, args: tuple = (), kwargs: dict | None = None):
        return _compute(op, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, op: Callable, types: Any, args: tuple = (), kwargs: dict | None = None):
        return _compute(op, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Sees `torch.tensor`, whose data never reach an operation on `meta`."""

    def __torch_function__(self, call: Callable, types: Any, args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        if call is torch.tensor and kwargs.get("device") == PLACE:
            return call(*args, **kwargs | {"device": "cpu"}).to(PLACE)
        return call(*args, **kwargs)


def pretend_device() -> ExitStack:
    """Return a context in which tensors that are asked for on `PLACE` are made there."""
    stack = ExitStack()
    stack.enter_context(_Operations())
    stack.enter_context(_Calls())
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `Module.to` makes parameters anew
    stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
    known = torch.is_autocast_enabled
    stack.enter_context(
        patch.object(torch, "is_autocast_enabled", lambda kind: kind != "meta" and known(kind))
    )
    return stack


def _compute(op: Callable, args: tuple, kwargs: dict) -> Any:
    given: list[Tensor] = []
    _each((args, kwargs), Tensor, given.append)
    is_there = any(isinstance(x, PretendTensor) for x in given)
    strays = [x for x in given if not isinstance(x, PretendTensor) and (x.dim() or x.is_meta)]
    if any(x.is_meta for x in strays) or (is_there and strays and op not in TAKES_OTHERS):
        raise RuntimeError(
            f"{op} mixes devices: {[tuple(x.shape) for x in strays]} are not where it computes"
        )
    if kwargs.get("device") is not None:
        is_there = torch.device(kwargs["device"]) == PLACE
        kwargs = kwargs | {"device": "cpu"}
    args, kwargs = _each((args, kwargs), PretendTensor, lambda x: x.data_here)
    result = op(*args, **kwargs)
    return _each(result, Tensor, PretendTensor) if is_there else result


def _each(values: Any, kind: type, change: Callable) -> Any:
    """Change everything of a kind in nested values; `torch.utils._pytree` takes three times as long."""
    if isinstance(values, kind):
        return change(values)
    if isinstance(values, tuple | list):
        return type(values)([_each(value, kind, change) for value in values])
    if isinstance(values, dict):
        return {key: _each(value, kind, change) for key, value in values.items()}
    return values
