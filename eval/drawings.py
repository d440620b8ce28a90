"""Rows of tokens and their masks as text for a terminal."""

from collections.abc import Sequence

import torch
from rich.cells import cell_len
from torch import Tensor

from eval.tables import padded
from model.masks import draw_text

GAP = " " * 3


def draw_mask(mask: Tensor, labels: Sequence[str]) -> str:
    """Draw a mask (T, T), a line per token behind its label; wide characters keep the columns straight."""
    width = max(map(cell_len, labels))
    lines = draw_text(mask).split("\n")
    names = (padded(label, width, is_right=True) for label in labels)
    return "\n".join(f"{name}  {line}" for name, line in zip(names, lines, strict=True))


def draw_masks(masks: dict[str, Tensor], labels: Sequence[str], width: int) -> str:
    """Draw masks (T, T) under their titles: close together and side by side if `width` characters allow."""
    margin, side = max(map(cell_len, labels)) + 2, max(len(labels), *map(cell_len, masks))
    if margin + len(masks) * (side + len(GAP)) > width:
        return "\n\n".join(f"{title}\n{draw_mask(mask, labels)}" for title, mask in masks.items())
    drawn = (draw_text(mask).replace(" ", "").split("\n") for mask in masks.values())
    columns = [[line.ljust(side) for line in lines] for lines in drawn]
    titles = " " * margin + GAP.join(title.ljust(side) for title in masks)
    names = (padded(label, margin - 2, is_right=True) + "  " for label in labels)
    rows = (name + GAP.join(lines) for name, *lines in zip(names, *columns, strict=True))
    return "\n".join([titles, *rows])


def describe_blocks(block_ids: Tensor) -> str:
    """Return the runs of a row's blocks (T,) in words: `0-13 in block 0, 14-20 causal`."""
    edges = [0, *(torch.nonzero(block_ids[1:] != block_ids[:-1]).flatten() + 1).tolist(), len(block_ids)]
    runs = [(first, end - 1) for first, end in zip(edges, edges[1:], strict=False) if first < end]
    names = ("causal" if block_ids[first] < 0 else f"in block {int(block_ids[first])}" for first, _ in runs)
    return ", ".join(f"{first}-{last} {name}" for (first, last), name in zip(runs, names, strict=True))
