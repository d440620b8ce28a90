"""`loss.png`: the losses and the learning rate of a run, drawn anew while it runs."""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.printing import printable
from model.files import replacing
from trainer.run_dir import METRICS, RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_SHARE = 0.01
"""of the time of a training that may go into drawing"""
SMOOTHED_SHARE = 0.03
"""of all points, to either side, that a point of the smoothed curve is the mean of"""
LOG_FROM_RATIO = 4
"""largest to smallest loss from which on the axis is logarithmic: the end of a long fall stays readable"""
LARGEST = 1e100
"""what numbers that are drawn stay below; others leave a gap, as they leave no room for an axis"""
TRAINING, LEARNING_RATE = "training", "learning rate"
LOSS = "loss (nats per token)"
Points = list[tuple[int, float]]


class LossPicture:
    """Draws the metrics of a run, as often as little time is lost by it."""

    def __init__(self, run_dir: RunDirectory) -> None:
        """Wait with the first picture until one would be worth its time."""
        self._run_dir = run_dir
        self._due = time.monotonic() + 30

    def draw(self, at_once: bool) -> None:
        """Draw; unless `at_once`, not before the last picture is old enough for what it cost."""
        began = time.monotonic()
        if at_once or began >= self._due:
            draw_losses(self._run_dir)
            ended = time.monotonic()
            self._due = ended + (ended - began) / MOST_SHARE


def read_curves(records: list[dict[str, Any]]) -> dict[str, Points]:
    """Return what metrics tell: the points (step, value) of every loss and of the learning rate, by name."""
    curves: dict[str, Points] = defaultdict(list)
    for record in records:
        step = record["step"]
        if "validation" in record:
            curves[f"validation {record['validation']}"].append((step, _drawn(record["nats_per_token"])))
            continue
        curves[LEARNING_RATE].append((step, _drawn(record["learning_rate"])))
        if record.get("loss") is not None:
            curves[TRAINING].append((step, _drawn(record["loss"])))
    return curves


def _drawn(value: float) -> float:
    return value if abs(value) < LARGEST else math.nan


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and of as many before as after it, where the end allows it: no lag."""
    most, sums = math.ceil(SMOOTHED_SHARE * len(values)), [0.0, *accumulate(values)]
    ranges = [(n - min(n, most), min(n + min(n, most) + 1, len(values))) for n in range(len(values))]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in ranges]


def draw_losses(run_dir: RunDirectory) -> None:
    """Draw what the metrics hold into `loss.png`: training, every validation store, learning rate."""
    from matplotlib.figure import Figure  # slow to import, and only the main process draws

    curves = read_curves(run_dir.read_records(METRICS))
    figure = Figure(figsize=(8, 4.5))  # whose own layouts draw it twice
    figure.subplots_adjust(left=0.09, right=0.88, top=0.93, bottom=0.11)
    axes = figure.subplots()
    if points := curves.pop(LEARNING_RATE, None):
        rates = axes.twinx()
        rates.plot(*zip(*points, strict=True), color="0.6", linewidth=1, linestyle=":")
        rates.set_ylabel(LEARNING_RATE, color="0.5")
    for number, (name, points) in enumerate(curves.items()):
        draw_curve(axes, name, points, _label(name, points), {"color": f"C{number}"})
    axes.set(xlabel="optimizer step", ylabel=LOSS)
    axes.set_title(printable(run_dir.path.name), y=1, parse_math=False)  # to find its place takes a fifth
    finish(axes, curves.values())
    save_picture(figure, run_dir.path / "loss.png")


def draw_curve(axes: "Axes", name: str, points: Points, label: str, look: dict[str, str]) -> None:
    """Draw a loss in a colour and style of matplotlib's, that of a training over its own faint points."""
    places, losses = zip(*points, strict=True)
    if name == TRAINING:
        axes.plot(places, losses, **look, linewidth=0.8, alpha=0.3)
        losses = smoothed(losses)
    axes.plot(places, losses, **look, marker="." * (name != TRAINING), label=label)


def finish(axes: "Axes", curves: Iterable[Points]) -> None:
    """Name the curves that were drawn, and choose the scale of their losses."""
    if values := [value for points in curves for _, value in points]:
        for text in axes.legend(loc="upper right").get_texts():
            text.set_parse_math(False)  # names may hold dollar signs
        axes.set_yscale("log" if 0 < LOG_FROM_RATIO * min(values) < max(values) else "linear")
        axes.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a picture, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _label(name: str, points: Points) -> str:
    """Return a curve's line in the legend, of a validation with its best point."""
    if name == TRAINING:
        return f"{name}, smoothed"
    step, best = min(points, key=lambda point: point[1])
    return f"{printable(name)}, best {best:.3f} at step {step}"
