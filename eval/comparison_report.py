"""A comparison as tables, as `comparison.json` and `comparison.md`."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from eval.comparison import Comparison, LossRow, Pairing, Run
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
    times = tuple(_time(run) for run in found.runs)
    lower = [*_loss_lines(found), *([("training time", "", *times)] if any(times) else [])]
    rows = (*table.rows, *([()] if table.rows and lower else []), *lower)
    title = table.header if table.rows else ("", *table.header[1:])
    return Table(title, rows, (*(table.caption if table.rows else ()), ONE_SEED))


def _loss_lines(found: Comparison) -> Iterator[tuple[str, ...]]:
    for row in found.losses:
        name, losses = f"loss on {Path(row.store).name}", row.losses
        yield (
            f"{name}, nats/token",
            str(losses[0].targets),
            *(f"{loss.nats_per_token:.4f}" for loss in losses),
        )
        if losses[0].text_bytes:
            bits = (f"{loss.bits_per_byte:.4f}" for loss in losses)
            yield f"{name}, bits/byte", str(losses[0].text_bytes), *bits


def _time(run: Run) -> str:
    return "" if run.seconds is None else str(timedelta(seconds=round(min(run.seconds, 1e9))))


def paired_tables(found: Comparison) -> list[Table]:
    """Return a table for each run against the first: which questions only one of both answered rightly."""
    first, *others = (run.label for run in found.runs)
    return [_paired_table(found, first, second) for second in others] if found.pairings else []


def _paired_table(found: Comparison, first: str, second: str) -> Table:
    header = f"{first} and {second}, paired", "n", f"only {first}", f"only {second}"
    caption = (
        f"difference of {second} to {first} with its 95% interval (Bonett and Price 2012)",
        "p: McNemar's exact test, for each line by itself",
    )
    rows = (_paired_row(each) for each in found.pairings if each.second == second)
    return Table((*header, "difference, points", "p"), tuple(rows), caption)


def _paired_row(each: Pairing) -> tuple[str, ...]:
    counts, (low, high) = each.counts, each.counts.interval
    difference = f"{counts.difference * 100:+.1f} ({low * 100:+.1f} to {high * 100:+.1f})"
    numbers = counts.questions, counts.only_first, counts.only_second
    name = f"  {each.kind}" if each.kind else each.split
    return name, *map(str, numbers), difference, f"{counts.p_value:.2g}"


def save_report(folder: Path, found: Comparison) -> None:
    """Write `comparison.json` and `comparison.md` into a folder, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{REPORT}.json", as_json(found))
    write_text(folder / f"{REPORT}.md", as_page(found))


def as_page(found: Comparison) -> str:
    """Return the comparison as a page of Markdown."""
    names = [f"* {literal(run.label)}: {literal(str(run.path))}" for run in found.runs]
    tables = [as_markdown(table) for table in (scores(found), *paired_tables(found))]
    notes = ["\n".join(f"* {literal(note)}" for note in found.notes)] if found.notes else []
    return "\n\n".join(["# Comparison", "\n".join(names), *tables, *notes]) + "\n"


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
    paired = [
        _named(each, *PAIR) | asdict(each.counts) | _named(each.counts, *PAIRED) for each in found.pairings
    ]
    losses = [_losses(row, [run.label for run in found.runs]) for row in found.losses]
    return {"runs": runs, "paired": paired, "losses": losses, "notes": [*found.notes, ONE_SEED]}


def _named(of: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(of, name) for name in names}


def _losses(row: LossRow, labels: list[str]) -> dict[str, Any]:
    by_label = {
        name: {label: getattr(loss, name) for label, loss in zip(labels, row.losses, strict=True)}
        for name in ("nats_per_token", "bits_per_byte")
    }
    return {"store": row.store, **_named(row.losses[0], "targets", "text_bytes"), **by_label}
