"""`loss.png`: the losses and the learning rate of a run, drawn anew while it runs."""

import math
import time
from dataclasses import dataclass, field
from itertools import accumulate, cycle
from typing import TYPE_CHECKING, Any

from dataset.printing import printable
from model.files import replacing
from trainer.run_dir import METRICS, RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SHARE = 0.01
"""of the time of a training that may go into drawing"""
SMOOTHED_SHARE = 0.03
"""of all points, to either side, that a point of the smoothed curve is the mean of"""
LOG_FROM_RATIO = 4
"""largest to smallest loss from which on the axis is logarithmic: the end of a long fall stays readable"""
# Okabe and Ito's palette (2008), which colour-blind readers can tell apart
TRAINING, LEARNING_RATE = "#0072b2", "#999999"
VALIDATIONS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


class LossPicture:
    """Draws the metrics of a run, as often as little time is lost by it."""

    def __init__(self, run_dir: RunDirectory) -> None:
        """Wait with the first picture until one would be worth its time."""
        self._run_dir = run_dir
        self._due = time.monotonic() + 30

    def draw_if_due(self) -> None:
        """Draw, unless the last picture is too recent for what it cost."""
        if time.monotonic() >= self._due:
            self.draw()

    def draw(self) -> None:
        """Draw in any case."""
        began = time.monotonic()
        draw_losses(self._run_dir)
        ended = time.monotonic()
        self._due = ended + (ended - began) / MOST_SHARE


@dataclass
class Curves:
    """What metrics tell, each a list of (step, value)."""

    training: list[tuple[int, float]] = field(default_factory=list)
    learning_rate: list[tuple[int, float]] = field(default_factory=list)
    validations: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @classmethod
    def read(cls, records: list[dict[str, Any]]) -> "Curves":
        """Sort the records of `metrics.jsonl`."""
        curves = cls()
        for record in records:
            step = record["step"]
            if "validation" in record:
                points = curves.validations.setdefault(record["validation"], [])
                points.append((step, record["nats_per_token"]))
                continue
            curves.learning_rate.append((step, record["learning_rate"]))
            if record["loss"] is not None:
                curves.training.append((step, record["loss"]))
        return curves

    def losses(self) -> list[float]:
        """Return all losses."""
        return [loss for points in (self.training, *self.validations.values()) for _, loss in points]


def smoothed(values: list[float]) -> list[float]:
    """Return the mean of each value and of as many before as after it, where the end allows it: no lag."""
    most, sums = math.ceil(SMOOTHED_SHARE * len(values)), [0.0, *accumulate(values)]
    ranges = [(n - min(n, most), min(n + min(n, most) + 1, len(values))) for n in range(len(values))]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in ranges]


def draw_losses(run_dir: RunDirectory) -> None:
    """Draw what the metrics hold into `loss.png`: training, every validation store, learning rate."""
    from matplotlib.figure import Figure  # slow to import, and only the main process draws

    curves = Curves.read(run_dir.read_records(METRICS))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    _draw_learning_rate(axes.twinx(), curves)
    axes.set_zorder(1)  # losses above the learning rate
    axes.patch.set_visible(False)
    _draw_training(axes, curves)
    for colour, (name, points) in zip(cycle(VALIDATIONS), curves.validations.items(), strict=False):
        _draw_validation(axes, name, points, colour)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    axes.set_title(printable(run_dir.path.name), loc="left", fontweight="bold", parse_math=False)
    axes.grid(alpha=0.25, which="both")
    _choose_scale(axes, curves.losses())
    if curves.losses():
        axes.set_xlim(left=0)
        for text in axes.legend(loc="upper right", framealpha=0.6, edgecolor="none").get_texts():
            text.set_parse_math(False)  # names may hold dollar signs
    with replacing(run_dir.path / "loss.png") as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _draw_learning_rate(axes: "Axes", curves: Curves) -> None:
    axes.plot(*_columns(curves.learning_rate), color=LEARNING_RATE, linewidth=1, linestyle=":")
    axes.set_ylabel("learning rate", color=LEARNING_RATE)
    axes.tick_params(axis="y", colors=LEARNING_RATE)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.set_ylim(bottom=0)


def _draw_training(axes: "Axes", curves: Curves) -> None:
    steps, losses = _columns(curves.training)
    marker = "." if len(steps) == 1 else ""
    axes.plot(steps, losses, color=TRAINING, linewidth=0.8, alpha=0.3)
    label = "training, smoothed"
    axes.plot(steps, smoothed(losses), color=TRAINING, linewidth=1.8, marker=marker, label=label)


def _draw_validation(axes: "Axes", name: str, points: list[tuple[int, float]], colour: str) -> None:
    """Draw one store; its best point is named in the legend and marked, and its last one has its value."""
    steps, losses = _columns(points)
    best = min(range(len(losses)), key=losses.__getitem__)
    label = f"validation {printable(name)}, best {losses[best]:.3f} at step {steps[best]}"
    axes.plot(steps, losses, color=colour, linewidth=1.2, marker="o", markersize=4, label=label)
    axes.plot(steps[best], losses[best], marker="o", markersize=9, markerfacecolor="none", color=colour)
    axes.annotate(
        f"{losses[-1]:.3f}",
        (steps[-1], losses[-1]),
        xytext=(0, 8),
        textcoords="offset points",
        ha="right",
        color=colour,
        fontsize=9,
    )


def _choose_scale(axes: "Axes", losses: list[float]) -> None:
    """Make the axis logarithmic where losses span a wide range, with plain numbers on it."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if not losses or min(losses) <= 0 or max(losses) / min(losses) < LOG_FROM_RATIO:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    steps, values = zip(*points, strict=True) if points else ((), ())
    return list(steps), list(values)
