"""An experiment as its file fixes it: question, stages, arms, seeds, and the rule that decides.

    question: Does a prefix mask in fine-tuning help a small model to read?
    stages:                     # in order; each is one command, @name the folder that an earlier one wrote
      world:  {run: build_world}    # threads: 2 beside run lets its command compute with two
      sft:    {run: sft, data: ["@chats"], init: "@pretrain"}
      scores: {run: evaluate, model: "@sft", data: ["@world/eval/*.jsonl"]}
    arms:                       # the first is the baseline; an arm names what it does otherwise
      causal: {}
      prefix: {sft.prompt_mask: prefix}
    primary: {task: stories_context_first}

`stages_of: FILE` begins with the stages of another experiment, however it came by them, whose settings those
of this file change.
What a stage is told to do becomes cells in `eval/cells.py`; what comes out of it, `eval/findings.py`'s. Owns
neither, and imports no torch.
"""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from dataset.printing import tell
from dataset.yaml_file import read_yaml
from model.errors import UserError, brief
from model.typed_json import read_as
from trainer.settings import flatten

Form = TypeVar("Form")
A_A = "A/A"
"""arm that is the baseline with other seeds: what differences mean nothing"""
LONGEST_NAME = 255
"""bytes of the name of a folder, as file systems have it"""
OTHER_SEEDS = 10_000
"""added to the seeds of the A/A arm"""
ENOUGH_SEEDS = 8
"""paired seeds from which on an exact test over six tasks can find anything"""
FOLDERS = ("cells", "work")
"""what else lies in the folder of an experiment"""
Stages = dict[str, dict[str, Any]]
"""names of stages and what each is told to do, with dotted keys"""


@dataclass(frozen=True)
class Primary:
    """The one number that decides."""

    task: str
    """split of the questions, or the name that a task gives itself; "loss STORE" for a store's"""
    metric: str = "log_likelihood"


@dataclass(frozen=True)
class Decision:
    """When a difference counts, fixed before the first cell runs."""

    alpha: float = 0.05
    """share of null differences that may be taken for real ones"""
    equivalence: float | None = None
    """difference of the primary metric below which arms count as equal"""
    looks: tuple[int, ...] = ()
    """numbers of seeds at which the experiment may end; all of them, once, if not given"""


@dataclass(frozen=True)
class Experiment:
    """What an experiment's file says; all but name and links decides results, and stands in its hash."""

    name: str
    """of its file, which decides nothing; nor do links"""
    question: str
    stages: Stages
    primary: Primary
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """what each arm sets otherwise, as stage.setting"""
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """instead of arms: values of each stage.setting, of which every combination is an arm"""
    contrasts: tuple[tuple[str, ...], ...] = ()
    """pairs of arm and baseline; each arm and the first one if not given"""
    seeds: int = ENOUGH_SEEDS
    """paired seeds, numbered from 0"""
    decision: Decision = Decision()
    tune: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """values of a stage.setting, of which every arm takes its own best"""
    tuning_seed: int = 2 * OTHER_SEEDS
    """which decides that, and is used for nothing else"""
    links: tuple[str, ...] = ()
    """stages whose folders, of the first seed, get a name in --out: STAGE, or STAGE-ARM where arms differ"""

    def __post_init__(self) -> None:
        """Refuse what compares nothing."""
        if bool(self.arms) == bool(self.grid):
            raise UserError("expected arms or a grid, got " + ("both" if self.arms else "neither"))
        if not 1 <= self.seeds < OTHER_SEEDS:
            raise UserError(f"seeds: expected 1 to {OTHER_SEEDS - 1}, got {self.seeds}")
        looks = self.decision.looks
        if looks and (list(looks) != sorted({*looks}) or looks[0] < 2 or looks[-1] != self.seeds):
            raise UserError(f"decision.looks: expected rising numbers up to seeds {self.seeds}, got {looks}")
        bound = self.decision.equivalence
        if bound is not None and bound <= 0:
            raise UserError(f"decision.equivalence: expected more than 0, got {bound}")
        used = {*range(self.seeds), *range(OTHER_SEEDS, OTHER_SEEDS + self.seeds)}
        if self.tuning_seed in used:
            raise UserError(f"tuning_seed: expected one that no arm is measured with, got {self.tuning_seed}")
        if empty := [key for key, values in self.tune.items() if not values]:
            raise UserError(f"tune: {empty[0]}: expected values, got none")
        for arm, settings in self.named.items():
            if both := self.tune.keys() & settings:
                raise UserError(f"tune: arm {arm} names {min(both)} itself; leave one of them out")
        if not 0 < self.decision.alpha < 1:
            raise UserError(f"decision.alpha: expected more than 0 and below 1, got {self.decision.alpha}")
        if len(self.named) < prod(map(len, self.grid.values())):
            wanted = "grid: expected arms with names of their own"
            raise UserError(f"{wanted}, got {', '.join(self.named)} for several")
        if len(self.named) < 2:
            raise UserError("arms: expected two or more, got one, which compares nothing")
        if A_A in self.named:
            raise UserError(f"arms: {A_A} is the name of the baseline with other seeds; choose another")
        for key in (*self.tune, *(key for arm in self.named.values() for key in arm)):
            if key.partition(".")[0] not in self.stages or "." not in key:
                names = ", ".join(self.stages)
                raise UserError(f"{key}: expected stage.setting with a stage of {names}")
        if unknown := {*self.links} - self.stages.keys():
            raise UserError(f"links: expected stages of {', '.join(self.stages)}, got {min(unknown)}")
        names = Counter(link_name(stage, arm) for stage in self.links for arm in ("", *self.named))
        if taken := [name for name, count in names.items() if count > 1 or name in FOLDERS]:
            raise UserError(f"links: {taken[0]} would name several folders; rename a stage or an arm")
        if long := [name for name in names if len(name.encode()) > LONGEST_NAME]:
            wanted = f"expected names of up to {LONGEST_NAME} bytes"
            raise UserError(f"links: {wanted}, got {brief(long[0])}; rename an arm")
        for pair in self.pairs:
            if len(pair) != 2 or not {*pair} <= self.named.keys() or pair[0] == pair[1]:
                raise UserError(f"contrasts: expected pairs of different arms, got {' and '.join(pair)}")

    @property
    def named(self) -> dict[str, dict[str, Any]]:
        """What each arm names, in order; the arms of a grid are called after their values."""
        if self.arms:
            return self.arms
        return {
            "/".join(map(str, values)): dict(zip(self.grid, values, strict=True))
            for values in product(*self.grid.values())
        }

    @property
    def baseline(self) -> str:
        """The arm that the A/A arm repeats."""
        return next(iter(self.named))

    @property
    def pairs(self) -> tuple[tuple[str, ...], ...]:
        """What is compared: (arm, baseline)."""
        return self.contrasts or tuple((arm, self.baseline) for arm in self.named if arm != self.baseline)

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of seeds after which the experiment may end."""
        return self.decision.looks or (self.seeds,)

    @property
    def hash(self) -> str:
        """Changes whenever anything does that the file fixes; two files that say the same are one."""
        decides = asdict(self) | {"name": "", "links": ()}
        return sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def link_name(stage: str, arm: str = "") -> str:
    """Return the name in --out of the folder of a stage; "" is for one that all arms share."""
    return f"{stage}-{arm.replace('/', '-')}" if arm else stage


@dataclass(frozen=True)
class Recipe:
    """One way to train and measure: an experiment's file without arms."""

    stages: Stages
    primary: Primary
    question: str = ""


def load_recipe(path: str) -> Recipe:
    """Read a recipe; raises `UserError` that names what is wrong with it."""
    return _as(Recipe, _content(path), path)


def load_experiment(path: str, seeds: int | None = None) -> Experiment:
    """Read an experiment's file, with another number of seeds if one is given.

    Raises `UserError` that names what is wrong with it.
    """
    content = _content(path) | {"name": Path(path).stem}
    if content.get("arms"):
        content["arms"] = _flat(content["arms"], path, "arms")
    if seeds is not None:
        content["seeds"] = seeds
        if isinstance(decision := content.get("decision"), dict) and decision.pop("looks", None):
            tell(f"--seeds {seeds}: decided once, after all of them, not by the looks of {path}")
    return _as(Experiment, content, path)


def _as(form: type[Form], content: dict[str, Any], path: str) -> Form:
    try:
        return read_as(form, content, Path(path).name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except ValueError as error:
        raise UserError(f"{error}; docs/experiments.md has the form") from None


def _content(path: str) -> dict[str, Any]:
    content = _read(path)
    stages = _stages(content, path)
    return {key: value for key, value in content.items() if key != "stages_of"} | {"stages": stages}


def _read(path: str, what: str = "") -> dict[str, Any]:
    """Return what a file says; raises `UserError` for what JSON has no form of, such as dates."""
    content = read_yaml(path, what)
    try:
        json.dumps(content)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}{path}: {error}; write a text in quotes") from None
    return content


def _stages(content: dict[str, Any], path: str, above: tuple[str, ...] = ()) -> Stages:
    """Return the stages of a file, over those of the experiment that its `stages_of` names.

    `above` are the files that led here; raises `UserError` where they go round in a circle.
    """
    own = _flat(content.get("stages") or {}, path, "stages")
    if "stages_of" not in content:
        return own
    base, above = str(content["stages_of"]), (*above, path)
    if base in above:
        raise UserError(f"{path}: stages_of: expected a file that does not begin with this one, got {base}")
    former = _stages(_read(base, f"{path}: stages_of: "), base, above)
    return former | {stage: former.get(stage, {}) | settings for stage, settings in own.items()}


def _flat(groups: Any, path: str, what: str) -> Stages:
    """Return groups of settings with dotted keys, however deep the file nests them."""
    if not isinstance(groups, dict) or not all(isinstance(each, dict) for each in groups.values()):
        raise UserError(f"{path}: {what}: expected names, and settings below each")
    for name in groups:
        if not isinstance(name, str):
            raise UserError(f"{path}: {what}: expected texts as names, got {name!r}; write it in quotes")
        if what == "stages" and not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"{path}: stages: expected names of letters, digits, - and _, got {name!r}")
    try:
        return {name: flatten(settings) for name, settings in groups.items()}
    except UserError as error:
        raise UserError(f"{path}: {what}: {error}") from None
