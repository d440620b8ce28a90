"""The pictures of the page of masks, whose fences name what they show; its words are written by hand."""

import re

import numpy as np
import torch
from torch import Tensor

from eval.plots import draw_mask, mask_panel, model_panels
from model.config import from_preset
from model.layouts import conversation_layout
from model.masks import Layout, visible_mask
from model.pattern import Pattern
from model.strategies import strategy_named

PICTURE = re.compile(r"^```mask (.*)\n(?:.*\n)*?```$", re.MULTILINE)
ROLES = "SsUuAaUuAa"
"""a conversation of system, user, answer, user, answer, two tokens each; a capital begins a message"""
OPTIONS = "UuPppPpuAa"
"""a question with two passages, and its answer; a capital P begins a passage"""


def redrawn(page: str) -> str:
    """Return a page with every picture drawn anew, as a fence that opens by ```mask prefix window=3 asks for.

    Words after the name of a strategy are fields of a `Pattern`; `packed` and `encoder_decoder` stand alone.
    """
    return PICTURE.sub(lambda found: f"```mask {found[1]}\n{drawing(*found[1].split())}\n```", page)


def drawing(name: str, *bounds: str) -> str:
    """Return the picture of a mask, a letter for each token before its row."""
    if name == "packed":
        return draw_mask(_packed(), list("aaaabbb.."))
    pattern = Pattern(**{field: int(value) for field, _, value in (bound.partition("=") for bound in bounds)})
    if name == "encoder_decoder":
        config = from_preset("tiny", vocab_size=1, architecture=name)
        return draw_mask(model_panels("", _layout("prefix", ROLES), config)[0].mask, list(ROLES))
    roles = ROLES if strategy_named(name).passages == "open" else OPTIONS
    return draw_mask(mask_panel("", _layout(name, roles), pattern).mask, list(roles))


def _layout(strategy: str, roles: str) -> Layout:
    answers, starts = (torch.tensor([role in letters for role in roles]) for letters in ("Aa", "SU"))
    numbers = np.cumsum([role == "P" for role in roles]) - 1
    passages = np.where([role in "Pp" for role in roles], numbers, -1)
    return conversation_layout(strategy, answers, starts, passages)


def _packed() -> Tensor:
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1, -1]])
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0]])
    blocks = torch.tensor([[0, 0, -1, -1, 1, 1, -1, -1, -1]])
    return visible_mask(Layout(documents, places, blocks))[0]
