"""Prompts as a model is served with: text or a conversation, under the blocks that training gave them."""

from collections.abc import Sequence

import torch

from dataset.conversation import Rendered
from dataset.tokenizer import Tokenizer
from model.generator import Prompt
from model.masks import blocks_before_answer


def raw_prompt(text: str, tokenizer: Tokenizer, prompt_mask: str) -> Prompt:
    """Return the prompt that a pretrained model continues: one document, all of it one message."""
    return prompt_of_ids((*tokenizer.text_begin, *tokenizer.encode(text, begins=True)), prompt_mask)


def prompt_of_ids(ids: Sequence[int], prompt_mask: str) -> Prompt:
    """Return the same of a text that is given as its tokens."""
    no_marks = torch.zeros(len(ids), dtype=torch.bool)
    return Prompt(tuple(ids), tuple(blocks_before_answer(prompt_mask, no_marks, no_marks).tolist()))


def prompt_of(rendered: Rendered, prompt_mask: str) -> Prompt:
    """Return a conversation that ends before an answer as a prompt, with the blocks that training gave it."""
    answers, starts = torch.from_numpy(rendered.targets), torch.from_numpy(rendered.starts)
    blocks = blocks_before_answer(prompt_mask, answers, starts)
    return Prompt(tuple(rendered.ids.tolist()), tuple(blocks.tolist()))
