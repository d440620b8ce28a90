"""Whether the layers run compiled, and why."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.backends import keep_documents_uncompiled
from model.config import ModelConfig
from model.errors import UserError
from model.serving import compiler_fault
from model.transformer import LanguageModel
from trainer.machine import weights_of_products

WORTHWHILE_FLOPS = 2e13
"""arithmetic of a training from which compiling on a CPU, about half a minute, is soon made up for"""


@dataclass(frozen=True)
class Compilation:
    """The decision, and the reason in words."""

    is_on: bool
    reason: str


def compile_layers(model: LanguageModel, lengths_vary: bool) -> None:
    """Let the layers run compiled in training; the names of parameters stay.

    Lengths that vary are symbols from the first batch on: were they to become so later, the course of a
    training would depend on where it was interrupted.
    """
    keep_documents_uncompiled()
    for layer in model.model.layers:
        layer.forward = _with_gradients(torch.compile(layer.forward, dynamic=lengths_vary), layer.forward)


def _with_gradients(compiled: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what runs compiled in training; without gradients, shapes are too many to compile for."""
    return lambda *inputs: (compiled if torch.is_grad_enabled() else plain)(*inputs)


def training_flops(config: ModelConfig, tokens: int) -> float:
    """Return about what the layers of a training compute: six operations a weight and token."""
    return 6.0 * weights_of_products(config) * tokens


def choose_compilation(
    choice: str, device: torch.device, flops: float, former: bool | None = None
) -> Compilation:
    """Reconcile --compile with the `flops` of the training, with what is installed, and with a former part.

    Raises `UserError` where compiling is demanded and cannot be done.
    """
    if choice == "never":
        return Compilation(False, "no, by --compile never")
    if choice == "auto" and former is False:
        return Compilation(False, "no, as the run began")
    if choice == "auto" and former is None and device.type == "cpu" and flops < WORTHWHILE_FLOPS:
        return Compilation(False, "no, too short a training to make up for it; --compile always does it")
    if (fault := compiler_fault(device)) is None:
        return Compilation(True, "each layer, which takes the first step about half a minute")
    if choice == "always":
        raise UserError(f"--compile always: nothing can be compiled here ({fault}); install g++, or use auto")
    return Compilation(False, f"no, nothing can be compiled here ({fault}); install g++ for faster steps")
