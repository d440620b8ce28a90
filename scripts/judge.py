"""Judge whether recipe B is better than recipe A: paired seeds, until a rule fixed beforehand decides."""

import sys

if not __package__:
    print("error: run python -m scripts.judge from the repository root", file=sys.stderr)
    sys.exit(2)

from dataclasses import dataclass
from pathlib import Path

from dataset.command_line import parse, run
from dataset.printing import NOTE, printable
from eval import judging
from eval.cells import Cell
from eval.experiment import load_recipe
from eval.grid import Grid, Workers, showing
from eval.places import Places, check_out
from model.errors import UserError


@dataclass(frozen=True)
class JudgeSettings:
    """Which recipes are judged, and where."""

    a: str
    """recipe that stands: an experiment's file without arms, as configs/ablation has them"""
    b: str
    """recipe that may be better; both name the same primary metric"""
    out: str
    """folder for judgements/, cells/ and work/; judgements that share it share cells, so A runs once"""
    rule: judging.Rule = judging.Rule()
    first_seed: int = 0
    """first of the paired seeds; seeds that no search has seen confirm what it found"""
    threads: int = 0
    """of all cells at once; default: as many as there are cores"""

    def __post_init__(self) -> None:
        """Refuse what runs nothing."""
        if self.threads < 0 or self.first_seed < 0:
            raise UserError("--threads, --first_seed: expected 0 or more, got less")


def main() -> None:
    """Fix the rule, run seeds until it decides, and print the verdict and what it rests on."""
    settings = parse(JudgeSettings, __doc__)
    out, rule = Path(settings.out), settings.rule
    folder = out / "judgements"
    check_out(out, folder.name)
    recipes = {judging.A: load_recipe(settings.a), judging.B: load_recipe(settings.b)}
    primary, first = recipes[judging.A].primary, settings.first_seed
    file = judging.place_of(folder, judging.check_recipes(recipes), rule, first)
    fixed = judging.fix(file, rule, primary)
    places = Places(out / "cells", out / "work")
    workers = Workers(settings.threads)

    def measure(seeds: int) -> judging.Measured:
        trials = judging.trials_of(recipes, range(first, first + seeds))
        with showing() as show:

            def shown(grid: Grid, ended: Cell | None) -> None:
                show(grid, ended)
                for address, words in grid.failed.items():  # its pair is lost
                    log = places.work / address / "log.txt"
                    raise UserError(f"{address} failed: {words}; {log} says more")

            Grid(trials, places, workers).run(shown)
        return judging.scores_of_pair(trials, places, primary)

    found = judging.judge(rule, measure)
    judging.save(file, fixed, found)
    print(printable(judging.sentence(found, rule, primary)) + "\n")
    for name, value in judging.details(found, rule, primary):
        print(printable(f"  {name:<40}{value}"))
    print(printable(f"  {'in full':<40}{file}"))
    for note in found.notes:
        print(printable(f"{NOTE}{note}"))
    if (number := len(list(file.parent.glob("*.json")))) > 1:
        by_chance = f"{number * rule.alpha:.2g} of {number} recipes that are as good"
        print(f"\n{number} judgements lie there, and chance calls {by_chance} better or worse:")
        print("confirm with --first_seed, on seeds that no search has seen, what a search has found")


if __name__ == "__main__":
    run(main)
