"""What may be said of a difference, in words that claim no more than the numbers do."""

from collections.abc import Iterator, Sequence
from typing import Any

from eval.experiment import ENOUGH_SEEDS, Experiment
from eval.tables import Table

UNITS = {"log_likelihood": "nats", "exact_match": "points", "f1": "points"}
"""of metrics"""
DECIDED = ("identical", "higher", "lower", "equal within the bound")
INCOMPLETE = "some cells failed: no claim until they are there"
TOO_FEW = f"fewer than {ENOUGH_SEEDS} paired seeds: no claim"


def factor(unit: str) -> int:
    """Return what a value is shown times: points are shares of 100."""
    return 100 if unit == "points" else 1


def verdict(each: dict[str, Any], alpha: float) -> str:
    """Return what may be said of a comparison, p being corrected where more than one was tried."""
    if each["is_identical"]:
        return "identical"
    if each["seeds"] < ENOUGH_SEEDS:
        return TOO_FEW
    if (each["p_value"] if each["p_holm"] is None else each["p_holm"]) <= alpha:
        return "higher" if each["difference"] > 0 else "lower"
    if each["equivalence_p"] is not None and each["equivalence_p"] <= alpha:
        return DECIDED[-1]
    return "undecided"


def answer(experiment: Experiment, comparisons: Sequence[dict[str, Any]], remarks: Sequence[str]) -> str:
    """Return the answer in a sentence for each pair of arms, with everything that a claim needs."""
    sentences = [_sentence(each, experiment) for each in comparisons if each["is_primary"]]
    return " ".join([*sentences, *(f"Note: {remark}." for remark in remarks)])


def _sentence(each: dict[str, Any], experiment: Experiment) -> str:
    unit = f" {each['unit']}" if each["unit"] else ""
    scale = factor(each["unit"])
    what = f"{each['metric'].replace('_', '-')} on {each['task']}"
    size = f"{each['difference'] * scale:+.3g}{unit}"
    if each["seeds"] == 1:
        return f"{each['arm']} less {each['baseline']}, {what}: {size}. One seed: says nothing about masks."
    low, high = (bound * scale for bound in each["interval"])
    n = f"{each['seeds']} paired seeds, these {each['items']:,} items"
    n += f", {each['items_left_out']:,} without a score left out" if each["items_left_out"] else ""
    level = f"{100 * (1 - each['alpha']):.3g}%"
    proof = f"{level} interval {low:+.3g} to {high:+.3g}, p {each['p_holm']:.2g} by Holm, {n}"
    if each["verdict"] in (TOO_FEW, INCOMPLETE):
        why = each["verdict"].capitalize()
        return f"{each['arm']} less {each['baseline']}, {what}: {size} ({proof}). {why}."
    if each["verdict"] == "identical":
        return f"{each['arm']} and {each['baseline']} are identical in {what} ({n})."
    if each["verdict"] in ("higher", "lower"):
        return f"{each['arm']} is {each['verdict']} than {each['baseline']} in {what} by {size} ({proof})."
    if each["verdict"].startswith("equal"):
        bound = f"{experiment.decision.equivalence * scale:.3g}{unit}"
        proof += f", p of equivalence {each['equivalence_p']:.2g}"
        return f"{each['arm']} and {each['baseline']} are equal in {what} within {bound}: {size} ({proof})."
    visible = each["smallest_visible"]
    power = (
        "so few seeds find nothing"
        if visible is None
        else f"{visible * scale:.2g}{unit} would have been seen 8 times in 10"
    )
    return f"{each['arm']} against {each['baseline']} is undecided in {what}: {size} ({proof}; {power})."


def tables(results: dict[str, Any]) -> Iterator[Table]:
    """Yield the arms and their differences by the primary metric, and by exact match if there is one."""
    metrics = (results["experiment"]["primary"]["metric"], "exact_match")
    there = {each["metric"] for each in results["scores"]}
    for metric in dict.fromkeys(metric for metric in metrics if metric in there):
        yield _table(results, metric)


def _table(results: dict[str, Any], metric: str) -> Table:
    unit = UNITS.get(metric, "")
    scale, digits = factor(unit), 1 if unit == "points" else 3
    means = _named(results["scores"], metric, "task", "arm")
    effects = _named(results["comparisons"], metric, "task", "arm", "baseline")
    arms = [arm["name"] for arm in results["arms"]]
    pairs = list(dict.fromkeys((arm, baseline) for _, arm, baseline in effects))
    rows = []
    for task in dict.fromkeys(task for task, *_ in effects):
        items = str(max(effects[task, *pair]["items"] for pair in pairs if (task, *pair) in effects))
        levels = [means[task, arm]["mean"] if (task, arm) in means else None for arm in arms]
        shown = ("" if level is None else f"{level * scale:.{digits}f}" for level in levels)
        gaps = (_gap(effects.get((task, *pair)), scale, digits) for pair in pairs)
        name = f"  {task.partition('/')[2]}" if "/" in task else task
        rows.append((name, items, *shown, *gaps))
    seeds = min(each["seeds"] for each in effects.values())
    title = metric.replace("_", "-") + (f", {unit}" if unit else "")
    caption = [f"{seeds} paired seeds; in brackets: interval over them", "*: after Holm's correction, too"]
    caption = caption if seeds > 1 else ["one seed: says nothing about masks"]
    columns = (f"{arm}\N{MINUS SIGN}{baseline}" for arm, baseline in pairs)
    return Table((title, "n", *arms, *columns), tuple(rows), tuple(caption))


def _named(
    entries: Sequence[dict[str, Any]], metric: str, *keys: str
) -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(each[key] for key in keys): each for each in entries if each["metric"] == metric}


def _gap(each: dict[str, Any] | None, scale: float, digits: int) -> str:
    if each is None:
        return ""
    size = f"{each['difference'] * scale:+.{digits}f}"
    if each["interval"] is None:
        return size
    low, high = (f"{bound * scale:+.{digits}f}" for bound in each["interval"])
    return f"{size} ({low} to {high})" + ("*" if each["verdict"] in ("higher", "lower") else "")
