"""The training objective: nats of the target tokens, summed; the caller divides by the step's count."""

import torch
import torch.nn.functional as F
from torch import Tensor

NO_TARGET = -100
"""The label of a token that is no target."""


def summed_cross_entropy(hidden: Tensor, output_weight: Tensor, labels: Tensor) -> Tensor:
    """Return the summed nats of all targets, a scalar in float32 or wider.

    `hidden` (B, T, C) are final states, `output_weight` is (V, C), `labels` (B, T) are unshifted: row t-1
    predicts label t, -100 is no target. Logits are computed for target rows only, so prompts cost nothing
    here.
    """
    targets = labels[:, 1:]
    is_target = targets != NO_TARGET
    logits = F.linear(hidden[:, :-1][is_target], output_weight)  # (targets, V)
    wide = logits.to(torch.promote_types(torch.float32, logits.dtype))
    return F.cross_entropy(wide, targets[is_target], reduction="sum")
