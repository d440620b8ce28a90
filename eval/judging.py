"""Is one recipe better than another? A rule that is fixed beforehand, and what it says look by look.

A look is a number of paired seeds after which a judgement may end. The cells are those of `eval/cells.py`, so
recipes share what they do alike, and a cell that any judgement has run is never run again.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.cells import Trial, check_different, trial_of
from eval.effects import Effect, attainable_level, compare_paired, look_level, seeds_needed
from eval.evidence import primary_of
from eval.experiment import ENOUGH_SEEDS, Primary, Recipe
from eval.findings import Scores
from eval.places import Places
from eval.records import notes_of
from eval.tables import figure
from eval.verdicts import UNITS, factor, verdict
from model.errors import UserError
from model.files import write_json
from model.typed_json import read_file

A, B = "A", "B"
NAMES = {"log_likelihood": "log-likelihood", "f1": "F1"}
"""of metrics that are not named by their own words"""


class Measured(NamedTuple):
    """What both recipes scored on the items that all trainings have a score for."""

    a: np.ndarray
    """(seeds, items)"""
    b: np.ndarray
    clusters: np.ndarray
    """(items,)"""
    left_out: int = 0
    """items without a score"""
    notes: Sequence[str] = ()
    """what commands noted of data that they cut or left out"""


@dataclass(frozen=True)
class Rule:
    """When a judgement ends."""

    looks: tuple[int, ...] = (8, 16, 32)
    """numbers of paired seeds after which it may end, 8 or more"""
    alpha: float = 0.05
    """share of recipes that are as good that may be called better or worse, over all looks"""
    bound: float | None = None
    """difference that does not matter, in the primary metric (exact match and F1: of 1): where it can be told
    that there is no larger one, the judgement ends, too"""

    def __post_init__(self) -> None:
        """Refuse what cannot end."""
        if list(self.looks) != sorted({*self.looks}) or min(self.looks, default=0) < ENOUGH_SEEDS:
            wanted = f"--rule.looks: expected rising numbers of seeds from {ENOUGH_SEEDS} on"
            raise UserError(f"{wanted}, got {self.looks}")
        if not 0 < self.alpha < 1:
            raise UserError(f"--rule.alpha: expected more than 0 and below 1, got {self.alpha}")
        if self.bound is not None and self.bound <= 0:
            raise UserError(f"--rule.bound: expected more than 0, got {self.bound}")

    @property
    def level(self) -> float:
        """P at or below which each look decides."""
        return look_level(self.looks, self.alpha)


@dataclass(frozen=True)
class Fixed:
    """What decides, written down before anything runs."""

    rule: Rule
    primary: Primary


@dataclass(frozen=True)
class Judgement:
    """What the look found that ended a judgement."""

    verdict: str
    """one of `eval/verdicts.py`: higher says that B is better"""
    effect: Effect
    spread_of_a: float
    """standard deviation of A over its own seeds"""
    equivalence_p: float | None
    seeds_needed: int | None
    """paired seeds that find a difference as large as the measured one 8 times in 10; None where none do"""
    items_left_out: int = 0
    """which some training has no score for"""
    notes: Sequence[str] = ()


def judge(rule: Rule, measure: Callable[[int], Measured]) -> Judgement:
    """Return the judgement of the first look that decides, or of the last; `measure` takes a number of seeds.

    Group-sequential (Pocock 1977): every look decides at one level, at which all of them together take no
    more than alpha of nulls for differences.
    """
    for seeds in rule.looks:
        a, b, clusters, *left_out = measure(seeds)
        effect = compare_paired(a, b, clusters, rule.level)
        equivalence_p = effect.equivalence(rule.bound) if rule.bound else None
        found = {"p_holm": None, "equivalence_p": equivalence_p, "is_identical": bool((a == b).all())}
        said = verdict(asdict(effect) | found, rule.level)
        if said != "undecided":
            break
    needed = seeds_needed(effect.seed_spread, effect.difference, rule.level)
    return Judgement(said, effect, float(a.mean(axis=1).std(ddof=1)), equivalence_p, needed, *left_out)


def trials_of(recipes: Mapping[str, Recipe], seeds: range) -> list[Trial]:
    """Return what both recipes do with each seed, seed by seed."""
    return [trial_of(recipe.stages, name, {}, seed) for seed in seeds for name, recipe in recipes.items()]


def check_recipes(recipes: Mapping[str, Recipe]) -> str:
    """Return a name for the pair, from all that decides their results.

    Raises `UserError` for recipes that cannot be judged against one another.
    """
    a, b = (recipes[name].primary for name in (A, B))
    if a != b:
        wanted = "expected one primary metric of A and B"
        raise UserError(f"{wanted}, got {a.metric} of {a.task} and {b.metric} of {b.task}")
    trials = trials_of(recipes, range(2))
    check_different(trials, [(A, B)])
    measured = [[cell.address for cell in trial.measured] for trial in trials[:2]]
    return sha256(json.dumps(measured).encode()).hexdigest()[:12]


def place_of(folder: Path, pair: str, rule: Rule, first_seed: int) -> Path:
    """Return the file of a judgement; raises `UserError` where another one of the pair saw its seeds."""
    named = {file.stem.rpartition("-")[2]: file for file in folder.glob(f"{pair}-*.json")}
    for other, file in ((int(seed), file) for seed, file in named.items() if seed.isdecimal()):
        there = _fixed(file).rule.looks[-1]
        if other != first_seed and first_seed < other + there and other < first_seed + rule.looks[-1]:
            raise UserError(
                f"--first_seed {first_seed}: {file} judges the same recipes with seeds {other} to "
                f"{other + there - 1}; expected seeds that it does not see, as {other + there}"
            )
    return folder / f"{pair}-{first_seed}.json"


def fix(file: Path, rule: Rule, primary: Primary) -> Fixed:
    """Write down what decides before anything runs, and return it.

    Raises `UserError` where the file of this pair fixed something else, and for seeds too few to decide.
    """
    last = rule.looks[-1]
    if rule.bound is None and not attainable_level(last, rule.level):
        raise UserError(
            f"--rule.looks: {last} seeds cannot tell recipes apart: p must be at most {rule.level:.2g} and "
            f"is at least {2 / 2**last:.2g}; take more"
        )
    fixed = Fixed(rule, primary)
    if not file.exists():
        save(file, fixed, None)
    elif (former := _fixed(file)) != fixed:
        fault = f"{file} fixed {json.dumps(asdict(former))}; a rule that changes after a look proves nothing"
        raise UserError(f"{fault}: keep it, or judge seeds that nobody has seen (--first_seed)")
    return fixed


def _fixed(file: Path) -> Fixed:
    form = {"fixed": Fixed, "judgement?": dict[str, Any]}
    return read_file(form, file, "take it away")["fixed"]


def save(file: Path, fixed: Fixed, found: Judgement | None) -> None:
    """Write the file of a judgement; without what was found, only what decides."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"fixed": asdict(fixed), "judgement": found and asdict(found)})


def scores_of_pair(trials: list[Trial], places: Places, primary: Primary) -> Measured:
    """Return the scores of finished trials; raises `UserError` where not all were asked the same."""
    records = places.records_of(trials)
    found = {(trial.arm, trial.seed): primary_of(trial, records, primary) for trial in trials}
    asked = [(each["clusters"], each.get("questions")) for each in found.values()]
    told = [each["targets"] for each in found.values() if each["targets"]]
    if any(each != asked[0] for each in asked) or any(each != told[0] for each in told):
        raise UserError(f"{primary.task}: expected the same questions for A and B, got others")
    scores = Scores(asked[0][0], {name: each["scores"] for name, each in found.items()})
    (a, b), clusters = scores.of((A, B), list(dict.fromkeys(trial.seed for trial in trials)))
    return Measured(a, b, clusters, len(scores.clusters) - len(clusters), notes_of(records.values()))


def sentence(found: Judgement, rule: Rule, primary: Primary) -> str:
    """Return the verdict in one sentence."""
    of = f"in {NAMES.get(primary.metric, primary.metric.replace('_', ' '))} on {primary.task}"
    size = _sized(found.effect.difference, primary, is_signed=True)
    words = {
        "higher": f"B is better than A {of}, by {size}",
        "lower": f"B is worse than A {of}, by {size}",
        "identical": f"B and A score the same {of} with every seed",
        "undecided": f"Undecided: B less A is {size} {of}, not told from 0",
    }
    if found.verdict in words:
        return words[found.verdict] + "."
    return f"No difference larger than {_sized(rule.bound, primary)} between B and A {of}."


def details(found: Judgement, rule: Rule, primary: Primary) -> Iterator[tuple[str, str]]:
    """Yield names and values of what the verdict rests on."""
    effect = found.effect
    yield "B less A", _sized(effect.difference, primary, is_signed=True)
    for what, interval in (
        ("these questions", effect.interval),
        ("any such questions", effect.item_interval),
    ):
        if interval:
            ends = " to ".join(_sized(end, primary, is_signed=True) for end in interval)
            yield f"{1 - effect.alpha:.1%} interval, {what}", ends
    yield "p", f"{effect.p_value:.2g}, where a look decides at {effect.alpha:.2g}"
    if found.equivalence_p is not None:
        yield f"p of {_sized(rule.bound, primary)} or more", f"{found.equivalence_p:.2g}"
    yield "seeds, items, clusters", f"{effect.seeds}, {effect.items:,}, {effect.clusters:,}"
    if found.items_left_out:
        yield "items without a score, left out", f"{found.items_left_out:,}"
    yield "looks, fixed beforehand", f"{', '.join(map(str, rule.looks))} seeds; alpha {rule.alpha:g} over all"
    yield "noise floor: A over its seeds", f"spreads by {_sized(found.spread_of_a, primary)}"
    yield "paired differences", f"spread by {_sized(effect.seed_spread, primary)}"
    visible = effect.smallest_visible
    yield "seen 8 times in 10", "nothing" if visible is None else _sized(visible, primary)
    yield "more seeds needed", _still_needed(found)


def _still_needed(found: Judgement) -> str:
    if found.verdict != "undecided":
        return "none"
    more = None if found.seeds_needed is None else max(0, found.seeds_needed - found.effect.seeds)
    needed = "over 100,000" if more is None else f"{more:,}"
    return f"{needed}, if the true difference is the measured one"


def _sized(value: float, primary: Primary, is_signed: bool = False) -> str:
    unit = UNITS.get(primary.metric, "")
    return f"{figure(value * factor(unit), is_signed)} {unit}".strip()
