"""Fast ways to attend, each exact, and the table that says what each can do and which is taken.

Their constants were measured on two CPU cores, on models of 30M parameters in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attend, MaskKind, Scoring, Visibility, eager_attention
from model.bands import in_bands, in_one
from model.errors import UserError
from model.flex_rows import flex_attention, flex_rows, has_flex
from model.layers import soft_cap
from model.masks import Layout, visible_mask
from model.pattern import ALL, Pattern
from model.runs import Span, document_spans, last_seen
from model.strategies import NO_PART

QUERY_BLOCKS = 4
"""parts in which `blockwise_attention` takes queries; more compute less in vain but compile for longer"""
SHORTEST_IN_BLOCKS = 256
"""tokens of a row from which on it is faster to train with"""
MOST_PAIRS = 2**26
"""queries times keys, of all rows and heads, up to which it is used; of every layer, 5/8 are kept"""
SHORTEST_SHARED_ROW = 256
"""tokens of a row from which on its documents attend one by one; below, one call for all costs less"""
SHORTEST_SPAN = 32
"""mean tokens of such a document, for the same reason"""


@dataclass(frozen=True)
class Backend:
    """A way to attend and what it can do."""

    attend: Attend
    masks: tuple[MaskKind, ...] = ("none", "causal", "dense")
    gradients: tuple[bool, ...] = (True, False)
    """whether it is for tokens that are trained on, for others, or both"""
    devices: tuple[str, ...] | None = None
    """types of devices that it is for; None = all"""
    fits: Callable[[Tensor], bool] = lambda q: True
    """says of queries (B, H, T, D) whether it can take them and is worth it"""
    bends: bool = True
    """whether it can bend scores to stay below a bound"""
    cut: Callable[[Layout, Pattern], Visibility] | None = None
    """how whole rows are cut for it, where it is taken by name; None = as is best"""

    def serves(self, q: Tensor, seen: Visibility, scoring: Scoring) -> bool:
        """Say whether it can attend here, and is worth it."""
        return (
            (self.bends or scoring.softcap is None)
            and torch.is_grad_enabled() in self.gradients
            and (self.devices is None or q.device.type in self.devices)
            and seen.kind in self.masks
            and self.fits(q)
        )


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
    """Attend through the first backend of the table that serves here."""
    return choose(q, seen, scoring).attend(q, k, v, seen, scoring)


def choose(q: Tensor, seen: Visibility, scoring: Scoring) -> Backend:
    """Return the first backend of the table that serves here; `eager` always does."""
    for backend in BACKENDS.values():
        if backend.serves(q, seen, scoring):
            return backend
    raise AssertionError("no backend serves")


def named(name: str) -> Attend:
    """Return a way to attend by its name: where it serves through it, else as is best, as `auto` always does.

    Raises `UserError` for a name that is not in the table.
    """
    if name != "auto" and name not in BACKENDS:
        raise UserError(f"unknown attention backend {name!r}; choose one of auto, {', '.join(BACKENDS)}")

    def prefer(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
        wanted = BACKENDS[name]
        backend = wanted if wanted.serves(q, seen, scoring) else choose(q, seen, scoring)
        return backend.attend(q, k, v, seen, scoring)

    if name == "auto":
        return attend
    prefer.cut_rows = BACKENDS[name].cut or cut_rows
    return prefer


def fused_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
    """Attend through torch's kernels, which keep no scores (Dao et al. 2022, arXiv 2205.14135)."""
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=seen.mask, is_causal=seen.is_causal, scale=scoring.scale, enable_gqa=True
    )


def one_query_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
    """Attend from one query per row: the query heads of a key head form one small matrix product.

    The compiler makes one loop of a product and its sum, where a call would cost more than it computes.
    """
    B, H, _, D = q.shape
    wide = torch.promote_types(torch.float32, q.dtype)
    grouped = q.view(B, k.shape[1], H // k.shape[1], D)  # (B, Hkv, G, D)
    if torch.compiler.is_compiling():
        scores = (grouped[:, :, :, None].to(wide) * k[:, :, None].to(wide)).sum(-1) * scoring.scale
    else:
        scores = (grouped @ k.transpose(-1, -2)) * scoring.scale  # (B, Hkv, G, Tk)
    scores = soft_cap(scores, scoring.softcap)
    if seen.mask is not None:
        scores = scores.masked_fill(~seen.mask, float("-inf"))
    probabilities = scores.softmax(dim=-1, dtype=wide)
    if torch.compiler.is_compiling():
        y = (probabilities[..., None] * v[:, :, None].to(wide)).sum(-2).to(v.dtype)
    else:
        y = probabilities.to(v.dtype) @ v  # (B, Hkv, G, D)
    return y.view(B, H, 1, D)


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
    """Attend under the triangle, some queries at a time, each block to the keys up to its own end.

        1 . | . .     two queries and two keys,
        1 1 | . .     then two queries and four keys;
        ----+         what is right above is never computed
        1 1   1 .
        1 1   1 1

    The query heads of a key head share a product, as CPUs are best at large ones. Probabilities are kept for
    the gradients, which fused kernels compute again: memory grows with the square of the length. In bfloat16,
    scores are rounded to it.
    """
    grouped = (q * scoring.scale).unflatten(1, (k.shape[1], -1))  # (B, Hkv, G, T, D)
    bounds = [q.shape[2] * n // QUERY_BLOCKS for n in range(QUERY_BLOCKS + 1)]
    blocks = [
        _attend_block(grouped[..., begin:end, :], k[:, :, :end], v[:, :, :end], scoring.softcap)
        for begin, end in pairwise(bounds)
    ]
    return torch.cat(blocks, dim=3).flatten(1, 2)  # (B, H, T, D)


def _attend_block(q: Tensor, k: Tensor, v: Tensor, softcap: float | None) -> Tensor:
    """Return outputs (B, Hkv, G, n, D) of queries of that shape, the last n of the keys (B, Hkv, Tk, D)."""
    heads, wide = q.shape[2:4], torch.promote_types(torch.float32, q.dtype)
    future = torch.full((q.shape[3], k.shape[2]), float("-inf"), dtype=wide, device=q.device)
    scores = soft_cap((q.flatten(2, 3) @ k.mT).unflatten(2, heads), softcap)  # (B, Hkv, G, n, Tk)
    probabilities = (scores + future.triu(k.shape[2] - q.shape[3] + 1)).softmax(dim=-1)
    return (probabilities.to(v.dtype).flatten(2, 3) @ v).unflatten(2, heads)


def _fits_blocks(q: Tensor) -> bool:
    B, H, T, _ = q.shape
    return SHORTEST_IN_BLOCKS <= T and B * H * T * T <= MOST_PAIRS


class DocumentRows:
    """Whole rows whose documents attend each by itself; on CPUs kernels compute what a mask hides."""

    kind = "documents"

    def __init__(self, layout: Layout, spans: list[Span]) -> None:
        self._layout, self._lengths = layout, [span.end - span.begin for span in spans]
        last = last_seen(layout)
        self._seen = [None if span.is_padding else _seen_in(span, layout, last) for span in spans]

    def dense(self, ahead: int = 0) -> Tensor:
        """Return the same as one mask (B, 1, T, ahead + T), where so many keys that all see come first."""
        return F.pad(visible_mask(self._layout)[:, None], (ahead, 0), value=True)

    def behind(self, count: int) -> Visibility:
        """Return what queries see where `count` keys that all of them see come first."""
        return Visibility(self.dense(count))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """Return outputs (B, H, T, D), zero for padding."""
        B, H, T, D = q.shape
        spans = zip(*(x.transpose(1, 2).flatten(0, 1).split(self._lengths) for x in (q, k, v)), strict=True)
        outputs = [
            torch.zeros_like(span[0]) if seen is None else _attend_span(*span, seen, scoring)
            for span, seen in zip(spans, self._seen, strict=True)
        ]
        return torch.cat(outputs).view(B, T, H, D).transpose(1, 2)


def _seen_in(span: Span, layout: Layout, last: np.ndarray) -> Visibility:
    """Return what tokens of a document see of each other; `last` (B, T) is the last place that each sees."""
    own, places = np.s_[span.row, span.begin : span.end], np.arange(span.begin, span.end, dtype=last.dtype)
    if layout.part_ids is not None and (layout.part_ids[own] != NO_PART).any():
        return Visibility(visible_mask(Layout(*(ids[own][None] for ids in layout)))[None])
    if (last[own] == places).all():
        return Visibility(is_causal=True)
    return Visibility(torch.from_numpy(places <= last[own][:, None])[None, None])


def _attend_span(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
    """Attend within a span, all (n, heads, D)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, n, D)
    return attend(q, k, v, seen, scoring)[0].transpose(0, 1)


def cut_rows(layout: Layout, pattern: Pattern) -> Visibility | None:
    """Return what is seen in whole rows on CPUs, in pieces or by places; None if pairs must be compared."""
    if layout.block_ids.device.type not in BACKENDS["bands"].devices:
        return None
    return (by_documents(layout) if pattern == ALL else in_bands(layout, pattern)) or in_one(layout, pattern)


def by_documents(layout: Layout) -> Visibility | None:
    """Return rows whose documents attend one by one, where that is exact (none is torn) and pays."""
    if layout.block_ids.shape[1] < SHORTEST_SHARED_ROW:
        return None
    spans = document_spans(layout)
    pays = spans is not None and len(spans) * SHORTEST_SPAN <= layout.document_ids.numel()
    return Visibility(rows=DocumentRows(layout, spans)) if pays else None


def document_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
    """Attend document by document."""
    return seen.rows.attend(q, k, v, scoring)


def band_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
    """Attend in bands, which are short rows of one batch."""
    bands = seen.rows
    y = attend(bands.queries(q), bands.keys(k), bands.keys(v), Visibility(bands.mask), scoring)
    return bands.rows(y, q.shape[2])


class ClassicAttention(nn.Module):
    """Attend as books teach it: -inf where the slice [:T, :T] of a registered triangle marks the future."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.register_buffer("future", torch.ones(side, side, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
        """Return outputs (B, H, T, D)."""
        length, heads = q.shape[2], q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(heads, dim=1) for x in (k, v))  # (B, H, T, D)
        scores = soft_cap((q @ k.mT) * scoring.scale, scoring.softcap)
        scores = scores.masked_fill(self.future[:length, :length].to(q.device), -torch.inf)
        return scores.softmax(dim=-1, dtype=torch.promote_types(torch.float32, q.dtype)).to(v.dtype) @ v


def keep_documents_uncompiled() -> None:
    """Let compiled layers call `DocumentRows.attend` as it is written, as no two batches are alike.

    Not done by a decorator: that would import the compiler, which takes two seconds, into every program.
    """
    DocumentRows.attend = torch.compiler.disable(DocumentRows.attend)


BACKENDS = {
    "one_query": Backend(one_query_attention, gradients=(False,), fits=lambda q: q.shape[2] == 1),
    "documents": Backend(document_attention, ("documents",), devices=("cpu",)),
    "bands": Backend(band_attention, ("bands",), devices=("cpu",)),
    "blocks": Backend(blockwise_attention, ("causal",), (True,), ("cpu",), _fits_blocks),
    "fused": Backend(fused_attention, bends=False),
    "eager": Backend(eager_attention, get_args(MaskKind)),
    "flex": Backend(flex_attention, ("flex",), fits=has_flex, cut=flex_rows),
    "classic": Backend(ClassicAttention(1024), ("causal",), fits=lambda q: q.shape[2] <= 1024),
}
"""Every way to attend, in the order in which they are asked; what stands after `eager` has to be named."""
