"""Loss scaling for gradients in float16 (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).

Losses are multiplied before the backward pass, so that small gradients do not vanish, and the gradients are
divided after it. The scale is a power of two, so that this rounds nothing. It starts high, is halved whenever
a gradient leaves the range, and doubled after many steps in which none did.
"""

from collections.abc import Iterable

import torch
from torch import nn

FIRST_SCALE = 2.0**16
STEPS_TO_DOUBLE = 2000


def first_scale(dtype: torch.dtype) -> float:
    """Return the scale that a training starts with, 1 where no gradient is in float16."""
    return FIRST_SCALE if dtype == torch.float16 else 1.0


def next_scale(scale: float, steps: int, is_finite: bool) -> tuple[float, int]:
    """Return the scale after a step, and the steps taken at it; the least is 1, which scales nothing."""
    if not is_finite:
        return max(scale / 2, 1.0), 0
    return (scale, steps + 1) if steps + 1 < STEPS_TO_DOUBLE else (scale * 2, 0)


@torch.no_grad()
def unscale(parameters: Iterable[nn.Parameter], scale: float) -> None:
    """Divide the gradients by the scale."""
    if scale != 1:
        for parameter in parameters:
            parameter.grad.div_(scale)
