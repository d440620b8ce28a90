"""Pictures of a report as SVG for inside a page, in its colour of text; text stays text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log10, sqrt

from markupsafe import Markup
from rich.cells import cell_len

from dataset.printing import printable
from eval.tables import wrapped

# Okabe and Ito's palette (2008), which colour-blind readers can tell apart; black is the page's own colour
BLUE, ORANGE, VERMILION, GREY = "#0072b2", "#e69f00", "#d55e00", "#8a8a8a"
COLOURS = ("currentColor", BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", VERMILION)
Points = Sequence[tuple[float, float]]
DASHES = ("none", "7 3", "2 2")
FONT, LINE, CHARACTER = 12, 15, 6.5  # size and height of a line, width of a character
CELL = 14  # side of a cell
WIDTH, LEFT, RIGHT = 420, 165, 410  # of a plot: names stand left of LEFT, intervals between it and RIGHT


@dataclass(frozen=True)
class Estimate:
    """One line of a forest plot."""

    name: str
    value: float
    interval: tuple[float, float] | None
    colour: str


@dataclass(frozen=True)
class _Axis:
    """Numbers from `low` to `high` laid from `start` to `end`, logarithmically if asked."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (log10(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)

    def ticks(self) -> list[float]:
        from matplotlib.ticker import LogLocator, MaxNLocator

        locator = LogLocator(subs=(1, 2, 5)) if self.is_log else MaxNLocator(6, steps=(1, 2, 5, 10))
        return [float(v) for v in locator.tick_values(self.low, self.high) if self.low <= v <= self.high]


def draw_mask(title: str, labels: Sequence[str], rows: Sequence[str]) -> Markup:
    """Draw a mask, a string of 0 and 1 per token that looks: later tokens that it sees are orange."""
    seen = [(i, j) for i, row in enumerate(rows) for j, mark in enumerate(row) if mark == "1"]
    earlier, later = [(i, j) for i, j in seen if j <= i], [(i, j) for i, j in seen if j > i]
    return _matrix(title, labels, {(BLUE, 1.0): earlier, (ORANGE, 1.0): later})


def draw_attention(title: str, labels: Sequence[str], weights: Sequence[Sequence[float]]) -> Markup:
    """Draw probabilities (T, T) in ten steps of their square root, so that small ones show."""
    steps: dict[tuple[str, float], list[tuple[int, int]]] = {}
    for i, row in enumerate(weights):
        for j, weight in enumerate(row):
            if step := round(10 * sqrt(max(weight, 0))):
                steps.setdefault(("currentColor", step / 10), []).append((i, j))
    return _matrix(title, labels, steps)


def _matrix(
    title: str, labels: Sequence[str], cells: Mapping[tuple[str, float], Sequence[tuple[int, int]]]
) -> Markup:
    """Draw cells (row, column) by colour and opacity; labels stand left and above."""
    names = [printable(label) for label in labels]
    margin, side = CHARACTER * max(map(cell_len, names), default=0) + 8, CELL * len(labels)
    parts = [_box(margin, margin, side, side, 0.07)]
    for n, name in enumerate(names):
        middle = margin + CELL * (n + 0.5)
        turned = Markup('<text transform="translate({:.1f} {:.1f}) rotate(-90)">{}</text>')
        parts += [_text(margin - 5, middle + 4, name, "end"), turned.format(middle + 4, margin - 5, name)]
    for (colour, opacity), places in cells.items():
        path = "".join(f"M{j} {i}h.92v.92h-.92z" for i, j in places)
        look = f'fill="{colour}" fill-opacity="{opacity:g}"'
        place = f"translate({margin:g} {margin:g}) scale({CELL})"
        parts.append(Markup(f'<path {look} transform="{place}" d="{path}"/>'))
    return _svg(title, margin + side + 2, margin + side + 2, parts)


def draw_forest(title: str, groups: Mapping[str, Sequence[Estimate]], band: float | None = None) -> Markup:
    """Draw estimates with their intervals under the headings of their groups; up to `band` is shaded."""
    lines, band = [line for group in groups.values() for line in group], band or 0.0
    scaled = [line for line in lines if line.colour != GREY] or lines  # grey intervals may leave the picture
    ends = [0.0, -band, band, *(end for line in scaled for end in (line.value, *(line.interval or ())))]
    margin = 0.04 * (max(ends) - min(ends) or 1)
    axis = _Axis(min(ends) - margin, max(ends) + margin, LEFT, RIGHT)
    marks, y = [], float(2 * LINE)
    for heading, group in groups.items():
        for part in wrapped(printable(heading), 60):
            marks.append(Markup('<g font-weight="bold">{}</g>').format(_text(0, y, part)))
            y += LINE
        for line in group:
            marks += _estimate(line, axis, y)
            y += LINE * len(wrapped(printable(line.name), 24)) + 3
        y += LINE / 2
    grid = [_box(axis.at(-band), LINE, axis.at(band) - axis.at(-band), y - LINE, 0.12)]
    for tick in axis.ticks():
        x, opacity = axis.at(tick), 0.2 if tick else 0.8
        grid.append(_line([(x, LINE), (x, y - LINE / 2)], opacity=opacity))
        grid += [_text(x, FONT, _tick(tick), "middle"), _text(x, y + 5, _tick(tick), "middle")]
    return _svg(title, WIDTH, y + 10, [*grid, *marks])


def _estimate(line: Estimate, axis: _Axis, y: float) -> Iterator[Markup]:
    for n, part in enumerate(wrapped(printable(line.name), 24)):
        yield _text(0, y + n * LINE, part)
    dot, middle = axis.at(line.value), y - 4
    low, high = (min(max(axis.at(end), LEFT), RIGHT) for end in line.interval or (line.value, line.value))
    yield _line([(low, middle), (high, middle)], line.colour)
    if LEFT <= dot <= RIGHT:
        yield Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4" fill="{}"/>').format(dot, middle, line.colour)


def draw_curves(title: str, curves: Sequence[dict], arms: Sequence[str], height: int = 240) -> Markup:
    """Draw the curves of a stage with bands and a legend; an arm has one style in all pictures."""
    drawn = [_finite_points(curve) for curve in curves]
    points = [point for each in drawn for point in each] or [(0, 0.0, 0.0, 0.0)]
    steps, losses = [point[0] for point in points], [loss for point in points for loss in point[1:]]
    is_log = min(losses) > 0 and max(losses) > 4 * min(losses)
    x = _Axis(min(steps), max(steps), 50, RIGHT - 20)
    y = _Axis(min(losses), max(losses), height, LINE, is_log)
    parts, below = [*_grid(x, y)], y.start + 3.0 * LINE
    for curve, each in zip(curves, drawn, strict=True):
        n = arms.index(curve["arm"])
        colour, dash = COLOURS[n % len(COLOURS)], DASHES[n // len(COLOURS) % len(DASHES)]
        low, mean, high = ([(x.at(point[0]), y.at(point[n])) for point in each] for n in (1, 2, 3))
        band = _path([*low, *reversed(high)])
        parts.append(Markup(f'<polygon fill="{colour}" fill-opacity="0.2" points="{band}"/>'))
        parts.append(_line(mean, colour, dash))
        parts.append(_line([(0, below - 4), (30, below - 4)], colour, dash))
        for name in wrapped(printable(f"{curve['arm']}, seeds: {curve['seeds']}"), 58):
            parts.append(_text(38, below, name))
            below += LINE
    return _svg(title, WIDTH, below, parts)


def _finite_points(curve: dict) -> list[tuple[float, ...]]:
    """Return step, low, mean and high wherever all are numbers: a training may diverge."""
    points = zip(*(curve[key] for key in ("steps", "low", "mean", "high")), strict=True)
    return [point for point in points if all(value is not None and isfinite(value) for value in point)]


def _grid(x: _Axis, y: _Axis) -> Iterator[Markup]:
    for tick in y.ticks():
        yield _text(44, y.at(tick) + 4, _tick(tick), "end")
        yield _line([(50, y.at(tick)), (RIGHT, y.at(tick))], opacity=0.2)
    for tick in x.ticks():
        yield _text(x.at(tick), y.start + LINE + 3, _tick(tick), "middle")
    yield _text(RIGHT, y.start + 2 * LINE + 3, "step", "end")


def _svg(title: str, width: float, height: float, parts: Sequence[Markup]) -> Markup:
    """Return a picture that shrinks by a seventh at most, so that its text stays readable."""
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    look = f'font-size="{FONT}" fill="currentColor" style="min-width: {width * 0.85:.0f}px"'
    name = Markup('role="img" aria-label="{}"').format(printable(title))
    return Markup(f"<svg {name} {size} {look}>{Markup().join(parts)}</svg>")


def _tick(value: float) -> str:
    return f"{value:,g}".replace("-", "−")


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _box(x: float, y: float, width: float, height: float, opacity: float) -> Markup:
    size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return Markup(f'<rect {size} fill-opacity="{opacity:g}"/>')


def _line(points: Points, colour: str = "currentColor", dash: str = "none", opacity: float = 1.0) -> Markup:
    stroke = f'stroke="{colour}" stroke-dasharray="{dash}" stroke-opacity="{opacity:g}" stroke-width="1.6"'
    return Markup(f'<polyline fill="none" {stroke} points="{_path(points)}"/>')


def _path(points: Points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
