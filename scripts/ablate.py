"""Settle a question about masks: run an experiment's cells, and write the report with its statistics."""

import sys

if not __package__:
    print("error: run python -m scripts.ablate from the repository root", file=sys.stderr)
    sys.exit(2)

import shlex
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill

from dataset.command_line import parse, run
from dataset.printing import printable
from eval.ablation import run_experiment
from eval.experiment import load_experiment
from eval.grid import Workers, showing
from eval.places import EXPERIMENTS, Places, check_out, link, note_experiment
from eval.tables import as_text
from eval.verdicts import tables
from model.files import write_json


@dataclass(frozen=True, kw_only=True)
class AblateSettings(Workers):
    """Which experiment runs, and where; the other flags are those of what runs its cells."""

    config: str
    """file of the experiment, as those in configs/ablation"""
    out: str
    """folder for report.html, report.md, results.json and cells/, the records of finished cells"""
    seeds: int | None = None
    """paired seeds instead of those of the file, which makes it another experiment"""
    work: str | None = None
    """folder for what cells write, models and data; default: work in --out. Experiments may share one"""


def main() -> None:
    """Run what is missing, write the report, and print the answer."""
    settings = parse(AblateSettings, __doc__)
    out = Path(settings.out)
    check_out(out, EXPERIMENTS)
    from eval.looks import add_looks
    from eval.report import write_report

    experiment = load_experiment(settings.config, settings.seeds)
    places = Places(out / "cells", Path(settings.work or out / "work"))
    words = ["python", "-m", "scripts.ablate", "--config", settings.config, "--out", settings.out]
    words += ["--seeds", str(settings.seeds)] if settings.seeds else []
    words += ["--gpus_per_cell", str(settings.gpus_per_cell)] if settings.gpus_per_cell else []
    title = f"{experiment.question}\nexperiment {experiment.name}, hash {experiment.hash}"
    print(printable(title, keep="\n"))
    former = note_experiment(out, experiment)
    with showing() as show:
        results, trials = run_experiment(experiment, places, settings, shlex.join(words), show, former)
    add_looks(results, trials, places.work, out / "results.json")
    write_json(out / "results.json", results, indent=None)
    link(trials, experiment.links, places.work, out)
    write_report(out, results)
    for table in tables(results):
        print("\n" + as_text(table, get_terminal_size().columns))
    print("\n" + fill(printable(results["answer"]), get_terminal_size().columns))
    print(printable(f"{out / 'report.html'}, {out / 'report.md'}: how that is known, and more"))
    every = {each["address"]: each["status"] for each in results["cells"] + results["tuning"]["cells"]}
    if failed := [*every.values()].count("failed"):
        sys.exit(printable(f"{failed} cells failed: see {out / 'report.md'}; the same command tries again"))


if __name__ == "__main__":
    run(main)
