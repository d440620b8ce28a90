"""The run directory: who may write it, whether a run may go on in it, and saves that are whole or absent.

out/  config.json  model.safetensors  tokenizer.json …   the model as last saved, for everyone to open
      checkpoints/step-00000500/                         the same, with training/ to continue from
      latest  best                                       names of checkpoints
      settings.yaml  metrics.jsonl  samples.jsonl  loss.png  summary.json
"""

import json
import math
import os
import platform
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dataset.printing import tell
from model.errors import UserError
from model.files import (
    LOCK,
    as_json,
    check_place,
    flush,
    locked,
    own,
    read_object,
    replacing,
    take_place,
    write_text,
)
from model.typed_json import Number, read_as, read_file

MARK = "settings.yaml"
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
SAMPLED = {"step": int}
TRAINED = SAMPLED | {"learning_rate": Number, "loss?": Number, "tokens?": int}
VALIDATED = SAMPLED | {"validation": str, "nats_per_token": Number}
"""what is read of their lines"""
CHECKPOINT = re.compile(r"step-\d{8,18}", re.ASCII)
TAKE_AWAY = "take it away to go on"


class RunDirectory:
    """The folder `--out` names; whoever writes must hold it by `claim`."""

    def __init__(self, path: str | Path) -> None:
        """Name the folder; nothing is touched yet."""
        self.path = Path(path)
        self._checkpoints = self.path / "checkpoints"

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Make the folder and hold it against other writers; leave no unfinished file in it.

        Raises `UserError` if the folder holds something else, or has a writer.
        """
        self._check_place()
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            try:
                yield
            finally:
                self._drop_partial()

    def check_shared(self) -> None:
        """Raise `UserError` unless this process sees the folder that the main process holds."""
        if not self.path.exists():
            fault = f"--out {self.path} is not there on {platform.node()}"
            raise UserError(f"{fault}; expected a folder that all nodes share")

    def _check_place(self) -> None:
        if not self.path.is_dir():
            return check_place(self.path)
        if not os.access(self.path, os.W_OK):
            fault = f"--out {self.path} cannot be written"
            raise UserError(f"{fault}; make it writable, or choose another folder")
        others = {entry.name for entry in self.path.iterdir()}
        if others and not others & {MARK, LOCK}:  # a kill in the first instant leaves the lock alone
            raise UserError(f"--out {self.path} holds {min(others)} and no run; choose a new folder")

    @property
    def latest(self) -> Path | None:
        """The last completed checkpoint, None before the first; raises `UserError` where nothing tells."""
        folder = self._named_in("latest", self.way_back)
        # A kill between the first save's name and this file leaves one save, and no summary yet.
        if folder is None and len(saves := self._folders()) > (not (self.path / "summary.json").exists()):
            there = f"{self.path / 'latest'} is gone, and {saves[-1].name} is there"
            raise UserError(f"{there}; {self.way_back}")
        return folder

    def _named_in(self, pointer: str, advice: str) -> Path | None:
        file = self.path / pointer
        if not os.path.lexists(file):
            return None
        try:
            name = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}); {advice}") from None
        if not CHECKPOINT.fullmatch(name):
            raise UserError(f"{file} is damaged (no name of a save, {name[:40]!r}); {advice}")
        return self._checkpoints / name

    def _folders(self) -> list[Path]:
        """Return all checkpoints that have got their name, in the order of their steps."""
        named = [each for each in self._checkpoints.glob("step-*") if CHECKPOINT.fullmatch(each.name)]
        return sorted(named, key=step_of)

    def read_training(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file of the last checkpoint's training state."""
        return read_object(self.latest / "training" / name, self.way_back)

    @property
    def last_save(self) -> str:
        """What a training that fails can count on, in words."""
        if folder := self.latest:
            return f"{folder} is whole, and the same command continues from there"
        return "nothing was saved yet, and the same command begins anew"

    @property
    def way_back(self) -> str:
        """What to do about a damaged checkpoint, in words."""
        return (
            f"write the name of an earlier one into {self.path / 'latest'}, or begin again in another --out"
        )

    def is_finished(self, total_steps: int) -> bool:
        """Say whether a run of this length came to its end here."""
        file = self.path / "summary.json"
        if not file.exists():
            return False
        summary = read_file({"finished": bool, "steps": int}, file, TAKE_AWAY)
        return summary["finished"] and summary["steps"] == total_steps

    def begin_checkpoint(self) -> None:
        """Empty the folder in which the next checkpoint is put together."""
        shutil.rmtree(own(self.partial), ignore_errors=True)
        (self.partial / "training").mkdir(parents=True)

    @property
    def partial(self) -> Path:
        """Where the next checkpoint is put together."""
        return self._checkpoints / "partial"

    def commit_checkpoint(self, step: int) -> None:
        """Make what was put together the last checkpoint; a kill at any instant leaves a whole one."""
        target = self._checkpoints / f"step-{step:08d}"
        take_place(self.partial, target)
        for file in target.iterdir():
            if file.is_file():
                with replacing(self.path / file.name) as temporary:
                    shutil.copyfile(file, temporary)
        for name in (METRICS, SAMPLES):
            if (file := self.path / name).exists():
                flush(file)
        write_text(self.path / "latest", target.name)

    def prune(self, keep: int, validation: str | None) -> None:
        """Remove all checkpoints but the last `keep` and that with the least loss on a validation set.

        The latter is named by `best`, from the first validation on; where the set is another than before,
        what was best stays until the new one has been measured.
        """
        if not (folders := self._folders()):
            return
        last = self.latest
        named = [folder for folder in folders if last and step_of(folder) <= step_of(last)]
        kept = named[-keep:]
        if best := self._best(named, validation):
            write_text(self.path / "best", best.name)
        if self.best in named:
            kept.append(self.best)
        if given_up := [folder.name for folder in folders if folder not in named]:
            tell(f"{self.path}: removed, as the training goes on before them: {', '.join(given_up)}")
        for folder in folders:
            if folder not in kept:
                shutil.rmtree(self.partial, ignore_errors=True)
                os.replace(folder, self.partial)  # a kill leaves no half of it under its name
                shutil.rmtree(self.partial)

    @property
    def best(self) -> Path | None:
        """The checkpoint with the least validation loss, None before the first validation."""
        return self._named_in("best", TAKE_AWAY)

    def _best(self, folders: list[Path], validation: str | None) -> Path | None:
        records = [record for record in self.read_records(METRICS) if "validation" in record]
        losses = {r["step"]: r["nats_per_token"] for r in records if r["validation"] == validation}
        ranked = [(losses.get(step_of(folder), math.nan), folder) for folder in folders]
        return min((entry for entry in ranked if math.isfinite(entry[0])), default=(None, None))[1]

    def _drop_partial(self) -> None:
        with suppress(OSError):
            shutil.rmtree(self.partial, ignore_errors=True)
            for file in self.path.glob(".*.partial"):
                file.unlink()

    def append_records(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Add lines to `metrics.jsonl` or `samples.jsonl`; every record has its `step`."""
        with open(own(self.path / name), "a", encoding="utf-8") as file:
            file.write("".join(map(_line, records)))

    def read_records(self, name: str) -> list[dict[str, Any]]:
        """Return what `append_records` wrote, none before; a line that a kill cut short is left out."""
        file = self.path / name
        try:
            lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
            return [_read(json.loads(line), name, f"line {n}") for n, line in enumerate(lines, start=1)]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is damaged ({error}); {TAKE_AWAY}") from None

    def is_validated(self, step: int, names: Collection[str]) -> bool:
        """Say whether the metrics hold the validation of a step on all sets of these names."""
        records = self.read_records(METRICS)
        return bool(names) and {*names} <= {r.get("validation") for r in records if r["step"] == step}

    def cut_records(self, step: int, is_validated: bool) -> None:
        """Drop metrics and samples of what is about to be done again: later steps, a validation cut short."""
        for name in (METRICS, SAMPLES):
            if (self.path / name).exists():
                kept = [
                    record
                    for record in self.read_records(name)
                    if record["step"] < step
                    or record["step"] == step
                    and (is_validated or name == METRICS and "validation" not in record)
                ]
                write_text(self.path / name, "".join(map(_line, kept)))


def _read(record: Any, name: str, place: str) -> dict[str, Any]:
    """Return a record of a file; raises `ValueError` for what is none."""
    if name == SAMPLES:
        return read_as(SAMPLED, record, place)
    return read_as(VALIDATED if "validation" in read_as(SAMPLED, record, place) else TRAINED, record, place)


def _line(record: dict[str, Any]) -> str:
    return as_json(record) + "\n"


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("step-"))
