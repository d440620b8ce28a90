"""The training objective: cross-entropy of the targets in nats, summed; `trainer/loop.py` takes the mean."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.layers import soft_cap

NO_TARGET = -100
"""The label of a token that is no target."""
LOGITS_AT_ONCE = {"cpu": 2**22}
"""Logits of one chunk, by type of device; on a CPU so few that they stay in its cache, which is faster."""
MANY_LOGITS_AT_ONCE = 2**26
"""The same for other devices, which are best at large products."""
FEWEST_STATES = 128
"""States of one chunk at least, however large the vocabulary."""
MOST_STATES = 8192
"""The same at most: gradients of the weight, summed over that many states, stay in the range of float16."""


def summed_cross_entropy(
    hidden: Tensor, output_weight: Tensor, labels: Tensor, softcap: float | None = None
) -> Tensor:
    """Return the summed nats of all targets, a scalar in float32 or wider.

    `hidden` (B, T, C) are final states, `output_weight` is (V, C), `labels` (B, T) are unshifted: the state
    at t - 1 predicts label t, -100 is no target. Logits are bent to stay below `softcap`, if there is one.
    Without it, the same number as

        F.cross_entropy((hidden @ output_weight.T)[:, :-1].transpose(1, 2), labels[:, 1:], reduction="sum")

    but logits are computed at targets only, so that prompts cost nothing here, and in chunks, so that memory
    does not grow with the number of targets.
    """
    targets = labels[:, 1:]
    is_target = targets != NO_TARGET
    states = hidden[:, :-1][is_target]  # (N, C)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return _SummedNats.apply(
        states.to(dtype), output_weight.to(dtype), targets[is_target], torch.is_grad_enabled(), softcap
    )


class _SummedNats(torch.autograd.Function):
    """Cross-entropy of a linear layer without keeping logits: a chunk's gradients are made with its loss.

    `torch.nn.functional.linear_cross_entropy` does the same, but returns the sum in the dtype of its input:
    in bfloat16, sums of thousands of nats are off by dozens.
    """

    @staticmethod
    def forward(
        ctx, states: Tensor, weight: Tensor, targets: Tensor, needs_gradient: bool, softcap: float | None
    ) -> Tensor:
        wide = torch.promote_types(torch.float32, states.dtype)
        nats = torch.zeros((), dtype=wide, device=states.device)
        states_gradient, is_frozen = torch.empty_like(states), not ctx.needs_input_grad[1]
        weight_gradient = None if is_frozen else torch.zeros_like(weight, dtype=wide)
        budget = LOGITS_AT_ONCE.get(states.device.type, MANY_LOGITS_AT_ONCE)
        at_once = min(max(FEWEST_STATES, budget // len(weight)), MOST_STATES)
        for begin in range(0, len(states), at_once):
            # Nats are log(sum(exp(logits))) less the logit of the target, here after the largest was taken
            # from all. What can be is done in place, to pass over memory rarely.
            part = slice(begin, begin + at_once)
            logits = soft_cap((states[part] @ weight.T).to(wide), softcap)  # (n, V)
            slope = None if softcap is None else 1 - (logits / softcap) ** 2  # tanh' = 1 - tanh^2
            logits -= logits.amax(dim=1, keepdim=True)
            index = targets[part, None]
            at_target = logits.gather(1, index)
            total = logits.exp_().sum(dim=1, keepdim=True)
            nats += (total.log() - at_target).sum()
            if needs_gradient:
                # The gradient of the logits is their softmax, less 1 at the target.
                error = logits.div_(total)
                error.scatter_add_(1, index, torch.full_like(total, -1.0))
                error = (error if slope is None else error * slope).to(states.dtype)
                states_gradient[part] = error @ weight
                if not is_frozen:
                    weight_gradient += error.T @ states[part]
        ctx.save_for_backward(states_gradient, weight_gradient)
        ctx.dtype = weight.dtype
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        states_gradient, weight_gradient = ctx.saved_tensors
        if weight_gradient is not None:
            weight_gradient = (weight_gradient * gradient).to(ctx.dtype)
        return states_gradient * gradient, weight_gradient, None, None, None
