"""What a model sees of a conversation and where it looks: of one model, of runs compared, of arms."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.conversation import Message, Rendered, render
from dataset.tokenizer import Tokenizer
from eval.cells import Trial, folder_of
from eval.comparison import Run, open_runs, shortest_question
from eval.plots import MaskPanel, model_panels
from eval.questions import Question
from eval.served_model import open_model
from model.attention import Visibility, eager_attention, eager_probabilities
from model.config import DeviceName
from model.errors import UserError
from model.files import read_object
from model.masks import Layout, causal_layout, prompt_blocks
from model.transformer import LanguageModel

LOOKS = ("mask", "attention")


@torch.no_grad()
def attention_maps(model: LanguageModel, ids: Tensor, layout: Layout | None = None) -> list[Tensor]:
    """Return the attention probabilities (B, H, T, T) of every layer; the model stays as it is."""
    maps: list[Tensor] = []

    def recording(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scale: float) -> Tensor:
        maps.append(eager_probabilities(q, k, seen, scale))
        return eager_attention(q, k, v, seen, scale)

    former = model.model.layers[0].self_attn.attend
    model.set_attention(recording)
    try:
        model(ids, layout)
    finally:
        model.set_attention(former)
    return maps


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


def add_looks(results: dict[str, Any], trials: list[Trial], work: Path, former: Path) -> None:
    """Put masks and attention maps of the first seed's models into results, or those of a `former` file.

    Where neither the models nor results of the same experiment are there, nothing is drawn.
    """
    first = {trial.arm: trial for trial in reversed(trials)}
    kept = _kept(former, results["experiment"]["hash"])
    for arm in results["arms"]:
        arm.update(_look(first[arm["name"]], work) or kept.get(arm["name"], {}))


def _kept(former: Path, wanted: str) -> dict[str, dict[str, Any]]:
    if not former.exists():
        return {}
    there = read_object(former, "take it away, and the command writes it again")
    if there.get("experiment", {}).get("hash") != wanted:
        return {}
    return {arm["name"]: {key: arm[key] for key in LOOKS} for arm in there["arms"]}


def _look(trial: Trial, work: Path) -> dict[str, Any] | None:
    """Return the mask over the shortest question of a trial and its attention, mean over heads."""
    folder = folder_of(trial.measured[-1].address, work)
    if not (folder / "predictions.jsonl").exists():
        return None
    try:
        [run] = open_runs([folder])
        tokenizer = Tokenizer.load(run.model)
        rendered = answered(shortest_question(run.predictions), tokenizer)
        panels, maps = look_at(run, rendered, "cpu")
    except UserError:
        return None  # its model is gone, or there are no questions
    labels = [tokenizer.token_text(token_id) for token_id in rendered.ids.tolist()]
    rows = ["".join("01"[int(cell)] for cell in row) for row in panels[0].mask.tolist()]
    means = [torch.round(heads[0].mean(0), decimals=3).tolist() for heads in maps]
    return {
        "mask": {"title": panels[0].title, "labels": labels, "rows": rows},
        "attention": [{"layer": n, "labels": labels, "weights": each} for n, each in enumerate(means)],
    }
