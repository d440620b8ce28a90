"""What may be said of a difference, in words that claim no more than the numbers do."""

from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from eval.experiment import ENOUGH_SEEDS, Experiment
from eval.tables import Table, grouped

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


def sentence(each: dict[str, Any], experiment: Experiment) -> str:
    """Return what may be said of a comparison in a sentence, with everything that a claim needs."""
    arm, baseline, scale = each["arm"], each["baseline"], factor(each["unit"])
    unit = f" {each['unit']}" if each["unit"] else ""
    what = f"{each['metric']} on {each['task']}"
    size = f"{each['difference'] * scale:+.3g}{unit}"
    apart = f"; {each['tuned_apart']}" if each["tuned_apart"] else ""
    if each["seeds"] == 1:
        return f"{arm} less {baseline}, {what}: {size}{apart}. One seed: says nothing about masks."
    low, high = (bound * scale for bound in each["interval"])
    n = f"{each['seeds']} paired seeds, these {each['items']:,} items"
    n += f", {each['items_left_out']:,} without a score left out" if each["items_left_out"] else ""
    n += apart
    level = f"{100 * (1 - each['alpha']):.3g}%"
    proof = f"{level} interval {low:+.3g} to {high:+.3g}, p {each['p_holm']:.2g} by Holm, {n}"
    match each["verdict"]:
        case "identical":
            return f"{arm} and {baseline} are identical in {what} ({n})."
        case "higher" | "lower":
            doubt = ", though its interval holds 0" * (low <= 0 <= high)
            return f"{arm} is {each['verdict']} than {baseline} in {what} by {size}{doubt} ({proof})."
        case "undecided":
            visible = each["smallest_visible"]
            power = "so few seeds find nothing"
            if visible is not None:
                power = f"{visible * scale:.2g}{unit} would have been seen 8 times in 10"
            return f"{arm} against {baseline} is undecided in {what}: {size} ({proof}; {power})."
        case "equal within the bound":
            bound = f"{experiment.decision.equivalence * scale:.3g}{unit}"
            proof += f", p of equivalence {each['equivalence_p']:.2g}"
            return f"{arm} and {baseline} are equal in {what} within {bound}: {size} ({proof})."
    return f"{arm} less {baseline}, {what}: {size} ({proof}). {each['verdict'].capitalize()}."


def tables(results: dict[str, Any]) -> Iterator[Table]:
    """Yield the arms and their differences by the primary metric, and by exact match if there is one."""
    metrics = (results["experiment"]["primary"]["metric"], "exact_match")
    there = {each["metric"] for each in results["scores"]}
    for metric in dict.fromkeys(metric for metric in metrics if metric in there):
        yield _table(results, metric)


def _table(results: dict[str, Any], metric: str) -> Table:
    unit = UNITS.get(metric, "")
    scale, digits = factor(unit), 1 if unit == "points" else 3
    entries = [each for each in results["scores"] if each["metric"] == metric]
    means = {(each["task"], each["arm"]): f"{each['mean'] * scale:.{digits}f}" for each in entries}
    effects = [each for each in results["comparisons"] if each["metric"] == metric]
    arms = [arm["name"] for arm in results["arms"]]
    pairs = list(dict.fromkeys((each["arm"], each["baseline"]) for each in effects))
    rows = []
    for task, of_task in grouped(effects, itemgetter("task")).items():
        gaps = {(each["arm"], each["baseline"]): _gap(each, scale, digits) for each in of_task}
        name = f"  {task.partition('/')[2]}" if "/" in task else task
        shown = [*(means.get((task, arm), "") for arm in arms), *(gaps.get(pair, "") for pair in pairs)]
        rows.append((name, str(max(each["items"] for each in of_task)), *shown))
    title = metric + (f", {unit}" if unit else "")
    columns = (f"{arm}\N{MINUS SIGN}{baseline}" for arm, baseline in pairs)
    seeds = min(each["seeds"] for each in effects)
    caption = (f"{seeds} paired seeds; in brackets: interval over them", "*: after Holm's correction, too")
    caption = caption if seeds > 1 else ("one seed: says nothing about masks",)
    return Table((title, "n", *arms, *columns), rows, caption)


def _gap(each: dict[str, Any], scale: float, digits: int) -> str:
    size = f"{each['difference'] * scale:+.{digits}f}"
    if each["interval"] is None:
        return size
    low, high = (f"{bound * scale:+.{digits}f}" for bound in each["interval"])
    return f"{size} ({low} to {high})" + ("*" if each["verdict"] in ("higher", "lower") else "")
