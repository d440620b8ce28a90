"""A mixture of experts: feed-forward layers of which each token passes a few, and who chooses them.

No loss keeps them equally busy, but a bias of each expert, which counts when experts are chosen and not in
what they give. `trainer/balance.py` moves it.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from model.config import ModelConfig


class Router(nn.Linear):
    """Scores the experts for each token and chooses the best ones (Shazeer et al. 2017, arXiv 1701.06538).

    Scores with the bias are ranked, scores without it are the weights (Wang et al. 2024, arXiv 2408.15664,
    equation 3).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.num_experts, bias=False)
        self.per_token, self.normalises = config.num_experts_per_tok, config.norm_topk_prob
        bias = torch.zeros(config.num_experts) if config.router_bias else None
        self.register_buffer("e_score_correction_bias", bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights (N, k) and the numbers (N, k) of the experts of each token (N, C)."""
        wide, bias = torch.promote_types(torch.float32, tokens.dtype), self.e_score_correction_bias
        scores = super().forward(tokens).softmax(dim=-1, dtype=wide)  # (N, E)
        chosen = (scores if bias is None else scores + bias).topk(self.per_token).indices  # (N, k)
        weights = scores.gather(-1, chosen)
        if self.normalises:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(wide).tiny)
        return weights.to(tokens.dtype), chosen


class MixtureOfExperts(nn.Module):
    """The sum of what the experts of a token make of it, each by its weight."""

    def __init__(self, config: ModelConfig, new_expert: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = nn.ModuleList(new_expert() for _ in range(config.num_experts))

    @property
    def idle(self) -> nn.ModuleList:
        """As many experts, all alike, as a token passes by."""
        return self.experts[self.gate.per_token :]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, hidden_size) to the same shape."""
        tokens = x.flatten(0, -2)  # (N, C)
        weights, chosen = self.gate(tokens)
        mix = self._mix_all if torch.compiler.is_compiling() else self._mix_chosen
        return mix(tokens, weights, chosen).view_as(x)

    def _mix_chosen(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Return outputs (N, C); each expert computes the tokens that chose it, and no others."""
        # Each token stands k times, sorted by expert, so that the tokens of an expert are one slice:
        #     chosen  2 0 | 0 1      order  1 2 3 0      counts  2 1 1
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        copies = tokens[:, None].expand(-1, chosen.shape[1], -1).flatten(0, 1)  # (N k, C)
        parts = zip(self.experts, copies[order].split(counts), strict=True)

        # An expert without tokens gets a gradient of zeros, for which DDP and FSDP wait.
        trains = torch.is_grad_enabled()
        outputs = torch.cat([expert(part) for expert, part in parts if len(part) or trains])
        back = outputs[order.argsort()].unflatten(0, chosen.shape)  # (N, k, C)
        return (back * weights[..., None]).sum(1)

    def _mix_all(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Return the same by products with all experts, for a compiler, which has to know all sizes."""
        shares = weights.new_zeros(len(tokens), len(self.experts)).scatter(1, chosen, weights)  # (N, E)
        return sum(expert(tokens) * shares[:, n, None] for n, expert in enumerate(self.experts))


def drop_router_biases(model: nn.Module) -> None:
    """Let scores alone choose experts, in a language model; some tokens pass others then."""
    for part in model.modules():
        if isinstance(part, Router):
            part.e_score_correction_bias = None
    model.config = model.model.config = replace(model.config, router_bias=False)


def keep_experts_uncompiled() -> None:
    """Let compiled layers in training call `MixtureOfExperts.forward` as it is written."""
    MixtureOfExperts.forward = torch.compiler.disable(MixtureOfExperts.forward)
