"""Cells: the commands that an experiment consists of, each addressed by the hash of all that decides it.

Arms share what they do alike, a grid goes on where it stopped, and nothing runs twice, because a cell is
found by its address. Says what is to run, and proves beforehand that it can; runs nothing.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from glob import escape, glob, has_magic
from hashlib import sha256
from pathlib import Path
from typing import Any

from dataset.blocks import form_of
from dataset.builtin.splits import BuildWorldSettings
from dataset.builtin.tasks import BuildTaskSettings
from dataset.command_line import read, words_of
from dataset.encoding import PreparationSettings
from dataset.sources import describe_source, state_of
from dataset.tables import HUB
from dataset.tokenizer_sample import TokenizerSettings
from eval.experiment import A_A, OTHER_SEEDS, Experiment, Stages
from eval.regression import RegressionSettings
from eval.running import CPU
from eval.serving_settings import EvaluationSettings
from model.errors import UserError
from trainer.settings import FRESH, PretrainSettings, SftSettings, flatten

LAUNCHER = ("accelerate", "launch", "--config_file")
GPU = "configs/accelerate/one_gpu.yaml"


@dataclass(frozen=True)
class Program:
    """A command that cells are made of."""

    module: str
    settings: type
    trains: bool = False
    """whether it takes a seed, and leaves summary.json with its proof, and metrics.jsonl"""
    measures: bool = False
    """whether it leaves items.json, the scores of every item"""
    is_launched: bool = False
    """whether it is started through accelerate"""


PROGRAMS = {
    "build_world": Program("scripts.build_world", BuildWorldSettings),
    "build_task": Program("scripts.build_task", BuildTaskSettings),
    "train_tokenizer": Program("scripts.train_tokenizer", TokenizerSettings),
    "prepare_data": Program("scripts.prepare_data", PreparationSettings),
    "pretrain": Program("trainer.pretrain", PretrainSettings, trains=True, is_launched=True),
    "sft": Program("trainer.sft", SftSettings, trains=True, is_launched=True),
    "regression": Program(
        "eval.regression", RegressionSettings, trains=True, measures=True, is_launched=True
    ),
    "evaluate": Program("scripts.evaluate", EvaluationSettings, measures=True),
}
UNDECIDING = {"out", "overwrite", "resume", "tracker", "num_workers"}
"""settings that change no result"""
SOURCES = {"data", "validation", "loss_data", "tokenizer", "init", "model"}
"""settings that name files or folders, whose content decides"""


@dataclass(frozen=True)
class Cell:
    """One command of a grid, with its settings."""

    stage: str
    run: str
    settings: dict[str, Any]
    """all with their values, defaults too; @address stands for the folder that another cell wrote"""
    needs: tuple[str, ...]
    """addresses of the cells whose folders it reads"""
    address: str
    threads: int = 1
    """with which it computes; their number changes the last bits of results"""

    @property
    def program(self) -> Program:
        """The command."""
        return PROGRAMS[self.run]

    @property
    def tells(self) -> bool:
        """Whether its record says something of an arm: scores, or the course of a training."""
        return self.program.measures or self.program.trains

    @property
    def files(self) -> dict[str, list[int]]:
        """The user's files that it reads, each with its state when the address was made."""
        own = [path for _, paths in _paths(self.settings) for path in paths if path and path[0] != "@"]
        return {file: state for path in own for file, state in _content(path)[1].items()}

    def words(self, work: Path, uses_gpu: bool) -> list[str]:
        """Return the command line that writes this cell's folder in `work`; it reads no recipe."""
        defaults = _defaults(self.run)
        said = {key: _placed(v, work) for key, v in self.settings.items() if v != defaults.get(key, defaults)}
        words = words_of(self.program.settings, said | {"out": str(folder_of(self.address, work))})
        start = [*LAUNCHER, GPU if uses_gpu else CPU, "-m"] if self.program.is_launched else ["python", "-m"]
        return [*start, self.program.module, *words]


def folder_of(address: str, work: Path) -> Path:
    """Return the folder that a cell writes, named after its stage: losses on a store have its name."""
    return work / address / address.rpartition("-")[0]


def _placed(value: Any, work: Path) -> Any:
    """Replace references by paths; a glob becomes the files that it stands for, where they are there."""
    if isinstance(value, list | tuple):
        return [each for item in value for each in _expanded(_placed(item, work))]
    if isinstance(value, str) and value.startswith("@"):
        address, _, rest = value[1:].partition("/")
        folder = folder_of(address, work)
        return str((Path(escape(str(folder))) if has_magic(rest) else folder) / rest)
    return value


def _expanded(value: Any) -> list[Any]:
    if not (isinstance(value, str) and has_magic(value)) or Path(value).exists():
        return [value]
    return sorted(glob(value)) or [value]


@dataclass(frozen=True)
class Trial:
    """What one arm does with one seed."""

    arm: str
    seed: int
    cells: dict[str, Cell]
    """by stage, in the order of the file; those that an arm makes no use of are left out"""

    @property
    def measured(self) -> list[Cell]:
        """The cells that leave scores."""
        return [cell for cell in self.cells.values() if cell.program.measures]


def plan(experiment: Experiment, seeds: Iterable[int], tuned: dict[str, dict[str, Any]]) -> list[Trial]:
    """Return what every arm does with every seed, the A/A arm included where there are several.

    `tuned` holds settings of each arm besides those that it names. Raises `UserError` that names the stage
    for settings that its command refuses.
    """
    seeds = list(seeds)
    trials = [
        trial_of(experiment.stages, arm, named | tuned.get(arm, {}), seed)
        for seed in seeds
        for arm, named in experiment.named.items()
    ]
    if len(seeds) > 1:
        base = experiment.named[experiment.baseline] | tuned.get(experiment.baseline, {})
        trials += [trial_of(experiment.stages, A_A, base, seed, OTHER_SEEDS) for seed in seeds]
    check_different(trials, experiment.pairs)
    return trials


def check_different(trials: Sequence[Trial], pairs: Sequence[Sequence[str]]) -> None:
    """Raise `UserError` where seeds, or arms that are compared, are measured by the same cells."""
    measured = {(trial.arm, trial.seed): tuple(cell.address for cell in trial.measured) for trial in trials}
    for arm in dict.fromkeys(trial.arm for trial in trials):
        seeds = [cells for (name, _), cells in measured.items() if name == arm]
        if len({*seeds}) < len(seeds):
            wanted = "expected trainings that take the seed"
            raise UserError(f"arm {arm}: {wanted}, got the same for several seeds")
    for arm, baseline in pairs:
        if measured[arm, trials[0].seed] == measured[baseline, trials[0].seed]:
            raise UserError(f"arms {arm} and {baseline} do the same; there is nothing to compare")


def trial_of(stages: Stages, arm: str, named: dict[str, Any], seed: int, shift: int = 0) -> Trial:
    """Return the cells of an arm, whose trainings take `seed` + `shift` where no stage names another."""
    cells: dict[str, Cell] = {}
    for stage, base in stages.items():
        own = {key.partition(".")[2]: v for key, v in named.items() if key.partition(".")[0] == stage}
        try:
            cells[stage] = _cell(stage, base | own, seed + shift, cells)
        except UserError as error:
            raise UserError(f"arm {arm}, stage {stage}: {error}") from None
    used: set[str] = set()  # what is measured, and all that it is made from, which stands above it
    for cell in reversed(cells.values()):
        if cell.program.measures or cell.address in used:
            used |= {cell.address, *cell.needs}
    if not used:
        measuring = ", ".join(name for name, program in PROGRAMS.items() if program.measures)
        raise UserError(f"stages: expected one that measures ({measuring}), got none")
    trial = Trial(arm, seed, {stage: cell for stage, cell in cells.items() if cell.address in used})
    if idle := [key for key in named if key.partition(".")[0] not in trial.cells]:
        raise UserError(f"arm {arm}: {idle[0]} changes nothing, as nothing that is measured uses that stage")
    return trial


def _cell(stage: str, given: dict[str, Any], seed: int, former: dict[str, Cell]) -> Cell:
    run, threads = given.pop("run", None), given.pop("threads", None)
    threads = 1 if threads is None else threads
    if type(threads) is not int or threads < 1:
        raise UserError(f"threads: expected 1 or more, got {threads}")
    if "out" in given:
        raise UserError("out: each cell has a folder of its own; leave it out (links gives folders names)")
    if not isinstance(run, str) or run not in PROGRAMS:
        raise UserError(f"run: expected one of {', '.join(PROGRAMS)}, got {run}")
    program, addresses = PROGRAMS[run], {name: cell.address for name, cell in former.items()}
    if program is PROGRAMS["evaluate"]:
        given = _with_leave(given, former)
    # parsed with the names of stages, which are the same for all seeds
    settings = json.loads(_parsed(run, json.dumps(given)))
    settings = {key: _resolved(value, addresses) for key, value in settings.items()}
    if program.trains and given.get("seed") is None:
        settings["seed"] = seed
    decides = {key: value for key, value in settings.items() if key not in UNDECIDING}
    address = f"{stage}-{_digest(run, decides | ({'threads': threads} if threads > 1 else {}))}"
    return Cell(stage, run, settings, tuple(_references(settings)), address, threads)


def _resolved(value: Any, addresses: dict[str, str]) -> Any:
    """Replace the name of a stage in a reference by the address of its cell."""
    if isinstance(value, list | tuple):
        return [_resolved(each, addresses) for each in value]
    if not (isinstance(value, str) and value.startswith("@")):
        return value
    name, slash, rest = value[1:].partition("/")
    if name not in addresses:
        raise UserError(f"{value}: expected @ and an earlier stage ({', '.join(addresses) or 'none'})")
    return f"@{addresses[name]}{slash}{rest}"


def _with_leave(given: dict[str, Any], former: dict[str, Cell]) -> dict[str, Any]:
    """Allow a mask that the model was not trained with; its own mask needs no name."""
    served = {f"@{stage}": cell for stage, cell in former.items()}.get(str(given.get("model")))
    if given.get("prompt_mask") is None or served is None:
        return given
    if given["prompt_mask"] == _trained_mask(served, former):
        return {key: value for key, value in given.items() if key != "prompt_mask"}
    return given | {"allow_mask_mismatch": True}


def _trained_mask(cell: Cell, former: dict[str, Cell]) -> str:
    """Return the mask of a training: its own, or that of the model that it began with."""
    if mask := cell.settings.get("prompt_mask"):
        return mask
    begun = [each for each in former.values() if f"@{each.address}" == cell.settings.get("init")]
    return _trained_mask(begun[0], former) if begun else "causal"


@cache
def _parsed(run: str, given: str) -> str:
    """Return all settings of a command that is given some; raises `UserError` as it would.

    Null gives a setting its default back, also where the command's recipe sets it.
    """
    keys, form, defaults = json.loads(given), PROGRAMS[run].settings, _defaults(run)
    recipe = keys.pop("config", None)
    words = [f"--config={recipe}"] if recipe else []
    keys |= {key: defaults.get(key) for key in keys if keys[key] is None}
    settings = read(form, words + words_of(form, {"out": "out"} | keys))
    return json.dumps(flatten(asdict(settings)))


def _references(settings: dict[str, Any]) -> Iterator[str]:
    for value in settings.values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and each.startswith("@"):
                yield each[1:].partition("/")[0]


def _paths(settings: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the settings that name files or folders; a number of documents may be called validation, too."""
    for key in SOURCES & settings.keys():
        paths = settings[key] if isinstance(settings[key], list) else [settings[key]]
        if all(isinstance(path, str) for path in paths):
            yield key, paths


def _digest(run: str, settings: dict[str, Any]) -> str:
    """Return the hash of a command and its settings, files of the user's told by their content.

    Settings at their defaults are left out, so that a new setting leaves the addresses of old cells alone.
    """
    defaults = _defaults(run)
    named = {key: value for key, value in settings.items() if value != defaults.get(key)}
    for key, paths in [*_paths(named)]:
        named[key] = [path if path.startswith("@") else _content(path)[0] for path in paths]
    return sha256(json.dumps([run, named], sort_keys=True).encode()).hexdigest()[:12]


@cache
def _defaults(run: str) -> dict[str, Any]:
    values = {one.name: one.default for one in fields(PROGRAMS[run].settings) if one.default is not MISSING}
    plain = {key: asdict(value) if is_dataclass(value) else value for key, value in values.items()}
    return flatten(json.loads(json.dumps(plain)))


@cache
def _content(path: str) -> tuple[str, dict[str, list[int]]]:
    """Return a digest of a file or folder, an adapter's base included, and the states of its files before it.

    How a file is read decides too, and so do the names in a folder or of a glob. Raises `UserError` where
    none is.
    """
    from model.adapter import base_folders  # imports torch, which takes seconds

    if path == FRESH or path.startswith(HUB):
        return path, {}
    places = [Path(each) for each in _expanded(path)]
    places += [base for place in places for base in base_folders(place)]
    if not all(place.exists() for place in places):
        raise UserError(f"{path}: expected a file or folder, or @ and the name of an earlier stage")
    digests, states = [], {}
    for place in places:
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file():
                states[str(file)] = state_of(str(file))
                name = file.name if file == place else str(file.relative_to(place))
                name = form_of(path).removeprefix(".jsonl") if file == Path(path) else name
                digests.append(describe_source(str(file))["sha256"] + name)
    return sha256(json.dumps(digests).encode()).hexdigest(), states
