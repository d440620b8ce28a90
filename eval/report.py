"""The report of an experiment, `report.html` and `report.md`, from its results; computes no statistics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from dataset.printing import printable
from eval.experiment import ENOUGH_SEEDS
from eval.pages import Banner, Fold, Gallery, Listing, Page, Part, Picture, page_as_html, page_as_markdown
from eval.report_pictures import (
    BLUE,
    GREY,
    VERMILION,
    Estimate,
    draw_attention,
    draw_curves,
    draw_forest,
    draw_mask,
)
from eval.tables import Table, figure
from eval.verdicts import factor
from model.files import write_text

Values = Mapping[str, Any]
WITHOUT_UNIT = {"p_value", "p_holm", "effect_size", "equivalence_p"}
SIGNED = {"difference", "interval", "item_interval", "effect_size"}
COLUMNS = {
    "difference": "difference",
    "interval": "interval",
    "p, Holm": "p_holm",
    "seeds": "seeds",
    "items": "items",
    "verdict": "verdict",
    "mean of baseline": "baseline_mean",
    "mean of arm": "arm_mean",
    "p": "p_value",
    "effect size": "effect_size",
    "spread between seeds": "seed_spread",
    "interval over seeds and items": "item_interval",
    "clusters": "clusters",
    "smallest visible": "smallest_visible",
    "p of equivalence": "equivalence_p",
}
FEW = tuple(COLUMNS)[:6]
OF_A_A = ("difference", "interval", "p", "seeds", "items", "verdict")


def write_report(folder: Path, results: Values) -> None:
    """Write `report.html`, with pictures, and `report.md`, without, into a folder."""
    experiment = results["experiment"]
    sections = [Fold(title, parts) for title, parts in _sections(results) if parts]
    page = Page(f"Experiment: {experiment['name']}", experiment["question"], sections)
    for name, text in (("report.html", page_as_html(page)), ("report.md", page_as_markdown(page))):
        write_text(folder / name, text)


def _sections(results: Values) -> Iterator[tuple[str, Sequence[Part]]]:
    arms, cells = results["arms"], results["cells"]
    yield "Answer", _answer(results)
    yield "Arms and tasks", _scores_and_differences(results)
    yield "All differences", _forests(results)
    yield "Learning curves", _curves(results["curves"], [arm["name"] for arm in arms])
    yield "Masks", _masks(arms)
    yield "Attention", _attention(arms)
    yield "Where arms disagree", [part for each in results["disagreements"] for part in _disagreement(each)]
    yield "Costs", [_costs(arms)]
    yield "What arms differ in, and that nothing else differs", _proof(arms)
    yield "Power, and arms against themselves", _power(results)
    yield "Tuned settings", _tuned(results["experiment"]["tuned"])
    yield "Failures", _failures(cells)
    yield "Every cell and its command", _cells(cells)
    yield "How to get any number again", _again(results)


def _measure(entry: Values) -> str:
    return f"{entry['metric']}, {entry['unit']}" if entry["unit"] else entry["metric"]


def _shown(entry: Values, key: str, is_signed: bool = False) -> str:
    """Return what an entry holds: a number or an interval in the unit of its metric, or words."""
    value, scale = entry[key], 1 if key in WITHOUT_UNIT else factor(entry["unit"])
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return " to ".join(figure(end * scale, is_signed) for end in value)
    if isinstance(value, int) and key in ("seeds", "items", "clusters"):
        return f"{value:,}"
    return figure(None if value is None else value * scale, is_signed)


def _mean(score: Values) -> str:
    return _shown(score, "mean") + (f" ({_shown(score, 'interval')})" if score["interval"] else "")


def _difference(each: Values) -> str:
    interval = f" ({_shown(each, 'interval', True)})" if each["interval"] else ""
    return _shown(each, "difference", True) + interval + (" primary" if each["is_primary"] else "")


def _pair(comparison: Values) -> str:
    return f"{comparison['arm']} − {comparison['baseline']}"


def _comparisons(comparisons: Sequence[Values], columns: Sequence[str] = tuple(COLUMNS)) -> Table:
    rows = []
    for each in comparisons:
        shown = (_shown(each, COLUMNS[title], COLUMNS[title] in SIGNED) for title in columns)
        rows.append((f"{each['task']}: {_pair(each)}", _measure(each), *shown))
    return Table(("task and arms", "metric, unit", *columns), tuple(rows))


def _answer(results: Values) -> list[Part]:
    seeds = min((c["seeds"] for c in results["comparisons"]), default=len(results["experiment"]["seeds"]))
    banner = []  # of n seeds the exact two-sided p is at least 2 / 2^n
    if seeds <= 1:
        banner = [Banner("One seed: says nothing about masks.")]
    elif seeds < ENOUGH_SEEDS:
        few = f"Only {seeds} paired seeds, and a claim takes {ENOUGH_SEEDS}: p cannot fall below "
        banner = [Banner(f"{few}{figure(2 / 2**seeds)}, whatever the arms do.")]
    primary = [each for each in results["comparisons"] if each["is_primary"]]
    level = 100 * (1 - results["experiment"]["decision"]["alpha_of_look"])
    note = f"The primary comparison, fixed beforehand. All intervals: {level:.3g}%, over paired seeds."
    return [results["answer"], *banner, *([note, _comparisons(primary, FEW)] if primary else [])]


def _metrics(results: Values) -> dict[str, str]:
    """Return all metrics, the primary one first, with their names and units."""
    entries = (*results["comparisons"], *results["a_a"], *results["scores"])
    primary = results["experiment"]["primary"]["metric"]
    return {e["metric"]: _measure(e) for e in sorted(entries, key=lambda e: e["metric"] != primary)}


def _of_metric(entries: Sequence[Values], metric: str) -> list[Values]:
    return [each for each in entries if each["metric"] == metric]


def _scores_and_differences(results: Values) -> list[Part]:
    parts: list[Part] = ["In brackets: intervals. Differences are paired by seed; the primary one is marked."]
    for metric, measure in _metrics(results).items():
        scores, differences = (_of_metric(results[key], metric) for key in ("scores", "comparisons"))
        tables = [
            _by_task(f"means, {measure}", scores, lambda each: each["arm"], _mean),
            _by_task(f"differences, {measure}", differences, _pair, _difference),
        ]
        parts += _open_if_primary(results, metric, measure, tables)
    return [*parts, Fold("Every comparison in full", [_comparisons(results["comparisons"])])]


def _open_if_primary(results: Values, metric: str, measure: str, parts: list[Part]) -> list[Part]:
    return parts if metric == results["experiment"]["primary"]["metric"] else [Fold(measure, parts)]


def _by_task(
    title: str, entries: Sequence[Values], column: Callable[[Values], str], cell: Callable[[Values], str]
) -> Table:
    """Return a table with a row per task, which tells its seeds and items, and a column per arm."""
    columns, rows = list(dict.fromkeys(map(column, entries))), []
    for task in dict.fromkeys(each["task"] for each in entries):
        own = {column(each): each for each in entries if each["task"] == task}
        counts = dict.fromkeys(f"{each['seeds']} × {each['items']:,}" for each in own.values())
        cells = (cell(own[name]) if name in own else "" for name in columns)
        rows.append((f"{task} ({' or '.join(counts)})", *cells))
    return Table((f"{title} (seeds × items)", *columns), tuple(rows))


def _forests(results: Values) -> list[Part]:
    parts, primary = [], results["experiment"]["primary"]["metric"]
    for metric, measure in _metrics(results).items():
        if groups := _estimates(results, metric):
            bound = results["experiment"]["decision"]["equivalence"] if metric == primary else None
            title = f"Differences to the baseline with intervals, {measure}"
            scale = factor(_of_metric([*results["comparisons"], *results["a_a"]], metric)[0]["unit"])
            picture = Picture(draw_forest(title, groups, bound and bound * scale), title)
            parts += _open_if_primary(results, metric, measure, [Gallery([picture])])
    text = (
        "Orange: primary. Grey: arms against themselves, which go on beyond the edges that they reach. "
        "Shaded: what counts as no difference."
    )
    return [text, *parts] if parts else []


def _estimates(results: Values, metric: str) -> dict[str, list[Estimate]]:
    """Return the lines of a forest plot by task, those of the primary comparison first, those of A/A last."""
    ours, a_a = (_finite(_of_metric(results[key], metric)) for key in ("comparisons", "a_a"))
    name = _pair if len({each["baseline"] for each in ours}) > 1 else lambda each: each["arm"]
    groups: dict[str, list[Estimate]] = {}
    for each in sorted(ours, key=lambda each: not each["is_primary"]):
        colour = VERMILION if each["is_primary"] else BLUE
        groups.setdefault(each["task"], []).append(_estimate(each, name(each), colour))
    lines = [_estimate(each, each["task"], GREY) for each in a_a]
    return groups | ({"A/A: the same arm, other seeds": lines} if lines else {})


def _finite(comparisons: Sequence[Values]) -> list[Values]:
    """Return what can be drawn: an arm that diverged has no difference."""
    return [c for c in comparisons if all(map(isfinite, (c["difference"], *(c["interval"] or ()))))]


def _estimate(each: Values, name: str, colour: str) -> Estimate:
    scale = factor(each["unit"])
    ends = each["interval"] and tuple(end * scale for end in each["interval"])
    return Estimate(name, each["difference"] * scale, ends, colour)


def _curves(curves: Sequence[Values], arms: Sequence[str]) -> list[Part]:
    pictures = []
    for stage in dict.fromkeys(curve["stage"] for curve in curves):
        title = f"{stage}: loss, mean and band over seeds"
        own = [curve for curve in curves if curve["stage"] == stage]
        pictures.append(Picture(draw_curves(title, own, arms), title))
    return [Gallery(pictures)] if pictures else []


def _masks(arms: Sequence[Values]) -> list[Part]:
    alike: dict[str, list[Values]] = {}
    for arm in arms:
        if arm["mask"]:
            alike.setdefault(repr(arm["mask"]), []).append(arm)
    pictures = []
    for group in alike.values():
        mask = group[0]["mask"]
        title = f"{mask['title']}: {', '.join(arm['name'] for arm in group)}"
        pictures.append(Picture(draw_mask(title, mask["labels"], mask["rows"]), title))
    text = "The token of a row sees the coloured tokens: earlier ones in blue, later ones in orange."
    return [text, Gallery(pictures)] if pictures else []


def _attention(arms: Sequence[Values]) -> list[Part]:
    galleries = []
    for arm in arms:
        titles = [f"{arm['name']}, layer {each['layer']}" for each in arm["attention"]]
        drawn = [draw_attention(arm["name"], each["labels"], each["weights"]) for each in arm["attention"]]
        galleries.append(Gallery([*map(Picture, drawn, titles)]))
    text = (
        "One sample, mean of heads: the more ink, the more the token of the row looks at that of the column."
    )
    return [text, *galleries] if any(gallery.pictures for gallery in galleries) else []


def _disagreement(each: Values) -> list[Part]:
    by_answer: dict[str, list[str]] = {}
    for arm, answer in each["answers"].items():
        by_answer.setdefault(answer, []).append(arm)
    rows = tuple((answer, ", ".join(arms)) for answer, arms in by_answer.items())
    header = f"{each['task']}, expected: {' / '.join(each['expected'])}"
    return [Listing(each["question"]), Table((header, "answered by"), rows)]


def _costs(arms: Sequence[Values]) -> Table:
    rows = []
    for arm in arms:
        cost = arm["cost"]
        shown = (figure(cost[key]) for key in ("flops", "tokens", "seconds"))
        rows.append((arm["name"], *shown, f"{cost['parameters']:,}"))
    return Table(("arm", "FLOPs", "tokens", "seconds", "parameters"), tuple(rows))


def _proof(arms: Sequence[Values]) -> list[Part]:
    named = tuple(
        (arm["name"], _settings(arm["named"]) or "nothing", "; ".join(arm["differs_because"]) or "nothing")
        for arm in arms
    )
    facts = ("initial_weights", "rows", "targets")
    rows = tuple(
        (f"{arm['name']}: {stage}", *(proof[fact] for fact in facts))
        for arm in arms
        for stage, proof in arm["proof"].items()
    )
    text = "Trainings against the baseline's, by hash: initial weights, rows in their order, targets."
    proofs = Table(("arm and training", *(fact.replace("_", " ") for fact in facts)), rows)
    return [Table(("arm", "names", "so these settings differ from the baseline's"), named), text, proofs]


def _settings(values: Values) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def _power(results: Values) -> list[Part]:
    metric, a_a = results["experiment"]["primary"]["metric"], results["a_a"]
    title = f"smallest visible, {_metrics(results).get(metric, metric)}"
    ours = _of_metric(results["comparisons"], metric)
    table = _by_task(title, ours, _pair, lambda each: _shown(each, "smallest_visible"))
    text = "Smallest visible: the difference that so many seeds find 8 times in 10."
    noise = "Arms against themselves under other seeds; what differs here is noise."
    return [
        text,
        table,
        *([noise, _comparisons(a_a, OF_A_A)] if a_a else ["No arm was compared with itself."]),
    ]


def _tuned(tuned: Mapping[str, Values]) -> list[Part]:
    rows = tuple((arm, _settings(values)) for arm, values in tuned.items())
    return ["Chosen on a seed that is used nowhere else.", Table(("arm", "settings"), rows)] if rows else []


def _failures(cells: Sequence[Values]) -> list[Part]:
    unfinished = [cell for cell in cells if cell["status"] != "finished"]
    rows = tuple((_cell_name(cell), cell["status"], cell["error"] or "") for cell in unfinished)
    table = [Table(("cell", "status", "error"), rows)] if rows else []
    return [f"{len(unfinished)} of {len(cells)} cells did not finish.", *table]


def _cell_name(cell: Values) -> str:
    seed = "" if cell["seed"] is None else f", seed {cell['seed']}"
    return f"{cell['stage']} of {', '.join(cell['arms'])}{seed} ({cell['address']})"


def _cells(cells: Sequence[Values]) -> list[Part]:
    by_stage: dict[str, list[str]] = {}
    for cell in cells:
        facts = f"{cell['status']}, {figure(cell['seconds'])} s, commit {cell['commit'] or '–'}"
        text = f"# {printable(_cell_name(cell))}: {facts}\n{cell['command']}"
        by_stage.setdefault(cell["stage"], []).append(text)
    return [
        Fold(f"{stage}, cells: {len(texts)}", [Listing("\n\n".join(texts))])
        for stage, texts in by_stage.items()
    ]


def _again(results: Values) -> list[Part]:
    experiment, decision = results["experiment"], results["experiment"]["decision"]
    everything = "results.json beside this file holds every number with all its digits. All of them again:"
    one = (
        "For one number, find the cells of its arm and seeds above. The command of each, run at its commit "
        "after those that it reads from, gives the same bits on the same machine with the same versions."
    )
    rows = (
        ("hash of the experiment", experiment["hash"]),
        ("seeds", ", ".join(map(str, experiment["seeds"]))),
        ("looks, in seeds", ", ".join(map(str, decision["looks"])) or "none before the end"),
        ("alpha, and of this look", f"{decision['alpha']}, {decision['alpha_of_look']:.3g}"),
        ("bound of equivalence", str(decision["equivalence"] or "none")),
        ("primary", ", ".join(experiment["primary"].values())),
        ("machine", results["machine"]),
        *results["versions"].items(),
    )
    settings = Table(("fixed beforehand, and where", "value"), rows)
    return [everything, Listing(experiment["command"]), one, settings]
