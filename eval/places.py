"""Where the cells of an experiment lie, which are finished, and what is left for those at work to do."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.cells import GPU, SOURCES, UNDECIDING, Cell, Trial, folder_of
from eval.experiment import A_A, Experiment, link_name
from eval.records import RECORD, fault_of
from model.errors import UserError, brief
from model.files import check_place, write_json
from model.typed_json import read_file

EXPERIMENTS = "experiments.json"
COMMIT = re.compile("[0-9a-f]*(-dirty)?")
TASKS = {"data", "loss_data"}
"""what is measured, in files and stores whose names are those of tasks"""


@dataclass(frozen=True)
class Places:
    """Where an experiment's cells lie."""

    records: Path
    work: Path

    def records_of(self, trials: Iterable[Trial]) -> dict[str, dict[str, Any]]:
        """Return the records of the cells of trials that are finished, by address."""
        cells = {cell.address: cell for trial in trials for cell in trial.cells.values()}
        return {address: record for address, cell in cells.items() if (record := self.finished(cell))}

    def record(self, address: str) -> Path:
        """Return the file that says that a cell is finished."""
        return self.records / f"{address}.json"

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """Return the record of a cell, None where it has none.

        Raises `UserError` for a record of other settings, as a default may have changed since.
        """
        file = self.record(cell.address)
        if not file.exists():
            return None
        advice = "take it away, and the cell runs again"
        record = read_file(RECORD, file, advice)
        fault = fault_of(record["result"], cell.program.trains, cell.program.measures)
        if not COMMIT.fullmatch(record.get("commit") or ""):
            fault = f"commit: expected one, got {brief(record['commit'])}"
        if fault:
            raise UserError(f"{file} is damaged ({fault}); {advice}")
        free = UNDECIDING | SOURCES - (TASKS if cell.program.measures else set())
        for key in (cell.settings.keys() & record["settings"].keys()) - free:
            there, wanted = record["settings"][key], cell.settings[key]
            if _names(there) != _names(wanted) if key in TASKS else there != wanted:
                raise UserError(f"{file} was made with {key} {there}, which is {wanted} now; {advice}")
        # A report offers the command to a shell: what a stranger's record says of it is not read.
        return record | {"command": shlex.join(cell.words(self.work, uses_gpu=GPU in record["command"]))}

    def has_output(self, cell: Cell) -> bool:
        """Say whether the folder of a finished cell is here, and not its record alone."""
        return (self.work / cell.address / "done").exists()


def _names(paths: Any) -> list[Any]:
    """Return the names of files without their folders; what is none in a damaged record stays."""
    paths = paths if isinstance(paths, list) else [paths]
    return [os.path.basename(path) if isinstance(path, str) else path for path in paths]


def check_out(out: Path, mark: str) -> None:
    """Raise `UserError` unless a folder can be made, or holds what this command leaves first."""
    check_place(out)
    if out.exists() and any(out.iterdir()) and not (out / mark).exists():
        raise UserError(f"--out {out} holds something else ({min(out.iterdir()).name}); choose a new folder")


def note_experiment(out: Path, experiment: Experiment) -> list[str]:
    """Write down, before its first cell, which experiment is run in a folder; return the hashes before it."""
    file = out / EXPERIMENTS
    noted = read_file(dict[str, Any], file, "take it away") if file.exists() else {}
    if experiment.hash not in noted:
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, noted | {experiment.hash: asdict(experiment)})
    return list(noted)


def write_job(places: Places, cell: Cell, uses_gpu: bool) -> Path:
    """Leave in the folder of a cell what `run_cell` needs to know; return the folder."""
    folder = places.work / cell.address
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        "cell": asdict(cell),
        "command": cell.words(places.work, uses_gpu),
        "record": str(places.record(cell.address)),
        "output": str(folder_of(cell.address, places.work)),
        "threads": cell.threads,
        "files": cell.files,
        "measures": cell.program.measures,
        "trains": cell.program.trains,
    }
    write_json(folder / "job.json", job)
    return folder


def link(trials: Sequence[Trial], stages: Sequence[str], work: Path, out: Path) -> None:
    """Give the folders of the first seed's stages names in `out`, those of arms that share one no arm's."""
    first = [trial for trial in trials if trial.seed == trials[0].seed and trial.arm != A_A]
    for stage in stages:
        made = {trial.arm: trial.cells[stage].address for trial in first if stage in trial.cells}
        is_shared = len({*made.values()}) == 1
        for arm, address in made.items():
            name = out / link_name(stage, "" if is_shared else arm)
            target = folder_of(address, work)
            if target.exists() and (name.is_symlink() or not name.exists()):
                name.unlink(missing_ok=True)
                name.symlink_to(os.path.relpath(target, out))
