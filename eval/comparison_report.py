"""A comparison as tables, as `comparison.json` and `comparison.md`."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from eval.comparison import Comparison, Pairing
from eval.tables import Table, as_markdown, literal, score_table
from model.files import write_json, write_text

REPORT = "comparison"
ONE_SEED = "a single training (seed) of each says nothing about their masks"
SCORE = ("split", "kind", "questions", "correct", "exact_match", "interval")
PAIR = ("first", "second", "split", "kind")
PAIRED = ("questions", "difference", "interval", "p_value")


def scores(found: Comparison) -> Table:
    """Return exact match, losses and training time, a column per run."""
    table = score_table({run.label: run.cells for run in found.runs})
    lower = list(_lower_rows(found))
    rows = (*table.rows, *([()] if table.rows and lower else []), *lower)
    title = table.header if table.rows else ("", *table.header[1:])
    return Table(title, rows, (*(table.caption if table.rows else ()), ONE_SEED))


def _lower_rows(found: Comparison) -> Iterator[tuple[str, ...]]:
    for store, losses in found.losses.items():
        name, first = f"loss on {Path(store).name}", losses[0]
        yield f"{name}, nats/token", str(first.targets), *(f"{loss.nats_per_token:.4f}" for loss in losses)
        if first.text_bytes:
            bits = (f"{loss.bits_per_byte:.4f}" for loss in losses)
            yield f"{name}, bits/byte", str(first.text_bytes), *bits
    seconds = [run.seconds for run in found.runs]
    times = ["" if each is None else str(timedelta(seconds=round(min(each, 1e9)))) for each in seconds]
    if any(times):
        yield "training time", "", *times


def paired_tables(found: Comparison) -> list[Table]:
    """Return a table for each run against the first: which questions only one of both answered rightly."""
    first, *others = (run.label for run in found.runs)
    caption = (
        "difference of {} to {} with its 95% interval (Bonett and Price 2012)",
        "p: McNemar's exact test, for each line by itself",
    )
    tables = []
    for second in others if found.pairings else ():
        title = (f"{first} and {second}, paired", "n", f"only {first}", f"only {second}")
        rows = tuple(_paired_row(each) for each in found.pairings if each.second == second)
        captions = (caption[0].format(second, first), caption[1])
        tables.append(Table((*title, "difference, points", "p"), rows, captions))
    return tables


def _paired_row(each: Pairing) -> tuple[str, ...]:
    counts, (low, high) = each.counts, each.counts.interval
    difference = f"{counts.difference * 100:+.1f} ({low * 100:+.1f} to {high * 100:+.1f})"
    numbers = counts.questions, counts.only_first, counts.only_second
    name = f"  {each.kind}" if each.kind else each.split
    return name, *map(str, numbers), difference, f"{counts.p_value:.2g}"


def save_report(folder: Path, found: Comparison) -> None:
    """Write `comparison.json` and `comparison.md` into a folder, each whole or not at all."""
    write_json(folder / f"{REPORT}.json", as_json(found))
    names = [f"* {literal(run.label)}: {literal(str(run.path))}" for run in found.runs]
    notes = [f"* {literal(note)}" for note in found.notes]
    tables = map(as_markdown, (scores(found), *paired_tables(found)))
    parts = ["# Comparison", "\n".join(names), *tables, *(["\n".join(notes)] if notes else [])]
    write_text(folder / f"{REPORT}.md", "\n\n".join(parts) + "\n")


def as_json(found: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON holds it."""
    runs = [
        {
            "label": run.label,
            "path": str(run.path),
            "model": str(run.model),
            "prompt_mask": run.evaluation.prompt_mask,
            "training_seconds": run.seconds,
            "scores": [_named(cell, *SCORE) for cell in run.cells],
        }
        for run in found.runs
    ]
    pairs = [_named(of, *PAIR) | asdict(of.counts) | _named(of.counts, *PAIRED) for of in found.pairings]
    losses = []
    for store, of in found.losses.items():
        by_run = {run.label: loss for run, loss in zip(found.runs, of, strict=True)}
        values = {
            name: {label: getattr(loss, name) for label, loss in by_run.items()}
            for name in ("nats_per_token", "bits_per_byte")
        }
        losses.append({"store": store, **_named(of[0], "targets", "text_bytes"), **values})
    return {"runs": runs, "paired": pairs, "losses": losses, "notes": [*found.notes, ONE_SEED]}


def _named(of: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(of, name) for name in names}
