"""What a model sees of a conversation and where it looks: of one model, of runs compared, of arms."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dataset.conversation import Message, render
from dataset.prompts import layout_of
from eval.cells import Trial, folder_of
from eval.comparison import Evaluated, open_runs, shortest_question
from eval.evaluation import load_predictions
from eval.plots import MaskPanel, model_panels
from eval.questions import Question
from eval.served_model import open_model
from model.attention import Scoring, Visibility, eager_attention, eager_probabilities
from model.config import WITH_ENCODER, DeviceName, ModelConfig
from model.encoder_decoder import sides
from model.errors import UserError
from model.masks import Layout, causal_layout
from model.transformer import LanguageModel
from model.typed_json import read_file

LOOKS = ("mask", "attention")
MASK = {"title": str, "labels": list[str], "rows": list[str]}
ATTENTION = {"layer": int, "labels": list[str], "weights": list[list[float]]}
ARM = {"name": str, "mask?": MASK, "attention": list[ATTENTION]}
FORMER = {"experiment": {"hash": str}, "arms": list[ARM]}
"""what is read of results that lie there"""


@torch.no_grad()
def attention_maps(model: LanguageModel, ids: Tensor, layout: Layout | None = None) -> list[Tensor]:
    """Return the attention probabilities (B, H, T, T) of every layer; the model stays as it is.

    Where there is an encoder, its layers come first, and those of the decoder show where they look in source
    and target.
    """
    maps: list[Tensor] = []

    def recording(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scoring: Scoring) -> Tensor:
        maps.append(eager_probabilities(q, k, seen, scoring))
        return eager_attention(q, k, v, seen, scoring)

    former = model.model.layers[0].self_attn.attend
    model.set_attention(recording)
    try:
        model(ids, layout)
    finally:
        model.set_attention(former)
    if model.config.architecture not in WITH_ENCODER:
        return [each[..., -ids.shape[1] :] for each in maps]  # without memory tokens, which come first
    return _over_rows(maps, model.config, layout or causal_layout(*ids.shape, device=ids.device))


def _over_rows(maps: list[Tensor], config: ModelConfig, layout: Layout) -> list[Tensor]:
    """Return a map over whole rows for each layer, from those of its calls, each over sides alone."""
    length, count = layout.block_ids.shape[1], config.num_encoder_layers
    source, target = (one_hot(s.places, length) * s.real[..., None] for s in sides(layout))  # (B, n, T)
    calls = [(target, torch.cat((source, target), dim=1))]
    if config.architecture == "encoder_decoder":
        calls = [(target, target), (target, source)]
    whole = [
        torch.einsum("bqt,bhqk,bks->bhts", q.to(each.dtype), each, k.to(each.dtype))
        for each, (q, k) in zip(
            maps, [(source, source)] * count + calls * config.num_hidden_layers, strict=True
        )
    ]
    decoder = whole[count:]
    return whole[:count] + [sum(decoder[n : n + len(calls)]) for n in range(0, len(decoder), len(calls))]


class Look(NamedTuple):
    """A conversation in the eyes of a model."""

    tokens: list[str]
    panels: list[MaskPanel]
    maps: list[Tensor]
    """attention probabilities (1, H, T, T) of each layer"""


def look_at(run: Evaluated, question: Question, device: DeviceName = "auto") -> Look:
    """Return what the model of a run sees of a question and its first accepted answer.

    Raises `UserError` for a model that is gone, or whose context is too short.
    """
    served = open_model(run.model, device=device)
    rendered = render([*question.messages, Message("assistant", question.answers[0])], served.tokenizer)
    if len(rendered) > (takes := served.model.config.max_position_embeddings):
        raise UserError(f"the shortest question has {len(rendered)} tokens, but {run.model} takes {takes}")
    layout = layout_of(rendered, run.evaluation.prompt_mask)
    ids = torch.from_numpy(rendered.ids.astype("int64"))[None]
    on_device = Layout(*(each.to(served.device) for each in layout if each is not None))
    maps = attention_maps(served.model, ids.to(served.device), on_device)
    tokens = [served.tokenizer.token_text(token_id) for token_id in rendered.ids.tolist()]
    return Look(tokens, model_panels(run.label, layout, served.model.config), maps)


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
    there = read_file(FORMER, former, "take it away, and the command writes it again")
    if there["experiment"]["hash"] != wanted:
        return {}
    return {arm["name"]: {key: arm.get(key) for key in LOOKS} for arm in there["arms"]}


def _look(trial: Trial, work: Path) -> dict[str, Any] | None:
    """Return the mask over the shortest question of a trial and its attention, mean over heads."""
    folder = folder_of(trial.measured[-1].address, work)
    if not (folder / "predictions.jsonl").exists():
        return None
    try:
        [run] = open_runs([folder])
        question = shortest_question(load_predictions(folder))  # of all, though none was answered
        labels, panels, maps = look_at(run, question, "cpu")
    except UserError:
        return None  # its model is gone, or there are no questions
    rows = ["".join("01"[int(cell)] for cell in row) for row in panels[0].mask.tolist()]
    means = [torch.round(heads[0].mean(0), decimals=3).tolist() for heads in maps]
    return {
        "mask": {"title": panels[0].title, "labels": labels, "rows": rows},
        "attention": [{"layer": n, "labels": labels, "weights": each} for n, each in enumerate(means)],
    }
