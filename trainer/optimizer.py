"""From gradients to weights: the learning rate of a step, the scale of float16, and who updates what.

AdamW updates everything, or Muon the matrices of the layers and AdamW the rest. Both keep what they remember
in `state`, by parameter and name; torch's own classes would import its compiler, which takes seconds.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from model.transformer import DecoderLayer, LanguageModel
from trainer.balance import Balance, Summed
from trainer.newton_schulz import orthogonalise
from trainer.placement import cut_like, whole
from trainer.settings import OptimizerSettings, ScheduleSettings, TrainSettings

MOMENTUM = 0.95
ADAM = {"fused": True, "amsgrad": False, "maximize": False, "eps": 1e-8}
FIRST_SCALE = 2.0**16
STEPS_TO_DOUBLE = 2000
State = dict[nn.Parameter, dict[str, Tensor]]


def count_steps(settings: TrainSettings, figures: dict[str, Any], rows_per_step: int) -> int:
    """Return the optimizer steps that the settings ask for, given the `rows` and `tokens` of an epoch."""
    steps_per_epoch = math.ceil(figures["rows"] / rows_per_step)
    if settings.max_steps is not None:
        return settings.max_steps
    if settings.epochs is not None:
        return math.ceil(settings.epochs * steps_per_epoch)
    return math.ceil(settings.max_tokens * steps_per_epoch / figures["tokens"])


def warmup_steps(total_steps: int, schedule: ScheduleSettings) -> int:
    """Return the steps of the warmup: a tenth of all steps where it would be over a third of them."""
    return schedule.warmup_steps if 3 * schedule.warmup_steps <= total_steps else total_steps // 10


def multiplier(step: int, total_steps: int, schedule: ScheduleSettings) -> float:
    """Return the factor on the peak learning rate for the update that follows `step` finished ones.

    1       ____________          wsd rises, stays, and decays linearly in the last part
           /            \\         (Hu et al. 2024, arXiv 2404.06395); cosine (Loshchilov and
    0  ___/              \\___     Hutter 2017, arXiv 1608.03983) and linear have no flat part.
    """
    warmup = warmup_steps(total_steps, schedule)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    start = warmup
    if schedule.name == "wsd":
        start = max(warmup, round(total_steps * (1 - schedule.decay_fraction)))
    done = max(0.0, (step - start) / max(1, total_steps - start))
    falling = (1 + math.cos(math.pi * done)) / 2 if schedule.name == "cosine" else 1 - done
    return schedule.final_fraction + (1 - schedule.final_fraction) * falling


def first_scale(dtype: torch.dtype) -> float:
    """Return what the loss is multiplied with at first so that small gradients in float16 do not vanish.

    It is a power of two, which rounds nothing, is halved whenever a gradient leaves the range, and doubled
    after many steps in which none did (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2); 1 elsewhere.
    """
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


class AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) by torch's fused kernel, a call for each decay."""

    def __init__(self, groups: list[tuple[list[nn.Parameter], float]], beta1: float, beta2: float) -> None:
        """Take over parameters with the decay of each group."""
        self._groups, self._beta1, self._beta2 = groups, beta1, beta2
        self.state: State = {each: self._blank(each) for parameters, _ in groups for each in parameters}

    def _blank(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros((), device=parameter.device)} | averages

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every parameter."""
        for group, decay in self._groups:
            parameters = [each for each in group if each.grad is not None]
            gradients, states = [p.grad for p in parameters], [self.state[p] for p in parameters]
            steps, means, squares = ([s[name] for s in states] for name in ("step", "exp_avg", "exp_avg_sq"))
            rates = {"lr": rate, "weight_decay": decay, "beta1": self._beta1, "beta2": self._beta2}
            adamw(parameters, gradients, means, squares, [], steps, **rates, **ADAM)


class Muon:
    """Muon (Jordan et al. 2024) with one batched product for all matrices of a shape, in a dtype of choice.

    `torch.optim.Muon` iterates matrix by matrix in bfloat16, which most processors emulate: a small model
    would spend half of its time there. Of sharded matrices every process iterates the whole and keeps its
    part.
    """

    def __init__(self, parameters: list[nn.Parameter], dtype: torch.dtype, decay: float) -> None:
        """Take over matrices; `dtype` is that of the iterations."""
        self._dtype, self._decay = dtype, decay
        self.state: State = {each: {"momentum_buffer": torch.zeros_like(each)} for each in parameters}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every matrix, by as much as AdamW would (Liu et al. 2025, arXiv 2502.16982)."""
        updates = [(p, whole(self._nesterov(p))) for p in self.state if p.grad is not None]
        for parameters, batch in _stacked_by_shape(updates):
            for parameter, update in zip(parameters, orthogonalise(batch, self._dtype), strict=True):
                update = update if parameter.shape[0] <= parameter.shape[1] else update.T
                parameter.mul_(1 - rate * self._decay)
                step_size = rate * 0.2 * max(parameter.shape) ** 0.5
                parameter.add_(cut_like(update, parameter), alpha=-step_size)

    def _nesterov(self, parameter: nn.Parameter) -> Tensor:
        """Move the momentum towards the gradient, and return what is a step further."""
        momentum = self.state[parameter]["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(momentum, MOMENTUM)


def _stacked_by_shape(
    updates: list[tuple[nn.Parameter, Tensor]],
) -> Iterable[tuple[list[nn.Parameter], Tensor]]:
    """Yield parameters and their updates, one batch (n, r, c) per shape, r <= c: tall ones are transposed."""
    groups = defaultdict(list)
    for parameter, update in updates:
        wide = update if update.shape[0] <= update.shape[1] else update.T
        groups[wide.shape].append((parameter, wide))
    for members in groups.values():
        parameters, wides = zip(*members, strict=True)
        yield parameters, torch.stack(wides)


class Optimizers:
    """The optimizers of one model, stepped together."""

    def __init__(
        self,
        model: LanguageModel,
        settings: OptimizerSettings,
        dtype: torch.dtype,
        summed: Summed = lambda *numbers: [*numbers],
    ) -> None:
        """Sort the parameters; `dtype` is that of Muon's iterations, `summed` adds up over processes."""
        self._peak, self._max_norm = settings.learning_rate, settings.max_gradient_norm
        self._names = {each: name for name, each in model.named_parameters() if each.requires_grad}
        (matrices, others), decay = split_parameters(model), settings.weight_decay
        is_muon = settings.name == "muon"
        groups = [(others, 0.0)] if is_muon else [(others, 0.0), (matrices, decay)]
        adam = AdamW(groups, settings.beta1, settings.beta2)
        self._members = [Muon(matrices, dtype, decay), adam] if is_muon else [adam]
        rate = settings.router_bias_rate  # which a model without experts refuses
        has_balance = model.config.num_experts or rate is not None
        self.balance = Balance(model, rate, summed) if has_balance else None

    def clip(self, scale: float = 1.0) -> float:
        """Take the loss scale out of the gradients, limit their norm, and return what it was."""
        parameters = list(self._names)
        unscale(parameters, scale)
        return float(whole(nn.utils.clip_grad_norm_(parameters, self._max_norm)))

    def step(self, multiplier: float) -> None:
        """Update the parameters at `multiplier` times the peak learning rate."""
        for optimizer in self._members:
            optimizer.step(self._peak * multiplier)
        if self.balance:
            self.balance.step()

    def zero_grad(self) -> None:
        """Free the gradients, and forget the load of experts."""
        for parameter in self._names:
            parameter.grad = None
        if self.balance:
            self.balance.clear()

    def state(self) -> dict[str, Tensor]:
        """Return what is remembered of each parameter, as `exp_avg/<its name>`; to write to it counts."""
        return {
            f"{key}/{self._names[parameter]}": value
            for optimizer in self._members
            for parameter, entry in optimizer.state.items()
            for key, value in entry.items()
        }


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices that map states to states within layers, and all others that are trained.

    Others are embedding, output layer, norms, biases, tables of positions, and what has a kind of `nn.Linear`
    of its own, like a router: their rows are looked up or scored one by one, and share no directions.
    """
    layers = (module for module in model.modules() if isinstance(module, DecoderLayer))
    plain = (part for layer in layers for part in layer.modules() if type(part) is nn.Linear)
    matrices = {linear.weight for linear in plain}
    parameters = [each for each in model.parameters() if each.requires_grad]
    return [each for each in parameters if each in matrices], [p for p in parameters if p not in matrices]
