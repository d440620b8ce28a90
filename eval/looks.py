"""What a model sees of a conversation and where it looks: of one model, of runs compared, of arms."""

from pathlib import Path
from typing import Any

import torch

from dataset.conversation import Message, render
from eval.cells import Trial, folder_of
from eval.comparison import Evaluated, open_runs, shortest_question
from eval.evaluation import load_predictions
from eval.look import Look, look
from eval.questions import Question
from eval.served_model import open_model
from model.config import DeviceName
from model.errors import UserError
from model.typed_json import read_file

LOOKS = ("mask", "attention")
MASK = {"title": str, "labels": list[str], "rows": list[str]}
ATTENTION = {"layer": int, "labels": list[str], "weights": list[list[float]]}
ARM = {"name": str, "mask?": MASK, "attention": list[ATTENTION]}
FORMER = {"experiment": {"hash": str}, "arms": list[ARM]}
"""what is read of results that lie there"""


def look_at(run: Evaluated, question: Question, device: DeviceName = "auto") -> Look:
    """Return what the model of a run sees of a question and its first accepted answer.

    Raises `UserError` for a model that is gone, or whose context is too short.
    """
    served = open_model(run.model, device=device)
    rendered = render([*question.messages, Message("assistant", question.answers[0])], served.tokenizer)
    if len(rendered) > (takes := served.model.config.max_position_embeddings):
        raise UserError(f"the shortest question has {len(rendered)} tokens, but {run.model} takes {takes}")
    return look(served, rendered, run.evaluation.prompt_mask, run.label)


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
