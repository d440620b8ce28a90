"""AdamW for everything, or Muon for the layers' matrices with AdamW for the rest."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from model.transformer import DecoderLayer
from trainer.loss_scale import unscale
from trainer.settings import OptimizerSettings
from trainer.sharding import cut_like, whole

# The quintic of Jordan et al. 2024 (kellerjordan.github.io/posts/muon): steep at 0, so that singular values
# come close to 1 in few iterations.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with one batched product for all matrices of a shape, in a dtype of choice.

    torch iterates matrix by matrix in bfloat16, which most processors emulate: a small model would spend
    half of its time there. Of sharded matrices every process iterates the whole and keeps its part.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], dtype: torch.dtype, **options: float | str
    ) -> None:
        """Take over matrices; `dtype` is that of the iterations, `options` are `torch.optim.Muon`'s."""
        super().__init__(parameters, **options)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            updates = [(p, whole(self._momentum(p, group))) for p in group["params"] if p.grad is not None]
            for parameters, batch in _stacked_by_shape(updates):
                for parameter, update in zip(parameters, orthogonalise(batch, self.dtype), strict=True):
                    wide = parameter.shape[0] <= parameter.shape[1]
                    self._apply(parameter, cut_like(update if wide else update.T, parameter), group)

    def _momentum(self, parameter: nn.Parameter, group: dict) -> Tensor:
        """Move the momentum towards the gradient and return the Nesterov update."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
        return parameter.grad.lerp(momentum, group["momentum"])

    def _apply(self, parameter: nn.Parameter, update: Tensor, group: dict) -> None:
        """Decay and step, with updates as large as AdamW's (Liu et al. 2025, arXiv 2502.16982)."""
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)


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


def orthogonalise(batch: Tensor, dtype: torch.dtype) -> Tensor:
    """Return matrices (n, r, c), r <= c, with their singular values moved close to 1 (Newton-Schulz)."""
    a, b, c = QUINTIC
    x = batch.to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # (n, r, r)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(batch.dtype)


class Optimizers:
    """The optimizers of one model, stepped together."""

    def __init__(self, model: nn.Module, settings: OptimizerSettings, dtype: torch.dtype) -> None:
        """Sort the parameters; `dtype` is that of Muon's iterations."""
        self._peak, self._max_norm = settings.learning_rate, settings.max_gradient_norm
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        matrices, others = split_parameters(model)
        groups = [{"params": others, "weight_decay": 0.0}]
        self.members: list[torch.optim.Optimizer] = []
        if settings.name == "muon":
            muon = BatchedMuon(matrices, dtype, lr=self._peak, weight_decay=settings.weight_decay)
            self.members.append(muon)
        else:
            groups.append({"params": matrices, "weight_decay": settings.weight_decay})
        betas = (settings.beta1, settings.beta2)
        self.members.append(torch.optim.AdamW(groups, lr=self._peak, betas=betas, fused=True))

    def clip(self, scale: float = 1.0) -> float:
        """Take the loss scale out of the gradients, limit their norm, and return what it was."""
        parameters = list(self._names)
        unscale(parameters, scale)
        return float(whole(nn.utils.clip_grad_norm_(parameters, self._max_norm)))

    def step(self, multiplier: float) -> None:
        """Update the parameters at `multiplier` times the peak learning rate."""
        for optimizer in self.members:
            for group in optimizer.param_groups:
                group["lr"] = self._peak * multiplier
            optimizer.step()

    def zero_grad(self) -> None:
        """Free the gradients."""
        for optimizer in self.members:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return what is remembered of each parameter, as `exp_avg/<its name>`; nothing before a step."""
        return {
            f"{key}/{self._names[parameter]}": value
            for optimizer in self.members
            for parameter, entry in optimizer.state.items()
            for key, value in entry.items()
        }

    def prepare_state(self) -> dict[str, Tensor]:
        """Remember zeros of every parameter and return them, to be written over by what was saved."""
        for optimizer in self.members:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                optimizer.state[parameter] = _blank(optimizer, parameter)
        return self.state()


def _blank(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return the state of a parameter as an optimizer makes it before its first step."""
    if isinstance(optimizer, BatchedMuon):
        return {"momentum_buffer": torch.zeros_like(parameter)}
    averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros((), device=parameter.device)} | averages


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices that map states to states within layers, and all other parameters.

    Others are embedding, output layer, norms, biases, tables of positions, and what has a kind of `nn.Linear`
    of its own, like a router: their rows are looked up or scored one by one, and share no directions.
    """
    layers = (module for module in model.modules() if isinstance(module, DecoderLayer))
    plain = (part for layer in layers for part in layer.modules() if type(part) is nn.Linear)
    matrices = {linear.weight for linear in plain}
    parameters = list(model.parameters())
    return [each for each in parameters if each in matrices], [p for p in parameters if p not in matrices]
