"""The run directory: who may write it, whether a run may go on in it, and saves that are whole or absent.

out/  config.json  model.safetensors  tokenizer.json …   the model as last saved, for everyone to open
      checkpoints/step-00000500/                         the same, with training/ to continue from
      latest                                             the name of that checkpoint
      settings.yaml  metrics.jsonl  loss.png  summary.json
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dataset.whole_folder import check_place
from model.errors import UserError
from model.json_file import read_object

MARK = "settings.yaml"


class RunDirectory:
    """The folder `--out` names; whoever writes must hold it by `claim`."""

    def __init__(self, path: str | Path) -> None:
        """Name the folder; nothing is touched yet."""
        self.path = Path(path)
        self.metrics_path = self.path / "metrics.jsonl"
        self._checkpoints = self.path / "checkpoints"

    def claim(self) -> IO[str]:
        """Make the folder and lock it until the returned file is closed.

        Raises `UserError` if the folder holds something else, or has a writer.
        """
        check_place(self.path)
        begun = {".lock", f".{MARK}.partial"}  # what a kill in the first instant leaves
        others = {entry.name for entry in self.path.iterdir()} - begun if self.path.exists() else set()
        if others and MARK not in others:
            raise UserError(f"--out {self.path} holds {min(others)} and no run; choose a new folder")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = open(self.path / ".lock", "a+")  # noqa: SIM115 - the caller closes it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            writer = lock.read()
            raise UserError(
                f"--out {self.path} is being written by process {writer}; wait for it or stop it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def check(self, facts: dict[str, Any], resume: str) -> None:
        """Raise `UserError` unless a run with these facts (dotted key to value) may start or go on here."""
        if self.latest is None:
            return
        if resume == "never":
            raise UserError(
                f"--out {self.path} holds a run; choose another folder, or --resume auto to continue it"
            )
        saved, given = self.read_training("settings.json"), json.loads(json.dumps(facts))
        differing = [key for key in saved | given if saved.get(key) != given.get(key)]
        if differing:
            changes = "; ".join(f"{key} was {saved.get(key)}, is {given.get(key)}" for key in differing)
            raise UserError(
                f"--out {self.path} holds a run with other settings ({changes}); choose another folder"
            )

    @property
    def latest(self) -> Path | None:
        """The last completed checkpoint, None before the first."""
        pointer = self.path / "latest"
        return self._checkpoints / pointer.read_text().strip() if pointer.exists() else None

    def read_training(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file of the last checkpoint's training state."""
        return read_object(self.latest / "training" / name, "begin again in another --out")

    @property
    def is_finished(self) -> bool:
        """Say whether a run came to its end here."""
        summary = self.path / "summary.json"
        return summary.exists() and read_object(summary, "take it away to go on").get("finished", False)

    def begin_checkpoint(self) -> None:
        """Empty the folder in which the next checkpoint is put together."""
        shutil.rmtree(self.partial, ignore_errors=True)
        (self.partial / "training").mkdir(parents=True)

    @property
    def partial(self) -> Path:
        """Where the next checkpoint is put together."""
        return self._checkpoints / "partial"

    def commit_checkpoint(self, step: int) -> None:
        """Make what was put together the last checkpoint; a kill at any instant leaves a whole one."""
        target = self._checkpoints / f"step-{step:08d}"
        flush_folder(self.partial)
        shutil.rmtree(target, ignore_errors=True)  # written, but never named by `latest`
        os.replace(self.partial, target)
        for file in target.iterdir():
            if file.is_file():
                with replacing(self.path / file.name) as temporary:
                    shutil.copyfile(file, temporary)
        self.write_text("latest", target.name)
        for former in self._checkpoints.glob("step-*"):
            if former != target and former.is_dir():
                shutil.rmtree(former)

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder, whole or not at all."""
        with replacing(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file of the folder, whole or not at all."""
        self.write_text(name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        with open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the records of `metrics.jsonl`; a line that a kill cut short is left out."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            raise UserError(f"{self.metrics_path} is damaged ({error}); take it away to go on") from None

    def is_validated(self, step: int) -> bool:
        """Say whether the metrics hold the validation of a step."""
        return any(record["step"] == step and "validation" in record for record in self.read_metrics())

    def cut_metrics(self, step: int) -> None:
        """Drop the records of steps after `step`, which are about to be done again."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        self.write_text(self.metrics_path.name, "".join(json.dumps(record) + "\n" for record in kept))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name to write to; what was written takes the place of `path` in one instant, on the disk."""
    temporary = path.with_name(f".{path.name}.partial")
    yield temporary
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)


def flush_folder(folder: Path) -> None:
    """Wait until a folder and all files below it are on the disk."""
    for member in folder.rglob("*"):
        _flush(member)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
