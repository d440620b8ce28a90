"""What the arms of an experiment look like inside: the mask over a short sample, and where a model looks."""

from pathlib import Path
from typing import Any

import torch

from dataset.tokenizer import Tokenizer
from eval.cells import Trial, folder_of
from eval.comparison import open_runs, shortest_question
from eval.comparison_masks import answered, look_at
from model.errors import UserError
from model.files import read_object

LOOKS = ("mask", "attention")


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
