"""The report of an experiment, `report.html` and `report.md`, from its results; computes no statistics."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite
from operator import itemgetter
from pathlib import Path

from eval.evidence import PROOFS
from eval.experiment import ENOUGH_SEEDS, OTHER_SEEDS
from eval.pages import Banner, Fold, Gallery, Listing, Page, Part, page_as_html, page_as_markdown
from eval.report_again import Values, closing_sections, settings_shown
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
from eval.tables import Table, figure, grouped
from eval.verdicts import factor
from model.files import write_text

WITHOUT_UNIT = {"p_value", "p_holm", "effect_size", "equivalence_p"}
SIGNED = {"difference", "interval", "item_interval", "effect_size"}
COLUMNS = {
    "difference": "difference",
    "interval": "interval",
    "p, Holm": "p_holm",
    "seeds": "seeds",
    "items": "items",
    "verdict": "verdict",
    "differs besides": "tuned_apart",
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
FEW = tuple(COLUMNS)[:7]
OF_A_A = ("difference", "interval", "p", "seeds", "items", "verdict")


def write_report(folder: Path, results: Values) -> None:
    """Write `report.html`, with pictures, and `report.md`, without, into a folder."""
    experiment = results["experiment"]
    sections = [Fold(title, list(parts)) for title, parts in _sections(results)]
    shown = [section for section in sections if section.parts]
    page = Page(f"Experiment: {experiment['name']}", experiment["question"], shown)
    write_text(folder / "report.html", page_as_html(page))
    write_text(folder / "report.md", page_as_markdown(page))


def _sections(results: Values) -> Iterator[tuple[str, Iterable[Part]]]:
    arms = results["arms"]
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
    yield from closing_sections(results)


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
    unit = ", unit" * any(each["unit"] for each in comparisons)
    whole = zip(("task and arms", f"metric{unit}", *columns), *rows, strict=True)
    filled = [column for column in whole if {*column[1:]} - {"", "–"} or not rows]
    header, *rows = zip(*filled, strict=True)
    return Table(header, rows)


def _answer(results: Values) -> Iterator[Part]:
    yield results["answer"]
    seeds = min((c["seeds"] for c in results["comparisons"]), default=len(results["experiment"]["seeds"]))
    if seeds <= 1:
        yield Banner("One seed: says nothing about masks.")
    elif seeds < ENOUGH_SEEDS:  # of n seeds the exact two-sided p is at least 2 / 2^n
        few = f"Only {seeds} paired seeds, and a claim takes {ENOUGH_SEEDS}: p cannot fall below "
        yield Banner(f"{few}{figure(2 / 2**seeds)}, whatever the arms do.")
    if primary := [each for each in results["comparisons"] if each["is_primary"]]:
        level = 100 * (1 - results["experiment"]["decision"]["alpha_of_look"])
        metric = primary[0]["metric"]
        sign = f", which is why {metric} has a minus" if metric.startswith("negative_") else ""
        yield f"The primary comparison, fixed beforehand. All intervals: {level:.3g}%, over paired seeds."
        yield f"By every metric higher is better{sign}."
        yield _comparisons(primary, FEW)


def _metrics(results: Values) -> dict[str, str]:
    """Return all metrics, the primary one first, with their names and units."""
    entries = (*results["comparisons"], *results["a_a"], *results["scores"])
    primary = results["experiment"]["primary"]["metric"]
    return {e["metric"]: _measure(e) for e in sorted(entries, key=lambda e: e["metric"] != primary)}


def _of_metric(entries: Sequence[Values], metric: str) -> list[Values]:
    return [each for each in entries if each["metric"] == metric]


def _scores_and_differences(results: Values) -> Iterator[Part]:
    yield "In brackets: intervals. Differences are paired by seed; the primary one is marked."
    for metric, measure in _metrics(results).items():
        scores, differences = (_of_metric(results[key], metric) for key in ("scores", "comparisons"))
        tables = [
            _by_task(f"means, {measure}", scores, lambda each: each["arm"], _mean),
            _by_task(f"differences, {measure}", differences, _pair, _difference),
        ]
        yield from _open_if_primary(results, metric, measure, tables)
    yield Fold("Every comparison in full", [_comparisons(results["comparisons"])])


def _open_if_primary(results: Values, metric: str, measure: str, parts: list[Part]) -> list[Part]:
    return parts if metric == results["experiment"]["primary"]["metric"] else [Fold(measure, parts)]


def _by_task(
    title: str, entries: Sequence[Values], column: Callable[[Values], str], cell: Callable[[Values], str]
) -> Table:
    """Return a table with a row per task, which tells its seeds and items, and a column per arm."""
    columns, rows = list(dict.fromkeys(map(column, entries))), []
    for task, of_task in grouped(entries, itemgetter("task")).items():
        own = {column(each): each for each in of_task}
        counts = dict.fromkeys(f"{each['seeds']} × {each['items']:,}" for each in of_task)
        cells = (cell(own[name]) if name in own else "" for name in columns)
        rows.append((f"{task} ({' or '.join(counts)})", *cells))
    return Table((f"{title} (seeds × items)", *columns), rows)


def _forests(results: Values) -> Iterator[Part]:
    primary, parts = results["experiment"]["primary"]["metric"], []
    for metric, measure in _metrics(results).items():
        if groups := _estimates(results, metric):
            bound = results["experiment"]["decision"]["equivalence"] if metric == primary else None
            title = f"Differences to the baseline with intervals, {measure}"
            scale = factor(_of_metric([*results["comparisons"], *results["a_a"]], metric)[0]["unit"])
            gallery = Gallery([(draw_forest(title, groups, bound and bound * scale), title)])
            parts += _open_if_primary(results, metric, measure, [gallery])
    if parts:
        yield (
            "Orange: primary. Grey: arms against themselves, which go on beyond the edges that they reach. "
            "Shaded: what counts as no difference."
        )
    yield from parts


def _estimates(results: Values, metric: str) -> dict[str, list[Estimate]]:
    """Return the lines of a forest plot by task, those of the primary comparison first, those of A/A last."""
    ours, a_a = (_finite(_of_metric(results[key], metric)) for key in ("comparisons", "a_a"))
    name = _pair if len({each["baseline"] for each in ours}) > 1 else lambda each: each["arm"]
    groups = grouped(sorted(ours, key=lambda each: not each["is_primary"]), itemgetter("task"))
    lines = {
        task: [_estimate(each, name(each), VERMILION if each["is_primary"] else BLUE) for each in of_task]
        for task, of_task in groups.items()
    }
    noise = [_estimate(each, each["task"], GREY) for each in a_a]
    return lines | ({"A/A: the same arm, other seeds": noise} if noise else {})


def _finite(comparisons: Sequence[Values]) -> list[Values]:
    """Return what can be drawn: an arm that diverged has no difference."""
    return [c for c in comparisons if all(map(isfinite, (c["difference"], *(c["interval"] or ()))))]


def _estimate(each: Values, name: str, colour: str) -> Estimate:
    scale = factor(each["unit"])
    ends = each["interval"] and tuple(end * scale for end in each["interval"])
    return Estimate(name, each["difference"] * scale, ends, colour)


def _curves(curves: Sequence[Values], arms: Sequence[str]) -> Iterator[Part]:
    stages = grouped(curves, itemgetter("stage"))
    titles = {stage: f"{stage}: loss, mean and band over seeds" for stage in stages}
    if pictures := [(draw_curves(titles[each], own, arms), titles[each]) for each, own in stages.items()]:
        yield Gallery(pictures)


def _masks(arms: Sequence[Values]) -> Iterator[Part]:
    pictures = []
    for group in grouped([arm for arm in arms if arm["mask"]], lambda arm: repr(arm["mask"])).values():
        mask = group[0]["mask"]
        title = f"{mask['title']}: {', '.join(arm['name'] for arm in group)}"
        pictures.append((draw_mask(title, mask["labels"], mask["rows"]), title))
    if pictures:
        yield "The token of a row sees the coloured tokens: earlier ones in blue, later ones in orange."
        yield Gallery(pictures)


def _attention(arms: Sequence[Values]) -> Iterator[Part]:
    if any(arm["attention"] for arm in arms):
        sample, look = "One sample, mean of heads: ", "the token of the row looks at that of the column."
        yield f"{sample}the more ink, the more {look}"
        for arm in arms:
            drawn = [draw_attention(arm["name"], one["labels"], one["weights"]) for one in arm["attention"]]
            titles = [f"{arm['name']}, layer {each['layer']}" for each in arm["attention"]]
            yield Gallery(list(zip(drawn, titles, strict=True)))


def _disagreement(each: Values) -> list[Part]:
    by_answer = grouped(each["answers"], each["answers"].get)
    rows = [(answer, ", ".join(arms)) for answer, arms in by_answer.items()]
    header = f"{each['task']}, expected: {' / '.join(each['expected'])}"
    return [Listing(each["question"]), Table((header, "answered by"), rows)]


def _costs(arms: Sequence[Values]) -> Table:
    rows = []
    for name, cost in ((arm["name"], arm["cost"]) for arm in arms):
        shown = (figure(cost[key]) for key in ("flops", "tokens", "seconds"))
        rows.append((name, *shown, f"{cost['parameters']:,}"))
    return Table(("arm", "FLOPs", "tokens", "training seconds", "parameters"), rows)


def _proof(arms: Sequence[Values]) -> list[Part]:
    named = []
    for arm in arms:
        why = "; ".join(arm["differs_because"]) or "nothing"
        named.append((arm["name"], settings_shown(arm["named"]), arm["against"], why))
    proofs = [
        (f"{arm['name']} against {arm['against']}: {stage}", *(proof[fact] for fact in PROOFS))
        for arm in arms
        for stage, proof in arm["proof"].items()
        if arm["against"] != arm["name"]
    ]
    return [
        Table(("arm", "names", "its baseline", "what differs, tuning included"), named),
        "Trainings against those of the baseline, by hash: initial weights, rows in their order, targets.",
        Table(("arm and training", *(fact.replace("_", " ") for fact in PROOFS)), proofs),
    ]


def _power(results: Values) -> Iterator[Part]:
    metric, a_a = results["experiment"]["primary"]["metric"], results["a_a"]
    title = f"smallest visible, {_metrics(results).get(metric, metric)}"
    ours = _of_metric(results["comparisons"], metric)
    yield "Smallest visible: the difference that so many seeds find 8 times in 10."
    yield _by_task(title, ours, _pair, lambda each: _shown(each, "smallest_visible"))
    if a_a:
        yield f"The baseline against itself, seed n against n + {OTHER_SEEDS}; what differs here is noise."
        yield _comparisons(a_a, OF_A_A)
    else:
        yield "No arm was compared with itself."
