"""Memory tokens: keys and values of each layer that are learnt, and seen by every token through any window.

Tokens that stand before all others and see none of them have the same states in every document. So they are
weights of the layers (Sukhbaatar et al. 2019, arXiv 1907.01470) and take no place in rows or caches:

    m m | t t t
    1 1 | 1 . .
    1 1 | 1 1 .
    1 1 | . 1 1      two memory tokens beside a window of two
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from model.config import ModelConfig

if TYPE_CHECKING:
    from model.attention import Visibility

Update = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class _Remembering:
    """A layer that sees memory tokens before all that it sees else."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        shape = (2, config.num_key_value_heads, config.memory_tokens, config.head_dim)
        self.memory = nn.Parameter(torch.randn(shape) * config.initializer_range)
        """keys and values"""

    def forward(self, x: Tensor, angles: object, seen: "Visibility", update_cache: Update | None) -> Tensor:
        """Map (B, T, C) to the same shape."""

        def with_memory(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            own = (k, v) if update_cache is None else update_cache(k, v)
            memory = (each.to(k.dtype).expand(len(k), -1, -1, -1) for each in self.memory)
            return tuple(torch.cat(pair, dim=2) for pair in zip(memory, own, strict=True))

        return super().forward(x, angles, widened(seen, self.memory.shape[2], x), with_memory)


def widened(seen: "Visibility", count: int, x: Tensor) -> "Visibility":
    """Return what queries of a stream (B, T, C) see where `count` keys that all of them see come first."""
    if seen.is_causal:
        ones = torch.ones(x.shape[1], count + x.shape[1], dtype=torch.bool, device=x.device)
        return seen._replace(mask=ones.tril(count)[None, None], is_causal=False)
    if seen.rows is not None:
        return seen.rows.behind(count)
    return seen if seen.mask is None else seen._replace(mask=pad(seen.mask, (count, 0), value=True))


def with_memory_tokens(form: type[nn.Module]) -> type[nn.Module]:
    """Return a form of layers that sees memory tokens."""
    return type(form.__name__, (_Remembering, form), {})
