"""Grouped-query attention under a given mask, and the backends that compute it."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.layers import RMSNorm, rotate
from model.masks import Layout, Run, document_runs

SHORTEST_RUN = 32
"""mean tokens of a document from which `DocumentAttention` costs less than one call for all"""
QUERY_BLOCKS = 4
"""parts in which `blockwise_attention` takes queries; more compute less in vain but compile for longer"""
SHORTEST_IN_BLOCKS = 256
"""tokens of a row from which on it is faster to train with"""
MOST_PAIRS = 2**26
"""queries times keys, of all rows and heads, up to which it is used; of every layer, 5/8 are kept"""


class Visibility(NamedTuple):
    """What a backend is told of the mask; computed once per forward pass and window.

    Exactly one of three: a bool `mask`, the square triangle (`is_causal`), or neither (every key is visible).
    """

    mask: Tensor | None = None
    """bool (B, 1, Tq, Tk), True = may attend"""
    is_causal: bool = False
    """the lower triangle of a square, with no mask tensor"""
    documents: "DocumentAttention | None" = None
    """a way to attend that skips what `mask` forbids between documents, where there is one"""


Backend = Callable[[Tensor, Tensor, Tensor, Visibility], Tensor]
"""Maps queries (B, H, Tq, D), keys and values (B, Hkv, Tk, D) and a `Visibility` to outputs (B, H, Tq, D)."""
Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Stores keys and values (B, Hkv, T, D) of new tokens; returns those to attend to (B, Hkv, Tk, D)."""


def eager_probabilities(q: Tensor, k: Tensor, seen: Visibility) -> Tensor:
    """Return attention probabilities (B, H, Tq, Tk) in float32 or wider (Vaswani et al. 2017, equation 1)."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, Tk, D)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5  # (B, H, Tq, Tk)
    mask = (
        torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if seen.is_causal
        else seen.mask
    )
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.promote_types(torch.float32, q.dtype))


def eager_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility) -> Tensor:
    """Attend step by step, with every intermediate in reach: the form to read and to test against."""
    probabilities = eager_probabilities(q, k, seen).to(v.dtype)
    return probabilities @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility) -> Tensor:
    """Attend through torch's fused kernels, except where another way is faster.

    Single queries go through `one_query_attention`, packed documents one by one where that is known to
    pay, and causal rows with gradients on CPUs through `blockwise_attention`.
    """
    if q.shape[2] == 1 and not torch.is_grad_enabled():
        return one_query_attention(q, k, v, seen)
    if seen.documents is not None:
        return seen.documents.attend(q, k, v)
    if seen.is_causal and _trains_in_blocks(q):
        return blockwise_attention(q, k, v)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=seen.mask, is_causal=seen.is_causal, enable_gqa=True
    )


def one_query_attention(q: Tensor, k: Tensor, v: Tensor, seen: Visibility) -> Tensor:
    """Attend from one query per row: the query heads of a key head form one small matrix product.

    The compiler makes one loop of a product and its sum, where a call would cost more than it computes.
    """
    B, H, _, D = q.shape
    wide = torch.promote_types(torch.float32, q.dtype)
    grouped = q.view(B, k.shape[1], H // k.shape[1], D)  # (B, Hkv, G, D)
    if torch.compiler.is_compiling():
        scores = (grouped[:, :, :, None].to(wide) * k[:, :, None].to(wide)).sum(-1) * D**-0.5
    else:
        scores = (grouped @ k.transpose(-1, -2)) * D**-0.5  # (B, Hkv, G, Tk)
    if seen.mask is not None:
        scores = scores.masked_fill(~seen.mask, float("-inf"))
    probabilities = scores.softmax(dim=-1, dtype=wide)
    if torch.compiler.is_compiling():
        y = (probabilities[..., None] * v[:, :, None].to(wide)).sum(-2).to(v.dtype)
    else:
        y = probabilities.to(v.dtype) @ v  # (B, Hkv, G, D)
    return y.view(B, H, 1, D)


def _trains_in_blocks(q: Tensor) -> bool:
    B, H, T, _ = q.shape
    is_fitting = SHORTEST_IN_BLOCKS <= T and B * H * T * T <= MOST_PAIRS
    return is_fitting and q.device.type == "cpu" and torch.is_grad_enabled()


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
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
    grouped = (q * q.shape[-1] ** -0.5).unflatten(1, (k.shape[1], -1))  # (B, Hkv, G, T, D)
    bounds = [q.shape[2] * n // QUERY_BLOCKS for n in range(QUERY_BLOCKS + 1)]
    blocks = [
        _attend_block(grouped[..., begin:end, :], k[:, :, :end], v[:, :, :end])
        for begin, end in pairwise(bounds)
    ]
    return torch.cat(blocks, dim=3).flatten(1, 2)  # (B, H, T, D)


def _attend_block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return outputs (B, Hkv, G, n, D) of queries of that shape, the last n of the keys (B, Hkv, Tk, D)."""
    heads, wide = q.shape[2:4], torch.promote_types(torch.float32, q.dtype)
    future = torch.full((q.shape[3], k.shape[2]), float("-inf"), dtype=wide, device=q.device)
    scores = (q.flatten(2, 3) @ k.mT).unflatten(2, heads)  # (B, Hkv, G, n, Tk)
    probabilities = (scores + future.triu(k.shape[2] - q.shape[3] + 1)).softmax(dim=-1)
    return (probabilities.to(v.dtype).flatten(2, 3) @ v).unflatten(2, heads)


class DocumentAttention:
    """Attends inside each document of packed rows by itself; on CPUs the kernel computes what it masks."""

    def __init__(self, mask: Tensor, runs: list[Run]) -> None:
        """Take the mask (B, 1, T, T) and what stands in the rows."""
        self._lengths = [run.end - run.begin for run in runs]
        self._seen = [self._visibility(mask, run) for run in runs]

    @staticmethod
    def _visibility(mask: Tensor, run: Run) -> Visibility | None:
        """Return the square of a run; None for padding."""
        if run.is_padding or run.is_causal:
            return None if run.is_padding else Visibility(is_causal=True)
        inside = slice(run.begin, run.end)
        return Visibility(mask[run.row, None, :, inside, inside])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return outputs (B, H, T, D), zero for padding."""
        B, H, T, D = q.shape
        runs = zip(*(x.transpose(1, 2).flatten(0, 1).split(self._lengths) for x in (q, k, v)), strict=True)
        outputs = [
            torch.zeros_like(run[0]) if seen is None else _attend_run(*run, seen)
            for run, seen in zip(runs, self._seen, strict=True)
        ]
        return torch.cat(outputs).view(B, T, H, D).transpose(1, 2)


def keep_documents_uncompiled() -> None:
    """Let compiled layers call `DocumentAttention.attend` as it is written, as no two batches are alike.

    Not done by a decorator: that would import the compiler, which takes two seconds, into every program.
    """
    DocumentAttention.attend = torch.compiler.disable(DocumentAttention.attend)


def document_attention(mask: Tensor, layout: Layout) -> DocumentAttention | None:
    """Return the way to attend document by document; None for torn documents, or many short ones."""
    runs = document_runs(layout)
    pays = runs is not None and len(runs) * SHORTEST_RUN <= layout.document_ids.numel()
    return DocumentAttention(mask, runs) if pays else None


def _attend_run(q: Tensor, k: Tensor, v: Tensor, seen: Visibility) -> Tensor:
    """Attend within a run, all (n, heads, D)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, n, D)
    return sdpa_attention(q, k, v, seen)[0].transpose(0, 1)


BACKENDS: dict[str, Backend] = {"eager": eager_attention, "sdpa": sdpa_attention}


class Attention(nn.Module):
    """Project to heads, rotate, attend, project back (GQA: Ainslie et al. 2023, arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.backend: Backend = sdpa_attention

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], seen: Visibility, remember: Remember | None = None
    ) -> Tensor:
        """Map (B, T, hidden_size) to the same shape; `remember` adds keys and values of earlier tokens."""
        B, T, _ = x.shape
        q, k, v = (
            project(x).view(B, T, -1, self.head_dim) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = rotate(self.q_norm(q).transpose(1, 2), angles)  # (B, H, T, D)
        k = rotate(self.k_norm(k).transpose(1, 2), angles)  # (B, Hkv, T, D)
        v = v.transpose(1, 2)
        if remember is not None:
            k, v = remember(k, v)  # (B, Hkv, Tk, D)
        y = self.backend(q, k, v, seen)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))
