"""A highway across layers: the values of the first layer are mixed into those of all later ones.

Zhou et al. 2024 (arXiv 2410.17897), ResFormer with weights that are learnt. The values travel beside the
residual stream, as further numbers of each token, so that what runs layers one after the other (caching,
checkpointing, compiling, sharding) need not know of them:

    layer      0          1          2          3
    stream       x -- x     x -- x     x -- x     x
    values       v ------ v mixed - v mixed - v mixed
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.config import ModelConfig

Update = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _as_they_are(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return k, v


class _First:
    """A layer that hands on its values (B, T, Hkv * D) behind what it makes of the stream (B, T, C)."""

    def forward(self, x: Tensor, angles: object, seen: object, update_cache: Update | None) -> Tensor:
        """Map (B, T, C) to (B, T, C + Hkv * D)."""
        update, kept = update_cache or _as_they_are, []

        def keeping(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            kept.append(v)  # (B, Hkv, T, D)
            return update(k, v)

        x = super().forward(x, angles, seen, keeping)
        return torch.cat((x, kept[0].transpose(1, 2).flatten(2)), dim=-1)


class _Last:
    """A layer whose values are its own and those of the first layer, each times a learnt weight."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._width, self._head_dim = config.hidden_size, config.head_dim
        self.value_mix = nn.Parameter(torch.full((2,), 0.5))
        """of the first layer, of its own"""

    def forward(self, x: Tensor, angles: object, seen: object, update_cache: Update | None) -> Tensor:
        """Map (B, T, C + Hkv * D) to (B, T, C)."""
        update, (of_first, of_own) = update_cache or _as_they_are, self.value_mix
        x, carried = x.tensor_split((self._width,), dim=-1)
        first = carried.unflatten(-1, (-1, self._head_dim)).transpose(1, 2)  # (B, Hkv, T, D)

        def mixing(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return update(k, (of_first * first + of_own * v).to(v.dtype))

        return super().forward(x, angles, seen, mixing)


class _Later(_Last):
    """One that hands the values of the first layer on."""

    def forward(self, x: Tensor, angles: object, seen: object, update_cache: Update | None) -> Tensor:
        """Map (B, T, C + Hkv * D) to the same shape."""
        y = super().forward(x, angles, seen, update_cache)
        return torch.cat((y, x[..., self._width :].to(y.dtype)), dim=-1)


def with_highway(form: type[nn.Module], count: int) -> list[type[nn.Module]]:
    """Return the kind of each of `count` layers, two or more, that are else of one form."""
    first, later, last = (type(part.__name__, (part, form), {}) for part in (_First, _Later, _Last))
    return [first, *[later] * (count - 2), last]
