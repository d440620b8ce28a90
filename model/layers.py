"""The parts of a decoder that know nothing of masks, and the tables by which a configuration names them."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.memory_tokens import with_memory_tokens
from model.moe import MixtureOfExperts
from model.pattern import ALL
from model.rope_scaling import RopeScaling
from model.value_residual import with_highway

Act = Callable[[Tensor], Tensor]
Angles = tuple[Tensor, Tensor] | None
"""Cosine and sine (B, 1, T, head_dim / 2) by which queries and keys turn; None leaves them as they are."""


class RMSNorm(nn.Module):
    """Scale to unit mean square, then by a learned weight (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`, in float32 or wider, and return it in the dtype of `x`."""
        wide = x.to(torch.promote_types(torch.float32, x.dtype))
        return F.rms_norm(wide, self.weight.shape, self.weight.to(wide.dtype), self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """Move to mean 0 and scale to variance 1, then by a learned weight (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, size: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`, in float32 or wider, and return it in the dtype of `x`."""
        wide = x.to(torch.promote_types(torch.float32, x.dtype))
        bias = None if self.bias is None else self.bias.to(wide.dtype)
        return F.layer_norm(wide, self.weight.shape, self.weight.to(wide.dtype), bias, self.eps).to(x.dtype)


class FeedForward(nn.Module):
    """A gated layer, as SwiGLU (Shazeer 2020, arXiv 2002.05202): down(act(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, inner_size: int, act: Act = F.silu, bias: bool = False) -> None:
        super().__init__()
        self.act = act
        self.gate_proj = nn.Linear(hidden_size, inner_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, inner_size, bias=bias)
        self.down_proj = nn.Linear(inner_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, hidden_size) to the same shape."""
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class PlainFeedForward(nn.Module):
    """Two projections, down(act(up(x))) (Vaswani et al. 2017, arXiv 1706.03762, section 3.3)."""

    def __init__(self, hidden_size: int, inner_size: int, act: Act, bias: bool) -> None:
        super().__init__()
        self.act = act
        self.up_proj = nn.Linear(hidden_size, inner_size, bias=bias)
        self.down_proj = nn.Linear(inner_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, hidden_size) to the same shape."""
        return self.down_proj(self.act(self.up_proj(x)))


NORMS = {"rms": RMSNorm, "layer": LayerNorm, "layer_without_bias": partial(LayerNorm, bias=False)}
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh")}


def norm_of(config: ModelConfig) -> nn.Module:
    """Return a norm of the residual stream, of the form that a configuration names."""
    return NORMS[config.norm](config.hidden_size, config.rms_norm_eps)


def feed_forward_of(config: ModelConfig) -> nn.Module:
    """Return a feed-forward layer of the form that a configuration names, or experts of that form."""
    form = FeedForward if config.gated_mlp else PlainFeedForward
    act = ACTIVATIONS[config.hidden_act]
    new = partial(form, config.hidden_size, config.intermediate_size, act, config.mlp_bias)
    return MixtureOfExperts(config, new) if config.num_experts else new()


def layers_of(config: ModelConfig, form: type[nn.Module]) -> nn.ModuleList:
    """Return the layers of a decoder, of one form, or of what a configuration makes of that."""
    count = config.num_hidden_layers
    forms = with_highway(form, count) if config.value_residual else [form] * count
    forms = map(with_memory_tokens, forms) if config.memory_tokens else forms
    return nn.ModuleList(each(config) for each in forms)


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """Bend values so that they stay below a bound (Gemma 2 report, arXiv 2408.00118); None bends nothing."""
    return x if cap is None else cap * torch.tanh(x / cap)


class ScaledEmbedding(nn.Embedding):
    """Looks vectors up and multiplies them by the square root of their width (Vaswani et al., 3.4)."""

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to vectors (B, T, C)."""
        return super().forward(ids) * self.embedding_dim**0.5


class LearnedPositions(nn.Embedding):
    """Adds a vector for each position, of which there are `num_embeddings`."""

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Map (B, T, C) to the same shape; raises `IndexError` for a position without a vector."""
        return x + super().forward(position_ids)


class UnmarkedPositions(nn.Module):
    """Adds nothing: queries and keys are turned instead, or positions are not told at all."""

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Return `x` (B, T, C)."""
        return x


def embedding_of(config: ModelConfig) -> nn.Module:
    """Return an embedding; `LanguageModel` draws its weights, which `nn.Embedding(…)` would do once more."""
    kind = ScaledEmbedding if config.scale_embeddings else nn.Embedding
    return kind.from_pretrained(torch.empty(config.vocab_size, config.hidden_size), freeze=False)


def positions_of(config: ModelConfig) -> nn.Module:
    """Return what adds positions to embeddings."""
    if config.positions == "learned":
        rows = torch.empty(config.max_position_embeddings, config.hidden_size)
        return LearnedPositions.from_pretrained(rows, freeze=False)
    return UnmarkedPositions()


def rotary_angles(
    position_ids: Tensor, head_dim: int, dtype: torch.dtype, theta: float, scaling: RopeScaling | None
) -> Angles:
    """Return cosine and sine (B, 1, T, head_dim / 2) of the rotary angles, in float32 or wider.

    Su et al. 2021 (arXiv 2104.09864), equation 34: pair i of a head turns by position * theta^(-2i /
    head_dim). With `scaling`, some turn slower, and all may become longer.
    """
    wide = torch.promote_types(torch.float32, dtype)
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=wide) / head_dim
    frequencies = theta**-exponents
    length = 1.0
    if scaling:
        kept, length = SCALINGS[scaling.rope_type](frequencies, theta, scaling)
        frequencies = frequencies * (kept + (1 - kept) / scaling.factor)
    angles = position_ids[:, None, :, None].to(wide) * frequencies
    return angles.cos() * length, angles.sin() * length


def _linear(frequencies: Tensor, theta: float, scaling: RopeScaling) -> tuple[float, float]:
    """Return that no share of a frequency is kept."""
    return 0.0, 1.0


def _llama3(frequencies: Tensor, theta: float, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Return a share (D / 2,) that grows with how often a wavelength fits into the original context."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    times = frequencies * scaling.original_max_position_embeddings / (2 * math.pi)
    return ((times - low) / (high - low)).clamp(0, 1), 1.0


def _yarn(frequencies: Tensor, theta: float, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Return a share that falls linearly from pairs of `beta_fast` turns to those of `beta_slow`.

    Peng et al. 2023 (arXiv 2309.00071), section 3.2, between whole pairs as all implementations do it.
    Queries and keys become longer (section 3.4).
    """
    pairs, context = len(frequencies), scaling.original_max_position_embeddings

    def pair_of(turns: float) -> float:
        return pairs * math.log(context / (2 * math.pi * turns)) / math.log(theta)

    first = max(math.floor(pair_of(scaling.beta_fast or 32)), 0)
    last = min(math.ceil(pair_of(scaling.beta_slow or 1)), 2 * pairs - 1)
    places = torch.arange(pairs, device=frequencies.device, dtype=frequencies.dtype)
    kept = 1 - ((places - first) / max(last - first, 1e-3)).clamp(0, 1)
    return kept, scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1


SCALINGS = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}
"""what share of each frequency is kept, the rest is divided by the factor; and how long all become"""


def layer_angles(config: ModelConfig, position_ids: Tensor, dtype: torch.dtype) -> list[Angles]:
    """Return the angles of each layer; layers of one base share them."""
    if config.positions != "rotary":
        return [None] * config.num_hidden_layers
    angles = partial(rotary_angles, position_ids, config.head_dim, dtype)
    everywhere = angles(config.rope_theta, config.rope_scaling)
    local = angles(config.rope_local_theta, None) if config.rope_local_theta else everywhere
    return [everywhere if pattern == ALL else local for pattern in config.layer_patterns]


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Turn heads (B, H, T, D) by their angles; as in Qwen3, dimension i pairs with i + D / 2."""
    if angles is None:
        return x
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
