"""The pictures of the page of masks, whose fences name what they show; its words are written by hand."""

import re

import torch
from torch import Tensor

from eval.plots import draw_mask, mask_panel, model_panels
from model.config import from_preset
from model.masks import Layout, prompt_blocks, visible_mask
from model.pattern import Pattern

PICTURE = re.compile(r"^```mask (.*)\n(?:.*\n)*?```$", re.MULTILINE)
ROLES = "SsUuAaUuAa"
"""a conversation of system, user, answer, user, answer, two tokens each; a capital begins a message"""


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
        mask = model_panels("", _blocks("prefix"), config)[0].mask
    else:
        mask = mask_panel("", _blocks(name), pattern).mask
    return draw_mask(mask, list(ROLES))


def _blocks(strategy: str) -> Tensor:
    answers = torch.tensor([role in "Aa" for role in ROLES])
    return prompt_blocks(strategy, answers, torch.tensor([role in "SU" for role in ROLES]))


def _packed() -> Tensor:
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1, -1]])
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0]])
    blocks = torch.tensor([[0, 0, -1, -1, 1, 1, -1, -1, -1]])
    return visible_mask(Layout(documents, places, blocks))[0]
