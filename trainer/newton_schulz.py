"""Muon's iteration, which moves the singular values of matrices close to 1, in the form that computes least.

Its constant was measured on one CPU core, in float32, on matrices of models of 1M and 30M parameters.
"""

import torch
from torch import Tensor

# The quintic of Jordan et al. 2024 (kellerjordan.github.io/posts/muon): steep at 0, so that singular values
# come close to 1 in few iterations.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
WIDE = 2.5
"""columns for each row from which on it is faster to iterate products of rows"""


def orthogonalise(batch: Tensor, dtype: torch.dtype) -> Tensor:
    """Return matrices (n, r, c), r <= c, with their singular values moved close to 1 (Newton-Schulz).

    They are iterated in `dtype`. A narrow one would lose small singular values where these are squared.
    """
    x = batch.to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    is_wide = x.shape[2] >= WIDE * x.shape[1] and dtype.itemsize >= torch.float32.itemsize
    return (_iterate_products(x) if is_wide else _iterate(x)).to(batch.dtype)


def _iterate(x: Tensor) -> Tensor:
    """Multiply x by Q = aI + bG + cG^2 of the products G = x x^T of its rows, again and again."""
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # (n, r, r)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterate_products(x: Tensor) -> Tensor:
    """Do so without x until the end: as each Q commutes with its G, the next G is Q G Q."""
    gram = _symmetric(x, x.mT)  # (n, r, r)
    q = factor = _factor(gram)
    for _ in range(ITERATIONS - 1):
        gram = _symmetric(_symmetric(q, gram), q)
        q = _factor(gram)
        factor = _symmetric(q, factor)
    return factor @ x


def _factor(gram: Tensor) -> Tensor:
    """Return Q (n, r, r) of G."""
    a, b, c = QUINTIC
    q = _symmetric(gram, gram).mul_(c).add_(gram, alpha=b)
    q.diagonal(dim1=1, dim2=2).add_(a)
    return q


def _symmetric(x: Tensor, y: Tensor) -> Tensor:
    """Return products x y (n, r, r) that are symmetric but for rounding: a quarter is copied."""
    half = x.shape[1] // 2
    product = x.new_empty(*x.shape[:2], x.shape[1])
    product[:, :half] = x[:, :half] @ y
    product[:, half:, half:] = x[:, half:] @ y[..., half:]
    product[:, half:, :half] = product[:, :half, half:].mT
    return product
