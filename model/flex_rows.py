"""Rows that attend through torch's FlexAttention (Dong et al. 2024, arXiv 2412.05496), in squares of pairs.

Of a square the one rule (`model/masks.py`) shows all, some or none, and the kernel, which is compiled for a
shape, skips the last kind. Rows are padded to few lengths, so nothing is compiled anew where lengths vary.
Gradients exist on GPUs only, where none of this was run; so it is taken by name alone.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import Scoring, Visibility
from model.bands import Bands
from model.masks import Layout, Tokens, visible
from model.pattern import Pattern

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SIDE = 128
"""of a square; rows are as long as it, or twice, four times, …"""


class FlexRows(NamedTuple):
    """Whole rows (B, T) with the squares of their mask."""

    squares: "BlockMask"
    layout: Layout
    pattern: Pattern
    ahead: int = 0
    """keys before those of the row, which all its tokens see"""

    kind = "flex"

    def behind(self, count: int) -> Visibility:
        """Return what queries see where `count` more keys that all of them see come first."""
        return flex_rows(self.layout, self.pattern, self.ahead + count)

    dense = Bands.dense


def flex_rows(layout: Layout, pattern: Pattern, ahead: int = 0) -> Visibility:
    """Return rows with the squares of their mask, in all patterns and with all parts."""
    from torch.nn.attention.flex_attention import create_block_mask

    batch, length = layout.block_ids.shape
    queries, keys = padded(length), padded(ahead + length)
    fields = [ids if ids is None else F.pad(ids, (0, keys - length), value=-1) for ids in layout]

    def shows(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        place = (key - ahead).clamp(min=0)
        q, k = (
            Tokens(at, *(ids if ids is None else ids[row, at] for ids in fields)) for at in (query, place)
        )
        return visible(q, k, pattern) | (key < ahead)

    device = layout.block_ids.device
    is_compiled = device.type != "cpu"  # there, it takes longer than it saves
    squares = create_block_mask(shows, batch, None, queries, keys, device, SIDE, _compile=is_compiled)
    return Visibility(rows=FlexRows(squares, layout, pattern, ahead))


def padded(length: int) -> int:
    """Return the length that rows of some length are padded to."""
    return SIDE << (-(-length // SIDE) - 1).bit_length()


def has_flex(q: Tensor) -> bool:
    """Say whether torch has it for such queries."""
    return q.is_cuda or not torch.is_grad_enabled()


def flex_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
    """Attend by the squares of rows."""
    queries, keys = seen.rows.squares.shape[-2:]
    rest: dict[str, Any] = {"block_mask": seen.rows.squares, "scale": scoring.scale, "enable_gqa": True}
    if scoring.softcap is not None:
        rest["score_mod"] = lambda score, *_: scoring.softcap * torch.tanh(score / scoring.softcap)
    q, length = F.pad(q, (0, 0, 0, queries - q.shape[2])), q.shape[2]
    k, v = (F.pad(x, (0, 0, 0, keys - x.shape[2])) for x in (k, v))
    return _kernel(q.device.type)(q, k, v, **rest)[:, :, :length]


@cache
def _kernel(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=False)
