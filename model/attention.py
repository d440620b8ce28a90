"""Attention: the form in which it gets its mask, the formula step by step, and the module around it.

`model/backends.py` has faster ways to the same numbers, and chooses among them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.layers import Angles, RMSNorm, rotate, soft_cap

MaskKind = Literal["none", "causal", "dense", "documents", "bands", "flex"]


class Visibility(NamedTuple):
    """Which keys each query sees, in the form that attention takes; made once per forward pass and window.

    Exactly one of four: a bool `mask`, the lower triangle (`is_causal`), `rows`, or none (all is visible).
    """

    mask: Tensor | None = None
    """bool (B, 1, Tq, Tk), True = may attend"""
    is_causal: bool = False
    """the lower triangle of a square, with no mask tensor"""
    rows: Any = None
    """whole rows, cut so that pairs which are not visible are skipped: `DocumentRows`, `Bands`, `FlexRows`"""

    @property
    def kind(self) -> MaskKind:
        """The kind of mask, by which a backend says what it can take."""
        if self.rows is not None:
            return self.rows.kind
        return "dense" if self.mask is not None else "causal" if self.is_causal else "none"


class Scoring(NamedTuple):
    """How the product of a query and a key becomes their score."""

    scale: float
    """what it is multiplied by"""
    softcap: float | None = None
    """what scores are then bent to stay below; None = as they are"""


Attend = Callable[[Tensor, Tensor, Tensor, Visibility, Scoring], Tensor]
"""Takes queries (B, H, Tq, D), keys and values (B, Hkv, Tk, D), a `Visibility` and a `Scoring`; returns
outputs (B, H, Tq, D)."""
CacheUpdate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Stores keys and values (B, Hkv, T, D) of new tokens; returns those to attend to (B, Hkv, Tk, D)."""


def eager_probabilities(q: Tensor, k: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
    """Return attention probabilities (B, H, Tq, Tk) in float32 or wider (Vaswani et al. 2017, equation 1)."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, Tk, D)
    scores = soft_cap((q @ k.transpose(-1, -2)) * scoring.scale, scoring.softcap)  # (B, H, Tq, Tk)
    mask = seen.mask
    if seen.is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if seen.rows is not None:
        mask = seen.rows.dense()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.promote_types(torch.float32, q.dtype))


def eager_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
    """Attend step by step: the form to read, and the one that all others are tested against."""
    probabilities = eager_probabilities(q, k, seen, scoring).to(v.dtype)
    return probabilities @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


class Attention(nn.Module):
    """Project to heads, rotate, attend, project back (GQA: Ainslie et al. 2023, arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig, attend: Attend = eager_attention) -> None:
        super().__init__()
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.head_dim, self.attend = config.head_dim, attend
        self.scoring = Scoring(config.query_scale, config.attn_logit_softcapping)
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)
        head_norm = partial(RMSNorm, config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity
        self.q_norm, self.k_norm = head_norm(), head_norm()

    def forward(
        self, x: Tensor, angles: Angles, seen: Visibility, update_cache: CacheUpdate | None = None
    ) -> Tensor:
        """Map (B, T, hidden_size) to the same shape.

        `update_cache` stores the new keys and values, and returns them with those of earlier tokens.
        """
        k, v = self.keys_and_values(x, angles)
        if update_cache is not None:
            k, v = update_cache(k, v)  # (B, Hkv, Tk, D)
        return self.read(x, angles, k, v, seen)

    def keys_and_values(self, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """Return what tokens (B, T, hidden_size) offer to be read, both (B, Hkv, T, D)."""
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, Hkv, D)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        return rotate(self.k_norm(k).transpose(1, 2), angles), v.transpose(1, 2)

    def read(self, x: Tensor, angles: Angles, k: Tensor, v: Tensor, seen: Visibility) -> Tensor:
        """Return what tokens (B, T, hidden_size) read of keys and values (B, Hkv, Tk, D), in their shape."""
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H, D)
        q = rotate(self.q_norm(q).transpose(1, 2), angles)  # (B, H, T, D)
        y = self.attend(q, k, v, seen, self.scoring)
        return self.o_proj(y.transpose(1, 2).flatten(2))
