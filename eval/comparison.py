"""Evaluated runs beside each other: where they differ, and what their masks look like."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.conversation import Message, Rendered, render
from dataset.tokenizer import Tokenizer
from eval.answers import Cell, Prediction
from eval.evaluation import Evaluation, load, load_predictions
from eval.plots import MaskPanel, model_panels
from eval.questions import Question
from eval.served_model import open_model, tell_apart
from model.config import DeviceName
from model.errors import UserError
from model.json_file import read_object
from model.masks import Layout, causal_layout, prompt_blocks


@dataclass(frozen=True)
class Run:
    """A training's directory with its evaluation."""

    path: Path
    label: str
    """tells the run from the others: its prompt mask, or its folder's name where masks are the same"""
    evaluation: Evaluation
    predictions: tuple[Prediction, ...]
    summary: dict[str, Any]
    """the training's summary.json; empty where there is none"""

    def cells(self) -> list[Cell]:
        """Return the cells of all languages together, the same for every run over the same questions."""
        return [cell for cell in self.evaluation.cells if not cell.language]


def open_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read the runs; `UserError` where one is not evaluated, or was asked other questions than the first."""
    folders = [Path(path) for path in paths]
    evaluations = [load(folder / "evaluation") for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("--runs: expected different runs, got one of them twice")
    labels = tell_apart([evaluation.prompt_mask for evaluation in evaluations], folders)
    runs = [
        Run(folder, label, evaluation, tuple(load_predictions(folder / "evaluation")), _read_summary(folder))
        for folder, label, evaluation in zip(folders, labels, evaluations, strict=True)
    ]
    if not runs[0].predictions:
        raise UserError(f"{runs[0].path} was evaluated without questions; give scripts.evaluate --data")
    for run in runs[1:]:
        if [p.question for p in run.predictions] != [p.question for p in runs[0].predictions]:
            raise UserError(
                f"{run.path} and {runs[0].path} were asked different questions; evaluate them alike"
            )
    return runs


def _read_summary(folder: Path) -> dict[str, Any]:
    file = folder / "summary.json"
    return (
        read_object(file, "take it away: the comparison only loses the training time")
        if file.is_file()
        else {}
    )


def telling_questions(runs: Sequence[Run], count: int) -> list[int]:
    """Return places in `predictions`: for each split in turn first where runs differ, then any others."""
    places = range(len(runs[0].predictions))
    by_split: dict[str, list[int]] = {}
    for n in sorted(places, key=lambda n: len({run.predictions[n].is_correct for run in runs}) == 1):
        by_split.setdefault(runs[0].predictions[n].question.split, []).append(n)
    rounds = range(max(map(len, by_split.values()), default=0))
    return [split[i] for i in rounds for split in by_split.values() if i < len(split)][:count]


def shortest_question(predictions: Sequence[Prediction]) -> Question:
    """Return the question with the fewest characters, its answer included; an ASCII one if there is one."""

    def size(question: Question) -> tuple[bool, int]:
        text = "".join(m.content for m in question.messages) + question.answers[0]
        return not text.isascii(), len(text)

    return min((prediction.question for prediction in predictions), key=size)


def answered(question: Question, tokenizer: Tokenizer) -> Rendered:
    """Render a question with its first accepted answer."""
    return render([*question.messages, Message("assistant", question.answers[0])], tokenizer)


def look_at(
    run: Run, rendered: Rendered, device: DeviceName = "auto"
) -> tuple[list[MaskPanel], list[Tensor]]:
    """Return a conversation's masks in a run, and where the model looks: (1, H, T, T) for each layer."""
    served = open_model(run.path, device=device)
    answers, starts = torch.from_numpy(rendered.targets), torch.from_numpy(rendered.starts)
    block_ids = prompt_blocks(run.evaluation.prompt_mask, answers, starts)
    ids = torch.from_numpy(rendered.ids.astype("int64"))[None]
    layout = causal_layout(*ids.shape)._replace(block_ids=block_ids[None])
    on_device = Layout(*(each.to(served.device) for each in layout))
    maps = served.model.attention_maps(ids.to(served.device), on_device)
    return model_panels(run.label, block_ids, served.model.config), maps
