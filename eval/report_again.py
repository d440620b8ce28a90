"""The end of an experiment's report: what was tuned, what each number is, and how to get it again."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from dataset.printing import printable
from eval.experiment import A_A, OTHER_SEEDS
from eval.pages import Fold, Listing, Part
from eval.tables import Table, figure, grouped
from eval.verdicts import UNITS, factor

Values = Mapping[str, Any]
COMPARE = (
    "python -c \"import json; print(json.load(open('OUT/items.json'))"
    " == json.load(open('cells/ADDRESS.json'))['result']['items'])\""
)


def closing_sections(results: Values) -> Iterator[tuple[str, Iterable[Part]]]:
    """Yield the titles of the last sections of a report, and what stands in them."""
    yield "Tuned settings", _tuned(results)
    named, where = Path(__file__).with_name("numbers.txt").read_text(encoding="utf-8").split("\n\n")
    yield "What each number is", named.splitlines()
    ours = {cell["address"] for cell in results["cells"]}
    tuning = [cell for cell in results["tuning"]["cells"] if cell["address"] not in ours]
    yield "Failures", _failures([*results["cells"], *tuning])
    noted = "\n".join(results["experiment"]["notes"])
    yield "What commands noted of their data", [Listing(printable(noted, keep="\n"))] if noted else []
    yield "Every cell and its command", _cells(results["cells"], tuning)
    yield "How to get any number again", _again(results, where.splitlines())


def settings_shown(values: Values) -> str:
    """Return settings in a line."""
    return ", ".join(f"{name} = {value}" for name, value in values.items()) or "nothing"


def _tuned(results: Values) -> Iterator[Part]:
    primary, best = results["experiment"]["primary"], results["experiment"]["tuned"]
    scale, rows = factor(UNITS.get(primary["metric"], "")), []
    for each in results["tuning"]["tried"]:
        score = figure(None if each["score"] is None else each["score"] * scale)
        taken = "taken" if each["settings"] == best[each["arm"]] else ""
        name = f"{each['arm']}: {settings_shown(each['settings'])}"
        rows.append((name, score, taken, ", ".join(each["cells"])))
    if rows:
        yield "Each arm takes what scores best on a seed that is used nowhere else."
        yield Table(("arm and settings", f"{primary['metric']} on {primary['task']}", "", "cells"), rows)


def _failures(cells: Sequence[Values]) -> Iterator[Part]:
    unfinished = [cell for cell in cells if cell["status"] != "finished"]
    yield f"{len(unfinished)} of {len(cells)} cells did not finish."
    if unfinished:
        rows = [(_cell_name(cell), cell["status"], cell["error"] or "") for cell in unfinished]
        yield Table(("cell", "status", "error"), rows)


def _cell_name(cell: Values) -> str:
    shift = f" + {OTHER_SEEDS}" if cell["arms"] == [A_A] else ""
    seed = "" if cell["seed"] is None else f", seed {cell['seed']}{shift}"
    return f"{cell['stage']} of {', '.join(cell['arms'])}{seed} ({cell['address']})"


def _cells(cells: Sequence[Values], tuning: Sequence[Values]) -> Iterator[Part]:
    hours = sum(cell["seconds"] or 0 for cell in (*cells, *tuning)) / 3600
    yield f"{len(cells)} cells, and {len(tuning)} in tuning, took {figure(hours)} hours of wall time in all."
    for what, listed in (("", cells), (" in tuning", tuning)):
        for stage, of_stage in grouped(listed, itemgetter("stage")).items():
            listing = Listing("\n\n".join(map(_cell, of_stage)))
            yield Fold(f"{stage}{what}, cells: {len(of_stage)}", [listing])


def _cell(cell: Values) -> str:
    facts = f"{cell['status']}, {figure(cell['seconds'])} s wall time, commit {cell['commit'] or '–'}"
    threads = f"OMP_NUM_THREADS={cell['threads']} " if cell["threads"] else ""
    return f"# {printable(_cell_name(cell))}: {facts}\n{threads}{cell['command']}"


def _again(results: Values, where: Sequence[str]) -> Iterator[Part]:
    experiment, decision = results["experiment"], results["experiment"]["decision"]
    commits = {cell["commit"] for cell in results["cells"]}
    commit = commits.pop() if len(commits) == 1 else "COMMIT"
    yield from where
    yield "All again, in a clone of this repository; cells whose records lie in --out do not run again:"
    yield Listing(f"git checkout {commit}\npip install -r requirements.txt\n{experiment['command']}")
    yield "One cell again: its command, after those that it reads from. With OUT its --out, this prints True:"
    yield Listing(COMPARE)
    made_by = {"Python": results["python"] or "–"} | results["versions"]
    rows = [
        ("hash of the experiment", experiment["hash"]),
        ("seeds", ", ".join(map(str, experiment["seeds"]))),
        ("looks, in seeds", ", ".join(map(str, decision["looks"])) or "none before the end"),
        ("alpha, and of this look", f"{decision['alpha']}, {decision['alpha_of_look']:.3g}"),
        ("bound of equivalence", str(decision["equivalence"] or "none")),
        ("primary", ", ".join(experiment["primary"].values())),
        ("cells: machine", results["machine"]),
        ("cells: processor", results.get("processor") or "–"),
        ("cells: device", ", ".join(results["devices"]) or "–"),
        *((f"cells: {name}", version) for name, version in made_by.items()),
        *((f"statistics: {name}", version) for name, version in results["statistics"].items()),
    ]
    yield Table(("fixed beforehand, and made by", "value"), rows)
