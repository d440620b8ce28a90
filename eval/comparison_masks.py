"""What masks look like over one conversation, and where models look under them."""

import torch
from torch import Tensor

from dataset.conversation import Message, Rendered, render
from dataset.tokenizer import Tokenizer
from eval.attention_maps import attention_maps
from eval.comparison import Run
from eval.plots import MaskPanel, model_panels
from eval.questions import Question
from eval.served_model import open_model
from model.config import DeviceName
from model.errors import UserError
from model.masks import Layout, causal_layout, prompt_blocks


def answered(question: Question, tokenizer: Tokenizer) -> Rendered:
    """Render a question with its first accepted answer."""
    return render([*question.messages, Message("assistant", question.answers[0])], tokenizer)


def look_at(
    run: Run, rendered: Rendered, device: DeviceName = "auto"
) -> tuple[list[MaskPanel], list[Tensor]]:
    """Return a conversation's masks in a run, and where the model looks: (1, H, T, T) for each layer.

    Raises `UserError` for a model that is gone, or whose context is too short.
    """
    served = open_model(run.model, device=device)
    if len(rendered) > (takes := served.model.config.max_position_embeddings):
        raise UserError(f"the shortest question has {len(rendered)} tokens, but {run.model} takes {takes}")
    answers, starts = torch.from_numpy(rendered.targets), torch.from_numpy(rendered.starts)
    block_ids = prompt_blocks(run.evaluation.prompt_mask, answers, starts)
    ids = torch.from_numpy(rendered.ids.astype("int64"))[None]
    layout = causal_layout(*ids.shape)._replace(block_ids=block_ids[None])
    on_device = Layout(*(each.to(served.device) for each in layout))
    maps = attention_maps(served.model, ids.to(served.device), on_device)
    return model_panels(run.label, block_ids, served.model.config), maps
