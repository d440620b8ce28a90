"""Weights in the form and place they are served in: narrower than they were trained, or as they are.

Nothing here is part of a checkpoint, and nothing that trains goes through it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DeviceName, Weights
from model.errors import UserError
from model.systems import native_bfloat16
from model.transformer import LanguageModel

LARGEST_INT8 = 127
SMALLEST_SCALE = 1e-30  # a row of zeros is divided by it
INT8_COLUMNS = 32
"""what the number of inputs must be a multiple of: torch's kernel would read past the end of a row"""
MOST_INT8_ROWS = 8
"""rows beyond which it is faster to widen the weights once than to multiply them as they are"""


class ServedLinear(nn.Module):
    """Multiplies with weights W (out, in) as they are stored: y = x W^T + b.

    Several rows go through W widened to float32 where that is told: without a unit for bfloat16, a machine
    multiplies it far slower than it takes to widen it.
    """

    def __init__(self, linear: nn.Linear, widens: bool) -> None:
        super().__init__()
        self._widens = widens
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        wide = torch.promote_types(torch.float32, x.dtype)
        is_one_row = x.numel() == x.shape[-1]
        if is_one_row and torch.compiler.is_compiling():  # made one loop that reads the weights as stored
            y = (x.flatten().to(wide) * self.weight.to(wide)).sum(-1)  # (out,)
        elif self._widens and not is_one_row:
            y = (self.weight.to(wide) @ x.flatten(0, -2).to(wide).T).T  # (rows, out), fast for few rows
        else:
            return F.linear(x, self.weight, self.bias)
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], len(self.weight))


class Int8Linear(nn.Module):
    """Multiplies bfloat16 inputs with int8 weights (out, in), a scale for each output.

    The scale lets the largest weight be 127 (absmax: Dettmers et al. 2022, arXiv 2208.07339, section 2.1).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1) / LARGEST_INT8).clamp(min=SMALLEST_SCALE).bfloat16()  # (out,)
        rounded = (weight / scale[:, None]).round().clamp(-LARGEST_INT8, LARGEST_INT8)
        self.stored = nn.Parameter(rounded.to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The weights (out, in), rounded to bfloat16."""
        return self.stored * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        rows = x.flatten(0, -2)
        if not x.is_cpu:  # the kernel below is made for CPUs
            y = F.linear(rows, self.stored.to(x.dtype)) * self.scale
        elif torch.compiler.is_compiling() or len(rows) <= MOST_INT8_ROWS:  # compiled for any number of rows
            y = torch._weight_int8pack_mm(rows, self.stored, self.scale)  # (rows, out)
        else:
            y = ((self.stored.float() @ rows.float().T).T * self.scale).to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], len(self.scale))


def store_weights(model: LanguageModel, weights: Weights) -> str:
    """Store the weights of a model in place in another form; return what was done, in words.

    The embedding is only looked up, so with int8 it stays bfloat16, like everything that is computed. What
    has a kind of `nn.Linear` of its own computes as it is written. Raises `UserError` for a shape that cannot
    be multiplied in int8.
    """
    parts = [(module, *named) for module in model.modules() for named in module.named_children()]
    linears = [(module, name, child) for module, name, child in parts if type(child) is nn.Linear]
    odd = [child.in_features for _, _, child in linears if child.in_features % INT8_COLUMNS]
    if weights == "int8" and odd:
        fault = f"int8 needs layers of a multiple of {INT8_COLUMNS} inputs, got {odd[0]}"
        raise UserError(f"{fault}; use bfloat16")
    on_cpu = model.model.embed_tokens.weight.device.type == "cpu"
    widens = weights == "bfloat16" and native_bfloat16(on_cpu) is None
    for module, name, child in linears:
        setattr(module, name, Int8Linear(child) if weights == "int8" else ServedLinear(child, widens))
    if weights != "float32":
        model.to(torch.bfloat16)
    return f"{weights} weights" + (", several rows multiplied in float32" if widens else "")


def choose_device(name: DeviceName) -> torch.device:
    """Return the device that is asked for; raises `UserError` where torch finds none of its kind."""
    found = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if name not in ("auto", "cpu", found.type):
        raise UserError(f"--device {name}: torch finds only {found.type} here; leave it out to use that")
    return found if name == "auto" else torch.device(name)


def describe_device(device: torch.device) -> str:
    """Return where something is computed, in words."""
    if device.type == "cpu":
        return f"CPU with {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
