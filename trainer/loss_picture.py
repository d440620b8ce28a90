"""`loss.png`: the losses and the learning rate of a run, drawn anew while it runs."""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from dataset.printing import printable
from model.files import replacing
from trainer.run_dir import METRICS, RunDirectory

MOST_SHARE = 0.01
"""of the time of a training that may go into drawing"""
SMOOTHED_SHARE = 0.03
"""of all points, to either side, that a point of the smoothed curve is the mean of"""
LOG_FROM_RATIO = 4
"""largest to smallest loss from which on the axis is logarithmic: the end of a long fall stays readable"""
TRAINING, LEARNING_RATE = "training", "learning rate"
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 960, 540, 60, 50, 890, 480
"""pixels of the picture, and of the frame in it"""
SCALE, FONT_SIZE = 2, 14
"""times that it is drawn as large as it is saved, so that its edges are smooth; pixels of a line of text"""
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")
PALE, GREY, FAINT, BLACK = "#c3d9ea", "#888888", "#e6e6e6", "#000000"
Points = list[tuple[int, float]]


class LossPicture:
    """Draws the metrics of a run, as often as little time is lost by it."""

    def __init__(self, run_dir: RunDirectory) -> None:
        """Wait with the first picture until one would be worth its time."""
        self._run_dir = run_dir
        self._due = time.monotonic() + 30

    def draw(self, at_once: bool = True) -> None:
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
            curves[f"validation {record['validation']}"].append((step, record["nats_per_token"]))
            continue
        curves[LEARNING_RATE].append((step, record["learning_rate"]))
        if record["loss"] is not None:
            curves[TRAINING].append((step, record["loss"]))
    return curves


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and of as many before as after it, where the end allows it: no lag."""
    most, sums = math.ceil(SMOOTHED_SHARE * len(values)), [0.0, *accumulate(values)]
    ranges = [(n - min(n, most), min(n + min(n, most) + 1, len(values))) for n in range(len(values))]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in ranges]


@dataclass(frozen=True)
class Axis:
    """Where values stand in the picture: `low` at pixel `first`, `high` at pixel `last`."""

    low: float
    high: float
    first: int
    last: int
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.first + (self.last - self.first) * (value - low) / ((high - low) or 1.0)

    def ticks(self) -> list[float]:
        """Return round values between the ends: powers of ten and 2 and 5 times those, or their multiples."""
        if self.is_log:
            lowest, highest = (math.floor(math.log10(end)) for end in (self.low, self.high))
            values = [times * 10.0**power for power in range(lowest, highest + 1) for times in (1, 2, 5)]
        else:
            distance = (self.high - self.low) / 5 or 1.0
            power = 10.0 ** math.floor(math.log10(distance))
            step = next(times * power for times in (1, 2, 5, 10) if times * power >= distance)
            values = [n * step for n in range(math.ceil(self.low / step), math.ceil(self.high / step) + 1)]
        return [value for value in values if self.low <= value <= self.high]


class _Canvas:
    """A picture that is drawn in pixels of its final size."""

    def __init__(self) -> None:
        from PIL import Image, ImageDraw, ImageFont  # matplotlib takes longer than a short training

        self.image = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), "white")
        self._draw, self._font = ImageDraw.Draw(self.image), ImageFont.load_default(SCALE * FONT_SIZE)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: int = 1) -> None:
        scaled = [(SCALE * x, SCALE * y) for x, y in points]
        self._draw.line(scaled, colour, SCALE * width)

    def dot(self, x: float, y: float, colour: str) -> None:
        self._draw.circle((SCALE * x, SCALE * y), 3 * SCALE, colour)

    def text(self, x: float, y: float, words: str, anchor: str, colour: str = BLACK) -> None:
        self._draw.text((SCALE * x, SCALE * y), words, colour, self._font, anchor)


def draw_losses(run_dir: RunDirectory) -> None:
    """Draw what the metrics hold into `loss.png`: training, every validation store, learning rate."""
    found = read_curves(run_dir.read_records(METRICS)).items()
    curves = {name: [point for point in points if math.isfinite(point[1])] for name, points in found}
    rates = curves.pop(LEARNING_RATE, [])
    curves = {name: points for name, points in curves.items() if points}
    canvas = _Canvas()
    canvas.text(WIDTH / 2, TOP / 3, printable(run_dir.path.name), "mm")
    across, up, aside = _axes(curves, rates)
    _draw_frame(canvas, across, up, aside)

    # The learning rate lies below the losses; the words on a loss have its colour.
    canvas.line([(across.place(step), aside.place(rate)) for step, rate in rates], GREY)
    for number, (name, points) in enumerate(curves.items()):
        colour, places = COLOURS[number % len(COLOURS)], [across.place(step) for step, _ in points]
        losses = [loss for _, loss in points]
        if name == TRAINING:
            canvas.line([*zip(places, map(up.place, losses), strict=True)], PALE)
            losses = smoothed(losses)
        curve = [*zip(places, map(up.place, losses), strict=True)]
        canvas.line(curve, colour, width=2)
        for x, y in curve if name != TRAINING else ():
            canvas.dot(x, y, colour)
        canvas.text(RIGHT - 10, TOP + 14 + 20 * number, _label(name, points), "rm", colour)
    with replacing(run_dir.path / "loss.png") as temporary:
        canvas.image.resize((WIDTH, HEIGHT)).save(temporary, "png")


def _axes(curves: dict[str, Points], rates: Points) -> tuple[Axis, Axis, Axis]:
    """Return the axes of steps, losses and learning rates."""
    steps = [step for points in (*curves.values(), rates) for step, _ in points] or [0, 1]
    losses = [loss for points in curves.values() for _, loss in points] or [0.0, 1.0]
    is_log = 0 < LOG_FROM_RATIO * min(losses) < max(losses)
    return (
        Axis(min(steps), max(steps), LEFT, RIGHT),
        Axis(min(losses), max(losses), BOTTOM - 10, TOP + 10, is_log),
        Axis(0.0, max((rate for _, rate in rates), default=1.0), BOTTOM, TOP + 10),
    )


def _draw_frame(canvas: _Canvas, across: Axis, up: Axis, aside: Axis) -> None:
    """Draw the frame with its axes: steps below, losses on the left, learning rates on the right."""
    for step in across.ticks():
        x = across.place(step)
        canvas.line([(x, TOP), (x, BOTTOM)], FAINT)
        canvas.text(x, BOTTOM + 8, f"{step:g}", "mt")
    for loss in up.ticks():
        y = up.place(loss)
        canvas.line([(LEFT, y), (RIGHT, y)], FAINT)
        canvas.text(LEFT - 8, y, f"{loss:g}", "rm")
    for rate in aside.ticks():
        canvas.text(RIGHT + 8, aside.place(rate), f"{rate:g}", "lm", GREY)
    canvas.line([(LEFT, TOP), (RIGHT, TOP), (RIGHT, BOTTOM), (LEFT, BOTTOM), (LEFT, TOP)], BLACK)
    canvas.text((LEFT + RIGHT) / 2, HEIGHT - 8, "optimizer step", "mb")
    canvas.text(LEFT, TOP - 8, "loss (nats per token)", "lb")
    canvas.text(RIGHT, TOP - 8, LEARNING_RATE, "rb", GREY)


def _label(name: str, points: Points) -> str:
    """Return a curve's line in the legend, of a validation with its best point."""
    if name == TRAINING:
        return f"{name}, smoothed"
    step, best = min(points, key=lambda point: point[1])
    return f"{printable(name)}, best {best:.3f} at step {step}"
