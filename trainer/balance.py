"""Keeps the experts of a model equally busy without a loss: after each step a bias moves against their load.

Wang et al. 2024 (arXiv 2408.15664), algorithm 1. The load is counted over the real tokens of all
micro-batches and processes of a step, so that it is the same however the step is spread.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.errors import UserError
from model.moe import Router
from model.transformer import LanguageModel

USUAL_RATE = 1e-3
Summed = Callable[..., list[float]]
"""adds numbers up over all processes"""


class Balance:
    """Counts the load of every expert in forward passes of training, and moves the biases of the routers."""

    def __init__(self, model: LanguageModel, rate: float | None, summed: Summed) -> None:
        """Listen to a model; `rate` is how far a bias moves in a step, None as usual.

        Raises `UserError` for the rate of a model without biases.
        """
        if rate is not None and not model.config.router_bias:
            wanted = "--optimizer.router_bias_rate: expected a model with router_bias"
            raise UserError(f"{wanted}, got one without")
        self._routers = [part for part in model.modules() if isinstance(part, Router)]
        self._rate, self._summed = USUAL_RATE if rate is None else rate, summed
        self._chosen: dict[nn.Module, Tensor] = {}
        self._loads_of_step = torch.empty(0)
        for router in self._routers:
            router.register_forward_hook(self._note)
        model.register_forward_hook(self._count)
        self.clear()

    def clear(self) -> None:
        """Forget what was counted."""
        self._loads = [
            torch.zeros(router.out_features, dtype=torch.long, device=router.weight.device)
            for router in self._routers
        ]

    def _note(self, router: nn.Module, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        self._chosen[router] = output[1]

    def _count(self, model: nn.Module, inputs: tuple, output: Tensor) -> None:
        """Add the experts of the real tokens of a pass; layers computed again for gradients add nothing."""
        if not torch.is_grad_enabled():
            return
        real = inputs[1].document_ids.flatten() >= 0
        for router, load in zip(self._routers, self._loads, strict=True):
            load += self._chosen[router][real].flatten().bincount(minlength=len(load))

    @torch.no_grad()
    def step(self) -> None:
        """Raise the bias of every expert with less than the mean load of its layer, and lower the others.

        Those of routers that are frozen stay.
        """
        loads = self._summed(*torch.cat(self._loads).tolist())
        self._loads_of_step = torch.tensor(loads, dtype=torch.float64).view(len(self._routers), -1)  # (L, E)
        for router, load in zip(self._routers, self._loads_of_step, strict=True):
            bias = router.e_score_correction_bias
            if bias is not None and router.weight.requires_grad:
                bias += self._rate * (load.mean() - load).sign().to(bias)

    def figures(self) -> dict[str, float]:
        """Return the most and the least that an expert had to do in the last step, as multiples of the mean.

        Also how far the busiest one of a layer was above it, in the mean of all layers: the maximal violation
        (section 4.1), 0 where all are equally busy.
        """
        if not len(self._loads_of_step):
            return {}
        loads = self._loads_of_step / self._loads_of_step.mean(1, keepdim=True)
        most, least, violation = loads.max(), loads.min(), (loads.amax(1) - 1).mean()
        figures = {"load_most": most, "load_least": least, "max_violation": violation}
        return {f"expert_{name}": float(value) for name, value in figures.items()}
