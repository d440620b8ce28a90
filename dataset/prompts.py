"""Prompts as a model is served with: text or a conversation, under the blocks that training gave them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dataset.conversation import Rendered
from dataset.tokenizer import Tokenizer
from model.layouts import blocks_before_answer, conversation_layout, parts_of, positions_of
from model.masks import Layout
from model.prompt import Prompt


def raw_prompt(text: str, tokenizer: Tokenizer, prompt_mask: str) -> Prompt:
    """Return the prompt that a pretrained model continues: one document, all of it one message."""
    return prompt_of_ids((*tokenizer.text_begin, *tokenizer.encode(text, begins=True)), prompt_mask)


def prompt_of_ids(ids: Sequence[int], prompt_mask: str) -> Prompt:
    """Return the same of a text that is given as its tokens."""
    no_marks = torch.zeros(len(ids), dtype=torch.bool)
    return prompt_under(prompt_mask, ids, no_marks, no_marks)


def prompt_of(rendered: Rendered, prompt_mask: str) -> Prompt:
    """Return a conversation that ends before an answer as a prompt, under the mask that training gave it."""
    answers, starts = torch.from_numpy(rendered.targets), torch.from_numpy(rendered.starts)
    return prompt_under(prompt_mask, rendered.ids.tolist(), answers, starts, rendered.passages)


def prompt_under(
    prompt_mask: str, ids: Sequence[int], answers: Tensor, starts: Tensor, passages: np.ndarray | None = None
) -> Prompt:
    """Return the prompt whose answer is still to come, under the blocks and parts that training gave it.

    Tokens (n,) are marked as in `prompt_blocks` and `parts_of`.
    """
    blocks = blocks_before_answer(prompt_mask, answers, starts)
    parts = None if passages is None else parts_of(prompt_mask, passages)
    positions = positions_of(parts, len(ids)).tolist()
    places = () if parts is None else tuple(zip(positions, parts.tolist(), strict=True))
    return Prompt(tuple(ids), tuple(blocks.tolist()), places)


def layout_of(rendered: Rendered, prompt_mask: str) -> Layout:
    """Return the layout (1, n) of a conversation under a mask."""
    answers, starts = torch.from_numpy(rendered.targets), torch.from_numpy(rendered.starts)
    return conversation_layout(prompt_mask, answers, starts, rendered.passages)
