"""`losses.png`: the losses of several trainings in one picture, by optimizer step and by tokens."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset.printing import printable
from eval.report_pictures import COLOURS
from trainer.loss_picture import (
    LEARNING_RATE,
    LOSS,
    TRAINING,
    Points,
    draw_curve,
    finish,
    read_curves,
    save_picture,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = dict[str, dict[str, Points]]
"""losses of runs: by what they are of, then by the run's name"""
Metrics = dict[str, list[dict[str, Any]]]
"""what `metrics.jsonl` holds, by the run's name"""
HUES, STYLES = COLOURS[1:], ("-", "--", "-.", ":")
"""of lines: neighbours differ in both, so that they are told apart without colours, too"""


def save_losses(path: Path, metrics: Metrics) -> None:
    """Draw the losses of runs into a PNG file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(draw_losses(metrics), path)


def draw_losses(metrics: Metrics) -> "Figure":
    """Draw the losses of runs: a panel for the training and for each validation, in it a line per run.

    A second row has them by tokens, where the same steps of two runs did not read as many.
    """
    from matplotlib.figure import Figure

    rows = {"optimizer step": by_step(metrics)}
    if differ_in_tokens(metrics):
        rows["tokens"] = by_tokens(rows["optimizer step"], metrics)
    shape = len(rows), len(rows["optimizer step"])
    figure = Figure(figsize=(4.5 * shape[1] + 1, 3.8 * shape[0]), layout="constrained")
    panels = [(unit, name, curves) for unit, row in rows.items() for name, curves in row.items()]
    numbers = {run: number for number, run in enumerate(metrics)}
    for (unit, name, curves), axes in zip(panels, figure.subplots(*shape, squeeze=False).flat, strict=True):
        axes.set(xlabel=unit, ylabel=LOSS)
        axes.set_title(printable(name), parse_math=False)
        for run, points in curves.items():
            draw_curve(axes, name, points, _label(run, name, points), _look(numbers[run]))
        finish(axes, curves.values())
    return figure


def by_step(metrics: Metrics) -> Curves:
    """Return the points (step, loss) of every loss that a run has."""
    found: Curves = {}
    for run, records in metrics.items():
        for name, points in read_curves(records).items():
            if name != LEARNING_RATE:
                found.setdefault(name, {})[run] = points
    return found


def by_tokens(curves: Curves, metrics: Metrics) -> Curves:
    """Return the points (tokens, loss); a validation between two logged steps lies between their tokens."""
    read = {run: _tokens(records) for run, records in metrics.items()}

    def moved(run: str, points: Points) -> Points:
        steps, losses = zip(*points, strict=True)
        tokens = np.interp(steps, [0, *read[run]], [0, *read[run].values()])
        return [*zip(tokens.tolist(), losses, strict=True)]

    return {name: {run: moved(run, points) for run, points in of.items()} for name, of in curves.items()}


def differ_in_tokens(metrics: Metrics) -> bool:
    """Say whether all runs tell their tokens, and some read another number of them in the same steps."""
    first, *others = map(_tokens, metrics.values())
    steps = set(first).intersection(*others)
    differ = not steps or any(each[step] != first[step] for each in others for step in steps)
    return bool(first and all(others)) and differ


def _tokens(records: list[dict[str, Any]]) -> dict[int, float]:
    """Return how many tokens had been read at each logged step."""
    return {record["step"]: record["tokens"] for record in records if record.get("tokens") is not None}


def _label(run: str, name: str, points: Points) -> str:
    what = "smoothed" if name == TRAINING else f"best {min(loss for _, loss in points):.3f}"
    return f"{printable(run)}, {what}"


def _look(number: int) -> dict[str, str]:
    return {"color": HUES[number % len(HUES)], "linestyle": STYLES[number % len(STYLES)]}
