"""The record of a finished cell: what is read of it, whoever made it, and what may be wrong with it.

Made by `eval/running.py` from the files that a command leaves; records and files may have other keys, too.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from model.typed_json import Number

MEASURED = {"clusters": list[int], "metrics": dict[str, list[Number | None]], "questions?": str}
"""the scores of the items of a task, null where an item has none"""
LOSSES = {"losses": dict[str, dict[str, float | None]], "targets?": dict[str, list[int]]}
ITEMS = {"tasks": dict[str, MEASURED], **LOSSES}
"""items.json"""
PROOF = {"initial_weights": str, "rows": str, "targets": str}
"""hashes of what a training began with and was given"""
TRAINING = {
    **{"proof": PROOF, "flops": float, "tokens": int, "seconds": float, "parameters": int},
    "device?": str,
}
"""summary.json"""
POINT = {"step": int, "loss?": Number, "validation?": str, "nats_per_token?": Number}
"""a line of metrics.jsonl"""
SAID = {"task": str, "question": str, "expected": list[str], "answer": str}
"""an answer to a question"""
MEASURES = {"items?": ITEMS, "said?": list[SAID]}
RESULT = {"training?": TRAINING, "curve?": list[POINT], **MEASURES, "notes?": list[str]}
"""what came of a cell that trains, measures, or both; and what any noted of its data"""
NAMED = {"address": str, "stage": str, "run": str, "settings": dict[str, Any]}
MADE_BY = {"machine": str, "processor?": str, "python?": str, "versions": dict[str, str], "commit?": str}
RECORD = {**NAMED, **MADE_BY, "command": str, "threads?": int, "seconds": float, "result": RESULT}
Values = dict[str, Any]
LARGEST = 1e100
"""what no score reaches of which sums and squares are finite, too"""


def notes_of(records: Collection[Values]) -> list[str]:
    """Return what commands noted of their data, by stage, and how many of its cells did."""
    cells = Counter(record["stage"] for record in records)
    noted = Counter((each["stage"], note) for each in records for note in each["result"].get("notes", ()))
    return [f"{stage}, {n:,} of {cells[stage]:,} cells: {note}" for (stage, note), n in noted.items()]


def not_finite(items: Values) -> str | None:
    """Return the name of a score that is no number to compute with, of the first one if there are several."""
    for name, scores, _ in _scores(items):
        if not all(score is None or abs(score) < LARGEST for score in scores):
            return name
    return None


def fault_of(result: Values, trains: bool, measures: bool) -> str | None:
    """Return what no finished cell of the kind has in its result."""
    wanted = ("training", "curve") * trains + ("items",) * measures
    if missing := [key for key in wanted if result.get(key) is None]:
        return f"result: {missing[0]} is missing"
    if measures and (name := not_finite(result["items"])):
        return f"{name} is not finite"
    for name, scores, count in _scores(result["items"]) if measures else ():
        if len(scores) != count:
            return f"{name}: expected a score for each of {count} items, got {len(scores)}"
    return None


def _scores(items: Values) -> Iterator[tuple[str, list[float | None], int]]:
    """Yield a name for all scores by one metric, these, and how many there ought to be."""
    for task, measured in items["tasks"].items():
        for metric, scores in measured["metrics"].items():
            yield f"{metric} on {task}", scores, len(measured["clusters"])
    for store, loss in items["losses"].items():
        yield from ((f"{name} on {store}", [value], 1) for name, value in loss.items())
